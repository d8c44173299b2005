//! Live connections go to the next program: nobody is cut off, nothing is lost, nothing comes twice.
//!
//! What may go wrong with the program is in `programs`, with the handover state in `states`, what signals may come meanwhile in `signals`,
//! and clients that compute in `computing`.

mod computing;
mod programs;
mod signals;
mod states;

use std::net::Shutdown;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use crate::protocol::proves;
use crate::support::kernel::{asked_for, shell};
use crate::support::{Client, Daemon, Scratch, field, wait_until};

pub fn times(daemon: &Daemon, text: &str) -> usize {
    let lines = daemon.log().lines();
    lines.iter().filter(|line| line.contains(text)).count()
}

/// Lets a new program take over, and waits until it has.
pub fn replace(daemon: &Daemon) {
    let before = times(daemon, "ready listen=");
    daemon.signal("USR2");
    wait_until("a new program is ready", || {
        times(daemon, "ready listen=") > before
    });
}

#[test]
fn clients_that_ask_without_pause_notice_nothing() {
    proves(
        r#"When another process of the server takes over, it goes on with all clients, who notice nothing: no reply is lost, cut or doubled."#,
    );
    let (clients, rounds) = (
        asked_for("BLOCKCHAIN_TCPD_TEST_CLIENTS", 64),
        asked_for("BLOCKCHAIN_TCPD_TEST_ROUNDS", 10),
    );
    let daemon = Daemon::start(["--max-clients", &(clients + 8).to_string()]);
    let address = daemon.address;
    let over = Arc::new(AtomicBool::new(false));
    let connected = Arc::new(AtomicUsize::new(0));
    let asking: Vec<_> = (0..clients)
        .map(|number| {
            let (over, connected) = (over.clone(), connected.clone());
            let ask = move || {
                let mut client = Client::connect(address).unwrap();
                let (mut asked, mut slowest) = (0, Duration::ZERO);
                while !over.load(Ordering::Relaxed) {
                    let token = format!("t{number}-{asked}");
                    let begun = Instant::now();
                    let expected = format!("ERR UNKNOWN no such command: \"{token}\" (try HELP)");
                    assert_eq!(client.ask(&token), expected);
                    slowest = slowest.max(begun.elapsed());
                    asked += 1;
                    if asked == 1 {
                        connected.fetch_add(1, Ordering::SeqCst);
                    }
                }
                client.shutdown();
                assert_eq!(client.rest(), "", "nothing comes twice");
                (asked, slowest)
            };
            thread::Builder::new()
                .stack_size(128 * 1024)
                .spawn(ask)
                .unwrap()
        })
        .collect();
    wait_until("all ask", || connected.load(Ordering::SeqCst) == clients);

    let watched = Arc::new(AtomicBool::new(false));
    let enough = watched.clone();
    let watch = thread::spawn(move || {
        let mut client = Client::connect(address).unwrap();
        let right = (clients + 1).to_string();
        let mut samples = 0;
        while !enough.load(Ordering::Relaxed) {
            assert_eq!(client.ask("WHO"), right);
            samples += 1;
            thread::park_timeout(Duration::from_millis(1));
        }
        samples
    });
    let pid = daemon.pid();
    replace(&daemon);
    let (threads, descriptors) = (daemon.status_number("Threads"), daemon.descriptors());
    let memory = daemon.status_number("VmRSS");
    for _ in 1..rounds {
        replace(&daemon);
    }
    wait_until("as many threads and descriptors", || {
        daemon.status_number("Threads") == threads && daemon.descriptors() == descriptors
    });
    let more = daemon.status_number("VmRSS").saturating_sub(memory);
    assert!(more < 2048, "{more} KiB");
    assert_eq!(daemon.pid(), pid);
    watched.store(true, Ordering::Relaxed);
    assert!(watch.join().unwrap() > 0);
    over.store(true, Ordering::Relaxed);
    let mut waits: Vec<Duration> = Vec::new();
    for client in asking {
        let (asked, slowest) = client.join().unwrap();
        assert!(asked > 0);
        waits.push(slowest);
    }
    waits.sort();
    eprintln!(
        "{clients} clients, {rounds} times: the slowest answer of a client took {:?} (median), {:?} (worst)",
        waits[clients / 2],
        waits[clients - 1]
    );
    let log = daemon.stop();
    assert!(!log.contains("ERROR"), "{log}");
}

