//! Front: one thread that accepts clients and serves those that need no thread of their own.
//!
//! Behind one poll(2) it has the listeners, the young and busy clients, the connections whose PROXY
//! header is still to come, and the sockets that linger at their end. What arrives with a
//! connection is answered at once. A client that falls silent, computes, waits for the cluster, or
//! does not take its replies goes over the queue to a worker, blocks there, and stays; so does one
//! for which the front has no room. Until the workers have started, clients that need not wait stay
//! here: a thousand threads take longer to start than a client should wait.
//!
//! Clients take turns: the front reads from each that is ready, the longest ago served first, and
//! then accepts one.

use std::cell::RefCell;
use std::net::{SocketAddr, TcpStream};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use crossbeam_channel::{Receiver, Sender};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::net::{SocketFlags, acceptfrom_with};

use crate::error::Error;
use crate::handover::state::ConnectionState;
use crate::metrics::AcceptError;
use crate::protocol::Protocol;
use crate::server::admission::Admission;
use crate::server::listener::Listener;
use crate::server::pool;
use crate::server::proxy_filter::{Filtered, PendingConn, ProxyFilter};
use crate::server::queue::Job;
use crate::session::scoreboard::{Phase, Scoreboard};
use crate::session::{CloseReason, Service};
use crate::thread;
use crate::transport::connection::Connection;
use crate::transport::lingering_close::{LingeringSocket, LingeringSockets};
use crate::waker::Waker;
use shared::clock::{Millis, Nanos};
use shared::text::without_errno;

/// Number of clients that the front keeps once the workers run.
const MOST_CLIENTS: usize = 64;

/// Time without a request after which a client goes to a worker.
const PATIENCE: Duration = Duration::from_millis(50);

/// Duration of a long round. After a row of them the front counts as saturated: on a machine with
/// more than one core, new clients go to the workers, and with each round one of its own.
const LONG_ROUND: Duration = Duration::from_micros(250);

/// Length of that row: one long round may be the scheduler's, or that of a crowd that has come.
const LONG_ROUNDS: u32 = 4;

/// Longest wait for the answer of the thread, which waits for nothing itself.
const LONGEST_ANSWER: Duration = Duration::from_secs(5);

/// Pause after the system lacked a resource.
const PAUSE: Duration = Duration::from_millis(50);

/// Set when the workers may begin. They begin all at once: a worker that already served would slow
/// down the start of the others.
pub type StartBarrier = Arc<OnceLock<()>>;

/// What accepting needs.
pub struct Setup {
    /// The listeners and the protocol of each.
    pub listeners: Vec<(Arc<Listener>, &'static dyn Protocol)>,
    /// Admits the clients.
    pub admission: Arc<Admission>,
    /// Ends sessions, as the workers do.
    pub service: Arc<Service>,
    /// Holds the connections of proxies.
    pub proxy_filter: ProxyFilter,
    /// Receives the error of a listener that fails for good.
    pub failed: Sender<Error>,
}

/// What other threads see of the front.
pub struct Pulse {
    /// Wakes the thread, which causes a round.
    pub waker: Arc<Waker>,
    /// Number of its rounds.
    pub rounds: AtomicU64,
    /// Number of its clients.
    pub clients: AtomicUsize,
}

/// The running front.
pub struct Front {
    commands: Sender<Command>,
    /// What other threads see of it.
    pub pulse: Arc<Pulse>,
    /// The barrier for the workers.
    pub barrier: StartBarrier,
    /// Disconnects when the thread has ended: after it has stopped, no socket lingers, and all
    /// handles of the lingering close are gone.
    pub ended: Receiver<()>,
}

/// A message to the thread.
enum Command {
    /// Accept no more. At this time, or earlier if no connection waits for its PROXY header, pass
    /// the clients to the workers, and return the connections without a header.
    Stop(Millis, Sender<Vec<PendingConn>>),
    /// Return the sockets that linger.
    TakeLingering(Sender<Vec<LingeringSocket>>),
}

impl Front {
    /// Starts the thread, which `waker` wakes, with `clients` of the last process, and its
    /// connections that are `pending` for lack of a PROXY header.
    pub fn start(
        setup: Setup,
        waker: Arc<Waker>,
        lingering: LingeringSockets,
        clients: Vec<Connection>,
        pending: Vec<PendingConn>,
    ) -> Result<Self, Error> {
        let scoreboard = Arc::new(Scoreboard::new(1));
        scoreboard.set_phase(Phase::ServeReady);
        let mut ready_service = Service::clone(&setup.service);
        ready_service.shared.scoreboard = scoreboard;
        ready_service.shared.linger = setup.service.shared.linger.within_front();
        ready_service.context.may_wait = false;
        let barrier = StartBarrier::default();
        let mut accepting = Accepting {
            setup,
            ready_service,
            clients: RefCell::default(),
            barrier: barrier.clone(),
            accept_again: None,
            has_cores: std::thread::available_parallelism().is_ok_and(|cores| cores.get() > 1),
            long_rounds: 0,
            round_ended: Nanos::now(),
            stop: None,
        };
        let (commands, received) = crossbeam_channel::unbounded();
        let (running, ended) = crossbeam_channel::bounded::<()>(0);
        let pulse = Arc::new(Pulse {
            waker,
            rounds: AtomicU64::new(0),
            clients: AtomicUsize::new(0),
        });
        let own = pulse.clone();
        thread::spawn("front", move || {
            for client in clients {
                accepting.serve(client, Millis::now());
            }
            for conn in pending {
                accepting.await_header(conn, Millis::now());
            }
            let front = FrontThread {
                accepting: Some(accepting),
                lingering,
                commands: received,
                pulse: own,
            };
            front.run();
            drop(running);
        })?;
        Ok(Front {
            commands,
            pulse,
            barrier,
            ended,
        })
    }

