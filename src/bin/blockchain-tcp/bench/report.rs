//! What a bench says at its end, for people and for scripts.

use std::fmt::Write as _;
use std::time::Duration;

use serde_json::{Value, json};

use super::tally::Tally;

/// Threads that used more of their time than this may have been what was measured.
const BUSY: f64 = 0.95;

/// The percentiles of the latency, by the names that they have here and in JSON.
const PERCENTILES: [(&str, &str, f64); 4] = [
    ("p50", "p50", 0.5),
    ("p90", "p90", 0.9),
    ("p99", "p99", 0.99),
    ("p99.9", "p99_9", 0.999),
];

/// What was measured, and how.
pub struct Report {
    pub server: String,
    pub address: String,
    pub request: String,
    /// The first reply.
    pub reply: String,
    /// Whether the others need not be the same, but numbers that are great enough.
    pub is_number: bool,
    pub clients: u32,
    pub depth: u32,
    pub threads: usize,
    /// What went before, uncounted.
    pub warm_up: Duration,
    /// How long replies counted.
    pub window: Duration,
    /// Whether the user ended it.
    pub interrupted: bool,
    pub tally: Tally,
}

impl Report {
    fn rate(&self) -> f64 {
        match self.window.as_secs_f64() {
            0.0 => 0.0,
            seconds => self.tally.replies as f64 / seconds,
        }
    }

    /// Which part of its time the load generator was at work: 1 if all its threads always were.
    fn busy(&self) -> f64 {
        match self.window.as_secs_f64() * self.threads as f64 {
            0.0 => 0.0,
            seconds => self.tally.cpu.as_secs_f64() / seconds,
        }
    }

    /// For people.
    pub fn text(&self) -> String {
        let tally = &self.tally;
        let mut text = String::new();
        let mut line = |name: &str, value: &str| {
            // Writing to a string can't fail.
            let _ = writeln!(text, "{name:<9} {value}");
        };
        line("server", &format!("{} ({})", self.server, self.address));
        let answered = match self.is_number {
            true => format!("a number from {} up", grouped(self.clients.into())),
            false => self.reply.clone(),
        };
        line("request", &format!("{}, answered {answered}", self.request));
        let flight = match self.depth {
            1 => "1 request".to_string(),
            depth => format!("{} requests", grouped(depth.into())),
        };
        line(
            "load",
            &format!(
                "{} clients, each with {flight} on the way",
                grouped(self.clients.into())
            ),
        );
        let ended = if self.interrupted {
            ", ended early"
        } else {
            ""
        };
        let warm_up = self.warm_up.as_secs_f64();
        line(
            "time",
            &format!(
                "{:.2} s, after {warm_up:.2} s to warm up{ended}",
                self.window.as_secs_f64()
            ),
        );
        line(
            "requests",
            &format!("{} answered as they must be", grouped(tally.replies)),
        );
        line(
            "rate",
            &format!("{} a second", grouped(self.rate().round() as u64)),
        );
        if tally.replies > 0 {
            let latencies = &tally.latencies;
            line(
                "latency",
                &format!("{:<6}{:>10}", "mean", time(latencies.mean())),
            );
            for (name, _, quantile) in PERCENTILES {
                let value = latencies.value_at_quantile(quantile) as f64;
                line("", &format!("{name:<6}{:>10}", time(value)));
            }
            line(
                "",
                &format!("{:<6}{:>10}", "max", time(latencies.max() as f64)),
            );
        }
        line("errors", &grouped(tally.errors.total()));
        for (count, kind) in self.errors() {
            line("", &format!("{} {kind}", grouped(count)));
        }
        if self.busy() > BUSY {
            line(
                "note",
                "the load generator itself was at its limit: the server may be faster",
            );
        }
        text
    }

    fn errors(&self) -> Vec<(u64, String)> {
        let errors = &self.tally.errors;
        let wrong = match &errors.first_wrong {
            Some(first) => format!("wrong replies, the first {first}"),
            None => String::new(),
        };
        let mut kinds = vec![
            (errors.wrong, wrong),
            (
                errors.closed,
                "connections closed by the server".to_string(),
            ),
            (errors.reset, "connections broken".to_string()),
            (errors.timeout, "replies that took too long".to_string()),
            (errors.connect, "attempts to connect again".to_string()),
        ];
        let replies = errors.replies.iter();
        kinds.extend(replies.map(|(word, count)| (*count, format!("ERR {word}"))));
        kinds.retain(|(count, _)| *count > 0);
        kinds
    }

    /// For scripts: an object.
    pub fn json(&self) -> Value {
        let (tally, errors) = (&self.tally, &self.tally.errors);
        let latency = match tally.replies {
            0 => Value::Null,
            _ => {
                let microseconds = |nanoseconds: f64| json!(nanoseconds / 1000.0);
                let latencies = &tally.latencies;
                let mut object = json!({
                    "mean": microseconds(latencies.mean()),
                    "max": microseconds(latencies.max() as f64),
                });
                for (_, key, quantile) in PERCENTILES {
                    object[key] = microseconds(latencies.value_at_quantile(quantile) as f64);
                }
                object
            }
        };
        json!({
            "server": self.server,
            "address": self.address,
            "request": self.request,
            "reply": self.reply,
            "clients": self.clients,
            "depth": self.depth,
            "threads": self.threads,
            "warm_up_seconds": self.warm_up.as_secs_f64(),
            "seconds": self.window.as_secs_f64(),
            "interrupted": self.interrupted,
            "requests": tally.replies,
            "rate": self.rate(),
            "latency_us": latency,
            "errors": {
                "total": errors.total(),
                "wrong": errors.wrong,
                "closed": errors.closed,
                "broken": errors.reset,
                "timeout": errors.timeout,
                "connect": errors.connect,
                "replies": errors.replies,
            },
            "first_wrong": errors.first_wrong,
            "sent": tally.sent,
            "answered": tally.answered,
            "generator_busy": self.busy(),
        })
    }
}

/// Nanoseconds in a unit in which they are easy to read.
fn time(nanoseconds: f64) -> String {
    let (value, unit) = match nanoseconds {
        less if less < 1e6 => (less / 1e3, "µs"),
        less if less < 1e9 => (less / 1e6, "ms"),
        more => (more / 1e9, "s"),
    };
    match value {
        small if small < 9.995 => format!("{small:.2} {unit}"),
        middle if middle < 99.95 => format!("{middle:.1} {unit}"),
        great => format!("{great:.0} {unit}"),
    }
}

/// With a comma after each thousand.
pub fn grouped(number: u64) -> String {
    let digits = number.to_string();
    let mut text = String::new();
    for (at, digit) in digits.chars().enumerate() {
        if at > 0 && (digits.len() - at).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_easy_to_read() {
        for (number, shown) in [
            (0, "0"),
            (999, "999"),
            (1000, "1,000"),
            (1234567, "1,234,567"),
        ] {
            assert_eq!(grouped(number), shown);
        }
        for (nanoseconds, shown) in [
            (1.0, "0.00 µs"),
            (9_994.0, "9.99 µs"),
            (9_996.0, "10.0 µs"),
            (123_456.0, "123 µs"),
            (1_500_000.0, "1.50 ms"),
            (2_000_000_000.0, "2.00 s"),
        ] {
            assert_eq!(time(nanoseconds), shown);
        }
    }
}
