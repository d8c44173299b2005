//! Deadlines of the client.

use std::time::{Duration, Instant};

use super::socket::SHORTEST_WAIT;
use super::{Failure, FailureKind};

/// A deadline.
#[derive(Clone, Copy, Debug)]
pub struct Deadline {
    moment: Instant,
    /// The whole timeout, of which the deadline may be a share.
    timeout: Duration,
}

impl Deadline {
    /// Returns a deadline after this time, counted from now.
    pub fn after(timeout: Duration) -> Self {
        let moment = Instant::now() + timeout;
        Deadline { moment, timeout }
    }

    /// Returns the moment of the deadline.
    pub fn moment(&self) -> Instant {
        self.moment
    }

    /// Returns the time left, which is never zero, or a failure that says what was being done.
    pub fn left(&self, doing: impl FnOnce() -> String) -> Result<Duration, Failure> {
        match self.moment.saturating_duration_since(Instant::now()) {
            Duration::ZERO => Err(self.missed(&doing())),
            left => Ok(left.max(SHORTEST_WAIT)),
        }
    }

    /// Returns a deadline with an equal share of the time left, for one of `of` steps.
    pub fn share(&self, of: usize) -> Self {
        let of = u32::try_from(of).unwrap_or(u32::MAX).max(1);
        let now = Instant::now();
        let left = self.moment.saturating_duration_since(now);
        let moment = now + (left / of).max(SHORTEST_WAIT);
        Deadline { moment, ..*self }
    }

    /// Returns the failure of an action that was not done in time.
    pub fn missed(&self, doing: &str) -> Failure {
        let text = format!("{doing} within {} s", self.timeout.as_secs_f64());
        Failure::new(FailureKind::Late, text)
    }
}
