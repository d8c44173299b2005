//! Health of the store: whether it is away, until when nobody tries it again, and what the log and
//! the metrics say of it.

use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use crossbeam_channel::Sender;
use log::{info, warn};

use crate::error::{ErrorKind, StoreError};
use shared::sync::ignore_poison;

/// The first pause after a failure; it doubles up to the longest.
const FIRST_PAUSE: Duration = Duration::from_millis(100);
const LONGEST_PAUSE: Duration = Duration::from_secs(2);

/// Time without a failure after which an outage is over. A shorter recovery belongs to it.
const QUIET_TIME: Duration = Duration::from_secs(3);

/// Counters of the store.
#[derive(Default)]
pub struct Stats {
    /// Connections that are open.
    pub connections: AtomicUsize,
    /// Jobs that are being done.
    pub running: AtomicUsize,
    /// Jobs that wait for a connection.
    pub waiting: AtomicUsize,
    /// Jobs that were done.
    pub done: AtomicU64,
    /// Streams that are open.
    pub streams: AtomicUsize,
    /// Streams that have ended: taken whole, by the client, by the database.
    pub streamed: [AtomicU64; 3],
    /// Errors by kind.
    pub errors: [AtomicU64; ErrorKind::NAMES.len()],
}

/// Whether the store answers.
pub struct Health {
    outage: Mutex<Option<Outage>>,
    /// Takes note of the beginning of an outage: somebody must try whether it is over.
    begins: Sender<()>,
    /// Whether the last attempt to see whether the store answers has failed.
    probe_failed: AtomicBool,
    /// The counters.
    pub stats: Stats,
}

struct Outage {
    since: Instant,
    failures: u64,
    /// The number of failures since it last answered.
    pauses: u32,
    /// Nobody tries before this.
    until: Instant,
    error: StoreError,
    /// Whether nobody else tries it meanwhile.
    blocks: bool,
    /// Since when it answers again.
    recovered: Option<Instant>,
}

impl Health {
    /// Returns that of a store that has not failed yet. `begins` has room for one.
    pub fn new(begins: Sender<()>) -> Self {
        Health {
            outage: Mutex::default(),
            begins,
            probe_failed: AtomicBool::new(false),
            stats: Stats::default(),
        }
    }

    /// Returns the last error if the store is away and it is too early for another attempt.
    pub fn check(&self) -> Result<(), StoreError> {
        match &*ignore_poison(self.outage.lock()) {
            Some(outage) if outage.blocks && Instant::now() < outage.until => {
                Err(outage.error.clone())
            }
            _ => Ok(()),
        }
    }

    /// Returns whether the store answers: neither is it away, also while another attempt goes on, nor
    /// has the last attempt failed.
    pub fn is_up(&self) -> bool {
        let outage = ignore_poison(self.outage.lock());
        let is_away = outage.as_ref().is_some_and(|outage| outage.blocks);
        !is_away && !self.probe_failed.load(Ordering::Relaxed)
    }

    /// Records the outcome of an attempt to see whether the store answers.
    pub fn probed(&self, answers: bool) {
        self.probe_failed.store(!answers, Ordering::Relaxed);
    }

    /// Returns how long it is until the next attempt, if the store is away.
    pub fn next_attempt(&self) -> Option<Duration> {
        let outage = ignore_poison(self.outage.lock());
        let until = outage.as_ref()?.until;
        Some(until.saturating_duration_since(Instant::now()))
    }

    /// Counts an error; no outage follows from it.
    pub fn count(&self, error: &StoreError) {
        self.stats.errors[error.kind as usize].fetch_add(1, Ordering::Relaxed);
    }

    /// Records a failure. The log says it if an outage begins.
    pub fn failed(&self, error: &StoreError) {
        self.count(error);
        let mut outage = ignore_poison(self.outage.lock());
        let begins = outage.is_none();
        let now = Instant::now();
        let outage = outage.get_or_insert_with(|| Outage {
            since: now,
            failures: 0,
            pauses: 0,
            until: now,
            error: error.clone(),
            blocks: true,
            recovered: None,
        });
        if outage.recovered.take().is_some() {
            outage.pauses = 0;
        }
        outage.failures += 1;
        outage.error = error.clone();
        // A statement that is refused, or takes too long, keeps others from nothing.
        outage.blocks = matches!(
            error.kind,
            ErrorKind::Away | ErrorKind::Lost | ErrorKind::Newer
        );
        let pause = FIRST_PAUSE * (1 << outage.pauses.min(5));
        outage.pauses += 1;
        outage.until = now + pause.min(LONGEST_PAUSE).mul_f64(0.5 + jitter() / 2.0);
        if begins {
            // If there is no room, it is known.
            let _ = self.begins.try_send(());
            warn!(reason:% = error; "the store is unavailable: its commands may be answered ERR UNAVAILABLE");
        }
    }

    /// Records a success. The log says it if an outage ends.
    pub fn succeeded(&self) {
        self.stats.done.fetch_add(1, Ordering::Relaxed);
        let mut outage = ignore_poison(self.outage.lock());
        let Some(current) = &mut *outage else {
            return;
        };
        let now = Instant::now();
        let recovered = *current.recovered.get_or_insert(now);
        current.blocks = false;
        // The next attempt is to see whether it lasts.
        current.until = recovered + QUIET_TIME;
        if now >= current.until {
            let seconds = (recovered - current.since).as_secs_f64();
            let seconds = (seconds * 10.0).round() / 10.0;
            info!(times = current.failures, seconds; "over: the store is unavailable");
            *outage = None;
        }
    }
}

/// Returns a number from 0 to 1 that differs between servers and calls.
pub fn jitter() -> f64 {
    use std::hash::{BuildHasher as _, RandomState};
    RandomState::new().hash_one(0) as u32 as f64 / f64::from(u32::MAX)
}
