//! The figures: what is measured, what each round found, medians and spreads.

use std::collections::HashMap;

use crate::contestant::Contestant;
use crate::modes::Mode;

/// What one measurement found.
pub type Figures = Vec<(Measure, f64)>;

/// What is measured, in the order of the table.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub enum Measure {
    /// CPU time of the server for a request.
    CpuMicros,
    /// Requests answered in a second.
    RateThousands,
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
    /// From the first connect of a burst to its last reply.
    BurstMs,
    /// How much of its core the server used.
    Busy,
}

impl Measure {
    /// The measures with a section of the table, in order. How busy the server was is told by a mark at its rate.
    pub const SECTIONS: [Measure; 11] = [
        Measure::CpuMicros,
        Measure::RateThousands,
        Measure::P50Ratio,
        Measure::P99Ratio,
        Measure::P50Alone,
        Measure::P50Among,
        Measure::P99Alone,
        Measure::P99Among,
        Measure::ClientKib,
        Measure::BaselineMib,
        Measure::BurstMs,
    ];

    /// What it is and which way is better.
    pub fn title(self) -> &'static str {
        match self {
            Measure::CpuMicros => "CPU of the server, µs a request (less is better)",
            Measure::RateThousands => "rate, thousand requests a second (more is better)",
            Measure::P50Ratio => "p50 among the others ÷ p50 alone (1 is best)",
            Measure::P99Ratio => "p99 among the others ÷ p99 alone (1 is best)",
            Measure::P50Alone => "p50 alone, µs (less is better)",
            Measure::P50Among => "p50 among the others, µs (less is better)",
            Measure::P99Alone => "p99 alone, µs (less is better)",
            Measure::P99Among => "p99 among the others, µs (less is better)",
            Measure::ClientKib => "memory of a client, KiB resident (less is better)",
            Measure::BaselineMib => "memory of a server for 1 client, MiB resident",
            Measure::BurstMs => "time until all are answered, ms (less is better)",
            Measure::Busy => "part of its core that the server used, %",
        }
    }

    /// What it is called in the progress.
    fn short(self) -> &'static str {
        match self {
            Measure::CpuMicros => "µs CPU a request",
            Measure::RateThousands => "thousand/s",
            Measure::P50Ratio => "× p50",
            Measure::P99Ratio => "× p99",
            Measure::P50Alone => "µs p50 alone",
            Measure::P50Among => "µs p50 among",
            Measure::P99Alone => "µs p99 alone",
            Measure::P99Among => "µs p99 among",
            Measure::ClientKib => "KiB a client",
            Measure::BaselineMib => "MiB for 1 client",
            Measure::BurstMs => "ms",
            Measure::Busy => "% of its core",
        }
    }

    /// Whether it compares contestants, and so a ratio of two contestants says something.
    pub fn compares(self) -> bool {
        !matches!(self, Measure::P50Ratio | Measure::P99Ratio)
    }
}

/// What a measurement found, on one line.
pub fn line(figures: &Figures) -> String {
    let parts: Vec<_> = figures
        .iter()
        .map(|(measure, value)| format!("{} {}", digits(*value), measure.short()))
        .collect();
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

    /// The median of one figure, if it was measured.
    pub fn summary(
        &self,
        mode: &Mode,
        contestant: Contestant,
        measure: Measure,
    ) -> Option<Summary> {
        Summary::of(self.values(mode, contestant, measure)?.to_vec())
    }

    /// The median of how many times what the reference needs the subject needs, taken round by round, since the two
    /// met the same machine in the same round.
    pub fn ratio(
        &self,
        mode: &Mode,
        measure: Measure,
        subject: Contestant,
        reference: Contestant,
    ) -> Option<Summary> {
        let subject = self.values(mode, subject, measure)?;
        let reference = self.values(mode, reference, measure)?;
        Summary::of(subject.iter().zip(reference).map(|(a, b)| a / b).collect())
    }

    /// One figure, round by round.
    fn values(&self, mode: &Mode, contestant: Contestant, measure: Measure) -> Option<&[f64]> {
        let key = (mode.name.clone(), contestant, measure);
        self.rounds.get(&key).map(Vec::as_slice)
    }
}

/// A median and how far the middle half of the rounds lies around it.
pub struct Summary {
    /// The middle of the rounds.
    pub median: f64,
    /// Half the distance between the quartiles, in parts of the median; one round has none.
    pub spread: Option<f64>,
}

impl Summary {
    /// Sums up the rounds.
    fn of(mut values: Vec<f64>) -> Option<Summary> {
        values.sort_unstable_by(f64::total_cmp);
        let median = quantile(&values, 0.5)?;
        let quartiles = quantile(&values, 0.75)? - quantile(&values, 0.25)?;
        Some(Summary {
            median,
            spread: (values.len() > 1).then(|| quartiles / 2.0 / median.abs()),
        })
    }
}

/// The value below which that part of the sorted values lies, between two of them if need be.
fn quantile(sorted: &[f64], part: f64) -> Option<f64> {
    let position = sorted.len().checked_sub(1)? as f64 * part;
    let (low, high) = (
        sorted[position.floor() as usize],
        sorted[position.ceil() as usize],
    );
    Some(low + (high - low) * position.fract())
}

/// The sample below which that part of the sorted samples lies.
pub fn percentile(sorted: &[u32], part: f64) -> u32 {
    let rank = (sorted.len() as f64 * part).ceil() as usize;
    sorted.get(rank.saturating_sub(1)).copied().unwrap_or(0)
}

/// A figure with about three digits that count.
pub fn digits(value: f64) -> String {
    let places = match value.abs() {
        size if size >= 100.0 => 0,
        size if size >= 10.0 => 1,
        size if size >= 1.0 => 2,
        _ => 3,
    };
    format!("{value:.places$}")
}
