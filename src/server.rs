//! A server in this process: opened, served, and left by draining it or by handing its clients over.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, Sender};
use log::{error, info, warn};
use uuid::Uuid;

use crate::acceptor::{self, Acceptor, Door};
use crate::clients::{Clients, MOST_APART};
use crate::clock::{Millis, milliseconds};
use crate::cluster::{self, Cluster, Member};
use crate::command::{Context, Set, Turns};
use crate::connection::Connection;
use crate::episode::Episodes;
use crate::error::{Error, plain};
use crate::greeter::{Greeter, Newcomer};
use crate::handover::Inherited;
use crate::health::Health;
use crate::limits;
use crate::linger::Linger;
use crate::listener::{self, Listener};
use crate::metrics::Metrics;
use crate::notify;
use crate::options::Options;
use crate::pack;
use crate::pool;
use crate::queue::{self, Jobs};
use crate::reaper::Reaper;
use crate::scoreboard::{Alarm, Phase, Scoreboard};
use crate::session::Service;
use crate::sys;
use crate::usher::Usher;

/// How long it may take to find out whether the clients can be kept, and to store them.
const STORE: Duration = Duration::from_secs(5);

/// A worker has so long to come to the end of a request, before its client is left behind.
const LONGEST_RELEASE: Duration = Duration::from_secs(5);

/// How often it is looked whether all have let go.
const LOOK: Duration = Duration::from_millis(1);

/// However short the time is that a drain may take, clients that have nothing to wait for are closed in order.
const LEAST_DRAIN: Duration = Duration::from_millis(100);

/// After the deadline of the drain, workers have so long to notice.
const LAST_GRACE: Duration = Duration::from_secs(1);

/// A server that accepts and serves. Dropped, it closes everything.
pub struct Server {
    /// What made it unable to go on.
    pub failures: Receiver<Error>,
    /// What it counts.
    pub metrics: Arc<Metrics>,
    /// How long it took to start.
    pub started_in: Duration,
    /// How many clients may wait.
    pub queue: usize,
    /// Those that wait, to be counted.
    waiting: Jobs<Connection>,
    door: Arc<Door>,
    acceptors: Vec<Acceptor>,
    /// There if PROXY headers are awaited, until nobody is let in any more.
    greeter: Option<Arc<Greeter>>,
    listeners: Vec<Arc<Listener>>,
    /// Serves all clients, until the workers may begin.
    usher: Option<Usher>,
    /// Disconnects when all workers have ended.
    workers: Receiver<()>,
    /// Connections that were let go of; see [`Server::release`].
    released: Receiver<Connection>,
    scoreboard: Arc<Scoreboard>,
    turns: Turns,
    /// Disconnects when nobody lingers any more.
    lingering: Receiver<()>,
    id: Uuid,
    cluster: Cluster,
}

