//! Metrics exposition in the text formats of OpenMetrics and Prometheus. `docs/metrics.md` lists
//! the metrics.

use std::collections::BTreeSet;
use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::Duration;

use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, MetricEncoder, NoLabelSet, text};
use prometheus_client::metrics::MetricType;
use prometheus_client::registry::Registry;
use store::{PullStats, Store};
use uuid::Uuid;

use super::process::Process;
use super::{CODES, State};
use crate::cluster;
use crate::metrics::{
    ACCEPT_ERRORS, BOUNDS, CLOSED, Closed, HistogramSnapshot, KINDS, MetricsSnapshot, REFUSED,
};
use crate::protocol::PROTOCOLS;
use crate::protocol::http::{Request, Response};
use crate::server::health::Load;
use shared::command::{CommandClass, CommandSpec, OUTCOMES, Outcome};

/// Media type by which a client asks for OpenMetrics.
const OPEN_METRICS: &str = "application/openmetrics-text";

/// Returns the response to a request for the metrics.
pub fn response(state: &State<'_>, request: &Request) -> Response {
    let open_metrics = open_metrics(state);
    let (media_type, body) = if request.prefers(OPEN_METRICS, "text/plain") {
        let media_type = "application/openmetrics-text; version=1.0.0; charset=utf-8";
        (media_type, open_metrics)
    } else {
        (
            "text/plain; version=0.0.4; charset=utf-8",
            older(&open_metrics),
        )
    };
    Response {
        status: 200,
        media_type,
        body,
    }
}

fn open_metrics(state: &State<'_>) -> String {
    let commands = state.context.commands.iter().copied().flatten();
    let stats = Stats {
        id: state.context.member.id,
        ready: state.refusal().is_none(),
        load: state.load,
        sums: state.sums.clone(),
        draining: state.draining.unwrap_or_default(),
        answered: state.answered,
        commands: commands
            .map(|entry: &CommandSpec| (entry.name, entry.class))
            .collect(),
        protocols: state.context.protocols.clone(),
        cluster: state.context.cluster.snapshot(),
        store: state.context.store.clone(),
    };
    let mut registry = Registry::default();
    let own = registry.sub_registry_with_prefix("blockchain_tcpd");
    own.register_collector(Box::new(stats));
    if let Some(process) = Process::now() {
        let process_registry = registry.sub_registry_with_prefix("process");
        process_registry.register_collector(Box::new(process));
    }
    let mut text = String::new();
    // Writing into a String can't fail.
    let _ = text::encode(&mut text, &registry);
    text
}

/// Converts to the older Prometheus text format, in which the metadata of a counter has the
/// `_total` name of its samples and no `# EOF` ends the text.
fn older(open_metrics: &str) -> String {
    let counters: BTreeSet<&str> = open_metrics
        .lines()
        .filter_map(|line| line.strip_prefix("# TYPE ")?.strip_suffix(" counter"))
        .collect();
    let mut text = String::with_capacity(open_metrics.len() + 1024);
    for line in open_metrics.lines().filter(|line| *line != "# EOF") {
        let mut words = line.splitn(4, ' ');
        match (words.next(), words.next(), words.next(), words.next()) {
            (Some("#"), Some(kind), Some(name), Some(rest)) if counters.contains(name) => {
                text.push_str(&format!("# {kind} {name}_total {rest}\n"));
            }
            _ => {
                text.push_str(line);
                text.push('\n');
            }
        }
    }
    text
}

/// Names of how a stream of users ends.
const STREAMED: [&str; 3] = ["whole", "client", "store"];

/// Values of the metrics of the service.
struct Stats {
    id: Uuid,
    ready: bool,
    load: Load,
    sums: MetricsSnapshot,
    draining: Duration,
    answered: [u64; CODES.len()],
    /// Schemes of the protocols that the server listens for.
    protocols: Vec<String>,
    commands: Vec<(&'static str, CommandClass)>,
    cluster: Option<cluster::StatsSnapshot>,
    store: Option<(Store, Option<Arc<PullStats>>)>,
}

impl fmt::Debug for Stats {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Stats")
    }
}

