//! Detaching connections: a server releases them as values, open and unread. In-process: the library does this, for whatever
//! hands live connections on.

use std::collections::HashMap;
use std::io::Write as _;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock};
use std::thread;
use std::time::{Duration, Instant};

use blockchain_tcpd::server::Server;
use blockchain_tcpd::session::scoreboard::Phase;
use blockchain_tcpd::transport::connection::Connection;
use crossbeam_channel::Receiver;
use rustix::net::{RecvFlags, SendFlags};
use shared::command::sets::server;
use shared::command::{CommandClass, CommandError, CommandSet, CommandSpec, Value, ValueType};

use crate::support::kernel::local_server;
use crate::support::watch::repeat;
use crate::support::{Client, PATIENCE, unknown, wait_until};

/// Detaches all connections of a server, at once although its workers are blocked.
fn detach(mut server: Server, count: usize) -> Vec<Connection> {
    let begun = Instant::now();
    let released = server.release(Phase::Detach);
    let connections = take(&released, count);
    let took = begun.elapsed();
    // Far less than they would be blocked for, also on a busy machine.
    assert!(took < PATIENCE / 3, "{took:?}");
    server.join_workers();
    assert!(released.recv_timeout(PATIENCE).is_err(), "no more than all");
    connections
}

/// Waits for this number of released connections.
fn take(released: &Receiver<Connection>, count: usize) -> Vec<Connection> {
    let next = |_| released.recv_timeout(PATIENCE).expect("one more");
    (0..count).map(next).collect()
}

/// The client of this connection.
fn client_of<T>(connection: &Connection, clients: &mut HashMap<SocketAddr, T>) -> T {
    let client = clients.remove(&connection.client.peer);
    client.expect("each comes once")
}

/// Reads to the end, beginning with what was read already. The client must have shut down its sending side.
fn read(connection: &mut Connection) -> String {
    let mut bytes = connection.client.read_buffer.clone();
    let mut buffer = [0; 4096];
    while let read @ 1.. = connection.read(&mut buffer, RecvFlags::empty()).unwrap() {
        bytes.extend_from_slice(&buffer[..read]);
    }
    String::from_utf8(bytes).expect("ASCII")
}

#[test]
fn five_hundred_blocked_workers_release_their_clients_open_and_unread() {
    const CLIENTS: usize = 500;
    let server = local_server(&["--max-clients", "500", "--queue", "0"], &[server::SET]);
    let mut clients = HashMap::new();
    for index in 0..CLIENTS {
        let mut client = Client::connect(server.addresses()[0]).unwrap();
        assert_eq!(client.ask("PING"), "PONG");
        let half = ["".to_string(), format!("WHE{index}")][index % 2].clone();
        client.send(&half);
        clients.insert(client.socket().local_addr().unwrap(), (half, client));
    }
    for mut connection in detach(server, CLIENTS) {
        let (half, mut client) = client_of(&connection, &mut clients);
        client.send("later\n");
        client.shutdown();
        assert_eq!(read(&mut connection), format!("{half}later\n"));
        drop(connection);
        assert_eq!(client.rest(), "", "nothing was said to it");
    }
}

/// What a client sends without pause is cut between two requests: before the cut all is answered, after it nothing,
/// and no byte is lost. Replies that the client was too slow to take are released with it.
#[test]
fn a_client_that_sends_without_pause_is_released_between_two_requests() {
    const CLIENTS: usize = 8;
    let mut server = local_server(&["--max-clients", "8", "--queue", "0"], &[server::SET]);
    let mut clients = HashMap::new();
    for _ in 0..CLIENTS {
        let mut client = Client::connect(server.addresses()[0]).unwrap();
        assert_eq!(client.ask("first"), unknown("first"));
        let from = client.socket().local_addr().unwrap();
        let sender = client.socket().try_clone().unwrap();
        let sending = repeat((sender, String::new()), |(sender, sent)| {
            let number = sent.len();
            // Odd pieces, so that they end in the middle of requests.
            let piece = format!("r{number}\nr{number}b\nr{number}c");
            sender.write_all(piece.as_bytes()).unwrap();
            sender.write_all(b"\n").unwrap();
            sent.push_str(&(piece + "\n"));
        });
        let answered = Arc::new(AtomicUsize::new(0));
        let counter = answered.clone();
        let receiving = thread::spawn(move || {
            let replies = std::iter::from_fn(|| client.line());
            let counted = replies.inspect(|_| _ = counter.fetch_add(1, Ordering::Relaxed));
            counted.collect::<Vec<String>>()
        });
        wait_until("requests and replies flow", || {
            answered.load(Ordering::Relaxed) > 200
        });
        clients.insert(from, (sending, receiving));
    }
    let connections = take(&server.release(Phase::Detach), CLIENTS);
    for mut connection in connections {
        let (sending, receiving) = client_of(&connection, &mut clients);
        let reading = thread::spawn(move || {
            let left = connection.client.replies.len();
            let sent = connection.write_replies(0, SendFlags::empty());
            assert_eq!(sent, Ok(left), "the next server would send them, too");
            read(&mut connection)
        });
        let (sender, sent) = sending.end();
        sender.shutdown(std::net::Shutdown::Write).unwrap();
        let (rest, replies) = (reading.join().unwrap(), receiving.join().unwrap());
        let answered = sent.len() - rest.len();
        assert_eq!(sent[answered..], rest);
        let expected: Vec<String> = sent[..answered].lines().map(unknown).collect();
        assert!(replies == expected, "{} requests", sent.lines().count());
    }
}

/// Whether all permits of the server below are taken.
static ALL_TAKEN: AtomicBool = AtomicBool::new(false);

