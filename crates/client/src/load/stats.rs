//! Counters and latency histograms of one thread, and their sum over all.

use std::collections::BTreeMap;
use std::time::Duration;

use hdrhistogram::Histogram;

use super::Error;

/// Precision of latencies in significant digits.
const LATENCY_DIGITS: u8 = 3;

/// The longest latency that is recorded exactly, an hour in nanoseconds; longer ones count as this
/// one.
const LONGEST_LATENCY: u64 = 3_600_000_000_000;

/// The most error words that are counted separately.
const MAX_WORDS: usize = 32;

/// Counters and histograms.
pub struct Stats {
    /// Requests sent, including those outside of the measured window.
    pub sent: u64,
    /// Right replies, including those outside of the measured window.
    pub answered: u64,
    /// Right replies within the measured window.
    pub replies: u64,
    /// Latencies in nanoseconds of the right replies whose requests were in flight within the
    /// window.
    pub latencies: Histogram<u64>,
    /// Requests that belong into the latencies, but got no reply.
    pub given_up: u64,
    /// Errors at any time.
    pub errors: Errors,
    /// CPU time used within the window.
    pub cpu: Duration,
    /// Length of the window.
    pub time: Duration,
}

/// Kinds of errors, each with what its number counts. Other requests in flight on a connection that
/// timed out are not counted.
pub const KINDS: [(&str, &str); 5] = [
    (WRONG, "wrong replies"),
    ("closed", "connections closed by the server"),
    ("broken", "connections broken"),
    ("timeout", "replies that took too long"),
    (UNSENT, "requests not sent"),
];

const WRONG: &str = "wrong";
const UNSENT: &str = "unsent";

/// Errors by kind.
#[derive(Default)]
pub struct Errors {
    counts: BTreeMap<&'static str, u64>,
    /// The first wrong reply, in quotes.
    pub first_wrong: Option<String>,
    /// Error replies by their word.
    pub replies: BTreeMap<String, u64>,
}

impl Default for Stats {
    fn default() -> Self {
        let latencies = Histogram::new_with_bounds(1, LONGEST_LATENCY, LATENCY_DIGITS);
        // All three are constants: a histogram that this refuses is refused in every test.
        let latencies =
            latencies.expect("1 is allowed, at least twice as much, and up to 5 digits");
        Stats {
            sent: 0,
            answered: 0,
            replies: 0,
            latencies,
            given_up: 0,
            errors: Errors::default(),
            cpu: Duration::ZERO,
            time: Duration::ZERO,
        }
    }
}

impl Stats {
    /// Records the latency of right replies.
    pub fn record_latency(&mut self, latency: Duration, count: u32) {
        let latency = u64::try_from(latency.as_nanos()).unwrap_or(u64::MAX);
        // 1 is the least value that the histogram records.
        self.latencies
            .saturating_record_n(latency.max(1), count.into());
    }

    /// Returns the number of replies, right or not.
    pub fn received(&self) -> u64 {
        let errors: u64 = self.errors.replies.values().sum();
        self.answered + self.errors.count(WRONG) + errors
    }

    /// Adds the stats of another thread.
    pub fn add(&mut self, other: Stats) {
        self.sent += other.sent;
        self.answered += other.answered;
        self.replies += other.replies;
        // `Stats::default` makes all histograms, with the same bounds.
        let added = self.latencies.add(other.latencies);
        added.expect("no value is beyond the bounds");
        self.given_up += other.given_up;
        self.errors.add(other.errors);
        self.cpu += other.cpu;
        self.time = self.time.max(other.time);
    }
}

impl Errors {
    /// Returns the number of errors of this kind.
    pub fn count(&self, kind: &str) -> u64 {
        self.counts.get(kind).copied().unwrap_or(0)
    }

    /// Returns the number of all errors.
    pub fn total(&self) -> u64 {
        self.counts.values().chain(self.replies.values()).sum()
    }

    /// Counts a wrong reply.
    pub fn record_wrong(&mut self, quoted: String) {
        self.record(WRONG, 1);
        self.first_wrong.get_or_insert(quoted);
    }

    /// Counts requests that were due, and never sent.
    pub fn record_unsent(&mut self, count: u64) {
        self.record(UNSENT, count);
    }

    fn record(&mut self, kind: &'static str, count: u64) {
        *self.counts.entry(kind).or_default() += count;
    }

    /// Counts an error reply.
    pub fn record_reply(&mut self, word: String) {
        let room = self.replies.len() < MAX_WORDS || self.replies.contains_key(&word);
        let word = if room { word } else { "OTHER".to_string() };
        *self.replies.entry(word).or_default() += 1;
    }

    /// Counts a lost connection.
    pub fn record_lost(&mut self, error: Error) {
        let kind = match error {
            Error::Closed => "closed",
            Error::Broken(_) | Error::NotConnected(_) | Error::System(_) => "broken",
            Error::Timeout => "timeout",
            Error::Refused { word, .. } => return self.record_reply(word),
            Error::Wrong(quoted) => return self.record_wrong(quoted),
        };
        self.record(kind, 1);
    }

    fn add(&mut self, other: Errors) {
        self.first_wrong = self.first_wrong.take().or(other.first_wrong);
        for (kind, count) in other.counts {
            self.record(kind, count);
        }
        for (word, count) in other.replies {
            *self.replies.entry(word).or_default() += count;
        }
    }
}
