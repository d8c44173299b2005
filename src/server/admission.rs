//! Admission: counts a new client, or refuses it if the server is full, and queues clients for the
//! workers.

use std::net::{SocketAddr, TcpStream};
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use log::{debug, error};

use crate::handover::state::ConnectionState;
use crate::metrics::{Closed, Refused};
use crate::protocol::proxy::ProxiedPeer;
use crate::protocol::{Protocol, Protocols};
use crate::server::proxy_filter::{FilterResult, Filtered};
use crate::server::queue::{Job, Queue};
use crate::session::Shared;
use crate::transport::clients::{Clients, ConnectionGuard};
use crate::transport::connection::{Connection, Transport, send_last_line};
use shared::command::{BadHeader, CommandError, NoRoom};
use shared::sync::channel::TrySendError;

/// The count of the clients, and the queue to the workers.
pub struct Admission<T = TcpStream> {
    /// What all threads of the server share.
    pub shared: Shared,
    /// The protocols of the server.
    pub protocols: Protocols,
    /// Count of the admitted clients.
    pub clients: Arc<Clients>,
    /// Number of workers: with more clients than that, some wait.
    pub workers: usize,
    /// Queue of the clients that wait for a worker.
    pub queue: Queue<Connection<T>>,
    /// Set when the server stops accepting.
    pub closed: AtomicBool,
}

impl Admission {
    /// Admits a client, or refuses it.
    pub fn admit_client(
        &self,
        client: ConnectionState,
        protocol: &'static dyn Protocol,
        stream: TcpStream,
    ) -> Option<Connection> {
        let (connection, peer) = (client.number, client.peer);
        let no_room = match self.admit(&client, protocol) {
            Ok(guard) => {
                debug!(connection, peer:%; "accepted");
                return Some(Connection::accepted(client, protocol, stream, guard));
            }
            Err(no_room) => no_room,
        };
        debug!(connection, peer:%; "refused");
        self.reject(stream, protocol, &self.no_room(no_room));
        None
    }

    /// Tells a client why it is not admitted, and starts a lingering close, without waiting.
    fn reject(&self, stream: TcpStream, protocol: &dyn Protocol, error: &CommandError<'_>) {
        let mut reply = Vec::new();
        protocol.reject(error, &mut reply);
        self.shared.linger.push(send_last_line(stream, &reply));
    }

    /// Returns the protocol of a connection that another thread or process has begun. A scheme that
    /// this server does not have is the default one's.
    fn protocol(&self, client: &ConnectionState) -> &'static dyn Protocol {
        let protocol = self.protocols.find(&client.protocol);
        protocol.unwrap_or(self.protocols.default())
    }

    fn admit(
        &self,
        client: &ConnectionState,
        protocol: &dyn Protocol,
    ) -> Result<ConnectionGuard, NoRoom> {
        if client.uncounted {
            self.clients.admit_uncounted()
        } else {
            let counts_at_once = protocol.counts_at_once();
            self.clients.admit(client.peer.ip(), counts_at_once)
        }
    }

    /// Admits or refuses a connection of a load balancer, once its PROXY header has arrived or
    /// failed.
    pub fn on_filtered(&self, ((mut client, stream), result): Filtered) -> Option<Connection> {
        let (connection, proxy) = (client.number, client.peer);
        let protocol = self.protocol(&client);
        let error = match result {
            FilterResult::Peer(peer) => {
                client.awaits_proxy_header = false;
                match peer {
                    ProxiedPeer::Client(peer) => client.peer = peer,
                    ProxiedPeer::Unknown => {}
                    ProxiedPeer::Sender => client.uncounted = true,
                }
                debug!(connection, proxy:%, counts = !client.uncounted; "passed on");
                return self.admit_client(client, protocol, stream);
            }
            FilterResult::Gone(how) => {
                debug!(connection, proxy:%; "gone before its PROXY header");
                let shard = self.shared.metrics.shard(connection as usize);
                shard.closed(how);
                return None;
            }
            FilterResult::NoRoom(limit) => self.no_room(NoRoom::BeforeHeader { limit }),
            FilterResult::Bad(bad) => self.bad_header(bad, proxy),
        };
        debug!(connection, peer:% = proxy; "refused");
        self.reject(stream, protocol, &error);
        None
    }

    fn bad_header(&self, bad: BadHeader, proxy: SocketAddr) -> CommandError<'static> {
        self.shared.metrics.refuse(match bad {
            BadHeader::Missing => Refused::HeaderMissing,
            BadHeader::Malformed => Refused::HeaderMalformed,
            BadHeader::TooLong => Refused::HeaderTooLong,
            BadHeader::Late => Refused::HeaderLate,
        });
        let error = CommandError::BadHeader(bad);
        let detail = format!("from {}: {error}", proxy.ip());
        let shared = &self.shared;
        shared.record(&shared.incidents.bad_header, &detail);
        error
    }

    /// Counts and logs a refusal for lack of room, and returns the error to send.
    fn no_room(&self, no_room: NoRoom) -> CommandError<'static> {
        self.shared.metrics.refuse(match no_room {
            NoRoom::Here { .. } => Refused::Full,
            NoRoom::ForAddress { .. } => Refused::Address,
            NoRoom::Uncounted { .. } => Refused::Uncounted,
            NoRoom::BeforeHeader { .. } => Refused::BeforeHeader,
        });
        let error = CommandError::NoRoom(no_room);
        let shared = &self.shared;
        shared.record(&shared.incidents.refused, &error);
        error
    }

    /// Admits the clients of the last process, as far as there is room. Counts all of them before
    /// the first is served.
    pub fn resume(&self, clients: Vec<(ConnectionState, TcpStream)>) -> Vec<Connection> {
        let mut admitted = Vec::with_capacity(clients.len());
        for (client, stream) in clients {
            let protocol = self.protocol(&client);
            match self.admit(&client, protocol) {
                Ok(guard) => admitted.push(Connection::inherited(client, protocol, stream, guard)),
                Err(no_room) => {
                    let error = self.no_room(no_room);
                    // A client that has half a reply would take the error for the other half.
                    if client.replies.is_empty() {
                        self.reject(stream, protocol, &error);
                    }
                }
            }
        }
        admitted
    }
}

impl<T: Transport> Admission<T> {
    /// Queues `connection` for the workers.
    pub fn enqueue(&self, connection: Connection<T>) {
        match self.queue.put(Job::Serve(connection)) {
            Ok(()) => {
                if self.clients.all() > self.workers {
                    self.shared.reaper_waker.wake();
                }
            }
            // The queue has room for every admitted connection, and the workers outlive the front.
            Err(TrySendError::Full(lost) | TrySendError::Disconnected(lost)) => {
                if let Job::Serve(connection) = lost {
                    error!(connection = connection.client.number; "closed: there is no room in the queue, please report this");
                    self.shared.metrics.shard(0).closed(Closed::Failed);
                    connection.close();
                }
            }
        }
    }
}
