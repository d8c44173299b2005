//! Without `--listen`: both loopback addresses, or the one that there is. With one: an address of a link, too.

use std::process::Command;

use crate::support::kernel::{shell, through};
use crate::support::{Daemon, field, run_to_end};

/// The program in a network of its own, where nothing else listens.
fn in_a_network_of_its_own(prepare: &str) -> Command {
    let [sh, c, commands] = shell(&format!("ip link set lo up && {prepare} || exit"));
    let mut command = through(&["unshare", "-n", &sh, &c, &commands]);
    command.args(["--max-clients", "2"]);
    command
}

/// What a daemon in a network of its own answers to WHO at this address.
fn ask_within(daemon: &Daemon, address: &str) -> String {
    let script =
        format!("exec 3<>/dev/tcp/{address}/4242; echo WHO >&3; read -r count <&3; echo $count");
    let output = Command::new("nsenter")
        .args(["-n", "-t", &daemon.pid().to_string(), "bash", "-c", &script])
        .output()
        .expect("nsenter runs");
    String::from_utf8_lossy(&output.stdout).trim().to_string()
}

#[test]
fn both_loopback_addresses_are_the_default_and_one_may_be_missing() {
    needs!(run & ["unshare", "-n"]);
    let mut plain = in_a_network_of_its_own("true");
    let without_ipv6 = "echo 1 >/proc/sys/net/ipv6/conf/all/disable_ipv6";
    if std::path::Path::new("/proc/sys/net/ipv6").exists() {
        plain.env("BLOCKCHAIN_TCPD_LISTEN", "");
        let daemon = Daemon::run(plain);
        let ready = daemon.log().wait_for("ready listen=");
        assert_eq!(field(&ready, "listen"), "127.0.0.1:4242,[::1]:4242");
        assert_eq!(ask_within(&daemon, "::1"), "1");
    }
    let daemon = Daemon::run(in_a_network_of_its_own(without_ipv6));
    let ready = daemon.log().wait_for("ready listen=");
    assert_eq!(field(&ready, "listen"), "127.0.0.1:4242");
    assert_eq!(ask_within(&daemon, "127.0.0.1"), "1");
    assert!(daemon.stop().contains(" INFO  not listening there: "));

    // One that was asked for may not be missing.
    let mut asked = in_a_network_of_its_own(without_ipv6);
    asked.args(["--listen", "127.0.0.1:4242", "--listen", "[::1]:4242"]);
    let (status, said) = run_to_end(asked);
    assert_eq!(status, 71, "{said}");
    assert!(said.contains("[::1]:4242"), "{said}");
}

/// Each program understands the address of a link with its interface (RFC 4007, section 11).
#[test]
fn an_address_of_a_link_names_its_interface_wherever_an_address_is() {
    let has_ipv6 = std::path::Path::new("/proc/sys/net/ipv6").exists();
    needs!("curl");
    needs!(run & ["unshare", "-n"]);
    if !has_ipv6 {
        crate::support::skipped("no IPv6 here");
        return;
    }
    let mut command = in_a_network_of_its_own(
        "ip link add to0 type veth peer name to1 && ip link set to1 up && ip link set to0 up && \
         ip -6 address add fe80::42/64 dev to0 nodad",
    );
    command.args(["--listen", "[fe80::42%to0]:4242"]);
    command.args(["--http", "[fe80::42%to0]:4280"]);
    let daemon = Daemon::run(command);
    let ready = daemon.log().wait_for("ready listen=");
    assert!(field(&ready, "listen").starts_with("[fe80::42%"), "{ready}");
    let pid = daemon.pid().to_string();
    let within = |arguments: &[&str]| {
        let mut command = Command::new("nsenter");
        command.args(["-n", "-t", &pid]).args(arguments);
        let output = command.output().expect("nsenter runs");
        let said = [output.stdout, output.stderr].concat();
        String::from_utf8_lossy(&said).trim().to_string()
    };
    let client = CLIENT.as_str();
    for server in ["[fe80::42%to0]:4242", "[fe80::42%to0]", "fe80::42%to0"] {
        assert_eq!(within(&[client, "-s", server, "WHY"]), "42", "{server}");
    }
    let plugin = PLUGIN.as_str();
    for host in ["fe80::42%to0", "[fe80::42%to0]"] {
        let said = within(&[plugin, "-H", host]);
        assert!(said.contains("OK"), "{host}: {said}");
    }
    let page = within(&["curl", "-s", "http://[fe80::42%25to0]:4280/livez"]);
    assert_eq!(page, "live: clients are being served");

    let mut missing = in_a_network_of_its_own("true");
    missing.args(["--listen", "[fe80::42%to9]:4242"]);
    let (status, said) = run_to_end(missing);
    assert_eq!(status, 64, "{said}");
    assert!(said.contains("this machine has no interface to9"), "{said}");
}