impl Collector for Stats {
    #[rustfmt::skip] // a table: one metric a row
    fn encode(&self, encoder: DescriptorEncoder<'_>) -> fmt::Result {
        let Stats { load, sums, .. } = self;
        let (refused, closed) = (REFUSED.iter().zip(sums.refused), CLOSED.iter().zip(sums.closed));
        let accept_errors = ACCEPT_ERRORS.iter().zip(sums.accept_errors);
        let durations = KINDS.iter().zip(&sums.durations);
        let codes = CODES.iter().zip(self.answered);
        let version = env!("CARGO_PKG_VERSION");
        let mut rows = vec![
            info("build_info", "The version of the program", [("version", version)]),
            info("server_info", "The id of this server", [("id", &self.id.to_string())]),
            gauge("ready", "Whether clients should be sent here", u64::from(self.ready)),
            gauge("clients", "Clients connected", load.clients as u64),
            gauge("clients_limit", "Clients that can be served at the same time", load.workers as u64),
            gauge("front_clients", "Clients that need no worker at the moment", load.front as u64),
            gauge("queue_clients", "Clients that wait for a worker", load.waiting as u64),
            gauge("queue_limit", "Clients that may wait", load.queue as u64),
            gauge("drain_seconds", "Time since the drain began", self.draining.as_secs_f64()),
            gauge("handover_seconds", "Duration of the last handover", sums.handover.as_secs_f64()),
            counter("connections_accepted", "Connections accepted", sums.accepted),
            counters("connections_refused", "Connections refused", "reason", refused),
            counters("connections_closed", "Connections whose service has ended", "reason", closed),
            counters("accept_errors", "Accepts that failed", "kind", accept_errors),
            self.requests(),
            histograms("request_duration_seconds", "From a request read to its reply written", "kind", durations),
            histogram("queue_wait_seconds", "From a client accepted to the front or a worker taking it", &sums.waits),
            counter("received_bytes", "Bytes read from clients", sums.received),
            counter("sent_bytes", "Bytes written to clients", sums.sent),
            counter("worker_panics", "Requests that made the server fail", sums.closed[Closed::Panicked as usize]),
            counter("handovers", "Handovers from a previous process", sums.handovers),
            counters("http_requests", "Requests for health, metrics and the page", "code", codes),
        ];
        if let Some(cluster) = &self.cluster {
            let censuses = ["ok", "unavailable"].iter().zip(cluster.censuses);
            // If there was no contact, its age is infinite.
            let age = cluster.age().unwrap_or(f64::INFINITY);
            rows.extend([
                info("cluster_info", "The cluster of this server", [("mode", cluster.mode), ("name", &cluster.name)]),
                gauge("cluster_connected", "Whether this server is in touch with its cluster", u64::from(cluster.connected)),
                gauge("cluster_servers", "Servers at the last contact with the cluster", cluster.servers),
                gauge("cluster_clients", "Clients of all servers at the last contact with the cluster", cluster.clients),
                gauge("cluster_age_seconds", "Time since the last contact with the cluster", age),
                gauge("cluster_shares_id", "Whether another server of the cluster has the same id", u64::from(cluster.shares_id)),
                counter("cluster_heartbeats", "Heartbeats that were answered", cluster.heartbeats),
                counters("cluster_censuses", "Polls of all servers, each for all who asked meanwhile", "outcome", censuses),
                counters("cluster_errors", "Failed attempts to contact the cluster", "kind", cluster::ErrorKind::NAMES.into_iter().zip(cluster.errors)),
            ]);
        }
        if let Some((store, pulls)) = &self.store {
            let stats = store.stats();
            let count = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
            let size = |counter: &AtomicUsize| counter.load(Ordering::Relaxed) as u64;
            let labelled = |names: &'static [&'static str], counters: &[AtomicU64]| {
                names.iter().zip(counters.iter().map(count).collect::<Vec<_>>())
            };
            rows.extend([
                gauge("store_up", "Whether the database answers", u64::from(store.is_up())),
                gauge("store_connections", "Connections to the database", size(&stats.connections)),
                gauge("store_running", "Pieces of work that the database does", size(&stats.running)),
                gauge("store_waiting", "Callers that wait for the database", size(&stats.waiting)),
                gauge("store_stream_clients", "Clients that take all users at once", size(&stats.streams)),
                counters("store_streams", "Answers with all users that have ended", "outcome", labelled(&STREAMED, &stats.streamed)),
                counter("store_done", "Pieces of work that the database has done", count(&stats.done)),
                counters("store_errors", "Failures of the store", "kind", labelled(&store::ErrorKind::NAMES, &stats.errors)),
            ]);
            if let Some(pulls) = pulls {
                let age = pulls.age().map_or(f64::INFINITY, |age| age.as_secs_f64());
                rows.extend([
                    gauge("users_pull_age_seconds", "Time since a server last pulled the whole feed", age),
                    gauge("users_feed_interval_seconds", "Time between two pulls", pulls.interval.as_secs_f64()),
                    gauge("users_pull_leads", "Whether this server pulls", u64::from(pulls.leads.load(Ordering::Relaxed))),
                    gauge("users_pull_seconds", "Duration of the last whole pull of this server", count(&pulls.duration) as f64 / 1000.0),
                    counters("users_pulls", "Pulls of this server", "outcome", labelled(&PullStats::OUTCOMES, &pulls.pulls)),
                    counters("users_rows", "Users of the feed", "outcome", labelled(&PullStats::ROWS, &pulls.rows)),
                ]);
            }
        }
        encode(rows, encoder)
    }
}

