//! The front: who is served without a worker, and who leaves for one. In-process, to see where each client is.

use std::io::{Read as _, Write as _};
use std::net::{Shutdown, SocketAddr};
use std::thread;
use std::time::{Duration, Instant};

use blockchain_tcpd::server::Server;
use rustix::thread::{CpuSet, sched_getcpu, sched_setaffinity};
use shared::command::sets::{calc, server};

use crate::support::kernel::local_server;
use crate::support::watch::repeat;
use crate::support::{Client, are_answered, wait_until};

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

/// Connects a client that falls silent.
fn with_a_worker(server: &Server, address: SocketAddr) -> Client {
    let mut client = connect(address);
    are_answered(std::slice::from_mut(&mut client));
    wait_for_front(server, 0);
    client
}

/// Connects clients that are in the front: again if this machine was too slow to find them there.
fn in_front<const N: usize>(server: &Server, address: SocketAddr) -> [Client; N] {
    let health = server.health();
    let before = health.clients();
    for _ in 0..100 {
        let mut clients = [(); N].map(|()| connect(address));
        are_answered(&mut clients);
        // A reply may come before the front has updated its number of clients.
        let asked = Instant::now();
        while asked.elapsed() < Duration::from_millis(40) {
            if health.load().front == N {
                return clients;
            }
            thread::park_timeout(Duration::from_millis(1));
        }
        drop(clients);
        wait_until("the last ones have left", || health.clients() == before);
    }
    panic!("this machine is too slow");
}

#[test]
fn a_client_that_falls_silent_goes_to_a_worker_and_one_that_asks_on_stays() {
    let (server, address) = started(&["--max-clients", "4"]);
    let mut silent = with_a_worker(&server, address);
    assert_eq!(silent.ask("WHO"), "1");
    // One that is interrupted for long enough to leave begins anew.
    let busy = repeat((), move |()| {
        let mut client = [connect(address)];
        (0..50).for_each(|_| are_answered(&mut client));
    });
    wait_for_front(&server, 1);
    busy.end();
    wait_for_front(&server, 0);
    assert_eq!(silent.ask("WHY"), "42");
    assert_eq!(server.health().load().front, 0, "it stays with its worker");
}

/// A client is gone before it comes again, although many come in a short time.
#[test]
fn who_counts_no_client_that_has_left() {
    let (_server, address) = started(&["--max-clients", "4"]);
    let answers = (0..500).map(|_| connect(address).ask("WHO"));
    let others: u32 = answers
        .map(|answer| answer.parse::<u32>().expect("a number") - 1)
        .sum();
    // A client that this machine has kept waiting may have a worker, which sees its end later.
    assert!(others < 10, "{others}");
}

/// What follows the request that computes is answered after it, by the worker.
#[test]
fn a_request_that_computes_takes_its_client_to_a_worker_with_all_that_follows() {
    let (_server, address) = started(&["--max-clients", "4"]);
    let mut client = connect(address);
    client.send("WHY\nNP 2 5\nPING\nNP 2 ");
    for reply in ["42", "3 11", "PONG"] {
        assert_eq!(client.line().as_deref(), Some(reply));
    }
    client.send("7\nWHY\n");
    for reply in ["3 17", "42"] {
        assert_eq!(client.line().as_deref(), Some(reply));
    }
}

/// It sends more often than a client must ask to stay.
#[test]
fn whoever_sends_bytes_and_no_request_leaves_the_front() {
    let (server, address) = started(&["--max-clients", "4"]);
    let _other = with_a_worker(&server, address);
    let [mut client] = in_front(&server, address);
    let health = server.health();
    let mut sent = 0;
    wait_until("it has a worker", || {
        client.send("P");
        sent += 1;
        thread::park_timeout(Duration::from_millis(1));
        health.load().front == 0
    });
    assert!(sent < 500, "it could have sent a whole line");
    client.send("\n");
    let reply = client.line().unwrap_or_default();
    assert!(reply.starts_with("ERR UNKNOWN"), "{reply}");
}

/// They have more to be answered than the others can wait for. On one core and beside another
/// client, where no other rule makes them leave.
#[test]
fn whoever_sends_without_pause_leaves_the_front() {
    let mut core = CpuSet::new();
    core.set(sched_getcpu());
    sched_setaffinity(None, &core).expect("this thread runs there");
    let (server, address) = started(&["--max-clients", "4"]);
    let _other = with_a_worker(&server, address);
    let [client] = in_front(&server, address);
    let socket = || client.socket().try_clone().expect("a socket");
    let requests = "WHY\n".repeat(10_000);
    let _sends = repeat(socket(), move |socket| {
        let _ = socket.write_all(requests.as_bytes());
    });
    let _reads = repeat(socket(), |socket| {
        let _ = socket.read(&mut [0; 1 << 16]);
    });
    wait_for_front(&server, 0);
    client.socket().shutdown(Shutdown::Both).expect("connected");
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
    let mut sends = (0..10_000).map(|_| greedy.socket().write_all(requests.as_bytes()));
    assert!(sends.any(|sent| sent.is_err()), "it took all");
    wait_for_front(&server, 0);
    assert_eq!(connect(address).ask("WHO"), "2");
}

/// As many clients as there are workers keep their places; the next one waits, and none is left out.
#[test]
fn a_surplus_client_waits_although_the_others_are_in_the_front() {
    let (server, address) = started(&["--max-clients", "2", "--queue", "1"]);
    let [first, mut second] = in_front(&server, address);
    let mut waiting = connect(address);
    waiting.send("WHO\n");
    wait_until("it waits", || {
        let load = server.health().load();
        (load.front, load.waiting) == (0, 1)
    });
    assert_eq!(second.ask("WHY"), "42");
    drop(first);
    assert_eq!(waiting.line().as_deref(), Some("2"));
}
