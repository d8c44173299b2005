//! The life of the process: open, serve, say so, wait for a signal, drain.

use std::fmt::Write as _;
use std::os::fd::{AsFd as _, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, Sender, select};
use log::{error, info, warn};

use crate::acceptor::{self, Acceptor, Door};
use crate::clients::Clients;
use crate::command::{self, Context, Set};
use crate::connection::Connection;
use crate::episode::Episodes;
use crate::error::{Error, plain};
use crate::handover::{Inherited, Successor};
use crate::health::Health;
use crate::identity::{Identity, Origin};
use crate::limits;
use crate::linger::Linger;
use crate::listener::{self, Listener};
use crate::notify::{self, Herald};
use crate::options::Options;
use crate::pack;
use crate::pool::{self, Pool};
use crate::reaper::Reaper;
use crate::scoreboard::{Alarm, Phase, Scoreboard};
use crate::session::Service;
use crate::signals::{self, Told};
use crate::sys;

/// The sets of commands that the daemon offers.
pub const COMMANDS: &[Set] = &[command::server::SET];

/// What the log says of listening sockets that were passed.
const PASSED: &str = "passed";

/// A worker has so long to come to the end of a request, before its client is left behind.
const LONGEST_RELEASE: Duration = Duration::from_secs(5);

/// However short the time is that a drain may take, clients that have nothing to wait for are closed in order.
const LEAST_DRAIN: Duration = Duration::from_millis(100);

/// After the deadline of the drain, workers have so long to notice.
const LAST_GRACE: Duration = Duration::from_secs(1);

/// Says whether a daemon with these settings would start, as far as that can be told beside one that runs.
pub fn check(options: &Options) -> Result<(), Error> {
    match &options.state_directory {
        Some(directory) => Identity::check(directory),
        None => Ok(()),
    }
}

/// Why a server is left.
enum Leave {
    /// It was told to stop, or can't go on.
    Stop(String, Result<(), Error>),
    /// A new program takes over.
    Replace,
}

/// Serves until a signal ends it.
pub fn run(options: &Options) -> Result<(), Error> {
    for variable in &options.unknown_variables {
        warn!(variable; "there is no such setting (--help names all)");
    }
    limits::prepare();
    let successor = Successor::new()?;
    let mut inherited = Inherited::take()?;
    if inherited.stored {
        notify::forget();
    }
    let signals = signals::listen()?;
    loop {
        let server = Server::start(options, inherited, COMMANDS)?;
        let herald = Herald::start(server.health())?;
        match wait(&signals, &server, &successor) {
            Leave::Stop(reason, result) => {
                server.close_door();
                drop(herald);
                info!(reason:%, clients = server.clients(); "stopping");
                notify::stopping(server.clients(), options.drain_timeout + LAST_GRACE * 2);
                if server.sockets == PASSED && notify::is_heard() {
                    server.store();
                } else {
                    server.drain(options.drain_timeout);
                }
                return result;
            }
            Leave::Replace => {
                server.close_door();
                drop(herald);
                inherited = Inherited::default();
                match server.hand_over(Phase::Release) {
                    Ok(pack) => {
                        let why = successor.take_over(&pack);
                        error!("goes on as it is: {why}");
                        inherited.unpack(&pack);
                        inherited.again = true;
                    }
                    // What was let go of is closed by now.
                    Err(error) => error!("clients are lost, can't pack them: {}", plain(&error)),
                }
            }
        }
    }
}

/// Waits for a reason to leave `server`.
fn wait(signals: &Receiver<Told>, server: &Server, successor: &Successor) -> Leave {
    loop {
        select! {
            recv(signals) -> told => match told {
                Ok(Told::Stop(signal)) => return Leave::Stop(signal.to_string(), Ok(())),
                Ok(Told::Replace) => {
                    notify::reloading();
                    match successor.try_out() {
                        Ok(()) => return Leave::Replace,
                        Err(problem) => {
                            error!("goes on as it is, the new program can't take over: {problem}");
                            notify::reloaded();
                        }
                    }
                }
                Ok(Told::Hangup) => {
                    info!("SIGHUP changes nothing: settings are read at start only");
                    notify::reloading();
                    notify::reloaded();
                }
                // The thread that listens to signals never ends before this one.
                Err(_) => return Leave::Stop("no signals".to_string(), Ok(())),
            },
            recv(server.failures) -> failure => {
                let error = failure.unwrap_or(Error::AcceptorsGone);
                return Leave::Stop(error.to_string(), Err(error));
            }
        }
    }
}

