//! Log throttling for cluster outages: one message when an outage begins, one for each further kind
//! of error, and one when it is over, however often the connection fails in between.

use std::time::{Duration, Instant};

use log::{info, warn};

use super::error::{ClusterError, ErrorKind};
use super::stats::Stats;

/// Time without an error after which an outage is over. A shorter recovery belongs to the same
/// outage.
const QUIET: Duration = Duration::from_secs(5);

/// Time without an error after which the count of attempts starts again.
const STABLE: Duration = Duration::from_millis(500);

/// The current outage.
struct Current {
    start: Instant,
    failures: u64,
    /// Number of failures since the connection last worked for the time `STABLE`.
    attempts: u64,
    /// Since when the connection works again.
    recovered: Option<Instant>,
    /// Kinds of error that the log has reported, indexed by [`ErrorKind`].
    logged: [bool; ErrorKind::NAMES.len()],
}

/// Tracks whether this server is cut off from its cluster, for the log.
pub struct Outage<'a> {
    stats: &'a Stats,
    /// What an outage means for clients, for the log.
    meaning: &'static str,
    current: Option<Current>,
}

impl<'a> Outage<'a> {
    /// Creates a tracker without an outage. `meaning` is logged when one begins.
    pub fn new(stats: &'a Stats, meaning: &'static str) -> Self {
        Outage {
            stats,
            meaning,
            current: None,
        }
    }

    /// Returns the number of failures since the connection last worked for a while.
    pub fn attempts(&self) -> u64 {
        self.current.as_ref().map_or(0, |current| current.attempts)
    }

    /// Records a failure. Logs it if it begins an outage or is of a new kind in the current one.
    pub fn record(&mut self, error: &ClusterError) {
        self.stats.count_error(error.kind);
        let current = self.current.get_or_insert_with(|| Current {
            start: Instant::now(),
            failures: 0,
            attempts: 0,
            recovered: None,
            logged: Default::default(),
        });
        let recovered = current.recovered.take();
        if recovered.is_some_and(|since| since.elapsed() >= STABLE) {
            current.attempts = 0;
        }
        current.attempts += 1;
        current.failures += 1;
        if !std::mem::replace(&mut current.logged[error.kind as usize], true) {
            warn!(reason:% = error; "cut off from the cluster: {}", self.meaning);
        }
    }

    /// Records a success. Call it at each heartbeat: it logs the end of an outage after `QUIET`.
    pub fn record_success(&mut self) {
        let Some(current) = &mut self.current else {
            return;
        };
        let recovered = *current.recovered.get_or_insert_with(Instant::now);
        if recovered.elapsed() >= QUIET {
            let (times, seconds) = (current.failures, (recovered - current.start).as_secs_f64());
            info!(times, seconds = (seconds * 10.0).round() / 10.0; "over: cut off from the cluster");
            self.current = None;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stable_connection_resets_the_attempts() {
        let stats = Stats::default();
        let mut outage = Outage::new(&stats, "a trial");
        let error = ClusterError::new(ErrorKind::Late, "late");
        for attempts in 1..4 {
            outage.record(&error);
            assert_eq!(outage.attempts(), attempts);
        }
        outage.record_success();
        outage.record(&error);
        assert_eq!(outage.attempts(), 4, "it only flapped");
        let start = Instant::now();
        while start.elapsed() < STABLE + Duration::from_millis(1) {
            outage.record_success();
        }
        outage.record(&error);
        assert_eq!(outage.attempts(), 1);
    }
}
