//! What all clients send, what they must get, and what counts.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use super::replies::Expected;

/// A block of requests is about so long: what is sent at once.
const BLOCK: usize = 64 * 1024;

/// What all clients send, what they must get, and what counts.
pub struct Terms {
    pub address: SocketAddr,
    /// How long a request is, its end included.
    pub length: usize,
    /// The request, again and again.
    pub block: Vec<u8>,
    pub expected: Expected,
    /// How many clients there are, and replies to WHO must count.
    pub clients: u64,
    pub timeout: Duration,
}

impl Terms {
    /// All clients send this request.
    pub fn new(address: SocketAddr, request: &[u8], depth: u32, expected: Expected) -> Self {
        let line = [request, b"\n"].concat();
        // One more than fits, so that a block can begin in the middle of a request.
        let times = (depth as usize).min(BLOCK / line.len()) + 1;
        Terms {
            address,
            length: line.len(),
            block: line.repeat(times),
            expected,
            clients: 0,
            timeout: Duration::MAX,
        }
    }
}

/// From when to when replies count; at first never.
#[derive(Clone, Copy)]
pub struct Window {
    pub from: Instant,
    pub to: Instant,
}

impl Window {
    pub fn holds(&self, moment: Instant) -> bool {
        self.from <= moment && moment < self.to
    }

    /// Whether what was on its way from one moment to the other was so within this time.
    pub fn overlaps(&self, sent: Instant, came: Instant) -> bool {
        sent < self.to && self.from <= came
    }
}
