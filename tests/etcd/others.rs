//! Who else may be written down in etcd: servers with the same id, and addresses at which no server answers.

use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::thread;
use std::time::{Duration, Instant};

use super::registry::{Etcd, free_address, somebody};
use super::{OUTSIDE, REGISTRY, YOUNG, client, server, servers, unavailable_until, wait_for};
use crate::support::http::get;
use crate::support::{Daemon, wait_until};

const ID: &str = "6f0c2a52-5f0e-4b7e-9a35-0c5f7f5a3c1e";

#[test]
fn servers_of_the_same_id_are_counted_each_and_say_so() {
    needs!("etcd");
    let etcd = Etcd::start(1);
    let twins = [(); 2].map(|()| server(&etcd, &["--server-id", ID]));
    let clients = twins.each_ref().map(client);
    wait_for(&twins, 3);
    for twin in &twins {
        twin.log()
            .wait_for("another server of the cluster has the same id");
    }
    let [stays, leaves] = twins;
    drop(clients);
    leaves.stop();
    stays
        .log()
        .wait_for("over: another server of the cluster has the same id");
    wait_for(&[stays], 1);
}

fn patience() -> Duration {
    // It waits for somebody until its deadline, and a little more on a busy machine.
    Duration::from_secs(3)
}

#[test]
fn whoever_does_not_answer_as_a_server_does_makes_who_unavailable_in_time() {
    needs!("etcd");
    let hello = |mut socket: TcpStream| {
        let mut question = [0; 1024];
        let _ = socket.read(&mut question);
        socket
    };
    let wait = |mut socket: TcpStream| {
        let _ = socket.read_to_end(&mut Vec::new());
    };
    let says = |text: &'static [u8]| {
        somebody(move |socket| {
            let mut socket = hello(socket);
            let _ = socket.write_all(text);
            wait(socket);
        })
    };
    let etcd = Etcd::start(1);
    let server = &servers(&etcd, 1)[0];
    let mut asking = client(server);
    for (who, address) in [
        ("nobody", free_address()),
        ("one who says nothing", somebody(wait)),
        (
            "one who closes",
            somebody(move |socket| drop(hello(socket))),
        ),
        (
            "one who talks nonsense",
            says(b"220 mail.example ESMTP\r\n"),
        ),
        (
            "one who says no",
            says(b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n"),
        ),
        (
            "one who answers a number",
            says(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n7\n"),
        ),
        (
            "one who dribbles",
            somebody(move |socket| {
                let mut socket = hello(socket);
                for byte in b"HTTP/1.1 200 OK\r\nContent-Length: 80\r\n\r\n"
                    .iter()
                    .cycle()
                {
                    if socket.write_all(&[*byte]).is_err() {
                        return;
                    }
                    thread::park_timeout(Duration::from_millis(20));
                }
            }),
        ),
        (
            "one who floods",
            somebody(move |socket| {
                let mut socket = hello(socket);
                while socket.write_all(&[b'x'; 4096]).is_ok() {}
            }),
        ),
    ] {
        let key = etcd.write_down(address);
        // etcd may be slow on a busy machine, and then the server says so in time, too.
        wait_until("etcd answers in time", || {
            let begun = Instant::now();
            let answer = asking.ask("WHO");
            let took = begun.elapsed();
            assert!(took < patience(), "{who}: {took:?}");
            let is_slow = answer.contains(REGISTRY);
            let silent = "ERR UNAVAILABLE 1 of 2 servers answered, try again";
            assert!(is_slow || answer == silent, "{who}: {answer}");
            !is_slow
        });
        assert_eq!(asking.ask("WHY"), "42");
        wait_until("it is named", || {
            let mut lines = server.log().lines().into_iter();
            lines.any(|line| {
                line.contains("server of the cluster does not answer")
                    && line.contains(&address.to_string())
            })
        });
        etcd.does(&["del", &key]);
        unavailable_until(&mut asking, &[REGISTRY, OUTSIDE, YOUNG], "1");
    }
}

#[test]
fn another_server_at_the_address_of_one_does_not_answer_for_it() {
    needs!("etcd");
    let etcd = Etcd::start(1);
    let servers = servers(&etcd, 1);
    let alone = Daemon::start(["--http", "127.0.0.1:0"]);
    let answer = get(alone.http(), "/census");
    assert_eq!(answer.status, 200);
    assert!(answer.body.ends_with(" 0\n"), "{}", answer.body);
    etcd.write_down(alone.http());
    let answer = servers[0].ask("WHO\n");
    assert!(
        answer.starts_with("ERR UNAVAILABLE 1 of 2 servers answered"),
        "{answer}"
    );
    let line = servers[0].log().wait_for("does not answer");
    assert!(line.contains("another server answers there"), "{line}");
}

#[test]
fn what_can_not_be_read_may_be_a_server() {
    needs!("etcd");
    let etcd = Etcd::start(1);
    let servers = servers(&etcd, 1);
    let mut asking = client(&servers[0]);
    let key = format!("/blockchain-tcpd/default/members/{ID}/{ID}");
    etcd.does(&["put", &key, "127.0.0.1:1"]);
    assert!(asking.ask("WHO").contains(REGISTRY));
    servers[0].log().wait_for("etcd holds nonsense");
    etcd.does(&["del", &key]);
    unavailable_until(&mut asking, &[REGISTRY], "1");
}

/// What a process has left that ended is taken away by the next at its address; another server that has it by mistake lives.
#[test]
fn a_server_with_the_address_of_another_does_not_take_its_place() {
    needs!("etcd");
    let etcd = Etcd::start(1);
    let servers = servers(&etcd, 1);
    let mut here = client(&servers[0]);
    let address = servers[0].http().to_string();
    let url = etcd.url();
    let members = || {
        let prefix = "/blockchain-tcpd/default/members/";
        let keys = etcd.does(&["get", "--prefix", "--keys-only", prefix]);
        let mut keys: Vec<String> = keys.split_whitespace().map(str::to_string).collect();
        keys.sort();
        keys
    };
    let first = members();
    let cluster = ["--cluster", &url, "--advertise", &address];
    let other = ["--http", "127.0.0.1:0", "--cluster-heartbeat", "250ms"];
    let mistaken = Daemon::start(cluster.iter().chain(&other));
    let line = mistaken
        .log()
        .wait_for("answers at the address that this one is to have");
    assert!(line.contains(&address), "{line}");
    wait_until("both are registered", || members().len() == 2);
    assert_eq!(first.len(), 1);
    assert!(members().contains(&first[0]));
    // Where nobody answers for both.
    let silent = "ERR UNAVAILABLE 1 of 2 servers answered, try again";
    wait_until("it is missed", || here.ask("WHO") == silent);
    let log = mistaken.stop();
    assert_eq!(log.matches("answers at the address").count(), 1, "{log}");
    unavailable_until(&mut here, &["1 of 2 servers answered", YOUNG], "1");
}

/// It makes WHO unavailable on the others, which say where nobody answers; so does it itself.
#[test]
fn a_server_that_can_not_be_reached_where_it_says_is_told_so_and_named_by_the_others() {
    needs!("etcd");
    let etcd = Etcd::start(1);
    let servers = servers(&etcd, 2);
    let mut here = client(&servers[0]);
    let url = etcd.url();
    let lost = |address: SocketAddr| {
        let (http, address) = (free_address().to_string(), address.to_string());
        let cluster = ["--cluster", &url, "--advertise", &address, "--http", &http];
        Daemon::start(cluster.into_iter().chain(["--cluster-heartbeat", "250ms"]))
    };
    // Each is named, also while WHO is unavailable anyway.
    let lost = [(); 2]
        .map(|()| free_address())
        .map(|address| (lost(address), address));
    for (server, address) in &lost {
        let line = server.log().wait_for("does not hear itself");
        assert!(line.contains(&address.to_string()), "{line}");
        wait_until("it is named", || {
            here.ask("WHO");
            let mut lines = servers[0].log().lines().into_iter();
            lines.any(|line| {
                line.contains("server of the cluster does not answer")
                    && line.contains(&address.to_string())
            })
        });
    }
    for (server, _) in lost {
        let log = server.stop();
        assert_eq!(log.matches("does not hear itself").count(), 1, "{log}");
    }
    wait_for(&servers, 2);
    for server in &servers {
        let log = server.log().lines().join("\n");
        assert!(!log.contains("hear itself"), "{log}");
    }
}
