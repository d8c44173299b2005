//! The section on connections: which clients count. Clients that are idle, take no replies, or make room are in tests/hostile.rs
//! and tests/full.rs.

use super::daemon;
use crate::support::{Daemon, wait_until};

/// - A client counts from the moment the server accepts it until the server closes, the end of the connection for
///   whatever reason included.
#[test]
fn a_client_counts_from_its_arrival_until_its_end() {
    let daemon = Daemon::start(["--max-clients", "2", "--idle-timeout", "0s"]);
    let mut asking = daemon.connect();
    let mut count = |clients: &str| {
        let count_is = || asking.ask("WHO") == clients;
        wait_until(&format!("{clients} clients"), count_is);
    };
    let silent = daemon.connect();
    count("2");
    drop(silent);
    count("1");
    let reset = daemon.connect();
    count("2");
    reset.reset();
    count("1");
    for last in ["QUIT\n", &"x".repeat(2000)] {
        let mut open = daemon.connect();
        open.send(last);
        // It holds its socket still, but the server has closed.
        count("1");
        open.rest();
    }
    // One that waits for a worker counts. The silent one makes room for it after half a second, which may be too soon on
    // a slow machine.
    wait_until("all three count", || {
        wait_until("the others have left", || asking.ask("WHO") == "1");
        let _silent_and_waiting = [daemon.connect(), daemon.connect()];
        (0..100).any(|_| asking.ask("WHO") == "3")
    });
}

/// - A client that has seen the end of its stream no longer counts.
#[test]
fn a_client_that_has_seen_the_end_does_not_count() {
    let daemon = daemon();
    let mut asking = daemon.connect();
    for last in ["QUIT\n", "EXIT\n", &"x".repeat(1100)].repeat(500) {
        let mut leaving = daemon.connect();
        leaving.send(last);
        leaving.rest();
        assert_eq!(asking.ask("WHO"), "1");
    }
    for _ in 0..100 {
        daemon.ask("WHY\n");
        assert_eq!(asking.ask("WHO"), "1");
    }
}

/// - `ERR BUSY`: the server has no room for this client; it says so without being asked, and then it closes.
/// - A client that is answered `ERR BUSY` on arrival never counts.
#[test]
fn a_refused_client_does_not_count() {
    let full = ["--max-clients", "1", "--queue", "0"];
    let full_for_address = ["--max-clients", "8", "--max-clients-per-address", "1"];
    for arguments in [full, full_for_address] {
        let daemon = Daemon::start(arguments);
        let mut asking = daemon.connect();
        assert_eq!(asking.ask("WHO"), "1");
        std::thread::scope(|scope| {
            let refused = scope.spawn(|| (0..500).for_each(|_| daemon.is_full()));
            // Asked while they come and go.
            while !refused.is_finished() {
                asking.send("WHO\n".repeat(50));
                for _ in 0..50 {
                    assert_eq!(asking.line().as_deref(), Some("1"), "{arguments:?}");
                }
            }
        });
    }
}