    /// Lets the workers begin.
    pub fn begin(&self) {
        self.barrier.get_or_init(|| ());
        self.pulse.waker.wake();
    }

    /// Stops accepting, passes all clients to the workers, and returns the connections without a
    /// PROXY header, for which it waits for at most `patience`. Sockets linger on.
    pub fn stop(&self, patience: Duration) -> Vec<PendingConn> {
        let until = Millis::now().after(patience);
        self.ask(|to| Command::Stop(until, to))
    }

    /// Returns all lingering sockets, to be continued elsewhere.
    pub fn take_lingering(&self) -> Vec<LingeringSocket> {
        self.ask(Command::TakeLingering)
    }

    fn ask<T>(&self, command: impl FnOnce(Sender<Vec<T>>) -> Command) -> Vec<T> {
        let (to, answer) = crossbeam_channel::bounded(1);
        // It fails only if the thread is gone, with everything that it had.
        let _ = self.commands.send(command(to));
        self.pulse.waker.wake();
        answer.recv_timeout(LONGEST_ANSWER).unwrap_or_default()
    }
}

impl Drop for Front {
    fn drop(&mut self) {
        // Nobody waits for what is left.
        let (to, _) = crossbeam_channel::bounded(1);
        let _ = self.commands.send(Command::Stop(Millis(0), to));
        self.pulse.waker.wake();
    }
}

/// State of the thread.
struct FrontThread {
    /// `None` after the stop.
    accepting: Option<Accepting>,
    lingering: LingeringSockets,
    commands: Receiver<Command>,
    pulse: Arc<Pulse>,
}

/// What the front has until it stops accepting.
struct Accepting {
    setup: Setup,
    /// Serves without waiting.
    ready_service: Service,
    /// The clients, the longest ago served first.
    clients: RefCell<Vec<Connection>>,
    barrier: StartBarrier,
    /// When to accept again, after an accept failed.
    accept_again: Option<Millis>,
    /// Whether workers can run while the front does.
    has_cores: bool,
    /// Number of long rounds in a row, the last of which ended then.
    long_rounds: u32,
    round_ended: Nanos,
    stop: Option<(Millis, Sender<Vec<PendingConn>>)>,
}

impl FrontThread {
    fn run(mut self) {
        let mut ready = Vec::new();
        loop {
            self.wait(&mut ready);
            match catch_unwind(AssertUnwindSafe(|| self.round(&ready))) {
                Ok(true) => {}
                Ok(false) => return,
                // The panic hook logs it. It loses what it was about.
                Err(_) => std::thread::sleep(PAUSE),
            }
            self.pulse.rounds.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// Waits for events or the next deadline. `ready` tells of the listeners, the clients and the
    /// connections without a PROXY header which are ready.
    fn wait(&mut self, ready: &mut Vec<bool>) {
        let now = Millis::now();
        let mut next = self.lingering.next_check();
        let mut polled = Vec::with_capacity(ready.len() + 4);
        polled.push(PollFd::new(&*self.pulse.waker, PollFlags::IN));
        let clients;
        if let Some(accepting) = &self.accepting {
            clients = accepting.clients.borrow();
            accepting.poll(&clients, &mut polled, now);
            let deadline = accepting.next_deadline(&clients, now);
            next = next.into_iter().chain(deadline).min();
        }
        // 1 ms more: the clock advances in steps, and could still be just before the deadline.
        let time = next.map(|next| next.since(now) + Duration::from_millis(1));
        let time = time.and_then(|time| Timespec::try_from(time).ok());
        let result = poll(&mut polled, time.as_ref());
        ready.clear();
        match result {
            Ok(_) => {
                ready.extend(polled.iter().skip(1).map(|fd| !fd.revents().is_empty()));
                if !polled[0].revents().is_empty() {
                    self.pulse.waker.clear();
                }
            }
            Err(Errno::INTR) => ready.resize(polled.len() - 1, false),
            Err(_) => {
                // The limit on open files may have become lower than the number of descriptors
                // (poll(2)): try to read from each.
                ready.resize(polled.len() - 1, true);
                std::thread::sleep(PAUSE);
            }
        }
    }

    /// Does what is to be done. Returns whether there is more to come.
    fn round(&mut self, ready: &[bool]) -> bool {
        let now = Millis::now();
        if let Some(accepting) = &mut self.accepting {
            accepting.round(ready, now);
        }
        let mut goes_on = self.lingering.advance(now);
        while let Ok(command) = self.commands.try_recv() {
            // Whoever asks waits for the answer.
            match command {
                Command::Stop(until, to) => match &mut self.accepting {
                    Some(accepting) => accepting.stop = Some((until, to)),
                    None => drop(to.send(Vec::new())),
                },
                Command::TakeLingering(to) => drop(to.send(self.lingering.take_all())),
            }
        }
        if let Some(accepting) = self.accepting.take_if(|accepting| accepting.is_done(now)) {
            if let (pending, Some(to)) = accepting.finish() {
                let _ = to.send(pending);
            }
            // The handles of the lingering close that it had are gone.
            goes_on = self.lingering.advance(now);
        }
        let accepting = self.accepting.as_mut();
        let clients = accepting.map_or(0, |accepting| accepting.clients.get_mut().len());
        self.pulse.clients.store(clients, Ordering::Relaxed);
        goes_on || self.accepting.is_some()
    }
}

impl Accepting {
    /// Appends what is polled for: listeners, clients, and connections without a PROXY header.
    fn poll<'a>(&'a self, clients: &'a [Connection], polled: &mut Vec<PollFd<'a>>, now: Millis) {
        let accepts = match self.accepts(now) {
            true => PollFlags::IN,
            false => PollFlags::empty(),
        };
        let listeners = self.setup.listeners.iter();
        polled.extend(listeners.map(|(listener, _)| PollFd::new(&listener.socket, accepts)));
        let clients = clients.iter().map(Connection::transport);
        let sockets = clients.chain(self.setup.proxy_filter.sockets());
        polled.extend(sockets.map(|socket| PollFd::new(socket, PollFlags::IN)));
    }

    /// Returns when something is due without an event.
    fn next_deadline(&self, clients: &[Connection], now: Millis) -> Option<Millis> {
        let active = clients.iter().filter_map(|client| client.client.active);
        let deadlines = [
            active
                .min()
                .map(|active| active.after(PATIENCE))
                .filter(|_| self.passes()),
            self.setup.proxy_filter.next_deadline(),
            self.accept_again.filter(|again| *again > now),
            self.stop.as_ref().map(|(until, _)| *until),
        ];
        deadlines.into_iter().flatten().min()
    }

    /// Returns whether there are workers to pass clients to.
    fn passes(&self) -> bool {
        self.barrier.get().is_some()
    }

    /// Returns whether a client goes to a worker: it has asked nothing for a while, or there is no
    /// room for it.
    fn leaves(&self, client: &Connection, now: Millis) -> bool {
        let active = client.client.active;
        let is_silent = active.is_some_and(|active| now.since(active) >= PATIENCE);
        self.passes() && (is_silent || self.is_full() || self.has_surplus())
    }

    fn is_full(&self) -> bool {
        self.clients.borrow().len() >= MOST_CLIENTS
    }

    /// Returns whether there are more clients than workers.
    fn has_surplus(&self) -> bool {
        self.setup.admission.clients.all() > self.setup.admission.workers
    }

    fn is_saturated(&self) -> bool {
        self.has_cores && self.long_rounds >= LONG_ROUNDS
    }

    /// Returns whether new clients are accepted now.
    fn accepts(&self, now: Millis) -> bool {
        self.accept_again.is_none_or(|again| now >= again)
            && !self.setup.admission.closed.load(Ordering::Relaxed)
    }

    fn round(&mut self, ready: &[bool], now: Millis) {
        let is_long = |from: Nanos, to| Duration::from_nanos(from.until(to)) > LONG_ROUND;
        let begun = Nanos::now();
        if is_long(self.round_ended, begun) {
            // It has waited.
            self.long_rounds = 0;
        }
        let (listeners, ready) = ready.split_at(self.setup.listeners.len());
        let (clients, pending) = ready.split_at(self.clients.get_mut().len());
        // Before a new client is accepted, which may be the same in a new connection.
        self.serve_clients(clients, now);
        let mut filtered = Vec::new();
        self.setup.proxy_filter.advance(pending, now, &mut filtered);
        self.admit(filtered, now);
        // From the last on: one that fails for good is removed.
        for index in (0..self.setup.listeners.len()).rev() {
            if listeners[index] && self.accepts(now) {
                self.accept(index, now);
            }
        }
        self.round_ended = Nanos::now();
        match is_long(begun, self.round_ended) {
            true => self.long_rounds += 1,
            false => self.long_rounds = 0,
        }
    }

    /// Serves the clients that are ready, and passes on those that leave.
    fn serve_clients(&mut self, ready: &[bool], now: Millis) {
        let clients = std::mem::take(self.clients.get_mut());
        let mut served = Vec::with_capacity(clients.len());
        for (client, ready) in clients.into_iter().zip(ready) {
            match *ready {
                true => served.push(client),
                false => self.keep(client, now),
            }
        }
        for client in served {
            self.serve(client, now);
        }
        if self.is_saturated()
            && self.passes()
            && let Some(client) = self.clients.get_mut().pop()
        {
            self.setup.admission.enqueue(client);
        }
    }

    /// Answers what has arrived from a client. It stays here unless it has to wait for something
    /// else than its next request, or sends without pause.
    fn serve(&self, client: Connection, now: Millis) {
        let (service, admission) = (&self.ready_service, &self.setup.admission);
        let serve = |client: &mut Connection, slot: &_| service.serve(client, slot);
        let end = |client: Connection, ended| match ended {
            Some(CloseReason::Deferred) => admission.enqueue(client),
            Some(CloseReason::TurnOver) if self.passes() => admission.enqueue(client),
            Some(CloseReason::TurnOver) => self.clients.borrow_mut().push(client),
            Some(CloseReason::Released) if !client.client.replies.is_empty() => {
                admission.enqueue(client);
            }
            Some(CloseReason::Released) => self.keep(client, now),
            ended => service.end(client, ended),
        };
        let slot = &service.shared.scoreboard.slots()[0];
        pool::do_job(Job::Serve(client), slot, &serve, &end);
    }

    /// Keeps a client unless it leaves.
    fn keep(&self, client: Connection, now: Millis) {
        match self.leaves(&client, now) {
            true => self.setup.admission.enqueue(client),
            false => self.clients.borrow_mut().push(client),
        }
    }

    /// Takes a client that was just admitted.
    fn take(&mut self, client: Connection, now: Millis) {
        let is_surplus = self.passes() && self.has_surplus();
        if is_surplus {
            // It has to wait until a worker is free, and the front's clients come first.
            for client in self.clients.get_mut().drain(..) {
                self.setup.admission.enqueue(client);
            }
        }
        let goes_on = is_surplus || self.passes() && (self.is_full() || self.is_saturated());
        match goes_on {
            true => self.setup.admission.enqueue(client),
            false => self.serve(client, now),
        }
    }

    fn admit(&mut self, filtered: Vec<Filtered>, now: Millis) {
        for filtered in filtered {
            if let Some(client) = self.setup.admission.on_filtered(filtered) {
                self.take(client, now);
            }
        }
    }

    /// Accepts one connection. With another in the same round, a client that closes and connects
    /// again could be there twice.
    fn accept(&mut self, index: usize, now: Millis) {
        self.accept_again = None;
        let (listener, protocol) = &self.setup.listeners[index];
        let error = match acceptfrom_with(&listener.socket, SocketFlags::CLOEXEC) {
            Ok((socket, peer)) => {
                // The peer of a TCP socket has an address that std can represent.
                let peer = peer.and_then(|peer| SocketAddr::try_from(peer).ok());
                if let Some(peer) = peer {
                    self.begin(TcpStream::from(socket), peer, *protocol, now);
                }
                return;
            }
            Err(Errno::AGAIN | Errno::INTR) => return,
            Err(error) => error,
        };
        let Some(kind) = kind(error) else {
            let action = format!("accept clients on {} any more", listener.address);
            self.setup.listeners.remove(index);
            // It fails only if the daemon is ending anyway.
            let _ = self.setup.failed.send(Error::system(action, &error.into()));
            return;
        };
        let shared = &self.setup.admission.shared;
        shared.metrics.accept_failed(kind);
        let reason = without_errno(&error.into());
        if shared.incidents.accept.record(&reason) {
            shared.reaper_waker.wake();
        }
        if kind != AcceptError::Client {
            self.accept_again = Some(now.after(PAUSE));
        }
    }

    /// Begins with a connection that was just accepted.
    fn begin(
        &mut self,
        stream: TcpStream,
        peer: SocketAddr,
        protocol: &'static dyn Protocol,
        now: Millis,
    ) {
        let number = self.setup.admission.shared.metrics.accept();
        let client = ConnectionState::new(number, protocol.scheme(), peer);
        if self.setup.proxy_filter.trusts(peer.ip()) {
            self.await_header((client, stream), now);
        } else if let Some(client) = self.setup.admission.admit_client(client, protocol, stream) {
            self.take(client, now);
        }
    }

    /// Waits for the PROXY header of a connection, most of which have come with it.
    fn await_header(&mut self, conn: PendingConn, now: Millis) {
        let mut filtered = Vec::new();
        self.setup.proxy_filter.receive(conn, now, &mut filtered);
        self.admit(filtered, now);
    }

    /// Returns whether the stop is due.
    fn is_done(&self, now: Millis) -> bool {
        let is_due = |(until, _): &(Millis, _)| now >= *until;
        self.stop.as_ref().is_some_and(is_due)
            || self.stop.is_some() && self.setup.proxy_filter.next_deadline().is_none()
    }

    /// Passes the clients to the workers. Returns the connections without a PROXY header, and where
    /// to send them. Drops the admission, which may end the workers, before that.
    fn finish(self) -> (Vec<PendingConn>, Option<Sender<Vec<PendingConn>>>) {
        for client in self.clients.into_inner() {
            self.setup.admission.enqueue(client);
        }
        let to = self.stop.map(|(_, to)| to);
        (self.setup.proxy_filter.into_pending(), to)
    }
}

/// Returns what a failed accept lacked (accept(2), "Error handling"), or `None` if the listening
/// socket is broken.
fn kind(error: Errno) -> Option<AcceptError> {
    Some(match error {
        Errno::BADF | Errno::INVAL | Errno::NOTSOCK | Errno::OPNOTSUPP | Errno::FAULT => {
            return None;
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
        | Errno::NONET => AcceptError::Client,
        Errno::MFILE | Errno::NFILE => AcceptError::Descriptors,
        Errno::NOBUFS | Errno::NOMEM => AcceptError::Memory,
        // The system forbids the call, or lacks something else.
        _ => AcceptError::Other,
    })
}
