//! Flags, variables and defaults: each has the effect that `--help` says. What is wrong with them is in `refused`.

mod default_addresses;
mod refused;

use std::process::Command;

use crate::support::{Client, Daemon, Scratch, clean, field, program, run_to_end, wait_until};

const ID: &str = "6f0c2a52-5f0e-4b7e-9a35-0c5f7f5a3c1e";

/// Every flag, a value that it doesn't take, and the default that --help names, if it is a value.
pub const FLAGS: [(&str, &str, Option<&str>); 25] = [
    (
        "--listen",
        "localhost:4242",
        Some("127.0.0.1:4242 [::1]:4242"),
    ),
    ("--commands", "calc", Some("server")),
    ("--max-clients", "0", Some("1024")),
    ("--queue", "many", Some("128")),
    ("--max-clients-per-address", "-1", Some("0")),
    ("--proxy-from", "10.1.2.3/8", None),
    ("--idle-timeout", "5", Some("5m")),
    ("--write-timeout", "0s", Some("10s")),
    ("--drain-timeout", "-3s", Some("30s")),
    ("--drain-notice", "soon", Some("0s")),
    ("--http", "4280", Some("127.0.0.1:4280")),
    ("--cluster", "", None),
    ("--cluster-name", "", Some("default")),
    ("--cluster-heartbeat", "49ms", Some("500ms")),
    ("--cluster-user-file", "", None),
    ("--cluster-password-file", "", None),
    ("--cluster-ca-file", "", None),
    ("--cluster-certificate-file", "", None),
    ("--cluster-key-file", "", None),
    ("--cluster-sentinel-user-file", "", None),
    ("--cluster-sentinel-password-file", "", None),
    ("--advertise", "here:4280", None),
    ("--state-directory", "", None),
    ("--server-id", "00000000-0000-0000-0000-000000000000", None),
    ("--log", "inof", Some("info")),
];

pub fn variable_of(flag: &str) -> String {
    let name = flag.trim_start_matches('-').replace('-', "_");
    format!("BLOCKCHAIN_TCPD_{}", name.to_uppercase())
}

/// The program with few workers on a free port.
fn small() -> Command {
    let mut command = program();
    command.args(["--listen", "127.0.0.1:0"]);
    command
}

/// Whether a value has its effect: given by the flag, by the variable, and by the flag when the variable says
/// something else.
fn takes_effect(flag: &str, value: &str, other: &str, effect: impl Fn(Daemon)) {
    let variable = variable_of(flag);
    let few: &[&str] = match flag {
        "--max-clients" => &["--queue", "0"],
        _ => &["--max-clients", "2"],
    };
    let mut by_flag = small();
    by_flag.args(few).args([flag, value]);
    effect(Daemon::run(by_flag));
    let mut by_variable = small();
    by_variable.args(few).env(&variable, value);
    effect(Daemon::run(by_variable));
    let mut by_both = small();
    by_both.args(few).args([flag, value]).env(&variable, other);
    effect(Daemon::run(by_both));
}

/// Connects so many that stay and are not refused, and then one that is.
fn is_full_with(daemon: &Daemon, clients: usize) -> Vec<Client> {
    let mut stay: Vec<Client> = Vec::new();
    // Where some wait, one that idles makes room after half a second, which may be too soon on a slow machine.
    wait_until(&format!("full with {clients}"), || {
        stay.clear();
        stay.extend((0..clients).map(|_| daemon.connect()));
        let mut one_more = daemon.connect();
        one_more.shutdown();
        let refused = one_more.whatever_comes().starts_with("ERR BUSY ");
        stay[0].send("WHO\n");
        refused && stay[0].whatever_line().trim() == clients.to_string()
    });
    stay
}

