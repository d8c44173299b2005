//! How the etcd is found by its name: at which of its addresses, also while no name server knows another name.

use std::net::SocketAddr;
use std::time::Instant;

use super::registry::Etcd;
use super::wait_for;
use crate::support::Daemon;
use crate::support::names::{
    DeafNameServer, EmptyNameServer, Silent, UNSHARE_MOUNTS, alone_with_a_port, server_where,
};
use crate::support::way::Way;

const DAEMON: &str = env!("CARGO_BIN_EXE_blockchain-tcpd");

#[test]
fn an_address_that_says_nothing_is_left_for_the_next() {
    needs!("etcd");
    needs!(run & UNSHARE_MOUNTS);
    let etcd = Etcd::start(1);
    let hosts = "127.66.0.13 place.example\n127.77.0.14 place.example\n";
    let (one, other) = ([127, 66, 0, 13], [127, 77, 0, 14]);
    let mut tried = 0;
    // Whichever the system names first: the etcd is at the one, and then at the other.
    for (up, down) in [(one, other), (other, one)] {
        let way = Way::at(SocketAddr::from((up, 0)), etcd.addresses()[0]);
        let port = way.address.port();
        let silent = Silent::at(SocketAddr::from((down, port)));
        let cluster = format!("etcd://place.example:{port}");
        let mut server = server_where("/etc/hosts", hosts, &cluster);
        wait_for(std::slice::from_ref(&server), 1);
        tried += usize::from(silent.was_tried());
        server.signal("TERM");
        server.wait();
    }
    assert_eq!(tried, 1);
}

#[test]
fn a_name_that_no_name_server_answers_for_delays_no_other() {
    needs!("etcd");
    needs!(run & UNSHARE_MOUNTS);
    let Some(deaf) = DeafNameServer::start() else {
        return;
    };
    let etcd = Etcd::start(1);
    // What localhost is stands in /etc/hosts.
    let cluster = format!(
        "etcd://dead.example,localhost:{}",
        etcd.addresses()[0].port()
    );
    let server = server_where("/etc/resolv.conf", &deaf.conf(), &cluster);
    let log = server.log().lines().join("\n");
    assert!(!log.contains("can't find the address"), "{log}");
    wait_for(&[server], 1);
}

#[test]
fn a_host_that_does_not_resolve_is_not_looked_up_with_each_call() {
    needs!("etcd");
    needs!(run & UNSHARE_MOUNTS);
    let Some(names) = EmptyNameServer::start() else {
        return;
    };
    let etcd = Etcd::start(1);
    let cluster = format!(
        "etcd://nowhere.example.,localhost:{}",
        etcd.addresses()[0].port()
    );
    let begun = Instant::now();
    let server = server_where("/etc/resolv.conf", EmptyNameServer::CONF, &cluster);
    wait_for(std::slice::from_ref(&server), 1);
    for _ in 0..50 {
        server.ask("WHO\n");
    }
    // Each lookup has two queries: A and AAAA. One lookup checks the settings.
    let (lookups, took) = (names.queries() / 2, begun.elapsed());
    let due = 2 + took.as_secs() as usize / 5;
    assert!((1..=due).contains(&lookups), "{lookups} in {took:?}");
}

#[test]
fn one_that_is_connected_to_itself_has_no_etcd() {
    needs!(run & UNSHARE_MOUNTS);
    let server = alone_with_a_port(DAEMON, |mut command| {
        let http = ["--http", "127.0.0.1:4280", "--advertise", "127.0.0.1:4280"];
        let cluster = ["--cluster", "etcd://127.0.0.1:50002"];
        command.args(["--listen", "127.0.0.1:4242"]);
        command.args(http).args(cluster);
        Daemon::run(command)
    });
    let said = server.log().wait_for("cut off from the cluster");
    assert!(
        said.contains("127.0.0.1:50002: Connection refused"),
        "{said}"
    );
}
