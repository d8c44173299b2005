//! One server in this process: start, then graceful shutdown (drain) or handover of its clients.

pub mod admission;
pub mod front;
pub mod health;
pub mod listener;
pub mod pool;
pub mod proxy_filter;
pub mod queue;
pub mod reaper;

use std::fmt;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use crossbeam_channel::Receiver;
use log::{error, info, warn};
use uuid::Uuid;

use crate::cluster::{self, CensusSource, Cluster, Member};
use crate::config::limits;
use crate::config::options::{Listen, Options};
use crate::error::Error;
use crate::handover::InheritedState;
use crate::handover::state::Run;
use crate::metrics::Metrics;
use crate::protocol::{Goodbye, Protocol, Protocols};
use crate::server::admission::Admission;
use crate::server::front::Front;
use crate::server::health::Health;
use crate::server::listener::Listener;
use crate::server::proxy_filter::{PendingConn, ProxyFilter};
use crate::server::queue::Jobs;
use crate::server::reaper::Reaper;
use crate::session::scoreboard::{Phase, ReaperWaker, Scoreboard};
use crate::session::{Service, Shared};
use crate::systemd::notify::{self, Stored};
use crate::transport::clients::{Clients, MAX_UNCOUNTED};
use crate::transport::connection::Connection;
use crate::transport::lingering_close::LingeringSockets;
use crate::waker::Waker;
use shared::clock::{Millis, milliseconds};
use shared::command::user::UserStore;
use shared::command::{CommandSet, ComputeLimiter, Context, Draining};
use shared::sys;
use shared::text::without_errno;

/// Time limit for probing systemd's descriptor store, and for storing the clients there.
const STORE: Duration = Duration::from_secs(5);

/// Time limit for a worker to finish its request; after it, the handover leaves its client behind.
const LONGEST_RELEASE: Duration = Duration::from_secs(5);

/// Interval between checks whether all workers have released their connections.
const POLL_INTERVAL: Duration = Duration::from_millis(1);

/// Minimum duration of a drain: clients that wait for nothing are closed properly even if the
/// timeout is shorter.
const LEAST_DRAIN: Duration = Duration::from_millis(100);

/// Time that workers have after the drain deadline to notice [`Phase::Abort`].
const LAST_GRACE: Duration = Duration::from_secs(1);

/// Settings of a server.
pub struct Setup<'a> {
    /// The options.
    pub options: &'a Options,
    /// The server's id.
    pub id: Uuid,
    /// The commands that it offers.
    pub commands: &'a [CommandSet],
    /// The protocols that it speaks.
    pub protocols: Protocols,
    /// Its counters.
    pub metrics: Arc<Metrics>,
    /// Number of descriptors that others need.
    pub reserved: usize,
    /// The cluster that it joins before it admits the first client.
    pub cluster: Option<Arc<cluster::Settings>>,
    /// The users, if there is a store.
    pub users: Option<Arc<dyn UserStore>>,
}

/// A server that accepts and serves. Dropping it closes everything.
pub struct Server {
    /// Errors after which the server can't continue.
    pub failures: Receiver<Error>,
    /// The server's counters.
    pub metrics: Arc<Metrics>,
    /// Duration of the start.
    pub started_in: Duration,
    /// Maximum number of clients that wait for a worker.
    pub queue: usize,
    /// Since when the server has announced that it stops.
    pub draining: Draining,
    /// The waiting clients, to count them.
    waiting: Jobs<Connection>,
    admission: Arc<Admission>,
    front: Front,
    listeners: Vec<Arc<Listener>>,
    /// Disconnects when all workers have ended.
    workers: Receiver<()>,
    /// Connections that the workers have released; see [`Server::release`].
    released: Receiver<Connection>,
    scoreboard: Arc<Scoreboard>,
    limiter: ComputeLimiter,
    id: Uuid,
    cluster: Cluster,
}