/// A server that accepts and serves.
pub struct Server {
    /// The addresses that it listens on.
    pub addresses: Vec<std::net::SocketAddr>,
    /// What made it unable to go on.
    pub failures: Receiver<Error>,
    /// Connections that were let go of; see [`Server::release`].
    released: Receiver<Connection>,
    started: Instant,
    door: Arc<Door>,
    acceptors: Vec<Acceptor>,
    listeners: Vec<Arc<Listener>>,
    /// Where the listening sockets come from.
    sockets: &'static str,
    pool: Pool<Connection>,
    scoreboard: Arc<Scoreboard>,
    alarm: Alarm,
    lingering: Receiver<std::net::TcpStream>,
    _identity: Identity,
}

impl Server {
    /// Opens everything that `options` ask for and that was not `inherited`, and serves `commands`.
    pub fn start(
        options: &Options,
        inherited: Inherited,
        commands: &'static [Set],
    ) -> Result<Self, Error> {
        let started = Instant::now();
        let system = |action| move |source| Error::System { action, source };
        sys::allow_interrupts().map_err(system("install a signal handler"))?;
        limits::check_threads(options.max_clients)?;
        let identity = identify(options)?;
        let passed = inherited.listeners;
        let listeners = if passed.is_empty() {
            listen(options)?
        } else if options.listen_by_default || inherited.again {
            passed
        } else {
            return Err(Error::Passed(format!(
                "systemd passes {} sockets, and --listen (BLOCKCHAIN_TCPD_LISTEN) names others: change the addresses of \
                 the .socket unit, or do without it",
                passed.len()
            )));
        };
        let sockets = if listeners.iter().any(|listener| listener.passed) {
            PASSED
        } else {
            "bound"
        };
        let capacity = share_descriptors(options, listeners.len())?;
        let (workers, most) = (capacity.workers, capacity.workers + capacity.queue);
        let addresses: Vec<_> = listeners.iter().map(|listener| listener.address).collect();

        let clients = Arc::new(Clients::new(most, options.max_clients_per_address));
        let scoreboard = Arc::new(Scoreboard::new(workers));
        let episodes = Arc::new(Episodes::new());
        let (alarm, alarms) = Alarm::new();
        let (linger, lingering) = Linger::start(capacity.lingering)?;
        let (release, released) = crossbeam_channel::unbounded();
        let service = Arc::new(Service {
            context: Context::new(clients.count(), identity.id, commands),
            scoreboard: scoreboard.clone(),
            alarm: alarm.clone(),
            linger: linger.clone(),
            released: release,
            idle_timeout: options.idle_timeout,
        });
        let pool = {
            let (serving, ending) = (service.clone(), service);
            let episodes = episodes.clone();
            Pool::start(
                most,
                &scoreboard,
                move |connection: &mut Connection, line| serving.serve(connection, line),
                move |connection, ended| {
                    if ended.is_none() && episodes.panicked.happened(&"a panic, logged above") {
                        ending.alarm.ring();
                    }
                    ending.end(connection, ended);
                },
            )?
        };
        Reaper {
            scoreboard: scoreboard.clone(),
            waiting: pool.waiting(),
            idle_timeout: options.idle_timeout,
            write_timeout: options.write_timeout,
            episodes: episodes.clone(),
        }
        .start(alarms)?;

        let (failed, failures) = crossbeam_channel::unbounded();
        let door = Arc::new(Door {
            clients,
            workers,
            queue: pool.queue(),
            alarm: alarm.clone(),
            linger,
            episodes,
            closed: AtomicBool::new(false),
            accepted: AtomicU64::new(inherited.accepted),
        });
        door.welcome_back(inherited.clients);
        for stream in inherited.leaving {
            door.linger.leave(stream);
        }
        let listeners: Vec<_> = listeners.into_iter().map(Arc::new).collect();
        let mut acceptors = Vec::new();
        for listener in listeners.iter().cloned() {
            let failed: Sender<Error> = failed.clone();
            acceptors.push(acceptor::start(door.clone(), listener, move |error| {
                // It fails only if the daemon is ending anyway.
                let _ = failed.send(error);
            })?);
        }
        let server = Server {
            addresses,
            failures,
            released,
            started,
            door,
            acceptors,
            listeners,
            sockets,
            pool,
            scoreboard,
            alarm,
            lingering,
            _identity: identity,
        };
        server.say_ready(capacity.queue);
        Ok(server)
    }

