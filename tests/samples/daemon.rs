//! The daemon itself: what it answers, that it is busy, away or restarted, and that it is left in order.

use std::ffi::OsStr;
use std::fs::File;
use std::net::SocketAddr;
use std::os::unix::ffi::OsStrExt as _;
use std::process::Stdio;

use super::{LONG, NOTHING, Outcome, Run, Sample, asked, repeated};
use crate::support::http::{self, get};
use crate::support::kernel::own_address;
use crate::support::names::Deaf;
use crate::support::{Daemon, Scratch, program, wait_until};

const USAGE: &str = "usage: client [--repeat SECONDS] HOST PORT REQUEST [REQUEST ...]";

const ID: &str = "6f0c2a52-5f0e-4b7e-9a35-0c5f7f5a3c1e";

/// What the daemon has counted in the series of its metrics that begin so.
fn counted(daemon: &Daemon, series: &str) -> u64 {
    let metrics = get(daemon.http(), "/metrics").body;
    let lines = metrics.lines().filter(|line| line.starts_with(series));
    let values = lines.filter_map(|line| line.rsplit(' ').next()?.parse::<u64>().ok());
    values.sum()
}

/// Ends a client by a signal: not SIGINT, which all ignore when the tests are started in the background.
fn leaves(run: Run) {
    run.signal("TERM");
    assert_eq!(run.end().err, "");
}

pub fn answers_every_request_in_order(sample: &Sample) {
    let daemon = Daemon::start(["--server-id", ID]);
    let requests = [
        "WHO", "WHERE", "WHY", "PING", "HELP", "  why ", "QUIT", "WHY",
    ];
    let expected = [
        "WHO\t1",
        &format!("WHERE\t{ID}"),
        "WHY\t42",
        "PING\tPONG",
        "HELP\tWHO WHERE WHY PING HELP QUIT EXIT",
        "  why \t42",
        "QUIT\tBYE",
        // After the end of a connection, on another.
        "WHY\t42",
    ];
    sample
        .ask(&asked(daemon.address, &requests))
        .is(0, &expected);
}

pub fn tells_what_the_server_refuses(sample: &Sample) {
    let daemon = Daemon::start([""; 0]);
    let outcome = sample.ask(&asked(daemon.address, &["FOO", "WHO", "WHY not", "WHY"]));
    outcome.is(1, &["WHO\t1", "WHY\t42"]);
    let said: Vec<&str> = outcome.err.lines().collect();
    let unknown = "FOO: UNKNOWN: no such command: \"FOO\" (try HELP)";
    assert_eq!(said, [unknown, "WHY not: USAGE: WHY takes no arguments"]);
}

/// A daemon that is full, and the client that fills it.
fn full() -> (Daemon, crate::support::Client) {
    let daemon = http::daemon(&["--max-clients", "1", "--queue", "0"]);
    let mut inside = daemon.connect();
    assert_eq!(inside.ask("WHO"), "1");
    (daemon, inside)
}

pub fn says_that_the_server_is_busy(sample: &Sample) {
    let (daemon, _inside) = full();
    let outcome = sample.ask(&asked(daemon.address, &["WHO", "WHY"]));
    let why = "the server is busy: full with 1 clients, try again later";
    outcome.gave_up(75, daemon.address, why, NOTHING);
}

pub fn comes_back_when_there_is_room(sample: &Sample) {
    let (daemon, inside) = full();
    let run = sample.start(
        &asked(daemon.address, &["WHO", "WHY"]),
        &[("TIMEOUT", LONG)],
    );
    wait_until("it is refused", || {
        counted(&daemon, "blockchain_tcpd_connections_refused_total") > 0
    });
    drop(inside);
    run.end().is(0, &["WHO\t1", "WHY\t42"]);
}

pub fn says_that_nobody_listens(sample: &Sample) {
    let address = own_address();
    let outcome = sample.ask(&asked(address, &["WHY"]));
    outcome.found_nobody(address);
}

/// A name with two addresses, at one of which nobody listens: whichever is tried first.
/// Asks WHY of a name with these addresses, and is answered.
fn finds_it_by_name(sample: &Sample, addresses: &[&str], port: u16) {
    let scratch = Scratch::new();
    let hosts = scratch.path().join("hosts");
    let lines = addresses
        .iter()
        .map(|address| format!("{address} manifold\n"));
    std::fs::write(&hosts, lines.collect::<String>()).expect("a file");
    let inner = sample.command();
    let mut command = std::process::Command::new("unshare");
    let script = format!("mount --bind {} /etc/hosts && exec \"$@\"", hosts.display());
    command.args(["--mount", "sh", "-c", &script, "sh"]);
    command.arg(inner.get_program()).args(inner.get_args());
    command.args(["manifold", &port.to_string(), "WHY"]);
    Run::start(command, Stdio::piped())
        .end()
        .is(0, &["WHY\t42"]);
}

