//! Several daemons on one database: one of them pulls, and another does as soon as it can't.

use std::io::Write as _;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use super::once::COPIES;
use super::server::{FeedServer, Gate, ok};
use super::{Database, array, name_of, puller, user, users, wait_for_users};
use crate::handover::{replace, times};
use crate::support::kernel::asked_for;
use crate::support::{Daemon, PATIENCE, assert_contains, wait_until};

/// Daemons on one database and their feed: each asks for a path of its own.
struct Servers<'a> {
    database: &'a Database,
    feed: FeedServer,
    daemons: Vec<Option<Daemon>>,
}

/// The path that a daemon asks for.
fn path(number: usize) -> String {
    format!("/{number}")
}

impl<'a> Servers<'a> {
    fn start(database: &'a Database, feed: FeedServer, count: usize) -> Self {
        let mut servers = Servers {
            database,
            feed,
            daemons: (0..count).map(|_| None).collect(),
        };
        (0..count).for_each(|number| servers.begin(number));
        servers
    }

    /// Starts one that does not run.
    fn begin(&mut self, number: usize) {
        let feed = self.feed.url(&path(number));
        self.daemons[number] = Some(puller(self.database, &feed, &[]));
    }

    fn daemon(&self, number: usize) -> &Daemon {
        self.daemons[number].as_ref().expect("it runs")
    }

    /// Waits for a pull that began after this time, by another one than this. Returns who pulls, and when that began.
    fn wait_for_puller(&self, after: Instant, other_than: Option<usize>) -> (usize, Instant) {
        let mut found = None;
        wait_until("somebody pulls", || {
            let requests = self.feed.requests();
            let mut new = requests.iter().filter(|request| request.at > after);
            let other = other_than.map(path);
            found = new
                .find(|request| Some(&request.path) != other.as_ref())
                .map(|request| (request.path[1..].parse().expect("a number"), request.at));
            found.is_some()
        });
        found.expect("it was found")
    }

    /// Who pulled last.
    fn last(&self) -> usize {
        let requests = self.feed.requests();
        let last = requests.last().expect("somebody has pulled");
        last.path[1..].parse().expect("a number")
    }
}

/// The lease: its term, and whether it lasts.
fn lease(database: &Database) -> (u64, bool) {
    let now = match database {
        // What gives parts of seconds in older versions, too.
        Database::Sqlite(_) => "(julianday('now') - 2440587.5) * 86400",
        _ => "extract(epoch FROM clock_timestamp())",
    };
    let row = database.sql(&format!(
        "SELECT term, CASE WHEN until > {now} THEN 1 ELSE 0 END FROM leases"
    ));
    let rows: Vec<_> = row.lines().collect();
    assert_eq!(rows.len(), 1, "{rows:?}");
    let (term, lasts) = rows[0].split_once('|').expect("two values");
    (term.parse().expect("a term"), lasts == "1")
}

/// Has the database itself note who writes in which term of the lease, and how much later than its end the lease was taken from
/// somebody: the feeds of the servers differ in the name of one user.
fn note_writes(database: &Database) {
    let tables = "CREATE TABLE writes (term bigint, name text); CREATE TABLE takeovers (term bigint, late double precision);";
    let write = "INSERT INTO writes SELECT term, NEW.name FROM leases";
    let takeover =
        |now: &str| format!("INSERT INTO takeovers VALUES (NEW.term, {now} - OLD.until)");
    let of_users = "ON users WHEN (NEW.id = 'writer')";
    let of_leases = "AFTER UPDATE ON leases FOR EACH ROW WHEN (OLD.holder <> NEW.holder)";
    let triggers = match database {
        Database::Sqlite(_) => {
            let takeover = takeover("(julianday('now') - 2440587.5) * 86400");
            format!(
                "CREATE TRIGGER inserted AFTER INSERT {of_users} BEGIN {write}; END; \
                 CREATE TRIGGER updated AFTER UPDATE {of_users} BEGIN {write}; END; \
                 CREATE TRIGGER taken {of_leases} BEGIN {takeover}; END;"
            )
        }
        _ => {
            let function = |name: &str, statement: &str| {
                format!(
                    "CREATE FUNCTION {name}() RETURNS trigger LANGUAGE plpgsql AS $$BEGIN {statement}; RETURN NULL; END$$;"
                )
            };
            let of_users = of_users.replace(" WHEN", " FOR EACH ROW WHEN");
            function("note_write", write)
                + &function(
                    "note_takeover",
                    &takeover("extract(epoch FROM clock_timestamp())"),
                )
                + &format!(
                    "CREATE TRIGGER written AFTER INSERT OR UPDATE {of_users} EXECUTE FUNCTION note_write(); \
                     CREATE TRIGGER taken {of_leases} EXECUTE FUNCTION note_takeover()"
                )
        }
    };
    database.sql(&format!("{tables} {triggers}"));
}

