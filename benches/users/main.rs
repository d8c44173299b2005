//! How long the users take: pulled into a database, and streamed out of it, beside psql doing the
//! same in the same run.
//!
//! `make bench-users`. In each round all take turns: `blockchain-tcp pull` with an empty and an
//! unchanged table, and psql, which copies the same rows into a temporary table and upserts them
//! from there; `get_users` of JSON-RPC, and psql's COPY of the same users as JSON. Then WHO is asked
//! once a millisecond beside nothing, beside a client that streams all users without pause, and
//! beside a puller that pulls without pause.

#[path = "../common/mod.rs"]
mod common;
mod postgres;

use std::fs::{self, File};
use std::io::{self, BufRead as _, BufReader, BufWriter, Read as _, Write as _};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use clap::Parser;
use store::feed::Feed;

use common::figures::{median, spread};
use common::load::{Expected, Workload};
use common::server::{PROGRAM, Server};
use common::{Length, Result};
use postgres::{Postgres, succeed};

/// How long anything may take.
const TIMEOUT: Duration = Duration::from_secs(120);

/// How often WHO is asked, per second.
const RATE: u32 = 1000;

/// The table of the reference.
const TABLE: &str = "CREATE TABLE users (id text COLLATE \"C\" PRIMARY KEY, name text, email text, \
    members json NOT NULL, created_at bigint NOT NULL, updated_at bigint NOT NULL)";

/// What the reference does with the rows of a file. Rows that are as they should be are not touched.
const UPSERT: &str = "BEGIN;
CREATE TEMPORARY TABLE pulled (id text COLLATE \"C\", name text, email text, members json) ON COMMIT DROP;
\\copy pulled FROM 'FILE'
INSERT INTO users AS old SELECT id, name, email, members, 1, 1 FROM pulled
    ON CONFLICT (id) DO UPDATE SET name = excluded.name, email = excluded.email, members = excluded.members, updated_at = 2
    WHERE old.name IS DISTINCT FROM excluded.name OR old.email IS DISTINCT FROM excluded.email
        OR CAST(old.members AS text) <> CAST(excluded.members AS text);
COMMIT;
";

/// What the reference writes of all users.
const ROWS: &str = "COPY (SELECT row_to_json(users) FROM users ORDER BY id) TO STDOUT";

/// Measures how long users take, into a database and out of it, beside psql.
#[derive(Parser)]
#[command(name = "users")]
struct Options {
    /// How many users there are.
    #[arg(long, value_name = "N", default_value_t = 1_000_000)]
    users: u64,

    /// How often each is measured.
    #[arg(long, value_name = "N", default_value_t = 5)]
    rounds: usize,

    /// How often WHO is asked in each.
    #[arg(long, value_name = "N", default_value_t = 5000)]
    questions: u32,

    #[command(flatten)]
    length: Length,
}

fn main() -> ExitCode {
    let mut options = Options::parse();
    if options.length.is_quick() {
        (options.users, options.rounds, options.questions) = (2000, 1, 300);
    }
    match measure(&options) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("users: {error}");
            ExitCode::FAILURE
        }
    }
}

