//! What is counted of the service, for those who watch it: written by whoever does it, without waiting for anybody, and
//! summed up when somebody asks. `docs/metrics.md` tells what each figure means.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use crate::clock::Nanos;
use crate::command::{BatchCounters, OUTCOMES, Outcome, SLOTS};

/// The names of the kinds of requests: those that only ask, and those that compute or came together with one that does.
pub const KINDS: [&str; 2] = ["asks", "computes"];

/// How the service of a client may end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs)] // they are what docs/metrics.md says
pub enum Closed {
    Left,
    Quit,
    TooLong,
    Idle,
    MadeRoom,
    NotReading,
    Reset,
    Failed,
    Drained,
    HandedOver,
    Panicked,
}

/// The names of [`Closed`], in its order.
pub const CLOSED: [&str; 11] = [
    "left",
    "quit",
    "too_long",
    "idle",
    "made_room",
    "not_reading",
    "reset",
    "failed",
    "drained",
    "handed_over",
    "panicked",
];

/// Why a client may be refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs)]
pub enum Refused {
    Full,
    Address,
    Uncounted,
    BeforeHeader,
    HeaderMissing,
    HeaderMalformed,
    HeaderTooLong,
    HeaderLate,
}

/// The names of [`Refused`], in its order.
pub const REFUSED: [&str; 8] = [
    "full",
    "address",
    "apart",
    "before_header",
    "header_missing",
    "header_malformed",
    "header_too_long",
    "header_late",
];

/// Why an accept may fail.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs)]
pub enum AcceptError {
    Client,
    Descriptors,
    Memory,
    Other,
}

/// The names of [`AcceptError`], in its order.
pub const ACCEPT_ERRORS: [&str; 4] = ["client", "descriptors", "memory", "other"];

/// The upper ends of the buckets of [`HistogramSnapshot`], in nanoseconds; one more bucket has none.
pub const BOUNDS: [u64; 18] = [
    10_000,
    20_000,
    50_000,
    100_000,
    200_000,
    500_000,
    1_000_000,
    2_000_000,
    5_000_000,
    10_000_000,
    20_000_000,
    50_000_000,
    100_000_000,
    200_000_000,
    500_000_000,
    1_000_000_000,
    2_000_000_000,
    5_000_000_000,
];

/// How many times took how long.
#[derive(Default)]
struct Histogram {
    buckets: [AtomicU64; BOUNDS.len() + 1],
    nanoseconds: AtomicU64,
}

impl Histogram {
    #[inline]
    fn observe(&self, times: u64, nanoseconds: u64) {
        // Most take the first few: they are found sooner in this way than by halving.
        let bucket = BOUNDS.iter().position(|bound| nanoseconds <= *bound);
        add(&self.buckets[bucket.unwrap_or(BOUNDS.len())], times);
        add(&self.nanoseconds, nanoseconds.saturating_mul(times));
    }
}

/// What some of the workers have counted. In cache lines of its own.
#[repr(align(128))]
pub struct Shard {
    outcomes: [AtomicU64; SLOTS],
    received: AtomicU64,
    sent: AtomicU64,
    /// By [`KINDS`].
    durations: [Histogram; KINDS.len()],
    waits: Histogram,
    closed: [AtomicU64; CLOSED.len()],
}

impl Default for Shard {
    fn default() -> Self {
        Shard {
            outcomes: [const { AtomicU64::new(0) }; SLOTS],
            received: AtomicU64::default(),
            sent: AtomicU64::default(),
            durations: Default::default(),
            waits: Histogram::default(),
            closed: Default::default(),
        }
    }
}

impl Shard {
    /// `received` bytes were read at `begun`, held the requests in `tally`, and `sent` bytes of replies have been written.
    #[inline]
    pub fn answered(&self, tally: &BatchCounters, begun: Nanos, received: usize, sent: usize) {
        let mut requests = 0;
        for (outcome, count) in tally.counts() {
            add(&self.outcomes[outcome], count.into());
            requests += u64::from(count);
        }
        if requests > 0 {
            let durations = &self.durations[usize::from(tally.computes())];
            durations.observe(requests, begun.until(Nanos::now()));
        }
        add(&self.received, received as u64);
        self.sent(sent);
    }

