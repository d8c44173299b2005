//! PROXY headers: whose connection it is, which networks are trusted with them, and what a wrong or missing one leads to.
//!
//! 127.0.0.0/24 is trusted, the other addresses of this machine are not.

use std::net::{Ipv4Addr, SocketAddr};
use std::time::{Duration, Instant};

use crate::handover::{replace, times};
use crate::protocol::proves;
use crate::support::http::get;
use crate::support::kernel::shell;
use crate::support::{Client, Daemon, program, skipped, unknown, wait_until};

/// A daemon that trusts the addresses that [`Daemon::connect`] comes from.
fn daemon(arguments: &[&str]) -> Daemon {
    let common = ["--proxy-from", "127.0.0.0/24", "--http", "127.0.0.1:0"];
    let few = ["--max-clients", "16", "--log", "debug"];
    Daemon::start(common.iter().chain(&few).chain(arguments))
}

/// A client that isn't trusted, and needs no header.
fn plain(daemon: &Daemon) -> Client {
    Client::connect_from(Ipv4Addr::new(127, 0, 1, 1), daemon.address).expect("it accepts")
}

/// A header of version 1.
fn text(peer: &str) -> Vec<u8> {
    let peer: SocketAddr = peer.parse().expect("an address");
    let (family, to) = match peer {
        SocketAddr::V4(_) => ("TCP4", "198.51.100.1"),
        SocketAddr::V6(_) => ("TCP6", "2001:db8::ffff"),
    };
    let (ip, port) = (peer.ip(), peer.port());
    format!("PROXY {family} {ip} {to} {port} 4243\r\n").into_bytes()
}

/// A header of version 2 with this command and family.
fn binary(command: u8, family: u8, body: &[u8]) -> Vec<u8> {
    let length = (body.len() as u16).to_be_bytes();
    let start = b"\r\n\r\n\0\r\nQUIT\n";
    [start, &[command, family][..], &length, body].concat()
}

/// The same for a client of this address.
fn passed_on(peer: &str) -> Vec<u8> {
    let peer: SocketAddr = peer.parse().expect("an address");
    let (family, mut body) = match peer {
        SocketAddr::V4(peer) => (0x11, [peer.ip().octets(), [198, 51, 100, 1]].concat()),
        SocketAddr::V6(peer) => (0x21, [peer.ip().octets(), [0xfd; 16]].concat()),
    };
    body.extend(peer.port().to_be_bytes());
    body.extend(4243_u16.to_be_bytes());
    binary(0x21, family, &body)
}

fn local() -> Vec<u8> {
    binary(0x20, 0, &[])
}

/// Connects, and sends this first.
fn begin(daemon: &Daemon, header: impl AsRef<[u8]>) -> Client {
    let mut client = daemon.connect();
    client.send(header);
    client
}

/// The sum of the samples that begin so, after `blockchain_tcpd_`.
fn metric(daemon: &Daemon, start: &str) -> f64 {
    let text = get(daemon.http(), "/metrics").body;
    let start = format!("blockchain_tcpd_{start}");
    let values = text.lines().filter(|line| line.starts_with(&start));
    let values = values.map(|line| line.rsplit(' ').next().unwrap().parse::<f64>().unwrap());
    let values: Vec<f64> = values.collect();
    assert!(!values.is_empty(), "no {start} in {text}");
    values.iter().sum()
}

/// Waits until such a client is admitted.
fn wait_for_room(daemon: &Daemon, header: &[u8]) {
    wait_until("there is room", || {
        let mut client = begin(daemon, header);
        client.send("PING\n");
        client.whatever_line() == "PONG\n"
    });
}

/// All clients of a link, and all of IPv4 behind a translator, are in one network of 64 bits, and are many all the same.
#[test]
fn the_limit_of_an_address_is_that_of_a_network_only_where_one_client_has_it() {
    let daemon = daemon(&["--max-clients-per-address", "1"]);
    for (one, other, is_other) in [
        ("[fe80::1]:1", "[fe80::2]:1", true),
        ("[64:ff9b::192.0.2.1]:1", "[64:ff9b::192.0.2.2]:1", true),
        ("[64:ff9b:1::192.0.2.1]:1", "[64:ff9b:1::192.0.2.2]:1", true),
        ("[2001:db8::1]:1", "[2001:db8::2]:1", false),
        ("192.0.2.1:1", "[::ffff:192.0.2.1]:1", false),
    ] {
        let mut first = begin(&daemon, passed_on(one));
        assert_eq!(first.ask("WHY"), "42", "{one}");
        let again = begin(&daemon, passed_on(one)).rest();
        assert!(again.starts_with("ERR BUSY "), "{one}: {again}");
        let mut second = begin(&daemon, passed_on(other));
        second.send("WHY\n");
        let said = second.line().unwrap_or_default();
        assert_eq!(said == "42", is_other, "{other}: {said}");
    }
}

