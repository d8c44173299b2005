//! Metrics of the service: lock-free counters, written by each thread that counts, and summed up
//! when they are read. `docs/metrics.md` describes each metric.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use crate::protocol::PROTOCOLS;
use shared::clock::Nanos;
use shared::command::{BatchCounters, OUTCOMES, Outcome, SLOTS};

/// Names of the kinds of requests: queries, and computations or requests that were received
/// together with one.
pub const KINDS: [&str; 2] = ["asks", "computes"];

/// Declares an enum, and the names of its variants in the metrics, in their order.
macro_rules! labels {
    ($(#[$doc:meta])* $kind:ident $names:ident: $($variant:ident $name:literal,)*) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        #[allow(missing_docs)] // docs/metrics.md describes them
        pub enum $kind { $($variant),* }

        #[doc = concat!("Names of [`", stringify!($kind), "`], in its order.")]
        pub const $names: [&str; [$($name),*].len()] = [$($name),*];
    };
}

labels! {
    /// Reason why the service of a client ended.
    Closed CLOSED:
    Left "left",
    Quit "quit",
    Broken "broken",
    Idle "idle",
    MadeRoom "made_room",
    NotReading "not_reading",
    Reset "reset",
    Failed "failed",
    Drained "drained",
    HandedOver "handed_over",
    Panicked "panicked",
}

labels! {
    /// Reason why a client is refused.
    Refused REFUSED:
    Full "full",
    Address "address",
    Uncounted "uncounted",
    BeforeHeader "before_header",
    HeaderMissing "header_missing",
    HeaderMalformed "header_malformed",
    HeaderTooLong "header_too_long",
    HeaderLate "header_late",
}

labels! {
    /// Reason why an accept fails.
    AcceptError ACCEPT_ERRORS:
    Client "client",
    Descriptors "descriptors",
    Memory "memory",
    Other "other",
}

/// Upper bounds of the buckets of [`HistogramSnapshot`], in microseconds; one more bucket is
/// unbounded.
pub const BOUNDS: [u64; 18] = [
    10, 20, 50, 100, 200, 500, 1_000, 2_000, 5_000, 10_000, 20_000, 50_000, 100_000, 200_000,
    500_000, 1_000_000, 2_000_000, 5_000_000,
];

/// Histogram of durations.
#[derive(Default)]
struct Histogram {
    buckets: [AtomicU64; BOUNDS.len() + 1],
    nanoseconds: AtomicU64,
}

impl Histogram {
    #[inline]
    fn observe(&self, times: u64, nanoseconds: u64) {
        let microseconds = nanoseconds.div_ceil(1000);
        // Most durations fall into the first few buckets, which a linear search finds sooner than a
        // binary one.
        let bucket = BOUNDS.iter().position(|bound| microseconds <= *bound);
        add(&self.buckets[bucket.unwrap_or(BOUNDS.len())], times);
        add(&self.nanoseconds, nanoseconds.saturating_mul(times));
    }
}

/// Counters of some of the workers. In cache lines of its own, against false sharing.
#[repr(align(128))]
pub struct Shard {
    /// For each of [`PROTOCOLS`].
    outcomes: [[AtomicU64; SLOTS]; PROTOCOLS.0.len()],
    received: AtomicU64,
    sent: AtomicU64,
    /// Indexed by [`KINDS`].
    durations: [Histogram; KINDS.len()],
    waits: Histogram,
    closed: [AtomicU64; CLOSED.len()],
}

impl Default for Shard {
    fn default() -> Self {
        Shard {
            outcomes: [const { [const { AtomicU64::new(0) }; SLOTS] }; PROTOCOLS.0.len()],
            received: AtomicU64::default(),
            sent: AtomicU64::default(),
            durations: Default::default(),
            waits: Histogram::default(),
            closed: Default::default(),
        }
    }
}

impl Shard {
    /// Counts a batch of a protocol, given by its place in [`PROTOCOLS`]: `received` bytes were read at `started` and held the requests in `batch`,
    /// and `sent` bytes of replies were written.
    #[inline]
    pub fn answered(
        &self,
        protocol: usize,
        batch: &BatchCounters,
        started: Nanos,
        received: usize,
        sent: usize,
    ) {
        let mut requests = 0;
        for (outcome, count) in batch.counts() {
            add(&self.outcomes[protocol][outcome], count.into());
            requests += u64::from(count);
        }
        if requests > 0 {
            let durations = &self.durations[usize::from(batch.computes())];
            durations.observe(requests, started.until(Nanos::now()));
        }
        add(&self.received, received as u64);
        self.sent(sent);
    }

    /// Counts `bytes` further bytes of replies.
    #[inline]
    pub fn sent(&self, bytes: usize) {
        if bytes > 0 {
            add(&self.sent, bytes as u64);
        }
    }

    /// Counts an internal error, of an unknown request.
    pub fn failed(&self, protocol: usize) {
        let internal = Outcome::at(None, OUTCOMES.len() - 1);
        add(&self.outcomes[protocol][internal.index()], 1);
    }

    /// Counts a client that the front or a worker has taken, accepted at `since`.
    pub fn waited(&self, since: Nanos) {
        self.waits.observe(1, since.until(Nanos::now()));
    }

    /// Counts a client whose service has ended.
    pub fn closed(&self, how: Closed) {
        add(&self.closed[how as usize], 1);
    }
}

/// All counters.
pub struct Metrics {
    /// Counters of some workers each: one shard per worker would cost memory for every idle
    /// client, and a single one would cause contention.
    shards: Box<[Shard]>,
    accepted: AtomicU64,
    refused: [AtomicU64; REFUSED.len()],
    accept_errors: [AtomicU64; ACCEPT_ERRORS.len()],
    handovers: AtomicU64,
    /// Duration of the last handover in nanoseconds.
    handover: AtomicU64,
}

impl Default for Metrics {
    fn default() -> Self {
        let cores = std::thread::available_parallelism().map_or(1, usize::from);
        let shards = (4 * cores).next_power_of_two().min(64);
        Metrics {
            shards: (0..shards).map(|_| Shard::default()).collect(),
            accepted: AtomicU64::default(),
            refused: Default::default(),
            accept_errors: Default::default(),
            handovers: AtomicU64::default(),
            handover: AtomicU64::default(),
        }
    }
}

impl Metrics {
    /// Returns the shard of the worker with this number.
    #[inline]
    pub fn shard(&self, worker: usize) -> &Shard {
        // The number of shards is a power of two.
        &self.shards[worker & (self.shards.len() - 1)]
    }

    /// Counts an accepted client; returns its number.
    pub fn accept(&self) -> u64 {
        self.accepted.fetch_add(1, Ordering::Relaxed) + 1
    }

    /// Returns the number of accepted clients.
    pub fn accepted(&self) -> u64 {
        self.accepted.load(Ordering::Relaxed)
    }

    /// Counts a refused client.
    pub fn refuse(&self, why: Refused) {
        add(&self.refused[why as usize], 1);
    }

    /// Counts a failed accept.
    pub fn accept_failed(&self, why: AcceptError) {
        add(&self.accept_errors[why as usize], 1);
    }

    /// Continues the counters of the previous process: its number of `accepted` clients and of
    /// `handovers`.
    pub fn resume(&self, accepted: u64, handovers: u64) {
        self.accepted.store(accepted, Ordering::Relaxed);
        self.handovers.store(handovers, Ordering::Relaxed);
    }

    /// Returns the number of handovers.
    pub fn handovers(&self) -> u64 {
        self.handovers.load(Ordering::Relaxed)
    }

    /// Records the duration of the last handover.
    pub fn handed_over(&self, time: Duration) {
        let nanoseconds = u64::try_from(time.as_nanos()).unwrap_or(u64::MAX);
        self.handover.store(nanoseconds, Ordering::Relaxed);
    }

    /// Returns the sums of all counters.
    pub fn sums(&self) -> MetricsSnapshot {
        let mut sums = MetricsSnapshot {
            accepted: self.accepted(),
            refused: self.refused.each_ref().map(load),
            accept_errors: self.accept_errors.each_ref().map(load),
            handovers: self.handovers(),
            handover: Duration::from_nanos(load(&self.handover)),
            outcomes: vec![[0; SLOTS]; PROTOCOLS.0.len()],
            ..MetricsSnapshot::default()
        };
        for shard in &self.shards {
            for (sums, outcomes) in sums.outcomes.iter_mut().zip(&shard.outcomes) {
                add_all(sums, outcomes);
            }
            add_all(&mut sums.closed, &shard.closed);
            sums.received += load(&shard.received);
            sums.sent += load(&shard.sent);
            for (sum, durations) in sums.durations.iter_mut().zip(&shard.durations) {
                sum.add(durations);
            }
            sums.waits.add(&shard.waits);
        }
        sums
    }
}

/// Sums of the counters at one moment.
#[derive(Clone, Debug, Default)]
pub struct MetricsSnapshot {
    /// For each of [`PROTOCOLS`], indexed by [`Outcome`].
    pub outcomes: Vec<[u64; SLOTS]>,
    /// Indexed by [`Closed`].
    pub closed: [u64; CLOSED.len()],
    /// Indexed by [`Refused`].
    pub refused: [u64; REFUSED.len()],
    /// Indexed by [`AcceptError`].
    pub accept_errors: [u64; ACCEPT_ERRORS.len()],
    /// Number of accepted clients.
    pub accepted: u64,
    /// Number of bytes read.
    pub received: u64,
    /// Number of bytes written.
    pub sent: u64,
    /// Durations of requests, indexed by [`KINDS`].
    pub durations: [HistogramSnapshot; KINDS.len()],
    /// Times that clients waited for the front or a worker.
    pub waits: HistogramSnapshot,
    /// Number of handovers from another process.
    pub handovers: u64,
    /// Duration of the last handover.
    pub handover: Duration,
}

impl MetricsSnapshot {
    /// Returns the number of answered requests.
    pub fn requests(&self) -> u64 {
        self.outcomes.as_flattened().iter().sum()
    }
}

/// Sum of histograms.
#[derive(Clone, Debug, Default)]
pub struct HistogramSnapshot {
    /// Number of values in each bucket of [`BOUNDS`], and in the unbounded one.
    pub buckets: [u64; BOUNDS.len() + 1],
    /// Sum of the values.
    pub sum: Duration,
}

impl HistogramSnapshot {
    fn add(&mut self, histogram: &Histogram) {
        add_all(&mut self.buckets, &histogram.buckets);
        self.sum += Duration::from_nanos(load(&histogram.nanoseconds));
    }
}

fn add_all(sums: &mut [u64], counters: &[AtomicU64]) {
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
    use shared::command::CommandClass;

    #[test]
    fn what_the_workers_count_is_summed_up() {
        let metrics = Metrics::default();
        let mut batch = BatchCounters::new();
        batch.note(Outcome::value(1));
        batch.note(Outcome::value(1));
        for worker in [0, 1, 1000] {
            metrics
                .shard(worker)
                .answered(0, &batch, Nanos::now(), 8, 6);
            metrics.shard(worker).closed(Closed::Panicked);
        }
        let sums = metrics.sums();
        assert_eq!(sums.requests(), 6);
        assert_eq!(sums.outcomes[0][Outcome::value(1).index()], 6);
        assert_eq!((sums.received, sums.sent), (24, 18));
        assert_eq!(sums.durations[0].buckets.iter().sum::<u64>(), 6);
        batch.note(Outcome::value(2).of(CommandClass::Compute));
        metrics.shard(1).answered(0, &batch, Nanos::now(), 4, 3);
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
