//! What is counted, held against docs/metrics.md and against what clients did.

use std::collections::{BTreeMap, BTreeSet};
use std::io::Write as _;
use std::net::Ipv4Addr;
use std::process::Stdio;

use blockchain_tcpd::metrics::Closed;
use blockchain_tcpd::session::scoreboard::Phase;
use shared::command::sets::server;

use crate::support::http::{daemon, get, get_with};
use crate::support::kernel::local_server;
use crate::support::{Client, Daemon, PATIENCE, clean, wait_until};

/// What is shown, by name and labels as they are written.
struct Figures(BTreeMap<String, f64>);

impl Figures {
    fn of(daemon: &Daemon) -> Self {
        let text = get(daemon.http(), "/metrics").body;
        let samples = text.lines().filter(|line| !line.starts_with('#'));
        let samples = samples.map(|line| {
            let (name, value) = line.rsplit_once(' ').expect("a name and a value");
            (name.to_string(), value.parse().expect("a number"))
        });
        Figures(samples.collect())
    }

    /// The value of the sample with this name and these labels, after `blockchain_tcpd_`.
    fn value(&self, sample: &str) -> f64 {
        let value = self.0.get(&format!("blockchain_tcpd_{sample}"));
        *value.unwrap_or_else(|| panic!("no {sample} in {:?}", self.0))
    }
}

/// Waits until a sample has this value.
fn wait_for(daemon: &Daemon, sample: &str, value: f64) {
    wait_until(&format!("{sample} is {value}"), || {
        Figures::of(daemon).value(sample) == value
    });
}

/// The rows of docs/metrics.md: name, type, labels, what it is.
fn documented() -> Vec<[&'static str; 4]> {
    let document = include_str!("../docs/metrics.md");
    let rows = document.lines().filter(|line| line.starts_with("| `"));
    let rows = rows.map(|row| {
        let mut cells = row.trim_matches('|').splitn(4, '|').map(str::trim);
        let mut cell = || cells.next().expect("four cells");
        [cell().trim_matches('`'), cell(), cell(), cell()]
    });
    rows.collect()
}

#[test]
fn all_that_is_shown_is_documented_and_all_that_is_documented_is_shown() {
    // Of a cluster that isn't there: it has figures all the same.
    let daemon = daemon(&["--max-clients", "2", "--cluster", "redis://127.0.0.1:1"]);
    let shown = get(daemon.http(), "/metrics").body;
    let types: Vec<(&str, &str)> = shown
        .lines()
        .filter_map(|line| line.strip_prefix("# TYPE ")?.split_once(' '))
        .collect();
    let expected: BTreeSet<(&str, &str)> =
        documented().iter().map(|row| (row[0], row[1])).collect();
    assert_eq!(types.iter().copied().collect::<BTreeSet<_>>(), expected);
    assert_eq!(types.len(), expected.len(), "each once");
    // Each value of a label is in the text of its row, or is a command, a status code or an id.
    let commands = daemon.ask("HELP");
    for (sample, _) in Figures::of(&daemon).0 {
        let Some((name, labels)) = sample.split_once('{') else {
            continue;
        };
        let mut ends = ["_bucket", "_count", "_sum"].iter();
        let name = ends.find_map(|end| name.strip_suffix(end)).unwrap_or(name);
        let [_, kind, keys, text] = *documented().iter().find(|row| row[0] == name).expect(name);
        for label in labels.trim_end_matches('}').split(',') {
            let (key, value) = label.split_once('=').expect("a label");
            let value = value.trim_matches('"');
            let known = match key {
                "le" => kind == "histogram",
                "command" => {
                    value == "none" || commands.split_whitespace().any(|name| name == value)
                }
                "code" => {
                    include_str!("../docs/metrics.md").contains(&format!("{value},"))
                        || value == "505"
                }
                "name" => value == "default",
                "version" => value == env!("CARGO_PKG_VERSION"),
                "id" => value == daemon.ask("WHERE").trim(),
                _ => text.contains(&format!("`{value}`")),
            };
            assert!(known, "{sample}");
            assert!(
                key == "le" || keys.contains(&format!("`{key}`")),
                "{sample}: {keys}"
            );
        }
    }
}