#[test]
fn everything_about_a_client_goes_along() {
    let scratch = Scratch::new();
    let directory = scratch.path().to_str().unwrap();
    let daemon = Daemon::start(["--state-directory", directory, "--write-timeout", "1h"]);
    let id = daemon.ask("WHERE\n");
    let mut half = daemon.connect();
    half.send("WHY\nWHE");
    assert_eq!(half.line().as_deref(), Some("42"));
    // It takes nothing, so that its replies wait in the server.
    let mut stuck = Client::connect_narrow(daemon.address);
    let asked = stuck.flood(&daemon, 1);

    replace(&daemon);
    half.send("RE\n");
    assert_eq!(half.line().map(|line| line + "\n"), Some(id));
    replace(&daemon);
    drop(half);
    assert_eq!(times(&daemon, " sockets=bound "), 3, "and not systemd's");
    // Not a byte of its replies is missing, and none comes twice.
    stuck.shutdown();
    let replies = stuck.rest();
    let expected = "ERR UNKNOWN no such command: \"a\" (try HELP)";
    assert!(replies.lines().all(|line| line == expected), "cut");
    assert_eq!(replies.lines().count(), asked);
    daemon.wait_for_others(0);
    daemon.stop();
}

#[test]
fn the_id_goes_along_if_no_directory_keeps_it() {
    let daemon = Daemon::start([""; 0]);
    let id = daemon.ask("WHERE\n");
    replace(&daemon);
    assert_eq!(daemon.ask("WHERE\n"), id);
    daemon.stop();
}

/// The next program doesn't take those who are here already for something else that needs descriptors.
#[test]
fn clients_that_take_all_descriptors_go_along() {
    let wrapper = shell("ulimit -n 64 || exit");
    let wrapper: Vec<&str> = wrapper.iter().map(String::as_str).collect();
    let daemon = Daemon::start_through(&wrapper, ["--queue", "4"]);
    let most = field(&daemon.log().wait_for("ready listen="), "max_clients");
    let most: usize = most.parse().unwrap();
    let mut clients: Vec<Client> = (0..most).map(|_| daemon.connect()).collect();
    for client in &mut clients {
        assert_eq!(client.ask("WHY"), "42");
    }
    replace(&daemon);
    for client in &mut clients {
        assert_eq!(client.ask("WHO"), most.to_string());
    }
    daemon.stop();
}

/// Nobody was at the service of this one yet.
#[test]
fn who_waits_for_a_worker_goes_along() {
    let daemon = Daemon::start(["--max-clients", "1", "--queue", "2"]);
    let mut served = daemon.connect();
    assert_eq!(served.ask("WHY"), "42");
    let mut waiting = daemon.connect();
    waiting.send("WHY\nPING\n");
    replace(&daemon);
    // One of the two makes room for the other, again and again, unless it asks.
    assert_eq!(waiting.line().as_deref(), Some("42"));
    assert_eq!(waiting.line().as_deref(), Some("PONG"));
    drop(waiting);
    assert_eq!(daemon.ask("WHY\n"), "42\n");
    daemon.stop();
}

#[test]
fn idle_time_goes_on_counting() {
    let daemon = Daemon::start(["--idle-timeout", "3s"]);
    let mut idle = daemon.connect();
    assert_eq!(idle.ask("WHY"), "42");
    let begun = Instant::now();
    while begun.elapsed() < Duration::from_secs(2) {
        replace(&daemon);
    }
    assert_eq!(idle.rest(), "ERR TIMEOUT no request for too long\n");
    let elapsed = begun.elapsed();
    assert!(elapsed > Duration::from_millis(2900), "{elapsed:?}");
    assert!(
        elapsed < Duration::from_millis(4900),
        "it began anew: {elapsed:?}"
    );
    daemon.stop();
}

/// New clients are not refused meanwhile, and those that are half closed or just leaving get all that they are due.
#[test]
fn who_comes_or_leaves_meanwhile_notices_nothing_either() {
    let daemon = Daemon::start(["--max-clients", "64"]);
    let address = daemon.address;
    let over = Arc::new(AtomicBool::new(false));
    let coming: Vec<_> = (0..4)
        .map(|_| {
            let over = over.clone();
            thread::spawn(move || {
                let mut served = 0;
                while !over.load(Ordering::Relaxed) {
                    let mut client = Client::connect(address).expect("nobody is refused");
                    let end = if served % 2 == 0 { "QUIT\n" } else { "" };
                    client.send(format!("PING\nWHY\n{end}"));
                    client.socket().shutdown(Shutdown::Write).unwrap();
                    let bye = if served % 2 == 0 { "BYE\n" } else { "" };
                    assert_eq!(client.rest(), format!("PONG\n42\n{bye}"));
                    served += 1;
                }
                served
            })
        })
        .collect();
    for _ in 0..10 {
        replace(&daemon);
    }
    over.store(true, Ordering::Relaxed);
    for client in coming {
        assert!(client.join().unwrap() > 0);
    }
    daemon.wait_for_others(0);
    daemon.stop();
}
