//! The way to the server: names, their addresses, and those who don't pick up.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use super::{CRITICAL, ID, OK, Outcome, PLUGIN, at_port, check, run};
use crate::support::Daemon;
use crate::support::names::{Deaf, Silent, UNSHARE_MOUNTS, alone_with_a_port, daemon_at, shown};

/// Runs the plugin where the file at `path` holds this.
fn check_with(
    path: &str,
    content: &str,
    flags: &str,
    prepare: &str,
    arguments: &[&str],
) -> Outcome {
    shown(path, content, flags, prepare, PLUGIN, |mut command| {
        command.args(arguments);
        run(command)
    })
}

#[test]
fn the_host_is_localhost_unless_named_and_ipv4_and_ipv6_can_be_chosen() {
    let daemon = Daemon::start(["--max-clients", "2", "--server-id", ID]);
    let port = daemon.address.port().to_string();
    for flag in ["-4", "--use-ipv4"] {
        assert_eq!(check(["-p", &port, flag]).status, OK);
    }
    assert_eq!(check(["--port", &port]).status, OK);
    for flag in ["-6", "--use-ipv6"] {
        let outcome = check(["-H", "127.0.0.1", "-p", &port, flag]);
        outcome.says(CRITICAL, "\"127.0.0.1\" has no IPv6 address");
    }
    check(["--hostname", "::1", "-p", &port, "-4"]).says(CRITICAL, "\"::1\" has no IPv4 address");
}

#[test]
fn ipv6_works_too() {
    if std::net::TcpListener::bind("[::1]:0").is_err() {
        crate::support::skipped("no IPv6 here");
        return;
    }
    let daemon = Daemon::start(["--listen", "[::1]:0", "--max-clients", "2"]);
    let addresses = daemon.log().wait_for("ready listen=");
    let port = addresses
        .split("[::1]:")
        .nth(1)
        .and_then(|rest| rest.split([' ', ',', '"']).next());
    let port = port.expect("its port");
    assert_eq!(check(["-H", "[::1]", "-p", port]).status, OK);
    let outcome = check(["-H", "::1", "-p", port, "-6", "-v"]);
    assert!(
        outcome.text().ends_with(&format!(", from [::1]:{port}")),
        "{outcome:?}"
    );
}

#[test]
fn a_name_without_address_is_critical() {
    needs!(run & UNSHARE_MOUNTS);
    // Without a network there is nobody to ask, and so there is no such name.
    let nobody = "nameserver 127.0.0.1\n";
    let host = "nosuch.invalid";
    let outcome = check_with("/etc/resolv.conf", nobody, "-mn", "", &["-H", host]);
    assert_eq!(outcome.status, CRITICAL);
    let said = format!("BLOCKCHAIN-TCP CRITICAL - no address of \"{host}\": ");
    let reason = outcome
        .text()
        .strip_prefix(&said)
        .unwrap_or_else(|| panic!("{outcome:?}"));
    assert!(
        reason.len() > 10 && !reason.contains("lookup"),
        "{outcome:?}"
    );
}

#[test]
fn a_lookup_that_takes_too_long_ends_at_the_time_out() {
    needs!(run & UNSHARE_MOUNTS);
    // What goes to this server comes back on the loopback interface and is nobody's.
    let silent = "nameserver 192.0.2.1\n";
    let prepare = "ip link set lo up && ip route add default dev lo &&";
    let begun = Instant::now();
    let arguments = ["-H", "ledger.example.org", "-t", "1"];
    let outcome = check_with("/etc/resolv.conf", silent, "-mn", prepare, &arguments);
    outcome.says(
        CRITICAL,
        "no address of \"ledger.example.org\" is found within 1 s",
    );
    let passed = begun.elapsed();
    assert!(
        passed >= Duration::from_secs(1) && passed < Duration::from_secs(4),
        "{passed:?}"
    );
}

#[test]
fn one_that_doesnt_pick_up_is_critical_at_the_time_out() {
    let deaf = Deaf::at(SocketAddr::from(([127, 0, 0, 1], 0)));
    let begun = Instant::now();
    let arguments = at_port(deaf.address.port())
        .into_iter()
        .chain(["-t".to_string(), "0.5".to_string()]);
    let said = format!("can't connect to {}: connection timed out", deaf.address);
    check(arguments).says(CRITICAL, &said);
    let passed = begun.elapsed();
    assert!(
        passed >= Duration::from_millis(500) && passed < Duration::from_secs(5),
        "{passed:?}"
    );
}

#[test]
fn all_addresses_of_a_name_are_tried() {
    needs!(run & UNSHARE_MOUNTS);
    let (one, other) = ([127, 66, 0, 1], [127, 77, 0, 2]);
    let hosts = "127.66.0.1 ledger\n127.77.0.2 ledger\n";
    // Whichever the system names first: the daemon is at the one, and then at the other.
    let mut missed = 0;
    for (up, down) in [(one, other), (other, one)] {
        let (_daemon, port) = daemon_at(up);
        let down = SocketAddr::from((down, port));
        let arguments = ["-H", "ledger", "-p", &port.to_string(), "-t", "4", "-vv"];
        let refused = check_with("/etc/hosts", hosts, "-m", "", &arguments);
        assert_eq!(refused.status, OK, "{refused:?}");
        let deaf = Deaf::at(down);
        let unheard = check_with("/etc/hosts", hosts, "-m", "", &arguments);
        assert_eq!(unheard.status, OK, "{unheard:?}");
        let not = |reason: &str| format!("not connected to {}: {reason}", deaf.address);
        let tells = |outcome: &Outcome, start: &str| {
            outcome.lines.iter().any(|line| line.starts_with(start))
        };
        let first = tells(&refused, &not("Connection refused"));
        assert_eq!(
            first,
            tells(&unheard, &not("connection timed out")),
            "{unheard:?}"
        );
        missed += usize::from(first);
    }
    assert_eq!(missed, 1);
}

#[test]
fn an_address_that_says_nothing_is_left_for_the_next() {
    needs!(run & UNSHARE_MOUNTS);
    let (one, other) = ([127, 66, 0, 7], [127, 77, 0, 8]);
    let hosts = "127.66.0.7 ledger\n127.77.0.8 ledger\n";
    let mut tried = 0;
    for (up, down) in [(one, other), (other, one)] {
        let (_daemon, port) = daemon_at(up);
        let silent = Silent::at(SocketAddr::from((down, port)));
        let arguments = ["-H", "ledger", "-p", &port.to_string(), "-t", "4", "-vv"];
        let outcome = check_with("/etc/hosts", hosts, "-m", "", &arguments);
        assert_eq!(outcome.status, OK, "{outcome:?}");
        let first = silent.was_tried();
        let said = format!(
            "{}: no answer to WHO within 4 s",
            SocketAddr::from((down, port))
        );
        assert_eq!(outcome.lines.contains(&said), first, "{outcome:?}");
        tried += usize::from(first);
    }
    assert_eq!(tried, 1);
}

#[test]
fn one_that_is_connected_to_itself_is_critical() {
    needs!(run & UNSHARE_MOUNTS);
    let outcome = alone_with_a_port(PLUGIN, |mut command| {
        command.args(["-H", "127.0.0.1", "-p", "50002"]);
        run(command)
    });
    let said = "can't connect to 127.0.0.1:50002: Connection refused";
    outcome.says(CRITICAL, said);
}
