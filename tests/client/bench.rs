//! How fast a server answers: what is reported is what was, and nothing wrong goes unnoticed.

use std::process::{Command, Stdio};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};
use serde_json::{Value, json};

use super::scripted::{Action, Request, Scripted};
use super::{Ran, client, ran, run};
use crate::support::terminal::Terminal;
use crate::support::{Daemon, http, wait_until};

/// Runs `bench` on this server with these options, separated by blanks.
fn bench(server: impl ToString, options: &str) -> Ran {
    let server = server.to_string();
    let words = ["bench", &server]
        .into_iter()
        .chain(options.split_whitespace());
    run(words)
}

/// The same with `--json`, and the exit status that it must have.
fn report(server: impl ToString, options: &str, status: i32) -> Value {
    let ran = bench(server, &format!("--json {options}"));
    assert_eq!((ran.status, ran.errors.as_str()), (status, ""), "{ran:?}");
    serde_json::from_str(&ran.output).unwrap_or_else(|_| panic!("{ran:?}"))
}

fn number(value: &Value) -> f64 {
    value.as_f64().unwrap_or_else(|| panic!("{value}"))
}

/// A server that answers each request with this line.
fn says(reply: impl Fn(Request<'_>) -> &'static str + Send + Sync + 'static) -> Scripted {
    Scripted::start(move |request| Action::Send(format!("{}\n", reply(request))))
}

/// The report has these values.
fn shows(report: &Value, values: Value) {
    for (name, value) in values.as_object().expect("an object") {
        assert_eq!(&report[name], value, "{name}: {report}");
    }
}

/// How many requests the daemon has answered, as it says itself.
fn answered(daemon: &Daemon) -> u64 {
    let metrics = http::get(daemon.http(), "/metrics").body;
    let counters = metrics
        .lines()
        .filter(|line| line.starts_with("blockchain_tcpd_requests_total{"));
    let values = counters.map(|line| line.rsplit(' ').next().unwrap_or_default().parse::<u64>());
    values.map(|value| value.expect("a number")).sum()
}

#[test]
fn what_it_says_it_has_sent_is_what_the_server_has_answered() {
    let daemon = http::daemon(&["--max-clients", "64"]);
    let address = daemon.address.to_string();
    let mut before = 0;
    for (clients, depth) in [(1, 1), (8, 1), (3, 16), (2, 5000)] {
        let options = format!("-d 300ms -c {clients} -p {depth}");
        let report = report(&address, &options, 0);
        let sent = report["sent"].as_u64().expect("a number");
        assert_eq!(answered(&daemon) - before, sent, "{report}");
        before += sent;
        let busy = number(&report["generator_busy"]);
        assert!(busy > 0.0 && busy < 1.1, "{report}");
        shows(
            &report,
            json!({
                "answered": sent, "clients": clients, "depth": depth, "request": "WHY", "reply": "42",
                "address": address, "seconds": 0.3, "warm_up_seconds": 0.015,
                "interrupted": false, "first_wrong": null,
            }),
        );
        assert_eq!(report["errors"]["total"], 0);
        let requests = number(&report["requests"]);
        assert!(requests > 0.0 && requests <= sent as f64, "{report}");
        let rate = number(&report["rate"]);
        assert!((rate - requests / 0.3).abs() < 1e-6, "{report}");
        let latency = &report["latency_us"];
        let values = ["p50", "p90", "p99", "p99_9", "max"].map(|key| number(&latency[key]) / 1e6);
        assert!(values.is_sorted() && values[0] > 0.0, "{report}");
        // A request at a time: all the time of all clients is that of their requests, which may
        // have begun before.
        let mean = number(&latency["mean"]) / 1e6;
        assert!(mean > 0.0 && mean <= values[4], "{report}");
        let most = f64::from(clients) * (0.3 + 2.0 * values[4]);
        assert!(depth > 1 || mean * requests <= most, "{report}");
    }
}

#[test]
fn many_clients_count_themselves() {
    let daemon = Daemon::start(["--max-clients", "300"]);
    let found = report(daemon.address, "-d 300ms -c 200 -r who", 0);
    assert_eq!(
        (&found["errors"]["total"], &found["reply"]),
        (&0.into(), &"1".into())
    );
    let text = bench(daemon.address, "-d 100ms -c 20 -r WHO").output;
    assert!(
        text.contains("WHO, answered a number from 20 up\n"),
        "{text}"
    );
    // One that counts fewer is found out.
    let server = says(|request| if request.number == 0 { "3" } else { "2" });
    let report = report(server.address, "-d 200ms -c 3 -r WHO", 1);
    assert!(number(&report["errors"]["wrong"]) > 0.0, "{report}");
    assert_eq!(report["first_wrong"], "\"2\"");
}

#[test]
fn a_wrong_reply_is_found() {
    for wrong in ["43", "4", "422", "", " 42", "ERR lower"] {
        let server = says(move |request| {
            if request.number % 50 == 20 {
                wrong
            } else {
                "42"
            }
        });
        let report = report(server.address, "-d 200ms -c 3 -p 4", 1);
        let errors = &report["errors"];
        assert!(number(&errors["wrong"]) > 0.0, "{wrong}: {report}");
        assert_eq!(report["first_wrong"], format!("\"{wrong}\""));
        assert_eq!(errors["wrong"], errors["total"]);
        let right = number(&report["sent"]) - number(&errors["wrong"]);
        assert_eq!(number(&report["answered"]), right, "{report}");
        assert_eq!(server.connections(), 4);
    }
    let server = says(|request| if request.number == 9 { "42\n42" } else { "42" });
    let report = report(server.address, "-d 300ms -c 1", 1);
    assert_eq!(report["first_wrong"], "more is answered than was asked");
    let server = says(|request| if request.number == 9 { "43" } else { "42" });
    let text = bench(server.address, "-d 200ms -c 1").output;
    let errors = "errors    1\n          wrong replies: 1, the first \"43\"\n";
    assert!(text.contains(errors), "{text}");
}

#[test]
fn what_is_asked_and_answered_is_escaped() {
    let server = Scripted::start(|_| Action::Send("a\\b\n".to_string()));
    let mut command = client();
    command.args(["bench", &server.address.to_string(), "-d50ms", "-c1"]);
    let ran = ran(command.arg("-rx\x1b[2J\u{9b}").output().expect("it runs"));
    let line = "request   x\\x1b[2J\\xc2\\x9b, answered a\\x5cb\n";
    assert_eq!(ran.status, 0, "{ran:?}");
    assert!(ran.output.contains(line), "{ran:?}");
}

#[test]
fn errors_are_counted_by_their_words() {
    let server = says(|request| match request.number % 10 {
        5 => "ERR UNAVAILABLE not now",
        7 => "ERR USAGE no",
        _ => "42",
    });
    let found = report(server.address, "-d 200ms -c 3 -p 2", 1);
    let words = &found["errors"]["replies"];
    let (unavailable, usage) = (number(&words["UNAVAILABLE"]), number(&words["USAGE"]));
    assert!(unavailable > 0.0 && usage > 0.0, "{found}");
    assert_eq!(number(&found["errors"]["total"]), unavailable + usage);
    let replies = number(&found["answered"]) + unavailable + usage;
    assert_eq!(number(&found["sent"]), replies);
    // The connections went on.
    assert_eq!(server.connections(), 4);

    let server = Scripted::start(|request| match request.number {
        0..5 => Action::Send("42\n".to_string()),
        _ => Action::SendAndClose("ERR INTERNAL a defect\n".to_string()),
    });
    let report = report(server.address, "-d 200ms -c 2", 1);
    let errors = &report["errors"];
    assert_eq!(
        (&errors["replies"]["INTERNAL"], &errors["total"]),
        (&2.into(), &2.into())
    );
}

#[test]
fn a_client_that_loses_its_connection_is_out_and_counted() {
    let server = Scripted::start(|request| match request.number {
        19 => Action::SendAndClose("42\n".to_string()),
        _ => Action::Send("42\n".to_string()),
    });
    for (options, clients) in [("-d 300ms -c 3", 3.0), ("-R 1000 -d 300ms -c 2", 2.0)] {
        let before = server.connections();
        let report = report(server.address, options, 1);
        let errors = &report["errors"];
        assert_eq!(
            number(&errors["closed"]) + number(&errors["broken"]),
            clients
        );
        let unsent = number(&errors["unsent"]);
        assert_eq!(number(&errors["total"]), clients + unsent, "{report}");
        assert_eq!(server.connections() - before, clients as usize + 1);
        // At a rate nothing that was due is forgotten.
        let (sent, answered) = (number(&report["sent"]), number(&report["answered"]));
        let is_rate = options.starts_with("-R");
        assert!(!is_rate || sent + unsent == 318.0, "{report}");
        assert!(answered == 20.0 * clients + 1.0, "{report}");
    }
}

#[test]
fn a_reply_that_takes_too_long_is_an_error() {
    let start = || {
        Scripted::start(|request| match (request.connection, request.number) {
            (1, 5) => Action::Stall,
            _ => Action::Send("42\n".to_string()),
        })
    };
    let server = start();
    let report = report(server.address, "-d 3s -c 2 -t 2s", 1);
    assert_eq!(
        (&report["errors"]["timeout"], &report["errors"]["total"]),
        (&1.into(), &1.into())
    );
    // It is not in the percentiles, and that is said.
    assert_eq!(report["given_up"], 1, "{report}");
    let text = bench(start().address, "-d 1s -c 1 -p 3 -t 500ms").output;
    let said = "\n          without 3 requests that had no reply\nerrors    1\n";
    assert!(text.contains(said), "{text}");
}

#[test]
fn at_a_rate_what_is_due_is_sent_and_no_more() {
    let daemon = http::daemon(&["--max-clients", "64"]);
    let mut before = 0;
    for (rate, clients, depth) in [(200, 3, 1), (2000, 7, 4), (20, 50, 1)] {
        let options = format!("-R {rate} -d 500ms -c {clients} -p {depth}");
        let report = report(daemon.address, &options, 0);
        // In half a second, and a twentieth before it; each client and one before them have asked
        // once.
        let sent = (f64::from(rate) * 0.525).ceil() as u64 + clients + 1;
        assert_eq!(answered(&daemon) - before, sent, "{report}");
        before += sent;
        let sent = json!({"sent": sent, "answered": sent, "wanted_rate": rate, "given_up": 0});
        shows(&report, sent);
    }
    let text = bench(daemon.address, "-R 1000 -d 100ms -c 2").output;
    let load = "\nload      1,000 requests a second from 2 clients, each with at most 1 request on the way\n";
    assert!(text.contains(load), "{text}");
    let report = report(daemon.address, "-d 50ms -c 1", 0);
    shows(&report, json!({ "wanted_rate": null }));
}

#[test]
fn a_stall_is_in_the_percentiles_of_a_rate_and_of_nothing_else() {
    let daemon = http::daemon(&["--max-clients", "8"]);
    let address = daemon.address;
    let mut before = 0;
    for (options, shows) in [("-R 1000", true), ("", false)] {
        let options = format!("-c 2 -d 4s {options}");
        let running = std::thread::spawn(move || report(address, &options, 0));
        wait_until("the load runs", || answered(&daemon) > before + 500);
        daemon.signal("STOP");
        let stopped = Instant::now();
        wait_until("a stall", || stopped.elapsed() > Duration::from_secs(2));
        daemon.signal("CONT");
        let report = running.join().expect("a report");
        let of = |key: &str| number(&report["latency_us"][key]) / 1e6;
        assert!(of("max") > 0.9, "{report}");
        match shows {
            // Half of the requests was due meanwhile, the last of them for a moment.
            true => assert!(of("p90") > 0.3 && of("p99") > 0.8, "{report}"),
            false => assert!(of("p99") < 0.1, "{report}"),
        }
        assert_eq!(report["given_up"], 0, "{report}");
        before = answered(&daemon);
    }
}

#[test]
fn what_a_slow_server_leaves_is_given_up_and_named() {
    // Not even a hundred a second.
    let server = Scripted::start(|_| {
        let begun = Instant::now();
        wait_until("a while", || begun.elapsed() > Duration::from_millis(10));
        Action::Send("42\n".to_string())
    });
    let report = report(server.address, "-R 1000 -c 1 -d 1s -t 300ms", 1);
    let unsent = number(&report["errors"]["unsent"]);
    // All that was due: a second, and a twentieth before it. The first request and that of the
    // client came before.
    let sent = number(&report["sent"]) - 2.0;
    assert_eq!(sent + unsent, 1050.0, "{report}");
    assert!(unsent > 500.0, "{report}");
    // The last may be in flight.
    let given_up = number(&report["given_up"]);
    assert!(given_up > 500.0 && given_up <= unsent + 1.0, "{report}");
    // The others have waited since they were due.
    assert!(number(&report["latency_us"]["p50"]) > 200e3, "{report}");
}

#[test]
fn as_many_requests_are_on_the_way_as_it_is_told() {
    // Whoever sends one at a time waits in vain.
    let server = Scripted::start(|request| {
        Action::Send(match request.number {
            0 => "42\n".to_string(),
            number if number % 4 == 0 => "42\n".repeat(4),
            _ => String::new(),
        })
    });
    let report = report(server.address, "-d 200ms -c 2 -p 4 -t 2s", 0);
    assert!(number(&report["requests"]) >= 4.0, "{report}");
}

#[test]
fn a_reply_that_comes_when_the_time_is_over_has_its_latency() {
    let server = Scripted::start(|request| {
        let begun = Instant::now();
        // Twice as long as it measures.
        let is_over = || request.number == 0 || begun.elapsed() > Duration::from_millis(600);
        wait_until("the time is over", is_over);
        Action::Send("42\n".to_string())
    });
    let report = report(server.address, "-d 300ms -c 1", 0);
    assert_eq!(
        (&report["requests"], &report["sent"]),
        (&0.into(), &3.into())
    );
    assert!(number(&report["latency_us"]["p50"]) >= 600e3, "{report}");
}

#[test]
fn its_own_options_stand_above_those_of_all_tasks() {
    for (task, own) in [("bench", "--clients"), ("watch", "--every")] {
        let help = run([task, "--help"]).output;
        let (above, below) = help
            .split_once("\nOptions of all tasks:\n")
            .expect("a heading");
        assert!(above.contains(own) && !above.contains("--server <"));
        assert!(below.contains("--server <") && !below.contains(own));
    }
}

#[test]
fn a_terminal_shows_how_far_it_is_and_the_user_may_end_it() {
    let daemon = Daemon::start(["--max-clients", "8"]);
    let mut command = client();
    command.args(["bench", &daemon.address.to_string(), "-c", "2", "-d", "10m"]);
    let mut terminal = Terminal::start(command, 24, 80);
    terminal.wait_until("a bar", |screen| {
        screen
            .iter()
            .any(|line| line.contains(" of 600 s  ") && line.ends_with("/s"))
    });
    terminal.wait_until("a rate, measured", |screen| {
        let is_early = |line: &String| line.contains("  0/s") || line.contains(" 0.0 of");
        !screen.iter().any(is_early)
    });
    terminal.type_in("\x03");
    assert_eq!(terminal.end().code(), Some(0), "{:#?}", terminal.screen());
    terminal.wait_for(", ended early");
    terminal.wait_for("errors    0");
    assert!(terminal.shows_cursor());
}

#[test]
fn a_terminal_that_can_not_be_drawn_on_is_left_alone() {
    let daemon = Daemon::start(["--max-clients", "8"]);
    let mut command = Command::new("env");
    command.arg("TERM=dumb").arg(client().get_program());
    command.args(["bench", &daemon.address.to_string(), "-c", "1", "-d", "1s"]);
    let mut terminal = Terminal::start(command, 24, 80);
    assert_eq!(terminal.end().code(), Some(0), "{:#?}", terminal.screen());
    terminal.wait_for("errors    0");
    assert!(
        terminal.all().starts_with("server "),
        "{:?}",
        terminal.all()
    );
    assert!(!terminal.all().contains('\x1b'), "{:?}", terminal.all());
    terminal.wait_for("load      1 client, with 1 request on the way");
}

#[test]
fn ended_while_warming_up_it_has_measured_nothing() {
    let process = Arc::new(Mutex::new(None));
    let ended = process.clone();
    // The load has begun when a client asks again.
    let server = Scripted::start(move |request| {
        if request.number == 1 {
            let process: Option<Pid> = *ended.lock().unwrap();
            kill_process(process.expect("it was started"), Signal::INT).expect("it lives");
        }
        Action::Send("42\n".to_string())
    });
    let bench = |json: bool| {
        let mut command = client();
        command.args(["bench", &server.address.to_string(), "-c", "1", "-d", "1h"]);
        command
            .args(json.then_some("--json"))
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        let mut process = process.lock().unwrap();
        let child = command.spawn().expect("it starts");
        *process = Some(Pid::from_child(&child));
        drop(process);
        ran(child.wait_with_output().expect("it ends"))
    };
    let text = bench(false);
    assert_eq!((text.status, text.errors.as_str()), (0, ""));
    let wanted = "on the way\ntime      nothing measured: ended while warming up\nerrors    0\n";
    assert!(text.output.ends_with(wanted), "{text:?}");
    let json: Value = serde_json::from_str(&bench(true).output).expect("JSON");
    assert_eq!(
        (&json["seconds"], &json["latency_us"]),
        (&0.0.into(), &Value::Null),
        "{json}"
    );
}

#[test]
fn ended_early_it_reports_what_it_has_even_if_a_reply_is_due() {
    let server = Scripted::start(|request| match request.number {
        0..10 => Action::Send("42\n".to_string()),
        _ => Action::Stall,
    });
    let address = server.address.to_string();
    for rate in [None, Some("--rate=100")] {
        let mut command = client();
        command.args(["bench", &address, "--json"]).args(rate);
        command.args(["-c", "2", "-d", "10m", "-t", "1h"]);
        let mut terminal = Terminal::start(command, 24, 800);
        terminal.wait_for(" of 600 s");
        terminal.type_in("\x03");
        assert_eq!(terminal.end().code(), Some(0), "{:#?}", terminal.screen());
        terminal.wait_for("\"interrupted\":true");
    }
}