impl Server {
    /// Opens all sockets for clients that `options` ask for and that were not `inherited`, and serves `commands`. So many
    /// descriptors are `reserved` for others. In a cluster, if there are settings of one, it takes its place there before it lets
    /// in the first client. The workers wait for [`Server::begin`].
    pub fn start(
        options: &Options,
        id: Uuid,
        inherited: Inherited,
        commands: &[Set],
        metrics: Arc<Metrics>,
        reserved: usize,
        cluster: Option<Arc<cluster::Settings>>,
    ) -> Result<Self, Error> {
        let started = Instant::now();
        let system = |action| move |source| Error::System { action, source };
        sys::allow_interrupts().map_err(system("install a signal handler"))?;
        let listeners = match inherited.listeners {
            none if none.is_empty() => listen(options)?.into_iter().map(Arc::new).collect(),
            listeners => listeners,
        };
        let here = inherited.clients.len() + inherited.leaving.len();
        let greeting = match options.proxy_from.is_empty() {
            true => 0,
            false => limits::greeting_connections(),
        };
        let apart = if greeting > 0 { MOST_APART } else { 0 };
        let reserved = listeners.len() + reserved + greeting + apart;
        let capacity = share_descriptors(options, here, reserved)?;
        let (workers, most) = (capacity.workers, capacity.workers + capacity.queue);

        let mut cluster = Cluster::new(cluster, id, inherited.census)?;
        let clients = Clients::new(most, options.max_clients_per_address);
        let clients = Arc::new(clients.heard_by(cluster.bell()));
        let scoreboard = Arc::new(Scoreboard::new(workers));
        let episodes = Arc::new(Episodes::new());
        let (alarm, alarms) = Alarm::new();
        let (linger, lingering) = Linger::start(capacity.lingering)?;
        let (release, released) = crossbeam_channel::unbounded();
        let (queue, jobs) = queue::bounded(most + MOST_APART);
        let context = Context::new(clients.count(), id, commands).in_cluster(cluster.census());
        let turns = context.turns.clone();
        let service = Arc::new(Service {
            context,
            scoreboard: scoreboard.clone(),
            alarm: alarm.clone(),
            episodes: episodes.clone(),
            metrics: metrics.clone(),
            linger: linger.clone(),
            released: release,
            idle_timeout: options.idle_timeout,
        });
        Reaper {
            scoreboard: scoreboard.clone(),
            waiting: jobs.clone(),
            idle_timeout: options.idle_timeout,
            write_timeout: options.write_timeout,
            episodes: episodes.clone(),
        }
        .start(alarms)?;

        let door = Arc::new(Door {
            clients,
            workers,
            queue: queue.clone(),
            alarm,
            linger,
            episodes,
            closed: AtomicBool::new(false),
            metrics: metrics.clone(),
        });
        metrics.go_on(inherited.accepted, inherited.handovers);
        let greeter = match greeting {
            0 => None,
            most => {
                let (trusted, door) = (options.proxy_from.clone(), door.clone());
                let greeted = move |newcomer, greeting| door.greeted(newcomer, greeting);
                Some(Arc::new(Greeter::start(trusted, most, greeted)?))
            }
        };
        let clients = door.welcome_back(greet_on(inherited.clients, greeter.as_deref()));
        for leaving in inherited.leaving {
            door.linger.go_on(leaving);
        }
        cluster.join(door.clients.count())?;
        let usher = Usher::start(&service, clients, queue, jobs.clone())?;
        if let Some(begun) = inherited.begun {
            metrics.handed_over(Millis::now().since(begun));
        }
        let (failed, failures) = crossbeam_channel::unbounded();
        let mut acceptors = Vec::new();
        for listener in listeners.iter().cloned() {
            let failed: Sender<Error> = failed.clone();
            let fail = move |error| {
                // It fails only if the daemon is ending anyway.
                let _ = failed.send(error);
            };
            let (door, greeter) = (door.clone(), greeter.clone());
            acceptors.push(acceptor::start(door, listener, greeter, fail)?);
        }
        let (gate, serving, ending) = (usher.gate(), service.clone(), service);
        let workers = pool::start(
            &jobs,
            &scoreboard,
            move || gate.wait(),
            move |connection: &mut Connection, line| serving.serve(connection, line),
            move |connection, ended| ending.end(connection, ended),
        )?;
        Ok(Server {
            failures,
            metrics,
            started_in: started.elapsed(),
            queue: capacity.queue,
            waiting: jobs,
            door,
            acceptors,
            greeter,
            listeners,
            usher: Some(usher),
            workers,
            released,
            scoreboard,
            turns,
            lingering,
            id,
            cluster,
        })
    }

    /// Leaves the clients to the workers. Call it once the other servers are answered here: two whose clients ask for the census
    /// of both would wait for each other else.
    pub fn begin(&mut self) {
        if let Some(usher) = self.usher.take() {
            usher.end();
        }
    }

    /// How many clients are connected.
    pub fn clients(&self) -> usize {
        self.door.clients.count().load(Ordering::SeqCst)
    }

    /// What tells whether clients are being served.
    pub fn health(&self) -> Health {
        Health::new(
            &self.door,
            &self.acceptors,
            self.scoreboard.clone(),
            self.waiting.clone(),
            self.queue,
        )
    }

    /// Who it is in its cluster.
    pub fn member(&self) -> Member {
        self.cluster.member()
    }

    /// How it goes with its cluster.
    pub fn cluster_figures(&self) -> Arc<cluster::Figures> {
        self.cluster.figures()
    }

    /// The addresses that it listens on.
    pub fn addresses(&self) -> Vec<SocketAddr> {
        let listeners = self.listeners.iter();
        listeners.map(|listener| listener.address).collect()
    }