    /// How many clients are connected.
    pub fn clients(&self) -> usize {
        self.door.clients.count().load(Ordering::SeqCst)
    }

    /// What tells whether clients are being served.
    pub fn health(&self) -> Health {
        Health::new(&self.door, &self.acceptors, self.scoreboard.clone())
    }

    fn say_ready(&self, queue: usize) {
        let mut listen = String::new();
        for address in &self.addresses {
            let comma = if listen.is_empty() { "" } else { "," };
            // Writing into a String can't fail.
            let _ = write!(listen, "{comma}{address}");
        }
        info!(
            listen:%,
            sockets = self.sockets,
            id:% = self._identity.id,
            max_clients = self.scoreboard.lines().len(),
            queue,
            started_ms = u64::try_from(self.started.elapsed().as_millis()).unwrap_or(u64::MAX);
            "ready"
        );
    }

    /// Accepts no more, answers all that has arrived, and closes. What isn't done by then is cut off after `timeout`.
    pub fn drain(self, timeout: Duration) {
        let begun = Instant::now();
        let deadline = begun + timeout.max(LEAST_DRAIN);
        let (accepted, clients) = (
            self.door.accepted.load(Ordering::Relaxed),
            self.door.clients.clone(),
        );
        let (board, alarm, lingering) = (
            self.scoreboard.clone(),
            self.alarm.clone(),
            self.lingering.clone(),
        );
        let episodes = self.door.episodes.clone();
        let ended = self.end_workers(Phase::Finish);
        let mut cut_off = 0;
        if !pool::wait_for(&ended, deadline) {
            cut_off = clients.count().load(Ordering::SeqCst);
            board.set_phase(Phase::Cut);
            alarm.ring();
            pool::wait_for(&ended, Instant::now() + LAST_GRACE);
        }
        // None comes: they are closed one after the other, and then it disconnects.
        let _ = lingering.recv_deadline(deadline);
        episodes.settle(true);
        let drained_ms = u64::try_from(begun.elapsed().as_millis()).unwrap_or(u64::MAX);
        if cut_off > 0 {
            warn!(clients = cut_off; "cut off: these clients were not done by the deadline");
        }
        info!(accepted, drained_ms; "stopped");
    }

    /// Accepts no more, and lets go of all connections as they are: open, with what they sent unread. They come out
    /// of the receiver, which disconnects when the last worker has let go.
    pub fn release(self) -> Receiver<Connection> {
        let released = self.released.clone();
        self.end_workers(Phase::Release);
        released
    }

    /// Lets nobody in any more, once the acceptors look.
    fn close_door(&self) {
        self.door.closed.store(true, Ordering::Relaxed);
    }

    /// Answers what has arrived, and has systemd keep all connections for the next process. If the service is not started
    /// again, systemd closes them.
    fn store(self) {
        let (begun, accepted) = (Instant::now(), self.door.accepted.load(Ordering::Relaxed));
        let stored = self
            .hand_over(Phase::Pack)
            .and_then(|pack| notify::store(&pack));
        if let Err(error) = stored {
            error!(
                "clients are closed, can't store them with systemd: {}",
                plain(&error)
            );
        }
        let drained_ms = u64::try_from(begun.elapsed().as_millis()).unwrap_or(u64::MAX);
        info!(accepted, drained_ms; "stopped");
    }

