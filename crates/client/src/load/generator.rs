//! Generator: a share of the clients on one epoll instance, so that requests cost the generator
//! less than the server.

use std::mem::MaybeUninit;
use std::net::{Ipv4Addr, TcpStream};
use std::ops::Range;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::{Duration, Instant};

use rustix::event::epoll::{self, CreateFlags, EventData, EventFlags};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use shared::dial::LONGEST_REPLY;

use super::client::{Client, Requests};
use super::replies::CHUNK;
use super::workload::{Schedule, Window, Workload};
use super::{Error, Stats};

/// The usual number of clients that wait for their first reply at the same time: the server's
/// queues are short.
pub const AT_ONCE: usize = 32;

/// Interval between checks of time-outs.
const CHECK_INTERVAL: Duration = Duration::from_millis(10);

/// The most events per system call.
const MAX_EVENTS: usize = 1024;

/// What clients with an event send.
#[derive(Clone, Copy, PartialEq)]
enum Sends {
    /// Nothing.
    Nothing,
    /// One request per connection.
    Once,
    /// Requests up to the depth.
    All,
}

/// Connected clients and their load.
pub struct Generator {
    workload: Arc<Workload>,
    requests: Requests,
    /// Index of the first client among those of all threads.
    first: u64,
    /// The clients; the index is the key of the socket in epoll.
    clients: Vec<Client>,
    /// Number of connections so far.
    connections: u64,
    epoll: OwnedFd,
    scratch: Box<[u8]>,
    stats: Stats,
    window: Window,
    /// Number of requests of these clients' schedule that were checked.
    checked: u64,
    /// Counters that were published already.
    published: (u64, u64),
}

impl Generator {
    /// Connects these of the workload's clients, at most `at_once` of them at a time. Each sends
    /// one request; its reply shows that the server serves it.
    pub fn connect(
        workload: Arc<Workload>,
        numbers: Range<u64>,
        at_once: usize,
    ) -> Result<Self, Error> {
        let now = Instant::now();
        let mut generator = Generator {
            requests: Requests::new(&workload),
            first: numbers.start,
            clients: numbers.map(Client::new).collect(),
            workload,
            connections: 0,
            epoll: epoll::create(CreateFlags::CLOEXEC).map_err(system)?,
            scratch: vec![0; CHUNK + LONGEST_REPLY].into_boxed_slice(),
            stats: Stats::default(),
            window: Window {
                from: now,
                to: now,
                schedule: None,
            },
            checked: 0,
            published: (0, 0),
        };
        Generator::raise_descriptor_limit();
        generator.connect_all(at_once)?;
        Ok(generator)
    }

    fn connect_all(&mut self, at_once: usize) -> Result<(), Error> {
        let (mut begun, mut served, mut checked) = (0, 0, Instant::now());
        while served < self.clients.len() {
            while begun < self.clients.len() && begun - served < at_once {
                self.begin(begun)?;
                begun += 1;
            }
            self.poll_strictly(CHECK_INTERVAL, Sends::Once)?;
            served = self.stats.received() as usize;
            let now = Instant::now();
            if now.saturating_duration_since(checked) >= CHECK_INTERVAL {
                checked = now;
                let timeout = self.workload.timeout;
                let mut begun = self.clients[..begun].iter();
                if begun.any(|client| client.is_late(now, timeout)) {
                    return Err(Error::Timeout);
                }
            }
        }
        Ok(())
    }

    /// Raises the limit on open files (RLIMIT_NOFILE) as far as this user may. If that leaves no
    /// room for all clients, connecting fails.
    pub fn raise_descriptor_limit() {
        let maximum = getrlimit(Resource::Nofile).maximum;
        let current = maximum;
        let _ = setrlimit(Resource::Nofile, Rlimit { current, maximum });
    }

    /// Checks that no client has lost its connection or received anything unasked.
    pub fn check(&mut self) -> Result<(), Error> {
        self.poll_strictly(Duration::ZERO, Sends::Nothing)
    }

    /// Returns the sockets of all clients that are connected.
    pub fn sockets(&self) -> impl Iterator<Item = &TcpStream> + Clone {
        self.clients
            .iter()
            .filter_map(|client| client.socket.as_ref())
    }

