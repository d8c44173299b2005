//! Health, readiness and the page; and what those who speak HTTP may do to the server, above all on purpose.

use std::io::{Read as _, Write as _};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use blockchain_tcpd::admin::AdminServer;
use blockchain_tcpd::admin::{Context, Draining};
use blockchain_tcpd::server::listener;
use shared::command::sets::server;
use shared::command::{CommandClass, CommandSet, CommandSpec, Value, ValueType};

use crate::project::{Example, examples};
use crate::support::http::{Reply, connect, daemon, get, get_with, send, try_get};
use crate::support::kernel::{local_server, own_address};
use crate::support::trickle::Trickle;
use crate::support::{Client, Daemon, Scratch, clean, fails, program, run_to_end, wait_until};

const JSON: &str = "Accept: application/json\r\n";

/// The time of day is 20 years later for a program as soon as this file is there, as after a step of the clock.
const STEP: &str = r#"
#define _GNU_SOURCE
#include <stdlib.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>
int clock_gettime(clockid_t clock, struct timespec *time) {
    int failed = syscall(SYS_clock_gettime, clock, time);
    if (clock == CLOCK_REALTIME && access(getenv("STEP"), F_OK) == 0) time->tv_sec += 20L * 365 * 86400;
    return failed;
}
"#;

/// Nobody can set the clock of the machine that the tests run on: the system's function says what it would.
#[test]
fn a_step_of_the_clock_makes_no_time_wrong_that_has_passed() {
    needs!("gcc");
    let folder = Scratch::new();
    let file = |name: &str| folder.path().join(name);
    std::fs::write(file("step.c"), STEP).expect("written");
    let mut gcc = clean("gcc");
    gcc.current_dir(folder.path());
    gcc.args(["-shared", "-fPIC", "-o", "step.so", "step.c"]);
    assert!(gcc.status().expect("it runs").success());
    let mut command = program();
    command
        .args(["--listen", "127.0.0.1:0", "--http", "127.0.0.1:0"])
        .env("LD_PRELOAD", file("step.so"))
        .env("STEP", file("step"));
    let daemon = Daemon::run(command);
    let (year, shown) = (4, "<dt>Serving since</dt><dd>");
    let since =
        |page: &Reply| page.body.split_once(shown).expect("it is there").1[..60].to_string();
    let before = since(&get(daemon.http(), "/"));
    std::fs::write(file("step"), "").expect("written");
    let page = get(daemon.http(), "/");
    let after = since(&page);
    // Seconds or minutes, not days.
    assert!(after.contains(" s)"), "{before} {after}");
    assert_ne!(before[..year], after[..year], "the clock was set");
    // When it began is told by the clock as it is now.
    let date = page.field("date").expect("it has one");
    assert!(date.contains(&after[..year]), "{date} {after}");
}

