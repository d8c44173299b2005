//! History of the samples.

use std::collections::VecDeque;
use std::time::Duration;

use jiff::Timestamp;

use super::asker::{Origin, Sample};
use crate::failure::Failure;

/// End of a failure's message, omitted where there is little room.
pub const TRYING_AGAIN: &str = "; trying again";

/// Number of counts that are kept: more than any terminal has columns.
const KEPT: usize = 1000;

/// The counts, and the state of the connection.
pub struct History {
    /// The server as the user named it.
    pub server: String,
    /// Interval between requests.
    pub every: Duration,
    /// The server that was reached last.
    pub origin: Option<Origin>,
    /// The counts of the last intervals; `None` for an interval without one.
    pub counts: VecDeque<Option<u64>>,
    /// The least and the greatest count.
    pub range: Option<(u64, u64)>,
    /// Time of the first sample.
    pub since: Option<Timestamp>,
    /// Since when there has been no count, and why.
    pub trouble: Option<(Timestamp, String)>,
    /// When counts returned after an outage.
    pub back: Option<Timestamp>,
    last_tick: Option<u64>,
}

impl History {
    /// Returns an empty history.
    pub fn new(server: String, every: Duration) -> Self {
        History {
            server,
            every,
            origin: None,
            counts: VecDeque::with_capacity(KEPT),
            range: None,
            since: None,
            trouble: None,
            back: None,
            last_tick: None,
        }
    }

    /// Returns whether there is no sample yet.
    pub fn is_empty(&self) -> bool {
        self.last_tick.is_none()
    }

    /// Returns the latest count.
    pub fn count(&self) -> Option<u64> {
        self.counts.back().copied().flatten()
    }

    /// Returns the time since the first sample, counted in intervals: the system clock may be set
    /// meanwhile.
    pub fn span(&self) -> Duration {
        let ticks = u32::try_from(self.last_tick.unwrap_or(0)).unwrap_or(u32::MAX);
        self.every.saturating_mul(ticks)
    }

    /// Adds a sample.
    pub fn add(&mut self, sample: Sample) {
        let Sample {
            tick,
            time,
            seen,
            origin,
        } = sample;
        let missed = self
            .last_tick
            .map_or(0, |last| tick.saturating_sub(last).saturating_sub(1));
        for _ in 0..missed.min(KEPT as u64) {
            self.push(None);
        }
        self.last_tick = Some(tick);
        self.origin = origin.or(self.origin.take());
        self.since = self.since.or(Some(time));
        match seen {
            Ok(count) => {
                self.push(Some(count));
                let (least, most) = self.range.unwrap_or((count, count));
                self.range = Some((least.min(count), most.max(count)));
                if self.trouble.take().is_some() {
                    self.back = Some(time);
                }
            }
            Err(failure) => {
                self.push(None);
                let since = self.trouble.take().map_or(time, |(since, _)| since);
                self.trouble = Some((since, trouble(&failure)));
            }
        }
    }

    fn push(&mut self, count: Option<u64>) {
        if self.counts.len() == KEPT {
            self.counts.pop_front();
        }
        self.counts.push_back(count);
    }
}

/// Returns the message for a failure.
pub fn trouble(failure: &Failure) -> String {
    match failure {
        Failure::Refused { .. } => failure.to_string(),
        _ => format!("lost: {failure}{TRYING_AGAIN}"),
    }
}

/// Returns the kind of a failure: a message is printed once per kind until the kind changes.
pub fn kind(failure: &Failure) -> String {
    match failure {
        Failure::Refused { word, .. } => word.clone(),
        _ => "lost".to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample(tick: u64, seen: Result<u64, Failure>) -> Sample {
        let time = Timestamp::from_second(tick as i64).unwrap();
        Sample {
            tick,
            time,
            seen,
            origin: None,
        }
    }

    #[test]
    fn what_was_missed_or_failed_is_a_gap() {
        let mut history = History::new("x".to_string(), Duration::from_secs(1));
        assert!(history.is_empty());
        history.add(sample(0, Ok(7)));
        history.add(sample(3, Ok(2)));
        history.add(sample(4, Err(Failure::Wrong("no".to_string()))));
        assert_eq!(history.counts, [Some(7), None, None, Some(2), None]);
        assert_eq!((history.range, history.count()), (Some((2, 7)), None));
        assert_eq!(
            history.trouble.as_ref().unwrap().1,
            "lost: no; trying again"
        );
        history.add(sample(5, Ok(3)));
        assert_eq!(
            (history.trouble.as_ref(), history.back),
            (None, Timestamp::from_second(5).ok())
        );
        assert_eq!(history.since, Timestamp::from_second(0).ok());
        // The span does not depend on the system clock.
        let mut earlier = sample(9, Ok(3));
        earlier.time = Timestamp::UNIX_EPOCH;
        history.add(earlier);
        assert_eq!(history.span(), Duration::from_secs(9));
        history.add(sample(u64::MAX, Ok(3)));
        assert_eq!(history.counts.len(), KEPT);
    }
}
