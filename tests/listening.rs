//! Sockets that listen: all addresses of both versions, and other sorts of TCP.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener};
use std::os::fd::OwnedFd;
use std::process::Stdio;

use rustix::net::{AddressFamily, SocketFlags, SocketType, ipproto};

use crate::handover::replace;
use crate::support::http::get;
use crate::support::kernel::{shell, through};
use crate::support::{Client, Daemon, field, free_port, program};

fn asks(address: SocketAddr) {
    assert_eq!(
        Client::connect(address).unwrap().ask("WHY"),
        "42",
        "{address}"
    );
}

#[test]
fn all_addresses_of_ipv4_and_of_ipv6_are_a_pair_in_either_order() {
    if TcpListener::bind("[::]:0").is_err() {
        crate::support::skipped("no IPv6 here");
        return;
    }
    for pair in [
        "0.0.0.0:PORT,[::]:PORT",
        "[::]:PORT,0.0.0.0:PORT",
        "127.0.0.1:PORT,[::]:PORT",
    ] {
        let port = free_port();
        let pair = pair.replace("PORT", &port.to_string());
        let mut command = program();
        command.env("BLOCKCHAIN_TCPD_LISTEN", &pair);
        command.args(["--max-clients", "8"]);
        let daemon = Daemon::run(command);
        let ready = daemon.log().wait_for("ready listen=");
        assert_eq!(field(&ready, "listen"), pair);
        for _ in 0..2 {
            asks((Ipv4Addr::LOCALHOST, port).into());
            asks((Ipv6Addr::LOCALHOST, port).into());
            replace(&daemon);
        }
        daemon.stop();
    }
}

#[test]
fn the_pair_may_be_one_for_clients_and_one_for_http() {
    if TcpListener::bind("[::]:0").is_err() {
        crate::support::skipped("no IPv6 here");
        return;
    }
    let (ipv4, ipv6) = (Ipv4Addr::UNSPECIFIED.into(), Ipv6Addr::UNSPECIFIED.into());
    for [line, http] in [[ipv4, ipv6], [ipv6, ipv4]] {
        let port = free_port();
        let [line, http] = [line, http].map(|ip: IpAddr| SocketAddr::new(ip, port));
        let mut command = program();
        command.args(["--listen", &line.to_string(), "--http", &http.to_string()]);
        command.args(["--max-clients", "8"]);
        let daemon = Daemon::run(command);
        for _ in 0..2 {
            asks(line);
            assert_eq!(get(http, "/livez").status, 200);
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
        let mut command = program();
        command.args(["--listen", &format!("[::]:{port}"), "--max-clients", "8"]);
        let daemon = Daemon::run(command);
        asks((Ipv4Addr::LOCALHOST, port).into());
        asks((Ipv6Addr::LOCALHOST, port).into());
        daemon.stop();
    }
}

/// As systemd passes it with SocketProtocol=mptcp: it has no SO_OOBINLINE.
#[test]
fn a_socket_of_multipath_tcp_is_served() {
    let enabled = std::fs::read_to_string("/proc/sys/net/mptcp/enabled");
    if !enabled.is_ok_and(|enabled| enabled.trim() == "1") {
        crate::support::skipped("no MPTCP in this kernel");
        return;
    }
    let socket = || -> OwnedFd {
        let (family, kind) = (AddressFamily::INET, SocketType::STREAM);
        let protocol = Some(ipproto::MPTCP);
        rustix::net::socket_with(family, kind, SocketFlags::CLOEXEC, protocol).unwrap()
    };
    let listening = socket();
    rustix::net::bind(&listening, &SocketAddr::from((Ipv4Addr::LOCALHOST, 0))).unwrap();
    rustix::net::listen(&listening, 8).unwrap();
    let script = shell("exec 3<&0 </dev/null; export LISTEN_PID=$$ LISTEN_FDS=1");
    let wrapper: Vec<&str> = script.iter().map(String::as_str).collect();
    let mut command = through(&wrapper);
    command.args(["--max-clients", "8", "--log", "debug"]);
    command.stdin(Stdio::from(listening));
    let daemon = Daemon::run(command);
    daemon.log().wait_for("option=SO_OOBINLINE");
    let connected = socket();
    rustix::net::connect(&connected, &daemon.address).unwrap();
    let mut multipath = Client::over(connected.into()).unwrap();
    let mut plain = daemon.connect();
    for client in [&mut multipath, &mut plain] {
        client.send("WHY\nWH");
        assert_eq!(client.line().as_deref(), Some("42"));
    }
    replace(&daemon);
    for client in [&mut multipath, &mut plain] {
        assert_eq!(client.ask("Y"), "42");
        assert_eq!(client.ask("QUIT"), "BYE");
        assert_eq!(client.rest(), "");
    }
    daemon.stop();
}

#[test]
fn a_socket_that_can_have_none_of_the_options_is_served() {
    // The first is std's, for an address that was in use a moment ago.
    let wrapper = [
        "strace",
        "-D",
        "-f",
        "-qq",
        "-o",
        "/dev/null",
        "-e",
        "trace=setsockopt",
        "-e",
        "inject=setsockopt:error=ENOPROTOOPT:when=2+",
    ];
    needs!(run & wrapper);
    let daemon = Daemon::start_through(&wrapper, ["--max-clients", "8", "--log", "debug"]);
    for option in ["TCP_NODELAY", "SO_KEEPALIVE", "SO_SNDBUF", "SO_OOBINLINE"] {
        daemon.log().wait_for(&format!("option={option}"));
    }
    assert_eq!(daemon.ask("WHY\n"), "42\n");
    daemon.stop();
}
