//! Workload: what all clients send, the replies they expect, and what is measured.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use super::replies::Expected;

/// Approximate size in bytes of a block of requests, which one call sends.
const BLOCK: usize = 64 * 1024;

/// A second in nanoseconds.
const SECOND: u128 = 1_000_000_000;

/// What all clients send, and the replies they expect.
pub struct Workload {
    pub address: SocketAddr,
    /// Length of a request, its end included.
    pub length: usize,
    /// The request, repeated.
    pub block: Vec<u8>,
    pub expected: Expected,
    /// Number of clients: the least valid reply to WHO.
    pub clients: u64,
    pub timeout: Duration,
}

impl Workload {
    /// Returns a workload of this request.
    pub fn new(address: SocketAddr, request: &[u8], depth: u32, expected: Expected) -> Self {
        let line = [request, b"\n"].concat();
        // One more than needed, so that a block can begin within a request.
        let times = (depth as usize).min(BLOCK / line.len()) + 1;
        Workload {
            address,
            length: line.len(),
            block: line.repeat(times),
            expected,
            clients: 0,
            timeout: Duration::MAX,
        }
    }
}

/// Time window in which requests and replies count; empty at first.
#[derive(Clone, Copy)]
pub struct Window {
    pub from: Instant,
    pub to: Instant,
    /// Schedule of an open loop. Without it each client sends its next request when the last is
    /// answered.
    pub schedule: Option<Schedule>,
}

impl Window {
    /// Returns whether this moment is within the window.
    pub fn holds(&self, moment: Instant) -> bool {
        self.from <= moment && moment < self.to
    }

    /// Returns whether a request that was in flight from `sent` to `came` overlaps the window.
    pub fn overlaps(&self, sent: Instant, came: Instant) -> bool {
        sent < self.to && self.from <= came
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
        let after = |nanoseconds| begin + Duration::from_nanos(nanoseconds);
        // A third of a second each.
        let schedule = Schedule::new(begin, 3, 2);
        for (client, request, nanoseconds) in [
            (0, 0, 0),
            (1, 0, 333_333_333),
            (0, 1, 666_666_666),
            (1, 1, 1_000_000_000),
            (0, 3, 2_000_000_000),
        ] {
            assert_eq!(schedule.due(client, request), after(nanoseconds));
        }
        for rate in [1, 3, 7, 1000, 999_983, 10_000_000] {
            for clients in [1, 2, 50] {
                let schedule = Schedule::new(begin, rate, clients);
                for (client, request) in [(0, 0), (0, 5), (clients - 1, 0), (clients - 1, 77)] {
                    let due = schedule.due(client, request);
                    let later = due + Duration::from_nanos(1);
                    assert_eq!(schedule.due_before(client, due), request);
                    assert_eq!(schedule.due_before(client, later), request + 1);
                }
            }
        }
        assert_eq!(schedule.due_before(1, begin), 0);
    }
}
