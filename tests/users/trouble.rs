//! Trouble with the database: it is away, stopped, full, locked, read-only or not what it should be.

use std::fs;
use std::thread;
use std::time::{Duration, Instant};

use super::streams::count_users;
use super::{ALL_USERS, Database, HttpClient, Kind, SCHEMES, Server, sqlite};
use crate::handover::times;
use crate::support::postgres::{Bouncer, Postgres, Sitting};
use crate::support::watch::repeat;
use crate::support::{Client, Daemon, Scratch, assert_contains, wait_until};

const AWAY: &str =
    "ERR UNAVAILABLE the users are not at hand: the database does not answer, try again";

/// Longer than any command waits for the database.
const LONGEST: Duration = Duration::from_millis(3500);

/// The lines of the log at the beginning and at the end of an outage.
const BEGINS: &str = "the store is unavailable: its commands may be answered ERR UNAVAILABLE";
const ENDS: &str = "over: the store is unavailable";

/// Waits until the log has told of this number of outages, each with one line at its beginning and one at its end.
fn outages(daemon: &Daemon, number: usize) {
    wait_until("the outage is over", || times(daemon, ENDS) == number);
    assert_eq!(times(daemon, BEGINS), number);
    let lines = daemon.log().lines();
    // libpq has lines of its own.
    let about = |line: &&String| line.contains(" WARN ") || line.contains(" ERROR ");
    assert_eq!(lines.iter().filter(about).count(), number, "{lines:?}");
}

/// Asks, and returns the answer and how long it took.
fn timed(client: &mut Client, line: &str) -> (String, Duration) {
    let begun = Instant::now();
    let answer = client.ask(line);
    (answer, begun.elapsed())
}

/// Each command must be refused now, by each protocol, without long waits; others must be answered.
fn is_away(server: &Server) {
    for request in ["users", "user 7", "get_users"] {
        for scheme in SCHEMES {
            let begun = Instant::now();
            let said = server.ask_by(scheme, request).expect_err(request);
            assert_contains(&said, "the database does not answer");
            assert!(
                begun.elapsed() < LONGEST,
                "{scheme} {request}: {:?}",
                begun.elapsed()
            );
        }
    }
    let (answer, took) = timed(&mut server.daemon.connect(), "WHO");
    assert!(answer.parse::<u32>().is_ok(), "{answer}");
    assert!(took < Duration::from_millis(500), "{took:?}");
}

#[test]
fn a_database_that_is_away_at_the_start_comes_later() {
    let Some(postgres) = Postgres::prepare() else {
        return;
    };
    let server = Server::start(&postgres.url(), "");
    is_away(&server);
    // Nobody waits for a connection meanwhile.
    let mut client = server.daemon.connect();
    for _ in 0..100 {
        let (answer, took) = timed(&mut client, "USERS");
        assert_eq!(answer, AWAY);
        assert!(took < Duration::from_millis(500), "{took:?}");
    }
    // Its database is missing first, which is no other outage.
    postgres.run();
    is_away(&server);
    postgres.create();
    outages(&server.daemon, 1);
    assert_eq!(client.ask("USERS"), "0");
}

#[test]
fn it_heals_without_a_request() {
    Database::each(&[Kind::Postgres, Kind::Bouncer], |database| {
        let server = Server::start(&database.url(), "--store-connections 8");
        for round in 1..=2 {
            database.postgres().end("INT");
            // Whichever thread sees it first.
            server.wait_for("USERS", AWAY);
            server.daemon.log().wait_for(BEGINS);
            database.postgres().run();
            outages(&server.daemon, round);
        }
        assert_eq!(server.ask("USERS"), "0");
    });
}

/// A client that asks for a user again and again, and counts the answers: the user, and that the database is away.
fn asking(server: &Server) -> crate::support::watch::Repeated<(Client, [usize; 2], Duration)> {
    let state = (server.daemon.connect(), [0; 2], Duration::ZERO);
    repeat(state, |(client, counts, longest)| {
        let (answer, took) = timed(client, "USER 00000007");
        *longest = took.max(*longest);
        match answer.strip_prefix("{\"id\":\"00000007\",\"name\":\"Name 7\",") {
            Some(_) => counts[0] += 1,
            None => {
                assert_eq!(answer, AWAY);
                counts[1] += 1;
            }
        }
        // All connections are in use, but not all cores.
        thread::park_timeout(Duration::from_millis(3));
    })
}

