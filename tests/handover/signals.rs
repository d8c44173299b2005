//! Signals that come while a program takes over.

use std::thread;
use std::time::Duration;

use super::times;
use crate::support::kernel::asked_for;
use crate::support::{Daemon, wait_until};

#[test]
fn another_signal_meanwhile_keeps_no_program_from_being_replaced() {
    let daemon = Daemon::start(["--max-clients", "8"]);
    let mut client = daemon.connect();
    assert_eq!(client.ask("WHY"), "42");
    for round in 1..=10 {
        daemon.signal("USR2");
        daemon.signal("HUP");
        // Said by the new program alone.
        wait_until("it is replaced", || {
            times(&daemon, "took over the clients of the previous process") == round
        });
        assert_eq!(client.ask("WHY"), "42");
    }
    daemon.stop();
}

/// Whenever it comes, also while no program of ours is there to hear it.
#[test]
fn a_stop_that_comes_during_a_replacement_is_heeded() {
    let rounds = asked_for("BLOCKCHAIN_TCPD_TEST_TURNS", 20);
    for round in 0..rounds {
        let daemon = Daemon::start(["--max-clients", "8"]);
        let mut client = daemon.connect();
        assert_eq!(client.ask("WHY"), "42");
        daemon.signal("USR2");
        if round % 2 == 0 {
            daemon.log().wait_for("hands over its clients");
        } else {
            // The trial takes some milliseconds, more than the signal.
            thread::park_timeout(Duration::from_millis(round as u64));
        }
        client.send("WHY\n");
        daemon.stop();
        assert_eq!(client.rest(), "42\n");
    }
}
