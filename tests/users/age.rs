//! The age of the users: what a client of JSON-RPC learns of the last pull of the feed.

use std::time::{Duration, Instant};

use super::{ALL_USERS, Database, HttpClient, Kind, Server};
use crate::pull::server::FeedServer;
use crate::support::wait_until;

/// The value of the field `Age` of the response to this call, and the head and the body.
fn ask(server: &Server, body: &str) -> (Option<u64>, String, String) {
    let mut client = HttpClient::connect(server.address("http"));
    client.post(body);
    let mut answer = Vec::new();
    let response = client.response(|part| answer.extend_from_slice(part));
    let (head, is_whole) = response.expect("a response");
    assert!(is_whole, "{head}");
    let fields = head.lines().filter_map(|line| line.strip_prefix("Age: "));
    let ages: Vec<u64> = fields.map(|age| age.parse().expect("digits")).collect();
    assert!(ages.len() <= 1, "{head}");
    (
        ages.first().copied(),
        head,
        String::from_utf8(answer).expect("UTF-8"),
    )
}

fn call(method: &str, params: &str) -> String {
    format!(r#"{{"jsonrpc":"2.0","id":1,"method":"{method}","params":{params}}}"#)
}

/// The calls whose answers depend on the users: of one user who is there, and of one who is not, too.
fn of_users() -> Vec<String> {
    let calls = [
        ("users", "[]"),
        ("user", "[\"1\"]"),
        ("user", "[\"2\"]"),
        ("get_users", "{\"limit\":5}"),
        ("get_users", "[\"7\"]"),
    ];
    let mut all: Vec<String> = calls.map(|(method, params)| call(method, params)).to_vec();
    all.push(ALL_USERS.to_string());
    all
}

/// - The answer to a single call of `users`, `user` or `get_users` has a field `Age` (RFC 9111, section 5.1) if this server has a
///   `--users-feed` and any server of the database has completed a pull: the whole seconds since the last one. By it a
///   monitoring check learns how old the users are. An error has it only if it says that there is no such user.
#[test]
fn an_answer_says_how_long_ago_the_users_were_pulled() {
    Database::each(&[Kind::Sqlite, Kind::Postgres], |database| {
        let feed = FeedServer::of(r#"[{"id":1,"name":"A"},{"id":8}]"#);
        let begun = Instant::now();
        let with_feed = format!("--users-feed {} --users-feed-interval 1h", feed.url("/"));
        let puller = Server::start(&database.url(), &with_feed);
        puller.wait_for("USERS", "2");
        wait_until("the pull is complete", || {
            ask(&puller, &call("users", "[]")).0.is_some()
        });
        let pulled = Instant::now();
        // It only reads the same feed, and knows of the pull by the database.
        let other = Server::start(&database.url(), &with_feed);
        wait_until("it knows", || ask(&other, &call("users", "[]")).0.is_some());
        wait_until("three seconds pass", || {
            let ages = [&puller, &other].map(|server| ask(server, &call("users", "[]")).0);
            ages.iter().all(|age| *age >= Some(3))
        });
        assert!(pulled.elapsed() > Duration::from_secs(1));
        for server in [&puller, &other] {
            for body in of_users() {
                let (age, head, answer) = ask(server, &body);
                let (least, most) = (3, begun.elapsed().as_secs());
                let age = age.unwrap_or_else(|| panic!("{body}: {head}"));
                assert!((least..=most).contains(&age), "{body}: {age} of {most}");
                assert!(answer.contains("\"id\":1"), "{answer}");
            }
            // Nothing else has it, as far as it concerns no user.
            let batch = format!("[{}]", call("users", "[]"));
            let others = [call("why", "[]"), call("user", "[]"), batch];
            for body in &others {
                assert_eq!(ask(server, body).0, None, "{body}");
            }
        }
        // Clients of HTTP/1.0 have it, too, and with whole bodies of which nobody knows the length.
        let mut old = HttpClient::connect(puller.address("http"));
        let length = ALL_USERS.len();
        old.send(format!(
            "POST / HTTP/1.0\r\nContent-Length: {length}\r\n\r\n{ALL_USERS}"
        ));
        let head = old.head().expect("a head");
        assert!(
            head.contains("\nAge: ") && head.ends_with("\nConnection: close"),
            "{head}"
        );
        // A server without a feed says nothing of it.
        let without = Server::start(&database.url(), "");
        without.wait_for("USERS", "2");
        for body in of_users() {
            assert_eq!(ask(&without, &body).0, None, "{body}");
        }
    });
}

#[test]
fn without_a_whole_pull_nothing_is_said() {
    Database::each(&[Kind::Sqlite], |database| {
        let feed = FeedServer::of("[{\"id\":1},");
        let arguments = format!("--users-feed {} --users-feed-interval 1s", feed.url("/"));
        let server = Server::start(&database.url(), &arguments);
        wait_until("it has failed twice", || feed.count() > 2);
        for body in of_users() {
            assert_eq!(ask(&server, &body).0, None, "{body}");
        }
        feed.give("[{\"id\":1}]");
        wait_until("it is known", || {
            ask(&server, &call("users", "[]")).0.is_some()
        });
    });
}
