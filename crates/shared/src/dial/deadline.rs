//! Deadlines of the client.

use std::time::{Duration, Instant};

use super::Failure;
use super::socket::SHORTEST_WAIT;

/// A deadline: a timeout and when it began.
#[derive(Clone, Copy, Debug)]
pub struct Deadline {
    begun: Instant,
    timeout: Duration,
    /// The whole timeout, of which `timeout` may be a share.
    whole: Duration,
}

impl Deadline {
    /// Returns a deadline after this time, counted from now.
    pub fn after(timeout: Duration) -> Self {
        Deadline {
            begun: Instant::now(),
            timeout,
            whole: timeout,
        }
    }

    /// Returns a deadline with the same timeout, counted from now.
    pub fn again(&self) -> Self {
        let begun = Instant::now();
        Deadline { begun, ..*self }
    }

    /// Returns the moment of the deadline.
    pub fn moment(&self) -> Instant {
        // A sum that overflows is replaced by a moment centuries away, which is as good as never.
        let far = self.begun + Duration::from_secs(1 << 32);
        self.begun.checked_add(self.timeout).unwrap_or(far)
    }

    /// Returns the time left, which is never zero, or a failure that says what was being done.
    pub fn left(&self, doing: impl FnOnce() -> String) -> Result<Duration, Failure> {
        match self.timeout.checked_sub(self.begun.elapsed()) {
            Some(left) if !left.is_zero() => Ok(left.max(SHORTEST_WAIT)),
            _ => Err(self.missed(doing())),
        }
    }

    /// Returns a deadline with an equal share of the time left, for one of `of` steps.
    pub fn share(&self, of: usize) -> Self {
        let of = u32::try_from(of).unwrap_or(u32::MAX).max(1);
        let left = self.timeout.saturating_sub(self.begun.elapsed());
        Deadline {
            begun: Instant::now(),
            timeout: (left / of).max(SHORTEST_WAIT),
            ..*self
        }
    }

    /// Returns the failure of an action that was not done in time.
    pub fn missed(&self, doing: String) -> Failure {
        Failure::Late {
            doing,
            timeout: self.whole,
        }
    }
}
