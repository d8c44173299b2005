//! Flags, variables and defaults: each has the effect that `--help` says. What is wrong with them is in `refused`.

mod default_addresses;
mod refused;

use std::ffi::OsStr;
use std::net::{Ipv4Addr, SocketAddr};
use std::process::Command;

use crate::support::tables::lines;
use crate::support::*;

const ID: &str = "6f0c2a52-5f0e-4b7e-9a35-0c5f7f5a3c1e";

/// Every flag, a value that it doesn't take, and the default that --help names, if it is a value.
pub fn flags() -> Vec<(&'static str, &'static str, Option<&'static str>)> {
    let row = |row: &'static str| {
        let cells: Vec<&str> = row.split('|').map(str::trim).collect();
        let [flag, wrong, default] = cells[..] else {
            panic!("{row}");
        };
        (flag, wrong, Some(default).filter(|text| !text.is_empty()))
    };
    lines(include_str!("settings/flags.txt")).map(row).collect()
}

pub fn variable_of(flag: &str) -> String {
    let name = flag.trim_start_matches('-').replace('-', "_");
    format!("BLOCKCHAIN_TCPD_{}", name.to_uppercase())
}

/// The program with few workers on a free port, with this variable set.
fn small(variable: &str, value: impl AsRef<OsStr>) -> Command {
    let mut command = program();
    command.args(["--listen", "127.0.0.1:0", "--max-clients", "2"]);
    command.env(variable, value);
    command
}

/// What this prints.
fn printed(command: &mut Command) -> String {
    let output = command.output().expect("it runs");
    assert!(output.status.success(), "{output:?}");
    String::from_utf8(output.stdout).expect("ASCII")
}

/// Checks that a value has its effect: given by the flag, by the variable, and by the flag when the variable has another.
fn takes_effect(flag: &str, value: &str, other: &str, effect: impl Fn(Daemon)) {
    let variable = variable_of(flag);
    let few = match flag {
        "--max-clients" => ["--queue", "0"],
        _ => ["--max-clients", "2"],
    };
    for (by_flag, by_variable) in [(true, None), (false, Some(value)), (true, Some(other))] {
        let mut command = program();
        command.args(["--listen", "127.0.0.1:0"]).args(few);
        command.envs(by_variable.map(|value| (&variable, value)));
        if by_flag {
            command.args([flag, value]);
        }
        effect(Daemon::run(command));
    }
}

#[test]
fn listen_takes_several_addresses() {
    // Port 0 is another free port each time.
    for (by_flag, by_variable, hosts) in [
        ("127.0.0.1:0 127.0.0.2:0", "127.0.0.3:0", [1, 2]),
        ("", "127.0.0.1:0,127.0.0.2:0", [1, 2]),
        ("127.0.0.1:0 127.0.0.1:0", "", [1, 1]),
    ] {
        let mut command = program();
        let addresses = by_flag.split_whitespace();
        command.args(addresses.flat_map(|address| ["--listen", address]));
        command.args(["--max-clients", "4"]);
        command.env("BLOCKCHAIN_TCPD_LISTEN", by_variable);
        let daemon = Daemon::run(command);
        let listens = daemon.ready("listen");
        let addresses = listens.split(',').map(|address| address.parse().unwrap());
        let addresses: Vec<SocketAddr> = addresses.collect();
        assert_eq!(addresses.len(), 2, "{addresses:?}");
        assert_ne!(addresses[0], addresses[1]);
        // All of them lead to the same server.
        let _other = daemon.connect();
        for (address, host) in addresses.into_iter().zip(hosts) {
            assert_eq!(address.ip(), Ipv4Addr::new(127, 0, 0, host));
            assert_ne!(address.port(), 0);
            wait_until("both count", || {
                Client::connect(address).expect("it listens").ask("WHO") == "2"
            });
        }
    }
}