#[test]
fn each_path_answers_a_sentence_json_or_a_page() {
    let daemon = daemon(&["--max-clients", "4", "--queue", "2"]);
    let http = daemon.http();
    let live = get(http, "/livez");
    assert_eq!(
        (live.status, live.body.as_str()),
        (200, "live: clients are being served\n")
    );
    assert_eq!(
        live.field("content-type"),
        Some("text/plain; charset=utf-8")
    );
    assert_eq!(get_with(http, "/livez", JSON).body, "{\"live\":true}\n");
    let _client = daemon.connect();
    daemon.wait_for_others(1);
    wait_until("the asking client has left", || {
        get(http, "/readyz").body.contains("; clients: 1,")
    });
    let ready = get(http, "/readyz");
    assert_eq!(
        (ready.status, ready.body.as_str()),
        (
            200,
            "ready; clients: 1, 0 of them waiting; room for 5 more\n"
        )
    );
    let ready = get_with(http, "/readyz", JSON);
    assert_eq!(ready.field("content-type"), Some("application/json"));
    assert_eq!(
        ready.body,
        "{\"ready\":true,\"clients\":1,\"limit\":4,\"waiting\":0,\"queue\":2}\n"
    );
    // By the weights of what is accepted, and on each path that has more than one form.
    for (path, other) in [
        ("/livez", "application/json"),
        ("/readyz", "application/json"),
        ("/metrics", "application/openmetrics-text"),
    ] {
        for (accept, kind) in [
            (format!("text/plain, {other};q=0.5"), "text/plain"),
            (format!("text/plain;q=0.5, {other}"), other),
            ("text/plain;q=0.1, application/*".to_string(), other),
            (format!("{other};q=0, */*"), "text/plain"),
            ("*/*".to_string(), "text/plain"),
        ] {
            let reply = get_with(http, path, &format!("Accept: {accept}\r\n"));
            let answered = reply.field("content-type").expect("it has one");
            assert!(answered.starts_with(kind), "{path} {accept}: {answered}");
        }
    }
    let page = get(http, "/");
    assert_eq!(page.field("content-type"), Some("text/html; charset=utf-8"));
    for shown in [
        daemon.ask("WHERE").trim(),
        "1, 0 of them waiting",
        "<svg ",
        "man blockchain-tcpd",
        env!("CARGO_PKG_VERSION"),
    ] {
        assert!(page.body.contains(shown), "no {shown} in {}", page.body);
    }
    assert!(!page.body.contains("<script"));
    assert_eq!(get(http, "/nothing").status, 404);
    assert_eq!(get(http, "/metrics?x=y").status, 200);
}

#[test]
fn head_is_get_without_a_body_and_other_methods_are_not_answered() {
    let http = daemon(&["--max-clients", "2"]);
    let address = http.http();
    for path in ["/", "/livez", "/readyz", "/metrics", "/nothing"] {
        let request = format!("HEAD {path} HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n");
        let reply = Reply::of(&send(address, request).unwrap()).expect("a reply");
        assert_eq!(reply.body, "", "{path}");
        let whole = get(address, path);
        assert_eq!(reply.status, whole.status);
        assert_eq!(
            whole.field("content-length"),
            Some(whole.body.len().to_string().as_str())
        );
        assert!(
            reply
                .field("content-length")
                .is_some_and(|length| length != "0")
        );
    }
    let post = send(
        address,
        "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 0\r\n\r\n",
    )
    .unwrap();
    let post = Reply::of(&post).expect("a reply");
    assert_eq!((post.status, post.field("allow")), (405, Some("get, head")));
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
    assert!(all.contains("ready; clients: 0,"), "{all}");
}

#[test]
fn who_looks_after_the_server_never_counts() {
    let daemon = daemon(&["--max-clients", "2"]);
    let mut client = daemon.connect();
    let _open: Vec<TcpStream> = (0..8).map(|_| connect(daemon.http()).unwrap()).collect();
    for path in ["/livez", "/readyz", "/metrics", "/"] {
        assert_eq!(get(daemon.http(), path).status, 200);
        assert_eq!(client.ask("WHO"), "1");
    }
}

/// They have their own thread and their own places.
#[test]
fn health_and_metrics_answer_while_a_thousand_trickle_and_all_is_full() {
    let daemon = daemon(&["--max-clients", "64", "--queue", "16"]);
    let _trickle = Trickle::start(daemon.address);
    wait_until("it is full", || get(daemon.http(), "/readyz").status == 503);
    let mut slowest = Duration::ZERO;
    for round in 0..50 {
        for path in ["/readyz", "/livez", "/metrics"] {
            let begun = Instant::now();
            let reply = get(daemon.http(), path);
            slowest = slowest.max(begun.elapsed());
            match path {
                "/readyz" => assert!(reply.body.contains("ready"), "{}", reply.body),
                _ => assert_eq!(reply.status, 200, "{path}, round {round}: {}", reply.body),
            }
        }
    }
    let not_ready = "not ready: full; clients: 80, 16 of them waiting; room for 0 more\n";
    wait_until("it is full again", || {
        get(daemon.http(), "/readyz").body == not_ready
    });
    eprintln!("150 answers of HTTP; the slowest after {slowest:?}");
}

