//! History of the samples.

use std::collections::VecDeque;

use jiff::Timestamp;

use super::poller::Sample;
use crate::failure::Failure;

/// Number of counts that are kept: more than any terminal has columns.
const MAX_COUNTS: usize = 1000;

/// The counts, and the state of the connection.
#[derive(Default)]
pub struct History {
    /// The counts; `None` for a request without one.
    pub counts: VecDeque<Option<u64>>,
    /// The least and the greatest count.
    pub range: Option<(u64, u64)>,
    /// Time of the first sample.
    pub since: Option<Timestamp>,
    /// Since when there has been no count, and why.
    pub outage: Option<(Timestamp, String)>,
    /// When counts returned after an outage.
    pub back: Option<Timestamp>,
}

impl History {
    /// Returns the latest count.
    pub fn count(&self) -> Option<u64> {
        self.counts.back().copied().flatten()
    }

    /// Adds a sample.
    pub fn add(&mut self, Sample { time, count }: Sample) {
        self.since.get_or_insert(time);
        if self.counts.len() == MAX_COUNTS {
            self.counts.pop_front();
        }
        self.counts.push_back(count.as_ref().ok().copied());
        match count {
            Ok(count) => {
                let (least, most) = self.range.unwrap_or((count, count));
                self.range = Some((least.min(count), most.max(count)));
                if self.outage.take().is_some() {
                    self.back = Some(time);
                }
            }
            Err(failure) => {
                let since = self.outage.take().map_or(time, |(since, _)| since);
                self.outage = Some((since, message(&failure)));
            }
        }
    }
}

/// Returns the message for a failure.
pub fn message(failure: &Failure) -> String {
    match failure {
        Failure::Refused(_) => failure.to_string(),
        _ => format!("lost: {failure}; trying again"),
    }
}
