//! Health, readiness and the page; and what HTTP clients may do to the server, above all on purpose.

use std::io::{ErrorKind, Read as _, Write as _};
use std::net::{TcpListener, TcpStream};
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use blockchain_tcpd::admin::{AdminServer, Context};
use blockchain_tcpd::server::listener;
use shared::command::sets::server;
use shared::command::{CommandClass, CommandSet, Draining, Value};

use crate::project::{Example, examples};
use crate::support::http::{Reply, daemon, get, get_with, request, send, try_get};
use crate::support::kernel::{local_server, own_address, own_command};
use crate::support::tables::{bytes, lines};
use crate::support::trickle::Trickle;
use crate::support::watch::repeat;
use crate::support::*;

const JSON: &str = "Accept: application/json\r\n";

/// A request in a connection that goes on.
const ASK: &str = "GET /readyz HTTP/1.1\r\nHost: a\r\n\r\n";

/// Has a new program take over, for the time with this number, and waits until it has.
fn hand_over(daemon: &Daemon, handovers: usize) {
    daemon.signal("USR2");
    let count = format!("blockchain_tcpd_handovers_total {handovers}\n");
    let is_over = || get(daemon.http(), "/metrics").body.contains(&count);
    wait_until("it has been handed over", is_over);
}

/// Nobody can set the clock of the machine that the tests run on: the system's function says what it would.
#[test]
fn a_step_of_the_clock_changes_no_duration() {
    needs!("gcc");
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
    // The time of the start follows the clock as it is now.
    assert_contains(page.field("date").expect("it has one"), year);
}

#[test]
fn each_path_is_answered_and_its_clients_never_count() {
    let daemon = daemon(&["--max-clients", "4", "--queue", "2"]);
    let http = daemon.http();
    let mut client = daemon.connect();
    let _open = [(); 8].map(|()| daemon.connect_http());
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
        let is_right = body.is_empty() || reply.body == format!("{body}\n");
        assert!(is_right, "{row}: {reply:?}");

        let head = daemon.ask_http(request("HEAD", path));
        let head = Reply::of(head.as_bytes()).expect("a reply");
        assert_eq!((head.status, &*head.body), (reply.status, ""), "{row}");
        assert_ne!(head.field("content-length"), Some("0"), "{row}");
        let length = reply.body.len().to_string();
        assert_eq!(reply.field("content-length"), Some(&*length), "{row}");
        assert_eq!(client.ask("WHO"), "1", "{row}");
    }
    let nothing = daemon.ask_http(request("GET", "/nothing"));
    assert!(
        nothing.starts_with("HTTP/1.1 404 Not Found\r\n"),
        "{nothing}"
    );
    let post = daemon.ask_http(request("POST", "/"));
    let refused = "HTTP/1.1 405 Method Not Allowed\r\n";
    assert!(post.starts_with(refused), "{post}");
    assert_contains(&post.to_lowercase(), "\r\nallow: get, head\r\n");
    let page = get(http, "/").body;
    assert_contains(&page, daemon.ask("WHERE").trim());
    assert_contains(&page, env!("CARGO_PKG_VERSION"));
    for shown in ["1, 0 of them waiting", "<svg ", "man blockchain-tcpd"] {
        assert_contains(&page, shown);
    }
    assert!(!page.contains("<script"));
}

#[test]
fn a_connection_is_kept_and_takes_several_requests_at_once_or_in_pieces() {
    let daemon = daemon(&["--max-clients", "2"]);
    let mut client = daemon.connect_http();
    client.send(format!("{ASK}{}", &ASK[..20]));
    let last = request("GET", "/livez");
    for byte in ASK[20..].bytes().chain(last.bytes()) {
        client.send([byte]);
    }
    let all = client.rest();
    assert_eq!(all.matches("HTTP/1.1 200 OK\r\n").count(), 3, "{all}");
    assert_eq!(all.matches("ready; clients: 0,").count(), 2, "{all}");
    assert!(all.ends_with("live: clients are being served\n"), "{all}");
    // HTTP/1.0 ends with the reply; half-closed, it is answered too.
    let mut old = daemon.connect_http();
    old.send("GET /readyz HTTP/1.0\r\n\r\n");
    old.shutdown();
    assert_contains(&old.rest(), "ready; clients: 0,");
}

