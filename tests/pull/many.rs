//! Many users in constant memory.
//!
//! By hand, a million: BLOCKCHAIN_TCPD_TEST_USERS=1000000 cargo test --release --test tests many_users -- --nocapture

use std::fmt::Write as _;
use std::io::Write as _;
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use super::server::{FeedServer, head};
use super::{Database, name_of, puller, user, wait_for_users};
use crate::support::kernel::asked_for;
use crate::support::{PATIENCE, wait_until};

#[test]
fn many_users_are_pulled_in_constant_memory() {
    let count = asked_for("BLOCKCHAIN_TCPD_TEST_USERS", 50_000);
    // All of them are more than may be above idle.
    let filler = "x".repeat(50_000_000 / count);
    let one = move |number: usize, name: &str| {
        let filler = format!(r#","filler":"{filler}"}}"#);
        user(number, name).replace('}', &filler)
    };
    Database::each(|database| {
        // How many there are, and their name.
        let version = Arc::new(Mutex::new((1, "only")));
        let (served, one) = (version.clone(), one.clone());
        let feed = FeedServer::start(move |_, to| {
            let (count, name) = *served.lock().unwrap();
            let fields = "Content-Type: application/json\r\n";
            to.write_all(head("200 OK", fields).as_bytes())?;
            let mut part = "[".to_string();
            for number in 0..count {
                let comma = if number > 0 { "," } else { "" };
                write!(part, "{comma}{}", one(number, name)).expect("memory");
                if part.len() > 60_000 {
                    to.write_all(part.as_bytes())?;
                    part.clear();
                }
            }
            to.write_all((part + "]").as_bytes())
        });
        let daemon = puller(database, &feed.url("/"), &[]);
        // It has pulled and been asked, as one that is idle.
        wait_for_users(&daemon, 1);
        wait_until("it pulls again", || feed.count() > 2);
        let idle = daemon.status_number("VmHWM");
        for name in ["new", "changed"] {
            *version.lock().unwrap() = (count, name);
            let begun = Instant::now();
            let last = format!("u{:07}", count - 1);
            wait_for_long(count, || name_of(&daemon, &last).as_deref() == Some(name));
            wait_for_users(&daemon, count);
            let more = daemon.status_number("VmHWM").saturating_sub(idle);
            let (url, took) = (database.url(), begun.elapsed());
            println!("{url}: {count} users are {name} after {took:?}, {more} KiB above {idle} KiB");
            assert!(more <= 32 * 1024, "{more} KiB");
        }
        let right = "SELECT count(*), count(DISTINCT id) FROM users WHERE name = 'changed'";
        assert_eq!(database.sql(right).trim(), format!("{count}|{count}"));
        // Its own batches never keep it from its lease.
        let log = daemon.stop();
        assert!(
            !log.contains("WARN") && !log.contains("another server"),
            "{log}"
        );
    });
}

/// Waits for what takes longer the more users there are.
fn wait_for_long(users: usize, mut is_so: impl FnMut() -> bool) {
    let deadline = Instant::now() + PATIENCE + Duration::from_millis(users as u64);
    while !is_so() {
        assert!(Instant::now() < deadline, "in vain");
        thread::park_timeout(Duration::from_millis(20));
    }
}
