//! Front: one thread that accepts clients and serves those that need no thread of their own.
//!
//! Behind one epoll(7) it has the listeners, the young and busy clients, the connections whose PROXY
//! header is still to come, and the sockets that linger at their end. What arrives with a
//! connection is answered at once. A client that falls silent, computes, waits for the cluster,
//! sends without pause, does not take its replies, or is the only one goes over the queue to a
//! worker, blocks there, and stays; so does one for which the front has no room. Until the workers have started, clients that need not wait stay
//! here: a thousand threads take longer to start than a client should wait.
//!
//! Clients take turns: a round reads from each that is ready, and then accepts one connection from
//! each listener that is. A client of the front that closes and comes again is gone from its old
//! connection by then: epoll tells of its end with its next connection, or before.

use std::cell::RefCell;
use std::collections::HashMap;
use std::net::{SocketAddr, TcpStream};
use std::os::fd::{AsFd, OwnedFd};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use crossbeam_channel::{Receiver, Sender};
use rustix::buffer::spare_capacity;
use rustix::event::Timespec;
use rustix::event::epoll::{self, CreateFlags, Event, EventData, EventFlags};
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
const MAX_CLIENTS: usize = 512;

/// Number of events that a round takes. What is left is in the next.
const MAX_EVENTS: usize = 2 * MAX_CLIENTS;

/// Keys in epoll: of the waker, and of the first listener; those of the others count down from it.
/// A connection's key is its number.
const WAKER: u64 = u64::MAX;
const FIRST_LISTENER: u64 = WAKER - 1;

/// Time without a request after which a client goes to a worker.
const SILENCE_TIMEOUT: Duration = Duration::from_millis(50);

/// Interval at which the front looks for clients that leave.
const SWEEP_INTERVAL: Duration = Duration::from_millis(10);

/// Time after which the server's only client goes to a worker: epoll_wait(2) pays for several
/// clients at once.
const ALONE_TIMEOUT: Duration = Duration::from_millis(100);

/// Duration of a long round. After a row of them the front counts as saturated: on a machine with
/// more than one core, new clients go to the workers, and with each round one of its own.
const LONG_ROUND: Duration = Duration::from_micros(250);

/// Length of that row: one long round may be the scheduler's, or that of a crowd that has come.
const LONG_ROUNDS: u32 = 4;

/// Longest wait for the answer of the thread, which waits for nothing itself.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(5);

/// Pause after the system lacked a resource.
const RESOURCE_PAUSE: Duration = Duration::from_millis(50);

/// Set when the workers may begin. They begin all at once: a worker that already served would slow
/// down the start of the others.
pub type StartBarrier = Arc<OnceLock<()>>;

