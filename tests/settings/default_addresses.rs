//! Without `--listen`: both loopback addresses, or the one that there is. With one: an address of a link, too.

use std::path::Path;
use std::process::Command;

use crate::support::kernel::{shell, through};
use crate::support::{CLIENT, Daemon, PLUGIN, assert_contains, fails_with, skipped};

/// The program in a network of its own, where nothing else listens.
fn in_its_own_network(prepare: &str, arguments: &[&str]) -> Command {
    let [sh, c, commands] = shell(&format!("ip link set lo up && {prepare} || exit"));
    let mut command = through(&["unshare", "-n", &sh, &c, &commands]);
    command.args(["--max-clients", "2"]).args(arguments);
    command
}

/// What a program prints in the network of this daemon.
fn run_within(daemon: &Daemon, program: &[&str]) -> String {
    let mut command = Command::new("nsenter");
    command.args(["-n", "-t", &daemon.pid().to_string()]);
    let output = command.args(program).output().expect("nsenter runs");
    let said = [output.stdout, output.stderr].concat();
    String::from_utf8_lossy(&said).trim().to_string()
}

/// What such a daemon answers to WHO at this address.
fn who_at(daemon: &Daemon, address: &str) -> String {
    let connect = format!("exec 3<>/dev/tcp/{address}/4242");
    let script = format!("{connect}; echo WHO >&3; read -r count <&3; echo $count");
    run_within(daemon, &["bash", "-c", &script])
}

fn has_ipv6() -> bool {
    Path::new("/proc/sys/net/ipv6").exists()
}

#[test]
fn both_loopback_addresses_are_the_default_and_one_may_be_missing() {
    needs!(run & ["unshare", "-n"]);
    if has_ipv6() {
        let mut command = in_its_own_network("true", &[]);
        command.env("BLOCKCHAIN_TCPD_LISTEN", "");
        let daemon = Daemon::run(command);
        assert_eq!(daemon.ready("listen"), "127.0.0.1:4242,[::1]:4242");
        assert_eq!(who_at(&daemon, "::1"), "1");
    }
    let without_ipv6 = "echo 1 >/proc/sys/net/ipv6/conf/all/disable_ipv6";
    let daemon = Daemon::run(in_its_own_network(without_ipv6, &[]));
    assert_eq!(daemon.ready("listen"), "127.0.0.1:4242");
    assert_eq!(who_at(&daemon, "127.0.0.1"), "1");
    assert_contains(&daemon.stop(), " INFO  not listening there: ");

    // One that was asked for may not be missing.
    let both = ["--listen", "127.0.0.1:4242", "--listen", "[::1]:4242"];
    let command = in_its_own_network(without_ipv6, &both);
    fails_with(command, 71, &["[::1]:4242"]);
}

/// Each program understands the address of a link with its interface (RFC 4007, section 11).
#[test]
fn an_address_of_a_link_names_its_interface_wherever_an_address_is() {
    needs!("curl");
    needs!(run & ["unshare", "-n"]);
    if !has_ipv6() {
        skipped("no IPv6 here");
        return;
    }
    let links = "ip link add to0 type veth peer name to1 && ip link set to1 up && ip link set to0 up && \
                 ip -6 address add fe80::42/64 dev to0 nodad";
    let line = ["--listen", "[fe80::42%to0]:4242"];
    let http = ["--http", "[fe80::42%to0]:4280"];
    let daemon = Daemon::run(in_its_own_network(links, &[line, http].concat()));
    let listens = daemon.ready("listen");
    assert!(listens.starts_with("[fe80::42%"), "{listens}");
    let client = CLIENT.as_str();
    for server in ["[fe80::42%to0]:4242", "[fe80::42%to0]", "fe80::42%to0"] {
        let said = run_within(&daemon, &[client, "-s", server, "WHY"]);
        assert_eq!(said, "42", "{server}");
    }
    let plugin = PLUGIN.as_str();
    for host in ["fe80::42%to0", "[fe80::42%to0]"] {
        assert_contains(&run_within(&daemon, &[plugin, "-H", host]), "OK");
    }
    let health = "http://[fe80::42%25to0]:4280/livez";
    let page = run_within(&daemon, &["curl", "-s", health]);
    assert_eq!(page, "live: clients are being served");

    let missing = ["--listen", "[fe80::42%to9]:4242"];
    let command = in_its_own_network("true", &missing);
    fails_with(command, 64, &["this machine has no interface to9"]);
}