impl Server {
    /// Starts a server. Opens the sockets for clients that the options name, unless some are
    /// `inherited`. The workers wait for [`Server::begin`].
    pub fn start(setup: &Setup<'_>, inherited: InheritedState) -> Result<Self, Error> {
        let started = Instant::now();
        let options = setup.options;
        let system = |action| move |source| Error::system(action, &source);
        sys::allow_interrupts().map_err(system("install a signal handler"))?;
        let listeners = match inherited.listeners {
            none if none.is_empty() => listen(options)?.into_iter().map(Arc::new).collect(),
            listeners => listeners,
        };
        let waker = Arc::new(Waker::new()?);
        let here = inherited.clients.len() + inherited.lingering.len();
        // One more: epoll.
        let capacity = Capacity::new(options, here, listeners.len() + 1 + setup.reserved)?;
        let mut cluster = Cluster::new(
            setup.cluster.clone(),
            setup.id,
            inherited.run.and_then(|run| run.census),
        )?;
        let (reaper_waker, wakes) = ReaperWaker::new();
        let (linger, lingering) = LingeringSockets::new(capacity.lingering, waker.clone());
        let shared = Shared {
            scoreboard: Arc::new(Scoreboard::new(capacity.workers)),
            reaper_waker,
            incidents: Arc::default(),
            metrics: setup.metrics.clone(),
            linger,
        };
        let (queue, jobs) = queue::bounded(capacity.clients() + MAX_UNCOUNTED);
        let clients = Clients::new(capacity.clients(), options.max_clients_per_address);
        let clients = clients.with_waker(cluster.waker.clone());
        let admission = Arc::new(Admission {
            shared: shared.clone(),
            protocols: setup.protocols,
            clients: Arc::new(clients),
            workers: capacity.workers,
            queue,
            closed: AtomicBool::new(false),
        });
        let count = admission.clients.count();
        let context = Context::new(count.clone(), setup.id, setup.commands);
        let context = match &cluster.census {
            CensusSource::Alone => context,
            census => context.in_cluster(census.clone()),
        };
        let context = context.with_users(setup.users.clone());
        let (limiter, draining) = (context.limiter.clone(), context.draining.clone());
        let (release, released) = crossbeam_channel::unbounded();
        let service = Service {
            shared: shared.clone(),
            context,
            released: release,
            idle_timeout: options.idle_timeout,
        };
        Reaper {
            scoreboard: shared.scoreboard.clone(),
            waiting: jobs.clone(),
            idle_timeout: options.idle_timeout,
            write_timeout: options.write_timeout,
            incidents: shared.incidents.clone(),
        }
        .start(wakes)?;

        if let Some(run) = inherited.run {
            setup.metrics.resume(run.accepted, run.handovers);
        }
        let proxy_filter = ProxyFilter::new(options.proxy_from.clone(), capacity.pending);
        let (pending, clients) = split_inherited(inherited.clients, setup.protocols, &proxy_filter);
        let clients = admission.resume(clients);
        for socket in inherited.lingering {
            shared.linger.resume(socket);
        }
        cluster.join(count)?;
        let (failed, failures) = crossbeam_channel::unbounded();
        let accepting = front::Setup {
            listeners: with_protocols(&listeners, setup.protocols),
            admission: admission.clone(),
            service: service.clone(),
            proxy_filter,
            failed,
        };
        let front = Front::start(accepting, waker, lingering, clients, pending)?;
        if let Some(run) = inherited.run {
            setup.metrics.handed_over(Millis::now().since(run.started));
        }
        let workers = start_workers(service, &jobs, &front)?;
        Ok(Server {
            failures,
            metrics: setup.metrics.clone(),
            started_in: started.elapsed(),
            queue: capacity.queue,
            waiting: jobs,
            admission,
            front,
            listeners,
            workers,
            released,
            scoreboard: shared.scoreboard,
            limiter,
            draining,
            id: setup.id,
            cluster,
        })
    }

    /// Lets the workers begin. Call it after the admin server runs; otherwise two servers could
    /// deadlock, each waiting for the other's count.
    pub fn begin(&self) {
        self.front.begin();
    }

    /// Returns the number of connected clients.
    pub fn clients(&self) -> usize {
        self.admission.clients.count().load(Ordering::SeqCst)
    }

    /// Returns a health check of this server.
    pub fn health(&self) -> Health {
        Health::new(
            &self.admission,
            &self.front,
            self.scoreboard.clone(),
            self.waiting.clone(),
            self.queue,
        )
    }

    /// Returns the identity of this server in its cluster.
    pub fn member(&self) -> Member {
        self.cluster.member
    }

    /// Returns the state of the cluster connection, for the metrics.
    pub fn cluster_stats(&self) -> Arc<cluster::Stats> {
        self.cluster.stats.clone()
    }

    /// Returns the addresses that the server listens on.
    pub fn addresses(&self) -> Vec<SocketAddr> {
        let listeners = self.listeners.iter();
        listeners.map(|listener| listener.address).collect()
    }

