//! The time during which this server is cut off from its cluster: two lines of the log, however often it goes wrong meanwhile.

use std::time::{Duration, Instant};

use log::{info, warn};

use super::error::{ClusterError, ErrorKind};
use super::stats::Stats;

/// So long must all be well until an outage is over: one that comes and goes is one.
const QUIET: Duration = Duration::from_secs(5);

/// If all was well for so long, the next attempt is the first again.
const LIVED: Duration = Duration::from_millis(500);

struct Course {
    begun: Instant,
    times: u64,
    /// How often without having been well for [`LIVED`] in between.
    attempts: u64,
    well: Option<Instant>,
}

/// The time during which this server is cut off from its cluster, for the log.
pub struct Outage<'a> {
    stats: &'a Stats,
    /// What it means for clients.
    meaning: &'static str,
    /// When it began, how often it went wrong since, and since when all is well again.
    since: Option<Course>,
    /// How it went wrong since, as far as the log says so: the place of each [`ErrorKind`] is its number.
    said: [bool; ErrorKind::ALL.len()],
}

impl<'a> Outage<'a> {
    /// None yet. It would mean this.
    pub fn new(stats: &'a Stats, meaning: &'static str) -> Self {
        Outage {
            stats,
            meaning,
            since: None,
            said: Default::default(),
        }
    }

    /// How often it went wrong without having been well for a while in between.
    pub fn attempts(&self) -> u64 {
        self.since.as_ref().map_or(0, |course| course.attempts)
    }

    /// It goes wrong. Says so in the log if that begins, or if it goes wrong in another way than before.
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

    /// All is well. Call it at each heartbeat: when that has lasted, the log says so.
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
