//! Settings of the store: what is refused, secrets, the schema, and a server without a store.

use std::fs;
use std::path::Path;
use std::process::Command;
use std::thread;

use super::{Database, Kind, Server, sqlite};
use crate::handover::replace;
use crate::support::names::{UNSHARE_MOUNTS, shown};
use crate::support::postgres::{PASSWORD, Postgres, ask};
use crate::support::{Daemon, Scratch, assert_contains, fails_with, program, wait_until};

const STORES: [Kind; 2] = [Kind::Postgres, Kind::Sqlite];

/// The daemon's program with these arguments, words of a line.
fn with(arguments: &str) -> Command {
    let mut command = program();
    command.args(["--listen", "127.0.0.1:0"]);
    command.args(arguments.split(' '));
    command
}

#[test]
fn what_can_t_work_is_refused_in_these_words() {
    for (arguments, words) in [
        (
            "--commands server,users",
            "--commands users needs a database with the users: name it with --store, such as --store sqlite:///",
        ),
        ("--commands users", "unknown"),
        (
            "--store mysql://localhost/users",
            "--store is no URL of a database: write postgres://HOST/DATABASE or sqlite:///PATH",
        ),
        (
            "--store sqlite://users.db",
            "--store names no file: write sqlite:// and its path from the root",
        ),
        (
            "--store postgres://me:s3cr3t@localhost/users",
            "--store holds a password, which everybody on this machine could see: put it in the file of --store-password-file",
        ),
        (
            "--store postgres://me:s3cr3t/@localhost/users",
            "or holds a password",
        ),
        (
            "--store postgres://localhost/users?password=s3cr3t",
            "--store holds a password",
        ),
        ("--store postgres://localhost", "--store names no database"),
        (
            "--store postgres://db.example.org/users",
            "--store names \"db.example.org\", which is not on this machine, and not whether TLS is used: add ?sslmode=verify-full",
        ),
        (
            "--store postgres://192.0.2.1/users",
            "and not whether TLS is used",
        ),
        (
            "--store postgres://localhost,[2001:db8::1]:5432/users",
            "and not whether TLS is used",
        ),
        (
            "--store postgres:///users?host=192.0.2.1",
            "and not whether TLS is used",
        ),
        (
            "--store postgres://localhost/users?sslmode=prefer",
            "--store has sslmode=prefer, which leaves it to the server whether TLS is used",
        ),
        (
            "--store sqlite:///x --store-connections 0",
            "--store-connections",
        ),
        (
            "--store sqlite:///x --store-stream-timeout 0s",
            "--store-stream-timeout",
        ),
    ] {
        let status = if arguments.contains("--store-") || words == "unknown" {
            64
        } else {
            78
        };
        for more in ["", " --check"] {
            let commands = if arguments.contains("--commands") {
                ""
            } else {
                "--commands server,users "
            };
            let command = with(&format!("{commands}{arguments}{more}"));
            let words = if words == "unknown" {
                "--commands"
            } else {
                words
            };
            let said = fails_with(command, status, &[words]);
            assert!(!said.contains("s3cr3t"), "{said}");
        }
    }
    // What has a store and nothing that needs it, is said to have no effect.
    let daemon = Daemon::start(["--store", "sqlite:///nowhere/x"]);
    assert_contains(
        &daemon.stop(),
        "without --commands users, --store has no effect",
    );
}

