//! The monitoring plugin: what it says of the real daemon, in which form, and with which exit status.

mod manual;
mod nagios;
mod servers;
mod ways;

use std::ffi::OsStr;
use std::process::{Command, Stdio};
use std::time::Instant;

use crate::support::{Daemon, Log, PATIENCE, PLUGIN, clean, wait_until};

const ID: &str = "6f0c2a52-5f0e-4b7e-9a35-0c5f7f5a3c1e";
const OTHER_ID: &str = "11111111-2222-4333-8444-555555555555";

const OK: i32 = 0;
const WARNING: i32 = 1;
const CRITICAL: i32 = 2;
const UNKNOWN: i32 = 3;

/// What a run of the plugin came to.
#[derive(Debug)]
struct Outcome {
    status: i32,
    lines: Vec<String>,
}

impl Outcome {
    /// The first line, without the figures.
    fn text(&self) -> &str {
        let line = self.lines.first().expect("a line");
        line.split(" | ").next().unwrap_or_default()
    }

    /// What is behind the bar, of which there is only one.
    fn figures(&self) -> &str {
        let parts: Vec<&str> = self.lines[0].split('|').collect();
        assert_eq!(parts.len(), 2, "{self:?}");
        parts[1].strip_prefix(' ').expect("a blank")
    }

    /// This status with these words, on one line without figures.
    fn says(&self, status: i32, text: &str) {
        let name =
            ["OK", "WARNING", "CRITICAL", "UNKNOWN"][usize::try_from(status).expect("a status")];
        assert_eq!(self.lines, [format!("BLOCKCHAIN-TCP {name} - {text}")]);
        assert_eq!(self.status, status, "{self:?}");
    }
}

/// Runs the plugin with these arguments.
fn check<A: AsRef<OsStr>>(arguments: impl IntoIterator<Item = A>) -> Outcome {
    let mut command = clean(PLUGIN.as_str());
    command.args(arguments);
    run(command)
}

/// Runs the plugin as it is called here. All that it says is on standard output.
#[allow(clippy::zombie_processes)] // it is waited for on every way, which clippy doesn't see in a loop
fn run(mut command: Command) -> Outcome {
    let mut child = command
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("it starts");
    let said = Log::follow(child.stdout.take().expect("it is piped"));
    let complained = Log::follow(child.stderr.take().expect("it is piped"));
    let begun = Instant::now();
    let mut status = None;
    while status.is_none() && begun.elapsed() < PATIENCE {
        status = child.try_wait().expect("it is our child");
        std::thread::park_timeout(std::time::Duration::from_millis(2));
    }
    if status.is_none() {
        child.kill().expect("it is our child");
        child.wait().expect("it is our child");
        panic!("it didn't end: {}", said.whole());
    }
    assert_eq!(complained.whole(), "");
    said.whole();
    Outcome {
        status: status.and_then(|status| status.code()).expect("no signal"),
        lines: said.lines(),
    }
}

/// Arguments for this daemon.
fn at(daemon: &Daemon) -> [String; 4] {
    at_port(daemon.address.port())
}

fn at_port(port: u16) -> [String; 4] {
    [
        "-H".to_string(),
        "127.0.0.1".to_string(),
        "-p".to_string(),
        port.to_string(),
    ]
}

/// Runs the plugin against this daemon.
fn check_at(daemon: &Daemon, arguments: &str) -> Outcome {
    check(
        at(daemon)
            .into_iter()
            .chain(arguments.split_whitespace().map(str::to_string)),
    )
}

/// A daemon with this id.
fn start() -> Daemon {
    Daemon::start(["--max-clients", "4", "--server-id", ID])
}

/// The measured seconds, and the figures with `TIME` in their place.
fn timed(figures: &str) -> (f64, String) {
    let (value, rest) = figures
        .strip_prefix("time=")
        .and_then(|figures| figures.split_once("s;"))
        .unwrap_or_else(|| panic!("no time in {figures:?}"));
    assert!(
        value
            .bytes()
            .all(|byte| byte.is_ascii_digit() || byte == b'.'),
        "{value}"
    );
    (
        value.parse().expect("a number"),
        format!("time=TIMEs;{rest}"),
    )
}

