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
const LIVED: Duration = Duration::from_millis(500);

struct Course {
    begun: Instant,
    times: u64,
    /// Number of failures since the last period of [`LIVED`] without one.
    attempts: u64,
    well: Option<Instant>,
}

/// Tracks whether this server is cut off from its cluster, for the log.
pub struct Outage<'a> {
    stats: &'a Stats,
    /// What an outage means for clients, for the log.
    meaning: &'static str,
    /// The current outage: its begin, its number of failures, and since when the connection works
    /// again.
    since: Option<Course>,
    /// Kinds of error that the log has reported in this outage, indexed by [`ErrorKind`].
    said: [bool; ErrorKind::ALL.len()],
}

impl<'a> Outage<'a> {
    /// Creates a tracker without an outage. `meaning` is logged when one begins.
    pub fn new(stats: &'a Stats, meaning: &'static str) -> Self {
        Outage {
            stats,
            meaning,
            since: None,
            said: Default::default(),
        }
    }

    /// Returns the number of failures since the connection last worked for a while.
    pub fn attempts(&self) -> u64 {
        self.since.as_ref().map_or(0, |course| course.attempts)
    }

    /// Records a failure. Logs it if it begins an outage or is of a new kind in the current one.
    pub fn record(&mut self, trouble: &ClusterError) {
        self.stats.cut_off(trouble.kind);
        let course = self.since.get_or_insert_with(|| Course {
            begun: Instant::now(),
            times: 0,
            attempts: 0,
            well: None,
        });
        let well = course.well.take();
        if well.is_some_and(|well| well.elapsed() >= LIVED) {
            course.attempts = 0;
        }
        course.attempts += 1;
        course.times += 1;
        if !std::mem::replace(&mut self.said[trouble.kind as usize], true) {
            warn!(reason:% = trouble; "cut off from the cluster: {}", self.meaning);
        }
    }

    /// Records a success. Call it at each heartbeat: it logs the end of an outage after `QUIET`.
    pub fn well(&mut self) {
        let Some(course) = &mut self.since else {
            return;
        };
        let well = *course.well.get_or_insert_with(Instant::now);
        if well.elapsed() < QUIET {
            return;
        }
        let (times, seconds) = (course.times, (well - course.begun).as_secs_f64());
        info!(times, seconds = (seconds * 10.0).round() / 10.0; "over: cut off from the cluster");
        self.since = None;
        self.said = Default::default();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_attempt_after_a_connection_that_lived_is_a_first_one() {
        let stats = Stats::default();
        let mut outage = Outage::new(&stats, "a trial");
        let trouble = ClusterError::new(ErrorKind::Late, "late");
        for attempts in 1..4 {
            outage.record(&trouble);
            assert_eq!(outage.attempts(), attempts);
        }
        outage.well();
        outage.record(&trouble);
        assert_eq!(outage.attempts(), 4, "it only flapped");
        let well = Instant::now();
        while well.elapsed() < LIVED + Duration::from_millis(1) {
            outage.well();
        }
        outage.record(&trouble);
        assert_eq!(outage.attempts(), 1);
    }
}
