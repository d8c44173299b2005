//! Accept loop and admission: accepts a client, counts it, and queues it for a worker or refuses it
//! if the server is full.

use std::net::{SocketAddr, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use log::{debug, error};
use rustix::io::Errno;
use rustix::net::{SocketFlags, acceptfrom_with};

use crate::error::Error;
use crate::handover::state::ConnectionState;
use crate::metrics::{AcceptError, Closed, Refused};
use crate::protocol::proxy::ProxiedPeer;
use crate::protocol::{Protocol, Protocols};
use crate::server::listener::Listener;
use crate::server::proxy_filter::{FilterResult, PendingConn, ProxyFilter};
use crate::server::queue::{Job, Queue};
use crate::session::{self, Shared};
use crate::thread::{self, Thread};
use crate::transport::clients::{Clients, ConnectionGuard};
use crate::transport::connection::{Connection, Transport};
use shared::command::{BadHeader, CommandError, NoRoom};
use shared::sync::channel::TrySendError;
use shared::text::without_errno;

/// Pause before the next accept when the system lacks a resource.
const PAUSE: Duration = Duration::from_millis(50);

/// State that all accept loops share: the count of the clients, and the queue to the workers.
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
    /// Set when the acceptors must stop.
    pub closed: AtomicBool,
}

/// A running accept loop.
pub struct Acceptor {
    /// Its thread.
    pub thread: Thread,
    /// Number of rounds of the loop; an interrupt causes one.
    pub rounds: Arc<AtomicU64>,
}

/// Starts the accept loop of `listener`, whose clients speak `protocol`. Connections that must send
/// a PROXY header go to `proxy_filter`. If the listener fails for good, the loop calls `failed`.
pub fn start(
    admission: Arc<Admission>,
    listener: Arc<Listener>,
    protocol: &'static dyn Protocol,
    proxy_filter: Option<Arc<ProxyFilter>>,
    failed: impl FnOnce(Error) + Send + 'static,
) -> Result<Acceptor, Error> {
    let rounds = Arc::new(AtomicU64::new(0));
    let counter = rounds.clone();
    let thread = thread::spawn("acceptor", move || {
        if let Err(error) = run(
            &admission,
            &listener,
            protocol,
            proxy_filter.as_deref(),
            &counter,
        ) {
            failed(error);
        }
    })?;
    Ok(Acceptor { thread, rounds })
}

fn run(
    admission: &Admission,
    listener: &Listener,
    protocol: &'static dyn Protocol,
    proxy_filter: Option<&ProxyFilter>,
    rounds: &AtomicU64,
) -> Result<(), Error> {
    let shared = &admission.shared;
    while !admission.closed.load(Ordering::Relaxed) {
        rounds.fetch_add(1, Ordering::Relaxed);
        match acceptfrom_with(&listener.socket, SocketFlags::CLOEXEC) {
            Ok((socket, peer)) => {
                // The peer of a TCP socket has an address that std can represent.
                let peer = peer.and_then(|peer| SocketAddr::try_from(peer).ok());
                if let Some(peer) = peer {
                    let number = shared.metrics.accept();
                    let client = ConnectionState::new(number, protocol.scheme(), peer);
                    let stream = TcpStream::from(socket);
                    match proxy_filter {
                        Some(proxy_filter) if proxy_filter.trusts(peer.ip()) => {
                            proxy_filter.receive(client, stream);
                        }
                        _ => admission.admit_client(client, protocol, stream),
                    }
                }
            }
            Err(Errno::INTR) => {}
            Err(error) => match blame(error) {
                Blame::Client => {
                    shared.metrics.accept_failed(AcceptError::Client);
                    if shared
                        .incidents
                        .accept
                        .record(&without_errno(&error.into()))
                    {
                        shared.reaper_waker.wake();
                    }
                }
                Blame::System => {
                    shared.metrics.accept_failed(kind(error));
                    shared
                        .incidents
                        .accept
                        .record(&without_errno(&error.into()));
                    shared.reaper_waker.wake();
                    std::thread::sleep(PAUSE);
                }
                Blame::Listener => {
                    return Err(Error::Accept {
                        address: listener.address,
                        source: error.into(),
                    });
                }
            },
        }
    }
    Ok(())
}

