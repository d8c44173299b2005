//! Letting go of connections: they come out of a server as values, open and unread. In-process: it is the library that
//! does this, for whoever hands live connections on.

use std::collections::HashMap;
use std::io::{Read as _, Write as _};
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock};
use std::thread;
use std::time::{Duration, Instant};

use blockchain_tcpd::session::scoreboard::Phase;
use blockchain_tcpd::transport::connection::Connection;
use crossbeam_channel::Receiver;
use rustix::net::{RecvFlags, SendFlags};
use shared::command::sets::server;
use shared::command::{CommandClass, CommandError, CommandSet, CommandSpec, Reply};

use crate::support::kernel::local_server;
use crate::support::{Client, PATIENCE, wait_until};

/// The next connection that was let go of.
fn next(released: &Receiver<Connection>) -> Connection {
    released.recv_timeout(PATIENCE).expect("one more")
}

/// Reads to the end, beginning with what was read already. The client must have shut down its sending side.
fn read(connection: &mut Connection) -> String {
    let mut bytes = connection.client.read_buffer.clone();
    let mut buffer = [0; 4096];
    loop {
        match connection.read(&mut buffer, RecvFlags::empty()) {
            Ok(0) => return String::from_utf8(bytes).expect("ASCII"),
            Ok(read) => bytes.extend_from_slice(&buffer[..read]),
            Err(error) => panic!("{error} after {} bytes", bytes.len()),
        }
    }
}

#[test]
fn five_hundred_blocked_workers_let_go_of_their_clients_open_and_unread() {
    const CLIENTS: usize = 500;
    let mut server = local_server(&["--max-clients", "500", "--queue", "0"], &[server::SET]);
    let address = server.addresses()[0];
    let mut clients: HashMap<SocketAddr, (usize, Client)> = HashMap::new();
    for index in 0..CLIENTS {
        let mut client = Client::connect(address).unwrap();
        assert_eq!(client.ask("PING"), "PONG");
        if index % 2 == 1 {
            client.send(format!("WHE{index}"));
        }
        clients.insert(client.socket().local_addr().unwrap(), (index, client));
    }
    let begun = Instant::now();
    let released = server.release(Phase::Detach);
    let connections: Vec<_> = (0..CLIENTS).map(|_| next(&released)).collect();
    let took = begun.elapsed();
    eprintln!("{CLIENTS} blocked workers let go within {took:?}");
    assert!(took < Duration::from_secs(1), "{took:?}");
    server.join_workers();
    assert!(released.recv_timeout(PATIENCE).is_err(), "no more than all");

    for mut connection in connections {
        let (index, mut client) = clients
            .remove(&connection.client.peer)
            .expect("each comes once");
        let half = match index % 2 {
            1 => format!("WHE{index}"),
            _ => String::new(),
        };
        client.send("later\n");
        client.shutdown();
        assert_eq!(read(&mut connection), format!("{half}later\n"));
        drop(connection);
        assert_eq!(client.rest(), "", "nothing was said to it");
    }
}

/// What a client sends without pause is cut between two requests: before the cut all is answered, after it nothing,
/// and no byte is lost.
#[test]
fn a_client_in_full_flow_is_let_go_of_between_two_requests() {
    const CLIENTS: usize = 8;
    let mut server = local_server(&["--max-clients", "8", "--queue", "0"], &[server::SET]);
    let address = server.addresses()[0];
    let stop = Arc::new(AtomicBool::new(false));
    let mut clients = HashMap::new();
    for _ in 0..CLIENTS {
        let mut client = Client::connect(address).unwrap();
        assert_eq!(client.ask("first"), echo("first"));
        let from = client.socket().local_addr().unwrap();
        let mut sender = client.socket().try_clone().unwrap();
        let stop = stop.clone();
        let sending = thread::spawn(move || {
            let mut sent = String::new();
            let mut number = 0;
            while !stop.load(Ordering::Relaxed) {
                // Odd pieces, so that they end in the middle of requests.
                let request = format!("r{number}\nr{}\nr{}", number + 1, number + 2);
                number += 3;
                sender.write_all(request.as_bytes()).unwrap();
                sender.write_all(b"\n").unwrap();
                sent.push_str(&request);
                sent.push('\n');
            }
            sender.shutdown(std::net::Shutdown::Write).unwrap();
            sent
        });
        let mut receiver = client.socket().try_clone().unwrap();
        let answered = Arc::new(AtomicUsize::new(0));
        let counter = answered.clone();
        let receiving = thread::spawn(move || {
            let mut replies = Vec::new();
            let mut buffer = [0; 64 * 1024];
            loop {
                match receiver.read(&mut buffer).unwrap() {
                    0 => return String::from_utf8(replies).unwrap(),
                    read => replies.extend_from_slice(&buffer[..read]),
                }
                counter.store(replies.len(), Ordering::Relaxed);
            }
        });
        wait_until("it is in full flow", || {
            answered.load(Ordering::Relaxed) > 10_000
        });
        clients.insert(from, (sending, receiving));
    }
    let released = server.release(Phase::Detach);
    let connections: Vec<_> = (0..CLIENTS).map(|_| next(&released)).collect();
    stop.store(true, Ordering::Relaxed);
    for mut connection in connections {
        let (sending, receiving) = clients
            .remove(&connection.client.peer)
            .expect("each comes once");
        let rest = read(&mut connection);
        drop(connection);
        let (sent, replies) = (sending.join().unwrap(), receiving.join().unwrap());
        assert!(replies.ends_with('\n'));
        let answered = sent.len() - rest.len();
        assert_eq!(sent[answered..], rest);
        let expected: String = sent[..answered]
            .lines()
            .map(|request| echo(request) + "\n")
            .collect();
        assert!(replies == expected, "{} requests", sent.lines().count());
    }
}

