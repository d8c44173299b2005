//! Many users in constant memory.
//!
//! By hand, a million: BLOCKCHAIN_TCPD_TEST_USERS=1000000 cargo test --release --test tests pull::many -- --nocapture

use std::fmt::Write as _;
use std::io::Write as _;
use std::time::Instant;

use super::server::{FeedServer, head};
use super::{Database, puller, user, wait_for_users};
use crate::support::kernel::asked_for;
use crate::support::{Daemon, wait_until};

#[test]
fn many_users_are_pulled_in_constant_memory() {
    let Some(database) = Database::sqlite() else {
        return;
    };
    let count = asked_for("BLOCKCHAIN_TCPD_TEST_USERS", 50_000);
    let idle = {
        // What was pulled a moment ago is not pulled again within the interval.
        let Some(database) = Database::sqlite() else {
            return;
        };
        let feed = FeedServer::of("[]");
        let daemon = puller(&database, &feed.url("/"), &[]);
        wait_until("it has pulled", || feed.count() > 1);
        daemon.status_number("VmHWM")
    };
    let feed = FeedServer::start(move |_, to| {
        let fields = "Content-Type: application/json\r\n";
        to.write_all(head("200 OK", fields).as_bytes())?;
        let mut part = "[".to_string();
        for number in 0..count {
            let comma = if number > 0 { "," } else { "" };
            write!(part, "{comma}{}", user(number, "somebody")).expect("memory");
            if part.len() > 60_000 {
                to.write_all(part.as_bytes())?;
                part.clear();
            }
        }
        to.write_all((part + "]").as_bytes())
    });
    let begun = Instant::now();
    let daemon: Daemon = puller(&database, &feed.url("/"), &["--users-feed-interval", "1h"]);
    daemon.log().wait_for("users were pulled");
    wait_for_users(&daemon, count);
    let more = daemon.status_number("VmHWM").saturating_sub(idle);
    println!(
        "{count} users in {:?}, {more} KiB above {idle} KiB",
        begun.elapsed()
    );
    assert!(more <= 32 * 1024, "{more} KiB");
    assert_eq!(feed.count(), 1);
    daemon.stop();
}
