//! A database in trouble while users are pulled into it: nothing is lost, nothing comes twice, and the next pull heals it.

use std::io::Write as _;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use super::once::COPIES;
use super::server::{FeedServer, ok};
use super::{Database, puller, users, wait_for_answer};
use crate::support::postgres::Postgres;
use crate::support::{assert_contains, wait_until};

#[test]
fn a_pull_outlives_whatever_becomes_of_the_database() {
    let Some(database) = Database::postgres() else {
        return;
    };
    let Database::Postgres(postgres) = &database else {
        return;
    };
    // Each version has some more users, and a name of its own; it takes about a second.
    let version = Arc::new(AtomicUsize::new(0));
    let served = version.clone();
    let feed = FeedServer::start(move |_, to| {
        let version = served.load(Ordering::SeqCst);
        let all = users(0..3000 + version, &format!("version {version}"));
        let all = ok(all.join("\n").as_bytes());
        for part in all.chunks(all.len() / 10 + 1) {
            to.write_all(part)?;
            thread::park_timeout(Duration::from_millis(100));
        }
        Ok(())
    });
    let daemon = puller(&database, &feed.url("/"), &[]);
    let is_complete = |version: usize| {
        let name = format!("version {version}");
        let right = format!("SELECT count(*) FROM users WHERE name = '{name}'");
        wait_until(&name, || database.number(&right) as usize == 3000 + version);
        let all = "SELECT count(*), count(DISTINCT id) FROM users";
        let count = 3000 + version;
        assert_eq!(database.sql(all).trim(), format!("{count}|{count}"));
    };
    is_complete(0);
    type Trouble = (&'static str, fn(&Postgres));
    let troubles: [Trouble; 5] = [
        ("killed", |postgres| {
            postgres.kill();
            postgres.run();
        }),
        ("restarted", |postgres| {
            postgres.end("INT");
            postgres.run();
        }),
        ("crashed", |postgres| {
            postgres.end("QUIT");
            postgres.run();
        }),
        ("cut", |postgres| assert!(postgres.cut() > 0)),
        ("stopped", |postgres| {
            postgres.signal("STOP");
            // Longer than it waits for the lease.
            thread::park_timeout(Duration::from_secs(4));
            postgres.signal("CONT");
        }),
    ];
    for (index, (name, trouble)) in troubles.iter().enumerate() {
        wait_until("a batch is written", || database.number(COPIES) > 0);
        version.store(index + 1, Ordering::SeqCst);
        let before = feed.count();
        wait_until("the new version is asked for", || feed.count() > before);
        wait_until("a batch is written", || database.number(COPIES) > 0);
        trouble(postgres);
        let begun = Instant::now();
        is_complete(index + 1);
        let elapsed = begun.elapsed();
        println!("{name}: complete after {elapsed:?}");
        // An interval, a pull, and the lease and the pauses between attempts.
        assert!(elapsed < Duration::from_secs(10), "{name}: {elapsed:?}");
        wait_for_answer(&daemon, "USERS", &(3001 + index).to_string());
    }
    daemon.log().wait_for("over: the users can't be pulled");
    let log = daemon.stop();
    assert!(!log.contains("panicked") && !log.contains("ERROR"), "{log}");
}

#[test]
fn a_database_that_refuses_to_be_written_is_not_written_and_then_is() {
    let Some(database) = Database::postgres() else {
        return;
    };
    let feed = FeedServer::of(users(0..10, "first").join("\n"));
    let daemon = puller(&database, &feed.url("/"), &[]);
    wait_for_answer(&daemon, "USERS", "10");
    database.sql("ALTER DATABASE users SET default_transaction_read_only = on");
    let Database::Postgres(postgres) = &database else {
        return;
    };
    assert!(postgres.cut() > 0);
    feed.give(users(0..10, "second").join("\n"));
    let line = daemon.log().wait_for("the store is unavailable");
    assert_contains(&line, "read-only");
    database.sql("SET default_transaction_read_only = off; ALTER DATABASE users RESET default_transaction_read_only");
    postgres.cut();
    let right = "SELECT count(*) FROM users WHERE name = 'second'";
    wait_until("it is pulled", || database.number(right) == 10);
    daemon.log().wait_for("over: the store is unavailable");
    daemon.stop();
}
