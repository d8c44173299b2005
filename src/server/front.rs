//! Front: one thread that accepts clients and serves those that need no thread of their own.
//!
//! Behind one poll(2) it has the listeners, the young and busy clients, the connections whose PROXY
//! header is still to come, and the sockets that linger at their end. What arrives with a connection
//! is answered at once. A client that falls silent, computes, waits for the cluster, or does not
//! take its replies goes over the queue to a worker, blocks there, and stays; so does a new one while
//! the front has its fill. Until the workers have started, the front serves all clients: a thousand
//! threads take longer to start than a client should wait.
//!
//! Clients take turns: the front reads from each that is ready, the longest ago served first.

use std::cell::RefCell;
use std::net::{SocketAddr, TcpStream};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicU64, Ordering};
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
use crate::session::{CloseReason, Service, Shared};
use crate::thread;
use crate::transport::connection::Connection;
use crate::transport::lingering_close::{LingeringSocket, LingeringSockets};
use crate::waker::Waker;
use shared::clock::{Millis, Nanos};
use shared::command::Context;
use shared::text::without_errno;

/// Number of clients that the front has at a time once the workers run.
const MOST_CLIENTS: usize = 64;

/// Time without a request after which a client goes to a worker.
const PATIENCE: Duration = Duration::from_millis(20);

/// Duration of a round after which the front counts as saturated, and new clients go to the
/// workers, so that no core idles.
const LONGEST_ROUND: Duration = Duration::from_millis(1);

/// Number of clients that one round accepts from a listener: a flood of new ones does not starve
/// the others.
const MOST_ACCEPTED: usize = 64;

/// Pause after the system lacked a resource.
const PAUSE: Duration = Duration::from_millis(50);

/// Barrier at which the workers wait until they may begin. They begin all at once: a worker that
/// already served would slow down the start of the others.
#[derive(Clone, Default)]
pub struct StartBarrier(Arc<OnceLock<()>>);

impl StartBarrier {
    /// Waits until the barrier is open.
    pub fn wait(&self) {
        self.0.wait();
    }

    fn open(&self) {
        self.0.get_or_init(|| ());
    }

    fn is_open(&self) -> bool {
        self.0.get().is_some()
    }
}

/// What the front begins with.
pub struct Setup {
    /// The listeners and the protocol of each.
    pub listeners: Vec<(Arc<Listener>, &'static dyn Protocol)>,
    /// Admits the clients.
    pub admission: Arc<Admission>,
    /// Serves them.
    pub service: Arc<Service>,
    /// Holds the connections of proxies.
    pub proxy_filter: ProxyFilter,
    /// Holds the sockets that linger.
    pub lingering: LingeringSockets,
    /// Wakes the thread.
    pub waker: Arc<Waker>,
    /// Clients of the last process.
    pub clients: Vec<Connection>,
    /// Connections of the last process without their PROXY header.
    pub pending: Vec<PendingConn>,
    /// Receives the error of a listener that fails for good.
    pub failed: Sender<Error>,
}

/// The running front.
pub struct Front {
    commands: Sender<Command>,
    waker: Arc<Waker>,
    barrier: StartBarrier,
    rounds: Arc<AtomicU64>,
    ended: Receiver<()>,
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
    /// Starts the thread.
    pub fn start(setup: Setup) -> Result<Self, Error> {
        let Setup {
            listeners,
            admission,
            service,
            proxy_filter,
            lingering,
            waker,
            clients,
            pending,
            failed,
        } = setup;
        let scoreboard = Arc::new(Scoreboard::new(1));
        scoreboard.set_phase(Phase::ServeReady);
        let barrier = StartBarrier::default();
        let mut accepting = Accepting {
            listeners,
            ready_service: Service {
                shared: Shared {
                    scoreboard: scoreboard.clone(),
                    ..service.shared.clone()
                },
                context: Context {
                    may_wait: false,
                    ..service.context.clone()
                },
                ..(*service).clone()
            },
            scoreboard,
            admission,
            service,
            proxy_filter,
            clients: RefCell::default(),
            barrier: barrier.clone(),
            accept_again: None,
            is_saturated: false,
            stop: None,
            failed,
        };
        let (commands, received) = crossbeam_channel::unbounded();
        let (running, ended) = crossbeam_channel::bounded::<()>(0);
        let rounds = Arc::new(AtomicU64::new(0));
        let (counter, wakes) = (rounds.clone(), waker.clone());
        thread::spawn("front", move || {
            for client in clients {
                accepting.serve(client);
            }
            let mut filtered = Vec::new();
            for conn in pending {
                let now = Millis::now();
                accepting.proxy_filter.receive(conn, now, &mut filtered);
            }
            accepting.admit(filtered);
            let front = FrontThread {
                accepting: Some(accepting),
                lingering,
                commands: received,
                waker: wakes,
                rounds: counter,
            };
            front.run();
            drop(running);
        })?;
        Ok(Front {
            commands,
            waker,
            barrier,
            rounds,
            ended,
        })
    }

    /// Returns the barrier for the workers.
    pub fn barrier(&self) -> StartBarrier {
        self.barrier.clone()
    }

