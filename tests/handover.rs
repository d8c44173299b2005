//! Handovers: live connections go to the next program; no client is cut off, nothing is lost, nothing comes twice.
//!
//! What may go wrong with the program is in `programs`, with the handover state in `state`, what signals may come meanwhile
//! in `signals`, and clients that compute in `computing`.

mod computing;
mod programs;
mod signals;
mod state;

use std::time::{Duration, Instant};

use crate::protocol::proves;
use crate::support::kernel::{asked_for, shell};
use crate::support::watch::{repeat, watch};
use crate::support::{Client, Daemon, Scratch, field, unknown, wait_until};

/// How many lines of the log contain this.
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
    let clients = asked_for("BLOCKCHAIN_TCPD_TEST_CLIENTS", 64);
    let rounds = asked_for("BLOCKCHAIN_TCPD_TEST_ROUNDS", 10);
    let daemon = Daemon::start(["--max-clients", &(clients + 8).to_string()]);
    let asking = (0..clients).map(|number| {
        let mut client = daemon.connect();
        assert_eq!(client.ask("WHY"), "42");
        repeat((client, 0), move |(client, asked)| {
            let word = format!("t{number}-{asked}");
            assert_eq!(client.ask(&word), unknown(&word));
            *asked += 1;
        })
    });
    let asking: Vec<_> = asking.collect();
    let counting = watch(daemon.connect());
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
    let (counts, _client) = counting.end();
    let all = (clients + 1).to_string();
    assert!(counts.iter().all(|count| *count == all) && !counts.is_empty());
    for (mut client, asked) in asking.into_iter().map(|client| client.end()) {
        assert!(asked > 0);
        client.shutdown();
        assert_eq!(client.rest(), "", "nothing comes twice");
    }
    let log = daemon.stop();
    assert!(!log.contains("ERROR"), "{log}");
}

#[test]
fn requests_and_replies_that_are_not_whole_are_handed_over() {
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
    assert!(replies.lines().all(|line| line == unknown("a")), "cut");
    assert_eq!(replies.lines().count(), asked);
    daemon.wait_for_others(0);
    daemon.stop();
}

#[test]
fn the_id_is_handed_over_if_no_directory_keeps_it() {
    let daemon = Daemon::start([""; 0]);
    let id = daemon.ask("WHERE\n");
    replace(&daemon);
    assert_eq!(daemon.ask("WHERE\n"), id);
    daemon.stop();
}

/// The next program needs descriptors for other things, too, and doesn't take those of clients for them.
#[test]
fn clients_that_take_all_descriptors_are_handed_over() {
    let daemon = Daemon::start_through(&shell("ulimit -n 64 || exit"), ["--queue", "4"]);
    let most = field(&daemon.log().wait_for("ready listen="), "max_clients");
    let mut clients: Vec<Client> = (0..most.parse().unwrap())
        .map(|_| daemon.connect())
        .collect();
    for client in &mut clients {
        assert_eq!(client.ask("WHY"), "42");
    }
    replace(&daemon);
    for client in &mut clients {
        assert_eq!(client.ask("WHO"), most);
    }
    daemon.stop();
}

#[test]
fn a_client_that_waits_for_a_worker_is_handed_over() {
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
    let elapsed = begun.elapsed().as_millis();
    assert!((2900..4900).contains(&elapsed), "{elapsed} ms");
    daemon.stop();
}

/// New clients are not refused meanwhile, and those that are half closed or just leaving get all their replies.
#[test]
fn clients_that_come_or_leave_meanwhile_notice_nothing() {
    let daemon = Daemon::start(["--max-clients", "64"]);
    let address = daemon.address;
    let come_and_leave = move |served: &mut usize| {
        let mut client = Client::connect(address).expect("no client is refused");
        let (end, bye) = [("QUIT\n", "BYE\n"), ("", "")][*served % 2];
        client.send(format!("PING\nWHY\n{end}"));
        client.shutdown();
        assert_eq!(client.rest(), format!("PONG\n42\n{bye}"));
        *served += 1;
    };
    let coming = [(); 4].map(|()| repeat(0, come_and_leave));
    for _ in 0..10 {
        replace(&daemon);
    }
    for clients in coming {
        assert!(clients.end() > 0);
    }
    daemon.wait_for_others(0);
    daemon.stop();
}
