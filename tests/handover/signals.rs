//! Signals that come while a program takes over.

use std::thread;
use std::time::Duration;

use super::times;
use crate::support::kernel::asked_for;
use crate::support::{Client, Daemon, wait_until};

fn start() -> (Daemon, Client) {
    let daemon = Daemon::start(["--max-clients", "8"]);
    let mut client = daemon.connect();
    assert_eq!(client.ask("WHY"), "42");
    (daemon, client)
}

#[test]
fn another_signal_meanwhile_does_not_prevent_a_handover() {
    let (daemon, mut client) = start();
    for round in 1..=10 {
        daemon.signal("USR2");
        daemon.signal("HUP");
        // Said by the new program alone.
        let said = "goes on with the clients of the last process";
        wait_until("it is replaced", || times(&daemon, said) == round);
        assert_eq!(client.ask("WHY"), "42");
    }
    daemon.stop();
}

/// Whenever it comes, also while no program of ours is there to hear it.
#[test]
fn a_stop_that_comes_during_a_handover_is_obeyed() {
    for round in 0..asked_for("BLOCKCHAIN_TCPD_TEST_TURNS", 20) {
        let (daemon, mut client) = start();
        daemon.signal("USR2");
        if round % 2 == 0 {
            daemon.log().wait_for("hands its clients over");
        } else {
            // The trial takes some milliseconds, more than the signal.
            thread::park_timeout(Duration::from_millis(round as u64));
        }
        client.send("WHY\n");
        daemon.stop();
        assert_eq!(client.rest(), "42\n");
    }
}