pub fn tries_every_address_of_a_name(sample: &Sample) {
    needs!(run & ["unshare", "--mount"]);
    let mut daemons = vec![Daemon::start([""; 0])];
    if std::net::TcpListener::bind("[::1]:0").is_ok() {
        let mut command = program();
        command.args(["--listen", "[::1]:0"]);
        daemons.push(Daemon::run(command));
    }
    for daemon in daemons {
        finds_it_by_name(sample, &["::1", "127.0.0.1"], daemon.address.port());
    }
}

pub fn passes_over_addresses_that_let_nobody_in(sample: &Sample) {
    needs!(run & ["unshare", "--mount"]);
    let mut command = program();
    let ip = own_address().ip().to_string();
    command.args(["--listen", &format!("{ip}:0")]);
    let daemon = Daemon::run(command);
    let port = daemon.address.port();
    // The system's order, too: these are nearer to this machine's own address.
    let deaf_ips = ["127.0.0.2", "127.0.0.3"];
    let at = |ip: &str| SocketAddr::new(ip.parse().expect("an address"), port);
    let _deaf = deaf_ips.map(|ip| Deaf::at(at(ip)));
    finds_it_by_name(sample, &[deaf_ips[0], deaf_ips[1], &ip], port);
}

pub fn asks_thousands_at_once(sample: &Sample) {
    let daemon = http::daemon(&[]);
    let requests: Vec<&str> = ["WHY", "PING", "WHO"]
        .into_iter()
        .cycle()
        .take(6000)
        .collect();
    let replies = ["WHY\t42", "PING\tPONG", "WHO\t1"].into_iter().cycle();
    let expected: Vec<&str> = replies.take(6000).collect();
    sample
        .ask(&asked(daemon.address, &requests))
        .is(0, &expected);
    assert_eq!(
        counted(&daemon, "blockchain_tcpd_connections_accepted_total"),
        1
    );
}

pub fn asks_again_and_again_on_one_connection(sample: &Sample) {
    let daemon = http::daemon(&[]);
    let run = sample.start(
        &repeated("0.05", daemon.address, &["WHO", "WHY"]),
        &[("TIMEOUT", LONG)],
    );
    for lines in run.prints(10).chunks_exact(2) {
        assert_eq!(lines, ["WHO\t1", "WHY\t42"]);
    }
    assert_eq!(
        counted(&daemon, "blockchain_tcpd_connections_accepted_total"),
        1
    );
    leaves(run);
}

/// For longer than the server lets a client be idle.
pub fn keeps_the_connection_alive(sample: &Sample) {
    let daemon = http::daemon(&["--idle-timeout", "2s"]);
    let variables = [("TIMEOUT", LONG), ("KEEPALIVE", "0.1")];
    let run = sample.start(&repeated("1000", daemon.address, &["WHY"]), &variables);
    wait_until("it is kept alive for 2.4 s", || {
        counted(&daemon, "blockchain_tcpd_requests_total{command=\"PING\"") >= 24
    });
    assert_eq!(
        counted(&daemon, "blockchain_tcpd_connections_accepted_total"),
        1
    );
    assert_eq!(counted(&daemon, "blockchain_tcpd_clients "), 1);
    assert_eq!(run.prints(1), ["WHY\t42"]);
    leaves(run);
}

pub fn goes_on_when_the_server_was_restarted(sample: &Sample) {
    let address = own_address();
    let start = |id: &str| {
        let mut command = program();
        command.args(["--listen", &address.to_string(), "--server-id", id]);
        Daemon::run(command)
    };
    let ids = [ID, "00000000-0000-4000-8000-000000000001"];
    let daemon = start(ids[0]);
    let run = sample.start(
        &repeated("0.1", daemon.address, &["WHERE"]),
        &[("TIMEOUT", LONG)],
    );
    run.prints(1);
    let before = run.out.lines().len();
    daemon.stop();
    let _daemon = start(ids[1]);
    run.out.wait_for(ids[1]);
    let lines = run.prints(before + 3);
    let expected = ids.map(|id| format!("WHERE\t{id}"));
    assert!(
        lines.iter().all(|line| expected.contains(line)),
        "{lines:?}"
    );
    assert!(lines.is_sorted_by_key(|line| *line == expected[1]));
    run.signal("TERM");
    run.end();
}