/// What the limits do is tested in tests/full.rs.
#[test]
fn limits_of_clients_take_effect() {
    takes_effect("--max-clients", "3", "5", |daemon| {
        assert_eq!(daemon.ready("max_clients"), "3");
        let _all = daemon.served(3);
        daemon.is_full();
    });
    takes_effect("--queue", "1", "4", |daemon| {
        assert_eq!(daemon.ready("queue"), "1");
    });
    takes_effect("--max-clients-per-address", "1", "2", |daemon| {
        let _first = daemon.served(1);
        daemon.is_full();
        let mut other = Client::connect_from([127, 0, 0, 2], daemon.address).expect("another");
        assert_eq!(other.ask("WHO"), "2");
    });
}

#[test]
fn proxy_headers_are_read_from_these_networks() {
    let both = "2001:db8::/32,127.0.0.0/8";
    for (networks, other) in [("127.0.0.1", "192.0.2.1"), (both, "192.0.2.0/24")] {
        takes_effect("--proxy-from", networks, other, |daemon| {
            assert_eq!(daemon.ask("PROXY UNKNOWN\r\nWHY\n"), "42\n");
            assert!(daemon.ask("WHY\n").starts_with("ERR BADINPUT "));
        });
    }
    let twice = ["--proxy-from", "192.0.2.0/24", "--proxy-from", "127.0.0.1"];
    assert_eq!(Daemon::start(twice).ask("PROXY UNKNOWN\r\nWHY\n"), "42\n");
}

#[test]
fn timeouts_take_effect() {
    takes_effect("--idle-timeout", "200ms", "1h", |daemon| {
        let reply = daemon.connect().rest();
        assert!(reply.starts_with("ERR TIMEOUT "), "{reply}");
    });
    takes_effect("--write-timeout", "300ms", "1h", |daemon| {
        Client::connect_narrow(daemon.address).ask_until_cut_off();
    });
    takes_effect("--drain-timeout", "200ms", "1h", |daemon| {
        let mut deaf = Client::connect_narrow(daemon.address);
        deaf.flood(&daemon, 1);
        assert_contains(&daemon.stop(), "cut off");
    });
}

/// The id that is kept in a directory.
fn kept(directory: &Scratch) -> Option<String> {
    std::fs::read_to_string(directory.path().join("server-id")).ok()
}

#[test]
fn the_id_and_its_directory_take_effect() {
    let (directory, other) = (Scratch::new(), Scratch::new());
    let [name, other_name] = [&directory, &other].map(|scratch| scratch.path().to_str().unwrap());
    takes_effect("--state-directory", name, other_name, |daemon| {
        assert_eq!(kept(&directory), Some(daemon.ask("WHERE\n")));
    });
    assert_eq!(kept(&other), None);
    let other = "1f0c2a52-5f0e-4b7e-9a35-0c5f7f5a3c1e";
    takes_effect("--server-id", ID, other, |daemon| {
        assert_eq!(daemon.ask("WHERE").trim(), ID);
    });
}

#[test]
fn systemd_may_name_the_state_directory() {
    let (first, second) = (Scratch::new(), Scratch::new());
    let both = std::env::join_paths([first.path(), second.path()]).expect("a list");
    let id = Daemon::run(small("STATE_DIRECTORY", &both)).ask("WHERE\n");
    assert_eq!((kept(&first), kept(&second)), (Some(id), None));
    // Ours takes precedence over systemd's.
    let mut command = small("STATE_DIRECTORY", first.path());
    command.env("BLOCKCHAIN_TCPD_STATE_DIRECTORY", second.path());
    let id = Daemon::run(command).ask("WHERE\n");
    assert_eq!(kept(&second), Some(id));
}

#[test]
fn the_log_is_filtered() {
    let filter = "info,blockchain_tcpd::session=debug";
    takes_effect("--log", filter, "debug", |daemon| {
        daemon.ask("WHY");
        let log = daemon.stop();
        assert_contains(&log, " DEBUG ended ");
        assert!(!log.contains("accepted connection="), "{log}");
    });
}