    /// Returns the schemes of the protocols that it listens for.
    pub fn schemes(&self) -> Vec<String> {
        let listeners = self.listeners.iter();
        listeners
            .map(|listener| listener.scheme.to_string())
            .collect()
    }

    /// Returns whether systemd passed the listening sockets, to this process or to a predecessor.
    fn is_passed(&self) -> bool {
        self.listeners.iter().any(|listener| listener.passed)
    }

    /// Logs that clients are served, and the addresses of the admin server (`http`).
    pub fn log_ready(&self, http: &[SocketAddr]) {
        info!(
            listen:% = list(&self.listeners),
            http:% = if http.is_empty() { "off".to_string() } else { list(http) },
            sockets = if self.is_passed() { "passed" } else { "bound" },
            id:% = self.id,
            cluster = self.cluster.name(),
            max_clients = self.scoreboard.slots().len(),
            queue = self.queue,
            started_ms = milliseconds(self.started_in);
            "ready"
        );
    }

    /// Tells the front to accept no more.
    pub fn stop_accepting(&self) {
        self.admission.closed.store(true, Ordering::Relaxed);
    }

    /// Answers everything that has arrived, then closes the clients within `timeout`. If systemd
    /// keeps the listening sockets and other descriptors too, it stores the clients for the next
    /// process instead.
    pub fn stop(self, timeout: Duration) {
        let begun = Instant::now();
        let accepted = self.metrics.accepted();
        notify::stopping(self.clients(), timeout);
        let deadline = begun + timeout;
        // The probe may take longer than a short drain timeout: if the clients are stored, nothing
        // is drained. Clients are accepted and served meanwhile.
        let is_stored = self.is_stored(begun + (timeout / 2).clamp(LAST_GRACE, STORE));
        self.stop_accepting();
        if is_stored {
            self.store(deadline);
        } else {
            self.drain(deadline.max(Instant::now() + LEAST_DRAIN));
        }
        info!(accepted, drained_ms = milliseconds(begun.elapsed()); "stopped");
    }

    /// Returns, by `deadline`, whether systemd can keep the clients for the next process.
    fn is_stored(&self, deadline: Instant) -> bool {
        if !self.is_passed() {
            return false;
        }
        match notify::check_store(deadline) {
            Ok(()) => true,
            Err(why) => {
                info!(why:%; "drains the clients: the service manager does not keep them");
                false
            }
        }
    }

    /// Answers everything that has arrived, and closes the clients. Aborts what remains at
    /// `deadline`.
    fn drain(mut self, deadline: Instant) {
        // Connections whose PROXY header is on its way get `LEAST_DRAIN`. The others are closed:
        // their clients are still unknown.
        drop(self.end_front(LEAST_DRAIN));
        // The kernel refuses new connections from now on, unless others hold the sockets too.
        self.listeners.clear();
        let clients = self.admission.clients.clone();
        let incidents = self.admission.shared.incidents.clone();
        let reaper_waker = self.admission.shared.reaper_waker.clone();
        let linger = self.admission.shared.linger.clone();
        // Closes the queue.
        drop(self.admission);
        self.scoreboard.set_phase(Phase::Drain);
        reaper_waker.wake();
        let mut cut_off = 0;
        if !pool::wait_for(&self.workers, deadline) {
            cut_off = clients.count().load(Ordering::SeqCst);
            self.scoreboard.set_phase(Phase::Abort);
            reaper_waker.wake();
            pool::wait_for(&self.workers, Instant::now() + LAST_GRACE);
        }
        // Requests that compute after a hand-over that failed.
        for connection in self.released.try_iter() {
            linger.push(connection.half_close());
        }
        drop(linger);
        pool::wait_for(&self.front.ended, deadline);
        incidents.resolve(true);
        self.cluster.leave();
        if cut_off > 0 {
            warn!(clients = cut_off; "cut off: these clients were not done by the deadline");
        }
    }

    /// Answers what has arrived, and stores all connections with systemd for the next process. If
    /// the service is not started again, systemd closes them.
    fn store(mut self, deadline: Instant) {
        let mut clients = self.hand_over(Phase::DrainThenDetach);
        clients.listeners.clear();
        let left = deadline.saturating_duration_since(Instant::now());
        let patience = Instant::now() + (left / 2).clamp(LAST_GRACE, STORE);
        let stored = match clients.encode() {
            Ok(socket) => notify::store(socket, patience),
            Err(error) => Stored::Lost(without_errno(&error)),
        };
        match stored {
            Stored::Kept => info!("the service manager keeps the clients for the next process"),
            Stored::Lost(why) => {
                error!("clients are closed, can't store them with the service manager: {why}");
                self.take_back(clients);
                return self.drain(deadline.max(Instant::now() + LEAST_DRAIN));
            }
            Stored::Unconfirmed(why) => error!(
                "clients are closed unless the service manager still takes them, which it has not confirmed: {why}"
            ),
        }
        // The exit of the process ends all threads at once, sooner than one after the other.
        std::mem::forget(self);
    }

