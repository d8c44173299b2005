//! `blockchain-tcp pull`: a feed is loaded once, by hand.

use std::io::Write as _;
use std::path::Path;
use std::process::{Child, ChildStdin, Stdio};
use std::thread;

use super::server::{FeedServer, head, response};
use super::{Database, array, compressed, name_of, puller, user, users};
use crate::client::{Ran, client, ran};
use crate::support::{Scratch, assert_contains, free_port, kill, wait_for_end, wait_until};

/// Loads what is in this file.
fn pull(database: &Database, feed: &Path, more: &[&str]) -> Ran {
    let mut client = client();
    client.args(more).args(["pull", "--store", &database.url()]);
    ran(client.arg("--feed").arg(feed).output().expect("it runs"))
}

/// Loads these bytes, which must go well. Returns the numbers of the summary, without the time.
#[track_caller]
fn load(database: &Database, feed: impl AsRef<[u8]>) -> String {
    let scratch = Scratch::new();
    let file = scratch.path().join("feed");
    std::fs::write(&file, feed).expect("a scratch file");
    let ran = pull(database, &file, &[]);
    assert_eq!((ran.status, &*ran.errors), (0, ""), "{ran:?}");
    summary(&ran)
}

/// The summary without the time.
#[track_caller]
fn summary(ran: &Ran) -> String {
    let (read, rest) = ran.output.split_once(" read in ").expect("a summary");
    let (seconds, counts) = rest.split_once(" s: ").expect("a time");
    assert!(seconds.parse::<f64>().is_ok(), "{seconds}");
    format!("{read} read: {}", counts.trim_end())
}

/// The client that loads what is written into it.
fn reading(database: &Database) -> (Child, ChildStdin) {
    let mut client = client();
    client.args(["pull", "--feed", "-", "--store", &database.url()]);
    client.stdin(Stdio::piped()).stdout(Stdio::piped());
    let mut child = client.stderr(Stdio::piped()).spawn().expect("it runs");
    let input = child.stdin.take().expect("it is piped");
    (child, input)
}

/// What came of it.
#[track_caller]
fn end(mut child: Child) -> Ran {
    if wait_for_end(&mut child).is_none() {
        let _ = child.kill();
        panic!("it runs on");
    }
    ran(child.wait_with_output().expect("it has ended"))
}

#[test]
fn a_feed_is_loaded_in_each_of_its_forms() {
    Database::each(|database| {
        let form = |name: &str| users(0..2500, name);
        let new = "2500 read: 2500 inserted, 0 updated, 0 unchanged, 0 refused";
        assert_eq!(load(database, array(&form("array"))), new);
        let changed = "2500 read: 0 inserted, 2500 updated, 0 unchanged, 0 refused";
        assert_eq!(load(database, form("lines").join("\n")), changed);
        let zipped = compressed(array(&form("gzip")).as_bytes());
        assert_eq!(load(database, zipped), changed);
        // Two files of gzip, one behind the other, are one.
        let (some, others) = (
            form("both")[..900].join("\n"),
            form("both")[900..].join("\n"),
        );
        let both = [some + "\n", others].map(|part| compressed(part.as_bytes()));
        assert_eq!(load(database, both.concat()), changed);

        let (child, mut input) = reading(database);
        let all = format!("\u{feff}{}\r\n", array(&form("input")));
        input.write_all(all.as_bytes()).expect("it reads");
        drop(input);
        assert_eq!(summary(&end(child)), changed);
        let names = "SELECT count(*) FROM users WHERE name = 'input' AND email = '7@example.org'";
        assert_eq!(database.number(names), 1);
        assert_eq!(
            database.number("SELECT count(*) FROM users WHERE name = 'input'"),
            2500
        );
        let empty = "0 read: 0 inserted, 0 updated, 0 unchanged, 0 refused";
        for nothing in ["[]", " [ ] \n"] {
            assert_eq!(load(database, nothing), empty);
        }
    });
}

