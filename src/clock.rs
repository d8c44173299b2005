//! Monotonic clocks, cheap enough to be read with every request: one in milliseconds, by which idle times are measured, and an
//! exact one, by which requests are.

use std::time::Duration;

use rustix::time::ClockId;

use crate::sync::clock_gettime;

/// A moment, in milliseconds since some moment before the machine's start (clock_gettime(2), `CLOCK_MONOTONIC_COARSE`).
/// It is accurate to the kernel's tick, 1 to 10 ms, and means the same in every process of the machine.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Millis(pub u64);

impl Millis {
    /// The present moment.
    pub fn now() -> Self {
        let time = clock_gettime(ClockId::MonotonicCoarse);
        // The monotonic clock is never negative (clock_gettime(2)).
        Millis(time.tv_sec as u64 * 1000 + time.tv_nsec as u64 / 1_000_000)
    }

    /// How long ago `earlier` was, zero if it is yet to come.
    pub fn since(self, earlier: Millis) -> Duration {
        Duration::from_millis(self.0.saturating_sub(earlier.0))
    }

    /// This moment and `time` more.
    pub fn after(self, time: Duration) -> Millis {
        Millis(self.0.saturating_add(milliseconds(time)))
    }
}

/// A moment, in nanoseconds since some moment before the machine's start (clock_gettime(2), `CLOCK_MONOTONIC`): exact, and
/// three times as dear as [`Millis`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Nanos(u64);

impl Nanos {
    /// Before any moment there was.
    pub const START: Nanos = Nanos(0);

    /// The present moment.
    #[inline]
    pub fn now() -> Self {
        let time = clock_gettime(ClockId::Monotonic);
        // The monotonic clock is never negative, and its nanoseconds fill 64 bits after five centuries.
        Nanos(time.tv_sec as u64 * 1_000_000_000 + time.tv_nsec as u64)
    }

    /// How many nanoseconds it is from here to `later`; none if that was before.
    #[inline]
    pub fn until(self, later: Nanos) -> u64 {
        later.0.saturating_sub(self.0)
    }
}

/// `time` in whole milliseconds.
pub fn milliseconds(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}
