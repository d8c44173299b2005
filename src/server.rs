//! A server in this process: opened, served, and left by draining it or by handing its clients over.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, Sender};
use log::{error, info, warn};
use uuid::Uuid;

use crate::acceptor::{self, Acceptor, Admission};
use crate::clients::{Clients, MAX_UNCOUNTED};
use crate::clock::{Millis, milliseconds};
use crate::cluster::{self, Cluster, Member};
use crate::command::{CommandSet, ComputeLimiter, Context};
use crate::connection::Connection;
use crate::error::{Error, plain};
use crate::handover::InheritedState;
use crate::handover_state;
use crate::health::Health;
use crate::interim::InterimServer;
use crate::limits;
use crate::lingering_close::LingeringClose;
use crate::listener::{self, Listener};
use crate::log_throttle::Incidents;
use crate::metrics::Metrics;
use crate::notify;
use crate::options::Options;
use crate::pool;
use crate::proxy_filter::{PendingConn, ProxyFilter};
use crate::queue::{self, Jobs};
use crate::reaper::Reaper;
use crate::scoreboard::{Phase, ReaperWaker, Scoreboard};
use crate::session::Service;
use crate::sys;

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
    admission: Arc<Admission>,
    acceptors: Vec<Acceptor>,
    /// There if PROXY headers are awaited, until nobody is let in any more.
    proxy_filter: Option<Arc<ProxyFilter>>,
    listeners: Vec<Arc<Listener>>,
    /// Serves all clients, until the workers may begin.
    interim: Option<InterimServer>,
    /// Disconnects when all workers have ended.
    workers: Receiver<()>,
    /// Connections that were let go of; see [`Server::release`].
    released: Receiver<Connection>,
    scoreboard: Arc<Scoreboard>,
    limiter: ComputeLimiter,
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
        inherited: InheritedState,
        commands: &[CommandSet],
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
        let result = match options.proxy_from.is_empty() {
            true => 0,
            false => limits::pending_header_connections(),
        };
        let uncounted = if result > 0 { MAX_UNCOUNTED } else { 0 };
        let reserved = listeners.len() + reserved + result + uncounted;
        let capacity = share_descriptors(options, here, reserved)?;
        let (workers, most) = (capacity.workers, capacity.workers + capacity.queue);

        let mut cluster = Cluster::new(cluster, id, inherited.census)?;
        let clients = Clients::new(most, options.max_clients_per_address);
        let clients = Arc::new(clients.with_waker(cluster.waker()));
        let scoreboard = Arc::new(Scoreboard::new(workers));
        let incidents = Arc::new(Incidents::new());
        let (alarm, alarms) = ReaperWaker::new();
        let (linger, lingering) = LingeringClose::start(capacity.lingering)?;
        let (release, released) = crossbeam_channel::unbounded();
        let (queue, jobs) = queue::bounded(most + MAX_UNCOUNTED);
        let context = Context::new(clients.count(), id, commands).in_cluster(cluster.census());
        let limiter = context.limiter.clone();
        let service = Arc::new(Service {
            context,
            scoreboard: scoreboard.clone(),
            alarm: alarm.clone(),
            incidents: incidents.clone(),
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
            incidents: incidents.clone(),
        }
        .start(alarms)?;

        let admission = Arc::new(Admission {
            clients,
            workers,
            queue: queue.clone(),
            alarm,
            linger,
            incidents,
            closed: AtomicBool::new(false),
            metrics: metrics.clone(),
        });
        metrics.go_on(inherited.accepted, inherited.handovers);
        let proxy_filter = match result {
            0 => None,
            most => {
                let (trusted, admission) = (options.proxy_from.clone(), admission.clone());
                let on_filtered = move |pending, result| admission.on_filtered(pending, result);
                Some(Arc::new(ProxyFilter::start(trusted, most, on_filtered)?))
            }
        };
        let clients =
            admission.resume(filter_inherited(inherited.clients, proxy_filter.as_deref()));
        for leaving in inherited.leaving {
            admission.linger.resume(leaving);
        }
        cluster.join(admission.clients.count())?;
        let interim = InterimServer::start(&service, clients, queue, jobs.clone())?;
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
            let (admission, proxy_filter) = (admission.clone(), proxy_filter.clone());
            acceptors.push(acceptor::start(admission, listener, proxy_filter, fail)?);
        }
        let (barrier, serving, ending) = (interim.barrier(), service.clone(), service);
        let workers = pool::start(
            &jobs,
            &scoreboard,
            move || barrier.wait(),
            move |connection: &mut Connection, slot| serving.serve(connection, slot),
            move |connection, ended| ending.end(connection, ended),
        )?;
        Ok(Server {
            failures,
            metrics,
            started_in: started.elapsed(),
            queue: capacity.queue,
            waiting: jobs,
            admission,
            acceptors,
            proxy_filter,
            listeners,
            interim: Some(interim),
            workers,
            released,
            scoreboard,
            limiter,
            lingering,
            id,
            cluster,
        })
    }

    /// Leaves the clients to the workers. Call it once the other servers are answered here: two whose clients ask for the census
    /// of both would wait for each other else.
    pub fn begin(&mut self) {
        if let Some(interim) = self.interim.take() {
            interim.end();
        }
    }

    /// How many clients are connected.
    pub fn clients(&self) -> usize {
        self.admission.clients.count().load(Ordering::SeqCst)
    }

    /// What tells whether clients are being served.
    pub fn health(&self) -> Health {
        Health::new(
            &self.admission,
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
    pub fn cluster_stats(&self) -> Arc<cluster::Stats> {
        self.cluster.stats()
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
            max_clients = self.scoreboard.slots().len(),
            queue = self.queue,
            started_ms = milliseconds(self.started_in);
            "ready"
        );
    }

    /// Lets nobody in any more, once the acceptors look.
    pub fn stop_accepting(&self) {
        self.admission.closed.store(true, Ordering::Relaxed);
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
        let (clients, incidents) = (
            self.admission.clients.clone(),
            self.admission.incidents.clone(),
        );
        let (board, alarm) = (self.scoreboard, self.admission.alarm.clone());
        // So that the queue is closed.
        drop(self.admission);
        board.set_phase(Phase::Drain);
        alarm.wake();
        let mut cut_off = 0;
        if !pool::wait_for(&self.workers, deadline) {
            cut_off = clients.count().load(Ordering::SeqCst);
            board.set_phase(Phase::Abort);
            alarm.wake();
            pool::wait_for(&self.workers, Instant::now() + LAST_GRACE);
        }
        pool::wait_for(&self.lingering, deadline);
        incidents.resolve(true);
        self.cluster.leave();
        if cut_off > 0 {
            warn!(clients = cut_off; "cut off: these clients were not done by the deadline");
        }
    }

    /// Answers what has arrived, and has systemd keep all connections for the next process. If the service is not started
    /// again, systemd closes them.
    fn store(mut self, deadline: Instant) {
        let mut clients = self.hand_over(Phase::DrainThenDetach);
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
    pub fn hand_over(&mut self, phase: Phase) -> InheritedState {
        let begun = Millis::now();
        // Whose header is not whole goes along as it is.
        let result = self.end_acceptors(Duration::ZERO);
        self.cluster.fail_fast();
        self.release(phase);
        let connections = self.collect();
        // As late as it can be: from now on their places are given up here, and the others would be told that they are gone.
        let census = self.cluster.pause();
        let left_behind = self
            .admission
            .clients
            .all()
            .saturating_sub(connections.len());
        let leaving = self.admission.linger.take_all();
        self.admission.incidents.resolve(true);
        if left_behind > 0 {
            warn!(clients = left_behind; "left behind: these clients' requests took too long to wait for");
        }
        info!(clients = connections.len(); "hands its clients over");
        let clients = connections.into_iter().map(Connection::into_parts);
        InheritedState {
            listeners: self.listeners.clone(),
            http: Vec::new(),
            stored: false,
            accepted: self.metrics.accepted(),
            handovers: self.metrics.handovers(),
            begun: Some(begun),
            census,
            clients: clients.chain(result).collect(),
            leaving,
            id: Some(self.id),
        }
    }

    /// Accepts no more, and has the workers let go of all connections, open, in this way. They come out of the receiver.
    pub fn release(&mut self, phase: Phase) -> Receiver<Connection> {
        self.end_acceptors(Duration::ZERO);
        self.scoreboard.set_phase(phase);
        if phase == Phase::Detach {
            self.limiter.close();
        }
        self.admission.alarm.wake();
        self.released.clone()
    }

    /// All connections that the workers let go of: all that there are, unless that takes too long.
    fn collect(&self) -> Vec<Connection> {
        let begun = Instant::now();
        let mut connections = Vec::with_capacity(self.clients());
        loop {
            // What is still to be computed is left to whoever comes next, however much it is.
            if begun.elapsed() >= ComputeLimiter::PATIENCE {
                self.limiter.close();
            }
            connections.extend(self.released.try_iter());
            // In this order: a worker may have told its client goodbye, and not done so to linger yet.
            let is_all =
                connections.len() == self.admission.clients.all() && self.scoreboard.is_vacant();
            if is_all || begun.elapsed() >= LONGEST_RELEASE {
                return connections;
            }
            std::thread::park_timeout(LOOK);
        }
    }

    /// Ends the threads that are left when the clients have gone elsewhere.
    pub fn dismiss(self) {
        drop(self.admission);
        pool::wait_for(&self.workers, Instant::now() + LONGEST_RELEASE);
    }

    /// Returns those whose PROXY header was still to come, after they have had so long.
    fn end_acceptors(&mut self, patience: Duration) -> Vec<PendingConn> {
        self.stop_accepting();
        for acceptor in self.acceptors.drain(..) {
            acceptor.thread.end();
        }
        // The acceptors had the others of its clones.
        let proxy_filter = self.proxy_filter.take().and_then(Arc::into_inner);
        proxy_filter.map_or(Vec::new(), |proxy_filter| proxy_filter.end(patience))
    }
}

/// Leaves those of the last process whose PROXY header is still to come to the `proxy_filter`, and returns the others. Of a
/// network that is trusted no more, one is a client like any, and its header a bad request.
fn filter_inherited(
    clients: Vec<PendingConn>,
    proxy_filter: Option<&ProxyFilter>,
) -> Vec<PendingConn> {
    let awaits_proxy_header = |(client, stream): PendingConn| match proxy_filter {
        Some(proxy_filter)
            if client.awaits_proxy_header && proxy_filter.trusts(client.peer.ip()) =>
        {
            proxy_filter.go_on((client, stream));
            None
        }
        _ => {
            let awaits_proxy_header = false;
            Some((
                handover_state::ConnectionState {
                    awaits_proxy_header,
                    ..client
                },
                stream,
            ))
        }
    };
    clients
        .into_iter()
        .filter_map(awaits_proxy_header)
        .collect()
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