    /// Takes back clients that no other process continues with, to drain them. Those whose PROXY
    /// header is incomplete are closed.
    fn take_back(&self, mut inherited: InheritedState) {
        self.scoreboard.set_phase(Phase::Drain);
        let clients = &mut inherited.clients;
        clients.retain(|(client, _)| !client.awaits_proxy_header);
        for client in self.admission.resume(inherited.clients) {
            self.admission.enqueue(client);
        }
        for socket in inherited.lingering {
            self.admission.shared.linger.resume(socket);
        }
    }

    /// Stops accepting, makes the workers release their connections as `phase` says, and returns
    /// everything that the next process continues with. The remaining server has threads but no
    /// clients.
    pub fn hand_over(&mut self, phase: Phase) -> InheritedState {
        let started = Millis::now();
        // Connections whose PROXY header is incomplete go to the next process as they are.
        let pending = self.end_front(Duration::ZERO);
        self.cluster.fail_fast();
        self.release(phase);
        let connections = self.collect();
        // As late as possible: the code below stops counting the clients here, which the other
        // servers must not be told.
        let census = self.cluster.pause();
        let left_behind = self
            .admission
            .clients
            .all()
            .saturating_sub(connections.len());
        self.admission.shared.incidents.resolve(true);
        if left_behind > 0 {
            warn!(clients = left_behind; "clients are lost in the handover: their requests took too long to wait for");
        }
        info!(clients = connections.len(); "hands over its clients");
        let mut clients = Vec::with_capacity(connections.len());
        for connection in connections {
            if connection.is_movable() {
                clients.push(connection.into_parts());
            } else {
                let socket = connection.say_goodbye(Goodbye::Drained);
                self.admission.shared.linger.push(socket);
            }
        }
        // After the goodbyes, which these sockets wait for.
        let lingering = self.front.take_lingering();
        InheritedState {
            listeners: self.listeners.clone(),
            http: Vec::new(),
            stored: false,
            run: Some(Run {
                id: self.id,
                accepted: self.metrics.accepted(),
                handovers: self.metrics.handovers(),
                started,
                census,
            }),
            clients: clients.into_iter().chain(pending).collect(),
            lingering,
        }
    }

    /// Stops accepting, and makes the workers release all connections, open, as `phase` says.
    /// Returns the receiver of these connections.
    pub fn release(&mut self, phase: Phase) -> Receiver<Connection> {
        self.end_front(Duration::ZERO);
        self.scoreboard.set_phase(phase);
        if phase == Phase::Detach {
            self.limiter.close();
        }
        self.admission.shared.reaper_waker.wake();
        self.released.clone()
    }

    /// Returns the released connections: all, unless that takes longer than `LONGEST_RELEASE`.
    fn collect(&self) -> Vec<Connection> {
        let begun = Instant::now();
        let mut connections = Vec::with_capacity(self.clients());
        loop {
            // The next process computes what still waits, however much it is.
            if begun.elapsed() >= ComputeLimiter::MAX_WAIT {
                self.limiter.close();
            }
            connections.extend(self.released.try_iter());
            // The order matters: a worker may have closed a client and not yet pushed its socket to
            // the lingering close.
            let is_all =
                connections.len() == self.admission.clients.all() && self.scoreboard.is_vacant();
            if is_all || begun.elapsed() >= LONGEST_RELEASE {
                return connections;
            }
            std::thread::park_timeout(POLL_INTERVAL);
        }
    }

    /// Ends the remaining threads after the clients have gone elsewhere.
    pub fn join_workers(self) {
        drop(self.admission);
        pool::wait_for(&self.workers, Instant::now() + LONGEST_RELEASE);
    }

    /// Stops accepting, and passes the clients of the front to the workers. Returns the connections
    /// whose PROXY header has not arrived after `patience`.
    fn end_front(&self, patience: Duration) -> Vec<PendingConn> {
        self.stop_accepting();
        self.front.stop(patience)
    }
}