#[test]
fn a_database_that_is_killed_under_load_is_an_outage_and_no_more() {
    Database::each(&[Kind::Postgres, Kind::Bouncer], |database| {
        let server = Server::start(&database.url(), "");
        server.wait_for("USERS", "0");
        database.fill(1000);
        let clients: Vec<_> = (0..8).map(|_| asking(&server)).collect();
        for (round, end) in [(1, "kill"), (2, "INT"), (3, "QUIT")] {
            match end {
                "kill" => database.postgres().kill(),
                signal => database.postgres().end(signal),
            }
            // The processes of connections may survive their parent for a moment.
            server.wait_for("USERS", AWAY);
            is_away(&server);
            database.postgres().run();
            outages(&server.daemon, round);
        }
        for client in clients {
            let (_, [answered, refused], longest) = client.end();
            assert!(answered > 10 && refused > 10, "{answered} {refused}");
            assert!(longest < LONGEST, "{longest:?}");
        }
        assert_eq!(server.ask("USERS"), "1000");
    });
}

/// - While the database does not answer, these three are answered `ERR UNAVAILABLE` within three seconds, and all others as
///   usual.
#[test]
fn a_database_that_is_stopped_holds_nobody_up() {
    Database::each(&[Kind::Postgres, Kind::Bouncer], |database| {
        let server = Server::start(&database.url(), "");
        server.wait_for("USERS", "0");
        database.fill(1000);
        let mut clients: Vec<_> = (0..8).map(|_| server.daemon.connect()).collect();
        for round in 1..=2 {
            // All connections are in use, or none of them.
            for client in &mut clients[..round * 4] {
                assert_eq!(client.ask("USERS"), "1000");
            }
            database.postgres().signal("STOP");
            let begun = Instant::now();
            clients.iter_mut().for_each(|client| client.send("USERS\n"));
            for client in &mut clients {
                assert_eq!(client.line().as_deref(), Some(AWAY));
            }
            assert!(begun.elapsed() < LONGEST, "{:?}", begun.elapsed());
            is_away(&server);
            // It goes on being so, however long that takes.
            let until = Instant::now() + Duration::from_secs(4);
            while Instant::now() < until {
                let (answer, took) = timed(&mut clients[0], "USERS");
                assert_eq!(answer, AWAY);
                assert!(took < LONGEST, "{took:?}");
            }
            database.postgres().signal("CONT");
            outages(&server.daemon, round);
            assert_eq!(server.ask("USERS"), "1000");
        }
        wait_until("no connection is left over", || {
            database.postgres().connections() <= 5
        });
    });
}

#[test]
fn connections_that_are_cut_between_requests_are_no_error() {
    Database::each(&[Kind::Postgres, Kind::Bouncer], |database| {
        let server = Server::start(&database.url(), "");
        server.wait_for("USERS", "0");
        database.fill(100);
        let mut client = server.daemon.connect();
        for _ in 0..10 {
            assert_eq!(client.ask("USERS"), "100");
            assert!(database.postgres().cut() > 0);
            assert_eq!(client.ask("USERS"), "100");
            assert_eq!(
                client.ask("USER x"),
                "ERR NOTFOUND there is none of this id: \"x\""
            );
        }
        assert_eq!(times(&server.daemon, "unavailable"), 0);
    });
}

#[test]
fn connections_that_are_cut_under_load_are_made_anew() {
    Database::each(&[Kind::Postgres], |database| {
        let server = Server::start(&database.url(), "");
        server.wait_for("USERS", "0");
        database.fill(1000);
        let mut clients: Vec<_> = (0..8).map(|_| server.daemon.connect()).collect();
        for _ in 0..10 {
            // All are asking while the connections are cut, once.
            for client in &mut clients {
                client.send("USERS\n".repeat(100));
            }
            assert!(database.postgres().cut() > 0);
            for client in &mut clients {
                for _ in 0..100 {
                    assert_eq!(client.line().as_deref(), Some("1000"));
                }
            }
        }
        assert_eq!(times(&server.daemon, "unavailable"), 0);
    });
}

