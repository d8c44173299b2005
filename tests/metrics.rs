//! What is counted, held against docs/metrics.md and against what clients did.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::Write as _;
use std::net::{Ipv4Addr, Shutdown};
use std::time::{SystemTime, UNIX_EPOCH};

use blockchain_tcpd::metrics::Closed;
use blockchain_tcpd::session::scoreboard::Phase;
use shared::command::sets::server;

use crate::support::http::{daemon, get, get_with};
use crate::support::kernel::local_server;
use crate::support::tables::lines;
use crate::support::watch::repeat;
use crate::support::*;

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

    /// Those with names that contain this, added.
    fn sum(&self, part: &str) -> f64 {
        let samples = self.0.iter().filter(|(name, _)| name.contains(part));
        samples.map(|(_, value)| value).sum()
    }

    /// The value of the sample with this name and these labels, after `blockchain_tcpd_`.
    fn value(&self, sample: &str) -> f64 {
        let value = self.0.get(&format!("blockchain_tcpd_{sample}"));
        *value.unwrap_or_else(|| panic!("no {sample} in {:?}", self.0))
    }
}

/// Waits until these samples have these values: lines of `SAMPLE VALUE`, without `blockchain_tcpd_` before them.
fn counted(daemon: &Daemon, samples: &str) {
    for line in lines(samples) {
        let (sample, value) = line.rsplit_once(' ').expect("SAMPLE VALUE");
        let is_shown = || Figures::of(daemon).value(sample).to_string() == value;
        wait_until(line, is_shown);
    }
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

/// Whether a label may have this value: in the text of its metric's row, or a command, a status code or an id.
fn is_known(daemon: &Daemon, [_, kind, _, text]: [&str; 4], key: &str, value: &str) -> bool {
    let document = include_str!("../docs/metrics.md");
    match key {
        "le" => kind == "histogram",
        "command" => daemon
            .ask("HELP\n")
            .replace('\n', " none")
            .split(' ')
            .any(|name| name == value),
        "code" => value == "505" || document.contains(&format!("{value},")),
        "name" => value == "default",
        "version" => value == env!("CARGO_PKG_VERSION"),
        "id" => value == daemon.ask("WHERE").trim(),
        _ => text.contains(&format!("`{value}`")),
    }
}

#[test]
fn the_metrics_are_those_that_the_document_lists() {
    // Of a cluster and a feed that aren't there: they have figures all the same.
    let scratch = Scratch::new();
    let store = format!("sqlite://{}", scratch.path().join("users.db").display());
    let users = ["--commands", "server,users", "--store", &store];
    let feed = ["--users-feed", "http://127.0.0.1:1/"];
    let cluster = ["--max-clients", "2", "--cluster", "redis://127.0.0.1:1"];
    let daemon = daemon(&[&users[..], &feed, &cluster].concat());
    let shown = get(daemon.http(), "/metrics").body;
    let types = shown
        .lines()
        .filter_map(|line| line.strip_prefix("# TYPE "));
    let mut types: Vec<String> = types.map(str::to_string).collect();
    let rows = documented();
    let mut expected: Vec<String> = rows
        .iter()
        .map(|row| format!("{} {}", row[0], row[1]))
        .collect();
    types.sort();
    expected.sort();
    assert_eq!(types, expected);
    for (sample, _) in Figures::of(&daemon).0 {
        let Some((name, labels)) = sample.split_once('{') else {
            continue;
        };
        let mut ends = ["_bucket", "_count", "_sum"].iter();
        let name = ends.find_map(|end| name.strip_suffix(end)).unwrap_or(name);
        let row = *rows.iter().find(|row| row[0] == name).expect(name);
        for label in labels.trim_end_matches('}').split(',') {
            let (key, value) = label.split_once('=').expect("a label");
            assert!(
                is_known(&daemon, row, key, value.trim_matches('"')),
                "{sample}"
            );
            let is_listed = key == "le" || row[2].contains(&format!("`{key}`"));
            assert!(is_listed, "{sample}: {}", row[2]);
        }
    }
}

/// It reads the older format only; Prometheus itself reads the newer one, in `prometheus::watched`.
#[test]
fn promtool_finds_nothing_wrong() {
    needs!("promtool");
    let daemon = daemon(&["--max-clients", "2", "--cluster", "redis://127.0.0.1:1"]);
    daemon.ask("WHO\nFOO\n");
    let older = get(daemon.http(), "/metrics");
    let kind = older.field("content-type");
    assert_eq!(kind, Some("text/plain; version=0.0.4; charset=utf-8"));
    let scratch = Scratch::new();
    let file = scratch.path().join("metrics");
    std::fs::write(&file, older.body).expect("written");
    let mut promtool = clean("promtool");
    promtool
        .args(["check", "metrics"])
        .stdin(File::open(&file).expect("it is there"));
    let said = promtool.output().expect("it ends");
    assert!(said.status.success(), "{said:?}");
    assert!(said.stdout.is_empty() && said.stderr.is_empty(), "{said:?}");
    let accept = "Accept: application/openmetrics-text; version=1.0.0\r\n";
    let newer = get_with(daemon.http(), "/metrics", accept);
    let kind = newer.field("content-type").expect("it has one");
    assert!(kind.starts_with("application/openmetrics-text; version=1.0.0"));
    assert!(newer.body.ends_with("\n# EOF\n"));
}

#[test]
fn requests_are_counted_by_command_and_by_outcome() {
    let daemon = daemon(&["--max-clients", "4"]);
    let asked = "WHO\nwho\n\nWHY\nFOO\nWHO x\nHELP FOO\nHELP\n\x01\nWHO \x01\nQUIT\n";
    let answered = daemon.ask(asked);
    let too_long = daemon.ask("x".repeat(1025));
    daemon.ask("PING");
    counted(&daemon, include_str!("metrics/requests.txt"));
    let figures = Figures::of(&daemon);
    assert!(figures.value("request_duration_seconds_sum{kind=\"asks\"}") > 0.0);
    let received = (asked.len() + 1024 + "PING".len()) as f64;
    assert_eq!(figures.value("received_bytes_total"), received);
    let sent = (answered + &too_long + "PONG\n").len() as f64;
    assert_eq!(figures.value("sent_bytes_total"), sent);
}

/// The objectives cover queries only, which must be separable from computations.
#[test]
fn computations_are_counted_apart_with_all_that_came_together_with_them() {
    let daemon = daemon(&["--commands", "server,calc", "--max-clients", "4"]);
    let mut client = daemon.connect();
    for (request, reply) in [("WHO", "1"), ("NP 4", "7"), ("ADD 1 2", "3")] {
        assert_eq!(client.ask(request), reply);
    }
    assert!(client.ask("NP 0").starts_with("ERR USAGE "));
    client.send("WHY\nNP 1\nFOO\n");
    client.shutdown();
    assert_eq!(client.rest().lines().count(), 3);
    counted(&daemon, include_str!("metrics/computations.txt"));
}

#[test]
fn every_end_of_a_client_has_its_reason() {
    let idle = daemon(&["--max-clients", "4", "--idle-timeout", "100ms"]);
    assert!(idle.connect().rest().starts_with("ERR TIMEOUT"));
    counted(&idle, "connections_closed_total{reason=\"idle\"} 1");

    let few = "--max-clients 2 --queue 1 --write-timeout 100ms --max-clients-per-address 2";
    let daemon = daemon(&few.split(' ').collect::<Vec<_>>());
    daemon.ask("QUIT");
    counted(&daemon, "connections_closed_total{reason=\"quit\"} 1");
    let reset = daemon.connect();
    counted(&daemon, "clients 1");
    reset.reset();
    counted(&daemon, "connections_closed_total{reason=\"reset\"} 1");
    daemon.connect().ask_until_cut_off();
    let not_reading = "connections_closed_total{reason=\"not_reading\"} 1";
    counted(&daemon, not_reading);

    let from = |last| Client::connect_from(Ipv4Addr::new(127, 0, 1, last), daemon.address).unwrap();
    let mut clients = [from(1), from(1)];
    are_answered(&mut clients);
    assert!(from(1).whatever_comes().starts_with("ERR BUSY"));
    counted(&daemon, "connections_refused_total{reason=\"address\"} 1");
    // They never become idle, and so make no room yet.
    let asking = repeat(clients, |clients| are_answered(clients));
    let mut third = from(2);
    counted(&daemon, "queue_clients 1\nclients 3");
    assert!(from(3).whatever_comes().starts_with("ERR BUSY"));
    counted(&daemon, "connections_refused_total{reason=\"full\"} 1");
    let _idle = asking.end();
    assert_eq!(third.ask("WHY"), "42");
    counted(&daemon, "connections_closed_total{reason=\"made_room\"} 1");
    counted(&daemon, "clients_limit 2\nqueue_limit 1");
    // Nobody is lost between the figures.
    let figures = Figures::of(&daemon);
    let ended = figures.sum("_closed_total{") + figures.sum("_refused_total{");
    let accepted = figures.value("connections_accepted_total");
    assert_eq!(accepted, ended + figures.value("clients"));
}

/// Its replies take more than one write.
#[test]
fn replies_that_a_client_takes_slowly_are_counted_whole() {
    let daemon = daemon(&["--max-clients", "2"]);
    let mut client = daemon.connect();
    let mut sender = client.socket().try_clone().expect("a socket");
    let sending = std::thread::spawn(move || {
        let requests = b"HELP\n".repeat(40_000);
        sender.write_all(&requests).expect("it takes them");
        sender.shutdown(Shutdown::Write).expect("connected");
    });
    // Not one byte is taken until it has to wait for that.
    wait_until("it waits", || daemon.blocked_in(libc::SYS_sendto) == 1);
    let answered = client.rest().len();
    sending.join().expect("all was sent");
    counted(&daemon, "connections_closed_total{reason=\"left\"} 1");
    counted(&daemon, &format!("sent_bytes_total {answered}"));
    counted(&daemon, "received_bytes_total 200000");
    let requests = "request_duration_seconds_count{kind=\"asks\"} 40000";
    counted(&daemon, requests);
}

/// After the end nobody can be asked: so within this process.
#[test]
fn clients_that_are_drained_or_handed_over_are_counted_as_such() {
    for (release, reason) in [(true, Closed::HandedOver), (false, Closed::Drained)] {
        let mut server = local_server(&["--max-clients", "4"], &[server::SET]);
        let metrics = server.metrics.clone();
        let address = server.addresses()[0];
        let mut clients = [(); 3].map(|()| Client::connect(address).unwrap());
        are_answered(&mut clients);
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
fn a_process_shows_what_it_takes() {
    let daemon = daemon(&["--max-clients", "8"]);
    let figures = Figures::of(&daemon).0;
    let value = |name: &str| figures[&format!("process_{name}")];
    assert_eq!(value("threads"), daemon.status_number("Threads") as f64);
    let memory = daemon.status_number("VmRSS") as f64 * 1024.0;
    let shown = value("resident_memory_bytes");
    assert!((0.5..2.0).contains(&(shown / memory)), "{shown} {memory}");
    assert!(value("virtual_memory_bytes") > shown);
    assert!((5.0..value("max_fds")).contains(&value("open_fds")));
    let start = value("start_time_seconds");
    for _ in 0..20 {
        let again = Figures::of(&daemon).0["process_start_time_seconds"];
        assert_eq!(again, start);
    }
    let now = SystemTime::now().duration_since(UNIX_EPOCH);
    let age = now.expect("after 1970").as_secs_f64() - start;
    assert!((-1.0..60.0).contains(&age), "{age}");
    assert!(value("cpu_seconds_total") < 60.0);
}