/// Displays all, separated by commas.
fn list(all: &[impl fmt::Display]) -> String {
    let all: Vec<String> = all.iter().map(ToString::to_string).collect();
    all.join(",")
}

/// Listens on all addresses. A default address may be missing, as `[::1]` is on a machine without
/// IPv6.
fn listen(options: &Options) -> Result<Vec<Listener>, Error> {
    let configured = options.listen.iter().map(|listen| listen.address);
    let configured: Vec<SocketAddr> = configured.chain(options.http).collect();
    let mut listeners = Vec::new();
    let mut missing = None;
    for Listen { protocol, address } in &options.listen {
        match listener::bind_beside(*address, protocol.scheme(), &configured) {
            Ok(listener) => listeners.push(listener),
            Err(error @ Error::NoSuchAddress(_)) if options.listen_by_default => {
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

/// Returns each listener with its protocol. A listener of an unknown one is not served.
fn with_protocols(
    listeners: &[Arc<Listener>],
    protocols: Protocols,
) -> Vec<(Arc<Listener>, &'static dyn Protocol)> {
    let with_protocol = |listener: &Arc<Listener>| {
        let protocol = protocols.find(&listener.scheme);
        if protocol.is_none() {
            error!(address:% = listener.address, scheme:% = listener.scheme; "not listening there: this program does not speak this protocol");
        }
        Some((listener.clone(), protocol?))
    };
    listeners.iter().filter_map(with_protocol).collect()
}

/// Starts the workers, which wait until the front lets them begin.
fn start_workers(
    service: Service,
    jobs: &Jobs<Connection>,
    front: &Front,
) -> Result<Receiver<()>, Error> {
    let scoreboard = service.shared.scoreboard.clone();
    let barrier = front.barrier.clone();
    let service = Arc::new(service);
    let ending = service.clone();
    pool::start(
        jobs,
        &scoreboard,
        move || {
            barrier.wait();
        },
        move |connection: &mut Connection, slot| service.serve(connection, slot),
        move |connection, ended| ending.end(connection, ended),
    )
}

/// Splits inherited connections: first those that still await a PROXY header. A connection from a
/// network that is no longer trusted becomes an ordinary client, and its header a bad request. One
/// whose protocol is not among `protocols`, of a program that spoke more of them, is closed.
fn split_inherited(
    mut clients: Vec<PendingConn>,
    protocols: Protocols,
    proxy_filter: &ProxyFilter,
) -> (Vec<PendingConn>, Vec<PendingConn>) {
    clients.retain_mut(|(client, _)| {
        client.awaits_proxy_header &= proxy_filter.trusts(client.peer.ip());
        let is_known = protocols.find(&client.protocol).is_some();
        if !is_known {
            error!(connection = client.number, scheme:% = client.protocol; "closed: this program does not speak its protocol");
        }
        is_known
    });
    let awaits = |(client, _): &PendingConn| client.awaits_proxy_header;
    clients.into_iter().partition(awaits)
}

/// Numbers of clients that are served, clients that may wait, connections whose PROXY header may be
/// incomplete, and sockets that may linger.
struct Capacity {
    workers: usize,
    queue: usize,
    pending: usize,
    lingering: usize,
}

impl Capacity {
    /// Makes room for all clients that are served or wait, or for as many as the limit on open
    /// files allows. `here` descriptors are open already, and others need `reserved`.
    fn new(options: &Options, here: usize, reserved: usize) -> Result<Self, Error> {
        let (pending, uncounted) = match options.proxy_from.is_empty() {
            true => (0, 0),
            false => (limits::pending_header_connections(), MAX_UNCOUNTED),
        };
        let (workers, queue) = (options.max_clients, options.queue);
        let wanted = workers.saturating_add(queue);
        let shared = limits::share_descriptors(wanted, here, reserved + pending + uncounted)?;
        let mut capacity = Capacity {
            workers,
            queue,
            pending,
            lingering: shared.lingering,
        };
        if shared.clients < wanted {
            // Some clients must be able to wait, or none would be closed to make room.
            capacity.queue = queue.min(shared.clients / 8);
            capacity.workers = workers.min(shared.clients - capacity.queue);
            warn!(
                max_clients = capacity.workers,
                queue = capacity.queue,
                limit = shared.limit;
                "fewer clients than asked for: raise the limit on open files (ulimit -n, LimitNOFILE=)"
            );
        }
        Ok(capacity)
    }

    /// Returns the number of clients that are served or wait.
    fn clients(&self) -> usize {
        self.workers + self.queue
    }
}