impl Collector for Process {
    #[rustfmt::skip] // a table: one metric a row
    fn encode(&self, encoder: DescriptorEncoder<'_>) -> fmt::Result {
        let mut rows = vec![
            counter("cpu_seconds", "Processor time", self.cpu_seconds),
            gauge("start_time_seconds", "When the process started, since 1970", self.start_seconds),
            gauge("resident_memory_bytes", "Memory in use", self.resident_bytes),
            gauge("virtual_memory_bytes", "Address space in use", self.virtual_bytes),
            gauge("threads", "Threads", self.threads),
        ];
        rows.extend(self.open_fds.map(|open| gauge("open_fds", "Open file descriptors", open)));
        rows.extend(self.max_fds.map(|most| gauge("max_fds", "Limit on open file descriptors", most)));
        encode(rows, encoder)
    }
}

impl Stats {
    /// Returns the requests by command, kind, outcome and protocol. Expected label sets are exposed at 0 from
    /// the start, so that their first event shows as an increase.
    fn requests(&self) -> Row<'_> {
        let commands = self.commands.iter().copied().enumerate();
        let commands = commands.map(|(index, (name, kind))| (Some(index), name, kind));
        let commands: Vec<_> = commands
            .chain([(None, "none", CommandClass::Query)])
            .collect();
        let protocols = PROTOCOLS.0.iter().map(|protocol| protocol.scheme());
        let mut samples = Vec::new();
        let of_each = protocols.zip(&self.sums.outcomes);
        for ((protocol, outcomes), &(index, command, kind)) in
            of_each.flat_map(|one| commands.iter().map(move |command| (one, command)))
        {
            let listens = self.protocols.iter().any(|scheme| scheme == protocol);
            let kind = KINDS[usize::from(kind == CommandClass::Compute)];
            let expected: &[&str] = match index {
                Some(_) => &["ok", "unavailable", "internal"],
                None => &["unknown", "badinput", "toolong", "unavailable", "internal"],
            };
            for (number, outcome) in OUTCOMES.into_iter().enumerate() {
                let count = outcomes[Outcome::at(index, number).index()];
                if (listens && expected.contains(&outcome)) || count > 0 {
                    let labels = [
                        ("command", command),
                        ("kind", kind),
                        ("outcome", outcome),
                        ("protocol", protocol),
                    ];
                    samples.push(sample(labels, count));
                }
            }
        }
        row(
            "requests",
            "Requests answered",
            MetricType::Counter,
            samples,
        )
    }
}

/// Metric of the table: name, help, type and samples.
struct Row<'a> {
    name: &'static str,
    help: &'static str,
    kind: MetricType,
    samples: Vec<Sample<'a>>,
}

/// Labels and a value.
type Sample<'a> = (Vec<(&'static str, String)>, Value<'a>);