#[test]
fn listen_takes_several_addresses() {
    let ask = |address: &str| {
        let mut client = Client::connect(address.parse().expect("an address")).expect("it listens");
        client.ask("WHO")
    };
    let addresses = |command: Command| {
        let daemon = Daemon::run(command);
        let ready = daemon.log().wait_for("ready listen=");
        let addresses = field(&ready, "listen");
        let addresses: Vec<String> = addresses.split(',').map(str::to_string).collect();
        // All of them lead to the same server.
        let _other = daemon.connect();
        for address in &addresses {
            wait_until("both count", || ask(address) == "2");
        }
        addresses
    };
    let mut by_flag = small();
    by_flag.args(["--listen", "127.0.0.2:0", "--max-clients", "4"]);
    by_flag.env("BLOCKCHAIN_TCPD_LISTEN", "127.0.0.3:0");
    let mut by_variable = program();
    by_variable.args(["--max-clients", "4"]);
    by_variable.env("BLOCKCHAIN_TCPD_LISTEN", "127.0.0.1:0,tcp://127.0.0.2:0");
    for command in [by_flag, by_variable] {
        let addresses = addresses(command);
        assert_eq!(addresses.len(), 2, "{addresses:?}");
        assert!(addresses[0].starts_with("127.0.0.1:"), "{addresses:?}");
        assert!(addresses[1].starts_with("127.0.0.2:"), "{addresses:?}");
    }
    // Port 0 is another free port each time, and the ready line names it.
    let mut twice = small();
    twice.args(["--listen", "127.0.0.1:0", "--max-clients", "4"]);
    let addresses = addresses(twice);
    assert_eq!(addresses.len(), 2, "{addresses:?}");
    assert_ne!(addresses[0], addresses[1]);
    assert!(addresses.iter().all(|address| !address.ends_with(":0")));
}

#[test]
fn an_unknown_protocol_is_refused_with_those_that_there_are() {
    let mut command = program();
    command.args(["--listen", "gopher://127.0.0.1:0"]);
    let (status, said) = run_to_end(command);
    assert_eq!(status, 64, "{said}");
    let why = "there is no protocol gopher, but: tcp";
    assert!(said.contains(why), "{said}");
}

#[test]
fn max_clients_are_served() {
    takes_effect("--max-clients", "3", "5", |daemon| {
        is_full_with(&daemon, 3);
        assert!(
            daemon
                .log()
                .wait_for("ready listen=")
                .contains(" max_clients=3 ")
        );
    });
}

#[test]
fn so_many_may_wait_in_the_queue() {
    takes_effect("--queue", "1", "4", |daemon| {
        // Two are served.
        is_full_with(&daemon, 3);
        assert!(daemon.log().wait_for("ready listen=").contains(" queue=1 "));
    });
}

#[test]
fn an_address_has_its_own_cap() {
    takes_effect("--max-clients-per-address", "1", "2", |daemon| {
        let _first = is_full_with(&daemon, 1);
        let mut other = Client::connect_from([127, 0, 0, 2], daemon.address).expect("another");
        wait_until("both count", || other.ask("WHO") == "2");
    });
}

#[test]
fn proxy_headers_are_read_from_these_networks() {
    let headers = |value, other| {
        takes_effect("--proxy-from", value, other, |daemon| {
            assert_eq!(daemon.ask("PROXY UNKNOWN\r\nWHY\n"), "42\n");
            assert!(daemon.ask("WHY\n").starts_with("ERR BADINPUT "));
        });
    };
    headers("127.0.0.1", "192.0.2.1");
    headers("2001:db8::/32,127.0.0.0/8", "192.0.2.0/24");
    let mut twice = small();
    twice.args(["--max-clients", "2", "--proxy-from", "192.0.2.0/24"]);
    twice.args(["--proxy-from", "127.0.0.1"]);
    assert_eq!(Daemon::run(twice).ask("PROXY UNKNOWN\r\nWHY\n"), "42\n");
}

#[test]
fn idle_clients_are_closed_after_the_idle_timeout() {
    takes_effect("--idle-timeout", "200ms", "1h", |daemon| {
        let told = daemon.connect().rest();
        assert!(told.starts_with("ERR TIMEOUT "), "{told}");
    });
}

