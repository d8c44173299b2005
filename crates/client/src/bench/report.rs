//! Report of a benchmark, as text or JSON.

use std::fmt::Write as _;
use std::sync::Arc;
use std::time::Duration;

use indicatif::HumanCount;
use serde_json::{Map, Value, json};
use shared::text::excerpt;

use blockchain_tcp::load::{Expected, KINDS, Stats, Workload};

/// CPU utilization of the load threads above which the generator may have been the bottleneck.
const BUSY: f64 = 0.95;

/// Percentiles of the latency. In the names of JSON fields `_` replaces the dot.
const LATENCIES: [(&str, f64); 5] = [
    ("p50", 0.5),
    ("p90", 0.9),
    ("p99", 0.99),
    ("p99.9", 0.999),
    ("max", 1.0),
];

/// Names of times, and the times in nanoseconds.
type Times = Vec<(&'static str, f64)>;

/// Results and parameters of a benchmark.
pub struct Report {
    pub server: String,
    /// The first reply.
    pub reply: String,
    pub threads: usize,
    /// Whether the user ended it early.
    pub interrupted: bool,
    pub workload: Arc<Workload>,
    pub stats: Stats,
}

impl Report {
    fn rate(&self) -> f64 {
        per_second(self.stats.replies as f64, self.stats.time)
    }

    /// Returns the CPU utilization of the load threads: 1 if all of them were always busy.
    fn busy(&self) -> f64 {
        let cpu = self.stats.cpu.as_secs_f64() / self.threads as f64;
        per_second(cpu, self.stats.time)
    }

    /// Returns the report as text.
    pub fn text(&self) -> String {
        let (workload, stats) = (&self.workload, &self.stats);
        let mut text = String::new();
        let mut line = |name: &str, value: String| {
            // Writing into a String can't fail.
            let _ = writeln!(text, "{name:<9} {value}");
        };
        line("server", format!("{} ({})", self.server, workload.address));
        let answered = match matches!(workload.expected, Expected::Count) {
            true => format!("a number from {} up", HumanCount(workload.clients)),
            false => self.reply.clone(),
        };
        let request = excerpt(&workload.request);
        line("request", format!("{request}, answered {answered}"));
        line("load", load(workload));
        if stats.time.is_zero() {
            line(
                "time",
                "nothing measured: ended while warming up".to_string(),
            );
        } else {
            let (time, warm_up) = (stats.time.as_secs_f64(), workload.warm_up.as_secs_f64());
            let mut text = format!("{time:.2} s, after {warm_up:.2} s to warm up");
            if self.interrupted {
                text += ", ended early";
            }
            line("time", text);
            let replies = HumanCount(stats.replies);
            line("requests", format!("{replies} answered as they must be"));
            let rate = HumanCount(self.rate().round() as u64);
            line("rate", format!("{rate} a second"));
        }
        for (number, (name, nanoseconds)) in self.latencies().into_iter().enumerate() {
            let title = if number == 0 { "latency" } else { "" };
            line(title, format!("{name:<6}{:>10}", time(nanoseconds)));
        }
        if stats.given_up > 0 {
            let requests = counted(stats.given_up, "request", "requests");
            line("", format!("without {requests} that had no reply"));
        }
        line("errors", HumanCount(stats.errors.total()).to_string());
        for error in self.errors() {
            line("", error);
        }
        if self.busy() > BUSY {
            let text = "the load generator itself was at its limit: the server may be faster";
            line("note", text.to_string());
        }
        text
    }

    /// Returns a line for each kind of error that occurred, with its number.
    fn errors(&self) -> Vec<String> {
        let errors = &self.stats.errors;
        let mut lines = Vec::new();
        for (kind, name) in KINDS {
            let count = errors.count(kind);
            if count > 0 {
                lines.push(format!("{name}: {}", HumanCount(count)));
            }
        }
        if let (Some(wrong), Some(first)) = (lines.first_mut(), &errors.first_wrong) {
            *wrong += &format!(", the first {first}");
        }
        let replies = errors.replies.iter();
        lines.extend(replies.map(|(word, count)| format!("ERR {word}: {}", HumanCount(*count))));
        lines
    }

    /// Returns the latencies with their names; none if nothing was measured.
    fn latencies(&self) -> Times {
        let latencies = &self.stats.latencies;
        if self.stats.time.is_zero() || latencies.is_empty() {
            return Vec::new();
        }
        let value = |(name, quantile)| (name, latencies.value_at_quantile(quantile) as f64);
        let mean = ("mean", latencies.mean());
        std::iter::once(mean).chain(LATENCIES.map(value)).collect()
    }

    /// Returns the report as a JSON object.
    pub fn json(&self) -> Value {
        let (workload, stats) = (&self.workload, &self.stats);
        let errors = &stats.errors;
        let counts = KINDS.map(|(kind, _)| (kind.to_string(), json!(errors.count(kind))));
        let mut counts = Map::from_iter(counts);
        counts.insert("total".to_string(), json!(errors.total()));
        counts.insert("replies".to_string(), json!(errors.replies));
        json!({
            "server": self.server,
            "address": workload.address.to_string(),
            "request": String::from_utf8_lossy(&workload.request),
            "reply": self.reply,
            "clients": workload.clients,
            "depth": workload.depth,
            "wanted_rate": workload.rate,
            "threads": self.threads,
            "warm_up_seconds": workload.warm_up.as_secs_f64(),
            "seconds": stats.time.as_secs_f64(),
            "interrupted": self.interrupted,
            "requests": stats.replies,
            "rate": self.rate(),
            "latency_us": microseconds(self.latencies()),
            "given_up": stats.given_up,
            "errors": counts,
            "first_wrong": errors.first_wrong,
            "sent": stats.sent,
            "answered": stats.answered,
            "generator_busy": self.busy(),
        })
    }
}

fn per_second(amount: f64, time: Duration) -> f64 {
    match time.is_zero() {
        true => 0.0,
        false => amount / time.as_secs_f64(),
    }
}

fn load(workload: &Workload) -> String {
    let clients = counted(workload.clients, "client", "clients");
    let each = if workload.clients == 1 { "" } else { "each " };
    let flight = counted(workload.depth.into(), "request", "requests");
    match workload.rate {
        None => format!("{clients}, {each}with {flight} on the way"),
        Some(rate) => {
            let rate = counted(rate.into(), "request", "requests");
            format!("{rate} a second from {clients}, {each}with at most {flight} on the way")
        }
    }
}

/// Returns a JSON object of the times in microseconds; `None` if there are none.
fn microseconds(times: Times) -> Option<Map<String, Value>> {
    let times = times.into_iter();
    let times: Map<_, _> = times
        .map(|(name, nanoseconds)| (name.replace('.', "_"), json!(nanoseconds / 1000.0)))
        .collect();
    (!times.is_empty()).then_some(times)
}

/// Formats a number with the noun that it counts.
pub fn counted(number: u64, one: &str, many: &str) -> String {
    let name = if number == 1 { one } else { many };
    format!("{} {name}", HumanCount(number))
}

/// Formats nanoseconds in a unit that is easy to read.
fn time(nanoseconds: f64) -> String {
    format!("{:.2?}", Duration::from_nanos(nanoseconds as u64))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn latencies_are_what_they_are_called() {
        let mut stats = Stats::default();
        for milliseconds in 1..=1000 {
            stats.record_latency(Duration::from_millis(milliseconds), 1);
        }
        let address = ([127, 0, 0, 1], 4242).into();
        let mut report = Report {
            server: "localhost:4242".to_string(),
            reply: "42".to_string(),
            threads: 1,
            interrupted: true,
            workload: Arc::new(Workload::new(address, b"WHY", Expected::same_as(b"42"))),
            stats,
        };
        // Sent during the warm-up, and answered after the end.
        assert!(!report.text().contains("latency"), "{}", report.text());
        assert!(report.json()["latency_us"].is_null());
        report.stats.time = Duration::from_secs(1);
        let latencies = "\
latency   mean    500.50ms
          p50     500.17ms
          p90     900.20ms
          p99     990.38ms
          p99.9   999.29ms
          max        1.00s
errors    0
";
        assert!(report.text().ends_with(latencies), "{}", report.text());
        let json = &report.json()["latency_us"];
        let rounded = ["mean", "p50", "p90", "p99", "p99_9", "max"]
            .map(|name| (json[name].as_f64().expect(name) / 1e4).round());
        assert_eq!(rounded, [50.0, 50.0, 90.0, 99.0, 100.0, 100.0]);
    }
}
