//! Until when something must be done.

use std::time::{Duration, Instant};

use super::Failure;
use super::socket::SHORTEST_WAIT;

/// When the time for something is over.
#[derive(Clone, Copy, Debug)]
pub struct Deadline {
    begun: Instant,
    timeout: Duration,
    /// The time of which this is all, or a share.
    whole: Duration,
}

impl Deadline {
    /// The time begins.
    pub fn after(timeout: Duration) -> Self {
        Deadline {
            begun: Instant::now(),
            timeout,
            whole: timeout,
        }
    }

    /// The same time, from now on.
    pub fn again(&self) -> Self {
        let begun = Instant::now();
        Deadline { begun, ..*self }
    }

    /// The moment.
    pub fn moment(&self) -> Instant {
        // Centuries are as good as any time that no clock reaches.
        let far = self.begun + Duration::from_secs(1 << 32);
        self.begun.checked_add(self.timeout).unwrap_or(far)
    }

    /// What is left of the time, never nothing; if it is over, the failure of what was being done.
    pub fn left(&self, doing: impl FnOnce() -> String) -> Result<Duration, Failure> {
        match self.timeout.checked_sub(self.begun.elapsed()) {
            Some(left) if !left.is_zero() => Ok(left.max(SHORTEST_WAIT)),
            _ => Err(self.missed(doing())),
        }
    }

    /// An equal share of what is left for each of so many things.
    pub fn share(&self, of: usize) -> Self {
        let of = u32::try_from(of).unwrap_or(u32::MAX).max(1);
        let left = self.timeout.saturating_sub(self.begun.elapsed());
        Deadline {
            begun: Instant::now(),
            timeout: (left / of).max(SHORTEST_WAIT),
            ..*self
        }
    }

    /// That this was being done when the time was over.
    pub fn missed(&self, doing: String) -> Failure {
        Failure::Late {
            doing,
            timeout: self.whole,
        }
    }
}