/// Each a request that is none, in some way.
fn bad_requests() -> Vec<Vec<u8>> {
    let head = "GET /metrics HTTP/1.1\r\nHost: a\r\n";
    let mut bad: Vec<Vec<u8>> = [
        format!("GET /{} HTTP/1.1\r\n\r\n", "x".repeat(100_000)),
        format!("{head}{}\r\n", "a: b\r\n".repeat(10_000)),
        format!("{head}x: {}\r\n\r\n", "y".repeat(1_000_000)),
        format!("{head}Transfer-Encoding: chunked\r\nContent-Length: 5\r\n\r\n0\r\n\r\n"),
        format!("{head}Transfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n"),
        format!("{head}Content-Length: 99999999999999999999\r\n\r\n"),
        format!("{head}Content-Length: -1\r\n\r\n"),
        format!("{head}Content-Length: 4, 5\r\n\r\nWHO\n"),
        format!("{head}no colon\r\n\r\n"),
        format!("{head} folded: field\r\n\r\n"),
        format!("{head}nul: \0\r\n\r\n"),
        "GET / HTTP/1.1\r\n\r\n".to_string(),
        "GET / HTTP/9.9\r\nHost: a\r\n\r\n".to_string(),
        "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_string(),
        "WHO\nWHERE\nWHY\n".to_string(),
        "\r\n".repeat(50_000),
        "\0".repeat(5000),
    ]
    .into_iter()
    .map(String::into_bytes)
    .collect();
    // The beginning of a TLS connection, and every byte there is.
    bad.push(b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03".repeat(100));
    bad.push((0..=255).cycle().take(20_000).collect());
    bad
}

#[test]
fn a_thousand_bad_requests_harm_nothing() {
    let daemon = daemon(&["--max-clients", "4"]);
    let http = daemon.http();
    let mut client = daemon.connect();
    get(http, "/livez");
    let before = (daemon.status_number("Threads"), daemon.descriptors());
    let bad = bad_requests();
    let (mut refused, mut cut) = (0, 0);
    for (number, request) in bad.iter().cycle().take(1000).enumerate() {
        // It may be refused, and the connection closed, before all is sent.
        match send(http, request).ok().and_then(|bytes| Reply::of(&bytes)) {
            Some(reply) => {
                assert!((400..600).contains(&reply.status), "{number}: {reply:?}");
                assert_eq!(reply.field("connection"), Some("close"), "{number}");
                refused += 1;
            }
            None => cut += 1,
        }
        if number % 100 == 0 {
            assert_eq!(client.ask("WHY"), "42");
            assert_eq!(get(http, "/livez").status, 200);
        }
    }
    assert!(refused > 900, "{refused} were told, {cut} cut off");
    assert_eq!(client.ask("WHO"), "1");
    wait_until("all descriptors are back", || {
        daemon.descriptors() <= before.1
    });
    assert_eq!(daemon.status_number("Threads"), before.0);
    let log = daemon.stop();
    assert!(!log.contains("panic"), "{log}");
}

/// They cost a place each, and when all are taken the one that has had its time makes room.
#[test]
fn those_who_dribble_or_say_nothing_keep_nobody_out() {
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
    // Who has begun a request is told that it took too long.
    let mut late = connect(http).unwrap();
    late.write_all(b"GET /livez HTTP/1.1\r\n").unwrap();
    let mut all = String::new();
    late.read_to_string(&mut all).unwrap();
    assert!(all.starts_with("HTTP/1.1 408 "), "{all}");
}

/// Those who have been answered and ask nothing make room, not those who ask.
#[test]
fn idle_connections_keep_nobody_out() {
    let daemon = daemon(&["--max-clients", "2"]);
    let http = daemon.http();
    let ask = b"GET /readyz HTTP/1.1\r\nHost: a\r\n\r\n";
    let mut idle = Vec::new();
    for _ in 0..32 {
        let mut stream = connect(http).unwrap();
        stream.write_all(ask).unwrap();
        assert!(stream.read(&mut [0; 1000]).unwrap() > 0);
        idle.push(stream);
    }
    let mut halves: Vec<TcpStream> = (0..20).map(|_| connect(http).unwrap()).collect();
    for half in &mut halves {
        half.write_all(&ask[..20]).unwrap();
    }
    for half in &mut halves {
        half.write_all(&ask[20..]).unwrap();
        assert!(
            half.read(&mut [0; 1000]).expect("no reset") > 0,
            "an answer"
        );
    }
}

#[test]
fn a_blank_line_between_two_requests_is_none() {
    let daemon = daemon(&["--max-clients", "2"]);
    let mut stream = connect(daemon.http()).unwrap();
    stream
        .write_all(b"GET /readyz HTTP/1.1\r\nHost: a\r\n\r\n\r\n")
        .unwrap();
    assert!(stream.read(&mut [0; 1000]).unwrap() > 0);
    // After the time that a request may take it is still there.
    stream
        .set_read_timeout(Some(Duration::from_secs(6)))
        .unwrap();
    let waited = stream.read(&mut [0; 1000]).unwrap_err();
    assert_eq!(waited.kind(), std::io::ErrorKind::WouldBlock);
    stream
        .write_all(b"\r\nHEAD /readyz HTTP/1.1\r\n\r\n")
        .unwrap();
    let mut all = String::new();
    stream.read_to_string(&mut all).unwrap();
    assert!(
        all.starts_with("HTTP/1.1 400 ") && all.ends_with("\r\n\r\n"),
        "{all}"
    );
}

/// Each with a new connection, some of which are made before the handover and ask only then.
#[test]
fn no_check_fails_while_a_new_program_takes_over() {
    let daemon = daemon(&["--max-clients", "4"]);
    let http = daemon.http();
    let is_over = Arc::new(AtomicBool::new(false));
    let checkers: Vec<_> = [("/livez", 0), ("/readyz", 20), ("/metrics", 3)]
        .map(|(path, pause)| {
            let told = is_over.clone();
            std::thread::spawn(move || {
                let mut answered = 0;
                while !told.load(Ordering::Relaxed) {
                    let mut stream = connect(http).expect("it listens");
                    std::thread::park_timeout(Duration::from_millis(pause));
                    let request =
                        format!("GET {path} HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n");
                    stream.write_all(request.as_bytes()).expect("it takes it");
                    let mut all = Vec::new();
                    stream.read_to_end(&mut all).expect("no reset");
                    let status = Reply::of(&all).map(|reply| reply.status);
                    assert_eq!(status, Some(200), "{path}, after {answered}");
                    answered += 1;
                }
                answered
            })
        })
        .into();
    for handovers in 1..=10 {
        daemon.signal("USR2");
        let count = format!("blockchain_tcpd_handovers_total {handovers}\n");
        wait_until("it has been handed over", || {
            get(http, "/metrics").body.contains(&count)
        });
    }
    is_over.store(true, Ordering::Relaxed);
    for checker in checkers {
        assert!(checker.join().expect("no check failed") > 10);
    }
}

/// There is room in the queue for everybody who is let in, and for those who ask whether anybody is there.
#[test]
fn checks_take_nobodys_place() {
    let daemon = daemon(&["--max-clients", "1", "--queue", "0"]);
    let http = daemon.http();
    let is_over = Arc::new(AtomicBool::new(false));
    let told = is_over.clone();
    let checker = std::thread::spawn(move || {
        let mut stream = connect(http).expect("it listens");
        while !told.load(Ordering::Relaxed) {
            stream
                .write_all(b"GET /livez HTTP/1.1\r\nHost: a\r\n\r\n")
                .expect("it takes it");
            assert!(stream.read(&mut [0; 1000]).expect("no reset") > 0);
        }
    });
    for _ in 0..2000 {
        let mut client = daemon.connect();
        client.send("WHO\n");
        let reply = client.whatever_line();
        assert!(
            reply == "1\n" || reply.starts_with("ERR BUSY "),
            "{reply:?}"
        );
        let waiting = get(http, "/metrics").body;
        assert!(
            waiting.contains("blockchain_tcpd_queue_clients 0\n"),
            "{waiting}"
        );
    }
    is_over.store(true, Ordering::Relaxed);
    checker.join().expect("each check was answered");
    assert!(!daemon.stop().contains("no room in the queue"));
}

/// It takes no reply, and asks for as many as it can.
#[test]
fn a_client_that_takes_no_replies_keeps_nobody_waiting() {
    let daemon = daemon(&["--max-clients", "2"]);
    let mut greedy = connect(daemon.http()).unwrap();
    greedy
        .set_write_timeout(Some(Duration::from_millis(100)))
        .unwrap();
    let request = "GET /metrics HTTP/1.1\r\nHost: a\r\n\r\n".repeat(10_000);
    // The kernel takes some megabytes on both sides.
    let taken = (0..1000).take_while(|_| greedy.write_all(request.as_bytes()).is_ok());
    assert!(taken.count() < 1000, "it took all");
    assert!(daemon.status_number("VmRSS") < 20_000, "KiB");
    assert_eq!(get(daemon.http(), "/livez").status, 200);
    drop(greedy);
    assert_eq!(get(daemon.http(), "/livez").status, 200);
}

#[test]
fn it_says_that_it_drains_before_it_lets_nobody_in() {
    let mut daemon = daemon(&["--max-clients", "4", "--drain-notice", "1h"]);
    let http = daemon.http();
    let mut client = daemon.connect();
    assert_eq!(get(http, "/readyz").status, 200);
    daemon.signal("TERM");
    wait_until("it says so", || get(http, "/readyz").status == 503);
    let reply = get_with(http, "/readyz", JSON);
    assert!(
        reply
            .body
            .starts_with("{\"ready\":false,\"reason\":\"draining\","),
        "{}",
        reply.body
    );
    assert_eq!(get(http, "/livez").status, 200);
    // Clients that come all the same are served.
    assert_eq!(daemon.ask("WHY"), "42\n");
    assert_eq!(client.ask("WHY"), "42");
    daemon
        .log()
        .wait_for("draining: /readyz says so seconds=3600 clients=1");
    // A second signal is not kept waiting.
    wait_until("it has ended", || {
        daemon.signal_if_there("TERM");
        daemon.ended().is_some()
    });
}

#[test]
fn a_notice_ends_by_itself_and_then_nobody_is_let_in() {
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
    let mut client = daemon.connect();
    let mut kept = connect(http).unwrap();
    assert_eq!(client.ask("WHY"), "42");
    for handovers in 1..=3 {
        daemon.signal("USR2");
        let count = format!("blockchain_tcpd_handovers_total {handovers}\n");
        // Meanwhile whoever comes waits, and nobody is refused.
        wait_until("it has been handed over", || {
            get(http, "/metrics").body.contains(&count)
        });
        assert_eq!(client.ask("WHO"), "1");
    }
    let metrics = get(http, "/metrics").body;
    assert!(
        metrics.contains("blockchain_tcpd_connections_accepted_total 1\n"),
        "{metrics}"
    );
    // A connection that waits for its next request is closed in order.
    assert_eq!(kept.read(&mut [0; 8]).expect("no reset"), 0);
    daemon.stop();
}

#[test]
fn systemd_may_pass_its_socket() {
    needs!("systemd-socket-activate");
    let (line, http) = (own_address(), own_address());
    let (line_text, http_text) = (line.to_string(), http.to_string());
    let activated = |more: &[&str]| {
        let mut command = clean("systemd-socket-activate");
        command.env_remove("BLOCKCHAIN_TCPD_HTTP");
        command.args([
            "--listen",
            &line_text,
            "--listen",
            &http_text,
            "--fdname=line:http",
        ]);
        command
            .arg(program().get_program())
            .args(["--max-clients", "4"])
            .args(more);
        command
    };
    let scrape = std::thread::spawn(move || {
        wait_until("it listens", || TcpStream::connect(http).is_ok());
        get(http, "/readyz")
    });
    let daemon = Daemon::run(activated(&[]));
    assert_eq!(scrape.join().unwrap().status, 200);
    assert_eq!((daemon.address, daemon.http()), (line, http));
    assert_eq!(daemon.ask("WHY"), "42\n");
    daemon.signal("USR2");
    wait_until("it has been handed over", || {
        get(http, "/metrics").body.contains("handovers_total 1\n")
    });
    daemon.stop();
    // Another address besides makes no sense.
    let visit =
        std::thread::spawn(move || wait_until("it listens", || TcpStream::connect(line).is_ok()));
    let (status, said) = run_to_end(activated(&["--http", "127.0.0.1:0"]));
    visit.join().unwrap();
    assert_eq!(status, 78, "{said}");
    assert!(
        said.contains("--http (BLOCKCHAIN_TCPD_HTTP) names others"),
        "{said}"
    );
}

#[test]
fn it_can_be_switched_off_and_is_no_reason_not_to_start_unless_it_is_asked_for() {
    let off = Daemon::start(["--http", "", "--max-clients", "2"]);
    assert!(off.log().wait_for("ready listen=").contains(" http=off "));
    // Of the default address it is not known whether somebody has it. If so, or if we have it, it is taken now.
    let _taken = TcpListener::bind("127.0.0.1:4280");
    let mut command = program();
    command.env_remove("BLOCKCHAIN_TCPD_HTTP").args([
        "--listen",
        "127.0.0.1:0",
        "--max-clients",
        "2",
    ]);
    let without = Daemon::run(command);
    assert_eq!(without.ask("WHY"), "42\n");
    let log = without.stop();
    assert!(
        log.contains("no health checks and no metrics (--http): can't listen on 127.0.0.1:4280"),
        "{log}"
    );
    let (status, said) = fails(["--listen", "127.0.0.1:0", "--http", "127.0.0.1:4280"]);
    assert_eq!(status, 71, "{said}");
}

static GO_ON: AtomicBool = AtomicBool::new(false);
static IS_HELD: AtomicBool = AtomicBool::new(false);

/// HOLD keeps its worker from anything else.
const HOLD: CommandSet = &[CommandSpec {
    name: "HOLD",
    parameters: &[],
    result: ValueType::Text,
    summary: "waits to be told to go on",
    class: CommandClass::Query,
    execute: |_, _| {
        IS_HELD.store(true, Ordering::Relaxed);
        wait_until("it may go on", || GO_ON.load(Ordering::Relaxed));
        Ok(Value::from("WENT ON"))
    },
}];

/// A check that takes its time keeps nobody else waiting, and says who has not moved.
#[test]
fn a_server_that_hangs_is_not_live_and_says_why() {
    const COMMANDS: &[CommandSet] = &[server::SET, HOLD];
    let server = local_server(&["--max-clients", "1"], COMMANDS);
    let listener = Arc::new(
        listener::bind_beside("127.0.0.1:0".parse().unwrap(), listener::HTTP, &[]).unwrap(),
    );
    let subject = Context {
        health: Arc::new(server.health()),
        metrics: server.metrics.clone(),
        commands: COMMANDS.to_vec(),
        member: server.member(),
        cluster: server.cluster_stats(),
        draining: Draining::default(),
    };
    let http = AdminServer::start(vec![listener], subject, 8).unwrap();
    let address = http.addresses()[0];
    assert_eq!(get(address, "/livez").status, 200);
    let mut client = Client::connect(server.addresses()[0]).unwrap();
    client.send("HOLD\n");
    wait_until("it hangs", || IS_HELD.load(Ordering::Relaxed));
    let checks: Vec<_> = (0..4)
        .map(|_| std::thread::spawn(move || get_with(address, "/livez", JSON)))
        .collect();
    assert_eq!(get(address, "/readyz").status, 200);
    for check in checks {
        let reply = check.join().unwrap();
        assert_eq!(reply.status, 503);
        assert_eq!(
            reply.body,
            "{\"live\":false,\"reason\":\"a worker does not answer\"}\n"
        );
    }
    assert_eq!(
        get(address, "/livez").body,
        "not live: a worker does not answer\n"
    );
    GO_ON.store(true, Ordering::Relaxed);
    assert_eq!(client.line().as_deref(), Some("WENT ON"));
    assert_eq!(get(address, "/livez").status, 200);
    let sockets = http.end();
    drop(sockets);
    assert!(try_get(address, "/livez", "").is_err());
}

/// It is read in a terminal, too.
#[test]
fn the_page_reads_well_in_a_text_browser() {
    needs!("w3m");
    let daemon = daemon(&["--max-clients", "4"]);
    let output = Command::new("w3m")
        .args(["-dump", &format!("http://{}/", daemon.http())])
        .output();
    let shown = String::from_utf8(output.expect("w3m runs").stdout).expect("UTF-8");
    for line in [
        "ready",
        "Clients",
        "0, 0 of them waiting; 4 can be served, 128 more may wait",
        "Handed over",
    ] {
        assert!(
            shown.lines().any(|shown| shown.trim() == line),
            "no {line:?} in\n{shown}"
        );
    }
    let id = daemon.ask("WHERE");
    assert!(shown.contains(id.trim()), "{shown}");
}

/// A browser takes it for what it is meant to be: two drawings, and nothing that is missing or refused.
#[test]
fn the_page_is_whole_in_a_browser() {
    needs!("chromium");
    let daemon = daemon(&["--max-clients", "4"]);
    let scratch = Scratch::new();
    let mut browser = clean("chromium");
    browser
        .args([
            "--headless",
            "--no-sandbox",
            "--disable-gpu",
            "--disable-dev-shm-usage",
        ])
        .args([
            "--enable-logging=stderr",
            "--log-level=0",
            "--virtual-time-budget=2000",
        ])
        .arg(format!("--user-data-dir={}", scratch.path().display()))
        .args(["--dump-dom", &format!("http://{}/", daemon.http())]);
    let output = browser.output().expect("chromium runs");
    let (shown, said) = (
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr),
    );
    assert!(
        shown.contains("</h1>") && shown.contains("</html>"),
        "{shown}{said}"
    );
    assert_eq!(shown.matches("<polyline points=").count(), 2, "{shown}");
    assert!(
        shown.contains("<title>0 clients - blockchain-tcpd</title>"),
        "{shown}"
    );
    assert!(!said.contains("CONSOLE"), "{said}");
}

/// The commands that the documents show, for this daemon's address.
#[test]
fn the_documented_commands_print_what_they_show() {
    needs!("curl");
    let daemon = daemon(&[]);
    let run = |command: &str| {
        let command = command.replace("127.0.0.1:4280", &daemon.http().to_string());
        let output = Command::new("bash")
            .args(["-o", "pipefail", "-c", &command])
            .output();
        let output = output.expect("bash runs");
        assert!(output.status.success(), "{command}: {output:?}");
        String::from_utf8(output.stdout).expect("UTF-8")
    };
    let mut shown = examples(include_str!("../README.md"));
    shown.retain(|example| example.command.starts_with("curl "));
    assert_eq!(shown.len(), 3);
    for Example { command, printed } in shown {
        assert_eq!(run(&command), printed, "{command}");
    }
    let documents = [
        include_str!("../docs/metrics.md"),
        include_str!("../man/blockchain-tcpd.8"),
    ];
    for document in documents {
        let lines = document.lines().map(str::trim);
        let lines: Vec<&str> = lines.filter(|line| line.starts_with("curl ")).collect();
        assert!(!lines.is_empty());
        for line in lines {
            assert!(!run(line).is_empty(), "{line}");
        }
    }
}