#[test]
fn a_connection_from_a_trusted_network_must_name_its_client_and_no_other_may() {
    proves(
        r#"A connection from a network that the server was told to trust (`--proxy-from`) must begin with a header of the
        [PROXY protocol](https://www.haproxy.org/download/2.6/doc/proxy-protocol.txt), version 1 or 2; from everyone else a header
        is a request like any other, and a bad one."#,
    );
    let daemon = daemon(&[]);
    for header in [text("192.0.2.1:1"), passed_on("192.0.2.1:1")] {
        assert_eq!(begin(&daemon, &header).ask("WHY"), "42");
    }
    let mut untrusted = plain(&daemon);
    untrusted.send(text("192.0.2.1:1"));
    assert_eq!(untrusted.line(), Some(unknown("PROXY")));
    assert_eq!(untrusted.ask("WHY"), "42");
    // It is made to look like a word that ends connections of many protocols; of ours, too.
    untrusted.send(passed_on("192.0.2.1:1"));
    let bad = r#"ERR BADINPUT not printable ASCII: "\x00""#;
    assert_eq!(untrusted.rest(), format!("{bad}\nBYE\n"));
    let manual = include_str!("../man/blockchain-tcpd.8");
    assert!(manual.contains(r#".Ql ERR BADINPUT not printable ASCII: \(dq\ex00\(dq"#));
    assert_eq!(plain(&daemon).ask("WHY"), "42");
    assert!(daemon.ask("WHY\n").starts_with("ERR BADINPUT "));
    let log = daemon.stop();
    let from = |peer: &str| log.matches(&format!(" accepted connection={peer}")).count();
    assert_eq!(from("1 peer=192.0.2.1:1"), 1, "{log}");
    assert_eq!(from("3 peer=127.0.1.1:"), 1, "{log}");
    // Without the setting no network is trusted.
    let daemon = Daemon::start(["--max-clients", "2"]);
    assert!(daemon.ask(text("192.0.2.1:1")).starts_with("ERR UNKNOWN "));
}

#[test]
fn the_client_has_the_address_that_the_header_names() {
    proves(
        r#"The address that the header names as the source is the client's, for the limit of one address too; if it names none of
        TCP (`UNKNOWN`, `UNSPEC`, datagrams, sockets of Unix), it is that of the connection."#,
    );
    let limited = daemon(&["--max-clients-per-address", "1"]);
    let mut first = begin(&limited, text("192.0.2.1:1"));
    assert_eq!(first.ask("WHO"), "1");
    for same in ["192.0.2.1:2", "[::ffff:192.0.2.1]:2"] {
        let busy = "ERR BUSY the limit of 1 clients for an address is reached\n";
        assert_eq!(begin(&limited, passed_on(same)).rest(), busy, "{same}");
    }
    let mut other = begin(&limited, passed_on("192.0.2.2:1"));
    assert_eq!(other.ask("WHO"), "2");
    drop(first);
    wait_for_room(&limited, &text("192.0.2.1:3"));

    let daemon = daemon(&[]);
    let datagram = passed_on("192.0.2.9:9");
    let datagram = [&datagram[..13], &[0x12], &datagram[14..]].concat();
    let unknown_with_more = b"PROXY UNKNOWN 192.0.2.9 ::1 1 2\r\n";
    let headers = [
        (text("192.0.2.1:56324"), "192.0.2.1:56324"),
        (text("[2001:db8::7]:1"), "[2001:db8::7]:1"),
        (passed_on("192.0.2.2:65535"), "192.0.2.2:65535"),
        (passed_on("[2001:db8::8]:80"), "[2001:db8::8]:80"),
        (b"PROXY UNKNOWN\r\n".to_vec(), "127.0.0.1:"),
        (unknown_with_more.to_vec(), "127.0.0.1:"),
        (binary(0x21, 0, &[]), "127.0.0.1:"),
        (datagram, "127.0.0.1:"),
        (binary(0x21, 0x31, &[b'/'; 216]), "127.0.0.1:"),
    ];
    for (number, (header, peer)) in headers.into_iter().enumerate() {
        let mut client = begin(&daemon, header);
        assert_eq!(client.ask("WHO"), "1", "{peer}");
        client.shutdown();
        assert_eq!(client.rest(), "");
        let connection = format!("connection={} peer={peer}", number + 1);
        daemon.log().wait_for(&format!(" accepted {connection}"));
        daemon.log().wait_for(&format!(" ended {connection}"));
    }
    let passed_on = " passed on connection=1 proxy=127.0.0.1:";
    let log = daemon.stop();
    assert!(log.contains(passed_on), "{log}");
}

#[test]
fn it_counts_from_when_its_header_is_whole_and_no_byte_behind_it_is_lost() {
    proves(
        r#"Such a client counts from when its header is whole, and what it has sent behind the header are its first requests."#,
    );
    let daemon = daemon(&[]);
    let mut watching = plain(&daemon);
    for header in [text("192.0.2.1:1"), passed_on("[2001:db8::1]:1")] {
        let mut client = daemon.connect();
        let (last, before) = header.split_last().expect("bytes");
        for byte in before {
            client.send([*byte]);
            assert_eq!(watching.ask("WHO"), "1");
        }
        client.send([*last]);
        assert_eq!(client.ask("WHO"), "2");
        drop(client);
        let mut wait = || wait_until("it has gone", || watching.ask("WHO") == "1");
        wait();

        let requests = [&header[..], &b"WHO\nWHY\n".repeat(500), b"PING\nWHY"].concat();
        let replies = ["2\n42\n".repeat(500), "PONG\n42\n".to_string()].concat();
        // In one packet, with the end of its input.
        assert_eq!(daemon.ask(&requests), replies);
        wait();
        // Cut anywhere within the header and behind it.
        for cut in 1..header.len() + 6 {
            let mut client = begin(&daemon, &requests[..cut]);
            client.send(&requests[cut..header.len() + 8]);
            client.shutdown();
            assert_eq!(client.rest(), "2\n42\n", "{cut}");
            wait();
        }
        // Only the first is a header.
        let twice = [&header[..], &header, b"\nWHY"].concat();
        assert!(daemon.ask(twice).starts_with("ERR "));
        wait();
    }
    daemon.stop();
}

#[test]
fn a_load_balancers_own_connections_are_served_and_do_not_count() {
    proves(
        r#"A connection whose header says `LOCAL` is served, and never counts; while there are eight of them, another is answered
        `ERR BUSY`."#,
    );
    let daemon = daemon(&["--max-clients-per-address", "2"]);
    let mut client = begin(&daemon, text("192.0.2.1:1"));
    // Its family and addresses are ignored.
    let with_more = binary(0x20, 0x11, &[0; 40]);
    let mut checks: Vec<Client> = (0..7).map(|_| begin(&daemon, local())).collect();
    checks.push(begin(&daemon, with_more));
    for check in &mut checks {
        assert_eq!(check.ask("WHO"), "1");
        assert_eq!(check.ask("PING"), "PONG");
    }
    assert_eq!(client.ask("WHO"), "1");
    assert_eq!(metric(&daemon, "clients "), 1.0);
    let busy = "ERR BUSY the limit of 8 uncounted connections is reached\n";
    assert_eq!(begin(&daemon, local()).rest(), busy);
    let refused = "connections_refused_total{reason=\"uncounted\"} ";
    assert_eq!(metric(&daemon, refused), 1.0);
    drop(checks.pop());
    wait_for_room(&daemon, &local());
    drop((checks, client));
    wait_until("every accepted connection is counted as ended", || {
        let ended = ["connections_closed_total{", "connections_refused_total{"];
        let ended: f64 = ended.map(|start| metric(&daemon, start)).iter().sum();
        metric(&daemon, "connections_accepted_total ") == ended
    });
    daemon.stop();
}

#[test]
fn what_is_wrong_with_a_header_is_answered_counted_and_logged() {
    proves(
        r#"A header that is missing, malformed, longer than 107 bytes (version 1) or 536 (version 2), or not whole within 3 seconds
        is answered `ERR BADINPUT`, and then the server closes."#,
    );
    let daemon = daemon(&[]);
    let begun = Instant::now();
    let mut silent = daemon.connect();
    let mut slow = begin(&daemon, &text("192.0.2.1:1")[..20]);
    let missing = "a connection from your address must begin with a PROXY header";
    let malformed = "the PROXY header is malformed";
    let too_long = "the PROXY header is too long";
    let header = passed_on("192.0.2.1:1");
    let version_1 = |rest: &str| format!("PROXY {rest}\r\nWHY\n").into_bytes();
    for (header, why) in [
        (b"WHY\n".to_vec(), missing),
        (b"GET / HTTP/1.1\r\n\r\n".to_vec(), missing),
        (b"\x16\x03\x01".to_vec(), missing),
        (b"\n".to_vec(), missing),
        (b"PP".to_vec(), missing),
        (b"PROXY TCP4 1.2.3.4\nWHY\n".to_vec(), malformed),
        (version_1("TCP4 1.2.3.4 1.2.3.5 1 x"), malformed),
        ([&header[..12], b"\x31"].concat(), malformed),
        (version_1(&format!("UNKNOWN {}", "x".repeat(92))), too_long),
        (binary(0x21, 0x11, &[0; 521]), too_long),
        (binary(0x20, 0, &[0; 521])[..16].to_vec(), too_long),
    ] {
        let said = begin(&daemon, &header).rest();
        let header = header.escape_ascii();
        assert_eq!(said, format!("ERR BADINPUT {why}\n"), "{header}");
    }
    // It ends in the middle.
    for cut in [1, 15, header.len() - 1] {
        let said = daemon.ask(&header[..cut]);
        assert_eq!(said, format!("ERR BADINPUT {malformed}\n"));
    }
    // As long as one may be.
    let longest = version_1(&format!("UNKNOWN {}", "x".repeat(91)));
    assert_eq!(daemon.ask(longest), "42\n");
    let longest = [binary(0x21, 0, &[0; 520]), b"WHY".to_vec()].concat();
    assert_eq!(daemon.ask(longest), "42\n");

    let late = "ERR BADINPUT the PROXY header did not come in time\n";
    assert_eq!(silent.rest(), late);
    assert_eq!(slow.rest(), late);
    let elapsed = begun.elapsed();
    assert!(elapsed > Duration::from_millis(2900), "{elapsed:?}");
    for (reason, count) in [
        ("header_missing", 5.0),
        ("header_malformed", 6.0),
        ("header_too_long", 3.0),
        ("header_late", 2.0),
    ] {
        let sample = format!("connections_refused_total{{reason=\"{reason}\"}} ");
        assert_eq!(metric(&daemon, &sample), count, "{reason}");
    }
    // A client that only tries the port is no error.
    let left = || metric(&daemon, "connections_closed_total{reason=\"left\"} ");
    let before = left();
    drop(daemon.connect());
    wait_until("it has gone", || left() == before + 1.0);
    let log = daemon.stop();
    let said = "WARN  connections without a right PROXY header are closed reason=";
    assert_eq!(log.matches(said).count(), 1, "{log}");
    let first = format!("{said}\"from 127.0.0.1: {missing}\"");
    assert!(log.contains(&first), "{log}");
    let over = "over: connections without a right PROXY header are closed times=16";
    assert!(log.contains(over), "{log}");
}

/// With few descriptors, so that there is little room; neither untrusted connections nor those with a header notice anything.
#[test]
fn connections_that_send_no_header_keep_no_client_out() {
    proves(
        r#"When too many have not sent their header yet, the one that has waited longest is answered `ERR BUSY`."#,
    );
    let daemon = Daemon::start_through(
        &shell("ulimit -n 256 || exit"),
        "--proxy-from 127.0.0.1 --http 127.0.0.1:0 --max-clients 16".split(' '),
    );
    let mut plain = plain(&daemon);
    let mut silent: Vec<Client> = Vec::new();
    let begun = Instant::now();
    for _ in 0..40 {
        silent.push(begin(&daemon, "PROXY "));
        assert_eq!(begin(&daemon, passed_on("192.0.2.1:1")).ask("WHY"), "42");
        assert_eq!(plain.ask("WHY"), "42");
    }
    // On a machine that has no time, theirs may be over.
    let in_time = begun.elapsed() < Duration::from_secs(2);
    for one in &mut silent[..20] {
        let said = one.rest();
        let crowded = said.starts_with("ERR BUSY ") && said.contains("without a PROXY header");
        assert!(crowded || !in_time, "{said}");
    }
    silent[39].send("UNKNOWN\r\n");
    assert!(silent[39].ask("WHY") == "42" || !in_time);
    let refused = "connections_refused_total{reason=\"before_header\"} ";
    let refused = metric(&daemon, refused);
    assert!(refused >= 20.0 || !in_time, "{refused}");
    daemon.stop();
}

#[test]
fn a_new_program_goes_on_with_a_header_that_is_not_whole() {
    let daemon = daemon(&[]);
    let mut silent = daemon.connect();
    let mut check = begin(&daemon, local());
    assert_eq!(check.ask("WHO"), "0");
    let mut known = begin(&daemon, text("192.0.2.7:7"));
    assert_eq!(known.ask("WHO"), "1");
    for header in [text("192.0.2.1:1"), passed_on("192.0.2.1:1")] {
        let mut client = daemon.connect();
        for part in header.chunks(16) {
            client.send(part);
            replace(&daemon);
        }
        assert_eq!(client.ask("WHY"), "42");
        assert_eq!(client.ask("WHO"), "2");
        client.send("QUIT\n");
        assert_eq!(client.rest(), "BYE\n");
        wait_until("it has gone", || known.ask("WHO") == "1");
    }
    // It never counts, in no process.
    assert_eq!(check.ask("WHO"), "1");
    // Its time begins anew in each process.
    silent.send([&passed_on("192.0.2.8:8")[..], b"WHO\n"].concat());
    assert_eq!(silent.line().as_deref(), Some("2"));
    drop(known);
    daemon.log().wait_for(" peer=192.0.2.7:7 seconds=");
    // While they come without pause.
    let mut coming: Vec<Client> = Vec::new();
    daemon.signal("USR2");
    for number in 0..10 {
        let header = passed_on(&format!("192.0.2.1:{number}"));
        coming.push(begin(&daemon, &header[..10]));
        coming[number].send(&header[10..]);
    }
    wait_until("it is replaced", || times(&daemon, "ready listen=") > 6);
    for client in &mut coming {
        assert_eq!(client.ask("WHY"), "42");
    }
    let log = daemon.stop();
    assert!(!log.contains("ERROR"), "{log}");
}

#[test]
fn a_stop_answers_the_clients_whose_header_has_come_and_closes_the_others() {
    let mut daemon = daemon(&[]);
    let mut silent = daemon.connect();
    let mut half = begin(&daemon, "PROXY TCP4");
    let mut whole = begin(&daemon, [&text("192.0.2.1:1")[..], b"WHY\n"].concat());
    assert_eq!(whole.line().as_deref(), Some("42"));
    whole.send("PING\n");
    let mut just_come = begin(&daemon, "PROXY UNKN");
    just_come.send("OWN\r\nWHY\n");
    daemon.signal("TERM");
    assert_eq!(whole.rest(), "PONG\n");
    assert_eq!(just_come.rest(), "42\n");
    for client in [&mut silent, &mut half] {
        assert_eq!(client.whatever_comes(), "");
    }
    assert!(daemon.wait().success());
    // The stop waited for no header's time to be over.
    let log = daemon.log().whole();
    assert!(!log.contains("without a right PROXY header"), "{log}");
}

/// On a socket for both versions, IPv4 addresses look like IPv6.
#[test]
fn a_network_of_ipv4_is_known_on_a_socket_of_ipv6() {
    if std::net::TcpListener::bind("[::ffff:127.0.0.1]:0").is_err() {
        skipped("no IPv6 here");
        return;
    }
    let mut command = program();
    let arguments = "--listen [::ffff:127.0.0.1]:0 --max-clients 4 --log debug";
    command.args(arguments.split(' '));
    command.args(["--proxy-from", "::1,127.0.0.1"]);
    let daemon = Daemon::run(command);
    let address = SocketAddr::from((Ipv4Addr::LOCALHOST, daemon.address.port()));
    let mut client = Client::connect(address).expect("it accepts");
    client.send(text("192.0.2.1:1"));
    assert_eq!(client.ask("WHO"), "1");
    let log = daemon.stop();
    for said in [
        " passed on connection=1 proxy=[::ffff:127.0.0.1]:",
        " accepted connection=1 peer=192.0.2.1:1",
    ] {
        assert!(log.contains(said), "{log}");
    }
}