/// What is measured: a name and seconds, or another unit, round by round.
#[derive(Default)]
struct Figures(Vec<(&'static str, Vec<f64>)>);

impl Figures {
    fn add(&mut self, name: &'static str, value: f64) {
        eprintln!("{name}: {value:.3}");
        match self.0.iter_mut().find(|(known, _)| *known == name) {
            Some((_, values)) => values.push(value),
            None => self.0.push((name, vec![value])),
        }
    }

    fn of(&self, name: &str) -> &[f64] {
        let found = self.0.iter().find(|(known, _)| *known == name);
        found.map_or(&[], |(_, values)| values)
    }

    /// Prints the median of a name, and what it is of the median of another.
    fn print(&self, name: &str, unit: &str, reference: Option<&str>) {
        let (value, spread) = (median(self.of(name)), spread(self.of(name)) * 100.0);
        let ratio = reference.map(|reference| value / median(self.of(reference)));
        let ratio = ratio.map_or(String::new(), |ratio| format!("   {ratio:.2}"));
        println!("{name:<34} {value:>9.3} {unit:<3} ±{spread:>3.0} %{ratio}");
    }
}

/// The same users as a feed and as rows of psql's COPY.
struct Files {
    feed: PathBuf,
    rows: PathBuf,
}

fn measure(options: &Options) -> Result<()> {
    let Some(postgres) = Postgres::start()? else {
        println!("PostgreSQL is not installed: nothing is measured");
        return Ok(());
    };
    let files = Files {
        feed: postgres.directory.join("users.json"),
        rows: postgres.directory.join("users.tsv"),
    };
    write_users(options.users, &files)?;
    postgres.sql("reference", TABLE)?;
    let mut figures = Figures::default();
    for round in 1..=options.rounds {
        eprintln!("round {round} of {}", options.rounds);
        figures.add("parsing alone", parse(&files.feed, options.users)?);
        pulls(&postgres, &files, round, &mut figures)?;
    }
    let http = free_address()?;
    let daemon = daemon(&postgres, http, &[])?;
    for _ in 1..=options.rounds {
        let mut reference = postgres.psql("reference");
        figures.add(
            "psql COPY of row_to_json",
            timed(|| count(reference.args(["-c", ROWS]), options.users))?,
        );
        figures.add("get_users", timed(|| stream(http, options.users))?);
    }
    drop(daemon);
    beside(&postgres, &files, options, &mut figures)?;

    println!(
        "{} users, medians of {} rounds; the last column is the ratio to the line of psql, or of nothing",
        options.users, options.rounds
    );
    figures.print("psql, empty table", "s", None);
    figures.print("pull, empty table", "s", Some("psql, empty table"));
    figures.print("psql, unchanged table", "s", None);
    figures.print("pull, unchanged table", "s", Some("psql, unchanged table"));
    figures.print("parsing alone", "s", None);
    figures.print("WAL of an unchanged pull", "MB", None);
    figures.print("SQLite: pull, empty file", "s", None);
    figures.print("SQLite: pull, unchanged file", "s", None);
    figures.print("psql COPY of row_to_json", "s", None);
    figures.print("get_users", "s", Some("psql COPY of row_to_json"));
    let nothing = "p99 of WHO beside nothing";
    figures.print(nothing, "us", None);
    figures.print("p99 of WHO beside get_users", "us", Some(nothing));
    figures.print("p99 of WHO beside a puller", "us", Some(nothing));
    Ok(())
}

/// Writes these users as a feed and as rows.
fn write_users(users: u64, files: &Files) -> Result<()> {
    let mut feed = BufWriter::new(File::create(&files.feed)?);
    let mut rows = BufWriter::new(File::create(&files.rows)?);
    for number in 1..=users {
        let (id, name) = (format!("{number:08}"), format!("Name Surname {number}"));
        let email = format!("user{number}@example.org");
        let members = format!(
            r#""city":"Town {}","age":{},"tags":[1,2,3]"#,
            number % 1000,
            number % 100
        );
        let separator = if number == 1 { '[' } else { ',' };
        writeln!(
            feed,
            r#"{separator}{{"id":"{id}","name":"{name}","email":"{email}",{members}}}"#
        )?;
        writeln!(rows, "{id}\t{name}\t{email}\t{{{members}}}")?;
    }
    feed.write_all(b"]\n")?;
    feed.flush()?;
    Ok(rows.flush()?)
}

/// Returns how many seconds something takes.
fn timed(what: impl FnOnce() -> Result<()>) -> Result<f64> {
    let begun = Instant::now();
    what()?;
    Ok(begun.elapsed().as_secs_f64())
}

/// Returns how many seconds it takes to read the feed, and to do nothing with its users.
fn parse(feed: &Path, users: u64) -> Result<f64> {
    timed(|| {
        let mut feed = Feed::new(File::open(feed)?);
        let mut count = 0;
        while let Some(user) = feed.next_value()? {
            user.map_err(|refused| refused.to_string())?;
            count += 1;
        }
        expect(count, users)
    })
}

/// Fails if it is not this number.
fn expect(count: u64, users: u64) -> Result<()> {
    match count == users {
        true => Ok(()),
        false => Err(format!("{count} users instead of {users}").into()),
    }
}

/// Measures the pulls of a round. Whoever is first in one is second in the next.
fn pulls(postgres: &Postgres, files: &Files, round: usize, figures: &mut Figures) -> Result<()> {
    let script = postgres.directory.join("upsert.sql");
    let rows = files.rows.to_str().ok_or("a path that is no text")?;
    fs::write(&script, UPSERT.replace("FILE", rows))?;
    for database in ["reference", "ours"] {
        // There is no table before the first pull.
        let _ = postgres.sql(database, "TRUNCATE users");
    }
    let sqlite = postgres.directory.join("users.db");
    for suffix in ["", "-wal", "-shm"] {
        let _ = fs::remove_file(format!("{}{suffix}", sqlite.display()));
    }
    let sqlite = format!("sqlite://{}", sqlite.display());
    for [psql, ours, file] in [
        [
            "psql, empty table",
            "pull, empty table",
            "SQLite: pull, empty file",
        ],
        [
            "psql, unchanged table",
            "pull, unchanged table",
            "SQLite: pull, unchanged file",
        ],
    ] {
        let mut turns = [true, false];
        turns.rotate_left(round % 2);
        for is_ours in turns {
            // What was written before is not part of what follows.
            postgres.sql("postgres", "CHECKPOINT")?;
            match is_ours {
                true => {
                    let before = position(postgres)?;
                    figures.add(ours, timed(|| pull(files, &postgres.url()))?);
                    if ours == "pull, unchanged table" {
                        figures.add(
                            "WAL of an unchanged pull",
                            (position(postgres)? - before) / 1e6,
                        );
                    }
                    // As autovacuum does sooner or later.
                    postgres.sql("ours", "VACUUM ANALYZE users")?;
                }
                false => {
                    let mut upsert = postgres.psql("reference");
                    upsert.arg("-f").arg(&script);
                    figures.add(psql, timed(|| succeed(&mut upsert).map(drop))?);
                    postgres.sql("reference", "VACUUM ANALYZE users")?;
                }
            }
        }
        figures.add(file, timed(|| pull(files, &sqlite))?);
    }
    Ok(())
}

/// Returns how many bytes of WAL there have been.
fn position(postgres: &Postgres) -> Result<f64> {
    let position = postgres.sql("postgres", "SELECT pg_current_wal_lsn() - '0/0'")?;
    Ok(position.trim().parse()?)
}

/// Pulls the feed by hand.
fn pull(files: &Files, store: &str) -> Result<()> {
    let client = Path::new(PROGRAM).with_file_name("blockchain-tcp");
    let mut client = Command::new(client);
    client
        .env_clear()
        .arg("pull")
        .arg("--feed")
        .arg(&files.feed);
    succeed(client.args(["--store", store])).map(drop)
}

/// Returns a free address.
fn free_address() -> Result<SocketAddr> {
    Ok(TcpListener::bind("127.0.0.1:0")?.local_addr()?)
}

/// Starts a daemon with the users, on lines and there by HTTP.
fn daemon(postgres: &Postgres, http: SocketAddr, arguments: &[&str]) -> Result<Server> {
    let mut command = Command::new(PROGRAM);
    command.args([
        "--listen",
        "127.0.0.1:0",
        "--http=",
        "--commands",
        "server,users",
    ]);
    command.args([
        "--listen",
        &format!("http://{http}"),
        "--store",
        &postgres.url(),
    ]);
    Server::start(
        {
            command.args(arguments);
            command
        },
        None,
    )
}

/// Reads all users of the reference, a line each.
fn count(psql: &mut Command, users: u64) -> Result<()> {
    let mut child = psql.stdout(Stdio::piped()).spawn()?;
    let output = child.stdout.take().ok_or("no output")?;
    let mut lines = 0;
    let mut output = BufReader::with_capacity(64 * 1024, output);
    loop {
        let chunk = output.fill_buf()?;
        if chunk.is_empty() {
            break;
        }
        lines += count_of(b'\n', chunk);
        let length = chunk.len();
        output.consume(length);
    }
    child.wait()?;
    expect(lines, users)
}

/// Returns how often a byte is among these.
fn count_of(wanted: u8, bytes: &[u8]) -> u64 {
    bytes.iter().filter(|byte| **byte == wanted).count() as u64
}

/// Asks for all users, and reads the answer to its end.
fn stream(http: SocketAddr, users: u64) -> Result<()> {
    let body = r#"{"jsonrpc":"2.0","id":1,"method":"get_users","params":[]}"#;
    let mut connection = TcpStream::connect(http)?;
    connection.set_read_timeout(Some(TIMEOUT))?;
    write!(
        connection,
        "POST / HTTP/1.1\r\nHost: bench\r\nContent-Type: application/json\r\nConnection: close\r\nContent-Length: {}\r\n\r\n{body}",
        body.len()
    )?;
    // Each user ends with a brace, and the answer does; the lengths of chunks and the head have none.
    let (mut braces, mut buffer) = (0, vec![0; 64 * 1024]);
    loop {
        match connection.read(&mut buffer)? {
            0 => break,
            length => braces += count_of(b'}', &buffer[..length]),
        }
    }
    expect(braces, users + 1)
}

/// Measures WHO beside nothing, beside a client that streams, and beside a puller.
fn beside(
    postgres: &Postgres,
    files: &Files,
    options: &Options,
    figures: &mut Figures,
) -> Result<()> {
    let feed = serve(&files.feed)?;
    let (http, other) = (free_address()?, free_address()?);
    let quiet = daemon(postgres, http, &[])?;
    let url = format!("http://{feed}/");
    for _ in 1..=options.rounds {
        figures.add("p99 of WHO beside nothing", ask_who(&quiet, options)?);
        let is_over = AtomicBool::new(false);
        let found = thread::scope(|scope| {
            let streaming = scope.spawn(|| -> Result<()> {
                while !is_over.load(Ordering::Relaxed) {
                    stream(http, options.users)?;
                }
                Ok(())
            });
            let found = ask_who(&quiet, options);
            is_over.store(true, Ordering::Relaxed);
            streaming.join().map_err(|_| "a thread has panicked")??;
            found
        });
        figures.add("p99 of WHO beside get_users", found?);
        // It pulls for as long as WHO is asked: a pull of all users takes longer than the interval.
        let pulling = daemon(
            postgres,
            other,
            &["--users-feed", &url, "--users-feed-interval", "1s"],
        )?;
        figures.add("p99 of WHO beside a puller", ask_who(&pulling, options)?);
    }
    Ok(())
}

/// Returns the 99th percentile of WHO, in microseconds.
fn ask_who(daemon: &Server, options: &Options) -> Result<f64> {
    let mut workload = Workload::new(daemon.address, b"WHO", Expected::Count);
    workload.rate = Some(RATE);
    workload.duration = Duration::from_secs(1) * options.questions / RATE;
    workload.timeout = TIMEOUT;
    let stats = common::run(&mut common::connect(workload)?)?;
    Ok(stats.latencies.value_at_quantile(0.99) as f64 / 1e3)
}

/// Serves the feed over HTTP, to one after the other, for as long as the process lives.
fn serve(feed: &Path) -> Result<SocketAddr> {
    let listener = TcpListener::bind("127.0.0.1:0")?;
    let address = listener.local_addr()?;
    let length = fs::metadata(feed)?.len();
    let feed = feed.to_path_buf();
    thread::spawn(move || {
        for connection in listener.incoming().flatten() {
            // Whoever goes away in the middle was ended.
            let _ = answer(connection, &feed, length);
        }
    });
    Ok(address)
}

fn answer(mut connection: TcpStream, feed: &Path, length: u64) -> io::Result<()> {
    let mut request = BufReader::new(connection.try_clone()?).lines();
    while request
        .next()
        .transpose()?
        .is_some_and(|line| !line.is_empty())
    {}
    write!(
        connection,
        "HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: {length}\r\n\r\n"
    )?;
    io::copy(&mut File::open(feed)?, &mut connection).map(drop)
}
