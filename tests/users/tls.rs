//! TLS with PostgreSQL: which certificates are believed, and that nothing is sent without it.

use std::fs;

use super::{ALL_USERS, Server};
use crate::support::certificates::Authority;
use crate::support::postgres::Postgres;
use crate::support::{Daemon, Scratch, assert_contains};

#[test]
fn postgresql_is_asked_over_tls_and_must_be_the_one_that_is_meant() {
    needs!("openssl");
    let Some(postgres) = Postgres::prepare() else {
        return;
    };
    let authority = Authority::new();
    authority.certify("server", "/CN=postgresql");
    postgres.encrypt(&authority, "server");
    postgres.run();
    postgres.create();
    let url = postgres.url_of("postgres", "?sslmode=verify-full");
    let ca = authority.path("ca.crt");
    let server = Server::start(&url, &format!("--store-ca-file {ca}"));
    assert_eq!(server.ask("USERS"), "0");
    let encrypted = "SELECT count(*) FROM pg_stat_ssl JOIN pg_stat_activity USING (pid) WHERE ssl AND client_port > 0";
    assert_ne!(postgres.sql(encrypted).trim(), "0");
    // A stream is more than one record of TLS.
    postgres.sql(
        "INSERT INTO users SELECT 'user' || n, NULL, NULL, '{}', n, n FROM generate_series(1, 2000) AS n",
    );
    let answer = server.call(ALL_USERS);
    assert_eq!(answer.matches(r#""created_at":"#).count(), 2000);
    assert!(!server.daemon.stop().contains("WARN"));

    // By systemd.
    let credentials = Scratch::new();
    fs::copy(&ca, credentials.path().join("store-ca")).expect("a scratch file");
    let daemon = Daemon::start_with(Server::arguments(&url, ""), |command| {
        command.env("CREDENTIALS_DIRECTORY", credentials.path());
    });
    assert_eq!(Server::of(daemon).ask("USERS"), "2000");

    let others = Authority::new();
    let other = others.path("ca.crt");
    let elsewhere = url.replace("127.0.0.1", "localhost");
    for (url, ca, why) in [
        (url.as_str(), other.as_str(), "certificate verify failed"),
        (&elsewhere, &ca, "does not match host name"),
        (
            &postgres.url_of("postgres", "?sslmode=disable"),
            &ca,
            "no encryption",
        ),
    ] {
        let server = Server::start(url, &format!("--store-ca-file {ca}"));
        assert_contains(&server.daemon.log().wait_for("is unavailable"), why);
        assert_contains(&server.ask("USERS"), "ERR UNAVAILABLE");
    }
}