#[test]
fn a_password_is_in_a_file_or_in_a_credential() {
    let Some(postgres) = Postgres::start(&[]) else {
        return;
    };
    postgres.ask_for_password();
    let scratch = Scratch::new();
    let (own, credentials) = (
        scratch.path().join("own"),
        scratch.path().join("credentials"),
    );
    fs::create_dir(&credentials).expect("a scratch folder");
    fs::write(&own, format!("{PASSWORD}\n")).expect("a scratch file");
    let file = own.to_str().expect("UTF-8");
    // Without it, and with a wrong one.
    let server = Server::start(&postgres.url(), "");
    assert_contains(
        &server.daemon.log().wait_for("is unavailable"),
        "no password supplied",
    );
    drop(server);
    let wrong = scratch.path().join("wrong");
    fs::write(&wrong, "another").expect("a scratch file");
    let server = Server::start(
        &postgres.url(),
        &format!("--store-password-file {}", wrong.display()),
    );
    assert_contains(
        &server.daemon.log().wait_for("is unavailable"),
        "password authentication failed",
    );
    // It is read for each connection.
    fs::copy(&own, &wrong).expect("scratch files");
    server.wait_for("USERS", "0");
    let log = server.daemon.stop();
    assert!(!log.contains(PASSWORD) && !log.contains("another"), "{log}");
    let server = Server::start(&postgres.url(), &format!("--store-password-file {file}"));
    assert_eq!(server.ask("USERS"), "0");
    let shown = fs::read_to_string(format!("/proc/{}/cmdline", server.daemon.pid()));
    assert!(!shown.expect("it lives").contains(PASSWORD));
    replace(&server.daemon);
    assert_eq!(server.ask("USERS"), "0");
    let log = server.daemon.stop();
    assert!(!log.contains(PASSWORD) && !log.contains("WARN"), "{log}");
    // A credential of systemd, unless it is blank.
    for (content, answer) in [(PASSWORD, "0"), ("\n", "ERR")] {
        fs::write(credentials.join("store-password"), content).expect("a scratch file");
        let arguments = Server::arguments(&postgres.url(), "");
        let daemon = Daemon::start_with(arguments, |command| {
            command.env("CREDENTIALS_DIRECTORY", &credentials);
        });
        let answered = Server::of(daemon).ask("USERS");
        assert_eq!(answered.split(' ').next(), Some(answer));
    }
    // What can't be read is known before the start.
    let missing = scratch.path().join("missing");
    for flag in ["--store-password-file", "--store-ca-file"] {
        let arguments = format!(
            "--check --commands server,users --store {} {flag} {}",
            postgres.url(),
            missing.display()
        );
        let name = missing.to_str().expect("UTF-8");
        fails_with(with(&arguments), 78, &[name]);
    }
    fs::write(&missing, "one\ntwo\n").expect("a scratch file");
    let arguments = format!(
        "--check --commands server,users --store {} --store-password-file {}",
        postgres.url(),
        missing.display()
    );
    let said = fails_with(with(&arguments), 78, &["must hold one line"]);
    assert!(!said.contains("two"), "{said}");
}

/// The names of the tables that there are.
fn tables(database: &Database) -> String {
    database.sql(match database.kind {
        Kind::Sqlite => "SELECT name FROM sqlite_master WHERE type = 'table' ORDER BY name",
        _ => "SELECT tablename FROM pg_tables WHERE schemaname = 'public' ORDER BY tablename",
    })
}

#[test]
fn a_schema_that_is_newer_than_the_program_is_refused() {
    Database::each(&STORES, |database| {
        let check = || {
            with(&format!(
                "--check --commands server,users --store {}",
                database.url()
            ))
        };
        // A check changes nothing.
        assert!(check().status().expect("it runs").success());
        assert!(!Path::new(&database.file()).exists());
        assert_eq!(tables(database), "");
        assert!(check().status().expect("it runs").success());
        assert_eq!(tables(database), "");
        let server = Server::start(&database.url(), "");
        server.wait_for("USERS", "0");
        assert_eq!(
            tables(database),
            "__diesel_schema_migrations\nleases\nusers\n"
        );
        assert!(check().status().expect("it runs").success());
        database.sql("INSERT INTO __diesel_schema_migrations (version) VALUES ('30001231000001')");
        let words = "the schema has the change 30001231000001, which this version does not know: it is too old for this database";
        let said = fails_with(check(), 78, &["--store ", words]);
        assert_eq!(said.lines().count(), 1, "{said}");
        let start = with(&format!(
            "--commands server,users --store {}",
            database.url()
        ));
        fails_with(start, 78, &["--store ", words]);
        // One that runs goes on with the connections that it has, or says so.
        let answer = server.ask("USERS");
        assert!(
            answer == "0" || answer.starts_with("ERR UNAVAILABLE"),
            "{answer}"
        );
        database.sql("DELETE FROM __diesel_schema_migrations WHERE version LIKE '3000%'");
        server.wait_for("USERS", "0");
    });
}

