//! Health, readiness and the page; and what HTTP clients may do to the server, above all on purpose.

use std::io::{ErrorKind, Read as _, Write as _};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use blockchain_tcpd::admin::{AdminServer, Context, Draining};
use blockchain_tcpd::command::sets::server;
use blockchain_tcpd::command::{CommandClass, CommandSet, CommandSpec, Reply as Value};
use blockchain_tcpd::listener;

use crate::project::{Example, examples};
use crate::support::http::{Reply, connect, daemon, get, get_with, send, try_get};
use crate::support::kernel::{local_server, own_address};
use crate::support::repeat::repeat;
use crate::support::tables::{bytes, lines};
use crate::support::trickle::Trickle;
use crate::support::{
    Client, Daemon, Scratch, assert_contains, clean, fails, fails_with, installed, program,
    wait_until,
};

const JSON: &str = "Accept: application/json\r\n";

/// Has a new program take over, for the time with this number, and waits until it has.
fn hand_over(daemon: &Daemon, handovers: usize) {
    daemon.signal("USR2");
    let count = format!("blockchain_tcpd_handovers_total {handovers}\n");
    let is_over = || get(daemon.http(), "/metrics").body.contains(&count);
    wait_until("it has been handed over", is_over);
}

/// Sends these bytes to a new connection and waits for its end.
fn exchange(address: SocketAddr, request: &str) -> String {
    let bytes = send(address, request).expect("it is answered");
    String::from_utf8(bytes).expect("UTF-8")
}