/// TAKE takes all permits to compute that there are, and wants one more, however long it has to wait.
const TAKE: CommandSet = &[CommandSpec {
    name: "TAKE",
    parameters: &[],
    result: ValueType::Text,
    summary: "takes all permits and wants one more",
    class: CommandClass::Compute,
    rpc: None,
    execute: |context, request| {
        let mut permits = Vec::new();
        loop {
            match context.limiter.acquire(request, Duration::ZERO) {
                Ok(permit) => permits.push(permit),
                Err(CommandError::ComputeBusy) => ALL_TAKEN.store(true, Ordering::Relaxed),
                Err(other) => return Err(other),
            }
            thread::yield_now();
        }
    },
}];

#[test]
fn a_client_that_waits_to_compute_is_released_with_its_request() {
    for phase in [Phase::Detach, Phase::DrainThenDetach] {
        ALL_TAKEN.store(false, Ordering::Relaxed);
        let mut server = local_server(&["--max-clients", "2"], &[server::SET, TAKE]);
        let mut client = Client::connect(server.addresses()[0]).unwrap();
        client.send("WHY\nTAKE\nWHO\nWH");
        wait_until("it wants one more", || ALL_TAKEN.load(Ordering::Relaxed));
        let handed_over = server.hand_over(phase);
        let [(connection, _)] = &handed_over.clients[..] else {
            panic!("one client");
        };
        assert_eq!(connection.read_buffer, b"TAKE\nWHO\nWH");
        server.join_workers();
        drop(handed_over);
        assert_eq!(client.rest(), "42\n");
    }
}

/// The count of the server below, how many of its workers are held, and whether they may go on.
static COUNT: OnceLock<Arc<AtomicUsize>> = OnceLock::new();
static HELD: AtomicUsize = AtomicUsize::new(0);
static GO_ON: AtomicBool = AtomicBool::new(false);

/// HOLD keeps its worker from anything else.
const HOLD: CommandSet = &[CommandSpec {
    name: "HOLD",
    parameters: &[],
    result: ValueType::Text,
    summary: "waits to be told to go on",
    // Not the front's business: what asks only must not wait.
    class: CommandClass::Compute,
    rpc: None,
    execute: |context, _| {
        COUNT.get_or_init(|| context.clients.clone());
        HELD.fetch_add(1, Ordering::SeqCst);
        wait_until("it may go on", || GO_ON.load(Ordering::Relaxed));
        Ok(Value::from("WENT ON"))
    },
}];

#[test]
fn a_request_that_runs_is_answered_a_waiting_client_is_untouched_and_all_count_until_dropped() {
    const WORKERS: usize = 2;
    const ALL: usize = 7;
    let arguments = ["--max-clients", "2", "--queue", "5"];
    let mut server = local_server(&arguments, &[server::SET, HOLD]);
    let mut clients = HashMap::new();
    for _ in 0..ALL {
        let mut client = Client::connect(server.addresses()[0]).unwrap();
        client.send("HOLD\nWHY\nWH");
        clients.insert(client.socket().local_addr().unwrap(), client);
    }
    wait_until("all are admitted, and as many served as may", || {
        server.clients() == ALL && HELD.load(Ordering::SeqCst) == WORKERS
    });
    let count = || COUNT.get().unwrap().load(Ordering::SeqCst);
    // Releasing waits for no worker: they are busy still.
    let released = server.release(Phase::Detach);
    assert_eq!(count(), ALL);
    GO_ON.store(true, Ordering::Relaxed);
    let connections = take(&released, ALL);
    server.join_workers();
    assert!(released.recv_timeout(PATIENCE).is_err(), "no more than all");
    assert_eq!(count(), ALL);

    let mut answered = 0;
    for (gone, mut connection) in connections.into_iter().enumerate() {
        let mut client = client_of(&connection, &mut clients);
        client.shutdown();
        let left = read(&mut connection);
        drop(connection);
        assert_eq!(count(), ALL - gone - 1);
        let replies = client.rest();
        match &*left {
            "HOLD\nWHY\nWH" => assert_eq!(replies, ""),
            _ => assert_eq!((&*left, &*replies), ("WH", "WENT ON\n42\n")),
        }
        answered += usize::from(left == "WH");
    }
    assert_eq!(answered, WORKERS);
}

/// A client that takes no replies delays nothing: what it was not sent is released with it.
#[test]
fn a_client_that_does_not_read_is_released_with_the_replies_that_it_has_not_taken() {
    let arguments = ["--max-clients", "1", "--write-timeout", "1h"];
    let server = local_server(&arguments, &[server::SET]);
    let mut client = Client::connect_narrow(server.addresses()[0]);
    let mut socket = client.socket();
    socket.set_nonblocking(true).unwrap();
    let mut sent = 0;
    let mut last = Instant::now();
    wait_until("nothing more goes out", || {
        // One request after the other: the kernel may take a part of one.
        while let Ok(more) = socket.write(&b"WHY\n"[sent % 4..]) {
            sent += more;
            last = Instant::now();
        }
        last.elapsed() > Duration::from_millis(300)
    });
    socket.set_nonblocking(false).unwrap();
    let mut connection = detach(server, 1).remove(0);
    assert!(!connection.client.replies.is_empty());
    assert!(connection.client.active.is_none(), "it was not idle");

    client.shutdown();
    let reading = thread::spawn(move || client.rest());
    let mut written = 0;
    while written < connection.client.replies.len() {
        written += connection
            .write_replies(written, SendFlags::empty())
            .unwrap();
    }
    let unread = read(&mut connection).len();
    drop(connection);
    let replies = reading.join().unwrap();
    assert!(replies == "42\n".repeat((sent - unread) / 4), "{unread}");
}
