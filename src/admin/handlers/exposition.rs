//! Metrics exposition in the text formats of OpenMetrics and Prometheus. `docs/metrics.md` lists
//! the metrics.

use std::fmt::Display;
use std::time::Duration;

use super::State;
use super::process::Process;
use crate::cluster::{ErrorKind, StatsSnapshot};
use crate::metrics::{ACCEPT_ERRORS, BOUNDS, CLOSED, Closed, HistogramSnapshot, KINDS, REFUSED};
use crate::protocol::http::{Request, Response, STATUSES};
use shared::command::{CommandClass, OUTCOMES, Outcome};

/// Media type by which a client asks for OpenMetrics.
const OPEN_METRICS: &str = "application/openmetrics-text";

/// Returns the response to a request for the metrics.
pub fn response(state: &State<'_>, request: &Request) -> Response {
    let is_open_metrics = request.prefers(OPEN_METRICS, "text/plain");
    let mut exposition = Exposition {
        is_open_metrics,
        prefix: "blockchain_tcpd",
        text: String::new(),
    };
    exposition.add_service(state);
    if let Some(cluster) = state.context.cluster.snapshot() {
        exposition.add_cluster(&cluster);
    }
    if let Some(process) = Process::now() {
        exposition.prefix = "process";
        exposition.add_process(&process);
    }
    let (end, media_type) = match is_open_metrics {
        true => (
            "# EOF\n",
            "application/openmetrics-text; version=1.0.0; charset=utf-8",
        ),
        false => ("", "text/plain; version=0.0.4; charset=utf-8"),
    };
    Response {
        status: 200,
        media_type,
        body: exposition.text + end,
    }
}

/// Writer of the metrics.
struct Exposition {
    /// Whether the format is that of OpenMetrics, not the older one of Prometheus.
    is_open_metrics: bool,
    /// What all names begin with.
    prefix: &'static str,
    text: String,
}

type Text = &'static str;

impl Exposition {
    #[rustfmt::skip] // a table: one metric a row
    fn add_service(&mut self, state: &State<'_>) {
        let State { load, sums, .. } = state;
        let id = state.context.member.id.to_string();
        let draining = state.draining.unwrap_or_default();
        self.info("build_info", "The version of the program", &[("version", env!("CARGO_PKG_VERSION"))]);
        self.info("server_info", "The id of this server", &[("id", &id)]);
        self.gauge("ready", "Whether clients should be sent here", u64::from(state.refusal().is_none()));
        self.gauge("clients", "Clients connected", load.clients);
        self.gauge("clients_limit", "Clients that can be served at the same time", load.workers);
        self.gauge("front_clients", "Clients that need no worker at the moment", load.front);
        self.gauge("queue_clients", "Clients that wait for a worker", load.waiting);
        self.gauge("queue_limit", "Clients that may wait", load.queue);
        self.gauge("drain_seconds", "Time since the drain began", float(draining.as_secs_f64()));
        self.gauge("handover_seconds", "Duration of the last handover", float(sums.handover.as_secs_f64()));
        self.counter("connections_accepted", "Connections accepted", sums.accepted);
        self.counters("connections_refused", "Connections refused", "reason", REFUSED, &sums.refused);
        self.counters("connections_closed", "Connections whose service has ended", "reason", CLOSED, &sums.closed);
        self.counters("accept_errors", "Accepts that failed", "kind", ACCEPT_ERRORS, &sums.accept_errors);
        self.add_requests(state);
        self.begin("request_duration_seconds", "From a request read to its reply written", "histogram");
        for (kind, durations) in KINDS.into_iter().zip(&sums.durations) {
            self.histogram("request_duration_seconds", &[("kind", kind)], durations);
        }
        self.begin("queue_wait_seconds", "From a client accepted to a worker taking it", "histogram");
        self.histogram("queue_wait_seconds", &[], &sums.waits);
        self.counter("received_bytes", "Bytes read from clients", sums.received);
        self.counter("sent_bytes", "Bytes written to clients", sums.sent);
        self.counter("worker_panics", "Requests that made the server fail", sums.closed[Closed::Panicked as usize]);
        self.counter("handovers", "Handovers from a previous process", sums.handovers);
        self.counters("http_requests", "Requests for health, metrics and the page", "code", STATUSES.map(|(code, _)| code), &state.answered);
    }

    #[rustfmt::skip] // a table: one metric a row
    fn add_cluster(&mut self, cluster: &StatsSnapshot) {
        // If there was no contact, its age is infinite.
        let age = cluster.age().map_or("+Inf".to_string(), float);
        self.info("cluster_info", "The cluster of this server", &[("mode", cluster.mode), ("name", &cluster.name)]);
        self.gauge("cluster_connected", "Whether this server is in touch with its cluster", u64::from(cluster.connected));
        self.gauge("cluster_servers", "Servers at the last contact with the cluster", cluster.servers);
        self.gauge("cluster_clients", "Clients of all servers at the last contact with the cluster", cluster.clients);
        self.gauge("cluster_age_seconds", "Time since the last contact with the cluster", age);
        self.gauge("cluster_shares_id", "Whether another server of the cluster has the same id", u64::from(cluster.shares_id));
        self.counter("cluster_heartbeats", "Heartbeats that were answered", cluster.heartbeats);
        self.counters("cluster_censuses", "Polls of all servers, each for all who asked meanwhile", "outcome", ["ok", "unavailable"], &cluster.censuses);
        self.counters("cluster_errors", "Failed attempts to contact the cluster", "kind", ErrorKind::NAMES, &cluster.errors);
    }

