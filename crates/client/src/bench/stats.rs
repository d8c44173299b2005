//! Counters and latency histograms of one thread, and their sum over all.

use std::collections::BTreeMap;
use std::time::Duration;

use hdrhistogram::Histogram;

use super::client::Disconnect;

/// Precision of latencies in significant digits.
const DIGITS: u8 = 3;

/// The longest latency that is recorded exactly; longer ones count as this one.
const LONGEST_LATENCY: Duration = Duration::from_secs(3600);

/// The most error words that are counted separately.
const WORDS: usize = 32;

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
    /// Delays in nanoseconds between a request's due time and its sending, of requests that were
    /// due within the window.
    pub delays: Histogram<u64>,
    /// Requests that belong into the latencies, but got no reply.
    pub given_up: u64,
    /// Errors at any time.
    pub errors: Errors,
    /// Replies to WHO below the number of clients.
    pub low: LowCounts,
    /// Clients that lost a connection at least once.
    pub losers: u64,
    /// CPU time used within the window.
    pub cpu: Duration,
}

/// Errors by kind.
#[derive(Default)]
pub struct Errors {
    /// Wrong replies.
    pub wrong: u64,
    /// The first of them, in quotes.
    pub first_wrong: Option<String>,
    /// Connections that the server closed while requests were in flight.
    pub closed: u64,
    /// Connections that broke.
    pub reset: u64,
    /// Replies and connections that timed out; other requests in flight on such a connection are
    /// not counted.
    pub timeout: u64,
    /// Connections that were not established.
    pub connect: u64,
    /// Requests that could not be sent within the reply timeout after they were due.
    pub unsent: u64,
    /// Error replies by their word.
    pub replies: BTreeMap<String, u64>,
}

/// Replies to WHO that are too low, unless some of the clients were disconnected.
pub struct LowCounts {
    /// Their number.
    pub count: u64,
    /// The lowest count.
    pub lowest: Option<u64>,
    /// Their latencies in nanoseconds.
    pub latencies: Histogram<u64>,
}

impl Stats {
    /// Returns stats that are all zero.
    pub fn new() -> Self {
        let longest = LONGEST_LATENCY.as_nanos() as u64;
        let none = Histogram::new_with_bounds(1, longest, DIGITS);
        let none = none.expect("these bounds are allowed");
        Stats {
            sent: 0,
            answered: 0,
            replies: 0,
            latencies: none.clone(),
            delays: none.clone(),
            given_up: 0,
            errors: Errors::default(),
            low: LowCounts {
                count: 0,
                lowest: None,
                latencies: none,
            },
            losers: 0,
            cpu: Duration::ZERO,
        }
    }

    /// Records the latency of right replies. Low counts, which may turn out to be wrong, are
    /// recorded apart.
    pub fn time(&mut self, latency: Duration, count: u32, is_low: bool) {
        let latencies = match is_low {
            true => &mut self.low.latencies,
            false => &mut self.latencies,
        };
        latencies.saturating_record_n(nanoseconds(latency), u64::from(count));
    }

    /// Records how much later than due a request was sent.
    pub fn note_delay(&mut self, delay: Duration) {
        self.delays.saturating_record(nanoseconds(delay));
    }

    /// Adds the stats of another thread.
    pub fn add(&mut self, other: Stats) {
        self.sent += other.sent;
        self.answered += other.answered;
        self.replies += other.replies;
        self.latencies
            .add(&other.latencies)
            .expect("the bounds are the same");
        self.delays
            .add(&other.delays)
            .expect("the bounds are the same");
        self.given_up += other.given_up;
        self.errors.add(other.errors);
        self.low.count += other.low.count;
        self.low
            .latencies
            .add(&other.low.latencies)
            .expect("the bounds are the same");
        self.low.lowest = [self.low.lowest, other.low.lowest]
            .into_iter()
            .flatten()
            .min();
        self.losers += other.losers;
        self.cpu += other.cpu;
    }

    /// Decides whether low counts were wrong: they may be right if enough clients were
    /// disconnected.
    pub fn settle(&mut self, clients: u64) {
        if let Some(lowest) = self.low.lowest
            && lowest < clients.saturating_sub(self.losers)
        {
            self.errors.wrong += self.low.count;
            self.answered -= self.low.count;
            self.replies -= self.low.count;
            let quoted = format!("\"{lowest}\"");
            self.errors.first_wrong.get_or_insert(quoted);
        } else {
            self.latencies
                .add(&self.low.latencies)
                .expect("the bounds are the same");
        }
    }
}

/// Returns at least 1, the least value that the histogram records.
fn nanoseconds(time: Duration) -> u64 {
    u64::try_from(time.as_nanos()).unwrap_or(u64::MAX).max(1)
}

impl LowCounts {
    /// Counts a low count.
    pub fn note(&mut self, count: u64) {
        self.count += 1;
        self.lowest = Some(self.lowest.map_or(count, |lowest| lowest.min(count)));
    }
}

impl Errors {
    /// Returns the number of all errors.
    pub fn total(&self) -> u64 {
        let connections = self.closed + self.reset + self.timeout + self.connect;
        self.wrong + connections + self.unsent + self.replies.values().sum::<u64>()
    }

    /// Counts a wrong reply.
    pub fn note_wrong(&mut self, quoted: String) {
        self.wrong += 1;
        self.first_wrong.get_or_insert(quoted);
    }

    /// Counts an error reply.
    pub fn note_reply(&mut self, word: String) {
        let room = self.replies.len() < WORDS || self.replies.contains_key(&word);
        let word = if room { word } else { "OTHER".to_string() };
        *self.replies.entry(word).or_default() += 1;
    }

    /// Counts a lost connection.
    pub fn note_lost(&mut self, lost: Disconnect) {
        match lost {
            Disconnect::Closed => self.closed += 1,
            Disconnect::Broken(_) => self.reset += 1,
            Disconnect::Late => self.timeout += 1,
            Disconnect::NotConnected(_) => self.connect += 1,
            Disconnect::Refused { word, .. } => self.note_reply(word),
            Disconnect::Wrong(quoted) => self.note_wrong(quoted),
        }
    }

    fn add(&mut self, other: Errors) {
        self.wrong += other.wrong;
        self.first_wrong = self.first_wrong.take().or(other.first_wrong);
        self.closed += other.closed;
        self.reset += other.reset;
        self.timeout += other.timeout;
        self.connect += other.connect;
        self.unsent += other.unsent;
        for (word, count) in other.replies {
            *self.replies.entry(word).or_default() += count;
        }
    }
}