/// Party that caused a failed accept (accept(2), "Error handling").
enum Blame {
    /// The client, which is gone: accept the next.
    Client,
    /// The system, which lacks a resource or forbids the call: wait.
    System,
    /// The listening socket: give up.
    Listener,
}

fn blame(error: Errno) -> Blame {
    match error {
        Errno::BADF | Errno::INVAL | Errno::NOTSOCK | Errno::OPNOTSUPP | Errno::FAULT => {
            Blame::Listener
        }
        Errno::CONNABORTED
        | Errno::CONNRESET
        | Errno::PROTO
        | Errno::NOPROTOOPT
        | Errno::TIMEDOUT
        | Errno::NETDOWN
        | Errno::NETUNREACH
        | Errno::HOSTDOWN
        | Errno::HOSTUNREACH
        | Errno::NONET => Blame::Client,
        _ => Blame::System,
    }
}

/// Returns what the system lacks.
fn kind(error: Errno) -> AcceptError {
    match error {
        Errno::MFILE | Errno::NFILE => AcceptError::Descriptors,
        Errno::NOBUFS | Errno::NOMEM => AcceptError::Memory,
        _ => AcceptError::Other,
    }
}

impl Admission {
    fn admit_client(
        &self,
        client: ConnectionState,
        protocol: &'static dyn Protocol,
        stream: TcpStream,
    ) {
        let (connection, peer) = (client.number, client.peer);
        let no_room = match self.admit(&client) {
            Ok(guard) => {
                debug!(connection, peer:%; "accepted");
                return self.enqueue(Connection::accepted(client, protocol, stream, guard));
            }
            Err(no_room) => no_room,
        };
        debug!(connection, peer:%; "refused");
        self.reject(stream, protocol, &self.no_room(no_room));
    }

    fn reject(&self, stream: TcpStream, protocol: &dyn Protocol, error: &CommandError<'_>) {
        session::reject(stream, protocol, error, &self.shared.linger);
    }

    /// Returns the protocol of a connection that another thread or process has begun. A scheme that
    /// this server does not have is the default one's.
    fn protocol(&self, client: &ConnectionState) -> &'static dyn Protocol {
        let protocol = self.protocols.find(&client.protocol);
        protocol.unwrap_or(self.protocols.default())
    }

    fn admit(&self, client: &ConnectionState) -> Result<ConnectionGuard, NoRoom> {
        if client.uncounted {
            self.clients.admit_uncounted()
        } else {
            self.clients.admit(client.peer.ip())
        }
    }

    /// Admits or refuses a connection of a load balancer, once its PROXY header has arrived or
    /// failed.
    pub fn on_filtered(&self, pending: PendingConn, result: FilterResult) {
        let (mut client, stream) = pending;
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
                return shard.closed(how);
            }
            FilterResult::NoRoom(limit) => self.no_room(NoRoom::BeforeHeader { limit }),
            FilterResult::Bad(bad) => self.bad_header(bad, proxy),
        };
        debug!(connection, peer:% = proxy; "refused");
        self.reject(stream, protocol, &error);
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
        if self.shared.incidents.bad_header.record(&detail) {
            self.shared.reaper_waker.wake();
        }
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
        if self.shared.incidents.refused.record(&error) {
            self.shared.reaper_waker.wake();
        }
        error
    }

    /// Admits the clients of the last process, as far as there is room. Counts all of them before
    /// the first is served.
    pub fn resume(&self, clients: Vec<(ConnectionState, TcpStream)>) -> Vec<Connection> {
        let mut admitted = Vec::with_capacity(clients.len());
        for (client, stream) in clients {
            let protocol = self.protocol(&client);
            match self.admit(&client) {
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
            // The queue has room for every admitted connection, and the workers outlive the
            // acceptors.
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
