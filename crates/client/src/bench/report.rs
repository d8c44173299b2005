//! Report of a benchmark, as text or JSON.

use std::fmt::Write as _;
use std::time::Duration;

use serde_json::{Map, Value, json};
use shared::text::excerpt;

use super::numbers::{counted, grouped, time};
use super::stats::Stats;

/// CPU utilization of the load threads above which the generator may have been the bottleneck.
const BUSY: f64 = 0.95;

/// Percentiles of the latency. In the names of JSON fields `_` replaces the dot.
const PERCENTILES: [(&str, f64); 4] = [("p50", 0.5), ("p90", 0.9), ("p99", 0.99), ("p99.9", 0.999)];

/// Results and parameters of a benchmark.
pub struct Report {
    pub server: String,
    pub address: String,
    pub request: String,
    /// The first reply.
    pub reply: String,
    /// Whether replies are numbers, of which each must be great enough, instead of the same line.
    pub is_number: bool,
    pub clients: u32,
    pub depth: u32,
    /// Target rate in requests per second (open loop), if given.
    pub wanted: Option<u32>,
    pub threads: usize,
    /// Duration of the warm-up, which does not count.
    pub warm_up: Duration,
    /// Duration of the measurement.
    pub window: Duration,
    /// Whether the user ended it early.
    pub interrupted: bool,
    pub stats: Stats,
}

impl Report {
    fn rate(&self) -> f64 {
        match self.window.as_secs_f64() {
            0.0 => 0.0,
            seconds => self.stats.replies as f64 / seconds,
        }
    }

    /// Returns the CPU utilization of the load threads: 1 if all of them were always busy.
    fn busy(&self) -> f64 {
        match self.window.as_secs_f64() * self.threads as f64 {
            0.0 => 0.0,
            seconds => self.stats.cpu.as_secs_f64() / seconds,
        }
    }

    /// Returns the report as text.
    pub fn text(&self) -> String {
        let stats = &self.stats;
        let mut text = String::new();
        let mut line = |name: &str, value: &str| {
            // Writing into a String can't fail.
            let _ = writeln!(text, "{name:<9} {value}");
        };
        line("server", &format!("{} ({})", self.server, self.address));
        let answered = match self.is_number {
            true => format!("a number from {} up", grouped(self.clients.into())),
            false => self.reply.clone(),
        };
        line(
            "request",
            &format!("{}, answered {answered}", excerpt(&self.request)),
        );
        let clients = counted(self.clients.into(), "client", "clients");
        let each = if self.clients == 1 { "" } else { "each " };
        let flight = counted(self.depth.into(), "request", "requests");
        let load = match self.wanted {
            None => format!("{clients}, {each}with {flight} on the way"),
            Some(rate) => {
                let rate = counted(rate.into(), "request", "requests");
                format!("{rate} a second from {clients}, {each}with at most {flight} on the way")
            }
        };
        line("load", &load);
        if self.window.is_zero() {
            line("time", "nothing measured: ended while warming up");
        } else {
            let ended = if self.interrupted {
                ", ended early"
            } else {
                ""
            };
            line(
                "time",
                &format!(
                    "{:.2} s, after {:.2} s to warm up{ended}",
                    self.window.as_secs_f64(),
                    self.warm_up.as_secs_f64()
                ),
            );
            line(
                "requests",
                &format!("{} answered as they must be", grouped(stats.replies)),
            );
            line(
                "rate",
                &format!("{} a second", grouped(self.rate().round() as u64)),
            );
        }
        for (number, (name, nanoseconds)) in self.latencies().into_iter().enumerate() {
            let title = if number == 0 { "latency" } else { "" };
            line(title, &format!("{name:<6}{:>10}", time(nanoseconds)));
        }
        if stats.given_up > 0 {
            let requests = counted(stats.given_up, "request", "requests");
            line("", &format!("without {requests} that had no reply"));
        }
        if let Some(delays) = self.delays() {
            let delays = delays.map(|(name, nanoseconds)| format!("{name} {}", time(nanoseconds)));
            let late = delays.join(", ");
            line(
                "sent",
                &format!("late by {late}; latencies count from when they were due"),
            );
        }
        line("errors", &grouped(stats.errors.total()));
        for error in self.errors() {
            line("", &error);
        }
        if self.busy() > BUSY {
            line(
                "note",
                "the load generator itself was at its limit: the server may be faster",
            );
        }
        text
    }

