//! The monitoring plugin: what it says, in which form, and with which exit status.

mod manual;
mod nagios;
mod users;

use std::time::Instant;

use crate::session::play;
use crate::support::{Daemon, PLUGIN, clean};

const ID: &str = "6f0c2a52-5f0e-4b7e-9a35-0c5f7f5a3c1e";

/// What a run of the plugin came to.
#[derive(Debug)]
struct Outcome {
    status: i32,
    lines: Vec<String>,
}

impl Outcome {
    /// The first line: the text, and the figures behind the bar, of which there is only one.
    fn parts(&self) -> (&str, &str) {
        let (text, figures) = self.lines[0].split_once(" | ").expect("figures");
        assert!(!text.contains('|') && !figures.contains('|'), "{self:?}");
        (text, figures)
    }
}

/// Runs the plugin with these arguments. All that it says is on standard output.
fn check(arguments: &str) -> Outcome {
    let mut command = clean(PLUGIN.as_str());
    let output = command.args(arguments.split_whitespace()).output();
    let output = output.expect("it runs");
    assert!(output.stderr.is_empty(), "{output:?}");
    let said = String::from_utf8(output.stdout).expect("UTF-8");
    Outcome {
        status: output.status.code().expect("no signal"),
        lines: said.lines().map(str::to_string).collect(),
    }
}

/// Runs the plugin against this daemon.
fn check_at(daemon: &Daemon, arguments: &str) -> Outcome {
    let (ip, port) = (daemon.address.ip(), daemon.address.port());
    check(&format!("-H {ip} -p {port} {arguments}"))
}

/// A daemon with this id.
fn start() -> Daemon {
    Daemon::start(["--max-clients", "4", "--server-id", ID])
}

/// The measured seconds, and the figures with `TIME` in their place.
fn timed(figures: &str) -> (f64, String) {
    let parts = figures.strip_prefix("time=");
    let parts = parts.and_then(|figures| figures.split_once("s;"));
    let (value, rest) = parts.unwrap_or_else(|| panic!("no time in {figures:?}"));
    let digits = value.trim_matches(|c: char| c.is_ascii_digit() || c == '.');
    assert_eq!(digits, "", "{value}");
    let value = value.parse().expect("a number");
    (value, format!("time=TIMEs;{rest}"))
}

#[test]
fn a_server_that_works_is_ok_in_one_line_with_figures() {
    let daemon = start();
    let begun = Instant::now();
    let outcome = check_at(&daemon, "");
    let passed = begun.elapsed().as_secs_f64();
    assert_eq!((outcome.status, outcome.lines.len()), (0, 1), "{outcome:?}");
    let (text, figures) = outcome.parts();
    let (time, figures) = timed(figures);
    assert!(time > 0.0 && time < passed, "{outcome:?}");
    assert_eq!(figures, "time=TIMEs;;;0;10 clients=1;;;1");
    let said = format!("BLOCKCHAIN-TCP OK - 1 client, {time:.3} s, id {ID}");
    assert_eq!(text, said);
}

#[test]
fn what_it_says_of_the_daemon() {
    let version = ("VERSION", env!("CARGO_PKG_VERSION"));
    play("check/sessions/daemon.txt", &[version]);
}

#[test]
fn servers_that_mean_harm_are_critical() {
    play("check/sessions/servers.txt", &[]);
}