    /// Returns Jain's fairness index of the clients' replies in the last run: 1 if all had the same
    /// number, and 1/n if one of n had all.
    pub fn fairness(&self) -> f64 {
        let replies = self.clients.iter().map(|client| client.replies as f64);
        let squares: f64 = replies.clone().map(|number| number * number).sum();
        replies.sum::<f64>().powi(2) / (squares * self.clients.len() as f64)
    }

    /// Runs the load from this moment to its end, waits for the last replies, and returns the stats
    /// since the last run.
    pub fn run(&mut self, begin: Instant) -> Result<Stats, Error> {
        let workload = self.workload.clone();
        let schedule = |rate| Schedule::new(begin, rate, workload.clients);
        self.window = Window {
            from: begin + workload.warm_up,
            to: begin + workload.warm_up.saturating_add(workload.duration),
            schedule: workload.rate.map(schedule),
        };
        self.checked = 0;
        self.published = (0, 0);
        for client in &mut self.clients {
            (client.scheduled, client.replies) = (0, 0);
        }
        self.send_all();
        let mut cpu = None;
        let mut checked = begin;
        loop {
            let now = Instant::now();
            if workload.is_interrupted() {
                self.window.to = self.window.to.min(now);
            }
            if cpu.is_none() && now >= self.window.from {
                cpu = Some((workload.cpu_clock)());
            }
            if now >= self.window.to {
                break;
            }
            if now.saturating_duration_since(checked) >= CHECK_INTERVAL {
                checked = now;
                self.check_timeouts(now);
            }
            let pause = self.send_due().unwrap_or(CHECK_INTERVAL);
            self.poll_once(
                pause.min(self.window.to - now).min(CHECK_INTERVAL),
                Sends::All,
            )?;
        }
        let cpu = cpu.map(|before| (workload.cpu_clock)().saturating_sub(before));
        self.drain()?;
        let mut stats = std::mem::take(&mut self.stats);
        stats.cpu = cpu.unwrap_or_default();
        stats.time = self.window.to.saturating_duration_since(self.window.from);
        Ok(stats)
    }

    /// Lets each client send what it may.
    fn send_all(&mut self) {
        let depth = self.workload.depth;
        for client in &mut self.clients {
            client.send(&self.requests, depth, &self.window, &mut self.stats);
        }
    }

    /// Lets clients send whose requests are due. Returns the time until the next one is due, or
    /// `None` without a schedule.
    fn send_due(&mut self) -> Option<Duration> {
        let schedule = self.window.schedule?;
        let now = Instant::now();
        let clients = self.clients.len() as u64;
        // A client sends all that is due at once, so missed rounds but the last can be skipped.
        let rounds = schedule.due_before(self.first, now).saturating_sub(1);
        self.checked = self.checked.max(rounds * clients);
        loop {
            let (round, key) = (self.checked / clients, self.checked % clients);
            let due = schedule.due(self.first + key, round);
            if due >= now {
                return Some(due - now);
            }
            let (client, depth) = (&mut self.clients[key as usize], self.workload.depth);
            client.send(&self.requests, depth, &self.window, &mut self.stats);
            self.checked += 1;
        }
    }

    /// Sends what was due before the end, and waits for all replies, but not longer than for one.
    fn drain(&mut self) -> Result<(), Error> {
        let (begun, to) = (Instant::now(), self.window.to);
        let sends = match self.window.schedule {
            Some(_) => Sends::All,
            None => Sends::Nothing,
        };
        if sends == Sends::All {
            self.send_all();
        }
        loop {
            let now = Instant::now();
            let passed = now.saturating_duration_since(begun);
            let waits = |client: &Client| {
                client.is_waiting()
                    || client.socket.is_some() && client.unsent(&self.window, to) > 0
            };
            let is_interrupted = self.workload.is_interrupted();
            if !self.clients.iter().any(waits)
                || is_interrupted && passed > self.workload.last_replies
                || passed > self.workload.timeout + 2 * CHECK_INTERVAL
            {
                break;
            }
            self.check_timeouts(now);
            self.poll_once(CHECK_INTERVAL, sends)?;
        }
        for client in &mut self.clients {
            let unsent = client.unsent(&self.window, to);
            if !self.workload.is_interrupted() {
                self.stats.errors.record_unsent(unsent);
            }
            let before = client.unsent(&self.window, self.window.from);
            self.stats.given_up += unsent.saturating_sub(before);
            if client.is_waiting() {
                client.close(&self.window, &mut self.stats);
            }
        }
        self.workload.publish(&self.stats, &mut self.published);
        Ok(())
    }

