//! One server in this process: start, then graceful shutdown (drain) or handover of its clients.

use std::net::{Shutdown, SocketAddr, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, Sender};
use log::{error, info, warn};
use rustix::io::Errno;
use rustix::net::SendFlags;
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
use crate::notify::{self, Stored};
use crate::options::Options;
use crate::pool;
use crate::proxy_filter::{PendingConn, ProxyFilter};
use crate::queue::{self, Jobs};
use crate::reaper::Reaper;
use crate::scoreboard::{Phase, ReaperWaker, Scoreboard};
use crate::session::Service;
use crate::sys;

/// Time limit for probing systemd's descriptor store, and for storing the clients there.
const STORE: Duration = Duration::from_secs(5);

/// Time limit for a worker to finish its request; after it, the handover leaves its client behind.
const LONGEST_RELEASE: Duration = Duration::from_secs(5);

/// Interval between checks whether all workers have released their connections.
const LOOK: Duration = Duration::from_millis(1);

/// Minimum duration of a drain: clients that wait for nothing are closed properly even if the
/// timeout is shorter.
const LEAST_DRAIN: Duration = Duration::from_millis(100);

/// Time that workers have after the drain deadline to notice [`Phase::Abort`].
const LAST_GRACE: Duration = Duration::from_secs(1);

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
    /// The waiting clients, to count them.
    waiting: Jobs<Connection>,
    admission: Arc<Admission>,
    acceptors: Vec<Acceptor>,
    /// Set if PROXY headers are expected, until the server stops accepting.
    proxy_filter: Option<Arc<ProxyFilter>>,
    listeners: Vec<Arc<Listener>>,
    /// Serves all clients until the workers begin.
    interim: Option<InterimServer>,
    /// Disconnects when all workers have ended.
    workers: Receiver<()>,
    /// Connections that the workers have released; see [`Server::release`].
    released: Receiver<Connection>,
    scoreboard: Arc<Scoreboard>,
    limiter: ComputeLimiter,
    /// Disconnects when no socket lingers any more.
    lingering: Receiver<()>,
    id: Uuid,
    cluster: Cluster,
}

impl Server {
    /// Starts to serve `commands`. Opens the sockets for clients that `options` name, unless some
    /// are `inherited`. `reserved` is the number of descriptors that others need. With `cluster`
    /// settings, the server joins the cluster before it admits the first client. The workers wait
    /// for [`Server::begin`].
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
        let max_pending = match options.proxy_from.is_empty() {
            true => 0,
            false => limits::pending_header_connections(),
        };
        let uncounted = if max_pending > 0 { MAX_UNCOUNTED } else { 0 };
        let reserved = listeners.len() + reserved + max_pending + uncounted;
        let capacity = share_descriptors(options, here, reserved)?;
        let (workers, most) = (capacity.workers, capacity.workers + capacity.queue);

