//! Monotonic clocks, cheap enough to read with every request: a coarse one in milliseconds for idle
//! times, and an exact one for request durations.

use std::time::Duration;

use rustix::time::ClockId;
use serde::{Deserialize, Serialize};

use crate::sync::clock_gettime;

/// A time in milliseconds since some moment before the machine's start (clock_gettime(2),
/// `CLOCK_MONOTONIC_COARSE`). It is accurate to the kernel's tick, 1 to 10 ms, and means the same
/// in every process of the machine.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize,
)]
pub struct Millis(pub u64);

impl Millis {
    /// Returns the current time.
    pub fn now() -> Self {
        let time = clock_gettime(ClockId::MonotonicCoarse);
        // The monotonic clock is never negative (clock_gettime(2)).
        Millis(time.tv_sec as u64 * 1000 + time.tv_nsec as u64 / 1_000_000)
    }

    /// Returns the time elapsed since `earlier`, zero if that is in the future.
    pub fn since(self, earlier: Millis) -> Duration {
        Duration::from_millis(self.0.saturating_sub(earlier.0))
    }

    /// Returns this time plus `time`.
    pub fn after(self, time: Duration) -> Millis {
        Millis(self.0.saturating_add(milliseconds(time)))
    }
}

/// A time in nanoseconds since some moment before the machine's start (clock_gettime(2),
/// `CLOCK_MONOTONIC`). It is exact, and costs three times as much as [`Millis`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Nanos(u64);

impl Nanos {
    /// Earlier than any other time.
    pub const START: Nanos = Nanos(0);

    /// Returns the current time.
    #[inline]
    pub fn now() -> Self {
        let time = clock_gettime(ClockId::Monotonic);
        // The monotonic clock is never negative, and its nanoseconds fill 64 bits after five
        // centuries.
        Nanos(time.tv_sec as u64 * 1_000_000_000 + time.tv_nsec as u64)
    }

    /// Returns the nanoseconds from here to `later`, zero if that is earlier.
    #[inline]
    pub fn until(self, later: Nanos) -> u64 {
        later.0.saturating_sub(self.0)
    }
}

/// Returns `time` in whole milliseconds.
pub fn milliseconds(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}