#[test]
fn one_of_three_pulls_and_when_it_is_killed_another_does() {
    Database::each(|database| {
        let all = users(0..1500, "same");
        let pulls = AtomicUsize::new(0);
        // It takes a while; the last user says who pulled, and changes each time.
        let feed = FeedServer::start(move |request, to| {
            let pull = pulls.fetch_add(1, Ordering::SeqCst);
            let writer = format!(
                r#"{{"id":"writer","name":"{}","pull":{pull}}}"#,
                request.path
            );
            let all = ok(format!("[{},{writer}]", all.join(",")).as_bytes());
            for part in all.chunks(all.len() / 8 + 1) {
                to.write_all(part)?;
                thread::park_timeout(Duration::from_millis(60));
            }
            Ok(())
        });
        let mut servers = Servers::start(database, feed, 3);
        for number in 0..3 {
            wait_for_users(servers.daemon(number), 1501);
        }
        note_writes(database);
        let before = servers.feed.count();
        wait_until("it is pulled some times", || {
            servers.feed.count() >= before + 3
        });
        let holder = servers.last();
        let all_by_it = servers.feed.requests();
        assert!(
            all_by_it.iter().all(|request| request.path == path(holder)),
            "{all_by_it:?}"
        );
        assert_eq!(lease(database), (1, true));

        let kills = asked_for("BLOCKCHAIN_TCPD_TEST_KILLS", 3);
        let mut took = Vec::new();
        for kill in 0..kills {
            let holder = servers.last();
            // In the middle of a pull, or between two.
            wait_until("it pulls or not", || {
                (servers.feed.open() > 0) == (kill % 2 == 0)
            });
            let killed = Instant::now();
            // Dropped, it is killed.
            servers.daemons[holder] = None;
            let (next, at) = servers.wait_for_puller(killed, Some(holder));
            took.push(at - killed);
            assert!(at - killed < Duration::from_secs(5), "{:?}", at - killed);
            let (term, lasts) = lease(database);
            assert!((kill as u64 + 2, true) == (term, lasts), "{term}");
            servers.begin(holder);
            let before = servers.feed.count();
            wait_until("it is pulled again", || servers.feed.count() >= before + 2);
            assert_eq!(servers.last(), next, "who comes back takes nothing away");
        }
        took.sort();
        let (median, worst) = (took[took.len() / 2], took[took.len() - 1]);
        let url = database.url();
        println!("{url}: another pulls after {median:?} (median), at most {worst:?}");
        assert_eq!(servers.feed.most(), 1, "two pulled at a time");
        // In the database: in each term one has written, and the term before it was over.
        let terms = "SELECT count(DISTINCT term) FROM writes";
        assert_eq!(database.number(terms), kills as u64 + 1);
        let by_two = "SELECT count(*) FROM (SELECT term FROM writes GROUP BY term HAVING count(DISTINCT name) <> 1) AS wrong";
        assert_eq!(database.number(by_two), 0, "two have written in one term");
        let taken = "SELECT count(*), count(DISTINCT term), sum(CASE WHEN late < 0 THEN 1 ELSE 0 END) FROM takeovers";
        assert_eq!(database.sql(taken).trim(), format!("{kills}|{kills}|0"));
        let rows = "SELECT count(*), count(DISTINCT id), sum(CASE WHEN created_at = updated_at THEN 1 ELSE 0 END) FROM users \
                    WHERE id <> 'writer'";
        assert_eq!(database.sql(rows).trim(), "1500|1500|1500");
        for daemon in servers.daemons.into_iter().flatten() {
            let log = daemon.stop();
            let bad = ["unavailable", "can't be pulled", "ERROR", "panicked"];
            assert!(!bad.iter().any(|bad| log.contains(bad)), "{log}");
        }
    });
}