#[test]
fn a_stream_whose_database_ends_is_cut_with_a_reason() {
    Database::each(&[Kind::Postgres, Kind::Bouncer], |database| {
        let server = Server::start(&database.url(), "");
        server.wait_for("USERS", "0");
        database.fill(100_000);
        let mut client = HttpClient::connect(server.address("http"));
        client.post(ALL_USERS);
        client.head().expect("it begins");
        database.postgres().end("QUIT");
        let mut body = Vec::new();
        let mut is_whole = false;
        while let Some(length) = client.line() {
            let length = u64::from_str_radix(&length, 16).expect("a length");
            is_whole |= length == 0;
            if !client.copy(length, &mut |part| body.extend_from_slice(part)) {
                break;
            }
            client.line();
        }
        let body = String::from_utf8(body).expect("UTF-8");
        assert!(!is_whole);
        let why = "\nERR UNAVAILABLE the database has failed, try again\n";
        assert!(body.ends_with(why), "{}", &body[body.len() - 100..]);
        database.postgres().run();
        outages(&server.daemon, 1);
        let mut client = HttpClient::connect(server.address("http"));
        client.post(ALL_USERS);
        assert_eq!(count_users(&mut client), (100_000, true));
    });
}

/// A database that is stopped says nothing, and its connection stays as it is: a stream goes on when the database does, or ends
/// when the client's time is over.
#[test]
fn a_stream_whose_database_is_stopped_goes_on_or_ends_in_its_time() {
    Database::each(&[Kind::Postgres, Kind::Bouncer], |database| {
        let patient = Server::start(&database.url(), "");
        patient.wait_for("USERS", "0");
        database.fill(200_000);
        let hasty = Server::start(&database.url(), "--store-stream-timeout 3s");
        let begin = |server: &Server| {
            let mut client = HttpClient::connect(server.address("http"));
            client.post(ALL_USERS);
            client.wait_for_users();
            client
        };
        let (mut whole, mut cut) = (begin(&patient), begin(&hasty));
        database.postgres().signal("STOP");
        let begun = Instant::now();
        let asked = [&patient, &hasty].map(|server| {
            let mut client = server.daemon.connect();
            client.send("USERS\n");
            client
        });
        for server in [&patient, &hasty] {
            let (answer, took) = timed(&mut server.daemon.connect(), "WHO");
            assert!(answer.parse::<u32>().is_ok(), "{answer}");
            assert!(took < Duration::from_millis(500), "{took:?}");
        }
        for mut client in asked {
            assert_eq!(client.line().as_deref(), Some(AWAY));
        }
        assert!(begun.elapsed() < LONGEST, "{:?}", begun.elapsed());
        let (body, is_whole) = cut.text();
        assert!(
            begun.elapsed() < Duration::from_secs(6),
            "{:?}",
            begun.elapsed()
        );
        let (_, why) = body.rsplit_once("\nERR ").expect("an error at its end");
        let known = [
            "TIMEOUT the users were not taken in time\n",
            "UNAVAILABLE the database has failed, try again\n",
        ];
        assert!(!is_whole && known.contains(&why), "{why}");
        database.postgres().signal("CONT");
        assert_eq!(count_users(&mut whole), (200_000, true));
        for server in [&patient, &hasty] {
            outages(&server.daemon, 1);
            assert_eq!(server.ask("USERS"), "200000");
        }
        let mut client = HttpClient::connect(patient.address("http"));
        client.post(ALL_USERS);
        assert_eq!(count_users(&mut client), (200_000, true));
    });
}

#[test]
fn a_statement_that_takes_too_long_is_ended() {
    Database::each(&[Kind::Postgres, Kind::Bouncer], |database| {
        let server = Server::start(&database.url(), "");
        server.wait_for("USERS", "0");
        database.fill(10);
        let lock = database.session("BEGIN; LOCK TABLE users IN ACCESS EXCLUSIVE MODE;");
        for request in ["USERS", "USER 7", "GET_USERS"] {
            let (answer, took) = timed(&mut server.daemon.connect(), request);
            assert_eq!(answer, AWAY);
            assert!(took < LONGEST, "{took:?}");
        }
        let waiting = "SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock'";
        wait_until("it waits no longer than the client", || {
            database.sql(waiting).trim() == "0"
        });
        let (answer, took) = timed(&mut server.daemon.connect(), "WHO");
        assert!(answer.parse::<u32>().is_ok() && took < Duration::from_secs(1));
        drop(lock);
        outages(&server.daemon, 1);
        assert_eq!(server.ask("USERS"), "10");
    });
}