/// What accepting needs.
pub struct Setup {
    /// The listeners and the protocol of each.
    pub listeners: Vec<(Arc<Listener>, &'static dyn Protocol)>,
    /// Admits the clients.
    pub admission: Arc<Admission>,
    /// Serves the clients. The front changes it so that it waits for nothing.
    pub service: Service,
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
        mut setup: Setup,
        waker: Arc<Waker>,
        lingering: LingeringSockets,
        clients: Vec<Connection>,
        pending: Vec<PendingConn>,
    ) -> Result<Self, Error> {
        let failed = |error: Errno| Error::system("poll the clients", &error.into());
        let scoreboard = Arc::new(Scoreboard::new(1));
        scoreboard.set_phase(Phase::ServeReady);
        let service = &mut setup.service;
        service.shared.scoreboard = scoreboard;
        service.shared.linger = service.shared.linger.within_front();
        service.context.may_wait = false;
        let barrier = StartBarrier::default();
        let epoll = Arc::new(epoll::create(CreateFlags::CLOEXEC).map_err(failed)?);
        add(&epoll, &*waker, WAKER, EventFlags::IN).map_err(failed)?;
        let mut accepting = Accepting {
            setup,
            epoll: epoll.clone(),
            clients: RefCell::default(),
            listens: false,
            barrier: barrier.clone(),
            accept_again: None,
            next_sweep: Millis(0),
            alone: None,
            has_cores: std::thread::available_parallelism().is_ok_and(|cores| cores.get() > 1),
            long_rounds: 0,
            round_ended: Nanos::now(),
            stop: None,
        };
        // The first round sets their keys.
        for (listener, _) in &accepting.setup.listeners {
            add(
                &epoll,
                &listener.socket,
                FIRST_LISTENER,
                EventFlags::empty(),
            )
            .map_err(failed)?;
        }
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
                accepting.serve(client, false);
            }
            for conn in pending {
                accepting.await_header(conn, Millis::now());
            }
            let front = FrontThread {
                epoll,
                events: Vec::with_capacity(MAX_EVENTS),
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
        answer.recv_timeout(ANSWER_TIMEOUT).unwrap_or_default()
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
    epoll: Arc<OwnedFd>,
    events: Vec<Event>,
    /// `None` after the stop.
    accepting: Option<Accepting>,
    lingering: LingeringSockets,
    commands: Receiver<Command>,
    pulse: Arc<Pulse>,
}

/// What the front has until it stops accepting.
struct Accepting {
    setup: Setup,
    /// Has the waker, the listeners, the clients, and the connections without a PROXY header.
    epoll: Arc<OwnedFd>,
    /// The clients by their numbers.
    clients: RefCell<HashMap<u64, Connection>>,
    /// Whether epoll tells of new connections.
    listens: bool,
    barrier: StartBarrier,
    /// When to accept again, after an accept failed.
    accept_again: Option<Millis>,
    /// When to look for clients that leave.
    next_sweep: Millis,
    /// The server's only client, and since when it is.
    alone: Option<(u64, Millis)>,
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
                Err(_) => std::thread::sleep(RESOURCE_PAUSE),
            }
            self.pulse.rounds.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// Waits for events or the next deadline. Sets `ready` to the keys of what is ready.
    fn wait(&mut self, ready: &mut Vec<u64>) {
        let now = Millis::now();
        let mut next = self.lingering.next_check();
        if let Some(accepting) = &mut self.accepting {
            accepting.set_listening(now);
            next = next.into_iter().chain(accepting.next_deadline(now)).min();
        }
        // 1 ms more: the clock advances in steps, and could still be just before the deadline.
        let time = next.map(|next| next.since(now) + Duration::from_millis(1));
        let time = time.and_then(|time| Timespec::try_from(time).ok());
        self.events.clear();
        ready.clear();
        match epoll::wait(&self.epoll, spare_capacity(&mut self.events), time.as_ref()) {
            Ok(_) | Err(Errno::INTR) => {}
            Err(_) => std::thread::sleep(RESOURCE_PAUSE),
        }
        for event in &self.events {
            let (key, flags) = (event.data.u64(), event.flags);
            if key == WAKER {
                self.pulse.waker.clear();
                continue;
            }
            ready.push(key);
            if flags.intersects(EventFlags::RDHUP | EventFlags::HUP) {
                // Another read sees the end, before new clients are counted.
                ready.push(key);
            }
        }
    }