    /// So many more bytes of replies were written.
    #[inline]
    pub fn sent(&self, bytes: usize) {
        if bytes > 0 {
            add(&self.sent, bytes as u64);
        }
    }

    /// A request made the server fail, nobody knows which.
    pub fn failed(&self) {
        let internal = Outcome::at(None, OUTCOMES.len() - 1);
        add(&self.outcomes[internal.index()], 1);
    }

    /// A worker has taken a client that was accepted at this moment.
    pub fn waited(&self, since: Nanos) {
        self.waits.observe(1, since.until(Nanos::now()));
    }

    /// The service of a client has ended.
    pub fn closed(&self, how: Closed) {
        add(&self.closed[how as usize], 1);
    }
}

/// All that is counted.
pub struct Metrics {
    /// One for each worker would be memory that every idle client costs, one for all would have them wait for each other.
    shares: Box<[Shard]>,
    accepted: AtomicU64,
    refused: [AtomicU64; REFUSED.len()],
    accept_errors: [AtomicU64; ACCEPT_ERRORS.len()],
    handovers: AtomicU64,
    /// Nanoseconds.
    handover: AtomicU64,
}

impl Metrics {
    /// Nothing yet.
    pub fn new() -> Self {
        let cores = std::thread::available_parallelism().map_or(1, usize::from);
        let shares = (4 * cores).next_power_of_two().min(64);
        Metrics {
            shares: (0..shares).map(|_| Shard::default()).collect(),
            accepted: AtomicU64::default(),
            refused: Default::default(),
            accept_errors: Default::default(),
            handovers: AtomicU64::default(),
            handover: AtomicU64::default(),
        }
    }

    /// Where the worker with this number counts.
    #[inline]
    pub fn share(&self, worker: usize) -> &Shard {
        // Their number is a power of two.
        &self.shares[worker & (self.shares.len() - 1)]
    }

    /// One more client is accepted; returns its number.
    pub fn accept(&self) -> u64 {
        self.accepted.fetch_add(1, Ordering::Relaxed) + 1
    }

    /// How many clients have been accepted.
    pub fn accepted(&self) -> u64 {
        self.accepted.load(Ordering::Relaxed)
    }

    /// A client was refused.
    pub fn refuse(&self, why: Refused) {
        add(&self.refused[why as usize], 1);
    }

    /// An accept failed.
    pub fn accept_failed(&self, why: AcceptError) {
        add(&self.accept_errors[why as usize], 1);
    }

    /// Goes on counting where the last process ended: its clients have been `accepted` there, and `handovers` went before.
    pub fn go_on(&self, accepted: u64, handovers: u64) {
        self.accepted.store(accepted, Ordering::Relaxed);
        self.handovers.store(handovers, Ordering::Relaxed);
    }

    /// How often the clients have come from another process.
    pub fn handovers(&self) -> u64 {
        self.handovers.load(Ordering::Relaxed)
    }

    /// The last hand-over took so long.
    pub fn handed_over(&self, time: Duration) {
        let nanoseconds = u64::try_from(time.as_nanos()).unwrap_or(u64::MAX);
        self.handover.store(nanoseconds, Ordering::Relaxed);
    }

    /// All figures now.
    pub fn sums(&self) -> MetricsSnapshot {
        let mut sums = MetricsSnapshot {
            accepted: self.accepted(),
            refused: self.refused.each_ref().map(load),
            accept_errors: self.accept_errors.each_ref().map(load),
            handovers: self.handovers(),
            handover: Duration::from_nanos(load(&self.handover)),
            ..MetricsSnapshot::default()
        };
        for share in &self.shares {
            add_histogram(&mut sums.outcomes, &share.outcomes);
            add_histogram(&mut sums.closed, &share.closed);
            sums.received += load(&share.received);
            sums.sent += load(&share.sent);
            for (sum, durations) in sums.durations.iter_mut().zip(&share.durations) {
                sum.add_histogram(durations);
            }
            sums.waits.add_histogram(&share.waits);
        }
        sums
    }
}

impl Default for Metrics {
    fn default() -> Self {
        Metrics::new()
    }
}