#[test]
fn what_is_no_user_is_named_and_spoils_nothing() {
    let long = format!(r#"{{"id":"{}"}}"#, "x".repeat(2001));
    let bad = [
        (
            r#"{"id":"zero","a":"x\u0000y"}"#,
            "a text has the character 0",
        ),
        (r#"{"id":"half","a":"\ud800"}"#, "a text is not Unicode"),
        (r#"{"id":"twice","a":1,"a":2}"#, "a member comes twice"),
        (r#"{"id":"huge","a":1e400}"#, "a number is too large"),
        (&long, "the id has more than 2,000 bytes"),
        // No more than five are named.
        (r#"{"id":"deep\u0000"}"#, ""),
        ("[1]", ""),
        (r#"{"name":"none"}"#, ""),
    ];
    Database::each(|database| {
        let mut values = Vec::new();
        for (index, (value, _)) in bad.iter().enumerate() {
            values.push(user(index, "good"));
            values.push((*value).to_string());
        }
        let scratch = Scratch::new();
        let file = scratch.path().join("feed");
        std::fs::write(&file, array(&values)).expect("a scratch file");
        let ran = pull(database, &file, &[]);
        assert_eq!(ran.status, 0, "{ran:?}");
        let expected = "16 read: 8 inserted, 0 updated, 0 unchanged, 8 refused";
        assert_eq!(summary(&ran), expected);
        let lines: Vec<&str> = ran.errors.lines().collect();
        assert_eq!(lines.len(), 5, "{ran:?}");
        for (index, (value, why)) in bad[..5].iter().enumerate() {
            let line = lines[index];
            assert_contains(
                line,
                &format!("blockchain-tcp: skipped value {}", 2 * index + 2),
            );
            assert_contains(line, why);
            let id = value.split('"').nth(3).expect("an id");
            assert_eq!(
                line.contains(&format!("of the id \"{id}\"")),
                id.len() < 100
            );
        }
        assert_eq!(database.number("SELECT count(*) FROM users"), 8);
        let ran = pull(database, &file, &["--json"]);
        let json: serde_json::Value = serde_json::from_str(&ran.output).expect("JSON");
        let numbers = ["read", "inserted", "updated", "unchanged", "refused"];
        assert_eq!(
            numbers.map(|name| json[name].as_u64().unwrap()),
            [16, 0, 0, 8, 8]
        );
        assert!(json["seconds"].is_f64(), "{json}");
    });
}

/// A block has 1,000 users, a batch of PostgreSQL 100,000.
#[test]
fn the_last_of_the_same_id_wins() {
    let mut values = vec![user(1, "first"); 101_003];
    for (place, value) in values.iter_mut().enumerate() {
        // Only a few ids, which come again and again.
        *value = user(place % 5, "early");
    }
    // Within a block, over its end, over the end of a batch.
    let mut last = |number: usize, place: usize, name: &str| {
        values.iter_mut().skip(place).for_each(|value| {
            if value.contains(&format!("u{number:07}")) {
                *value = user(9, "other");
            }
        });
        values[place] = user(number, name);
    };
    last(0, 500, "in a block");
    last(1, 1000, "over a block");
    last(2, 99_999, "at the end of a batch");
    last(3, 100_000, "over a batch");
    last(4, 101_001, "in the last block");
    values[101_002] = user(5, "alone");
    let expected = [
        "u0000000|in a block",
        "u0000001|over a block",
        "u0000002|at the end of a batch",
        "u0000003|over a batch",
        "u0000004|in the last block",
        "u0000005|alone",
        "u0000009|other",
    ];
    Database::each(|database| {
        load(database, values.join("\n"));
        assert_eq!(database.names(), expected);
    });
}

/// A server that has a feed keeps the users as that has them, whenever somebody loads others by hand.
#[test]
fn a_feed_has_the_last_word() {
    Database::each(|database| {
        let feed = FeedServer::start(|request, to| {
            let is_known = request.field("if-none-match") == Some("\"1\"");
            let body = array(&[user(0, "the feed"), user(1, "the feed")]);
            to.write_all(&match is_known {
                true => head("304 Not Modified", "ETag: \"1\"\r\n").into_bytes(),
                false => response("200 OK", "ETag: \"1\"\r\n", body.as_bytes()),
            })
        });
        let daemon = puller(database, &feed.url("/"), &[]);
        let is_the_feeds = || {
            let id = ["u0000000", "u0000001"];
            id.iter()
                .all(|id| name_of(&daemon, id).as_deref() == Some("the feed"))
        };
        wait_until("it is pulled", is_the_feeds);
        let (mut child, mut input) = reading(database);
        // More than are written at a time, and most of them unknown to the feed.
        let many = users(0..1001, "by hand").join("\n");
        writeln!(input, "{many}").expect("it reads");
        let written = "SELECT count(*) FROM users WHERE name = 'by hand'";
        wait_until("some are written", || database.number(written) > 900);
        // It goes on, and the server pulls meanwhile.
        wait_until("it is pulled", is_the_feeds);
        let before = feed.count();
        wait_until("the server asks", || feed.count() >= before + 2);
        writeln!(input, "{}", user(1, "by hand")).expect("it reads");
        drop(input);
        assert!(wait_for_end(&mut child).expect("it ends").success());
        wait_until("it is pulled again", is_the_feeds);
        // And each time that it is loaded at once, whatever the server is doing.
        for _ in 0..5 {
            load(database, user(0, "by hand"));
        }
        wait_until("it is pulled again", is_the_feeds);
        assert!(!daemon.stop().contains("WARN"));
    });
}

#[test]
fn rows_that_are_as_they_should_be_are_not_touched() {
    Database::each(|database| {
        let mut all = users(0..2500, "same");
        all.push(
            r#"{"id":"bare","x":{"b":[1,2.50,"ü\"\\\t"],"a":18446744073709551615}}"#.to_string(),
        );
        all.push(r#"{"id":"tab\tid \\N","name":"\\N","email":"a\tb\nc\\"}"#.to_string());
        load(database, array(&all));
        let state = || match database {
            Database::Sqlite(_) => database.sql("SELECT id, created_at, updated_at FROM users"),
            _ => database
                .sql("SELECT id, created_at, updated_at, xmin, xmax, ctid FROM users ORDER BY id"),
        };
        let before = state();
        // Blanks and the order of members are not the same thing.
        let spaced = all.join("\n").replace("\":", "\" : ");
        let unchanged = "2502 read: 0 inserted, 0 updated, 2502 unchanged, 0 refused";
        assert_eq!(load(database, spaced), unchanged);
        assert!(state() == before, "a row was touched");

        all[1234] = user(1234, "changed");
        let one = "2502 read: 0 inserted, 1 updated, 2501 unchanged, 0 refused";
        assert_eq!(load(database, array(&all)), one);
        let after = state();
        let touched: Vec<&str> = after
            .lines()
            .filter(|line| !before.contains(line))
            .collect();
        assert_eq!(touched.len(), 1, "{touched:?}");
        let (created, updated) = ("created_at", "updated_at");
        let later =
            format!("SELECT count(*) FROM users WHERE {created} < {updated} AND id = 'u0001234'");
        assert_eq!(database.number(&later), 1);
        assert_eq!(
            database.number("SELECT count(*) FROM users WHERE created_at <> updated_at"),
            1
        );
        // The clock of another server may have been ahead.
        let ahead = 4_102_444_800_000_000_u64;
        database.sql(&format!(
            "UPDATE users SET created_at = {ahead}, updated_at = {ahead}"
        ));
        all[7] = user(7, "changed");
        assert_eq!(load(database, array(&all)), one);
        let updated = database.number("SELECT updated_at FROM users WHERE id = 'u0000007'");
        assert_eq!(updated, ahead + 1);
    });
}

#[test]
fn what_can_not_be_done_has_its_status() {
    Database::each(|database| {
        let scratch = Scratch::new();
        let file = |content: &str| {
            let file = scratch.path().join("feed");
            std::fs::write(&file, content).expect("a scratch file");
            file
        };
        let all = array(&users(0..2500, "whole"));
        let ran = pull(database, &file(&all[..all.len() - 20]), &[]);
        assert_eq!(ran.status, 65, "{ran:?}");
        let why = "blockchain-tcp: the feed breaks off within a value, after 2499 before it\n";
        assert_eq!(ran.errors, why);
        let before = "2499 read: 2499 inserted, 0 updated, 0 unchanged, 0 refused";
        assert_eq!(summary(&ran), before);
        assert_eq!(database.number("SELECT count(*) FROM users"), 2499);
        let cut = compressed(all.as_bytes());
        let zipped = scratch.path().join("feed.gz");
        std::fs::write(&zipped, &cut[..cut.len() - 100]).expect("a scratch file");
        assert_eq!(pull(database, &zipped, &[]).status, 65);
        let ran = pull(database, &file("<html></html>"), &[]);
        assert_eq!(ran.status, 65, "{ran:?}");
        assert_contains(&ran.errors, "the feed is no JSON: after 0 values comes '<'");

        let ran = pull(database, &scratch.path().join("none"), &[]);
        assert_eq!((ran.status, &*ran.output), (66, ""), "{ran:?}");
        assert_contains(&ran.errors, "none\": ");
        let ran = pull(database, scratch.path(), &[]);
        assert_eq!(ran.status, 66, "{ran:?}");
    });
    let scratch = Scratch::new();
    let file = scratch.path().join("feed");
    std::fs::write(&file, "[]").expect("a scratch file");
    let away = [
        format!("postgres://postgres@127.0.0.1:{}/users", free_port()),
        format!("sqlite://{}/none/users.db", scratch.path().display()),
    ];
    for url in away {
        let mut client = client();
        client.args(["pull", "--store", &url, "--feed"]).arg(&file);
        let ran = ran(client.output().expect("it runs"));
        assert_eq!(ran.status, 69, "{ran:?}");
        assert_contains(&ran.errors, "blockchain-tcp: can't write to the store: ");
    }
}

/// Batches that are being written.
pub const COPIES: &str =
    "SELECT count(*) FROM pg_stat_activity WHERE state = 'active' AND query LIKE 'COPY%'";

/// The feed waits for nobody, or waits for ever.
#[test]
fn an_interrupt_ends_it_in_order() {
    Database::each(|database| {
        for waits in [false, true] {
            let (child, mut input) = reading(database);
            let writing = thread::spawn(move || {
                for number in 0.. {
                    let line = user(number, ["goes on", "waits"][usize::from(waits)]) + "\n";
                    if (waits && number == 3000) || input.write_all(line.as_bytes()).is_err() {
                        break;
                    }
                }
                input
            });
            let name = ["goes on", "waits"][usize::from(waits)];
            let some = format!("SELECT count(*) FROM users WHERE name = '{name}'");
            wait_until("the table is there", || {
                matches!(database, Database::Postgres(_)) || Path::new(&database.file()).exists()
            });
            // A batch of PostgreSQL goes on for long if the feed does.
            let least = if waits { 3000 } else { 1 };
            wait_until("it loads", || match database {
                Database::Postgres(_) if !waits => database.number(COPIES) > 0,
                _ => database.has_table() && database.number(&some) >= least,
            });
            assert!(kill("INT", child.id()), "it runs");
            let ran = end(child);
            drop(writing.join());
            assert_eq!(ran.status, 130, "{ran:?}");
            assert_eq!(
                ran.errors,
                "blockchain-tcp: stopped before the end of the feed\n"
            );
            let counts = summary(&ran);
            let (_, counts) = counts.split_once(": ").expect("counts");
            let count = |index: usize| -> u64 {
                let part = counts.split(", ").nth(index).expect("a count");
                part.split(' ').next().unwrap().parse().expect("a number")
            };
            // What it says is there is there, and nothing else.
            assert_eq!(database.number(&some), count(0) + count(1), "{counts}");
        }
    });
}
