//! Workload: what all clients send, when, for how long, and the replies they expect.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use rustix::time::{ClockId, clock_gettime};
use shared::dial::Server;

use super::Stats;
use super::replies::Expected;

/// A second in nanoseconds.
const SECOND: u128 = 1_000_000_000;

/// Clock of the CPU time to measure.
type CpuClock = Box<dyn Fn() -> Duration + Send + Sync>;

/// What all clients do. The generators of all threads share it.
pub struct Workload {
    /// The server.
    pub address: SocketAddr,
    /// Its name and protocol.
    pub server: Server,
    /// Whether request and replies are bytes as they are, and no lines.
    pub is_raw: bool,
    /// The request, without its line end. Several of the same length, separated by line ends, are
    /// sent in turn, by each client from another one on.
    pub request: Vec<u8>,
    /// What each reply must be.
    pub expected: Expected,
    /// Number of clients.
    pub clients: u64,
    /// Number of requests that each client keeps in flight, at most.
    pub depth: u32,
    /// Requests per second of all clients together (open loop). Without it clients send when they
    /// are answered (closed loop).
    pub rate: Option<u32>,
    /// Time before the measurement.
    pub warm_up: Duration,
    /// Duration of the measurement.
    pub duration: Duration,
    /// How long a client waits for a connection or a reply.
    pub timeout: Duration,
    /// Whether each client closes after one reply, and connects again.
    pub reconnects: bool,
    /// Whether to poll without sleeping.
    pub spins: bool,
    /// Number of loopback addresses that clients connect from in turn, each with its own ports; 0
    /// lets the system choose.
    pub sources: u8,
    /// The clock of the CPU time that [`Stats::cpu`] is to be: that of the generator's thread.
    pub cpu_clock: CpuClock,
    /// Number of right replies so far.
    pub answered: AtomicU64,
    /// Number of errors so far.
    pub errors: AtomicU64,
    /// Whether no other clients are counted.
    pub is_alone: bool,
    /// The longest wait for the last replies of an interrupted load.
    pub last_replies: Duration,
    /// Whether the load was ended before its time.
    is_interrupted: AtomicBool,
    /// Whether a client has lost its connection, so that counts may be lower.
    has_lost: AtomicBool,
}

impl Workload {
    /// Returns a workload of one client that sends this request in a closed loop, without an end.
    pub fn new(address: SocketAddr, request: &[u8], expected: Expected) -> Self {
        Workload {
            address,
            server: Server::new(address.ip().to_string(), address.port()),
            is_raw: false,
            request: request.to_vec(),
            expected,
            clients: 1,
            depth: 1,
            rate: None,
            warm_up: Duration::ZERO,
            duration: Duration::from_hours(24),
            timeout: Duration::from_secs(10),
            reconnects: false,
            spins: false,
            sources: 0,
            cpu_clock: Box::new(thread_cpu_time),
            answered: AtomicU64::new(0),
            errors: AtomicU64::new(0),
            is_alone: false,
            last_replies: Duration::from_secs(1),
            is_interrupted: AtomicBool::new(false),
            has_lost: AtomicBool::new(false),
        }
    }

    /// Ends the load now.
    pub fn interrupt(&self) {
        self.is_interrupted.store(true, Ordering::Relaxed);
    }

    /// Returns whether the load was ended before its time.
    pub fn is_interrupted(&self) -> bool {
        self.is_interrupted.load(Ordering::Relaxed)
    }

    /// Lets the load run again after an interrupt.
    pub fn resume(&self) {
        self.is_interrupted.store(false, Ordering::Relaxed);
    }

    /// Returns whether this reply to WHO may be right: all clients are counted, unless some have
    /// lost their connection.
    pub(super) fn allows(&self, count: u64) -> bool {
        let has_others = count > self.clients && !self.is_alone;
        count == self.clients || has_others || self.has_lost.load(Ordering::Relaxed)
    }

    /// Notes that a client lost its connection.
    pub(super) fn lose(&self) {
        self.has_lost.store(true, Ordering::Relaxed);
    }

    /// Adds to the counters what has happened since `before`.
    pub(super) fn publish(&self, stats: &Stats, before: &mut (u64, u64)) {
        let now = (stats.answered, stats.errors.total());
        self.answered.fetch_add(now.0 - before.0, Ordering::Relaxed);
        self.errors.fetch_add(now.1 - before.1, Ordering::Relaxed);
        *before = now;
    }
}

fn thread_cpu_time() -> Duration {
    let time = clock_gettime(ClockId::ThreadCPUTime);
    Duration::new(time.tv_sec as u64, time.tv_nsec as u32)
}

/// Time window in which requests and replies count; empty at first.
#[derive(Clone, Copy)]
pub struct Window {
    pub from: Instant,
    pub to: Instant,
    /// Schedule of an open loop.
    pub schedule: Option<Schedule>,
}

impl Window {
    /// Returns whether this moment is within the window.
    pub fn holds(&self, moment: Instant) -> bool {
        self.from <= moment && moment < self.to
    }

    /// Returns whether the latency counts of a request that was due or sent at `from`, and has its
    /// reply `now`. In a closed loop late replies count, too: otherwise a stall at the end would
    /// not show.
    pub fn counts(&self, from: Instant, now: Instant) -> bool {
        match self.schedule {
            Some(_) => self.holds(from),
            None => from < self.to && self.from <= now,
        }
    }
}

/// Schedule of an open loop: when each request is due, no matter whether earlier ones were
/// answered. The clients take turns.
#[derive(Clone, Copy)]
pub struct Schedule {
    begin: Instant,
    rate: u128,
    clients: u128,
}

impl Schedule {
    /// Returns a schedule by which these clients together send `rate` requests per second from
    /// `begin` on.
    pub fn new(begin: Instant, rate: u32, clients: u64) -> Self {
        Schedule {
            begin,
            rate: rate.into(),
            clients: clients.into(),
        }
    }

    /// Returns when a request of this client is due; both are numbered from 0.
    pub fn due(&self, client: u64, request: u64) -> Instant {
        let number = u128::from(request) * self.clients + u128::from(client);
        let nanoseconds = number * SECOND / self.rate;
        self.begin + Duration::from_nanos(u64::try_from(nanoseconds).unwrap_or(u64::MAX))
    }

    /// Returns how many requests of this client are due before this moment.
    pub fn due_before(&self, client: u64, moment: Instant) -> u64 {
        let passed = moment.saturating_duration_since(self.begin).as_nanos();
        let all = (passed * self.rate).div_ceil(SECOND);
        let own = all.saturating_sub(client.into()).div_ceil(self.clients);
        u64::try_from(own).unwrap_or(u64::MAX)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_clients_take_turns_at_the_rate() {
        let begin = Instant::now();
        let nanosecond = Duration::from_nanos(1);
        let third = Schedule::new(begin, 3, 2).due(1, 0) - begin;
        assert_eq!(third, Duration::from_nanos(333_333_333));
        for rate in [1, 3, 7, 1000, 999_983, 10_000_000] {
            for clients in [1, 2, 50] {
                let schedule = Schedule::new(begin, rate, clients);
                for (client, request) in [(0, 0), (0, 5), (clients - 1, 0), (clients - 1, 77)] {
                    let due = schedule.due(client, request);
                    assert_eq!(schedule.due_before(client, due), request);
                    assert_eq!(schedule.due_before(client, due + nanosecond), request + 1);
                }
            }
        }
    }
}