#[test]
fn a_database_without_connections_is_an_outage() {
    let Some(postgres) =
        Postgres::start(&["max_connections=6", "superuser_reserved_connections=3"])
    else {
        return;
    };
    postgres.sql("CREATE ROLE asker LOGIN; GRANT ALL ON SCHEMA public TO asker");
    let url = postgres.url_of("asker", "");
    let sittings: Vec<Sitting> = (0..3).map(|_| postgres.session("SELECT 1;")).collect();
    let server = Server::start(&url, "");
    is_away(&server);
    assert_contains(
        &server.daemon.log().wait_for(BEGINS),
        "connection slots are reserved",
    );
    drop(sittings);
    // One of its threads may still find no room.
    server.wait_for("USERS", "0");
    // With fewer than it wants, it does with those.
    let mut clients: Vec<_> = (0..8).map(|_| server.daemon.connect()).collect();
    clients.iter_mut().for_each(|client| client.send("USERS\n"));
    let answers: Vec<_> = clients.iter_mut().map(|client| client.line()).collect();
    assert!(answers.contains(&Some("0".to_string())), "{answers:?}");
}

#[test]
fn a_database_that_only_may_be_read_answers() {
    let Some(postgres) = Postgres::start(&[]) else {
        return;
    };
    // As nobody has made its table yet, there is nothing to read.
    postgres.sql("ALTER DATABASE users SET default_transaction_read_only = on");
    let server = Server::start(&postgres.url(), "");
    is_away(&server);
    assert_contains(
        &server.daemon.log().wait_for(BEGINS),
        "read-only transaction",
    );
    postgres.sql("SET default_transaction_read_only = off; ALTER DATABASE users RESET default_transaction_read_only");
    outages(&server.daemon, 1);
    postgres.sql("INSERT INTO users VALUES ('7', NULL, NULL, '{}', 0, 0)");
    drop(server);
    // A standby, or a role that only may read.
    postgres.sql("ALTER DATABASE users SET default_transaction_read_only = on");
    postgres.sql("SET default_transaction_read_only = off; CREATE ROLE reader LOGIN; CREATE ROLE nobody_much LOGIN; \
                  GRANT SELECT ON ALL TABLES IN SCHEMA public TO reader");
    for user in ["postgres", "reader"] {
        let server = Server::start(&postgres.url_of(user, ""), "");
        assert_eq!(server.ask("USERS"), "1");
        assert_eq!(super::ids(&server.call(ALL_USERS)), ["7"]);
        assert_eq!(times(&server.daemon, "unavailable"), 0);
    }
    // One without any rights may nothing.
    let server = Server::start(&postgres.url_of("nobody_much", ""), "");
    is_away(&server);
    assert_contains(&server.daemon.log().wait_for(BEGINS), "permission denied");
    postgres.sql("SET default_transaction_read_only = off; GRANT SELECT ON ALL TABLES IN SCHEMA public TO nobody_much");
    outages(&server.daemon, 1);
    assert_eq!(server.ask("USERS"), "1");
}

#[test]
fn a_bouncer_that_is_away_is_the_same_as_a_database_that_is() {
    let Some(postgres) = Postgres::start(&[]) else {
        return;
    };
    let Some(bouncer) = Bouncer::start(&postgres) else {
        return;
    };
    let server = Server::start(&bouncer.url(), "");
    server.wait_for("USERS", "0");
    drop(bouncer);
    is_away(&server);
}