/// It is stopped while it reads the feed, or in the middle of a batch; meanwhile the users change.
#[test]
fn what_a_stopped_puller_had_read_is_refused_when_it_wakes() {
    Database::each(|database| {
        let gate = Gate::default();
        let (held, first) = (gate.clone(), Arc::new(Mutex::new(None::<String>)));
        let stuck = first.clone();
        let feed = FeedServer::start(move |request, to| {
            let is_first = {
                let mut first = stuck.lock().unwrap();
                first.get_or_insert_with(|| request.path.clone()) == &request.path
            };
            if !is_first {
                return to.write_all(&ok(array(&users(0..6000, "new")).as_bytes()));
            }
            // Some at a time, so that its batch goes on, until the gate is open; then the rest.
            let all = users(0..6000, "old").join("\n");
            let whole = ok(all.as_bytes());
            for part in whole.chunks(whole.len() / 100) {
                to.write_all(part)?;
                held.wait(Duration::from_millis(200));
            }
            Ok(())
        });
        let servers = Servers::start(database, feed, 2);
        let (old, begun) = servers.wait_for_puller(Instant::now() - PATIENCE, None);
        let new = 1 - old;
        match database {
            Database::Sqlite(_) => wait_until("users are written", || {
                database.number("SELECT count(*) FROM users") > 0
            }),
            // Its batch has begun, and is written once no users come for a second.
            _ => wait_until("a batch has begun", || database.number(COPIES) > 0),
        }
        servers.daemon(old).signal("STOP");
        let stopped = Instant::now();
        let (by, at) = servers.wait_for_puller(begun, Some(old));
        assert_eq!(by, new);
        assert!(at - stopped < Duration::from_secs(5), "{:?}", at - stopped);
        wait_for_users(servers.daemon(new), 6000);
        let is_new = "SELECT count(*) FROM users WHERE name = 'new'";
        wait_until("all are new", || database.number(is_new) == 6000);
        assert_eq!(lease(database), (2, true));

        let touched = "SELECT max(updated_at), count(*) FROM users";
        let before = database.sql(touched);
        servers.daemon(old).signal("CONT");
        gate.open();
        servers
            .daemon(old)
            .log()
            .wait_for("another server may pull the users");
        wait_until("the old response is read", || servers.feed.open() == 0);
        let count = servers.feed.count();
        wait_until("it is pulled again", || servers.feed.count() >= count + 2);
        assert_eq!(servers.last(), new);
        assert_eq!(database.number(is_new), 6000);
        assert_eq!(database.sql(touched), before, "a row was touched");
        assert_eq!(lease(database), (2, true));
        // It is as well as before.
        wait_for_users(servers.daemon(old), 6000);
        for daemon in servers.daemons.into_iter().flatten() {
            let log = daemon.stop();
            let bad = ["unavailable", "can't be pulled", "ERROR", "panicked"];
            assert!(!bad.iter().any(|bad| log.contains(bad)), "{log}");
        }
    });
}

#[test]
fn a_graceful_stop_and_a_handover_pass_the_lease_on_at_once() {
    Database::each(|database| {
        let mut servers = Servers::start(database, FeedServer::of(array(&users(0..5, "x"))), 3);
        wait_for_users(servers.daemon(0), 5);
        for _ in 0..3 {
            let holder = servers.last();
            let stopped = Instant::now();
            servers.daemons[holder].take().expect("it runs").stop();
            let (_, at) = servers.wait_for_puller(stopped, Some(holder));
            assert!(at - stopped < Duration::from_secs(2), "{:?}", at - stopped);
            servers.begin(holder);
        }
        for _ in 0..3 {
            let holder = servers.last();
            let replaced = Instant::now();
            replace(servers.daemon(holder));
            // Itself or another.
            let (_, at) = servers.wait_for_puller(replaced, None);
            assert!(
                at - replaced < Duration::from_secs(3),
                "{:?}",
                at - replaced
            );
            assert!(times(servers.daemon(holder), "ERROR") == 0);
        }
        assert_eq!(servers.feed.most(), 1, "two pulled at a time");
        // One that is alone goes on by itself.
        let last = servers.last();
        for number in (0..3).filter(|number| *number != last) {
            servers.daemons[number].take().expect("it runs").stop();
        }
        let replaced = Instant::now();
        replace(servers.daemon(last));
        let (_, at) = servers.wait_for_puller(replaced, None);
        assert!(
            at - replaced < Duration::from_secs(3),
            "{:?}",
            at - replaced
        );
        servers.feed.give(user(0, "after it"));
        wait_until("it goes on", || {
            name_of(servers.daemon(last), "u0000000").as_deref() == Some("after it")
        });
    });
}

/// The lease is kept by a connection; the batch of a slow feed takes another for long.
#[test]
fn a_slow_feed_does_not_cost_a_puller_its_lease() {
    let Some(database) = Database::postgres() else {
        return;
    };
    let feed = FeedServer::start(|_, to| {
        let all = ok(users(0..1200, "slow").join("\n").as_bytes());
        for part in all.chunks(all.len() / 12 + 1) {
            to.write_all(part)?;
            thread::park_timeout(Duration::from_millis(500));
        }
        Ok(())
    });
    let daemons =
        ["/0", "/1"].map(|path| puller(&database, &feed.url(path), &["--store-connections", "1"]));
    wait_for_users(&daemons[0], 1200);
    daemons[0].log();
    wait_until("a pull is complete", || {
        database.number("SELECT count(*) FROM leases WHERE pulled_at > 0") > 0
    });
    let (term, _) = lease(&database);
    assert_eq!(term, 1);
    for daemon in daemons {
        let log = daemon.stop();
        assert_contains(&log, "the store answers");
        assert!(!log.contains("can't be pulled"), "{log}");
    }
}
