//! Metrics exposition in the text formats of OpenMetrics and Prometheus. `docs/metrics.md` lists
//! the metrics.

use std::collections::BTreeSet;
use std::fmt;
use std::time::Duration;

use prometheus_client::collector::Collector;
use prometheus_client::encoding::{
    DescriptorEncoder, EncodeCounterValue, EncodeGaugeValue, MetricEncoder, NoLabelSet, text,
};
use prometheus_client::metrics::MetricType;
use prometheus_client::registry::Registry;
use uuid::Uuid;

use super::State;
use super::process::Process;
use crate::cluster;
use crate::command::{CommandClass, CommandSpec, OUTCOMES, Outcome};
use crate::health::Load;
use crate::metrics::{
    ACCEPT_ERRORS, BOUNDS, CLOSED, Closed, HistogramSnapshot, KINDS, MetricsSnapshot, REFUSED,
};
use crate::protocol::http::{CODES, Request, Response};

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
            .map(|entry: &CommandSpec| (entry.name, entry.kind))
            .collect(),
        cluster: state.context.cluster.snapshot(),
        process: Process::now(),
    };
    let mut registry = Registry::default();
    registry.register_collector(Box::new(stats));
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

/// All values of an exposition.
#[derive(Debug)]
struct Stats {
    id: Uuid,
    ready: bool,
    load: Load,
    sums: MetricsSnapshot,
    draining: Duration,
    answered: [u64; CODES.len()],
    commands: Vec<(&'static str, CommandClass)>,
    cluster: Option<cluster::StatsSnapshot>,
    process: Option<Process>,
}

impl Collector for Stats {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
        let mut to = Writer(&mut encoder);
        let Stats { load, sums, .. } = self;
        let version = [("version", env!("CARGO_PKG_VERSION"))];
        to.info(
            "blockchain_tcpd_build_info",
            "The version of the program",
            version,
        )?;
        let id = self.id.to_string();
        to.info(
            "blockchain_tcpd_server_info",
            "The id of this server",
            [("id", &id)],
        )?;

        let ready = u64::from(self.ready);
        to.gauge(
            "blockchain_tcpd_ready",
            "Whether clients should be sent here",
            ready,
        )?;
        to.gauge("blockchain_tcpd_clients", "Clients connected", load.clients)?;
        to.gauge(
            "blockchain_tcpd_clients_limit",
            "Clients that can be served at the same time",
            load.workers,
        )?;
        to.gauge(
            "blockchain_tcpd_queue_clients",
            "Clients that wait for a worker",
            load.waiting,
        )?;
        to.gauge(
            "blockchain_tcpd_queue_limit",
            "Clients that may wait",
            load.queue,
        )?;
        let drain = self.draining.as_secs_f64();
        to.gauge(
            "blockchain_tcpd_drain_seconds",
            "For how long it has been draining",
            drain,
        )?;
        let handover = sums.handover.as_secs_f64();
        to.gauge(
            "blockchain_tcpd_handover_seconds",
            "How long the last handover took",
            handover,
        )?;