pub fn leaves_at_a_signal(sample: &Sample) {
    let daemon = http::daemon(&[]);
    let run = sample.start(
        &repeated("1000", daemon.address, &["WHO"]),
        &[("TIMEOUT", LONG)],
    );
    assert_eq!(run.prints(1), ["WHO\t1"]);
    daemon.wait_for_others(1);
    leaves(run);
    daemon.wait_for_others(0);
    // By an end, not by a reset.
    let closed = |reason: &str| {
        let series = "blockchain_tcpd_connections_closed_total";
        counted(&daemon, &format!("{series}{{reason=\"{reason}\"}}"))
    };
    assert!(closed("left") + closed("quit") >= 1);
    assert_eq!(closed("reset"), 0);
}

pub fn refuses_to_be_called_wrongly(sample: &Sample) {
    let long = "x".repeat(1024);
    let wrong: &[(&[&str], &str)] = &[
        (&[], "nothing to ask"),
        (&["localhost", "4242"], "nothing to ask"),
        (&["--repeat"], "nothing to ask"),
        (&["--unknown", "localhost", "4242", "WHY"], "nothing to ask"),
        (&["", "4242", "WHY"], "nothing to ask"),
        (&["localhost", "http", "WHY"], "not a port: http"),
        (&["localhost", "+4242", "WHY"], "not a port: +4242"),
        (
            &["--repeat", "1e3", "localhost", "4242", "WHY"],
            "not a number of seconds: 1e3",
        ),
        (
            &["--repeat", "5.", "localhost", "4242", "WHY"],
            "not a number of seconds: 5.",
        ),
        (&["localhost", "65536", "WHY"], "not a port: 65536"),
        (&["localhost", "4242", "WHY", ""], "not a request:"),
        (&["localhost", "4242", "WHY", " \t "], "not a request:"),
        (&["localhost", "4242", "W\nY"], "not a request: W\nY"),
        (&["localhost", "4242", "W\u{fc}Y"], "not a request: W"),
        (&["localhost", "4242", &long], "not a request: xxx"),
        (
            &["--repeat", "often", "localhost", "4242", "WHY"],
            "not a number of seconds: often",
        ),
        (
            &["--repeat", "0", "localhost", "4242", "WHY"],
            "not a number of seconds: 0",
        ),
    ];
    let refused = |run: Run, why: &str| {
        let outcome = run.end();
        outcome.is(64, NOTHING);
        let said = format!("{USAGE}\nclient: {why}");
        assert!(outcome.err.starts_with(&said), "{why}: {outcome:?}");
    };
    for (arguments, why) in wrong {
        refused(sample.start(arguments, &[]), why);
    }
    let right = ["localhost", "4242", "WHY"];
    for (name, value) in [
        ("TIMEOUT", ""),
        ("TIMEOUT", "0"),
        ("TIMEOUT", "1s"),
        ("KEEPALIVE", "x"),
    ] {
        let why = format!("not a number of seconds: {value}");
        refused(sample.start(&right, &[(name, value)]), why.trim_end());
    }
    let no_utf8 = ["localhost", "4242"].map(OsStr::new);
    let no_utf8 = [no_utf8[0], no_utf8[1], OsStr::from_bytes(b"W\xffY")];
    refused(sample.start(&no_utf8, &[]), "not a request: W");
}

/// A client that asks the daemon again and again and prints there.
fn prints_to(sample: &Sample, stdout: impl Into<Stdio>) -> Outcome {
    let daemon = Daemon::start([""; 0]);
    let mut command = sample.command();
    command.args(repeated("0.01", daemon.address, &["WHO", "WHY"]));
    Run::start(command, stdout).end()
}

pub fn says_that_it_cannot_print(sample: &Sample) {
    let full = File::options().write(true).open("/dev/full");
    let outcome = prints_to(sample, full.expect("a device"));
    outcome.is(74, NOTHING);
    let said = outcome.err.to_lowercase();
    assert!(said.contains("no space left on device"), "{said}");
    assert_eq!(said.lines().count(), 1, "{said}");
}

pub fn ends_quietly_when_nobody_reads(sample: &Sample) {
    let (reader, writer) = std::io::pipe().expect("a pipe");
    drop(reader);
    let outcome = prints_to(sample, writer);
    assert!(!outcome.ended.success());
    assert_eq!(outcome.err, "");
}
