//! Sockets that listen: all addresses of both versions, and other sorts of TCP.

use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener};
use std::process::{Command, Stdio};

use rustix::net::ipproto;

use crate::handover::replace;
use crate::support::http::get;
use crate::support::kernel::{shell, strace, tcp_socket, through};
use crate::support::{Client, Daemon, are_answered, free_port, program, skipped};

/// The daemon that listens there.
fn listening(listen: &str, arguments: &[&str]) -> Command {
    let mut command = program();
    command.args(["--max-clients", "8"]).args(arguments);
    command.env("BLOCKCHAIN_TCPD_LISTEN", listen);
    command
}

/// Both loopback addresses must lead to it.
fn serves_both(port: u16) {
    let loopback: [SocketAddr; 2] = [
        (Ipv4Addr::LOCALHOST, port).into(),
        (Ipv6Addr::LOCALHOST, port).into(),
    ];
    are_answered(&mut loopback.map(|address| Client::connect(address).unwrap()));
}

#[test]
fn all_addresses_of_ipv4_and_of_ipv6_are_a_pair_in_either_order() {
    if TcpListener::bind("[::]:0").is_err() {
        skipped("no IPv6 here");
        return;
    }
    for pair in [
        "0.0.0.0:PORT,[::]:PORT",
        "[::]:PORT,0.0.0.0:PORT",
        "127.0.0.1:PORT,[::]:PORT",
    ] {
        let port = free_port();
        let pair = pair.replace("PORT", &port.to_string());
        let daemon = Daemon::run(listening(&pair, &[]));
        assert_eq!(daemon.ready("listen"), pair);
        for _ in 0..2 {
            serves_both(port);
            replace(&daemon);
        }
        daemon.stop();
    }
    // One may be for clients and the other for HTTP.
    for [line, http] in [["0.0.0.0:", "[::]:"], ["[::]:", "0.0.0.0:"]] {
        let port = free_port();
        let [line, http] = [line, http].map(|ip| format!("{ip}{port}"));
        let daemon = Daemon::run(listening(&line, &["--http", &http]));
        for _ in 0..2 {
            assert_eq!(daemon.ask("WHY\n"), "42\n");
            assert_eq!(get(daemon.http(), "/livez").status, 200);
            replace(&daemon);
        }
        daemon.stop();
    }
}

/// As it was always, and as `--http [::]:4280` is, which may be one address only.
#[test]
fn all_addresses_of_ipv6_alone_are_those_of_ipv4_too() {
    let only = std::fs::read_to_string("/proc/sys/net/ipv6/bindv6only");
    if only.is_ok_and(|only| only.trim() == "0") {
        let port = free_port();
        let daemon = Daemon::run(listening(&format!("[::]:{port}"), &[]));
        serves_both(port);
        daemon.stop();
    }
}

/// As systemd passes it with SocketProtocol=mptcp: it has no SO_OOBINLINE.
#[test]
fn a_socket_of_multipath_tcp_is_served() {
    let enabled = std::fs::read_to_string("/proc/sys/net/mptcp/enabled");
    if !enabled.is_ok_and(|enabled| enabled.trim() == "1") {
        skipped("no MPTCP in this kernel");
        return;
    }
    let socket = || tcp_socket(Some(ipproto::MPTCP)).unwrap();
    let listener = socket();
    rustix::net::bind(&listener, &SocketAddr::from((Ipv4Addr::LOCALHOST, 0))).unwrap();
    rustix::net::listen(&listener, 8).unwrap();
    let passed = "exec 3<&0 </dev/null; export LISTEN_PID=$$ LISTEN_FDS=1";
    let mut command = through(&shell(passed));
    command.args(["--max-clients", "8", "--log", "debug"]);
    command.stdin(Stdio::from(listener));
    let daemon = Daemon::run(command);
    daemon.log().wait_for("option=SO_OOBINLINE");
    let connected = socket();
    rustix::net::connect(&connected, &daemon.address).unwrap();
    let mut clients = [Client::over(connected.into()).unwrap(), daemon.connect()];
    for client in &mut clients {
        client.send("WHY\nWH");
        assert_eq!(client.line().as_deref(), Some("42"));
    }
    replace(&daemon);
    for client in &mut clients {
        assert_eq!(client.ask("Y"), "42");
        client.send("QUIT\n");
        assert_eq!(client.rest(), "BYE\n");
    }
    daemon.stop();
}

#[test]
fn a_socket_that_can_have_none_of_the_options_is_served() {
    // The first is std's, for an address that was in use a moment ago.
    let Some(wrapper) = strace("setsockopt:error=ENOPROTOOPT:when=2+") else {
        return;
    };
    let daemon = Daemon::start_through(&wrapper, ["--max-clients", "8", "--log", "debug"]);
    for option in ["TCP_NODELAY", "SO_KEEPALIVE", "SO_SNDBUF", "SO_OOBINLINE"] {
        daemon.log().wait_for(&format!("option={option}"));
    }
    assert_eq!(daemon.ask("WHY\n"), "42\n");
    daemon.stop();
}
