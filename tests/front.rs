//! The front: who is served without a worker, and who leaves for one. In-process, to see where each client is.

use std::net::SocketAddr;
use std::thread;
use std::time::Duration;

use blockchain_tcpd::server::Server;
use shared::command::sets::{calc, server};

use crate::support::kernel::local_server;
use crate::support::watch::watch;
use crate::support::{Client, wait_until};

/// A server whose workers all run, and its address.
fn started(arguments: &[&str]) -> (Server, SocketAddr) {
    let server = local_server(arguments, &[server::SET, calc::SET]);
    let address = server.addresses()[0];
    (server, address)
}

/// Waits until so many clients are in the front, and none waits for a worker.
fn wait_for_front(server: &Server, clients: usize) {
    let health = server.health();
    wait_until(&format!("{clients} clients are in the front"), || {
        let load = health.load();
        (load.front, load.waiting) == (clients, 0)
    });
}

fn connect(address: SocketAddr) -> Client {
    Client::connect(address).expect("it accepts")
}

#[test]
fn a_client_that_asks_on_is_in_the_front_and_one_that_falls_silent_has_a_worker() {
    let (server, address) = started(&["--max-clients", "4"]);
    let busy = watch(connect(address));
    wait_for_front(&server, 1);
    let mut silent = connect(address);
    assert_eq!(silent.ask("WHO"), "2");
    // The silent one goes, whenever it came, and the busy one stays.
    wait_for_front(&server, 1);
    assert_eq!(silent.ask("WHY"), "42");
    let (answers, mut last) = busy.end();
    assert!(answers.iter().all(|answer| answer == "1" || answer == "2"));
    wait_for_front(&server, 0);
    assert_eq!(last.ask("PING"), "PONG");
}

/// What follows the request that computes is answered after it, by the worker.
#[test]
fn a_request_that_computes_takes_its_client_to_a_worker_with_all_that_follows() {
    let (server, address) = started(&["--max-clients", "4"]);
    let other = watch(connect(address));
    let mut client = connect(address);
    client.send("WHY\nNP 2 5\nPING\nNP 2 ");
    for reply in ["42", "3 11", "PONG"] {
        assert_eq!(client.line().as_deref(), Some(reply));
    }
    wait_for_front(&server, 1);
    client.send("7\nWHY\n");
    for reply in ["3 17", "42"] {
        assert_eq!(client.line().as_deref(), Some(reply));
    }
    let (answers, _) = other.end();
    assert!(answers.iter().all(|answer| answer == "1" || answer == "2"));
}

/// It sends more often than a client must ask to stay.
#[test]
fn whoever_sends_bytes_and_no_request_leaves_the_front() {
    let (server, address) = started(&["--max-clients", "4"]);
    let mut client = connect(address);
    client.send("P");
    wait_for_front(&server, 1);
    let health = server.health();
    let mut sent = 1;
    wait_until("it has a worker", || {
        client.send(" ");
        sent += 1;
        thread::park_timeout(Duration::from_millis(1));
        health.load().front == 0
    });
    assert!(sent < 500, "it could have sent a whole line");
    client.send("\n");
    assert!(
        client
            .line()
            .is_some_and(|reply| reply.starts_with("ERR UNKNOWN"))
    );
}

#[test]
fn whoever_takes_no_replies_leaves_the_front_and_keeps_nobody_waiting() {
    let (server, address) = started(&["--max-clients", "4", "--write-timeout", "1h"]);
    let greedy = Client::connect_narrow(address);
    let (soon, requests) = (Duration::from_millis(100), "HELP\n".repeat(1000));
    greedy
        .socket()
        .set_write_timeout(Some(soon))
        .expect("a socket");
    let mut sends =
        (0..10_000).map(|_| std::io::Write::write_all(&mut greedy.socket(), requests.as_bytes()));
    assert!(sends.any(|sent| sent.is_err()), "it took all");
    wait_for_front(&server, 0);
    assert_eq!(connect(address).ask("WHO"), "2");
}

/// As many clients as there are workers keep their places; the next one waits, and none is left out.
#[test]
fn a_surplus_client_waits_although_the_others_are_in_the_front() {
    let (server, address) = started(&["--max-clients", "2", "--queue", "1"]);
    let busy = [watch(connect(address)), watch(connect(address))];
    wait_for_front(&server, 2);
    let mut waiting = connect(address);
    waiting.send("WHO\n");
    let health = server.health();
    wait_until("it waits", || {
        (health.load().front, health.load().waiting) == (0, 1)
    });
    let [first, second] = busy;
    drop(first.end());
    assert_eq!(waiting.line().as_deref(), Some("2"));
    drop(second.end());
}
