//! What is logged and how it looks; that a busy server is quiet, and that no client can flood or forge the log.

use std::net::Shutdown;

use crate::support::kernel::{shell, through};
use crate::support::tables::{bytes, lines};
use crate::support::{Daemon, assert_contains, fails_with, field};

/// A daemon with few workers and this filter of the log.
fn daemon(filter: &str) -> Daemon {
    Daemon::start(["--max-clients", "8", "--log", filter])
}

/// The message of a line, after its time stamp and its level, which must be there.
fn message(line: &str) -> &str {
    let (timestamp, rest) = line.split_once(' ').expect("a time stamp");
    let shape = timestamp.replace(|character: char| character.is_ascii_digit(), "9");
    assert_eq!(shape, "9999-99-99T99:99:99.999Z", "{line}");
    let (level, message) = rest.split_at(6);
    let levels = ["ERROR ", "WARN  ", "INFO  ", "DEBUG ", "TRACE "];
    assert!(levels.contains(&level), "{line}");
    message
}

/// Requests of all sorts, on many connections, of which some end badly.
fn keep_busy(daemon: &Daemon) {
    let unlike = b"WHO\nWHERE\nWHY\nPING\nHELP\nHELP WHO\nFOO\nWHY not\n\nWHO \xff\n";
    for round in 0..100 {
        assert_eq!(daemon.ask(unlike.repeat(20)).lines().count(), 180);
        let mut client = daemon.connect();
        match round % 4 {
            0 => client.send("WHO\nWH"),
            1 => {
                client.send("x".repeat(2000));
                assert!(client.rest().starts_with("ERR TOOLONG "));
            }
            2 => {
                client.send("WHY\n");
                client.reset();
            }
            _ => {
                client.send("QUIT\nWHY\n");
                assert_eq!(client.rest(), "BYE\n");
            }
        }
    }
    daemon.wait_for_others(0);
}

#[test]
fn a_busy_server_is_quiet() {
    let daemon = daemon("info");
    keep_busy(&daemon);
    let log = daemon.stop();
    let words = log
        .lines()
        .filter_map(|line| message(line).split(' ').next());
    let words: Vec<&str> = words.collect();
    assert_eq!(words, ["this", "ready", "stopping", "stopped"], "{log}");
}

#[test]
fn no_bytes_of_a_client_break_the_log() {
    let daemon = daemon("trace");
    let hostile = lines(include_str!("log/hostile.txt")).map(bytes);
    let hostile: Vec<Vec<u8>> = hostile.collect();
    for request in &hostile {
        assert!(daemon.ask(request).starts_with("ERR "));
    }
    daemon.ask(hostile.concat().repeat(10));
    keep_busy(&daemon);
    let log = daemon.stop();
    assert_contains(&log, " accepted connection=1 peer=127.0.0.1:");
    for line in log.lines() {
        assert!(!message(line).starts_with("forged"), "{line}");
        let printable = line.bytes().all(|byte| matches!(byte, b' '..=b'~'));
        assert!(printable, "{line:?}");
    }
}

#[test]
fn the_request_log_has_each_request_with_its_reply() {
    let daemon = daemon("info,blockchain_tcpd::request_log=trace");
    daemon.ask("why\r\nFOO\tbar\n\nWHO");
    daemon.ask("WHY\n");
    let log = daemon.stop();
    let logged = log.lines().filter(|line| line.contains(" TRACE "));
    let expected = include_str!("log/requests.txt").lines();
    assert!(logged.map(message).eq(expected), "{log}");
}

#[test]
fn a_client_that_floods_is_summed_up_in_the_request_log() {
    const REQUESTS: usize = 20_000;
    let daemon = daemon("trace");
    // One after the other, and then all at once.
    let mut client = daemon.connect();
    (0..REQUESTS / 2).for_each(|_| assert_eq!(client.ask("WHY"), "42"));
    client.send("WHY\n".repeat(REQUESTS / 2));
    client
        .socket()
        .shutdown(Shutdown::Write)
        .expect("connected");
    client.rest();
    let (mut each, mut more) = (0, 0);
    for line in daemon.stop().lines().map(message) {
        if line.starts_with("request connection=1 ") {
            each += 1;
        } else if line.starts_with("more requests ") {
            more += field(line, "requests").parse::<usize>().unwrap();
        }
    }
    assert_eq!(each + more, REQUESTS);
    // Some seconds at a hundred lines each, on whatever machine.
    assert!((100..REQUESTS / 2).contains(&each), "{each}");
}

#[test]
fn a_line_is_a_time_a_level_words_and_pairs() {
    let daemon = daemon("info");
    let ready = daemon.log().wait_for("ready listen=");
    let (word, pairs) = message(&ready).split_once(' ').expect("pairs");
    let keys = pairs
        .split(' ')
        .map(|pair| pair.split_once('=').expect("key=value").0);
    let keys: Vec<&str> = keys.collect();
    let expected = "listen http sockets id cluster max_clients queue started_ms";
    assert_eq!((word, &*keys.join(" ")), ("ready", expected));
    for (key, value) in [
        ("listen", &*daemon.address.to_string()),
        ("id", daemon.ask("WHERE").trim()),
        ("max_clients", "8"),
        ("http", "off"),
        ("sockets", "bound"),
    ] {
        assert_eq!(daemon.ready(key), value);
    }
}

#[test]
fn the_journal_gets_priorities_instead_of_times() {
    // A daemon whose stderr JOURNAL_STREAM names, or almost.
    let with = |and: &str, arguments: &[&str]| {
        let stream = format!("$(stat -L -c %d:%i /proc/self/fd/2){and}");
        let mut command = through(&shell(&format!("export JOURNAL_STREAM={stream}")));
        let full = "--listen 127.0.0.1:0 --max-clients 1 --queue 0";
        command.args(full.split(' ')).args(arguments);
        command
    };
    let daemon = Daemon::run(with("", &["--log", "debug"]));
    let served = daemon.served(1);
    daemon.is_full();
    drop(served);
    let log = daemon.stop();
    let lines = "<6>ready listen=|<7>accepted connection=|<4>clients are refused ";
    for line in lines.split('|') {
        assert!(log.lines().any(|logged| logged.starts_with(line)), "{log}");
    }
    assert!(log.lines().all(|line| line.starts_with('<')), "{log}");

    let daemon = Daemon::run(with("0", &[]));
    message(&daemon.log().wait_for("ready listen="));

    // Each line of an error at the start, too.
    let said = fails_with(
        with("", &["--listen=nowhere"]),
        64,
        &["<3>blockchain-tcpd: "],
    );
    assert!(said.lines().all(|line| line.starts_with("<3>")), "{said}");
}

#[test]
fn a_thousand_refusals_are_one_line_and_one_at_their_end() {
    let daemon = Daemon::start(["--max-clients", "1", "--queue", "0", "--idle-timeout", "0s"]);
    let _served = daemon.served(1);
    (0..1000).for_each(|_| daemon.is_full());
    let log = daemon.stop();
    let refusals = log.lines().filter(|line| line.contains("refused"));
    let [first, last] = refusals.collect::<Vec<_>>()[..] else {
        panic!("{log}");
    };
    assert!(message(first).starts_with("clients are refused reason="));
    assert!(message(last).starts_with("over: clients are refused "));
    assert_eq!(field(last, "times"), "1000");
    assert_eq!(log.matches(" WARN ").count(), 2, "{log}");
}