#[test]
fn a_server_that_works_is_ok_in_one_line_with_figures() {
    let daemon = start();
    let begun = Instant::now();
    let outcome = check_at(&daemon, "");
    let passed = begun.elapsed().as_secs_f64();
    assert_eq!(
        (outcome.status, outcome.lines.len()),
        (OK, 1),
        "{outcome:?}"
    );
    let (time, figures) = timed(outcome.figures());
    assert!(time > 0.0 && time < passed, "{outcome:?}");
    assert_eq!(figures, "time=TIMEs;;;0;10 clients=1;;;1");
    assert_eq!(
        outcome.text(),
        format!("BLOCKCHAIN-TCP OK - 1 client, {time:.3} s, id {ID}")
    );
}

#[test]
fn the_clients_are_counted_and_a_check_is_not_counted_by_the_next() {
    let daemon = start();
    let stay = (daemon.connect(), daemon.connect());
    daemon.wait_for_others(2);
    for _ in 0..20 {
        let outcome = check_at(&daemon, "");
        assert!(
            outcome
                .text()
                .starts_with("BLOCKCHAIN-TCP OK - 3 clients, "),
            "{outcome:?}"
        );
        assert!(outcome.figures().ends_with(" clients=3;;;1"), "{outcome:?}");
    }
    drop(stay);
}

#[test]
fn a_threshold_that_is_passed_is_named_and_all_are_among_the_figures() {
    let daemon = start();
    let cases = [
        (WARNING, "-w 9:10 -W 2:", "9:10;;0;10 clients=1;2:;;1"),
        (WARNING, "-w ~:0 -c 20", "~:0;20;0;10 clients=1;;;1"),
        (
            CRITICAL,
            "--warning ~:0 --critical @0:20 --timeout 20.5",
            "~:0;@0:20;0;20.5 clients=1;;;1",
        ),
        (WARNING, "-W 2: -C 0:9", ";;0;10 clients=1;2:;0:9;1"),
        (
            CRITICAL,
            "--warning-clients 2: --critical-clients=-5:0.5",
            ";;0;10 clients=1;2:;-5:0.5;1",
        ),
        (CRITICAL, "-c ~:0 -W 2:", ";~:0;0;10 clients=1;2:;;1"),
        (CRITICAL, "-w ~:0 -C @1", "~:0;;0;10 clients=1;;@1;1"),
    ];
    for (status, arguments, shown) in cases {
        let outcome = check_at(&daemon, arguments);
        assert_eq!(outcome.status, status, "{outcome:?}");
        assert_eq!(
            timed(outcome.figures()).1,
            format!("time=TIMEs;{shown}"),
            "{arguments}"
        );
    }
    assert_eq!(check_at(&daemon, "-w 10 -c 20 -W 4 -C 5").status, OK);
    let outcome = check_at(&daemon, "-w ~:0 -W 2:");
    let (time, _) = timed(outcome.figures());
    assert_eq!(
        outcome.text(),
        format!(
            "BLOCKCHAIN-TCP WARNING - 1 client (warning: 2:), {time:.3} s (warning: ~:0), id {ID}"
        )
    );
}

#[test]
fn another_server_than_the_expected_one_is_critical() {
    let daemon = start();
    assert_eq!(check_at(&daemon, &format!("--id {ID}")).status, OK);
    assert_eq!(
        check_at(&daemon, &format!("--id {}", ID.to_uppercase())).status,
        OK
    );
    let outcome = check_at(&daemon, &format!("--id {OTHER_ID} -W 2:"));
    assert_eq!(outcome.status, CRITICAL);
    let text = outcome.text();
    assert!(
        text.starts_with("BLOCKCHAIN-TCP CRITICAL - 1 client (warning: 2:), "),
        "{text}"
    );
    assert!(
        text.ends_with(&format!(", id {ID} (critical: not {OTHER_ID})")),
        "{text}"
    );
    assert!(outcome.figures().ends_with(" clients=1;2:;;1"));
}

#[test]
fn a_full_server_is_critical_in_its_own_words() {
    let daemon = Daemon::start(["--max-clients", "1", "--queue", "0"]);
    let stay = daemon.connect();
    let said = "BLOCKCHAIN-TCP CRITICAL - the server says \"ERR BUSY ";
    // The one that stays may be let in a little later.
    wait_until("it is full", || {
        let outcome = check_at(&daemon, "");
        outcome.status == CRITICAL && outcome.text().starts_with(said)
    });
    assert!(check_at(&daemon, "").text().ends_with('"'));
    drop(stay);
}

#[test]
fn nobody_at_the_port_is_critical() {
    let daemon = start();
    let port = daemon.address.port();
    daemon.stop();
    let said = format!("can't connect to 127.0.0.1:{port}: Connection refused");
    check(at_port(port)).says(CRITICAL, &said);
}