        let mut cluster = Cluster::new(cluster, id, inherited.census)?;
        let clients = Clients::new(most, options.max_clients_per_address);
        let clients = Arc::new(clients.with_waker(cluster.waker.clone()));
        let scoreboard = Arc::new(Scoreboard::new(workers));
        let incidents = Arc::new(Incidents::new());
        let (alarm, alarms) = ReaperWaker::new();
        let (linger, lingering) = LingeringClose::start(capacity.lingering)?;
        let (release, released) = crossbeam_channel::unbounded();
        let (queue, jobs) = queue::bounded(most + MAX_UNCOUNTED);
        let context =
            Context::new(clients.count(), id, commands).in_cluster(cluster.census.clone());
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
        let proxy_filter = match max_pending {
            0 => None,
            most => {
                let (trusted, admission) = (options.proxy_from.clone(), admission.clone());
                let on_filtered =
                    move |pending, max_pending| admission.on_filtered(pending, max_pending);
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

    /// Hands the clients from the interim server to the workers. Call it after the admin server
    /// runs; otherwise two servers could deadlock, each waiting for the other's count.
    pub fn begin(&mut self) {
        if let Some(interim) = self.interim.take() {
            interim.end();
        }
    }

    /// Returns the number of connected clients.
    pub fn clients(&self) -> usize {
        self.admission.clients.count().load(Ordering::SeqCst)
    }

    /// Returns a health check of this server.
    pub fn health(&self) -> Health {
        Health::new(
            &self.admission,
            &self.acceptors,
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

    /// Returns whether systemd passed the listening sockets, to this process or to a predecessor.
    fn is_passed(&self) -> bool {
        self.listeners.iter().any(|listener| listener.passed)
    }

    /// Logs that clients are served, and the addresses of the admin server (`http`).
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

    /// Tells the acceptors to stop; each notices on its next round.
    pub fn stop_accepting(&self) {
        self.admission.closed.store(true, Ordering::Relaxed);
    }

    /// Answers everything that has arrived, then closes the clients within `timeout`. If systemd
    /// keeps the listening sockets and other descriptors too, it stores the clients for the next
    /// process instead.
    pub fn stop(self, timeout: Duration) {
        let begun = Instant::now();
        let accepted = self.metrics.accepted();
        notify::stopping(self.clients(), timeout + LAST_GRACE * 2);
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
        match notify::find_store(deadline) {
            Ok(()) => true,
            Err(why) => {
                info!(why:%; "drains: nobody keeps the clients for the next process");
                false
            }
        }
    }

    /// Answers everything that has arrived, and closes the clients. Aborts what remains at
    /// `deadline`.
    fn drain(mut self, deadline: Instant) {
        // Connections whose PROXY header is on its way get `LEAST_DRAIN`. The others are closed:
        // their clients are still unknown.
        drop(self.end_acceptors(LEAST_DRAIN));
        // The kernel refuses new connections from now on, unless others hold the sockets too.
        self.listeners.clear();
        let (clients, incidents) = (
            self.admission.clients.clone(),
            self.admission.incidents.clone(),
        );
        let (board, alarm) = (self.scoreboard, self.admission.alarm.clone());
        // Closes the queue.
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

    /// Answers what has arrived, and stores all connections with systemd for the next process. If
    /// the service is not started again, systemd closes them.
    fn store(mut self, deadline: Instant) {
        let mut clients = self.hand_over(Phase::DrainThenDetach);
        clients.listeners.clear();
        let left = deadline.saturating_duration_since(Instant::now());
        let patience = Instant::now() + (left / 2).clamp(LAST_GRACE, STORE);
        let stored = match clients.pack() {
            Ok(pack) => notify::store(pack, patience),
            Err(error) => Stored::Lost(plain(&error)),
        };
        match stored {
            Stored::Kept => info!("the service manager keeps the clients for the next process"),
            Stored::Lost(why) => {
                error!("clients are closed, can't store them with the service manager: {why}");
                return self.close(clients, deadline.max(Instant::now() + LEAST_DRAIN));
            }
            Stored::Unconfirmed(why) => error!(
                "clients are closed unless the service manager still takes them; it has not answered: {why}"
            ),
        }
        // The exit of the process ends all threads at once, sooner than one after the other.
        std::mem::forget(self);
    }

    /// Closes clients that nobody keeps: sends the rest of their replies until `deadline`, then lets
    /// them close first.
    fn close(self, mut inherited: InheritedState, deadline: Instant) {
        let clients = &mut inherited.clients;
        loop {
            // Those that have all their replies, or are gone.
            for (_, stream) in clients.extract_if(.., |(client, stream)| !sends(client, stream)) {
                // Fails if the client has gone already.
                let _ = stream.shutdown(Shutdown::Write);
                self.admission.linger.push(stream);
            }
            if clients.is_empty() || Instant::now() >= deadline {
                break;
            }
            std::thread::park_timeout(LOOK);
        }
        for leaving in inherited.leaving {
            self.admission.linger.resume(leaving);
        }
        drop(self.admission);
        pool::wait_for(&self.workers, deadline);
        pool::wait_for(&self.lingering, deadline);
        self.cluster.leave();
        if let cut_off @ 1.. = inherited.clients.len() {
            warn!(clients = cut_off; "cut off: these clients were not done by the deadline");
        }
    }

    /// Stops accepting, makes the workers release their connections as `phase` says, and returns
    /// everything that the next process continues with. The remaining server has threads but no
    /// clients.
    pub fn hand_over(&mut self, phase: Phase) -> InheritedState {
        let begun = Millis::now();
        // Connections whose PROXY header is incomplete go to the next process as they are.
        let pending = self.end_acceptors(Duration::ZERO);
        self.cluster.fail_fast();
        self.release(phase);
        let connections = self.collect();
        // As late as possible: below, the guards are dropped, and without a pause the other servers
        // would be told that the clients are gone.
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
            clients: clients.chain(pending).collect(),
            leaving,
            id: Some(self.id),
        }
    }

    /// Stops accepting, and makes the workers release all connections, open, as `phase` says.
    /// Returns the receiver of these connections.
    pub fn release(&mut self, phase: Phase) -> Receiver<Connection> {
        self.end_acceptors(Duration::ZERO);
        self.scoreboard.set_phase(phase);
        if phase == Phase::Detach {
            self.limiter.close();
        }
        self.admission.alarm.wake();
        self.released.clone()
    }

    /// Returns the released connections: all, unless that takes longer than `LONGEST_RELEASE`.
    fn collect(&self) -> Vec<Connection> {
        let begun = Instant::now();
        let mut connections = Vec::with_capacity(self.clients());
        loop {
            // The next process computes what still waits, however much it is.
            if begun.elapsed() >= ComputeLimiter::PATIENCE {
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
            std::thread::park_timeout(LOOK);
        }
    }

    /// Ends the remaining threads after the clients have gone elsewhere.
    pub fn dismiss(self) {
        drop(self.admission);
        pool::wait_for(&self.workers, Instant::now() + LONGEST_RELEASE);
    }

    /// Ends the acceptors, and the PROXY filter after `patience`. Returns the connections whose
    /// PROXY header has not arrived.
    fn end_acceptors(&mut self, patience: Duration) -> Vec<PendingConn> {
        self.stop_accepting();
        for acceptor in self.acceptors.drain(..) {
            acceptor.thread.end();
        }
        // The acceptors held the other clones.
        let proxy_filter = self.proxy_filter.take().and_then(Arc::into_inner);
        proxy_filter.map_or(Vec::new(), |proxy_filter| proxy_filter.end(patience))
    }
}

/// Sends replies that a client has not taken yet, without blocking. Returns whether some are left
/// for a client that may still take them.
fn sends(client: &mut handover_state::ConnectionState, stream: &TcpStream) -> bool {
    if client.replies.is_empty() {
        return false;
    }
    let flags = SendFlags::DONTWAIT | SendFlags::NOSIGNAL;
    match rustix::net::send(stream, &client.replies, flags) {
        Ok(sent) => {
            client.replies.drain(..sent);
            !client.replies.is_empty()
        }
        Err(error) => matches!(error, Errno::AGAIN | Errno::INTR),
    }
}

/// Passes inherited connections whose PROXY header is incomplete to `proxy_filter`, and returns the
/// others. A connection from a network that is no longer trusted becomes an ordinary client, and
/// its header a bad request.
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

/// Returns the addresses, separated by commas.
fn list(addresses: &[SocketAddr]) -> String {
    let addresses: Vec<String> = addresses.iter().map(SocketAddr::to_string).collect();
    addresses.join(",")
}

/// Listens on all addresses. A default address may be missing, as `[::1]` is on a machine without
/// IPv6.
fn listen(options: &Options) -> Result<Vec<Listener>, Error> {
    let configured: Vec<SocketAddr> = options.listen.iter().copied().chain(options.http).collect();
    let mut listeners = Vec::new();
    let mut missing = None;
    for address in &options.listen {
        match listener::bind_beside(*address, &configured) {
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

/// Numbers of clients that are served, clients that may wait, and sockets that may linger.
struct Capacity {
    workers: usize,
    queue: usize,
    lingering: usize,
}

/// Makes room for all clients that are served or wait, or for as many as the limit on open files
/// allows.
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
    // Some clients must be able to wait, or none would be closed to make room.
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
