//! Feeds of users: loaded by hand, and pulled by daemons, of which one at a time pulls; over PostgreSQL and SQLite.
//!
//! `server` is a server of feeds that does what a test says. By hand is `once`; what a server of a feed may do is in `feeds`; several
//! daemons on one database in `servers`; a database in trouble in `trouble`; a million users in `many`.

mod feeds;
mod many;
mod once;
pub mod server;
mod servers;
mod trouble;

use std::process::Command;

use crate::support::postgres::{Bouncer, Postgres, ask};
use crate::support::{Daemon, Scratch, at_once, clean, installed, wait_until};

/// A database without tables. Dropped, it is gone.
pub enum Database {
    Sqlite(Scratch),
    Postgres(Postgres),
    /// PgBouncer in front of a PostgreSQL.
    Bouncer(Bouncer, Postgres),
}

impl Database {
    /// A file. Without its program the test is to return.
    #[must_use]
    #[track_caller]
    pub fn sqlite() -> Option<Self> {
        installed("sqlite3").then(|| Database::Sqlite(Scratch::new()))
    }

    /// A server. Without its programs the test is to return.
    #[must_use]
    #[track_caller]
    pub fn postgres() -> Option<Self> {
        Postgres::start(&[]).map(Database::Postgres)
    }

    /// A server behind PgBouncer. Without its programs the test is to return.
    #[must_use]
    #[track_caller]
    pub fn bouncer() -> Option<Self> {
        let postgres = Postgres::start(&[])?;
        Some(Database::Bouncer(Bouncer::start(&postgres)?, postgres))
    }

    /// Has `test` done with a file and a server at the same time.
    pub fn each(test: impl Fn(&Database) + Sync) {
        at_once(&[Database::sqlite, Database::postgres], |start| {
            start().iter().for_each(&test);
        });
    }

    /// Has `test` done with a server, and with one behind PgBouncer at the same time.
    pub fn each_server(test: impl Fn(&Database, &Postgres) + Sync) {
        at_once(&[Database::postgres, Database::bouncer], |start| {
            if let Some(database) = start() {
                test(&database, database.server().expect("it is one"));
            }
        });
    }

    /// The server, if it is one.
    pub fn server(&self) -> Option<&Postgres> {
        match self {
            Database::Sqlite(_) => None,
            Database::Postgres(postgres) | Database::Bouncer(_, postgres) => Some(postgres),
        }
    }

    /// What `--store` takes.
    pub fn url(&self) -> String {
        match self {
            Database::Sqlite(_) => format!("sqlite://{}", self.file()),
            Database::Postgres(postgres) => postgres.url(),
            Database::Bouncer(bouncer, _) => bouncer.url(),
        }
    }

    fn file(&self) -> String {
        match self {
            Database::Sqlite(scratch) => scratch.path().join("users.db").display().to_string(),
            _ => panic!("it is no file"),
        }
    }

    /// Has it do this. Returns what it prints, `|` between the values of a row.
    #[track_caller]
    pub fn sql(&self, statements: &str) -> String {
        match self.server() {
            None => ask(sqlite(&self.file()), statements),
            Some(postgres) => postgres.sql(statements),
        }
    }

    /// A number that it prints.
    #[track_caller]
    pub fn number(&self, query: &str) -> u64 {
        self.sql(query).trim().parse().expect("a number")
    }

    /// Whether it has the table of users.
    pub fn has_table(&self) -> bool {
        let table = match self {
            Database::Sqlite(_) => "SELECT count(*) FROM sqlite_master WHERE name = 'users'",
            _ => "SELECT count(*) FROM pg_tables WHERE tablename = 'users'",
        };
        self.number(table) > 0
    }

    /// The ids and names of all users.
    #[track_caller]
    pub fn names(&self) -> Vec<String> {
        let rows = self.sql("SELECT id, name FROM users ORDER BY id");
        rows.lines().map(str::to_string).collect()
    }
}

/// The command line of SQLite for this file, which waits for others.
fn sqlite(file: &str) -> Command {
    let mut sqlite = clean("sqlite3");
    sqlite.args(["-batch", "-bail", "-cmd", ".timeout 10000", file]);
    sqlite
}

const EACH_SECOND: [&str; 2] = ["--users-feed-interval", "1s"];

/// The arguments of a daemon that pulls this feed.
pub fn arguments(database: &Database, feed: &str) -> Vec<String> {
    let own = ["--commands", "server,users"];
    let mut all = own.map(str::to_string).to_vec();
    all.extend(["--store".to_string(), database.url()]);
    all.extend(["--users-feed".to_string(), feed.to_string()]);
    all
}

/// A daemon that pulls this feed each second, unless these further arguments say otherwise.
pub fn puller(database: &Database, feed: &str, more: &[&str]) -> Daemon {
    let mut all = arguments(database, feed);
    if !more.contains(&"--users-feed-interval") {
        all.extend(EACH_SECOND.map(str::to_string));
    }
    all.extend(more.iter().map(|argument| argument.to_string()));
    Daemon::start(all)
}

/// Waits until a daemon has this number of users.
#[track_caller]
pub fn wait_for_users(daemon: &Daemon, users: usize) {
    wait_for_answer(daemon, "USERS", &users.to_string());
}

/// Waits until a daemon answers a line so.
#[track_caller]
pub fn wait_for_answer(daemon: &Daemon, line: &str, answer: &str) {
    let mut last = String::new();
    wait_until(&format!("{line} is answered {answer}"), || {
        last = daemon.connect().ask(line);
        last == answer
    });
}

/// The name of a user that a daemon has, if it has the user.
pub fn name_of(daemon: &Daemon, id: &str) -> Option<String> {
    let answer = daemon.connect().ask(&format!("USER {id}"));
    let user: serde_json::Value = serde_json::from_str(&answer).ok()?;
    Some(user.get("name")?.as_str()?.to_string())
}

/// A user of a feed.
pub fn user(number: usize, name: &str) -> String {
    format!(
        r#"{{"id":"u{number:07}","name":"{name}","email":"{number}@example.org","team":{}}}"#,
        number % 7
    )
}

/// Users of a feed, from this number on.
pub fn users(numbers: std::ops::Range<usize>, name: &str) -> Vec<String> {
    numbers.map(|number| user(number, name)).collect()
}

/// A feed of these users as an array.
pub fn array(users: &[String]) -> String {
    format!("[{}]", users.join(","))
}

/// What gzip makes of this.
pub fn compressed(bytes: &[u8]) -> Vec<u8> {
    let scratch = Scratch::new();
    let file = scratch.path().join("feed");
    std::fs::write(&file, bytes).expect("a scratch file");
    let output = clean("gzip").arg("-c").arg(&file).output();
    output.expect("gzip runs").stdout
}
