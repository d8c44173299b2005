//! What was counted and timed, by one thread and then by all.

use std::collections::BTreeMap;
use std::time::Duration;

use hdrhistogram::Histogram;

use super::client::Disconnect;

/// How exactly latencies are kept: so many significant digits.
const DIGITS: u8 = 3;

/// The longest latency that is kept as it is.
const LONGEST_LATENCY: Duration = Duration::from_secs(3600);

/// So many different words of errors are told apart.
const WORDS: usize = 32;

/// The counts.
pub struct Stats {
    /// Requests sent, the uncounted time before and after included.
    pub sent: u64,
    /// Right replies, the same.
    pub answered: u64,
    /// Right replies within the time that counts.
    pub replies: u64,
    /// The latencies, in nanoseconds, of the right replies whose requests were on their way within that time.
    pub latencies: Histogram<u64>,
    /// How long after they were due requests were sent, in nanoseconds, of those that were due within that time.
    pub delays: Histogram<u64>,
    /// Requests that belong into the latencies, but had no reply.
    pub given_up: u64,
    /// What went wrong at any time.
    pub errors: Errors,
    /// Replies to WHO below the number of clients.
    pub low: LowCounts,
    /// Clients that have lost a connection at least once.
    pub losers: u64,
    /// The CPU time that was used within the time that counts.
    pub cpu: Duration,
}

/// What went wrong, by kind.
#[derive(Default)]
pub struct Errors {
    /// Replies that are not what they must be.
    pub wrong: u64,
    /// The first of them, in quotes.
    pub first_wrong: Option<String>,
    /// Connections that the server closed while requests were waiting.
    pub closed: u64,
    /// Connections that broke.
    pub reset: u64,
    /// Replies, and connections, that took too long; what else was on the way on that connection is not counted.
    pub timeout: u64,
    /// Connections that didn't come about.
    pub connect: u64,
    /// Requests that could not be sent within the time for a reply from when they were due.
    pub unsent: u64,
    /// Errors that the server answered, by their word.
    pub replies: BTreeMap<String, u64>,
}

/// Counts that are too low, unless some of the clients were gone.
pub struct LowCounts {
    /// How many.
    pub count: u64,
    /// The lowest.
    pub lowest: Option<u64>,
    /// Their latencies in nanoseconds.
    pub latencies: Histogram<u64>,
}

impl Stats {
    /// Nothing yet.
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

    /// Right replies of this latency, or those that are low and may turn out to be wrong.
    pub fn time(&mut self, latency: Duration, count: u32, is_low: bool) {
        let latencies = match is_low {
            true => &mut self.low.latencies,
            false => &mut self.latencies,
        };
        latencies.saturating_record_n(nanoseconds(latency), u64::from(count));
    }

    /// A request was sent this much later than it was due.
    pub fn note_delay(&mut self, delay: Duration) {
        self.delays.saturating_record(nanoseconds(delay));
    }

    /// Adds what another thread has counted.
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

    /// Decides on the replies to WHO that were below the number of clients: as long as some were gone, they may have been right.
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

/// At least 1, which is the least that is kept.
fn nanoseconds(time: Duration) -> u64 {
    u64::try_from(time.as_nanos()).unwrap_or(u64::MAX).max(1)
}

impl LowCounts {
    /// Such a count.
    pub fn note(&mut self, count: u64) {
        self.count += 1;
        self.lowest = Some(self.lowest.map_or(count, |lowest| lowest.min(count)));
    }
}

impl Errors {
    /// All of them.
    pub fn total(&self) -> u64 {
        let connections = self.closed + self.reset + self.timeout + self.connect;
        self.wrong + connections + self.unsent + self.replies.values().sum::<u64>()
    }

    /// A reply that is wrong.
    pub fn note_wrong(&mut self, quoted: String) {
        self.wrong += 1;
        self.first_wrong.get_or_insert(quoted);
    }

    /// A reply that is an error.
    pub fn note_reply(&mut self, word: String) {
        let room = self.replies.len() < WORDS || self.replies.contains_key(&word);
        let word = if room { word } else { "OTHER".to_string() };
        *self.replies.entry(word).or_default() += 1;
    }

    /// A connection that is lost.
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
