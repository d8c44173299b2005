//! How the Redis is found by its name: at which of its addresses, also while no name server knows another name.

use std::net::{Ipv4Addr, SocketAddr, TcpStream};

use super::sentinel::Sentinel;
use crate::support::names::{
    DeafNameServer, Silent, UNSHARE_MOUNTS, alone_with_a_port, server_where,
};
use crate::support::redis::Redis;
use crate::support::{Daemon, free_port};

const DAEMON: &str = env!("CARGO_BIN_EXE_blockchain-tcpd");

/// A Redis at this address.
fn redis_at(ip: Ipv4Addr, port: u16, arguments: &[&str]) -> Redis {
    let (ip, port) = (ip.to_string(), port.to_string());
    let mut all = vec!["--bind", &ip, "--port", &port];
    all.extend(arguments);
    let mut redis = Redis::start(&all);
    redis.cli = ["-h", &ip, "-p", &port].map(str::to_string).to_vec();
    redis
}

/// Whichever the system names first: the Redis is at the one, and then at the other.
#[test]
fn an_address_that_says_nothing_or_takes_no_writes_is_left_for_the_next() {
    needs!("redis-server");
    needs!(run & UNSHARE_MOUNTS);
    let (one, other) = (Ipv4Addr::new(127, 66, 0, 11), Ipv4Addr::new(127, 77, 0, 12));
    let hosts = format!("{one} place.example\n{other} place.example\n");
    let (mut tried, mut refused) = (0, 0);
    for (up, down) in [(one, other), (other, one)] {
        let port = free_port();
        let cluster = format!("redis://place.example:{port}");
        let redis = redis_at(up, port, &[]);
        let silent = Silent::at(SocketAddr::from((down, port)));
        let server = server_where("/etc/hosts", &hosts, &cluster);
        redis.wait_for_servers(1);
        tried += usize::from(silent.was_tried());
        drop((server, silent));
        redis.wait_for_servers(0);
        let (up, number) = (up.to_string(), port.to_string());
        let _replica = redis_at(down, port, &["--replicaof", &up, &number]);
        let server = server_where("/etc/hosts", &hosts, &cluster);
        redis.wait_for_servers(1);
        let log = server.log().lines();
        refused += log.iter().filter(|line| line.contains("READONLY")).count();
    }
    assert_eq!((tried, refused), (1, 1));
}

#[test]
fn a_name_that_no_name_server_answers_for_delays_no_other() {
    needs!("redis-server", "redis-sentinel");
    needs!(run & UNSHARE_MOUNTS);
    let Some(deaf) = DeafNameServer::start() else {
        return;
    };
    let redis = Redis::start(&[]);
    let sentinel = Sentinel::start(&redis);
    // What localhost is stands in /etc/hosts.
    let cluster = format!(
        "redis-sentinel://dead.example,localhost:{}/main",
        sentinel.port
    );
    let server = server_where("/etc/resolv.conf", &deaf.conf(), &cluster);
    redis.wait_for_servers(1);
    let log = server.log().lines().join("\n");
    assert!(!log.contains("can't find the address"), "{log}");
}

/// A Redis that is full, at a host whose name looks like an answer about an unknown command.
#[test]
fn only_what_a_redis_says_tells_that_it_is_too_old_and_not_its_name() {
    needs!("redis-server");
    needs!(run & UNSHARE_MOUNTS);
    let redis = Redis::start(&["--maxclients", "1"]);
    let _only = TcpStream::connect(("127.0.0.1", redis.port)).expect("it listens");
    let name = "unsupported-command.example";
    let hosts = format!("127.0.0.1 {name}\n");
    let cluster = format!("redis://{name}:{}", redis.port);
    let server = server_where("/etc/hosts", &hosts, &cluster);
    let line = server.log().wait_for("cut off from the cluster");
    let full = format!(
        "{name}:{} says: ERR max number of clients reached",
        redis.port
    );
    assert!(line.contains(&full), "{line}");
    assert!(!line.contains("HELLO"), "{line}");
}

#[test]
fn one_that_is_connected_to_itself_has_no_redis() {
    needs!(run & UNSHARE_MOUNTS);
    let server = alone_with_a_port(DAEMON, |mut command| {
        let cluster = ["--cluster", "redis://127.0.0.1:50002"];
        command.args(["--listen", "127.0.0.1:4242"]).args(cluster);
        Daemon::run(command)
    });
    let said = server.log().wait_for("cut off from the cluster");
    assert!(
        said.contains("127.0.0.1:50002: Connection refused"),
        "{said}"
    );
}