    /// Does what is to be done. Returns whether there is more to come.
    fn round(&mut self, ready: &[u64]) -> bool {
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
    /// Lets epoll tell of new connections if they are accepted now.
    fn set_listening(&mut self, now: Millis) {
        let accepts = self.accepts(now);
        if accepts != self.listens {
            self.listens = accepts;
            self.update_listeners();
        }
    }

    /// Tells epoll the key of each listener, and whether to tell of it.
    fn update_listeners(&self) {
        let flags = match self.listens {
            true => EventFlags::IN,
            false => EventFlags::empty(),
        };
        for (key, (listener, _)) in (0..=FIRST_LISTENER).rev().zip(&self.setup.listeners) {
            // It can't fail: they are there.
            let _ = epoll::modify(
                &self.epoll,
                &listener.socket,
                EventData::new_u64(key),
                flags,
            );
        }
    }

    /// Returns when something is due without an event.
    fn next_deadline(&self, now: Millis) -> Option<Millis> {
        let sweeps = self.passes() && !self.clients.borrow().is_empty();
        let deadlines = [
            sweeps.then_some(self.next_sweep),
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

    /// Returns whether there is room for a client.
    fn has_room(&self) -> bool {
        !self.passes() || self.clients.borrow().len() < MAX_CLIENTS && !self.has_surplus()
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

    fn round(&mut self, ready: &[u64], now: Millis) {
        let is_long = |from: Nanos, to| Duration::from_nanos(from.until(to)) > LONG_ROUND;
        let begun = Nanos::now();
        if is_long(self.round_ended, begun) {
            // It has waited.
            self.long_rounds = 0;
        }
        // Before new clients are counted: one that has come again is gone from its old connection.
        self.serve_clients(ready, now);
        let mut filtered = Vec::new();
        self.setup.proxy_filter.advance(ready, now, &mut filtered);
        self.admit(filtered);
        // From the last on: one that fails for good is removed.
        for index in (0..self.setup.listeners.len()).rev() {
            if ready.contains(&(FIRST_LISTENER - index as u64)) && self.accepts(now) {
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
    fn serve_clients(&mut self, ready: &[u64], now: Millis) {
        for key in ready {
            if let Some(client) = self.clients.get_mut().remove(key) {
                self.serve(client, true);
            }
        }
        if !self.passes() {
            return;
        }
        if self.is_saturated() {
            let clients = self.clients.get_mut();
            if let Some(client) = ready.iter().find_map(|key| clients.remove(key)) {
                self.pass_on(client, true);
            }
        }
        if now >= self.next_sweep {
            self.next_sweep = now.after(SWEEP_INTERVAL);
            self.sweep(now);
        }
    }

    /// Passes on the clients that have asked nothing for a while, and one that is alone.
    fn sweep(&mut self, now: Millis) {
        let clients = self.clients.get_mut();
        let only = clients.keys().next().copied();
        let only = only.filter(|_| self.setup.admission.clients.all() == 1);
        self.alone = only.map(|key| match self.alone {
            Some(alone) if alone.0 == key => alone,
            _ => (key, now),
        });
        let alone = self.alone;
        let is_alone = alone.is_some_and(|(_, since)| now.since(since) >= ALONE_TIMEOUT);
        let leaves = |_: &u64, client: &mut Connection| {
            let active = client.client.active;
            is_alone || active.is_some_and(|active| now.since(active) >= SILENCE_TIMEOUT)
        };
        let leaving: Vec<_> = clients.extract_if(leaves).collect();
        for (_, client) in leaving {
            self.pass_on(client, true);
        }
    }

    /// Passes a client on to the workers. epoll may know it.
    fn pass_on(&self, client: Connection, is_known: bool) {
        if is_known {
            self.forget(client.transport());
        }
        self.setup.admission.enqueue(client);
    }

    /// Lets epoll tell of a connection no more.
    fn forget(&self, socket: &TcpStream) {
        // It fails if epoll does not know it.
        let _ = epoll::delete(&self.epoll, socket);
    }

    /// Answers what has arrived from a client, which epoll may know. It stays here unless it has to
    /// wait for something else than its next request, or sends without pause.
    fn serve(&self, client: Connection, is_known: bool) {
        let service = &self.setup.service;
        let serve = |client: &mut Connection, slot: &_| service.serve(client, slot);
        let end = |client: Connection, ended| match ended {
            Some(CloseReason::TurnOver) if self.passes() => self.pass_on(client, is_known),
            Some(CloseReason::Released | CloseReason::TurnOver)
                if client.client.replies.is_empty() && self.has_room() =>
            {
                self.keep(client, is_known);
            }
            Some(reason) if reason.is_release() => self.pass_on(client, is_known),
            ended => {
                let closes = matches!(
                    ended,
                    Some(CloseReason::PeerClosed | CloseReason::Broken(_))
                );
                // epoll sees a close by itself.
                if !closes {
                    self.forget(client.transport());
                }
                service.end(client, ended);
            }
        };
        let slot = &service.shared.scoreboard.slots()[0];
        pool::do_job(Job::Serve(client), slot, &serve, &end);
    }

    /// Keeps a client, which epoll may know, until it is ready again.
    fn keep(&self, client: Connection, is_known: bool) {
        let key = client.client.number;
        let added = match is_known {
            true => Ok(()),
            false => add(
                &self.epoll,
                client.transport(),
                key,
                EventFlags::IN | EventFlags::RDHUP,
            ),
        };
        match added {
            Ok(()) => drop(self.clients.borrow_mut().insert(key, client)),
            // The system lacks memory for it.
            Err(_) => self.setup.admission.enqueue(client),
        }
    }

    /// Takes a client that was just admitted.
    fn take(&mut self, client: Connection) {
        let is_surplus = self.passes() && self.has_surplus();
        if is_surplus {
            // It has to wait until a worker is free, and the front's clients come first.
            for (_, client) in std::mem::take(self.clients.get_mut()) {
                self.pass_on(client, true);
            }
        }
        match self.has_room() && !(self.passes() && self.is_saturated()) {
            true => self.serve(client, false),
            false => self.pass_on(client, false),
        }
    }

    /// Admits or refuses connections whose PROXY header has arrived or failed.
    fn admit(&mut self, filtered: Vec<Filtered>) {
        for filtered in filtered {
            self.forget(&filtered.0.1);
            if let Some(client) = self.setup.admission.on_filtered(filtered) {
                self.take(client);
            }
        }
    }

    /// Accepts one connection.
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
            // It fails only if the daemon is ending anyway.
            let _ = self.setup.failed.send(Error::system(action, &error.into()));
            let _ = epoll::delete(&self.epoll, &listener.socket);
            self.setup.listeners.remove(index);
            return self.update_listeners();
        };
        let shared = &self.setup.admission.shared;
        shared.metrics.accept_failed(kind);
        let reason = without_errno(&error.into());
        shared.record(&shared.incidents.accept, &reason);
        if kind != AcceptError::Client {
            self.accept_again = Some(now.after(RESOURCE_PAUSE));
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
            self.take(client);
        }
    }

    /// Waits for the PROXY header of a connection, most of which have come with it.
    fn await_header(&mut self, conn: PendingConn, now: Millis) {
        let (number, mut filtered) = (conn.0.number, Vec::new());
        self.setup.proxy_filter.receive(conn, now, &mut filtered);
        self.admit(filtered);
        let newest = self.setup.proxy_filter.newest();
        if let Some((client, stream)) = newest.filter(|(client, _)| client.number == number) {
            // Without memory for it, the header is read when it is late.
            let _ = add(&self.epoll, stream, client.number, EventFlags::IN);
        }
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
        for (_, client) in self.clients.take() {
            self.pass_on(client, true);
        }
        for (listener, _) in &self.setup.listeners {
            // Others may have it, too.
            let _ = epoll::delete(&self.epoll, &listener.socket);
        }
        let Accepting {
            setup, stop, epoll, ..
        } = self;
        let pending = setup.proxy_filter.into_pending();
        for (_, stream) in &pending {
            let _ = epoll::delete(&epoll, stream);
        }
        (pending, stop.map(|(_, to)| to))
    }
}

/// Lets epoll tell of `source` by this key.
fn add(epoll: &OwnedFd, source: impl AsFd, key: u64, flags: EventFlags) -> Result<(), Errno> {
    epoll::add(epoll, source, EventData::new_u64(key), flags)
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
