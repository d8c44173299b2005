//! Samples of the last 15 minutes, for the status page.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

/// Interval between samples.
pub const INTERVAL: Duration = Duration::from_secs(5);

/// Number of intervals that are kept: 15 minutes.
const MAX_INTERVALS: usize = 180;

/// Samples, the oldest first.
#[derive(Default)]
pub struct History {
    samples: VecDeque<Sample>,
}

struct Sample {
    at: Instant,
    clients: usize,
    /// Number of requests since the start.
    requests: u64,
}

impl History {
    /// Adds a sample: the number of clients at this moment, and of requests answered since the
    /// start.
    pub fn add(&mut self, at: Instant, clients: usize, requests: u64) {
        if self.samples.len() > MAX_INTERVALS {
            self.samples.pop_front();
        }
        self.samples.push_back(Sample {
            at,
            clients,
            requests,
        });
    }

    /// Returns the number of clients of each sample.
    pub fn clients(&self) -> Vec<f64> {
        self.samples
            .iter()
            .map(|sample| sample.clients as f64)
            .collect()
    }

    /// Returns the requests per second between each sample and the next.
    pub fn rates(&self) -> Vec<f64> {
        let pairs = self.samples.iter().zip(self.samples.iter().skip(1));
        pairs
            .map(|(before, after)| {
                let seconds = (after.at - before.at).as_secs_f64();
                let requests = after.requests.saturating_sub(before.requests) as f64;
                requests / seconds
            })
            .collect()
    }

    /// Returns the time between the oldest and the newest sample.
    pub fn span(&self) -> Duration {
        match (self.samples.front(), self.samples.back()) {
            (Some(first), Some(last)) => last.at - first.at,
            _ => Duration::ZERO,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_goes_back_a_quarter_of_an_hour_and_no_further() {
        let mut history = History::default();
        assert_eq!((history.rates(), history.span()), (vec![], Duration::ZERO));
        let start = Instant::now();
        for look in 0..1000_u32 {
            history.add(start + INTERVAL * look, look as usize, u64::from(look) * 50);
        }
        assert_eq!(history.span(), Duration::from_secs(15 * 60));
        assert_eq!(history.rates(), vec![10.0; MAX_INTERVALS]);
        assert_eq!(history.clients().last(), Some(&999.0));
    }
}