    /// Whether systemd passed the listening sockets, to this process or to one before it.
    fn is_passed(&self) -> bool {
        self.listeners.iter().any(|listener| listener.passed)
    }

    /// Tells the log that clients are served, and that there is HTTP at these addresses.
    pub fn say_ready(&self, http: &[SocketAddr]) {
        info!(
            listen:% = list(&self.addresses()),
            http:% = if http.is_empty() { "off".to_string() } else { list(http) },
            sockets = if self.is_passed() { "passed" } else { "bound" },
            id:% = self.id,
            cluster:% = self.cluster,
            max_clients = self.scoreboard.lines().len(),
            queue = self.queue,
            started_ms = milliseconds(self.started_in);
            "ready"
        );
    }

    /// Lets nobody in any more, once the acceptors look.
    pub fn close_door(&self) {
        self.door.closed.store(true, Ordering::Relaxed);
    }

    /// Answers all that has arrived, and then closes the clients within `timeout`, or has systemd keep them for the next
    /// process if it keeps the listening sockets and other descriptors, too.
    pub fn stop(self, timeout: Duration) {
        let begun = Instant::now();
        let accepted = self.metrics.accepted();
        notify::stopping(self.clients(), timeout + LAST_GRACE * 2);
        let deadline = begun + timeout;
        // However short the time for a drain is: where clients are kept there is none.
        if self.is_stored(begun + (timeout / 2).clamp(LAST_GRACE, STORE)) {
            self.store(deadline);
        } else {
            self.drain(deadline.max(Instant::now() + LEAST_DRAIN));
        }
        info!(accepted, drained_ms = milliseconds(begun.elapsed()); "stopped");
    }

    /// Whether the clients can be kept for the next process, which is known at `deadline` at the latest.
    fn is_stored(&self, deadline: Instant) -> bool {
        if !self.is_passed() {
            return false;
        }
        match notify::find_store(deadline) {
            Ok(()) => true,
            Err(why) => {
                info!(why:%; "drains: nobody keeps the clients for the next process");
                false
            }
        }
    }

    /// Answers all that has arrived, and closes. What isn't done by the `deadline` is cut off.
    fn drain(mut self, deadline: Instant) {
        // Whose header is on its way has so long. The others have not said yet whose they are, and are closed.
        drop(self.end_acceptors(LEAST_DRAIN));
        // Who comes now is refused, unless others have the sockets, too.
        self.listeners.clear();
        let (clients, episodes) = (self.door.clients.clone(), self.door.episodes.clone());
        let (board, alarm) = (self.scoreboard, self.door.alarm.clone());
        // So that the queue is closed.
        drop(self.door);
        board.set_phase(Phase::Finish);
        alarm.ring();
        let mut cut_off = 0;
        if !pool::wait_for(&self.workers, deadline) {
            cut_off = clients.count().load(Ordering::SeqCst);
            board.set_phase(Phase::Cut);
            alarm.ring();
            pool::wait_for(&self.workers, Instant::now() + LAST_GRACE);
        }
        pool::wait_for(&self.lingering, deadline);
        episodes.settle(true);
        self.cluster.leave();
        if cut_off > 0 {
            warn!(clients = cut_off; "cut off: these clients were not done by the deadline");
        }
    }

    /// Answers what has arrived, and has systemd keep all connections for the next process. If the service is not started
    /// again, systemd closes them.
    fn store(mut self, deadline: Instant) {
        let mut clients = self.hand_over(Phase::Pack);
        clients.listeners.clear();
        let deadline = deadline.clamp(Instant::now() + LAST_GRACE, Instant::now() + STORE);
        let stored = clients
            .pack()
            .and_then(|pack| notify::store(pack, deadline));
        match stored {
            Ok(()) => info!("the service manager keeps the clients for the next process"),
            Err(error) => error!(
                "clients are closed, can't store them with the service manager: {}",
                plain(&error)
            ),
        }
        // All threads at once, with the process, end sooner than one after the other.
        std::mem::forget(self);
    }