enum Value<'a> {
    Integer(u64),
    Float(f64),
    Histogram(&'a HistogramSnapshot),
}

impl From<u64> for Value<'_> {
    fn from(value: u64) -> Self {
        Value::Integer(value)
    }
}

impl From<f64> for Value<'_> {
    fn from(value: f64) -> Self {
        Value::Float(value)
    }
}

impl<'a> From<&'a HistogramSnapshot> for Value<'a> {
    fn from(value: &'a HistogramSnapshot) -> Self {
        Value::Histogram(value)
    }
}

type Text = &'static str;

fn row(name: Text, help: Text, kind: MetricType, samples: Vec<Sample<'_>>) -> Row<'_> {
    Row {
        name,
        help,
        kind,
        samples,
    }
}

fn sample<'a, const N: usize>(
    labels: [(Text, &str); N],
    value: impl Into<Value<'a>>,
) -> Sample<'a> {
    let labels = labels.map(|(label, value)| (label, value.to_string()));
    (labels.into(), value.into())
}

/// Returns a sample for each value of `label`.
fn by<'a, V: Into<Value<'a>>>(
    label: Text,
    values: impl IntoIterator<Item = (impl ToString, V)>,
) -> Vec<Sample<'a>> {
    let values = values.into_iter();
    values
        .map(|(of, value)| sample([(label, &of.to_string())], value))
        .collect()
}

fn info<const N: usize>(name: Text, help: Text, labels: [(Text, &str); N]) -> Row<'static> {
    row(name, help, MetricType::Gauge, vec![sample(labels, 1u64)])
}

fn gauge<'a>(name: Text, help: Text, value: impl Into<Value<'a>>) -> Row<'a> {
    row(name, help, MetricType::Gauge, vec![sample([], value)])
}

fn counter<'a>(name: Text, help: Text, value: impl Into<Value<'a>>) -> Row<'a> {
    row(name, help, MetricType::Counter, vec![sample([], value)])
}

fn counters(
    name: Text,
    help: Text,
    label: Text,
    values: impl IntoIterator<Item = (impl ToString, u64)>,
) -> Row<'static> {
    row(name, help, MetricType::Counter, by(label, values))
}

fn histogram<'a>(name: Text, help: Text, times: &'a HistogramSnapshot) -> Row<'a> {
    row(name, help, MetricType::Histogram, vec![sample([], times)])
}

fn histograms<'a>(
    name: Text,
    help: Text,
    label: Text,
    values: impl IntoIterator<Item = (impl ToString, &'a HistogramSnapshot)>,
) -> Row<'a> {
    row(name, help, MetricType::Histogram, by(label, values))
}

fn encode(rows: Vec<Row<'_>>, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
    for Row {
        name,
        help,
        kind,
        samples,
    } in rows
    {
        let mut family = encoder.encode_descriptor(name, help, None, kind)?;
        for (labels, value) in samples {
            match labels.is_empty() {
                true => encode_value(&mut family, kind, value)?,
                false => encode_value(&mut family.encode_family(&labels)?, kind, value)?,
            }
        }
    }
    Ok(())
}

fn encode_value(one: &mut MetricEncoder<'_>, kind: MetricType, value: Value<'_>) -> fmt::Result {
    let is_counter = matches!(kind, MetricType::Counter);
    match value {
        Value::Integer(value) if is_counter => {
            one.encode_counter::<NoLabelSet, _, u64>(&value, None)
        }
        Value::Float(value) if is_counter => one.encode_counter::<NoLabelSet, _, u64>(&value, None),
        Value::Integer(value) => one.encode_gauge(&value),
        Value::Float(value) => one.encode_gauge(&value),
        Value::Histogram(times) => {
            let ends = BOUNDS.map(|bound| Duration::from_micros(bound).as_secs_f64());
            let ends = ends.into_iter().chain([f64::INFINITY]);
            let buckets: Vec<_> = ends.zip(times.buckets).collect();
            let count = times.buckets.iter().sum();
            one.encode_histogram::<NoLabelSet>(times.sum.as_secs_f64(), count, &buckets, None)
        }
    }
}