/// It reads the older format only; Prometheus itself reads the newer one, in `prometheus::watched`.
#[test]
fn prometheus_own_tool_has_nothing_to_say() {
    needs!("promtool");
    let daemon = daemon(&["--max-clients", "2", "--cluster", "redis://127.0.0.1:1"]);
    daemon.ask("WHO\nFOO\n");
    let older = get(daemon.http(), "/metrics");
    assert_eq!(
        older.field("content-type"),
        Some("text/plain; version=0.0.4; charset=utf-8")
    );
    let mut promtool = clean("promtool");
    promtool
        .args(["check", "metrics"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    let mut promtool = promtool.spawn().expect("it is installed");
    promtool
        .stdin
        .take()
        .expect("piped")
        .write_all(older.body.as_bytes())
        .expect("it reads");
    let said = promtool.wait_with_output().expect("it ends");
    assert!(said.status.success(), "{said:?}");
    assert_eq!(
        (said.stdout.as_slice(), said.stderr.as_slice()),
        (&b""[..], &b""[..])
    );
    let newer = get_with(
        daemon.http(),
        "/metrics",
        "Accept: application/openmetrics-text; version=1.0.0\r\n",
    );
    assert!(
        newer
            .field("content-type")
            .is_some_and(|kind| kind.starts_with("application/openmetrics-text; version=1.0.0"))
    );
    assert!(newer.body.ends_with("\n# EOF\n"));
}

#[test]
fn requests_are_counted_by_command_and_by_what_they_came_to() {
    let daemon = daemon(&["--max-clients", "4"]);
    let asked = "WHO\nwho\n\nWHY\nFOO\nWHO x\nHELP FOO\nHELP\n\x01\nWHO \x01\nQUIT\n";
    let answered = daemon.ask(asked);
    daemon.ask("x".repeat(1025));
    daemon.ask("PING");
    wait_for(&daemon, "connections_closed_total{reason=\"left\"}", 1.0);
    let figures = Figures::of(&daemon);
    for (labels, count) in [
        ("command=\"WHO\",kind=\"asks\",outcome=\"ok\"", 2.0),
        ("command=\"WHO\",kind=\"asks\",outcome=\"usage\"", 1.0),
        ("command=\"WHY\",kind=\"asks\",outcome=\"ok\"", 1.0),
        ("command=\"PING\",kind=\"asks\",outcome=\"ok\"", 1.0),
        ("command=\"HELP\",kind=\"asks\",outcome=\"ok\"", 1.0),
        ("command=\"HELP\",kind=\"asks\",outcome=\"unknown\"", 1.0),
        ("command=\"QUIT\",kind=\"asks\",outcome=\"ok\"", 1.0),
        ("command=\"WHERE\",kind=\"asks\",outcome=\"ok\"", 0.0),
        ("command=\"none\",kind=\"asks\",outcome=\"unknown\"", 1.0),
        ("command=\"none\",kind=\"asks\",outcome=\"badinput\"", 2.0),
        ("command=\"none\",kind=\"asks\",outcome=\"toolong\"", 1.0),
        ("command=\"none\",kind=\"asks\",outcome=\"internal\"", 0.0),
        ("command=\"WHO\",kind=\"asks\",outcome=\"unavailable\"", 0.0),
    ] {
        assert_eq!(
            figures.value(&format!("requests_total{{{labels}}}")),
            count,
            "{labels}"
        );
    }
    // The blank line was none.
    assert_eq!(
        figures.value("request_duration_seconds_count{kind=\"asks\"}"),
        12.0
    );
    assert_eq!(
        figures.value("request_duration_seconds_bucket{le=\"+Inf\",kind=\"asks\"}"),
        12.0
    );
    assert!(figures.value("request_duration_seconds_sum{kind=\"asks\"}") > 0.0);
    assert_eq!(figures.value("queue_wait_seconds_count"), 3.0);
    let (pong, too_long) = ("PONG\n".len(), daemon.ask("x".repeat(1025)).len());
    wait_for(
        &daemon,
        "connections_closed_total{reason=\"too_long\"}",
        2.0,
    );
    let figures = Figures::of(&daemon);
    let received = asked.len() + 4 + 2 * 1024;
    assert_eq!(figures.value("received_bytes_total"), received as f64);
    assert_eq!(
        figures.value("sent_bytes_total"),
        (answered.len() + pong + 2 * too_long) as f64
    );
}

/// What is promised of requests that only ask can be told from the others.
#[test]
fn what_computes_is_counted_apart_with_all_that_came_together_with_it() {
    let daemon = daemon(&["--commands", "server,calc", "--max-clients", "4"]);
    let mut client = daemon.connect();
    for (request, reply) in [("WHO", "1"), ("NP 4", "7"), ("ADD 1 2", "3")] {
        assert_eq!(client.ask(request), reply);
    }
    assert!(client.ask("NP 0").starts_with("ERR USAGE "));
    client.send("WHY\nNP 1\nFOO\n");
    client.shutdown();
    assert_eq!(client.rest().lines().count(), 3);
    wait_for(&daemon, "connections_closed_total{reason=\"left\"}", 1.0);
    let figures = Figures::of(&daemon);
    for (sample, count) in [
        (
            "total{command=\"NP\",kind=\"computes\",outcome=\"ok\"}",
            2.0,
        ),
        (
            "total{command=\"NP\",kind=\"computes\",outcome=\"usage\"}",
            1.0,
        ),
        (
            "total{command=\"NP\",kind=\"computes\",outcome=\"unavailable\"}",
            0.0,
        ),
        ("total{command=\"ADD\",kind=\"asks\",outcome=\"ok\"}", 1.0),
        (
            "total{command=\"none\",kind=\"asks\",outcome=\"unknown\"}",
            1.0,
        ),
    ] {
        assert_eq!(
            figures.value(&format!("requests_{sample}")),
            count,
            "{sample}"
        );
    }
    for (kind, count) in [("asks", 2.0), ("computes", 5.0)] {
        let sample = format!("request_duration_seconds_count{{kind=\"{kind}\"}}");
        assert_eq!(figures.value(&sample), count, "{kind}");
    }
}

#[test]
fn every_end_of_a_client_has_its_reason() {
    let idle = daemon(&["--max-clients", "4", "--idle-timeout", "100ms"]);
    let mut client = idle.connect();
    assert!(client.rest().starts_with("ERR TIMEOUT"));
    wait_for(&idle, "connections_closed_total{reason=\"idle\"}", 1.0);

    let daemon = daemon(&[
        "--max-clients",
        "2",
        "--queue",
        "1",
        "--write-timeout",
        "100ms",
        "--max-clients-per-address",
        "2",
    ]);
    daemon.ask("QUIT");
    wait_for(&daemon, "connections_closed_total{reason=\"quit\"}", 1.0);
    let reset = Client::connect(daemon.address).unwrap();
    wait_for(&daemon, "clients", 1.0);
    reset.reset();
    wait_for(&daemon, "connections_closed_total{reason=\"reset\"}", 1.0);
    let mut greedy = daemon.connect();
    greedy.ask_until_cut_off();
    wait_for(
        &daemon,
        "connections_closed_total{reason=\"not_reading\"}",
        1.0,
    );

    let from = |last| Client::connect_from(Ipv4Addr::new(127, 0, 1, last), daemon.address).unwrap();
    let mut first = from(1);
    assert_eq!(first.ask("WHY"), "42");
    let mut second = from(1);
    assert_eq!(second.ask("WHY"), "42");
    assert!(from(1).whatever_comes().starts_with("ERR BUSY"));
    wait_for(
        &daemon,
        "connections_refused_total{reason=\"address\"}",
        1.0,
    );
    let mut third = from(2);
    wait_for(&daemon, "queue_clients", 1.0);
    assert_eq!(Figures::of(&daemon).value("clients"), 3.0);
    assert!(from(3).whatever_comes().starts_with("ERR BUSY"));
    wait_for(&daemon, "connections_refused_total{reason=\"full\"}", 1.0);
    assert_eq!(third.ask("WHY"), "42");
    wait_for(
        &daemon,
        "connections_closed_total{reason=\"made_room\"}",
        1.0,
    );
    let figures = Figures::of(&daemon);
    assert_eq!(figures.value("clients_limit"), 2.0);
    assert_eq!(figures.value("queue_limit"), 1.0);
    let closed: f64 = figures
        .0
        .iter()
        .filter(|(name, _)| name.contains("_closed_total{") || name.contains("_refused_total{"))
        .map(|(_, count)| count)
        .sum();
    // Nobody is lost between the figures.
    let accepted = figures.value("connections_accepted_total");
    assert_eq!(accepted, closed + figures.value("clients"));
}

/// Its replies take more than one write.
#[test]
fn what_a_client_takes_slowly_is_counted_whole() {
    let daemon = daemon(&["--max-clients", "2"]);
    let mut client = daemon.connect();
    let requests = 40_000;
    let mut sender = client.socket().try_clone().expect("a socket");
    let sending = std::thread::spawn(move || {
        sender
            .write_all(&b"HELP\n".repeat(requests))
            .expect("it takes them");
        sender
            .shutdown(std::net::Shutdown::Write)
            .expect("connected");
    });
    // Not one byte is taken until it has to wait for that.
    wait_until("it waits", || daemon.blocked_in(libc::SYS_sendto) == 1);
    let answered = client.rest().len();
    sending.join().expect("all was sent");
    wait_for(&daemon, "connections_closed_total{reason=\"left\"}", 1.0);
    let figures = Figures::of(&daemon);
    assert_eq!(figures.value("sent_bytes_total"), answered as f64);
    assert_eq!(figures.value("received_bytes_total"), (5 * requests) as f64);
    assert_eq!(
        figures.value("request_duration_seconds_count{kind=\"asks\"}"),
        requests as f64
    );
}

/// After the end nobody can be asked: so within this process.
#[test]
fn who_is_drained_or_handed_over_is_counted_as_such() {
    for (release, reason) in [(true, Closed::HandedOver), (false, Closed::Drained)] {
        let mut server = local_server(&["--max-clients", "4"], &[server::SET]);
        let metrics = server.metrics.clone();
        let mut clients: Vec<Client> = (0..3)
            .map(|_| Client::connect(server.addresses()[0]).unwrap())
            .collect();
        for client in &mut clients {
            assert_eq!(client.ask("WHY"), "42");
        }
        if release {
            let given = server.hand_over(Phase::Detach);
            assert_eq!(given.clients.len(), 3);
        } else {
            server.stop(PATIENCE);
        }
        let closed = metrics.sums().closed;
        assert_eq!(closed[reason as usize], 3, "{closed:?}");
        assert_eq!(closed.iter().sum::<u64>(), 3, "{closed:?}");
    }
}

#[test]
fn a_failing_accept_is_counted_by_what_is_lacking() {
    let daemon = daemon(&["--max-clients", "2"]);
    get(daemon.http(), "/metrics");
    let mut waiting = Client::connect(daemon.address).unwrap();
    assert_eq!(waiting.ask("WHY"), "42");
    daemon.limit_descriptors(true);
    let mut late = Client::connect(daemon.address).unwrap();
    daemon.log().wait_for("clients can't be accepted");
    daemon.limit_descriptors(false);
    assert_eq!(late.ask("WHY"), "42");
    let errors = Figures::of(&daemon).value("accept_errors_total{kind=\"descriptors\"}");
    assert!(errors >= 1.0, "{errors}");
}

#[test]
fn a_process_shows_what_it_takes() {
    let daemon = daemon(&["--max-clients", "8"]);
    let figures = Figures::of(&daemon).0;
    let value = |name: &str| figures[name];
    assert_eq!(
        value("process_threads"),
        daemon.status_number("Threads") as f64
    );
    let memory = daemon.status_number("VmRSS") as f64 * 1024.0;
    let shown = value("process_resident_memory_bytes");
    assert!((0.5..2.0).contains(&(shown / memory)), "{shown} {memory}");
    assert!(value("process_virtual_memory_bytes") > shown);
    assert!(
        value("process_open_fds") >= 5.0 && value("process_open_fds") < value("process_max_fds")
    );
    let now = std::time::SystemTime::now()
        .duration_since(std::time::UNIX_EPOCH)
        .expect("after 1970");
    for _ in 0..20 {
        let again = Figures::of(&daemon).0["process_start_time_seconds"];
        assert_eq!(again, value("process_start_time_seconds"));
    }
    let age = now.as_secs_f64() - value("process_start_time_seconds");
    assert!((-1.0..60.0).contains(&age), "{age}");
    assert!(value("process_cpu_seconds_total") < 60.0);
}