#[test]
fn an_empty_variable_counts_as_not_set() {
    let mut command = program();
    command.args(["--listen", "127.0.0.1:0"]);
    command.env("STATE_DIRECTORY", "");
    command.envs(flags().iter().map(|(flag, ..)| (variable_of(flag), "")));
    let daemon = Daemon::run(command);
    let ready = ["cluster", "max_clients", "queue"].map(|key| daemon.ready(key));
    assert_eq!(ready, ["none", "1024", "128"]);
    assert_contains(&daemon.stop(), "there is no --state-directory");
    let help = printed(small("BLOCKCHAIN_TCPD_LISTEN", "").arg("--help"));
    assert_contains(&help, "127.0.0.1:4242");
}

#[test]
fn a_flag_takes_precedence_over_a_variable_that_is_no_text() {
    let mut command = small("BLOCKCHAIN_TCPD_LOG", "a\tb");
    command.args(["--log", "info"]);
    Daemon::run(command).stop();
    printed(small("BLOCKCHAIN_TCPD_LOG", "a\tb").arg("--help"));
}

#[test]
fn output_that_cannot_be_written_is_an_error_unless_nobody_reads_it() {
    let cannot = "blockchain-tcpd: can't write to standard output: ";
    // Closed, it is as good as full.
    for (option, output, error) in [
        ("--version", ">/dev/full", "No space left"),
        ("--version", ">&-", "Bad file descriptor"),
        ("--help", ">&-", "Bad file descriptor"),
    ] {
        let mut command = clean("sh");
        command.args(["-c", &format!("exec \"$@\" {output}"), "sh"]);
        command.arg(program().get_program()).arg(option);
        let said = fails_with(command, 71, &[error]);
        assert!(said.starts_with(cannot) && said.lines().count() == 1);
    }
    let (reader, writer) = std::io::pipe().expect("a pipe");
    drop(reader);
    let status = program().arg("--version").stdout(writer).status();
    assert!(status.expect("it runs").success());
}

/// A variable without effect may be mistyped, and so may the one that asks for the cluster.
#[test]
fn a_variable_without_effect_is_named_in_the_log() {
    let mistyped = "BLOCKCHAIN_TCPD_MAXCLIENTS";
    let log = Daemon::run(small(mistyped, "7")).stop();
    let expected = format!("unknown setting (--help lists all) variable={mistyped}");
    assert_contains(&log, &expected);
    assert!(!log.contains("without --cluster"), "{log}");
    let command = small("BLOCKCHAIN_TCPD_ADVERTISE", "192.0.2.1:4280");
    assert_contains(&Daemon::run(command).stop(), "without --cluster");
}

#[test]
fn help_names_every_flag_and_variable_with_its_default() {
    let help = printed(program().arg("--help"));
    let help = help.split_whitespace().collect::<Vec<_>>().join(" ");
    // A value that may be left out.
    let help = help.replace("[=<", " <");
    let readme = include_str!("../README.md");
    let sections = help.split(" --").skip(1);
    let mut sections = sections.filter(|section| section.contains(" <"));
    for (flag, _, default) in flags() {
        let section = sections.next().expect("a section for each");
        let (name, value) = section.split_once(" <").expect("it takes a value");
        assert_eq!(format!("--{name}"), flag, "in this order");
        let variable = variable_of(flag);
        assert_contains(section, &format!("[env: {variable}]"));
        let named = default.map_or(String::new(), |default| format!("{default}]"));
        assert_contains(section, &format!("[default: {named}"));
        let unit = value.split('>').next().unwrap_or_default();
        let row = format!("| `{flag} {unit}` | `{variable}` | ");
        let row = readme.lines().find_map(|line| line.strip_prefix(&row));
        let row = row.unwrap_or_else(|| panic!("README.md has no row for {flag} {unit}"));
        let first = default.and_then(|default| default.split(' ').next());
        assert_contains(row, first.unwrap_or_default());
    }
    assert_eq!(sections.next(), None);
    let statuses = "64 wrong usage|71 system error|78 wrong configuration";
    for part in statuses.split('|').chain(["500ms, 10s, 5m, 1h"]) {
        assert_contains(&help, part);
    }
}

#[test]
fn version_is_that_of_the_package() {
    let version = concat!("blockchain-tcpd ", env!("CARGO_PKG_VERSION"), "\n");
    assert_eq!(printed(program().arg("--version")), version);
}