#[test]
fn servers_that_start_at_once_make_one_schema() {
    Database::each(&[Kind::Postgres, Kind::Bouncer, Kind::Sqlite], |database| {
        let starts: Vec<_> = (0..3)
            .map(|_| {
                let url = database.url();
                thread::spawn(move || Server::start(&url, ""))
            })
            .collect();
        let servers: Vec<_> = starts
            .into_iter()
            .map(|start| start.join().expect("it starts"))
            .collect();
        for server in servers {
            assert_eq!(server.ask("USERS"), "0");
            let log = server.daemon.stop();
            assert!(!log.contains("WARN"), "{log}");
        }
        assert_eq!(
            database
                .sql("SELECT count(*) FROM __diesel_schema_migrations")
                .trim(),
            "2"
        );
    });
}

#[test]
fn a_handover_keeps_the_store_and_a_check_before_it_changes_nothing() {
    Database::each(&STORES, |database| {
        let server = Server::start(&database.url(), "");
        server.wait_for("USERS", "0");
        database.fill(10);
        let mut client = server.daemon.connect();
        for _ in 0..3 {
            assert_eq!(client.ask("USERS"), "10");
            replace(&server.daemon);
        }
        assert_eq!(client.ask("USERS"), "10");
        if database.kind == Kind::Postgres {
            wait_until("the connections of those before are gone", || {
                database.postgres().connections() <= 2
            });
        }
        let log = server.daemon.stop();
        assert!(!log.contains("WARN"), "{log}");
    });
}

/// The files that a process has mapped.
fn mapped(daemon: &Daemon) -> String {
    fs::read_to_string(format!("/proc/{}/maps", daemon.pid())).expect("it lives")
}

#[test]
fn a_server_without_postgresql_neither_loads_its_library_nor_has_its_threads() {
    let plain = Daemon::start(["--commands", "server"]);
    assert_eq!(plain.ask("WHY\n"), "42\n");
    let threads = plain.status_number("Threads");
    assert!(!mapped(&plain).contains("libpq"));
    let names = || {
        let tasks = fs::read_dir(format!("/proc/{}/task", plain.pid()))
            .expect("it lives")
            .flatten();
        let names =
            tasks.map(|task| fs::read_to_string(task.path().join("comm")).unwrap_or_default());
        names.collect::<String>()
    };
    assert!(!names().contains("store"), "{}", names());
    Database::each(&STORES, |database| {
        let server = Server::start(&database.url(), "--store-connections 3");
        assert_eq!(server.ask("USERS"), "0");
        assert_eq!(
            mapped(&server.daemon).contains("libpq"),
            database.kind == Kind::Postgres
        );
        // Its further listeners have none. One looks whether an outage is over.
        wait_until("a thread for each connection", || {
            server.daemon.status_number("Threads") == threads + 3 + 1
        });
    });
}

#[test]
fn a_missing_library_is_named_with_its_package() {
    needs!(run & UNSHARE_MOUNTS);
    let library = "/usr/lib/x86_64-linux-gnu/libpq.so.5";
    let Ok(library) = fs::canonicalize(library) else {
        return;
    };
    let daemon = env!("CARGO_BIN_EXE_blockchain-tcpd");
    let library = library.to_str().expect("UTF-8");
    let server = shown(library, "", "-m", "", daemon, |mut command| {
        command.args(["--listen", "127.0.0.1:0"]);
        command.args(Server::arguments("postgres://localhost/users", ""));
        Server::of(Daemon::run(command))
    });
    let line = server.daemon.log().wait_for("the store is unavailable");
    assert_contains(&line, "libpq is missing (on Debian: apt install libpq5)");
    assert_contains(&server.ask("USERS"), "ERR UNAVAILABLE");
    assert_eq!(server.ask("WHY"), "42");
    // A file needs none.
    needs!("sqlite3");
    let scratch = Scratch::new();
    let file = scratch.path().join("users.db");
    let server = shown(library, "", "-m", "", daemon, |mut command| {
        command.args(["--listen", "127.0.0.1:0"]);
        command.args(Server::arguments(
            &format!("sqlite://{}", file.display()),
            "",
        ));
        Server::of(Daemon::run(command))
    });
    assert_eq!(server.ask("USERS"), "0");
    let query = "SELECT count(*) FROM users";
    assert_eq!(
        ask(sqlite(file.to_str().expect("UTF-8")), query).trim(),
        "0"
    );
}