    #[rustfmt::skip] // a table: one metric a row
    fn add_process(&mut self, process: &Process) {
        self.counter("cpu_seconds", "Processor time", float(process.cpu_seconds));
        self.gauge("start_time_seconds", "When the process started, since 1970", float(process.start_seconds));
        self.gauge("resident_memory_bytes", "Memory in use", process.resident_bytes);
        self.gauge("virtual_memory_bytes", "Address space in use", process.virtual_bytes);
        self.gauge("threads", "Threads", process.threads);
        if let Some(open) = process.open_fds {
            self.gauge("open_fds", "Open file descriptors", open);
        }
        if let Some(most) = process.max_fds {
            self.gauge("max_fds", "Limit on open file descriptors", most);
        }
    }

    /// Adds the requests by command, kind and outcome. Expected label sets are exposed at 0 from
    /// the start, so that their first event shows as an increase.
    fn add_requests(&mut self, state: &State<'_>) {
        self.begin("requests", "Requests answered", "counter");
        let commands = state.context.commands.iter().copied().flatten().enumerate();
        let commands = commands.map(|(index, spec)| (Some(index), spec.name, spec.class));
        for (index, command, class) in commands.chain([(None, "none", CommandClass::Query)]) {
            let kind = KINDS[usize::from(class == CommandClass::Compute)];
            let expected: &[&str] = match index {
                Some(_) => &["ok", "unavailable", "internal"],
                None => &["unknown", "badinput", "toolong", "internal"],
            };
            for (number, outcome) in OUTCOMES.into_iter().enumerate() {
                let count = state.sums.outcomes[Outcome::at(index, number).index()];
                if expected.contains(&outcome) || count > 0 {
                    let labels = [("command", command), ("kind", kind), ("outcome", outcome)];
                    self.sample("requests_total", &labels, count);
                }
            }
        }
    }

    /// Adds a metric whose information is in its labels.
    fn info(&mut self, name: Text, help: Text, labels: &[(Text, &str)]) {
        self.begin(name, help, "gauge");
        self.sample(name, labels, 1);
    }

    fn gauge(&mut self, name: Text, help: Text, value: impl Display) {
        self.begin(name, help, "gauge");
        self.sample(name, &[], value);
    }

    fn counter(&mut self, name: Text, help: Text, value: impl Display) {
        self.begin(name, help, "counter");
        self.sample(&format!("{name}_total"), &[], value);
    }

    /// Adds a counter for each of these values of a label.
    fn counters<const N: usize>(
        &mut self,
        name: Text,
        help: Text,
        label: Text,
        values: [impl ToString; N],
        counts: &[u64; N],
    ) {
        self.begin(name, help, "counter");
        for (value, count) in values.iter().zip(counts) {
            self.sample(
                &format!("{name}_total"),
                &[(label, &value.to_string())],
                count,
            );
        }
    }

    /// Adds the samples of a histogram.
    fn histogram(&mut self, name: Text, labels: &[(Text, &str)], times: &HistogramSnapshot) {
        let all: u64 = times.buckets.iter().sum();
        self.sample(
            &format!("{name}_sum"),
            labels,
            float(times.sum.as_secs_f64()),
        );
        self.sample(&format!("{name}_count"), labels, all);
        let ends = BOUNDS.map(|bound| float(Duration::from_micros(bound).as_secs_f64()));
        let mut count = 0;
        for (end, bucket) in ends
            .into_iter()
            .chain(["+Inf".to_string()])
            .zip(times.buckets)
        {
            count += bucket;
            let labels = [&[("le", end.as_str())], labels].concat();
            self.sample(&format!("{name}_bucket"), &labels, count);
        }
    }

    /// Begins a metric with its metadata. In the older format, those of a counter have the name of
    /// its samples.
    fn begin(&mut self, name: Text, help: Text, kind: Text) {
        let end = match kind == "counter" && !self.is_open_metrics {
            true => "_total",
            false => "",
        };
        let name = format!("{}_{name}{end}", self.prefix);
        self.text += &format!("# HELP {name} {help}\n# TYPE {name} {kind}\n");
    }

    fn sample(&mut self, name: &str, labels: &[(Text, &str)], value: impl Display) {
        let labels: Vec<String> = labels
            .iter()
            .map(|(label, value)| format!("{label}={value:?}"))
            .collect();
        let labels = match labels.is_empty() {
            true => String::new(),
            false => format!("{{{}}}", labels.join(",")),
        };
        self.text += &format!("{}_{name}{labels} {value}\n", self.prefix);
    }
}

/// Formats a number as clients of Prometheus do: never with an exponent, always with a fraction.
fn float(value: f64) -> String {
    match value.fract() == 0.0 {
        true => format!("{value:.1}"),
        false => value.to_string(),
    }
}