    /// Lets the workers begin.
    pub fn begin(&self) {
        self.barrier.open();
        self.waker.wake();
    }

    /// Returns what wakes the thread, and the number of its rounds: a wake-up causes one.
    pub fn pulse(&self) -> (Arc<Waker>, Arc<AtomicU64>) {
        (self.waker.clone(), self.rounds.clone())
    }

    /// Makes the thread notice that the admission is closed.
    pub fn wake(&self) {
        self.waker.wake();
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
        self.waker.wake();
        answer.recv().unwrap_or_default()
    }

    /// Returns a channel that disconnects when the thread has ended: after it has stopped, no
    /// socket lingers, and all handles of the lingering close are gone.
    pub fn ended(&self) -> Receiver<()> {
        self.ended.clone()
    }
}

impl Drop for Front {
    fn drop(&mut self) {
        // Nobody waits for what is left.
        let (to, _) = crossbeam_channel::bounded(1);
        let _ = self.commands.send(Command::Stop(Millis(0), to));
        self.waker.wake();
    }
}

/// State of the thread.
struct FrontThread {
    /// `None` after the stop.
    accepting: Option<Accepting>,
    lingering: LingeringSockets,
    commands: Receiver<Command>,
    waker: Arc<Waker>,
    rounds: Arc<AtomicU64>,
}

/// What the front has until it stops accepting.
struct Accepting {
    listeners: Vec<(Arc<Listener>, &'static dyn Protocol)>,
    admission: Arc<Admission>,
    /// Ends sessions, as the workers do.
    service: Arc<Service>,
    /// Serves without waiting.
    ready_service: Service,
    scoreboard: Arc<Scoreboard>,
    proxy_filter: ProxyFilter,
    /// The clients, the longest ago served first.
    clients: RefCell<Vec<Connection>>,
    barrier: StartBarrier,
    /// When to accept again, after an accept failed.
    accept_again: Option<Millis>,
    is_saturated: bool,
    stop: Option<(Millis, Sender<Vec<PendingConn>>)>,
    failed: Sender<Error>,
}

impl FrontThread {
    fn run(mut self) {
        let mut ready = Vec::new();
        loop {
            self.wait(&mut ready);
            // A panic is logged by the panic hook, and loses what it was about.
            let goes_on = catch_unwind(AssertUnwindSafe(|| self.round(&ready)));
            if matches!(goes_on, Ok(false)) {
                return;
            }
        }
    }

    /// Waits for events or the next deadline. `ready` tells of the listeners, the clients and the
    /// connections without a PROXY header which are ready.
    fn wait(&mut self, ready: &mut Vec<bool>) {
        let now = Millis::now();
        let mut next = self.lingering.next_check();
        let mut at = |moment: Millis| next = Some(next.map_or(moment, |next| next.min(moment)));
        let mut polled = Vec::with_capacity(ready.len() + 4);
        polled.push(PollFd::new(&*self.waker, PollFlags::IN));
        let clients;
        if let Some(accepting) = &self.accepting {
            clients = accepting.clients.borrow();
            let events = match accepting.accepts(now) {
                true => PollFlags::IN,
                false => PollFlags::empty(),
            };
            let listeners = accepting.listeners.iter();
            polled.extend(listeners.map(|(listener, _)| PollFd::new(&listener.socket, events)));
            for client in clients.iter() {
                polled.push(PollFd::new(client.transport(), PollFlags::IN));
            }
            let pending = accepting.proxy_filter.sockets();
            polled.extend(pending.map(|stream| PollFd::new(stream, PollFlags::IN)));
            if accepting.barrier.is_open() {
                let active = clients.iter().filter_map(|client| client.client.active);
                active
                    .min()
                    .into_iter()
                    .for_each(|active| at(active.after(PATIENCE)));
            }
            accepting
                .proxy_filter
                .next_deadline()
                .into_iter()
                .for_each(&mut at);
            let again = accepting.accept_again.filter(|again| *again > now);
            again.into_iter().for_each(&mut at);
            accepting.stop.iter().for_each(|(until, _)| at(*until));
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
                    self.waker.clear();
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
        self.rounds.fetch_add(1, Ordering::Relaxed);
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
        goes_on || self.accepting.is_some()
    }
}

impl Accepting {
    /// Returns whether new clients are accepted now.
    fn accepts(&self, now: Millis) -> bool {
        self.accept_again.is_none_or(|again| now >= again)
            && !self.admission.closed.load(Ordering::Relaxed)
    }

    fn round(&mut self, ready: &[bool], now: Millis) {
        let begun = Nanos::now();
        let (listeners, ready) = ready.split_at(self.listeners.len());
        let (clients, pending) = ready.split_at(self.clients.get_mut().len());
        self.serve_clients(clients, now);
        let mut filtered = Vec::new();
        self.proxy_filter.advance(pending, now, &mut filtered);
        self.admit(filtered);
        // From the last on: one that fails for good is removed.
        for index in (0..self.listeners.len()).rev() {
            if listeners[index] && self.accepts(now) {
                self.accept(index, now);
            }
        }
        self.is_saturated = Duration::from_nanos(begun.until(Nanos::now())) > LONGEST_ROUND;
    }