#[test]
fn deaf_clients_are_cut_off_after_the_write_timeout() {
    takes_effect("--write-timeout", "300ms", "1h", |daemon| {
        Client::connect_narrow(daemon.address).ask_until_cut_off();
    });
}

#[test]
fn a_drain_ends_after_the_drain_timeout() {
    takes_effect("--drain-timeout", "200ms", "1h", |daemon| {
        let mut deaf = Client::connect_narrow(daemon.address);
        deaf.flood(&daemon, 1);
        let log = daemon.stop();
        assert!(log.contains("cut off"), "{log}");
    });
}

#[test]
fn the_id_is_kept_in_the_state_directory() {
    let (directory, other) = (Scratch::new(), Scratch::new());
    let name = |scratch: &Scratch| scratch.path().to_string_lossy().into_owned();
    takes_effect(
        "--state-directory",
        &name(&directory),
        &name(&other),
        |daemon| {
            let id = daemon.ask("WHERE\n");
            let kept = std::fs::read_to_string(directory.path().join("server-id"));
            assert_eq!(kept.expect("it is kept"), id);
        },
    );
    assert_eq!(
        std::fs::read_dir(other.path())
            .expect("it is there")
            .count(),
        0
    );
}

#[test]
fn systemd_may_name_the_state_directory() {
    let (first, second) = (Scratch::new(), Scratch::new());
    let both = std::env::join_paths([first.path(), second.path()]).expect("a list");
    let mut command = small();
    command
        .args(["--max-clients", "2"])
        .env("STATE_DIRECTORY", &both);
    let id = Daemon::run(command).ask("WHERE\n");
    let kept = |scratch: &Scratch| std::fs::read_to_string(scratch.path().join("server-id"));
    assert_eq!(kept(&first).expect("it is kept"), id);
    assert!(kept(&second).is_err());
    // Ours outdoes systemd's.
    let mut command = small();
    command
        .args(["--max-clients", "2"])
        .env("STATE_DIRECTORY", first.path());
    command.env("BLOCKCHAIN_TCPD_STATE_DIRECTORY", second.path());
    let other = Daemon::run(command).ask("WHERE\n");
    assert_eq!(kept(&second).expect("it is kept"), other);
}

#[test]
fn the_id_may_be_given() {
    takes_effect(
        "--server-id",
        ID,
        "1f0c2a52-5f0e-4b7e-9a35-0c5f7f5a3c1e",
        |daemon| {
            assert_eq!(daemon.ask("WHERE").trim(), ID);
        },
    );
}

#[test]
fn the_log_is_filtered() {
    let filter = "info,blockchain_tcpd::session=debug";
    takes_effect("--log", filter, "debug", |daemon| {
        daemon.ask("WHY");
        let log = daemon.stop();
        assert!(log.contains(" DEBUG ended "), "{log}");
        assert!(!log.contains("accepted connection="), "{log}");
    });
}

#[test]
fn an_empty_variable_counts_as_not_set() {
    let mut command = small();
    command.env("STATE_DIRECTORY", "");
    for (flag, ..) in FLAGS {
        command.env(variable_of(flag), "");
    }
    let daemon = Daemon::run(command);
    let ready = daemon.log().wait_for("ready listen=");
    assert!(
        ready.contains(" cluster=none max_clients=1024 queue=128 "),
        "{ready}"
    );
    assert!(daemon.stop().contains("there is no --state-directory"));
    let mut help = program();
    let help = help
        .arg("--help")
        .env("BLOCKCHAIN_TCPD_LISTEN", "")
        .output();
    let help = String::from_utf8(help.expect("it runs").stdout).expect("ASCII");
    assert!(help.contains("127.0.0.1:4242"), "{help}");
}

#[test]
fn a_flag_outdoes_a_variable_that_is_no_text() {
    let mut command = small();
    command
        .env("BLOCKCHAIN_TCPD_LOG", "a\tb")
        .args(["--log", "info"]);
    Daemon::run(command).stop();
    let help = program()
        .arg("--help")
        .env("BLOCKCHAIN_TCPD_LOG", "a\tb")
        .output();
    assert!(help.expect("it runs").status.success());
}

