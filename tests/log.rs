//! What is logged and how it looks; that a busy server is quiet, and that no client can flood or forge the log.

use std::process::Command;

use crate::support::kernel::{shell, through};
use crate::support::{Daemon, field};

/// What no client should send, with escapes for a terminal, forged lines and formats in it.
const HOSTILE: &[&[u8]] = &[
    b"\x1b[2J\x1b]0;title\x07WHO\n",
    b"WHO \x1b[31m\n",
    b"x\r2026-01-01T00:00:00.000Z ERROR forged\n",
    b"2026-01-01T00:00:00.000Z ERROR forged\n",
    b"<0>forged key=\"value\n",
    b"%s%n%x {} {0} \\n \\x1b\n",
    b"HELP \"; forged=1\n",
    b"\xff\xfe\x00\x00\xc2\x9b31m\n",
];

/// A daemon with few workers, that logs so much.
fn daemon(filter: &str) -> Daemon {
    Daemon::start(["--max-clients", "8", "--log", filter])
}

/// The message of a line, after its time stamp and its level, which must be there.
fn message(line: &str) -> &str {
    let (timestamp, rest) = line.split_once(' ').expect("a time stamp");
    let digits_as_9 = |character: char| {
        if character.is_ascii_digit() {
            '9'
        } else {
            character
        }
    };
    let shape: String = timestamp.chars().map(digits_as_9).collect();
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
        match round % 4 {
            0 => daemon.connect().send("WHO\nWH"),
            1 => {
                let mut long = daemon.connect();
                long.send("x".repeat(2000));
                assert!(long.rest().starts_with("ERR TOOLONG "));
            }
            2 => {
                let mut reset = daemon.connect();
                reset.send("WHY\n");
                reset.reset();
            }
            _ => assert_eq!(daemon.ask("QUIT\nWHY\n"), "BYE\n"),
        }
    }
    daemon.wait_for_others(0);
}

#[test]
fn a_busy_server_is_quiet() {
    let daemon = daemon("info");
    keep_busy(&daemon);
    let log = daemon.stop();
    let messages: Vec<&str> = log.lines().map(message).collect();
    let first_words: Vec<&str> = messages
        .iter()
        .filter_map(|message| message.split(' ').next())
        .collect();
    assert_eq!(
        first_words,
        ["the", "ready", "stopping", "stopped"],
        "{log}"
    );
}

#[test]
fn nothing_that_a_client_sends_breaks_the_log() {
    let daemon = daemon("trace");
    for request in HOSTILE {
        assert!(daemon.ask(request).starts_with("ERR "));
    }
    daemon.ask(HOSTILE.concat().repeat(10));
    keep_busy(&daemon);
    let log = daemon.stop();
    assert!(
        log.contains(" accepted connection=1 peer=127.0.0.1:"),
        "{log}"
    );
    for line in log.lines() {
        assert!(!message(line).starts_with("forged"), "{line}");
        let printable = line.bytes().all(|byte| matches!(byte, b' '..=b'~'));
        assert!(printable, "{line:?}");
    }
}

#[test]
fn the_request_log_shows_who_asked_what_and_was_answered_what() {
    let daemon = daemon("info,blockchain_tcpd::request_log=trace");
    daemon.ask("why\r\nFOO\tbar\n\nWHO");
    daemon.ask("WHY\n");
    let log = daemon.stop();
    let logged: Vec<&str> = log
        .lines()
        .filter(|line| line.contains(" TRACE "))
        .collect();
    let logged: Vec<&str> = logged.into_iter().map(message).collect();
    let expected = [
        r#"request connection=1 request=why reply=42"#,
        r#"request connection=1 request=FOO\tbar reply="ERR UNKNOWN no such command: \"FOO\" (try HELP)""#,
        r#"request connection=1 request="" reply="""#,
        r#"request connection=1 request=WHO reply=1"#,
        r#"request connection=2 request=WHY reply=42"#,
    ];
    assert_eq!(logged, expected);
}