/// Whether all turns of the server below are taken.
static ALL_TAKEN: AtomicBool = AtomicBool::new(false);

/// TAKE takes all turns that there are, and wants one more, however long it has to wait.
const TAKE: CommandSet = &[CommandSpec {
    name: "TAKE",
    arguments: "",
    summary: "takes all turns and wants one more",
    kind: CommandClass::Compute,
    execute: |context, request| {
        let mut limiter = Vec::new();
        loop {
            match context.limiter.take(request) {
                Ok(turn) => limiter.push(turn),
                Err(CommandError::ComputeBusy) => ALL_TAKEN.store(true, Ordering::Relaxed),
                Err(other) => return Err(other),
            }
            thread::yield_now();
        }
    },
}];

#[test]
fn who_computes_is_let_go_of_with_the_request() {
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

fn echo(request: &str) -> String {
    format!("ERR UNKNOWN no such command: \"{request}\" (try HELP)")
}

/// The count of the server below, how many of its workers are held, and whether they may go on.
static COUNT: OnceLock<Arc<AtomicUsize>> = OnceLock::new();
static HELD: AtomicUsize = AtomicUsize::new(0);
static GO_ON: AtomicBool = AtomicBool::new(false);

/// HOLD keeps its worker from anything else.
const HOLD: CommandSet = &[CommandSpec {
    name: "HOLD",
    arguments: "",
    summary: "waits to be told to go on",
    kind: CommandClass::Query,
    execute: |context, _| {
        COUNT.get_or_init(|| context.clients.clone());
        HELD.fetch_add(1, Ordering::SeqCst);
        wait_until("it may go on", || GO_ON.load(Ordering::Relaxed));
        Ok(Reply::Text("WENT ON"))
    },
}];

#[test]
fn the_busy_finish_their_request_the_waiting_come_untouched_and_all_count_until_dropped() {
    const WORKERS: usize = 2;
    const WAITING: usize = 5;
    let mut server = local_server(
        &["--max-clients", "2", "--queue", "5"],
        &[server::SET, HOLD],
    );
    let address = server.addresses()[0];
    let mut clients: Vec<_> = (0..WORKERS + WAITING)
        .map(|_| {
            let mut client = Client::connect(address).unwrap();
            client.send("HOLD\nWHY\nWH");
            client
        })
        .collect();
    wait_until("all are let in, and as many served as may", || {
        server.clients() == WORKERS + WAITING && HELD.load(Ordering::SeqCst) == WORKERS
    });
    let count = COUNT.get().unwrap();
    // Releasing waits for nobody: the workers are busy still.
    let released = server.release(Phase::Detach);
    assert_eq!(count.load(Ordering::SeqCst), WORKERS + WAITING);
    GO_ON.store(true, Ordering::Relaxed);
    let connections: Vec<_> = (0..WORKERS + WAITING).map(|_| next(&released)).collect();
    server.join_workers();
    assert!(released.recv_timeout(PATIENCE).is_err(), "no more than all");
    assert_eq!(count.load(Ordering::SeqCst), WORKERS + WAITING);

    let mut answered = 0;
    for (gone, mut connection) in connections.into_iter().enumerate() {
        let index = clients
            .iter()
            .position(|client| client.socket().local_addr().unwrap() == connection.client.peer)
            .expect("each comes once");
        let mut client = clients.swap_remove(index);
        client.shutdown();
        let left = read(&mut connection);
        drop(connection);
        assert_eq!(count.load(Ordering::SeqCst), WORKERS + WAITING - gone - 1);
        match &*left {
            "HOLD\nWHY\nWH" => assert_eq!(client.rest(), ""),
            "WH" => {
                assert_eq!(client.rest(), "WENT ON\n42\n");
                answered += 1;
            }
            _ => panic!("{left:?}"),
        }
    }
    assert_eq!(answered, WORKERS);
}

/// One that takes no replies keeps nobody waiting: what it was not sent travels with it.
#[test]
fn a_client_that_does_not_read_is_let_go_of_with_the_replies_that_it_has_not_taken() {
    let mut server = local_server(
        &["--max-clients", "1", "--write-timeout", "1h"],
        &[server::SET],
    );
    let client = Client::connect_narrow(server.addresses()[0]);
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
    let begun = Instant::now();
    let mut connection = next(&server.release(Phase::Detach));
    assert!(
        begun.elapsed() < Duration::from_secs(1),
        "{:?}",
        begun.elapsed()
    );
    assert!(!connection.client.replies.is_empty());
    assert!(connection.client.active.is_none(), "it was not idle");

    let reading = thread::spawn(move || {
        let mut client = client;
        client.shutdown();
        client.rest()
    });
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
