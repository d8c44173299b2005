//! Until when something must be done.

use std::time::{Duration, Instant};

use super::Failure;

/// No wait is shorter, because none at all is refused by the system.
const SHORTEST_WAIT: Duration = Duration::from_millis(1);

/// When the time for something is over.
#[derive(Clone, Copy, Debug)]
pub struct Deadline {
    begun: Instant,
    timeout: Duration,
}

impl Deadline {
    /// The time begins.
    pub fn after(timeout: Duration) -> Self {
        Deadline {
            begun: Instant::now(),
            timeout,
        }
    }

    /// What is left of the time, never nothing; if it is over, the failure of what was being done.
    pub fn left(&self, doing: impl FnOnce() -> String) -> Result<Duration, Failure> {
        match self.timeout.checked_sub(self.begun.elapsed()) {
            Some(left) if !left.is_zero() => Ok(left.max(SHORTEST_WAIT)),
            _ => Err(self.missed(doing())),
        }
    }

    /// An equal share of what is left for each of so many things.
    pub fn share(&self, of: usize, doing: impl FnOnce() -> String) -> Result<Duration, Failure> {
        let of = u32::try_from(of).unwrap_or(u32::MAX).max(1);
        Ok((self.left(doing)? / of).max(SHORTEST_WAIT))
    }

    /// That this was being done when the time was over.
    pub fn missed(&self, doing: String) -> Failure {
        Failure::Late {
            doing,
            timeout: self.timeout,
        }
    }
}
