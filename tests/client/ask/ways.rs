//! Which server is asked: its name, its addresses.

use std::io::Write as _;
use std::net::{SocketAddr, TcpListener};
use std::process::{Command, Stdio};

use super::{ask, start};
use crate::client::HINT;
use crate::client::ran;
use crate::support::names::{Deaf, Silent, UNSHARE_MOUNTS, alone_with_a_port, daemon_at, shown};
use crate::support::{Daemon, Scratch};

const CLIENT: &str = CLIENT.as_str();

#[test]
fn the_server_is_localhost_at_4242_unless_named() {
    // Alone in a network of its own.
    let hosts = "127.0.0.1 localhost\n";
    needs!(run & UNSHARE_MOUNTS);
    for variable in [None, Some("")] {
        let ran = shown("/etc/hosts", hosts, "-mn", "", CLIENT, |mut command| {
            command.arg("who");
            variable.map(|value| command.env("BLOCKCHAIN_TCP_SERVER", value));
            ran(command.output().expect("it runs"))
        });
        let said = "blockchain-tcp: can't connect to 127.0.0.1:4242: ";
        assert!(ran.errors.starts_with(said), "{ran:?}");
        assert_eq!(ran.status, 69);
    }
}

#[test]
fn ipv4_and_ipv6_can_be_chosen() {
    let daemon = start();
    for flag in ["-4", "--use-ipv4"] {
        ask(daemon.address, &format!("{flag} why")).is("42");
    }
    for flag in ["-6", "--use-ipv6"] {
        let ran = ask(daemon.address, &format!("{flag} why"));
        ran.fails(69, "blockchain-tcp: \"127.0.0.1\" has no IPv6 address");
    }
    ask("[::1]:4242", "-4 why").fails(69, "blockchain-tcp: \"::1\" has no IPv4 address");
    if TcpListener::bind("[::1]:0").is_err() {
        crate::support::skipped("no IPv6 here");
        return;
    }
    // As the only address, which is the first.
    let mut command = crate::support::program();
    command.args(["--listen", "[::1]:0", "--max-clients", "2"]);
    let daemon = Daemon::run(command);
    let server = daemon.address.to_string();
    assert!(server.starts_with("[::1]:"), "{server}");
    ask(&server, "why").is("42");
    ask(&server, "-6 why").is("42");
}

#[test]
fn a_name_without_address_is_69() {
    needs!(run & UNSHARE_MOUNTS);
    // Without a network there is nobody to ask, and so there is no such name.
    let nobody = "nameserver 127.0.0.1\n";
    let ran = shown(
        "/etc/resolv.conf",
        nobody,
        "-mn",
        "",
        CLIENT,
        |mut command| {
            command.args(["-s", "nosuch.invalid", "who"]);
            ran(command.output().expect("it runs"))
        },
    );
    let said = "blockchain-tcp: no address of \"nosuch.invalid\": ";
    assert!(ran.errors.starts_with(said), "{ran:?}");
    assert_eq!((ran.status, ran.output.as_str()), (69, ""));
}

/// Whichever the system names first: the daemon is at the one, and then at the other.
#[test]
fn all_addresses_of_a_name_are_tried() {
    needs!(run & UNSHARE_MOUNTS);
    let (one, other) = ([127, 66, 0, 3], [127, 77, 0, 4]);
    let hosts = "127.66.0.3 ledger\n127.77.0.4 ledger\n";
    for (up, down) in [(one, other), (other, one)] {
        let (_daemon, port) = daemon_at(up);
        let ask = || {
            let server = format!("ledger:{port}");
            shown("/etc/hosts", hosts, "-m", "", CLIENT, |mut command| {
                command.args(["-s", &server, "-t", "4s", "why"]);
                ran(command.output().expect("it runs"))
            })
        };
        ask().is("42");
        let _deaf = Deaf::at(SocketAddr::from((down, port)));
        ask().is("42");
    }
}

/// Also one that lets everybody in and never says anything: whichever the system names first.
#[test]
fn an_address_that_says_nothing_is_left_for_the_next() {
    needs!(run & UNSHARE_MOUNTS);
    let (one, other) = ([127, 66, 0, 5], [127, 77, 0, 6]);
    let hosts = "127.66.0.5 ledger\n127.77.0.6 ledger\n";
    let mut tried = 0;
    for (up, down) in [(one, other), (other, one)] {
        let (_daemon, port) = daemon_at(up);
        let silent = Silent::at(SocketAddr::from((down, port)));
        let server = format!("ledger:{port}");
        let run = |words: &str, input: &str| {
            shown("/etc/hosts", hosts, "-m", "", CLIENT, |mut command| {
                command.args(["-s", &server, "-t", "1500ms"]);
                command
                    .args(words.split_whitespace())
                    .env("HOME", "/nonexistent");
                let piped = command.stdin(Stdio::piped()).stdout(Stdio::piped());
                let mut child = piped.stderr(Stdio::piped()).spawn().expect("it runs");
                let mut keyboard = child.stdin.take().expect("a pipe");
                keyboard.write_all(input.as_bytes()).expect("it reads");
                drop(keyboard);
                ran(child.wait_with_output().expect("it ends"))
            })
        };
        run("why", "").is("42");
        let first = silent.was_tried();
        tried += usize::from(first);
        let measured = run("bench -d 100ms -c 1", "");
        assert_eq!(measured.status, 0, "{measured:?}");
    }
    assert_eq!(tried, 1);
}

/// A lookup may take a whole time-out, which a server that says nothing has taken already.
#[test]
fn a_conversation_looks_for_no_more_addresses_when_the_only_one_says_nothing() {
    needs!(run & UNSHARE_MOUNTS);
    let (_daemon, port) = daemon_at([127, 66, 0, 7]);
    let silent = TcpListener::bind(SocketAddr::from(([127, 77, 0, 8], port))).expect("a free port");
    let scratch = Scratch::new();
    let hosts = scratch.path().join("hosts");
    std::fs::write(&hosts, "127.77.0.8 ledger\n").expect("a scratch file");
    let prepare = format!("mount --bind {} /etc/hosts &&", hosts.display());
    let run = |mut command: Command| {
        command.args(["-s", &format!("ledger:{port}"), "-t", "3s", "connect"]);
        command.env("HOME", "/nonexistent").stdin(Stdio::piped());
        let piped = command.stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = piped.spawn().expect("it runs");
        let mut keyboard = child.stdin.take().expect("a pipe");
        keyboard.write_all(b"why\n").expect("it reads");
        drop(keyboard);
        let _connected = silent.accept().expect("a client");
        // Whoever looks for the name again finds one that answers.
        std::fs::write(&hosts, "127.66.0.7 ledger\n").expect("a scratch file");
        ran(child.wait_with_output().expect("it ends"))
    };
    let ran = shown("/etc/hosts", "", "-m", &prepare, CLIENT, run);
    ran.fails(69, "blockchain-tcp: no answer to why within 3 s");
}

#[test]
fn one_that_is_connected_to_itself_is_refused() {
    needs!(run & UNSHARE_MOUNTS);
    // The one request would be answered by itself, the other by no blockchain-tcpd.
    for words in ["later", "ping", "bench -d 100ms", "watch", "connect"] {
        let ran = alone_with_a_port(CLIENT, |mut command| {
            command
                .args(["-s", "127.0.0.1:50002"])
                .args(words.split(' '));
            ran(command.output().expect("it runs"))
        });
        let said = "can't connect to 127.0.0.1:50002: Connection refused";
        ran.fails(69, &format!("blockchain-tcp: {said}\n{HINT}"));
    }
}