    /// Accepts no more, has the workers let go in this way, and returns all that the next process is to go on with. What is
    /// left has its threads still, but no clients.
    pub fn hand_over(&mut self, phase: Phase) -> Inherited {
        let begun = Millis::now();
        // Whose header is not whole goes along as it is.
        let greeting = self.end_acceptors(Duration::ZERO);
        self.cluster.hurry();
        self.release(phase);
        let connections = self.collect();
        // As late as it can be: from now on their places are given up here, and the others would be told that they are gone.
        let census = self.cluster.pause();
        let left_behind = self.door.clients.all().saturating_sub(connections.len());
        let leaving = self.door.linger.give_back();
        self.door.episodes.settle(true);
        if left_behind > 0 {
            warn!(clients = left_behind; "left behind: these clients' requests took too long to wait for");
        }
        info!(clients = connections.len(); "hands its clients over");
        let clients = connections.into_iter().map(Connection::into_parts);
        Inherited {
            listeners: self.listeners.clone(),
            http: Vec::new(),
            stored: false,
            accepted: self.metrics.accepted(),
            handovers: self.metrics.handovers(),
            begun: Some(begun),
            census,
            clients: clients.chain(greeting).collect(),
            leaving,
            id: Some(self.id),
        }
    }

    /// Accepts no more, and has the workers let go of all connections, open, in this way. They come out of the receiver.
    pub fn release(&mut self, phase: Phase) -> Receiver<Connection> {
        self.end_acceptors(Duration::ZERO);
        self.scoreboard.set_phase(phase);
        if phase == Phase::Release {
            self.turns.close();
        }
        self.door.alarm.ring();
        self.released.clone()
    }

    /// All connections that the workers let go of: all that there are, unless that takes too long.
    fn collect(&self) -> Vec<Connection> {
        let begun = Instant::now();
        let mut connections = Vec::with_capacity(self.clients());
        loop {
            // What is still to be computed is left to whoever comes next, however much it is.
            if begun.elapsed() >= Turns::PATIENCE {
                self.turns.close();
            }
            connections.extend(self.released.try_iter());
            // In this order: a worker may have told its client goodbye, and not done so to linger yet.
            let is_all =
                connections.len() == self.door.clients.all() && self.scoreboard.is_vacant();
            if is_all || begun.elapsed() >= LONGEST_RELEASE {
                return connections;
            }
            std::thread::park_timeout(LOOK);
        }
    }

    /// Ends the threads that are left when the clients have gone elsewhere.
    pub fn dismiss(self) {
        drop(self.door);
        pool::wait_for(&self.workers, Instant::now() + LONGEST_RELEASE);
    }

    /// Returns those whose PROXY header was still to come, after they have had so long.
    fn end_acceptors(&mut self, patience: Duration) -> Vec<Newcomer> {
        self.close_door();
        for acceptor in self.acceptors.drain(..) {
            acceptor.thread.end();
        }
        // The acceptors had the others of its clones.
        let greeter = self.greeter.take().and_then(Arc::into_inner);
        greeter.map_or(Vec::new(), |greeter| greeter.end(patience))
    }
}

/// Leaves those of the last process whose PROXY header is still to come to the `greeter`, and returns the others. Of a
/// network that is trusted no more, one is a client like any, and its header a bad request.
fn greet_on(clients: Vec<Newcomer>, greeter: Option<&Greeter>) -> Vec<Newcomer> {
    let greets = |(client, stream): Newcomer| match greeter {
        Some(greeter) if client.greets && greeter.trusts(client.peer.ip()) => {
            greeter.go_on((client, stream));
            None
        }
        _ => {
            let greets = false;
            Some((pack::Client { greets, ..client }, stream))
        }
    };
    clients.into_iter().filter_map(greets).collect()
}

/// Addresses, parted by commas.
fn list(addresses: &[SocketAddr]) -> String {
    let addresses: Vec<String> = addresses.iter().map(SocketAddr::to_string).collect();
    addresses.join(",")
}

/// Listens on all addresses. One that nobody asked for may be missing, as `[::1]` is on a machine without IPv6.
fn listen(options: &Options) -> Result<Vec<Listener>, Error> {
    let mut listeners = Vec::new();
    let mut missing = None;
    for address in &options.listen {
        match listener::bind_beside(*address, &options.listen) {
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
fn share_descriptors(options: &Options, here: usize, acceptors: usize) -> Result<Capacity, Error> {
    let (workers, queue) = (options.max_clients, options.queue);
    let wanted = workers.saturating_add(queue);
    let shared = limits::share_descriptors(wanted, here, acceptors)?;
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