#[test]
fn what_cannot_be_printed_is_an_error_unless_nobody_wants_it() {
    let full = std::fs::File::options()
        .write(true)
        .open("/dev/full")
        .expect("it is there");
    let output = program()
        .arg("--version")
        .stdout(full)
        .output()
        .expect("it runs");
    assert_eq!(output.status.code(), Some(71));
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(
        said.contains("can't write to standard output: No space left"),
        "{said}"
    );
    // One that was closed is as good as full.
    for option in ["--help", "--version"] {
        let mut closed = clean("sh");
        closed.args(["-c", "\"$@\" >&-", "sh"]);
        closed.arg(program().get_program()).arg(option);
        let said = "blockchain-tcpd: can't write to standard output: Bad file descriptor";
        assert_eq!(run_to_end(closed), (71, said.to_string()));
    }
    let (reader, writer) = std::io::pipe().expect("a pipe");
    drop(reader);
    let output = program()
        .arg("--version")
        .stdout(writer)
        .output()
        .expect("it runs");
    assert!(output.status.success());
}

#[test]
fn a_variable_that_sets_nothing_is_named_in_the_log() {
    let mut command = small();
    command.env("BLOCKCHAIN_TCPD_MAXCLIENTS", "7");
    let daemon = Daemon::run(command);
    let log = daemon.stop();
    let expected = "unknown setting (--help lists all) variable=BLOCKCHAIN_TCPD_MAXCLIENTS";
    assert!(log.contains(expected), "{log}");
}

/// The variable that asks for the cluster may be the one that was mistyped.
#[test]
fn settings_of_a_cluster_that_there_is_not_are_named_in_the_log() {
    let mut command = small();
    command.env("BLOCKCHAIN_TCPD_ADVERTISE", "192.0.2.1:4280");
    let log = Daemon::run(command).stop();
    assert!(log.contains("without --cluster"), "{log}");
    assert!(!Daemon::run(small()).stop().contains("without --cluster"));
}

#[test]
fn help_names_every_flag_and_variable_with_its_default() {
    let output = program().arg("--help").output().expect("it runs");
    assert!(output.status.success());
    let help = String::from_utf8(output.stdout).expect("ASCII");
    let help = help.split_whitespace().collect::<Vec<_>>().join(" ");
    let readme = include_str!("../README.md");
    let mut sections = help
        .split(" --")
        .skip(1)
        .filter(|section| section.contains(" <"));
    for (flag, _, default) in FLAGS {
        let section = sections.next().expect("a section for each");
        let (name, value) = section.split_once(" <").expect("it takes a value");
        assert_eq!(format!("--{name}"), flag, "in this order");
        let variable = variable_of(flag);
        assert!(section.contains(&format!("[env: {variable}]")), "{section}");
        let default_is_named = match default {
            None => section.contains("[default: "),
            Some(default) => section.contains(&format!("[default: {default}]")),
        };
        assert!(default_is_named, "{section}");
        let unit = value.split('>').next().unwrap_or_default();
        let row = format!("| `{flag} {unit}` | `{variable}` | ");
        let row = readme.lines().find_map(|line| line.strip_prefix(&row));
        let row = row.unwrap_or_else(|| panic!("README.md has no row for {flag} {unit}"));
        let first = default.and_then(|default| default.split(' ').next());
        assert!(row.contains(first.unwrap_or_default()), "{flag}: {row}");
    }
    assert_eq!(sections.next(), None);
    assert!(help.contains("500ms, 10s, 5m, 1h"), "{help}");
    for status in [
        "64 wrong usage",
        "71 system error",
        "78 wrong configuration",
    ] {
        assert!(help.contains(status), "{help}");
    }
}

#[test]
fn version_is_that_of_the_package() {
    let output = program().arg("--version").output().expect("it runs");
    assert!(output.status.success());
    let version = String::from_utf8(output.stdout).expect("ASCII");
    assert_eq!(
        version,
        concat!("blockchain-tcpd ", env!("CARGO_PKG_VERSION"), "\n")
    );
}