/// Nobody can set the clock of the machine that the tests run on: the system's function says what it would.
#[test]
fn a_step_of_the_clock_changes_no_duration() {
    if !installed("gcc") {
        return;
    }
    let folder = Scratch::new();
    let [library, step] = ["step.so", "step"].map(|name| folder.path().join(name));
    let mut gcc = clean("gcc");
    gcc.args(["-shared", "-fPIC", "-o"]).arg(&library);
    gcc.arg(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/http/step.c"));
    assert!(gcc.status().expect("it runs").success());
    let mut command = program();
    command.env("LD_PRELOAD", library).env("STEP", &step);
    command.args(["--listen", "127.0.0.1:0", "--http", "127.0.0.1:0"]);
    let daemon = Daemon::run(command);
    let since = |page: &Reply| {
        let shown = page.body.split_once("<dt>Serving since</dt><dd>");
        shown.expect("it is there").1[..60].to_string()
    };
    let before = since(&get(daemon.http(), "/"));
    std::fs::write(step, "").expect("written");
    let page = get(daemon.http(), "/");
    let after = since(&page);
    // Seconds or minutes, not days.
    assert!(after.contains(" s)"), "{before} {after}");
    let year = &after[..4];
    assert_ne!(&before[..4], year, "the clock was set");
    // When it began is told by the clock as it is now.
    assert_contains(page.field("date").expect("it has one"), year);
}

#[test]
fn each_path_answers_text_json_or_a_page_and_head_no_body() {
    let daemon = daemon(&["--max-clients", "4", "--queue", "2"]);
    let http = daemon.http();
    let _client = daemon.connect();
    daemon.wait_for_others(1);
    let has_left = || get(http, "/readyz").body.contains("; clients: 1,");
    wait_until("the asking client has left", has_left);
    for row in lines(include_str!("http/replies.txt")) {
        let cells: Vec<&str> = row.split('|').map(str::trim).collect();
        let [path, field, status, kind, body] = cells[..] else {
            panic!("{row}");
        };
        let separator = if field.is_empty() { "" } else { "\r\n" };
        let reply = get_with(http, path, &format!("{field}{separator}"));
        assert_eq!(reply.status.to_string(), status, "{row}");
        let content_type = reply.field("content-type").expect("it has one");
        assert!(content_type.starts_with(kind), "{row}: {content_type}");
        assert!(
            body.is_empty() || reply.body == format!("{body}\n"),
            "{row}: {reply:?}"
        );

        let request = format!("HEAD {path} HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n");
        let head = Reply::of(&send(http, request).unwrap()).expect("a reply");
        assert_eq!((head.status, &*head.body), (reply.status, ""), "{row}");
        assert_ne!(head.field("content-length"), Some("0"), "{row}");
        let length = reply.body.len().to_string();
        assert_eq!(reply.field("content-length"), Some(&*length), "{row}");
    }
    let post = exchange(
        http,
        "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 0\r\n\r\n",
    );
    assert!(post.starts_with("HTTP/1.1 405 "), "{post}");
    assert_contains(&post.to_lowercase(), "\r\nallow: get, head\r\n");
    let page = get(http, "/").body;
    assert_contains(&page, daemon.ask("WHERE").trim());
    assert_contains(&page, env!("CARGO_PKG_VERSION"));
    for shown in ["1, of whom 0 wait", "<svg ", "man blockchain-tcpd"] {
        assert_contains(&page, shown);
    }
    assert!(!page.contains("<script"));
}

#[test]
fn a_connection_is_kept_and_takes_several_requests_at_once_or_in_pieces() {
    let daemon = daemon(&["--max-clients", "2"]);
    let mut stream = connect(daemon.http()).unwrap();
    let three = "GET /readyz HTTP/1.1\r\nHost: a\r\n\r\n".repeat(2)
        + "GET /livez HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n";
    let (first, rest) = three.split_at(100);
    stream.write_all(first.as_bytes()).unwrap();
    for byte in rest.bytes() {
        stream.write_all(&[byte]).unwrap();
    }
    let mut all = String::new();
    stream.read_to_string(&mut all).unwrap();
    assert_eq!(all.matches("HTTP/1.1 200 OK\r\n").count(), 3, "{all}");
    assert_eq!(all.matches("ready; clients: 0,").count(), 2, "{all}");
    assert!(all.ends_with("live: clients are being served\n"), "{all}");
    // HTTP/1.0 ends with the reply; half-closed, it is answered too.
    let mut old = connect(daemon.http()).unwrap();
    old.write_all(b"GET /readyz HTTP/1.0\r\n\r\n").unwrap();
    old.shutdown(Shutdown::Write).unwrap();
    all.clear();
    old.read_to_string(&mut all).unwrap();
    assert_contains(&all, "ready; clients: 0,");
}

#[test]
fn http_clients_never_count() {
    let daemon = daemon(&["--max-clients", "2"]);
    let mut client = daemon.connect();
    let _open = [(); 8].map(|()| connect(daemon.http()).unwrap());
    for path in ["/livez", "/readyz", "/metrics", "/"] {
        assert_eq!(get(daemon.http(), path).status, 200);
        assert_eq!(client.ask("WHO"), "1");
    }
}

/// HTTP has its own thread and its own places.
#[test]
fn http_is_answered_while_a_thousand_clients_trickle_and_the_server_is_full() {
    let daemon = daemon(&["--max-clients", "64", "--queue", "16"]);
    let http = daemon.http();
    let _trickle = Trickle::start(daemon.address);
    wait_until("it is full", || get(http, "/readyz").status == 503);
    for _ in 0..50 {
        assert_contains(&get(http, "/readyz").body, "ready");
        assert_eq!(get(http, "/livez").status, 200);
        assert_eq!(get(http, "/metrics").status, 200);
    }
    let full = "not ready: full; clients: 80, of whom 16 wait; room for 0 more\n";
    wait_until("full again", || get(http, "/readyz").body == full);
}

#[test]
fn a_thousand_bad_requests_harm_nothing() {
    let daemon = daemon(&["--max-clients", "4"]);
    let http = daemon.http();
    let mut client = daemon.connect();
    get(http, "/livez");
    let before = (daemon.status_number("Threads"), daemon.descriptors());
    let mut bad: Vec<Vec<u8>> = lines(include_str!("http/bad-requests.txt"))
        .map(bytes)
        .collect();
    bad.push((0..=255).cycle().take(20_000).collect());
    let mut answered = 0;
    for (number, request) in bad.iter().cycle().take(1000).enumerate() {
        // It may be refused, and the connection closed, before all is sent.
        if let Some(reply) = send(http, request).ok().and_then(|bytes| Reply::of(&bytes)) {
            assert!((400..600).contains(&reply.status), "{number}: {reply:?}");
            assert_eq!(reply.field("connection"), Some("close"), "{number}");
            answered += 1;
        }
        if number % 100 == 0 {
            assert_eq!(client.ask("WHY"), "42");
            assert_eq!(get(http, "/livez").status, 200);
        }
    }
    assert!(answered > 900, "{answered}");
    assert_eq!(client.ask("WHO"), "1");
    let are_back = || daemon.descriptors() <= before.1;
    wait_until("all descriptors are back", are_back);
    assert_eq!(daemon.status_number("Threads"), before.0);
    let log = daemon.stop();
    assert!(!log.contains("panic"), "{log}");
}

/// They take a place each, and when all are taken the one that has had its time makes room.
#[test]
fn unfinished_requests_keep_nobody_out() {
    let daemon = daemon(&["--max-clients", "2"]);
    let http = daemon.http();
    let mut slow: Vec<TcpStream> = (0..200).map(|_| connect(http).unwrap()).collect();
    for stream in &mut slow {
        // Those that have made room already are gone.
        let _ = stream.write_all(b"GET /livez HT");
    }
    for path in ["/livez", "/readyz", "/metrics", "/"] {
        assert_eq!(get(http, path).status, 200, "{path}");
    }
    assert!(daemon.descriptors() < 100, "{}", daemon.descriptors());
    // A begun request is answered that it took too long.
    let late = exchange(http, "GET /livez HTTP/1.1\r\n");
    assert!(late.starts_with("HTTP/1.1 408 "), "{late}");
}

/// Those that have been answered and ask nothing make room, not those that ask.
#[test]
fn idle_connections_keep_nobody_out() {
    let daemon = daemon(&["--max-clients", "2"]);
    let ask = b"GET /readyz HTTP/1.1\r\nHost: a\r\n\r\n";
    let send = |streams: &mut [TcpStream], part: &[u8], is_whole: bool| {
        for stream in streams {
            stream.write_all(part).unwrap();
            assert!(!is_whole || stream.read(&mut [0; 1000]).expect("no reset") > 0);
        }
    };
    let mut idle = [(); 32].map(|()| connect(daemon.http()).unwrap());
    send(&mut idle, ask, true);
    let mut halves = [(); 20].map(|()| connect(daemon.http()).unwrap());
    send(&mut halves, &ask[..20], false);
    send(&mut halves, &ask[20..], true);
}

#[test]
fn a_blank_line_between_two_requests_is_no_request() {
    let daemon = daemon(&["--max-clients", "2"]);
    let mut stream = connect(daemon.http()).unwrap();
    let first = b"GET /readyz HTTP/1.1\r\nHost: a\r\n\r\n\r\n";
    stream.write_all(first).unwrap();
    assert!(stream.read(&mut [0; 1000]).unwrap() > 0);
    // After the time that a request may take it is still there.
    let longer = Some(Duration::from_secs(6));
    stream.set_read_timeout(longer).unwrap();
    let waited = stream.read(&mut [0; 1000]).unwrap_err();
    assert_eq!(waited.kind(), ErrorKind::WouldBlock);
    let second = b"\r\nHEAD /readyz HTTP/1.1\r\n\r\n";
    stream.write_all(second).unwrap();
    let mut all = String::new();
    stream.read_to_string(&mut all).unwrap();
    assert!(all.starts_with("HTTP/1.1 400 "), "{all}");
    assert!(all.ends_with("\r\n\r\n"), "{all}");
}

/// Each check is a new connection, some of which are made before the handover and ask only then.
#[test]
fn no_check_fails_while_a_new_program_takes_over() {
    let daemon = daemon(&["--max-clients", "4"]);
    let http = daemon.http();
    let checks = [("/livez", 0), ("/readyz", 20), ("/metrics", 3)].map(|(path, pause)| {
        let request = format!("GET {path} HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n");
        repeat(0, move |answered| {
            let mut stream = connect(http).expect("it listens");
            thread::park_timeout(Duration::from_millis(pause));
            stream.write_all(request.as_bytes()).expect("it takes it");
            let mut all = String::new();
            stream.read_to_string(&mut all).expect("no reset");
            assert!(all.starts_with("HTTP/1.1 200 "), "{path} after {answered}");
            *answered += 1;
        })
    });
    (1..=10).for_each(|handovers| hand_over(&daemon, handovers));
    for check in checks {
        assert!(check.end() > 10);
    }
}

/// There is room in the queue for all clients that are admitted, and for those that look whether anybody is there.
#[test]
fn checks_take_no_places_of_clients() {
    let daemon = daemon(&["--max-clients", "1", "--queue", "0"]);
    let http = daemon.http();
    let mut stream = connect(http).expect("it listens");
    let checks = repeat((), move |()| {
        let request = b"GET /livez HTTP/1.1\r\nHost: a\r\n\r\n";
        stream.write_all(request).expect("it takes it");
        assert!(stream.read(&mut [0; 1000]).expect("no reset") > 0);
    });
    for _ in 0..2000 {
        let mut client = daemon.connect();
        client.send("WHO\n");
        let reply = client.whatever_line();
        assert!(reply == "1\n" || reply.starts_with("ERR BUSY "), "{reply}");
        let metrics = get(http, "/metrics").body;
        assert_contains(&metrics, "blockchain_tcpd_queue_clients 0\n");
    }
    checks.end();
    assert!(!daemon.stop().contains("no room in the queue"));
}

/// It takes no reply, and asks for as many as it can.
#[test]
fn an_http_client_that_takes_no_replies_keeps_nobody_waiting() {
    let daemon = daemon(&["--max-clients", "2"]);
    let mut greedy = connect(daemon.http()).unwrap();
    let soon = Some(Duration::from_millis(100));
    greedy.set_write_timeout(soon).unwrap();
    let request = b"GET /metrics HTTP/1.1\r\nHost: a\r\n\r\n".repeat(10_000);
    // The kernel takes some megabytes on both sides.
    let taken = (0..1000).take_while(|_| greedy.write_all(&request).is_ok());
    assert!(taken.count() < 1000, "it took all");
    assert!(daemon.status_number("VmRSS") < 20_000, "KiB");
    assert_eq!(get(daemon.http(), "/livez").status, 200);
    drop(greedy);
    assert_eq!(get(daemon.http(), "/livez").status, 200);
}

#[test]
fn readyz_says_that_it_drains_while_clients_are_still_served() {
    let mut daemon = daemon(&["--max-clients", "4", "--drain-notice", "1h"]);
    let http = daemon.http();
    let mut client = daemon.connect();
    assert_eq!(get(http, "/readyz").status, 200);
    daemon.signal("TERM");
    wait_until("it says so", || get(http, "/readyz").status == 503);
    let reason = "{\"ready\":false,\"reason\":\"draining\",";
    assert_contains(&get_with(http, "/readyz", JSON).body, reason);
    assert_eq!(get(http, "/livez").status, 200);
    assert_eq!(daemon.ask("WHY"), "42\n");
    assert_eq!(client.ask("WHY"), "42");
    let notice = "draining: /readyz says so seconds=3600 clients=1";
    daemon.log().wait_for(notice);
    // A second signal ends it.
    wait_until("it has ended", || {
        daemon.signal_if_there("TERM");
        daemon.ended().is_some()
    });
}

#[test]
fn the_drain_notice_ends_before_clients_are_refused() {
    let daemon = daemon(&["--max-clients", "4", "--drain-notice", "300ms"]);
    let begun = Instant::now();
    let log = daemon.stop();
    assert!(begun.elapsed() >= Duration::from_millis(300));
    let notice = log.find("draining: /readyz says so").expect("a notice");
    let stopping = log.find("stopping reason=SIGTERM").expect("the end");
    assert!(notice < stopping, "{log}");
}

#[test]
fn the_next_program_goes_on_at_the_same_address() {
    let daemon = daemon(&["--max-clients", "4"]);
    let http = daemon.http();
    let mut kept = connect(http).unwrap();
    let mut clients = daemon.served(1);
    for handovers in 1..=3 {
        // Connections that arrive meanwhile wait, and none is refused.
        hand_over(&daemon, handovers);
        assert_eq!(clients[0].ask("WHO"), "1");
    }
    let accepted = "blockchain_tcpd_connections_accepted_total 1\n";
    assert_contains(&get(http, "/metrics").body, accepted);
    // A connection that waits for its next request is closed in order.
    assert_eq!(kept.read(&mut [0; 8]).expect("no reset"), 0);
    daemon.stop();
}

#[test]
fn systemd_may_pass_the_http_socket() {
    if !installed("systemd-socket-activate") {
        return;
    }
    let (line, http) = (own_address(), own_address());
    let activated = |more: &[&str]| {
        let mut command = clean("systemd-socket-activate");
        command.env_remove("BLOCKCHAIN_TCPD_HTTP");
        command.args([line, http].map(|address| format!("--listen={address}")));
        command.args(["--fdname=line:http"]);
        command.arg(program().get_program()).args(more);
        command
    };
    let connects = |address| {
        wait_until("it listens", || TcpStream::connect(address).is_ok());
    };
    let scrape = thread::spawn(move || {
        connects(http);
        get(http, "/readyz")
    });
    let daemon = Daemon::run(activated(&["--max-clients", "4"]));
    assert_eq!(scrape.join().unwrap().status, 200);
    assert_eq!((daemon.address, daemon.http()), (line, http));
    assert_eq!(daemon.ask("WHY"), "42\n");
    hand_over(&daemon, 1);
    daemon.stop();
    // Another address besides makes no sense.
    let visit = thread::spawn(move || connects(line));
    let command = activated(&["--http", "127.0.0.1:0"]);
    let said = "--http (BLOCKCHAIN_TCPD_HTTP) names others";
    fails_with(command, 78, &[said]);
    visit.join().unwrap();
}

#[test]
fn http_can_be_switched_off_and_must_listen_only_where_it_is_told_to() {
    let off = Daemon::start(["--http", "", "--max-clients", "2"]);
    assert_eq!(off.ready("http"), "off");
    // Of the default address it is not known whether somebody has it. If so, or if we have it, it is taken now.
    let _taken = TcpListener::bind("127.0.0.1:4280");
    let mut command = program();
    command.env_remove("BLOCKCHAIN_TCPD_HTTP");
    command.args(["--listen", "127.0.0.1:0", "--max-clients", "2"]);
    let without = Daemon::run(command);
    assert_eq!(without.ask("WHY"), "42\n");
    let warning = "no health checks and no metrics (--http): can't listen on 127.0.0.1:4280";
    assert_contains(&without.stop(), warning);
    let (status, said) = fails(["--listen", "127.0.0.1:0", "--http", "127.0.0.1:4280"]);
    assert_eq!(status, 71, "{said}");
}

static GO_ON: AtomicBool = AtomicBool::new(false);
static IS_HELD: AtomicBool = AtomicBool::new(false);

/// HOLD keeps its worker from anything else.
const HOLD: CommandSet = &[CommandSpec {
    name: "HOLD",
    arguments: "",
    summary: "waits until it may go on",
    kind: CommandClass::Query,
    execute: |_, _| {
        IS_HELD.store(true, Ordering::Relaxed);
        wait_until("it may go on", || GO_ON.load(Ordering::Relaxed));
        Ok(Value::Text("WENT ON"))
    },
}];

/// A check that takes its time keeps nobody else waiting, and says what has not moved.
#[test]
fn a_server_that_hangs_is_not_live_and_says_why() {
    const COMMANDS: &[CommandSet] = &[server::SET, HOLD];
    let server = local_server(&["--max-clients", "1"], COMMANDS);
    let listener = listener::bind("127.0.0.1:0".parse().unwrap()).unwrap();
    let context = Context {
        health: Arc::new(server.health()),
        metrics: server.metrics.clone(),
        commands: COMMANDS.to_vec(),
        member: server.member(),
        cluster: server.cluster_stats(),
        draining: Draining::default(),
    };
    let http = AdminServer::start(vec![Arc::new(listener)], context, 8).unwrap();
    let address = http.addresses()[0];
    assert_eq!(get(address, "/livez").status, 200);
    let mut client = Client::connect(server.addresses()[0]).unwrap();
    client.send("HOLD\n");
    wait_until("it hangs", || IS_HELD.load(Ordering::Relaxed));
    let checks = [(); 4].map(|()| thread::spawn(move || get_with(address, "/livez", JSON)));
    assert_eq!(get(address, "/readyz").status, 200);
    for check in checks {
        let reply = check.join().unwrap();
        assert_eq!(reply.status, 503);
        let reason = "{\"live\":false,\"reason\":\"a worker does not answer\"}\n";
        assert_eq!(reply.body, reason);
    }
    let reason = "not live: a worker does not answer\n";
    assert_eq!(get(address, "/livez").body, reason);
    GO_ON.store(true, Ordering::Relaxed);
    assert_eq!(client.line().as_deref(), Some("WENT ON"));
    assert_eq!(get(address, "/livez").status, 200);
    drop(http.end());
    assert!(try_get(address, "/livez", "").is_err());
}

/// It is read in a terminal, too.
#[test]
fn the_page_reads_well_in_a_text_browser() {
    if !installed("w3m") {
        return;
    }
    let daemon = daemon(&["--max-clients", "4"]);
    let page = format!("http://{}/", daemon.http());
    let output = Command::new("w3m").args(["-dump", &page]).output();
    let shown = String::from_utf8(output.expect("w3m runs").stdout).expect("UTF-8");
    let clients = "0, of whom 0 wait; 4 can be served, 128 more may wait";
    for expected in ["ready", "Clients", clients, "Handed over"] {
        let is_shown = shown.lines().any(|line| line.trim() == expected);
        assert!(is_shown, "no {expected:?} in\n{shown}");
    }
    assert_contains(&shown, daemon.ask("WHERE").trim());
}

/// A browser takes it for what it is meant to be: two drawings, and nothing that is missing or refused.
#[test]
fn the_page_is_whole_in_a_browser() {
    if !installed("chromium") {
        return;
    }
    let daemon = daemon(&["--max-clients", "4"]);
    let scratch = Scratch::new();
    let mut browser = clean("chromium");
    let flags = "--headless --no-sandbox --disable-gpu --disable-dev-shm-usage --enable-logging=stderr --log-level=0 \
                 --virtual-time-budget=2000 --dump-dom";
    browser.args(flags.split_whitespace());
    browser.arg(format!("--user-data-dir={}", scratch.path().display()));
    browser.arg(format!("http://{}/", daemon.http()));
    let output = browser.output().expect("chromium runs");
    let shown = String::from_utf8_lossy(&output.stdout);
    for part in [
        "</h1>",
        "</html>",
        "<title>0 clients - blockchain-tcpd</title>",
    ] {
        assert_contains(&shown, part);
    }
    assert_eq!(shown.matches("<polyline points=").count(), 2, "{shown}");
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(!said.contains("CONSOLE"), "{said}");
}

/// The commands that the documents show, for this daemon's address.
#[test]
fn the_documented_commands_print_what_they_show() {
    if !installed("curl") {
        return;
    }
    let daemon = daemon(&[]);
    let run = |command: &str| {
        let command = command.replace("127.0.0.1:4280", &daemon.http().to_string());
        let mut bash = Command::new("bash");
        bash.args(["-o", "pipefail", "-c", &command]);
        let output = bash.output().expect("bash runs");
        assert!(output.status.success(), "{command}: {output:?}");
        String::from_utf8(output.stdout).expect("UTF-8")
    };
    let mut shown = examples(include_str!("../README.md"));
    shown.retain(|example| example.command.starts_with("curl "));
    assert_eq!(shown.len(), 3);
    for Example { command, printed } in shown {
        assert_eq!(run(&command), printed, "{command}");
    }
    let metrics = include_str!("../docs/metrics.md");
    for document in [metrics, include_str!("../man/blockchain-tcpd.8")] {
        let lines = document.lines().map(str::trim);
        let commands = lines.filter(|line| line.starts_with("curl "));
        assert!(commands.map(|line| assert!(!run(line).is_empty())).count() > 0);
    }
}