        to.counter(
            "blockchain_tcpd_connections_accepted",
            "Connections accepted",
            sums.accepted,
        )?;
        let refused = REFUSED.into_iter().zip(sums.refused);
        to.counters(
            "blockchain_tcpd_connections_refused",
            "Connections that were not let in",
            "reason",
            refused,
        )?;
        let closed = CLOSED.into_iter().zip(sums.closed);
        to.counters(
            "blockchain_tcpd_connections_closed",
            "Connections whose service has ended",
            "reason",
            closed,
        )?;
        let errors = ACCEPT_ERRORS.into_iter().zip(sums.accept_errors);
        to.counters(
            "blockchain_tcpd_accept_errors",
            "Accepts that failed",
            "kind",
            errors,
        )?;
        self.requests(&mut to)?;
        let durations = KINDS.into_iter().zip(&sums.durations);
        to.histograms(
            "blockchain_tcpd_request_duration_seconds",
            "From a request read to its reply written",
            "kind",
            durations,
        )?;
        to.histogram(
            "blockchain_tcpd_queue_wait_seconds",
            "From a client accepted to a worker taking it",
            &sums.waits,
        )?;
        to.counter(
            "blockchain_tcpd_received_bytes",
            "Bytes read from clients",
            sums.received,
        )?;
        to.counter(
            "blockchain_tcpd_sent_bytes",
            "Bytes written to clients",
            sums.sent,
        )?;
        let panics = sums.closed[Closed::Panicked as usize];
        to.counter(
            "blockchain_tcpd_worker_panics",
            "Requests that made the server fail",
            panics,
        )?;
        to.counter(
            "blockchain_tcpd_handovers",
            "How often the clients came from a process before",
            sums.handovers,
        )?;
        let codes = CODES.map(|code| code.to_string());
        let answered = codes.iter().map(String::as_str).zip(self.answered);
        to.counters(
            "blockchain_tcpd_http_requests",
            "Requests for health, metrics and the page",
            "code",
            answered,
        )?;
        if let Some(cluster) = &self.cluster {
            to.cluster(cluster)?;
        }
        match &self.process {
            Some(process) => to.process(process),
            None => Ok(()),
        }
    }
}

impl Stats {
    fn requests(&self, to: &mut Writer<'_, '_>) -> fmt::Result {
        let mut family = to.0.encode_descriptor(
            "blockchain_tcpd_requests",
            "Requests answered",
            None,
            MetricType::Counter,
        )?;
        let commands = self.commands.iter().copied().enumerate();
        let commands = commands.map(|(index, (name, kind))| (Some(index), name, kind));
        for (index, command, kind) in commands.chain([(None, "none", CommandClass::Query)]) {
            let kind = KINDS[usize::from(kind == CommandClass::Compute)];
            for (number, outcome) in OUTCOMES.into_iter().enumerate() {
                let count = self.sums.outcomes[Outcome::at(index, number).index()];
                // Expected label sets are exposed at 0 from the start, so that their first event
                // shows as an increase.
                let expected = match index {
                    Some(_) => ["ok", "unavailable", "internal"].contains(&outcome),
                    None => ["unknown", "badinput", "toolong", "internal"].contains(&outcome),
                };
                if expected || count > 0 {
                    let labels = [("command", command), ("kind", kind), ("outcome", outcome)];
                    let mut one = family.encode_family(&labels)?;
                    one.encode_counter::<NoLabelSet, _, u64>(&count, None)?;
                }
            }
        }
        Ok(())
    }
}

/// Encoder of metric families.
struct Writer<'a, 'e>(&'a mut DescriptorEncoder<'e>);

impl Writer<'_, '_> {
    fn info(&mut self, name: &str, help: &str, label: [(&str, &str); 1]) -> fmt::Result {
        let mut family = self
            .0
            .encode_descriptor(name, help, None, MetricType::Gauge)?;
        family.encode_family(&label)?.encode_gauge(&1u64)
    }

    /// Writes the state of the cluster connection.
    fn cluster(&mut self, cluster: &cluster::StatsSnapshot) -> fmt::Result {
        let mut info = self.0.encode_descriptor(
            "blockchain_tcpd_cluster_info",
            "The cluster that this server belongs to",
            None,
            MetricType::Gauge,
        )?;
        let labels = [("mode", cluster.mode), ("name", &cluster.name)];
        info.encode_family(&labels)?.encode_gauge(&1u64)?;
        self.gauge(
            "blockchain_tcpd_cluster_connected",
            "Whether this server is in touch with its cluster",
            u64::from(cluster.connected),
        )?;
        self.gauge(
            "blockchain_tcpd_cluster_servers",
            "Servers in the cluster when it was heard last",
            cluster.servers,
        )?;
        self.gauge(
            "blockchain_tcpd_cluster_clients",
            "Clients of all servers when the cluster was heard last",
            cluster.clients,
        )?;
        // Never heard: the age is infinite.
        let age = cluster.age().unwrap_or(f64::INFINITY);
        self.gauge(
            "blockchain_tcpd_cluster_age_seconds",
            "How long ago the cluster was heard last",
            age,
        )?;
        self.gauge(
            "blockchain_tcpd_cluster_shares_id",
            "Whether another server of the cluster has the same id",
            u64::from(cluster.shares_id),
        )?;
        self.counter(
            "blockchain_tcpd_cluster_heartbeats",
            "Heartbeats that were answered",
            cluster.heartbeats,
        )?;
        let outcomes = ["ok", "unavailable"].into_iter().zip(cluster.censuses);
        self.counters(
            "blockchain_tcpd_cluster_censuses",
            "Censuses of all servers, each for all who asked meanwhile",
            "outcome",
            outcomes,
        )?;
        self.counters(
            "blockchain_tcpd_cluster_errors",
            "Failed attempts to be in touch with the cluster",
            "kind",
            cluster::ErrorKind::NAMES.into_iter().zip(cluster.errors),
        )
    }

