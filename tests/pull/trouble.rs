//! A database in trouble while users are pulled into it: nothing is lost, nothing comes twice, and the next pull heals it.

use std::io::Write as _;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use super::once::COPIES;
use super::server::{FeedServer, Gate, head, ok};
use super::{Database, arguments, puller, user, users, wait_for_answer};
use crate::support::kernel::in_a_mount_namespace;
use crate::support::postgres::Postgres;
use crate::support::{Daemon, assert_contains, clean, wait_until};

/// What becomes of a server, and how it is called.
type Trouble = (&'static str, fn(&Postgres));

const TROUBLES: [Trouble; 5] = [
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

#[test]
fn a_pull_outlives_whatever_becomes_of_the_database() {
    Database::each_server(|database, postgres| {
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
        let daemon = puller(database, &feed.url("/"), &[]);
        let is_complete = |version: usize| {
            let name = format!("version {version}");
            let right = format!("SELECT count(*) FROM users WHERE name = '{name}'");
            wait_until(&name, || database.number(&right) as usize == 3000 + version);
            let all = "SELECT count(*), count(DISTINCT id) FROM users";
            let count = 3000 + version;
            assert_eq!(database.sql(all).trim(), format!("{count}|{count}"));
        };
        is_complete(0);
        for (index, (name, trouble)) in TROUBLES.iter().enumerate() {
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
    });
}

/// A batch collects users for at most 20 s, however slowly they come, and a second longer than they come. Through PgBouncer, it
/// has one of the connections that all share.
#[test]
fn a_slow_feed_holds_a_transaction_for_a_bounded_time() {
    let Some(database) = Database::bouncer() else {
        return;
    };
    let (gate, stalled) = (Gate::default(), Gate::default());
    let (held, stalls) = (gate.clone(), stalled.clone());
    let feed = FeedServer::start(move |_, to| {
        to.write_all(head("200 OK", "").as_bytes())?;
        for number in 0.. {
            writeln!(to, "{}", user(number, "drop"))?;
            if stalls.wait(Duration::from_millis(200)) {
                break;
            }
        }
        held.pass();
        Ok(())
    });
    let daemon = puller(&database, &feed.url("/"), &[]);
    wait_until("a batch has begun", || database.number(COPIES) > 0);
    let begun = Instant::now();
    let oldest = "SELECT coalesce(max(extract(epoch FROM clock_timestamp() - xact_start))::int, 0) FROM pg_stat_activity \
                  WHERE client_port > 0";
    let mut longest = 0;
    wait_until("the batch is written", || {
        longest = longest.max(database.number(oldest));
        // Others are answered meanwhile.
        daemon.connect().ask("USERS") != "0"
    });
    assert!(
        begun.elapsed() > Duration::from_secs(15),
        "the feed was not slow"
    );
    assert!(longest <= 22, "{longest} s");
    wait_until("the next one has begun", || database.number(COPIES) > 0);
    stalled.open();
    let begun = Instant::now();
    wait_until("no transaction is open", || {
        database.number(COPIES) == 0 && database.number(oldest) == 0
    });
    assert!(
        begun.elapsed() < Duration::from_secs(5),
        "{:?}",
        begun.elapsed()
    );
    gate.open();
    let log = daemon.stop();
    assert!(!log.contains("WARN"), "{log}");
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
    let postgres = database.server().expect("it is one");
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

/// Users that are 20 MB together.
fn large_users() -> String {
    let filler = format!(r#","filler":"{}"}}"#, "x".repeat(1000));
    let all = users(0..20_000, "large").join("\n");
    all.replace('}', &filler)
}

/// Nothing of a batch is there that did not fit; what was there is answered; when there is room, the next pull has all.
#[test]
fn a_database_that_is_full_keeps_what_it_has_and_takes_the_rest_later() {
    needs!("prlimit");
    let Some(database) = Database::postgres() else {
        return;
    };
    let postgres = database.server().expect("it is one");
    let feed = FeedServer::of(users(0..100, "small").join("\n"));
    let daemon = puller(&database, &feed.url("/"), &[]);
    wait_for_answer(&daemon, "USERS", "100");
    postgres.limit_files("17000000");
    feed.give(large_users());
    let line = daemon.log().wait_for("the users can't be pulled reason=");
    println!("{line}");
    assert_contains(&line, "could not");
    let before = feed.count();
    wait_until("it tries again", || feed.count() >= before + 2);
    wait_for_answer(&daemon, "USERS", "100");
    let small = "SELECT count(*) FROM users WHERE name = 'small'";
    assert_eq!(database.number(small), 100);
    postgres.limit_files("unlimited");
    let begun = Instant::now();
    wait_for_answer(&daemon, "USERS", "20000");
    let elapsed = begun.elapsed();
    println!("complete after {elapsed:?}");
    assert!(elapsed < Duration::from_secs(15), "{elapsed:?}");
    assert_eq!(database.number(small), 0);
    daemon.log().wait_for("over: the users can't be pulled");
    let log = daemon.stop();
    assert!(!log.contains("panicked") && !log.contains("ERROR"), "{log}");
}

/// The same for a file on a file system that is full.
#[test]
fn a_file_system_that_is_full_keeps_what_it_has_and_takes_the_rest_later() {
    needs!("nsenter");
    let Some(database) = Database::sqlite() else {
        return;
    };
    let Database::Sqlite(scratch) = &database else {
        return;
    };
    let folder = scratch.path().display().to_string();
    let small = format!("mount -t tmpfs -o size=4m none {folder}");
    let Some(wrapper) = in_a_mount_namespace(&small) else {
        return;
    };
    let feed = FeedServer::of(users(0..100, "small").join("\n"));
    let mut all = arguments(&database, &feed.url("/"));
    all.extend(["--users-feed-interval".to_string(), "1s".to_string()]);
    let daemon = Daemon::start_through(&wrapper, all);
    wait_for_answer(&daemon, "USERS", "100");
    feed.give(large_users());
    let line = daemon.log().wait_for("the users can't be pulled reason=");
    println!("{line}");
    assert_contains(&line, "full");
    let before = feed.count();
    wait_until("it tries again", || feed.count() >= before + 2);
    // What was written before stays.
    let users: usize = daemon.connect().ask("USERS").parse().expect("a number");
    assert!((100..20_000).contains(&users), "{users}");
    let process = daemon.pid().to_string();
    let mut grow = clean("nsenter");
    grow.args(["--mount", "--root", "--target", &process, "mount", "-o"]);
    grow.args(["remount,size=200m", &folder]);
    assert!(grow.status().expect("it runs").success());
    let begun = Instant::now();
    wait_for_answer(&daemon, "USERS", "20000");
    let elapsed = begun.elapsed();
    println!("complete after {elapsed:?}");
    assert!(elapsed < Duration::from_secs(15), "{elapsed:?}");
    daemon.log().wait_for("over: the users can't be pulled");
    let log = daemon.stop();
    assert!(!log.contains("panicked") && !log.contains("ERROR"), "{log}");
}