#[test]
fn a_client_that_floods_is_summed_up_in_the_request_log() {
    const REQUESTS: usize = 20_000;
    let daemon = daemon("trace");
    daemon.ask("WHY\n".repeat(REQUESTS));
    let log = daemon.stop();
    let lines: Vec<&str> = log.lines().map(message).collect();
    let each = lines
        .iter()
        .filter(|line| line.starts_with("request connection=1 "));
    let each = each.count();
    let more = lines
        .iter()
        .filter(|line| line.starts_with("more requests "));
    let more: usize = more
        .map(|line| field(line, "requests").parse::<usize>().unwrap())
        .sum();
    assert_eq!(each + more, REQUESTS);
    // Some seconds at a hundred lines each, on whatever machine.
    assert!((100..REQUESTS / 2).contains(&each), "{each}");
}

#[test]
fn a_line_is_a_time_a_level_words_and_pairs() {
    let daemon = daemon("info");
    let ready = daemon.log().wait_for("ready listen=");
    let mut words = message(&ready).split(' ');
    assert_eq!(words.next(), Some("ready"));
    let keys: Vec<&str> = words
        .map(|pair| pair.split_once('=').expect("key=value").0)
        .collect();
    let expected = [
        "listen",
        "http",
        "sockets",
        "id",
        "cluster",
        "max_clients",
        "queue",
        "started_ms",
    ];
    assert_eq!(keys, expected);
    assert_eq!(field(&ready, "listen"), daemon.address.to_string());
    assert_eq!(field(&ready, "id"), daemon.ask("WHERE").trim());
    assert_eq!(field(&ready, "max_clients"), "8");
    assert_eq!(field(&ready, "http"), "off");
    assert_eq!(field(&ready, "sockets"), "bound");
}

/// The program, started so that JOURNAL_STREAM names its stderr, or almost.
fn under_the_journal(and: &str) -> Command {
    let [sh, c, commands] = shell(&format!(
        "export JOURNAL_STREAM=$(stat -L -c %d:%i /proc/self/fd/2){and}"
    ));
    through(&[&sh, &c, &commands])
}

#[test]
fn the_journal_gets_priorities_instead_of_times() {
    let arguments = [
        "--listen",
        "127.0.0.1:0",
        "--max-clients",
        "1",
        "--queue",
        "0",
        "--log",
        "debug",
    ];
    let mut command = under_the_journal("");
    command.args(arguments);
    let daemon = Daemon::run(command);
    let mut served = daemon.connect();
    assert_eq!(served.ask("WHO"), "1");
    assert!(daemon.connect().rest().starts_with("ERR BUSY "));
    let log = daemon.stop();
    let with = |priority: &str| log.lines().any(|line| line.starts_with(priority));
    assert!(with("<6>ready listen="), "{log}");
    assert!(with("<7>accepted connection="), "{log}");
    assert!(with("<4>clients are refused "), "{log}");
    assert!(log.lines().all(|line| line.starts_with('<')), "{log}");

    let mut command = under_the_journal("0");
    command.args(arguments);
    let daemon = Daemon::run(command);
    message(&daemon.log().wait_for("ready listen="));
}

#[test]
fn the_journal_gets_the_priority_of_what_ends_the_daemon_in_each_line() {
    let mut command = under_the_journal("");
    command.arg("--queue=many");
    let (status, said) = crate::support::run_to_end(command);
    assert_eq!(status, 64);
    assert!(said.starts_with("<3>blockchain-tcpd: "), "{said}");
    assert!(said.lines().all(|line| line.starts_with("<3>")), "{said}");
}

#[test]
fn a_thousand_refusals_are_one_line_and_one_at_their_end() {
    let daemon = Daemon::start(["--max-clients", "1", "--queue", "0", "--idle-timeout", "0s"]);
    let mut served = daemon.connect();
    assert_eq!(served.ask("WHO"), "1");
    for _ in 0..1000 {
        assert!(daemon.connect().rest().starts_with("ERR BUSY "));
    }
    let log = daemon.stop();
    let refusals: Vec<&str> = log
        .lines()
        .filter(|line| line.contains("refused"))
        .collect();
    assert_eq!(refusals.len(), 2, "{log}");
    assert!(
        message(refusals[0]).starts_with("clients are refused reason="),
        "{log}"
    );
    assert!(
        message(refusals[1]).starts_with("over: clients are refused "),
        "{log}"
    );
    assert_eq!(field(refusals[1], "times"), "1000");
    let warnings = log.lines().filter(|line| line.contains(" WARN ")).count();
    assert_eq!(warnings, 2, "{log}");
}