/// HTTP has its own thread and its own places.
#[test]
fn health_and_metrics_are_answered_while_a_thousand_clients_trickle_and_the_server_is_full() {
    let daemon = daemon(&["--max-clients", "64", "--queue", "16"]);
    let http = daemon.http();
    let _trickle = Trickle::start(daemon.address);
    wait_until("it is full", || get(http, "/readyz").status == 503);
    let mut slowest = Duration::ZERO;
    for path in ["/readyz", "/livez", "/metrics"].repeat(50) {
        let begun = Instant::now();
        let reply = get(http, path);
        slowest = slowest.max(begun.elapsed());
        assert!(path == "/readyz" || reply.status == 200, "{path}");
    }
    eprintln!("150 answers of HTTP; the slowest after {slowest:?}");
    let full = "not ready: full; clients: 80, 16 of them waiting; room for 0 more\n";
    wait_until("full again", || get(http, "/readyz").body == full);
}

#[test]
fn a_thousand_bad_requests_harm_nothing() {
    let daemon = daemon(&["--max-clients", "4"]);
    let http = daemon.http();
    let mut client = daemon.connect();
    get(http, "/livez");
    let before = (daemon.status_number("Threads"), daemon.descriptors());
    let bad = lines(include_str!("http/bad-requests.txt")).map(bytes);
    let every_byte = (0..=255).cycle().take(20_000).collect();
    let bad: Vec<Vec<u8>> = bad.chain([every_byte]).collect();
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
    let slow: Vec<Client> = (0..200).map(|_| daemon.connect_http()).collect();
    for client in &slow {
        // Those that have made room already are gone.
        let _ = client.socket().write_all(b"GET /livez HT");
    }
    for path in ["/livez", "/readyz", "/metrics", "/"] {
        assert_eq!(get(daemon.http(), path).status, 200, "{path}");
    }
    assert!(daemon.descriptors() < 100, "{}", daemon.descriptors());
    // A begun request is answered that it took too long.
    let late = daemon.ask_http("GET /livez HTTP/1.1\r\n");
    assert!(late.starts_with("HTTP/1.1 408 "), "{late}");
}

/// Those that have been answered and ask nothing make room, not those that ask.
#[test]
fn idle_connections_keep_nobody_out() {
    let daemon = daemon(&["--max-clients", "2"]);
    let mut idle = [(); 32].map(|()| daemon.connect_http());
    for client in &mut idle {
        client.send(ASK);
        assert!(client.line().is_some());
    }
    let mut halves = [(); 20].map(|()| daemon.connect_http());
    for client in &mut halves {
        client.send(&ASK[..20]);
    }
    for client in &mut halves {
        client.send(&ASK[20..]);
        assert!(client.line().is_some());
    }
}

#[test]
fn a_blank_line_between_two_requests_is_no_request() {
    let daemon = daemon(&["--max-clients", "2"]);
    let mut client = daemon.connect_http();
    client.send(format!("{ASK}\r\n"));
    while client.line().expect("a reply") != "\r" {}
    assert!(client.line().expect("a body").starts_with("ready; "));
    // After the time that a request may take it is still there.
    let longer = Some(Duration::from_secs(6));
    client.socket().set_read_timeout(longer).unwrap();
    let waited = client.socket().read(&mut [0]).unwrap_err();
    assert_eq!(waited.kind(), ErrorKind::WouldBlock);
    client.send("\r\nHEAD /readyz HTTP/1.1\r\n\r\n");
    let bad = client.rest();
    assert!(bad.starts_with("HTTP/1.1 400 "), "{bad}");
    assert!(bad.ends_with("\r\n\r\n"), "{bad}");
}

/// Each check is a new connection, some of which are made before the handover and ask only then.
#[test]
fn no_check_fails_while_a_new_program_takes_over() {
    let daemon = daemon(&["--max-clients", "4"]);
    let http = daemon.http();
    let checks = [("/livez", 0), ("/readyz", 20), ("/metrics", 3)];
    let checks = checks.map(|(path, pause)| {
        repeat(0, move |answered| {
            let mut client = Client::connect(http).expect("it listens");
            thread::park_timeout(Duration::from_millis(pause));
            client.send(request("GET", path));
            let reply = client.rest();
            assert!(reply.starts_with("HTTP/1.1 200 "), "{path} {answered}");
            *answered += 1;
        })
    });
    let mut kept = daemon.connect_http();
    let mut client = daemon.served(1).remove(0);
    for handovers in 1..=10 {
        hand_over(&daemon, handovers);
        assert_eq!(client.ask("WHO"), "1");
    }
    for check in checks {
        assert!(check.end() > 10);
    }
    let accepted = "blockchain_tcpd_connections_accepted_total 1\n";
    assert_contains(&get(http, "/metrics").body, accepted);
    // A connection that waits for its next request is closed in order.
    assert_eq!(kept.rest(), "");
    daemon.stop();
}