#[test]
fn a_file_that_can_t_be_opened_may_be_mended() {
    needs!("sqlite3");
    let scratch = Scratch::new();
    let folder = scratch.path().join("folder");
    let file = folder.join("users.db");
    let url = format!("sqlite://{}", file.display());
    // Its folder is missing.
    let server = Server::start(&url, "");
    is_away(&server);
    assert_contains(&server.daemon.log().wait_for(BEGINS), "unable to open");
    // It is no database.
    fs::create_dir(&folder).expect("a scratch folder");
    let wrong = folder.join("wrong");
    fs::write(&wrong, "no database\n".repeat(1000)).expect("a scratch file");
    fs::rename(&wrong, &file)
        .or_else(|_| fs::remove_file(&file))
        .expect("ours");
    is_away(&server);
    fs::remove_file(&file).expect("it is there");
    outages(&server.daemon, 1);
    assert_eq!(server.ask("USERS"), "0");
    let other = scratch.path().join("other.db");
    fs::write(&other, "no database\n".repeat(1000)).expect("a scratch file");
    let server = Server::start(&format!("sqlite://{}", other.display()), "");
    is_away(&server);
    assert_contains(
        &server.daemon.log().wait_for(BEGINS),
        "file is not a database",
    );
    assert_eq!(fs::read(&other).expect("it is there").len(), 12_000);
}

/// A puller that can't have its lease keeps nobody from the users.
#[test]
fn a_lease_that_is_locked_concerns_the_puller_alone() {
    Database::each(&[Kind::Postgres], |database| {
        let feed = "--users-feed http://127.0.0.1:1/ --users-feed-interval 1h";
        let server = Server::start(&database.url(), feed);
        server.wait_for("USERS", "0");
        server.daemon.log().wait_for("this server pulls the users");
        let locked = database.session("BEGIN; SELECT * FROM leases FOR UPDATE;");
        let mut client = server.daemon.connect();
        let until = Instant::now() + Duration::from_secs(5);
        while Instant::now() < until {
            let (answer, took) = timed(&mut client, "USERS");
            assert_eq!(answer, "0");
            assert!(took < Duration::from_secs(1), "{took:?}");
            thread::park_timeout(Duration::from_millis(20));
        }
        drop(locked);
        let log = server.daemon.stop();
        assert!(!log.contains("server closed the connection"), "{log}");
    });
}

/// All connections lead to the file that is there, and the log tells of another once.
#[test]
fn a_file_that_is_removed_is_not_asked_any_more() {
    Database::each(&[Kind::Sqlite], |database| {
        let server = Server::start(&database.url(), "");
        server.wait_for("USERS", "0");
        database.fill(10);
        let mut clients: Vec<_> = (0..8).map(|_| server.daemon.connect()).collect();
        clients.iter_mut().for_each(|client| client.send("USERS\n"));
        for client in &mut clients {
            assert_eq!(client.line().as_deref(), Some("10"));
        }
        for suffix in ["", "-wal", "-shm"] {
            fs::remove_file(format!("{}{suffix}", database.file())).expect("it is there");
        }
        for _ in 0..3 {
            assert!(super::ids(&server.call(ALL_USERS)).is_empty());
            clients.iter_mut().for_each(|client| client.send("USERS\n"));
            for client in &mut clients {
                assert_eq!(client.line().as_deref(), Some("0"));
            }
        }
        let log = server.daemon.stop();
        assert_eq!(log.matches("was removed or replaced").count(), 1, "{log}");
    });
}

#[test]
fn a_file_that_another_process_has_locked_is_away_until_it_is_not() {
    Database::each(&[Kind::Sqlite], |database| {
        let server = Server::start(&database.url(), "");
        server.wait_for("USERS", "0");
        database.fill(10);
        // Somebody who writes holds up nobody who reads.
        let writing = database.session("BEGIN IMMEDIATE; DELETE FROM users;");
        for request in ["USERS", "USERS", "USERS"] {
            assert_eq!(server.ask(request), "10");
        }
        assert_eq!(super::ids(&server.call(ALL_USERS)).len(), 10);
        drop(writing);
        assert_eq!(times(&server.daemon, "unavailable"), 0);
        drop(server);
        let locked = Sitting::open(
            sqlite(&database.file()),
            "PRAGMA locking_mode = EXCLUSIVE; BEGIN EXCLUSIVE; UPDATE users SET updated_at = 1;",
            ".system echo",
        );
        let server = Server::start(&database.url(), "");
        is_away(&server);
        assert_contains(&server.daemon.log().wait_for(BEGINS), "locked");
        drop(locked);
        outages(&server.daemon, 1);
        assert_eq!(server.ask("USERS"), "10");
    });
}