    /// Serves the clients that are ready, and passes the silent ones on.
    fn serve_clients(&mut self, ready: &[bool], now: Millis) {
        let clients = std::mem::take(self.clients.get_mut());
        let passes = self.barrier.is_open();
        let mut served = Vec::new();
        for (client, ready) in clients.into_iter().zip(ready) {
            let is_silent = || {
                client
                    .client
                    .active
                    .is_some_and(|active| now.since(active) >= PATIENCE)
            };
            if *ready {
                served.push(client);
            } else if passes && is_silent() {
                self.admission.enqueue(client);
            } else {
                self.clients.get_mut().push(client);
            }
        }
        served.into_iter().for_each(|client| self.serve(client));
    }

    /// Answers what has arrived from a client. It stays here unless it has to wait for something
    /// else than its next request.
    fn serve(&self, client: Connection) {
        let serve = |client: &mut Connection, slot: &_| self.ready_service.serve(client, slot);
        let end = |client: Connection, ended| match ended {
            Some(CloseReason::Released) if client.client.replies.is_empty() => {
                self.clients.borrow_mut().push(client);
            }
            Some(CloseReason::Released | CloseReason::Deferred) => self.admission.enqueue(client),
            ended => self.service.end(client, ended),
        };
        let slot = &self.scoreboard.slots()[0];
        pool::do_job(Job::Serve(client), slot, &serve, &end);
    }

    /// Takes a client that was just admitted.
    fn take(&mut self, client: Connection) {
        let clients = self.clients.get_mut();
        if !self.barrier.is_open() {
            return self.serve(client);
        }
        if self.admission.clients.all() > self.admission.workers {
            // The new one has to wait until a worker is free, and the front's clients come first.
            clients
                .drain(..)
                .for_each(|client| self.admission.enqueue(client));
        } else if !self.is_saturated && clients.len() < MOST_CLIENTS {
            return self.serve(client);
        }
        self.admission.enqueue(client);
    }

    fn admit(&mut self, filtered: Vec<Filtered>) {
        for filtered in filtered {
            if let Some(client) = self.admission.on_filtered(filtered) {
                self.take(client);
            }
        }
    }

    fn accept(&mut self, index: usize, now: Millis) {
        self.accept_again = None;
        for _ in 0..MOST_ACCEPTED {
            let (listener, protocol) = &self.listeners[index];
            match acceptfrom_with(&listener.socket, SocketFlags::CLOEXEC) {
                Ok((socket, peer)) => {
                    // The peer of a TCP socket has an address that std can represent.
                    let peer = peer.and_then(|peer| SocketAddr::try_from(peer).ok());
                    if let Some(peer) = peer {
                        self.begin(TcpStream::from(socket), peer, *protocol, now);
                    }
                }
                Err(Errno::AGAIN) => return,
                Err(Errno::INTR) => {}
                Err(error) => {
                    let shared = &self.admission.shared;
                    let incident = &shared.incidents.accept;
                    let reason = without_errno(&error.into());
                    match blame(error) {
                        Blame::Client => {
                            shared.metrics.accept_failed(AcceptError::Client);
                            if incident.record(&reason) {
                                shared.reaper_waker.wake();
                            }
                        }
                        Blame::System => {
                            shared.metrics.accept_failed(kind(error));
                            incident.record(&reason);
                            shared.reaper_waker.wake();
                            self.accept_again = Some(now.after(PAUSE));
                            return;
                        }
                        Blame::Listener => {
                            let (address, source) = (listener.address, error.into());
                            self.listeners.remove(index);
                            // It fails only if the daemon is ending anyway.
                            let _ = self.failed.send(Error::Accept { address, source });
                            return;
                        }
                    }
                }
            }
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
        let number = self.admission.shared.metrics.accept();
        let client = ConnectionState::new(number, protocol.scheme(), peer);
        if self.proxy_filter.trusts(peer.ip()) {
            let mut filtered = Vec::new();
            self.proxy_filter
                .receive((client, stream), now, &mut filtered);
            self.admit(filtered);
        } else if let Some(client) = self.admission.admit_client(client, protocol, stream) {
            self.take(client);
        }
    }

    /// Returns whether the stop is due.
    fn is_done(&self, now: Millis) -> bool {
        let is_due = |(until, _): &(Millis, _)| now >= *until;
        self.stop.as_ref().is_some_and(is_due)
            || self.stop.is_some() && self.proxy_filter.next_deadline().is_none()
    }

    /// Passes the clients to the workers. Returns the connections without a PROXY header, and where
    /// to send them. Drops the admission, which may end the workers, before that.
    fn finish(self) -> (Vec<PendingConn>, Option<Sender<Vec<PendingConn>>>) {
        for client in self.clients.into_inner() {
            self.admission.enqueue(client);
        }
        let to = self.stop.map(|(_, to)| to);
        (self.proxy_filter.into_pending(), to)
    }
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
