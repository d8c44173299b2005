//! The count, live: on a screen, as lines, as JSON; and what happens when the server doesn't answer.

use std::process::{Child, Command, Stdio};

use serde_json::Value;

use super::client;
use super::scripted::{Action, Request, Scripted};
use crate::support::names::{UNSHARE_MOUNTS, daemon_at, shown};
use crate::support::terminal::Terminal;
use crate::support::{CLIENT, Daemon, Log, kill, program, wait_until};

/// `watch` of this server, which is asked often.
fn watch(server: impl ToString) -> Command {
    let mut command = client();
    command.args(["watch", &server.to_string(), "--every", "20ms"]);
    command
}

/// The id of a scripted server.
const ID: &str = "6f0c2a52-5f0e-4b7e-9a35-0c5f7f5a3c1e";

/// A server with an id that answers WHO with this line.
fn counting(reply: impl Fn(Request<'_>) -> String + Send + Sync + 'static) -> Scripted {
    Scripted::start(move |request| {
        Action::Send(match request.line {
            "WHERE" => format!("{ID}\n"),
            _ => format!("{}\n", reply(request)),
        })
    })
}

/// A server that answers once on each connection.
fn stalling() -> Scripted {
    Scripted::start(|request| match request.number {
        0 => Action::Send("7\n".to_string()),
        1 => Action::Send(format!("{ID}\n")),
        _ => Action::Stall,
    })
}

/// A running `watch` that is no terminal's. Dropped, it is killed.
struct Watching {
    child: Child,
    lines: Log,
    errors: Log,
}

impl Watching {
    fn start(mut command: Command) -> Self {
        command.stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().expect("it starts");
        Watching {
            lines: Log::follow(child.stdout.take().expect("piped")),
            errors: Log::follow(child.stderr.take().expect("piped")),
            child,
        }
    }

    /// Ends it by this signal; its exit status and all that it said on standard error.
    fn end(&mut self, signal: &str) -> (i32, String) {
        assert!(kill(signal, self.child.id()), "kill -s {signal}");
        let mut ended = None;
        wait_until("it ends", || {
            ended = self.child.try_wait().expect("it is our child");
            ended.is_some()
        });
        let status = ended.expect("waited for").code().unwrap_or(-1);
        (status, self.errors.whole())
    }
}

impl Drop for Watching {
    fn drop(&mut self) {
        // It may have ended.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// ^C, and the end as it must be.
fn ends_well(mut terminal: Terminal) -> Vec<String> {
    terminal.type_in("\x03");
    let status = terminal.end();
    assert_eq!(status.code(), Some(0), "{:#?}", terminal.screen());
    terminal.screen()
}

#[test]
fn the_screen_shows_the_count_as_clients_come_and_go() {
    let daemon = Daemon::start(["--max-clients", "8"]);
    let mut command = Command::new("sh");
    let script = "echo above; exec \"$@\"";
    command
        .args(["-c", script, "sh"])
        .arg(client().get_program());
    command.args(["watch", &daemon.address.to_string(), "--every", "20ms"]);
    let terminal = Terminal::start(command, 24, 80);
    terminal.wait_for("1 client: this one");
    let others = [daemon.connect(), daemon.connect()];
    terminal.wait_for("3 clients, this one included");
    terminal.wait_until("a large 3", |screen| {
        let rows = [" ▀▀█", "  ▀█", " ▀▀▀"];
        (2..)
            .zip(rows)
            .all(|(row, start)| screen[row].starts_with(start))
    });
    terminal.wait_until("bars of both heights", |screen| {
        screen[6].starts_with("3 ┤") && screen[6].ends_with('█') && screen[9].contains("█")
    });
    drop(others);
    terminal.wait_for("1 client: this one");
    terminal.wait_for("least 1, most 3");
    let id = daemon.ask("WHERE\n");
    terminal.wait_for(&format!("{}  {}", daemon.address, id.trim_end()));
    let screen = ends_well(terminal);
    assert!(screen[3].contains("least 1, most 3"), "{screen:#?}");
    let status = "asked every 20ms; ^C ends";
    assert_eq!((screen[0].as_str(), screen[10].as_str()), ("above", status));
    // Nothing was drawn anywhere else, and the ^C itself is gone.
    assert!(screen[11..].iter().all(String::is_empty), "{screen:#?}");
}

#[test]
fn it_follows_the_size_of_the_terminal() {
    let daemon = Daemon::start(["--max-clients", "8"]);
    let terminal = Terminal::start(watch(daemon.address), 24, 80);
    let is_full = |line: &str, columns| line.starts_with("1 ┤") && line.chars().count() == columns;
    for (rows, columns, chart) in [(24, 79, 5), (24, 59, 5), (5, 19, 1), (30, 99, 5)] {
        terminal.resize(rows, columns + 1);
        let columns = usize::from(columns);
        terminal.wait_until("a chart as wide as the terminal", |screen| {
            is_full(&screen[chart], columns)
                && screen[0].starts_with(if chart == 1 { "1 client" } else { "127.0.0.1" })
        });
    }
    ends_well(terminal);
}

#[test]
fn no_terminal_is_too_small() {
    let daemon = Daemon::start(["--max-clients", "8"]);
    // One that doesn't know its size, and some that have hardly any.
    for size in [
        "rows 0 columns 0",
        "rows 1 columns 1",
        "rows 2 columns 80",
        "columns 3",
    ] {
        let mut command = Command::new("sh");
        let script = format!("stty {size}; exec \"$@\"");
        command
            .args(["-c", &script, "sh"])
            .arg(client().get_program());
        command.args(["watch", &daemon.address.to_string(), "--every", "20ms"]);
        let terminal = Terminal::start(command, 24, 80);
        terminal.wait_for("1");
        wait_until("many times", || terminal.all().matches('\n').count() > 60);
        ends_well(terminal);
    }
}

#[test]
fn a_server_that_is_gone_and_comes_back_leaves_a_gap() {
    let daemon = Daemon::start(["--max-clients", "8"]);
    let address = daemon.address.to_string();
    let terminal = Terminal::start(watch(&address), 24, 80);
    let mut lines = Watching::start(watch(&address));
    terminal.wait_for("2 clients");
    terminal.wait_until("two bars", |screen| screen[5].ends_with("██"));
    lines.lines.wait_for(" 2");
    drop(daemon);
    terminal.wait_for("lost: can't connect to");
    terminal.wait_for("no count");
    lines.errors.wait_for("; trying again");
    let mut command = program();
    command.args(["--listen", &address, "--max-clients", "8"]);
    let _daemon = Daemon::run(command);
    terminal.wait_for("back; ^C ends");
    terminal.wait_for("2 clients");
    terminal.wait_until("a gap", |screen| {
        let bars = screen[8].trim_start_matches("0 ┤").trim();
        bars.contains("█ ") && bars.ends_with("█")
    });
    ends_well(terminal);
    lines.errors.wait_for(" back");
    let (status, errors) = lines.end("INT");
    let said: Vec<&str> = errors
        .lines()
        .map(|line| line.split_once("Z ").expect("a time").1)
        .collect();
    assert_eq!(status, 0);
    assert!(
        said.len() == 2 && said[0].starts_with("lost: ") && said[1] == "back",
        "{errors}"
    );
}

#[test]
fn a_new_program_of_the_server_goes_unnoticed() {
    let daemon = Daemon::start(["--max-clients", "8"]);
    let mut lines = Watching::start(watch(daemon.address));
    lines.lines.wait_for(" 1");
    daemon.signal("USR2");
    let ready = || {
        daemon
            .log()
            .lines()
            .iter()
            .filter(|line| line.contains("ready listen="))
            .count()
    };
    wait_until("a new program is ready", || ready() == 2);
    let _other = daemon.connect();
    lines.lines.wait_for(" 2");
    assert_eq!(lines.end("TERM"), (0, String::new()));
}

/// Whether it is such as 2026-11-02T10:00:00.000Z.
fn is_a_time(text: &str) -> bool {
    let shape: String = text
        .chars()
        .map(|c| if c.is_ascii_digit() { '0' } else { c })
        .collect();
    shape == "0000-00-00T00:00:00.000Z"
}

#[test]
fn elsewhere_there_is_a_line_for_each_time() {
    let daemon = Daemon::start(["--max-clients", "8"]);
    let mut watching = Watching::start(watch(daemon.address));
    wait_until("lines", || watching.lines.lines().len() > 3);
    let _other = daemon.connect();
    watching.lines.wait_for(" 2");
    for line in watching.lines.lines() {
        let (time, count) = line.split_once(' ').expect("two words");
        assert!(is_a_time(time) && ["1", "2"].contains(&count), "{line}");
    }
    assert_eq!(watching.end("TERM"), (0, String::new()));

    let mut command = watch(daemon.address);
    command.arg("--json");
    let mut watching = Watching::start(command);
    wait_until("lines", || watching.lines.lines().len() > 3);
    for line in watching.lines.lines() {
        let object: Value = serde_json::from_str(&line).expect("JSON");
        assert!(
            is_a_time(object["time"].as_str().expect("a time")),
            "{line}"
        );
        assert!(
            object["clients"].is_u64() && object["error"].is_null(),
            "{line}"
        );
    }
    assert_eq!(watching.end("INT"), (0, String::new()));
}

#[test]
fn it_asks_as_often_as_told_and_on_one_connection() {
    let server = counting(|request| (request.number + 1).to_string());
    let begun = std::time::Instant::now();
    let mut command = client();
    command.args(["watch", &server.address.to_string(), "--every", "100ms"]);
    let watching = Watching::start(command);
    watching.lines.wait_for(" 7");
    // The fifth after the first is asked half a second after it, and not before.
    assert!(begun.elapsed().as_millis() >= 500, "{:?}", begun.elapsed());
    assert_eq!(server.connections(), 1);
}

#[test]
fn an_error_is_said_once_as_long_as_it_lasts() {
    let error = "ERR UNAVAILABLE a server can't be reached";
    let server = counting(move |request| match request.number % 8 {
        3..6 => error.to_string(),
        _ => "7".to_string(),
    });
    let mut watching = Watching::start(watch(server.address));
    wait_until("two of them", || watching.errors.lines().len() >= 4);
    wait_until("counts between", || watching.lines.lines().len() >= 7);
    let (status, errors) = watching.end("TERM");
    assert_eq!((status, server.connections()), (0, 1));
    for (line, wanted) in errors.lines().zip([error, "back"].into_iter().cycle()) {
        let line = line.strip_prefix("blockchain-tcp: ");
        let (time, said) = line.and_then(|line| line.split_once(' ')).expect("a time");
        assert!(is_a_time(time) && said == wanted, "{errors}");
    }
    let terminal = Terminal::start(watch(server.address), 24, 80);
    terminal.wait_for(error);
    ends_well(terminal);
    let mut command = watch(server.address);
    command.arg("--json");
    let watching = Watching::start(command);
    let line = watching.lines.wait_for("error");
    let object: Value = serde_json::from_str(&line).expect("JSON");
    assert_eq!(object["error"]["word"], "UNAVAILABLE");
    assert_eq!(object["error"]["message"], "a server can't be reached");
    assert!(object["clients"].is_null());
}

/// As it does when it is tired of waiting, or makes room for others.
#[test]
fn a_connection_that_the_server_has_ended_costs_no_count() {
    let server = Scripted::start(|request| match (request.number, request.connection % 2) {
        (1, _) => Action::Send(format!("{ID}\n")),
        (0..3, _) => Action::Send("7\n".to_string()),
        (_, 0) => Action::SendAndClose(String::new()),
        _ => Action::SendAndClose("ERR TIMEOUT no request for too long\n".to_string()),
    });
    let mut watching = Watching::start(watch(server.address));
    wait_until("it has connected anew", || server.connections() >= 4);
    assert_eq!(watching.end("TERM"), (0, String::new()));
}

#[test]
fn the_end_comes_at_once_even_if_a_reply_does_not() {
    let server = stalling();
    let mut command = watch(server.address);
    command.args(["--timeout", "1h"]);
    let terminal = Terminal::start(command, 24, 80);
    terminal.wait_for("7 clients");
    ends_well(terminal);
}

#[test]
fn a_reply_that_takes_too_long_is_a_gap_and_not_the_end() {
    let server = stalling();
    let mut command = watch(server.address);
    command.args(["--timeout", "1s"]);
    let watching = Watching::start(command);
    let lost = "lost: no answer to WHO within 1 s; trying again";
    watching.errors.wait_for(lost);
    watching.errors.wait_for("back");
    assert!(server.connections() > 1);
}

/// One of two servers hangs; the count goes on at the other.
#[test]
fn an_address_that_says_nothing_any_more_is_left_for_the_next() {
    needs!(run & UNSHARE_MOUNTS);
    let (one, port) = daemon_at([127, 66, 0, 9]);
    let other = format!("127.77.0.10:{port}");
    let mut command = program();
    command.args(["--listen", &other, "--max-clients", "2"]);
    let daemons = [one, Daemon::run(command)];
    let hosts = "127.66.0.9 ledger\n127.77.0.10 ledger\n";
    let client = CLIENT.as_str();
    let mut watching = shown("/etc/hosts", hosts, "-m", "", client, |mut command| {
        let server = format!("ledger:{port}");
        command.args(["-s", &server, "-t", "500ms", "watch", "--every", "50ms"]);
        let watching = Watching::start(command);
        watching.lines.wait_for("Z 1");
        watching
    });
    let asked = daemons
        .iter()
        .position(|daemon| daemon.ask("WHO\n") == "2\n");
    let asked = &daemons[asked.expect("one of them is asked")];
    asked.signal("STOP");
    watching.errors.wait_for("no answer to WHO within 0.5 s");
    watching.errors.wait_for(" back");
    assert_eq!(watching.end("TERM").0, 0);
    asked.signal("CONT");
}