    fn gauge(&mut self, name: &str, help: &str, value: impl EncodeGaugeValue) -> fmt::Result {
        let mut one = self
            .0
            .encode_descriptor(name, help, None, MetricType::Gauge)?;
        one.encode_gauge(&value)
    }

    fn counter(&mut self, name: &str, help: &str, value: impl EncodeCounterValue) -> fmt::Result {
        let mut one = self
            .0
            .encode_descriptor(name, help, None, MetricType::Counter)?;
        one.encode_counter::<NoLabelSet, _, u64>(&value, None)
    }

    fn counters<'v>(
        &mut self,
        name: &str,
        help: &str,
        label: &str,
        values: impl Iterator<Item = (&'v str, u64)>,
    ) -> fmt::Result {
        let mut family = self
            .0
            .encode_descriptor(name, help, None, MetricType::Counter)?;
        for (value, count) in values {
            let labels = [(label, value)];
            let mut one = family.encode_family(&labels)?;
            one.encode_counter::<NoLabelSet, _, u64>(&count, None)?;
        }
        Ok(())
    }

    fn histogram(&mut self, name: &str, help: &str, times: &HistogramSnapshot) -> fmt::Result {
        let one = self
            .0
            .encode_descriptor(name, help, None, MetricType::Histogram)?;
        encode_times(one, times)
    }

    fn histograms<'v>(
        &mut self,
        name: &str,
        help: &str,
        label: &str,
        values: impl Iterator<Item = (&'v str, &'v HistogramSnapshot)>,
    ) -> fmt::Result {
        let mut family = self
            .0
            .encode_descriptor(name, help, None, MetricType::Histogram)?;
        for (value, times) in values {
            encode_times(family.encode_family(&[(label, value)])?, times)?;
        }
        Ok(())
    }

    fn process(&mut self, process: &Process) -> fmt::Result {
        self.counter("process_cpu_seconds", "Processor time", process.cpu_seconds)?;
        self.gauge(
            "process_start_time_seconds",
            "When the process started, since 1970",
            process.start_seconds,
        )?;
        self.gauge(
            "process_resident_memory_bytes",
            "Memory in use",
            process.resident_bytes,
        )?;
        self.gauge(
            "process_virtual_memory_bytes",
            "Address space in use",
            process.virtual_bytes,
        )?;
        self.gauge("process_threads", "Threads", process.threads)?;
        if let Some(open) = process.open_fds {
            self.gauge("process_open_fds", "Open file descriptors", open)?;
        }
        if let Some(most) = process.max_fds {
            self.gauge(
                "process_max_fds",
                "The limit on open file descriptors",
                most,
            )?;
        }
        Ok(())
    }
}

fn encode_times(mut one: MetricEncoder<'_>, times: &HistogramSnapshot) -> fmt::Result {
    let ends = BOUNDS
        .iter()
        .map(|bound| Duration::from_nanos(*bound).as_secs_f64());
    let ends = ends.chain([f64::INFINITY]);
    let buckets: Vec<_> = ends.zip(times.buckets).collect();
    let count = times.buckets.iter().sum();
    one.encode_histogram::<NoLabelSet>(times.sum.as_secs_f64(), count, &buckets, None)
}