    /// Returns a line for each kind of error that occurred, with its number.
    fn errors(&self) -> Vec<String> {
        let errors = &self.stats.errors;
        let kinds = [
            (errors.wrong, "wrong reply", "wrong replies"),
            (
                errors.closed,
                "connection closed by the server",
                "connections closed by the server",
            ),
            (errors.reset, "connection broken", "connections broken"),
            (
                errors.timeout,
                "reply that took too long",
                "replies that took too long",
            ),
            (
                errors.connect,
                "attempt to connect again",
                "attempts to connect again",
            ),
            (
                errors.unsent,
                "request not sent within the time-out",
                "requests not sent within the time-out",
            ),
        ];
        let kinds = kinds.into_iter().filter(|(count, ..)| *count > 0);
        let mut said: Vec<String> = kinds
            .map(|(count, one, many)| counted(count, one, many))
            .collect();
        if let (Some(wrong), Some(first)) = (said.first_mut(), &errors.first_wrong) {
            *wrong += &format!(", the first {first}");
        }
        let replies = errors.replies.iter();
        said.extend(replies.map(|(word, count)| format!("{} ERR {word}", grouped(*count))));
        said
    }

    /// Returns the latencies in nanoseconds with their names; none if nothing was measured.
    fn latencies(&self) -> Vec<(&'static str, f64)> {
        let latencies = &self.stats.latencies;
        if self.window.is_zero() || latencies.is_empty() {
            return Vec::new();
        }
        let quantiles = PERCENTILES
            .map(|(name, quantile)| (name, latencies.value_at_quantile(quantile) as f64));
        let mut all = vec![("mean", latencies.mean())];
        all.extend(quantiles);
        all.push(("max", latencies.max() as f64));
        all
    }

    /// Returns send delays in nanoseconds with their names; `None` in a closed loop, where no
    /// request is due at a set time.
    fn delays(&self) -> Option<[(&'static str, f64); 3]> {
        let delays = &self.stats.delays;
        let quantile = |quantile| delays.value_at_quantile(quantile) as f64;
        let all = [
            ("p50", quantile(0.5)),
            ("p99", quantile(0.99)),
            ("max", delays.max() as f64),
        ];
        (!delays.is_empty()).then_some(all)
    }

    /// Returns the report as a JSON object.
    pub fn json(&self) -> Value {
        let (stats, errors) = (&self.stats, &self.stats.errors);
        let microseconds = |(name, nanoseconds): (&str, f64)| {
            (name.replace('.', "_"), json!(nanoseconds / 1000.0))
        };
        let latencies = self.latencies().into_iter();
        let latencies: Map<String, Value> = latencies.map(microseconds).collect();
        let delays = self.delays();
        let delays = delays
            .map(|delays| -> Map<String, Value> { delays.into_iter().map(microseconds).collect() });
        json!({
            "server": self.server,
            "address": self.address,
            "request": self.request,
            "reply": self.reply,
            "clients": self.clients,
            "depth": self.depth,
            "wanted_rate": self.wanted,
            "threads": self.threads,
            "warm_up_seconds": self.warm_up.as_secs_f64(),
            "seconds": self.window.as_secs_f64(),
            "interrupted": self.interrupted,
            "requests": stats.replies,
            "rate": self.rate(),
            "latency_us": (!latencies.is_empty()).then_some(latencies),
            "given_up": stats.given_up,
            "send_delay_us": delays,
            "errors": {
                "total": errors.total(),
                "wrong": errors.wrong,
                "closed": errors.closed,
                "broken": errors.reset,
                "timeout": errors.timeout,
                "connect": errors.connect,
                "unsent": errors.unsent,
                "replies": errors.replies,
            },
            "first_wrong": errors.first_wrong,
            "sent": stats.sent,
            "answered": stats.answered,
            "generator_busy": self.busy(),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn report(stats: Stats, window: Duration) -> Report {
        Report {
            server: "localhost:4242".to_string(),
            address: "127.0.0.1:4242".to_string(),
            request: "WHY".to_string(),
            reply: "42".to_string(),
            is_number: false,
            clients: 2,
            depth: 1,
            wanted: None,
            threads: 1,
            warm_up: Duration::from_millis(500),
            window,
            interrupted: true,
            stats,
        }
    }

    #[test]
    fn latencies_are_what_they_are_called() {
        let mut stats = Stats::new();
        for milliseconds in 1..=1000 {
            stats.time(Duration::from_millis(milliseconds), 1, false);
        }
        let report = report(stats, Duration::from_secs(1));
        let latencies = "\
latency   mean      501 ms
          p50       500 ms
          p90       900 ms
          p99       990 ms
          p99.9     999 ms
          max       1.00 s
errors    0
";
        assert!(report.text().ends_with(latencies), "{}", report.text());
        let json = &report.json()["latency_us"];
        let rounded = ["mean", "p50", "p90", "p99", "p99_9", "max"]
            .map(|name| (json[name].as_f64().expect(name) / 1e4).round());
        assert_eq!(rounded, [50.0, 50.0, 90.0, 99.0, 100.0, 100.0]);
    }

    #[test]
    fn without_time_there_are_none() {
        let mut stats = Stats::new();
        // Sent during the warm-up, and answered after the end.
        stats.time(Duration::from_millis(600), 1, false);
        let report = report(stats, Duration::ZERO);
        assert!(!report.text().contains("latency"), "{}", report.text());
        assert!(report.json()["latency_us"].is_null());
    }
}