    /// Accepts no more, has the workers let go in this way, and packs all connections for the next process; with the
    /// listening sockets, unless systemd keeps those.
    pub fn hand_over(self, phase: Phase) -> std::io::Result<OwnedFd> {
        let accepted = self.door.accepted.load(Ordering::Relaxed);
        let listeners = match phase {
            Phase::Pack => Vec::new(),
            _ => self.listeners.clone(),
        };
        let (released, lingering) = (self.released.clone(), self.lingering.clone());
        let episodes = self.door.episodes.clone();
        self.door.linger.give_back();
        drop(self.end_workers(phase));
        let deadline = Instant::now() + LONGEST_RELEASE;
        let mut connections = Vec::new();
        while let Ok(connection) = released.recv_deadline(deadline) {
            connections.push(connection);
        }
        let mut leaving = Vec::new();
        while let Ok(stream) = lingering.recv_deadline(deadline) {
            leaving.push(stream);
        }
        episodes.settle(true);
        let contents = pack::Contents {
            listeners: listeners.len() as u32,
            accepted,
            clients: connections.iter().map(Connection::state).collect(),
            leaving: leaving.len() as u32,
        };
        let descriptors: Vec<_> = (listeners.iter().map(|listener| listener.socket.as_fd()))
            .chain(
                connections
                    .iter()
                    .map(|connection| connection.socket().as_fd()),
            )
            .chain(leaving.iter().map(|stream| stream.as_fd()))
            .collect();
        info!(clients = connections.len(); "hands its clients over");
        pack::send(&contents, &descriptors)
    }

    /// Closes the door and sets all workers to end in this way; the receiver disconnects when all have.
    fn end_workers(self, phase: Phase) -> Receiver<()> {
        self.close_door();
        for acceptor in self.acceptors {
            acceptor.thread.end();
        }
        self.scoreboard.set_phase(phase);
        self.alarm.ring();
        self.pool.close()
    }
}

/// The id that `options` ask for.
fn identify(options: &Options) -> Result<Identity, Error> {
    let identity = match (&options.server_id, &options.state_directory) {
        (Some(id), directory) => Identity::given(*id, directory.as_deref())?,
        (None, Some(directory)) => Identity::in_directory(directory)?,
        (None, None) => Identity::passing(),
    };
    let id = identity.id;
    match &identity.origin {
        Origin::Given | Origin::Kept(_) => {}
        Origin::Created(file) => info!(id:%, file:% = file.display(); "this server has a new id"),
        Origin::Passing => {
            info!(id:%; "the id of this server ends with it: there is no --state-directory to keep it in");
        }
    }
    Ok(identity)
}

/// Listens on all addresses. One that nobody asked for may be missing, as `[::1]` is on a machine without IPv6.
fn listen(options: &Options) -> Result<Vec<Listener>, Error> {
    let mut listeners = Vec::new();
    let mut missing = None;
    for address in &options.listen {
        match listener::bind(*address) {
            Ok(listener) => listeners.push(listener),
            Err(error) if options.listen_by_default && listener::is_no_such_address(&error) => {
                info!(address:%; "not listening there: this machine has no such address");
                missing = Some(error);
            }
            Err(error) => return Err(error),
        }
    }
    match missing {
        Some(error) if listeners.is_empty() => Err(error),
        _ => Ok(listeners),
    }
}

/// How many clients are served, how many more may wait, and how many sockets may linger.
struct Capacity {
    workers: usize,
    queue: usize,
    lingering: usize,
}

/// Makes room for all clients that are served or wait, or for as many as the limit on open files allows.
fn share_descriptors(options: &Options, acceptors: usize) -> Result<Capacity, Error> {
    let (workers, queue) = (options.max_clients, options.queue);
    let wanted = workers.saturating_add(queue);
    let shared = limits::share_descriptors(wanted, acceptors)?;
    if shared.clients == wanted {
        return Ok(Capacity {
            workers,
            queue,
            lingering: shared.lingering,
        });
    }
    // Some must be left to wait, or nobody would make room for them.
    let waiting = queue.min(shared.clients / 8);
    let capacity = Capacity {
        workers: workers.min(shared.clients - waiting),
        queue: waiting,
        lingering: shared.lingering,
    };
    warn!(
        max_clients = capacity.workers,
        queue = capacity.queue,
        limit = shared.limit;
        "fewer clients than asked for: raise the limit on open files (ulimit -n, LimitNOFILE=)"
    );
    Ok(capacity)
}
