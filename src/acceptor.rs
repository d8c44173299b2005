//! The accept loop: takes a client, counts it and queues it, or tells it that there is no room.

use std::net::{SocketAddr, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use log::{debug, error};
use rustix::io::Errno;
use rustix::net::{SocketFlags, acceptfrom_with};

use crate::clients::{Clients, NoRoom, Place};
use crate::command::{BadHeader, Refusal};
use crate::connection::{Connection, Socket};
use crate::episode::Episodes;
use crate::error::{Error, plain};
use crate::greeter::{Greeter, Greeting, Newcomer};
use crate::linger::Linger;
use crate::listener::Listener;
use crate::metrics::{AcceptError, Closed, Metrics, Refused};
use crate::pack;
use crate::protocol::proxy::Caller;
use crate::queue::{Job, Queue};
use crate::scoreboard::Alarm;
use crate::session;
use crate::sync::channel::TrySendError;
use crate::thread::{self, Thread};

/// When the system is out of something, it is asked again after this time.
const PAUSE: Duration = Duration::from_millis(50);

/// What every accept loop shares: where clients are counted and where they go.
pub struct Door<S = TcpStream> {
    /// Who is in.
    pub clients: Arc<Clients>,
    /// How many workers there are: with more clients than that, some wait.
    pub workers: usize,
    /// Where they wait for a worker.
    pub queue: Queue<Connection<S>>,
    /// Wakes the reaper when somebody waits.
    pub alarm: Alarm,
    /// Where those go that are not let in.
    pub linger: Linger,
    /// What has been said in the log.
    pub episodes: Arc<Episodes>,
    /// Set when no more are to be accepted.
    pub closed: AtomicBool,
    /// What is counted.
    pub metrics: Arc<Metrics>,
}

/// A running accept loop.
pub struct Acceptor {
    /// Its thread.
    pub thread: Thread,
    /// How often it has gone round: an interrupt makes it do so.
    pub rounds: Arc<AtomicU64>,
}

/// Starts the accept loop of `listener`; those who must send a PROXY header are left to the `greeter`. If the listener fails
/// for good, `failed` is told.
pub fn start(
    door: Arc<Door>,
    listener: Arc<Listener>,
    greeter: Option<Arc<Greeter>>,
    failed: impl FnOnce(Error) + Send + 'static,
) -> Result<Acceptor, Error> {
    let rounds = Arc::new(AtomicU64::new(0));
    let counter = rounds.clone();
    let thread = thread::spawn("acceptor", move || {
        if let Err(error) = run(&door, &listener, greeter.as_deref(), &counter) {
            failed(error);
        }
    })?;
    Ok(Acceptor { thread, rounds })
}

fn run(
    door: &Door,
    listener: &Listener,
    greeter: Option<&Greeter>,
    rounds: &AtomicU64,
) -> Result<(), Error> {
    while !door.closed.load(Ordering::Relaxed) {
        rounds.fetch_add(1, Ordering::Relaxed);
        match acceptfrom_with(&listener.socket, SocketFlags::CLOEXEC) {
            Ok((socket, peer)) => {
                // A TCP socket's peer has an address that std knows.
                let peer = peer.and_then(|peer| SocketAddr::try_from(peer).ok());
                if let Some(peer) = peer {
                    let stream = TcpStream::from(socket);
                    match greeter {
                        Some(greeter) if greeter.trusts(peer.ip()) => {
                            greeter.receive(door.metrics.accept(), stream, peer);
                        }
                        _ => door.welcome(stream, peer),
                    }
                }
            }
            Err(Errno::INTR) => {}
            Err(error) => match blame(error) {
                Blame::Client => {
                    door.metrics.accept_failed(AcceptError::Client);
                    if door.episodes.accept.happened(&plain(&error.into())) {
                        door.alarm.ring();
                    }
                }
                Blame::System => {
                    door.metrics.accept_failed(kind(error));
                    door.episodes.accept.happened(&plain(&error.into()));
                    door.alarm.ring();
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

/// Whose fault a failed accept is (accept(2), "Error handling").
enum Blame {
    /// The client's, who is gone: go on.
    Client,
    /// The system's, which is out of something or forbids it: wait.
    System,
    /// The listening socket's: no use in going on.
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

/// What the system lacks.
fn kind(error: Errno) -> AcceptError {
    match error {
        Errno::MFILE | Errno::NFILE => AcceptError::Descriptors,
        Errno::NOBUFS | Errno::NOMEM => AcceptError::Memory,
        _ => AcceptError::Other,
    }
}

impl Door {
    fn welcome(&self, stream: TcpStream, peer: SocketAddr) {
        self.let_in(pack::Client::new(self.metrics.accept(), peer), stream);
    }

    fn let_in(&self, client: pack::Client, stream: TcpStream) {
        let (connection, peer) = (client.number, client.peer);
        let no_room = match self.admit(&client) {
            Ok(place) => {
                debug!(connection, peer:%; "accepted");
                return self.enqueue(Connection::accepted(client, stream, place));
            }
            Err(no_room) => no_room,
        };
        debug!(connection, peer:%; "refused");
        session::turn_away(stream, &self.refusal(no_room), &self.linger);
    }

    fn admit(&self, client: &pack::Client) -> Result<Place, NoRoom> {
        if client.apart {
            self.clients.admit_apart()
        } else {
            self.clients.admit(client.peer.ip())
        }
    }

    /// Does what is to be done with a connection of a load balancer, now that its PROXY header has come, or won't.
    pub fn greeted(&self, newcomer: Newcomer, greeting: Greeting) {
        let (mut client, stream) = newcomer;
        let (connection, proxy) = (client.number, client.peer);
        let refusal = match greeting {
            Greeting::Caller(caller) => {
                client.greets = false;
                match caller {
                    Caller::Client(peer) => client.peer = peer,
                    Caller::Unknown => {}
                    Caller::Sender => client.apart = true,
                }
                debug!(connection, proxy:%, counts = !client.apart; "passed on");
                return self.let_in(client, stream);
            }
            Greeting::Gone(how) => {
                debug!(connection, proxy:%; "gone before its PROXY header");
                return self.metrics.share(connection as usize).closed(how);
            }
            Greeting::NoRoom(limit) => self.refusal(NoRoom::BeforeHeader { limit }),
            Greeting::Bad(bad) => self.bad_header(bad, proxy),
        };
        debug!(connection, peer:% = proxy; "refused");
        session::turn_away(stream, &refusal, &self.linger);
    }

    fn bad_header(&self, bad: BadHeader, proxy: SocketAddr) -> Refusal<'static> {
        self.metrics.refuse(match bad {
            BadHeader::Missing => Refused::HeaderMissing,
            BadHeader::Malformed => Refused::HeaderMalformed,
            BadHeader::TooLong => Refused::HeaderTooLong,
            BadHeader::Late => Refused::HeaderLate,
        });
        let refusal = Refusal::BadHeader(bad);
        let detail = format!("from {}: {refusal}", proxy.ip());
        if self.episodes.bad_header.happened(&detail) {
            self.alarm.ring();
        }
        refusal
    }

    /// What to tell a client for whom there is no room, once it is counted and said.
    fn refusal(&self, no_room: NoRoom) -> Refusal<'static> {
        self.metrics.refuse(match no_room {
            NoRoom::Here { .. } => Refused::Full,
            NoRoom::ForAddress { .. } => Refused::Address,
            NoRoom::Apart { .. } => Refused::Apart,
            NoRoom::BeforeHeader { .. } => Refused::BeforeHeader,
        });
        let refusal = Refusal::NoRoom(no_room);
        if self.episodes.refused.happened(&refusal) {
            self.alarm.ring();
        }
        refusal
    }

    /// Lets the clients of the last process in, as far as there is room: all are counted before the first is served.
    pub fn welcome_back(&self, clients: Vec<(pack::Client, TcpStream)>) -> Vec<Connection> {
        let mut admitted = Vec::with_capacity(clients.len());
        for (client, stream) in clients {
            match self.admit(&client) {
                Ok(place) => admitted.push(Connection::of(client, stream, place)),
                Err(no_room) => {
                    let refusal = self.refusal(no_room);
                    // To one that has half a reply, words would be the other half.
                    if client.replies.is_empty() {
                        session::turn_away(stream, &refusal, &self.linger);
                    }
                }
            }
        }
        admitted
    }
}

impl<S: Socket> Door<S> {
    /// Gives `connection` to the workers.
    pub fn enqueue(&self, connection: Connection<S>) {
        match self.queue.put(Job::Serve(connection)) {
            Ok(()) => {
                if self.clients.all() > self.workers {
                    self.alarm.ring();
                }
            }
            // The queue has room for everyone who has a place, and the workers outlive the door.
            Err(TrySendError::Full(lost) | TrySendError::Disconnected(lost)) => {
                if let Job::Serve(connection) = lost {
                    error!(connection = connection.client.number; "closed: there is no room in the queue, please report this");
                    self.metrics.share(0).closed(Closed::Failed);
                    connection.close();
                }
            }
        }
    }
}