/// There is room in the queue for all clients that are admitted, and for those that look whether anybody is there.
#[test]
fn checks_take_no_places_of_clients() {
    let daemon = daemon(&["--max-clients", "1", "--queue", "0"]);
    let http = daemon.http();
    let mut client = daemon.connect_http();
    let checks = repeat((), move |()| {
        client.send("GET /livez HTTP/1.1\r\nHost: a\r\n\r\n");
        while client.line().expect("a reply") != "live: clients are being served" {}
    });
    for _ in 0..2000 {
        let mut client = daemon.connect();
        client.send("WHO\n");
        let reply = client.whatever_line();
        assert!(reply == "1\n" || reply.starts_with("ERR BUSY "), "{reply}");
        // One that stays goes through the queue.
        drop(client);
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
    let greedy = daemon.connect_http();
    let soon = Some(Duration::from_millis(100));
    greedy.socket().set_write_timeout(soon).unwrap();
    let requests = ASK.repeat(10_000);
    // The kernel takes some megabytes on both sides.
    let mut sent = (0..1000).map(|_| greedy.socket().write_all(requests.as_bytes()));
    assert!(sent.any(|sent| sent.is_err()), "it took all");
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
fn systemd_may_pass_the_http_socket() {
    needs!("systemd-socket-activate");
    let (line, http) = (own_address(), own_address());
    let activated = |more: &[&str]| {
        let mut command = clean("systemd-socket-activate");
        command.env_remove("BLOCKCHAIN_TCPD_HTTP");
        command.args([line, http].map(|address| format!("--listen={address}")));
        command.args(["--fdname=line:admin"]);
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
    let said = "--http (BLOCKCHAIN_TCPD_HTTP) is set too";
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
const HOLD: CommandSet = &[own_command("HOLD", CommandClass::Compute, |_, _| {
    IS_HELD.store(true, Ordering::Relaxed);
    wait_until("it may go on", || GO_ON.load(Ordering::Relaxed));
    Ok(Value::from("WENT ON"))
})];

/// A check that takes its time keeps nobody else waiting, and says what has not moved.
#[test]
fn a_server_that_hangs_is_not_live_and_says_why() {
    const COMMANDS: &[CommandSet] = &[server::SET, HOLD];
    let server = local_server(&["--max-clients", "1"], COMMANDS);
    let listener =
        listener::bind_beside("127.0.0.1:0".parse().unwrap(), listener::ADMIN, &[]).unwrap();
    let context = Context {
        health: Arc::new(server.health()),
        metrics: server.metrics.clone(),
        commands: COMMANDS.to_vec(),
        member: server.member(),
        cluster: server.cluster_stats(),
        store: None,
        ready_needs_store: false,
        draining: Draining::default(),
        protocols: vec!["tcp".to_string()],
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
    needs!("w3m");
    let daemon = daemon(&["--max-clients", "4"]);
    let page = format!("http://{}/", daemon.http());
    let output = Command::new("w3m").args(["-dump", &page]).output();
    let shown = String::from_utf8(output.expect("w3m runs").stdout).expect("UTF-8");
    let clients = "0, 0 of them waiting; 4 can be served, 128 more may wait";
    for expected in ["ready", "Clients", clients, "Handed over"] {
        let is_shown = shown.lines().any(|line| line.trim() == expected);
        assert!(is_shown, "no {expected:?} in\n{shown}");
    }
    assert_contains(&shown, daemon.ask("WHERE").trim());
}

/// A browser takes it for what it is meant to be: two drawings, and nothing that is missing or refused.
#[test]
fn the_page_is_whole_in_a_browser() {
    needs!("chromium");
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
    let title = "<title>0 clients - blockchain-tcpd</title>";
    for part in ["</h1>", "</html>", title] {
        assert_contains(&shown, part);
    }
    assert_eq!(shown.matches("<polyline points=").count(), 2, "{shown}");
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(!said.contains("CONSOLE"), "{said}");
}

/// The commands that the documents show, for this daemon's address.
#[test]
fn the_documented_commands_print_what_they_show() {
    needs!("curl");
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
    shown.retain(|example| example.command.contains(":4280"));
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
