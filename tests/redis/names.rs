//! How the Redis is found by its name: at which of its addresses, also while no name server knows another name.

use std::net::{Ipv4Addr, TcpStream};

use crate::clusters::{cut_off_by, file};
use crate::support::backends::{Place, Redis};
use crate::support::kernel::{can, shell, through};
use crate::support::names::{UNSHARE_MOUNTS, server_where};
use crate::support::{Daemon, Scratch, free_port, run_to_end};

/// Whichever the system names first: the master is at the one, and then at the other.
#[test]
fn an_address_that_takes_no_writes_is_left_for_the_next() {
    needs!(run & UNSHARE_MOUNTS);
    needs!("redis-server");
    let ips = [Ipv4Addr::new(127, 66, 0, 11), Ipv4Addr::new(127, 77, 0, 12)];
    let hosts = ips.map(|ip| format!("{ip} place.example\n")).concat();
    let mut refused = 0;
    for master in [0, 1] {
        let port = free_port();
        let redis = ips.map(|ip| Redis::start_at(Place::local(ip), port, ""));
        let replica = &redis[1 - master];
        replica.process.kill();
        replica.run_empty(Some(&redis[master]));
        let cluster = format!("redis://place.example:{port}");
        let server = server_where("/etc/hosts", &hosts, &cluster);
        redis[master].wait_for_servers(1);
        let log = server.log().lines().join("\n");
        refused += log.matches("READONLY").count();
    }
    assert_eq!(refused, 1);
}

/// A Redis that is full, at a host whose name looks like an answer about an unknown command.
#[test]
fn only_what_a_redis_says_tells_that_it_is_too_old_and_not_its_name() {
    needs!(run & UNSHARE_MOUNTS);
    needs!("redis-server");
    let redis = Redis::start("--maxclients 1");
    let _only = TcpStream::connect(redis.address()).expect("it listens");
    let name = format!("unsupported-command.example:{}", redis.port);
    let hosts = "127.0.0.1 unsupported-command.example\n";
    let server = server_where("/etc/hosts", hosts, &format!("redis://{name}"));
    let full = format!("{name} says: ERR max number of clients reached");
    let line = cut_off_by(&server, &full);
    assert!(!line.contains("HELLO"), "{line}");
}

/// Whether a host exists is not known before a name server can be asked, which may start after this server.
#[test]
fn a_name_server_that_is_away_keeps_no_server_from_starting() {
    // Without any network, and with a name server in it.
    let unshare = ["unshare", "--mount", "--net"];
    if !can(&unshare) {
        return;
    }
    let files = Scratch::new();
    let servers = file(&files, "resolv.conf", "nameserver 192.0.2.1\n");
    let alone = format!("ip link set lo up; mount --bind {servers} /etc/resolv.conf");
    let script = shell(&alone);
    let wrapper = unshare.into_iter().chain(script.iter().map(String::as_str));
    let wrapper: Vec<&str> = wrapper.collect();
    let cluster = ["--cluster", "redis://redis.example"];
    let mut check = through(&wrapper);
    check.args(cluster).arg("--check");
    let (status, said) = run_to_end(check);
    assert_eq!(status, 0, "{said}");
    let server = Daemon::start_through(&wrapper, cluster);
    let unknown = "can't find the address of redis.example:6379";
    let line = server.log().wait_for(unknown);
    assert!(line.contains("Temporary failure"), "{line}");
}
