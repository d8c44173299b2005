//! The figures: what is measured, and what each round found.

use std::collections::HashMap;

use crate::common::figures::{median, spread};
use crate::contestant::Contestant;
use crate::modes::Mode;

/// What one measurement found.
pub type Figures = Vec<(Measure, f64)>;

/// What is measured.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub enum Measure {
    /// CPU time of the server for a request.
    CpuMicros,
    /// Requests answered in a second.
    RateThousands,
    /// Jain's fairness index of the clients' replies.
    Fairness,
    /// How many times longer the median takes among others.
    P50Ratio,
    /// How many times longer the slowest hundredth takes among others.
    P99Ratio,
    /// The median latency without others.
    P50Alone,
    /// The median latency among others.
    P50Among,
    /// The latency of the slowest hundredth without others.
    P99Alone,
    /// The latency of the slowest hundredth among others.
    P99Among,
    /// Resident memory of one more client.
    ClientKib,
    /// Resident memory of a server sized for one client.
    BaselineMib,
    /// From the first connect of a burst to its last reply, or from the start to the first reply.
    Millis,
    /// How much of its core the server used, told by a mark at its rate.
    Busy,
}

/// The measures in the order of the table, each with what it is and which way is better, and what
/// it is called in the progress.
#[rustfmt::skip]
pub const MEASURES: [(Measure, &str, &str); 13] = [
    (Measure::CpuMicros, "CPU of the server, µs a request (less is better)", "µs CPU a request"),
    (Measure::RateThousands, "rate, thousand requests a second (more is better)", "thousand/s"),
    (Measure::Fairness, "fairness, Jain's index of the clients' replies (1 is best)", "fairness"),
    (Measure::P50Ratio, "p50 among the others ÷ p50 alone (1 is best)", "× p50"),
    (Measure::P99Ratio, "p99 among the others ÷ p99 alone (1 is best)", "× p99"),
    (Measure::P50Alone, "p50 alone, µs (less is better)", "µs p50 alone"),
    (Measure::P50Among, "p50 among the others, µs (less is better)", "µs p50 among"),
    (Measure::P99Alone, "p99 alone, µs (less is better)", "µs p99 alone"),
    (Measure::P99Among, "p99 among the others, µs (less is better)", "µs p99 among"),
    (Measure::ClientKib, "memory of a client, KiB resident (less is better)", "KiB a client"),
    (Measure::BaselineMib, "memory of a server for 1 client, MiB resident", "MiB for 1 client"),
    (Measure::Millis, "time until all are answered, ms (less is better)", "ms"),
    (Measure::Busy, "part of its core that the server used, %", "% of its core"),
];

impl Measure {
    /// Returns whether it has a section in the table.
    pub fn has_section(self) -> bool {
        self != Measure::Busy
    }

    /// Returns whether a ratio of two contestants says something.
    pub fn compares(self) -> bool {
        !matches!(self, Measure::P50Ratio | Measure::P99Ratio)
    }
}

/// Returns what a measurement found, on one line.
pub fn line(figures: &Figures) -> String {
    let name = |measure| {
        let mut all = MEASURES.iter();
        all.find(|(one, ..)| *one == measure)
            .map_or("", |(.., name)| name)
    };
    let part = |(measure, value): &(_, f64)| format!("{} {}", digits(*value), name(*measure));
    let parts: Vec<String> = figures.iter().map(part).collect();
    parts.join(", ")
}

/// What all rounds found.
#[derive(Default)]
pub struct Results {
    /// What each round found, by name of the mode, contestant and measure.
    rounds: HashMap<(String, Contestant, Measure), Vec<f64>>,
}

impl Results {
    /// Adds what one round found.
    pub fn add(&mut self, mode: &Mode, contestant: Contestant, figures: Figures) {
        for (measure, value) in figures {
            let key = (mode.name.clone(), contestant, measure);
            self.rounds.entry(key).or_default().push(value);
        }
    }

    /// Returns one figure, round by round.
    pub fn values(&self, mode: &Mode, contestant: Contestant, measure: Measure) -> Option<&[f64]> {
        let key = (mode.name.clone(), contestant, measure);
        self.rounds.get(&key).map(Vec::as_slice)
    }
}

/// Formats the median of these values, with a mark and the spread.
pub fn summary(values: &[f64], mark: &str) -> String {
    let median = digits(median(values));
    match values.len() {
        1 => format!("{median}{mark}"),
        _ => format!("{median}{mark} ±{:.0}%", spread(values) * 100.0),
    }
}

/// Formats a figure with about three digits that count.
fn digits(value: f64) -> String {
    let places = match value.abs() {
        size if size >= 100.0 => 0,
        size if size >= 10.0 => 1,
        size if size >= 1.0 => 2,
        _ => 3,
    };
    format!("{value:.places$}")
}