    /// Disconnects clients that have timed out, and publishes the counters.
    fn check_timeouts(&mut self, now: Instant) {
        for key in 0..self.clients.len() {
            if self.clients[key].is_late(now, self.workload.timeout) {
                self.lose(key, Error::Timeout);
            }
        }
        self.workload.publish(&self.stats, &mut self.published);
    }

    /// Starts to connect a client.
    fn begin(&mut self, key: usize) -> Result<(), Error> {
        let turn = self.connections.checked_rem(self.workload.sources.into());
        let source = turn.map(|turn| (Ipv4Addr::new(127, 0, turn as u8 + 1, 1), 0).into());
        self.connections += 1;
        let socket = self.clients[key].begin(&self.workload, &self.requests, source)?;
        // Edge-triggered, so that no re-arming system call is needed.
        let flags = EventFlags::IN | EventFlags::OUT | EventFlags::RDHUP | EventFlags::ET;
        epoll::add(&self.epoll, socket, EventData::new_u64(key as u64), flags)
            .map_err(|error| Error::NotConnected(error.into()))
    }

    /// Records that a client lost its connection. It sends no more requests.
    fn lose(&mut self, key: usize, error: Error) {
        self.workload.lose();
        self.clients[key].close(&self.window, &mut self.stats);
        self.stats.errors.record_lost(error);
    }

    /// Polls as [`Generator::poll_once`] does; a lost connection is an error.
    fn poll_strictly(&mut self, pause: Duration, sends: Sends) -> Result<(), Error> {
        match self.poll(pause, sends)?.pop() {
            Some((_, error)) => Err(error),
            None => Ok(()),
        }
    }

    fn poll_once(&mut self, pause: Duration, sends: Sends) -> Result<(), Error> {
        for (key, error) in self.poll(pause, sends)? {
            self.lose(key, error);
        }
        Ok(())
    }

    /// Waits for events, receives what has arrived, and lets each client with an event send.
    /// Returns the clients that have lost their connection.
    fn poll(&mut self, pause: Duration, sends: Sends) -> Result<Vec<(usize, Error)>, Error> {
        let pause = match self.workload.spins {
            true => Duration::ZERO,
            false => pause,
        };
        let limit = Timespec::try_from(pause).unwrap_or_default();
        // epoll_wait(2) counts in milliseconds, which is too coarse for requests that are due.
        if self.window.schedule.is_some() && !pause.is_zero() {
            let mut polled = [PollFd::new(&self.epoll, PollFlags::IN)];
            match poll(&mut polled, Some(&limit)) {
                Ok(0) | Err(Errno::INTR) => return Ok(Vec::new()),
                Ok(_) => {}
                Err(error) => return Err(system(error)),
            }
        }
        let mut events = [MaybeUninit::uninit(); MAX_EVENTS];
        let events = match epoll::wait(&self.epoll, &mut events, Some(&limit)) {
            Ok((events, _)) => events,
            Err(Errno::INTR) => return Ok(Vec::new()),
            Err(error) => return Err(system(error)),
        };
        let mut lost = Vec::new();
        for event in events {
            // Copied, because the struct is packed.
            let (key, flags) = (event.data.u64() as usize, event.flags);
            if let Err(error) = self.proceed(key, flags, sends) {
                lost.push((key, error));
            }
        }
        Ok(lost)
    }

    fn proceed(&mut self, key: usize, flags: EventFlags, sends: Sends) -> Result<(), Error> {
        let client = &mut self.clients[key];
        if !client.has_connected()? {
            return Ok(());
        }
        let ends = flags.intersects(EventFlags::RDHUP | EventFlags::HUP | EventFlags::ERR);
        let (workload, window, stats) = (&self.workload, &self.window, &mut self.stats);
        client.receive(workload, &mut self.scratch, window, ends, stats)?;
        let has_reply = client.has_asked && !client.is_waiting();
        match sends {
            Sends::All if workload.reconnects && has_reply => {
                client.close(window, stats);
                return self.begin(key);
            }
            Sends::Once if client.has_asked => {}
            Sends::Once => client.send(&self.requests, 1, window, stats),
            Sends::All => client.send(&self.requests, workload.depth, window, stats),
            Sends::Nothing => {}
        }
        Ok(())
    }
}

fn system(error: Errno) -> Error {
    Error::System(error.into())
}