#[test]
fn more_is_said_if_asked_for() {
    let daemon = start();
    let address = daemon.address;
    let once = check_at(&daemon, "-v");
    assert!(
        once.text().ends_with(&format!("id {ID}, from {address}")),
        "{once:?}"
    );
    assert_eq!((once.status, once.lines.len()), (OK, 1), "{once:?}");
    let steps = [
        format!("addresses: [{address}]"),
        format!("connected to {address}"),
        "WHO: \"1\"".to_string(),
        format!("WHERE: \"{ID}\""),
        "WHY: \"42\"".to_string(),
        "closed by the server".to_string(),
    ];
    let twice = check_at(&daemon, "-vv");
    assert_eq!(twice.lines[1..], steps);
    twice.figures();
    let thrice = check_at(&daemon, "--verbose -v -v");
    let untimed = |line: &String| line.split_once(" s: ").expect("a time").1.to_string();
    let (times, said): (Vec<&str>, Vec<String>) = thrice.lines[1..]
        .iter()
        .map(|line| (line.split(' ').next().expect("a time"), untimed(line)))
        .unzip();
    assert_eq!(said, steps);
    assert!(
        times.is_sorted() && times[0].parse::<f64>().is_ok(),
        "{times:?}"
    );
}

#[test]
fn what_it_is_asked_for_instead_of_a_check_is_unknown() {
    for flag in ["-V", "--version"] {
        let outcome = check([flag]);
        assert_eq!(
            outcome.lines,
            [format!(
                "check_blockchain_tcp {}",
                env!("CARGO_PKG_VERSION")
            )]
        );
        assert_eq!(outcome.status, UNKNOWN);
    }
    for flag in ["-h", "--help"] {
        let outcome = check([flag]);
        assert!(outcome.lines.len() > 10, "{outcome:?}");
        assert_eq!(outcome.status, UNKNOWN);
    }
}

#[test]
fn wrong_usage_is_unknown_in_one_line() {
    let range = "not a range, such as 10, 10:, ~:10, 10:20 or @10:20";
    let cases: [(&[&str], &str); 9] = [
        (
            &["-w", "x"],
            &format!("invalid value 'x' for '--warning <RANGE>': {range}"),
        ),
        (
            &["-C", "20:10"],
            "invalid value '20:10' for '--critical-clients <RANGE>': 20 is more than 10",
        ),
        (
            &["-t", "0"],
            "invalid value '0' for '--timeout <SECONDS>': not a number of seconds from 0.001 to 3600",
        ),
        (
            &["-p", "65536"],
            "invalid value '65536' for '--port <PORT>': 65536 is not in 1..=65535",
        ),
        (
            &["-H", ""],
            "a value is required for '--hostname <HOST>' but none was supplied",
        ),
        (
            &["-4", "-6"],
            "the argument '--use-ipv4' cannot be used with '--use-ipv6'",
        ),
        (&["--bogus"], "unexpected argument '--bogus' found"),
        (
            &["a|b=1\n\nc"],
            "unexpected argument 'a\\x7cb=1\\x0a\\x0ac' found",
        ),
        (
            &["--id", "6f0c"],
            "invalid value '6f0c' for '--id <UUID>': not a UUID, such as \
           6f0c2a52-5f0e-4b7e-9a35-0c5f7f5a3c1e (uuidgen makes one)",
        ),
    ];
    for (arguments, said) in cases {
        check(arguments).says(UNKNOWN, &format!("{said} (see --help)"));
    }
}

/// What can't be reported is unknown; a reader that closes early does not change the status.
#[test]
fn a_line_that_cannot_be_written_is_unknown() {
    let daemon = start();
    for (redirection, status) in [(">&-", UNKNOWN), (">/dev/full", UNKNOWN), (">&0", WARNING)] {
        let mut command = clean("sh");
        let script = format!("exec \"$0\" \"$@\" {redirection}");
        command
            .args(["-c", &script, PLUGIN.as_str()])
            .args(at(&daemon))
            .args(["-W", "2:"]);
        // Nobody reads from the pipe.
        let (_, pipe) = rustix::pipe::pipe().expect("a pipe");
        command.stdin(pipe);
        let outcome = run(command);
        let expected = (status, 0);
        assert_eq!(
            (outcome.status, outcome.lines.len()),
            expected,
            "{redirection}"
        );
    }
}