/// The figures of one moment.
#[derive(Clone, Debug)]
pub struct MetricsSnapshot {
    /// By the index of the [`Outcome`].
    pub outcomes: [u64; SLOTS],
    /// By [`Closed`].
    pub closed: [u64; CLOSED.len()],
    /// By [`Refused`].
    pub refused: [u64; REFUSED.len()],
    /// By [`AcceptError`].
    pub accept_errors: [u64; ACCEPT_ERRORS.len()],
    /// Clients accepted.
    pub accepted: u64,
    /// Bytes read.
    pub received: u64,
    /// Bytes written.
    pub sent: u64,
    /// How long requests took, by [`KINDS`].
    pub durations: [HistogramSnapshot; KINDS.len()],
    /// How long clients waited for a worker.
    pub waits: HistogramSnapshot,
    /// How often the clients came from another process.
    pub handovers: u64,
    /// How long that took the last time.
    pub handover: Duration,
}

impl MetricsSnapshot {
    /// How many requests have been answered.
    pub fn requests(&self) -> u64 {
        self.outcomes.iter().sum()
    }
}

impl Default for MetricsSnapshot {
    fn default() -> Self {
        MetricsSnapshot {
            outcomes: [0; SLOTS],
            closed: Default::default(),
            refused: Default::default(),
            accept_errors: Default::default(),
            accepted: 0,
            received: 0,
            sent: 0,
            durations: Default::default(),
            waits: HistogramSnapshot::default(),
            handovers: 0,
            handover: Duration::ZERO,
        }
    }
}

/// The sum of histograms.
#[derive(Clone, Debug, Default)]
pub struct HistogramSnapshot {
    /// How many there are in each bucket of [`BOUNDS`], and beyond.
    pub buckets: [u64; BOUNDS.len() + 1],
    /// All together.
    pub sum: Duration,
}

impl HistogramSnapshot {
    fn add_histogram(&mut self, histogram: &Histogram) {
        add_histogram(&mut self.buckets, &histogram.buckets);
        self.sum += Duration::from_nanos(load(&histogram.nanoseconds));
    }
}

fn add_histogram(sums: &mut [u64], counters: &[AtomicU64]) {
    for (sum, counter) in sums.iter_mut().zip(counters) {
        *sum += load(counter);
    }
}

#[inline]
fn add(counter: &AtomicU64, more: u64) {
    counter.fetch_add(more, Ordering::Relaxed);
}

fn load(counter: &AtomicU64) -> u64 {
    counter.load(Ordering::Relaxed)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::command::CommandClass;

    #[test]
    fn what_the_workers_count_is_summed_up() {
        let metrics = Metrics::new();
        let mut tally = BatchCounters::new();
        tally.note(Outcome::value(1));
        tally.note(Outcome::value(1));
        for worker in [0, 1, 1000] {
            metrics.share(worker).answered(&tally, Nanos::now(), 8, 6);
            metrics.share(worker).closed(Closed::Panicked);
        }
        let sums = metrics.sums();
        assert_eq!(sums.requests(), 6);
        assert_eq!(sums.outcomes[Outcome::value(1).index()], 6);
        assert_eq!((sums.received, sums.sent), (24, 18));
        assert_eq!(sums.durations[0].buckets.iter().sum::<u64>(), 6);
        tally.note(Outcome::value(2).of(CommandClass::Compute));
        metrics.share(1).answered(&tally, Nanos::now(), 4, 3);
        let durations = metrics.sums().durations;
        let counts = durations.map(|times| times.buckets.iter().sum::<u64>());
        assert_eq!(counts, [6, 3], "all that came together");
        assert_eq!(sums.closed.last(), Some(&3));
    }

    #[test]
    fn a_time_belongs_to_the_first_bucket_that_it_does_not_exceed() {
        let histogram = Histogram::default();
        for nanoseconds in [0, 10_000, 10_001, u64::MAX] {
            histogram.observe(1, nanoseconds);
        }
        let counts = histogram.buckets.each_ref().map(load);
        assert_eq!((counts[0], counts[1], counts[BOUNDS.len()]), (2, 1, 1));
        assert!(BOUNDS.is_sorted());
    }
}
