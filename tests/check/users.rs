//! The plugin asks for users: the real daemon's, and those of servers that answer wrongly.

use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpListener};
use std::thread;
use std::time::{Duration, Instant};

use super::{Outcome, check, manual, timed};
use crate::pull::server::FeedServer;
use crate::support::tables::lines;
use crate::support::{Daemon, PATIENCE, free_port, wait_until};
use crate::users::{Database, Kind, Server};

/// Asks the server at this address for its users, with these arguments besides.
fn check_users(address: SocketAddr, arguments: &str) -> Outcome {
    let (ip, port) = (address.ip(), address.port());
    let outcome = check(&format!("-H {ip} -p {port} --users {arguments}"));
    assert_eq!(outcome.lines.len(), 1, "{outcome:?}");
    outcome
}

/// What the only line says, which has no figures, with the exit status of CRITICAL.
#[track_caller]
fn critical(outcome: &Outcome) -> &str {
    assert_eq!(outcome.status, 2, "{outcome:?}");
    let text = outcome.lines[0].strip_prefix("BLOCKCHAIN-TCP CRITICAL - ");
    let text = text.unwrap_or_else(|| panic!("{outcome:?}"));
    assert!(!text.contains('|'), "{text}");
    text
}

/// The age among the figures.
fn age(outcome: &Outcome) -> Option<u64> {
    let (_, age) = outcome.parts().1.split_once(" age=")?;
    age.split_once("s;")?.0.parse().ok()
}

/// A daemon with these users, pulled from a feed.
fn fed(database: &Database, feed: &FeedServer) -> Server {
    let arguments = format!("--users-feed {} --users-feed-interval 1h", feed.url("/"));
    let server = Server::start(&database.url(), &arguments);
    let address = server.address("http");
    wait_until("the feed is pulled", || {
        age(&check_users(address, "")).is_some()
    });
    server
}

const THREE: &str =
    r#"[{"id":"b","name":"B","n":[1]},{"id":"c","email":"c@example.org"},{"id":"a"}]"#;

#[test]
fn users_that_are_right_are_ok_in_one_line_with_figures() {
    Database::each(&[Kind::Sqlite, Kind::Postgres], |database| {
        let feed = FeedServer::of(THREE);
        let begun = Instant::now();
        let server = fed(database, &feed);
        let outcome = check_users(
            server.address("http"),
            "-w 5 -c 7 -t 20 --warning-users 2:9",
        );
        let passed = begun.elapsed();
        assert_eq!(outcome.status, 0, "{outcome:?}");
        let (text, figures) = outcome.parts();
        let (time, figures) = timed(figures);
        assert!(time > 0.0 && time < passed.as_secs_f64());
        let age = age(&outcome).expect("an age");
        assert!(age <= passed.as_secs());
        let said =
            format!("BLOCKCHAIN-TCP OK - 3 users, 3 of them read, pulled {age} s ago, {time:.3} s");
        assert_eq!(text, said);
        assert_eq!(
            figures,
            format!("time=TIMEs;5;7;0;20 users=3;2:9;;0 age={age}s;;;0")
        );
        // One check counts no other: each has ended with its line.
        assert_eq!(server.ask("WHO"), "1");
        // A page is enough.
        let outcome = check_users(server.address("http"), "--users-limit 2 -v");
        let address = server.address("http");
        let (text, _) = outcome.parts();
        assert!(text.contains(" 3 users, 2 of them read, "), "{text}");
        assert!(text.ends_with(&format!(" s, from {address}")), "{text}");
    });
}

#[test]
fn thresholds_are_for_the_number_and_the_age() {
    Database::each(&[Kind::Sqlite], |database| {
        let feed = FeedServer::of(THREE);
        let server = fed(database, &feed);
        let address = server.address("http");
        for (arguments, status, said) in [
            (
                "--warning-users 4:",
                1,
                " WARNING - 3 users (warning: 4:), ",
            ),
            (
                "--critical-users @3",
                2,
                " CRITICAL - 3 users (critical: @3), ",
            ),
            (
                "--warning-users 4: --critical-users 5:",
                2,
                " (critical: 5:), ",
            ),
            ("--warning-age ~:-1", 1, " s ago (warning: ~:-1), "),
            ("--critical-age=-1:-0.5", 2, " s ago (critical: -1:-0.5), "),
            (
                "-w ~:0 --warning-age 3600 --critical-age 7200",
                1,
                " s (warning: ~:0)",
            ),
            (
                "--warning-age 3600 --critical-age 7200",
                0,
                " OK - 3 users, ",
            ),
        ] {
            let outcome = check_users(address, arguments);
            let (text, figures) = outcome.parts();
            assert_eq!(outcome.status, status, "{arguments}: {outcome:?}");
            assert!(text.contains(said), "{arguments}: {text}");
            assert!(figures.contains(" users=3;"), "{figures}");
        }
        let outcome = check_users(address, "--warning-age 3600 --critical-age 7200");
        assert!(outcome.parts().1.ends_with("s;3600;7200;0"), "{outcome:?}");
        wait_until("two seconds pass", || {
            age(&check_users(address, "")).expect("an age") >= 2
        });
        assert_eq!(check_users(address, "--critical-age 1").status, 2);
    });
}

#[test]
fn servers_without_a_feed_or_without_users() {
    Database::each(&[Kind::Sqlite, Kind::Postgres], |database| {
        let server = Server::start(&database.url(), "");
        server.wait_for("USERS", "0");
        let address = server.address("http");
        // An empty table is right, and nobody has asked for its age.
        let outcome = check_users(address, "");
        assert_eq!(outcome.status, 0, "{outcome:?}");
        assert!(
            outcome
                .parts()
                .0
                .contains(" OK - 0 users, 0 of them read, 0.")
        );
        assert!(outcome.parts().1.ends_with(" users=0;;;0"), "{outcome:?}");
        assert_eq!(check_users(address, "--warning-users 1:").status, 1);
        for arguments in ["--warning-age 9", "--critical-age 9"] {
            let outcome = check_users(address, arguments);
            assert_eq!(outcome.status, 2, "{outcome:?}");
            let (text, figures) = outcome.parts();
            let why = "critical: the server has no --users-feed, or no pull was complete yet";
            assert!(
                text.contains(&format!(", of unknown age ({why}), ")),
                "{text}"
            );
            assert!(figures.contains(" users=0;;;0 age=U;"), "{figures}");
        }
        if database.kind == Kind::Postgres {
            database.postgres().end("INT");
            let outcome = check_users(address, "");
            let said = "the server answers users by the error -32000, \"ERR UNAVAILABLE the users are not at hand: ";
            assert!(critical(&outcome).starts_with(said), "{outcome:?}");
        }
    });
    let plain = Daemon::start(["--listen", "http://127.0.0.1:0"]);
    let listens = plain.ready("listen");
    let (_, address) = listens.split_once(",http://").expect("its second address");
    let outcome = check_users(address.parse().expect("an address"), "");
    let said = critical(&outcome);
    let begin = "the server answers users by the error -32601, \"ERR UNKNOWN ";
    assert!(said.starts_with(begin), "{said}");
    assert!(
        said.ends_with(": it runs without --commands users"),
        "{said}"
    );
    // Another protocol, and nobody at all.
    let lines = Daemon::start(["--max-clients", "2"]);
    let outcome = check_users(lines.address, "");
    let said = critical(&outcome);
    assert!(
        said.starts_with("users is answered \"ERR UNKNOWN "),
        "{said}"
    );
    assert!(said.ends_with(" instead of HTTP/1.1"), "{said}");
    let nobody = SocketAddr::from(([127, 0, 0, 1], free_port()));
    let outcome = check_users(nobody, "");
    assert!(
        critical(&outcome).starts_with("can't connect to "),
        "{outcome:?}"
    );
}

#[test]
fn what_makes_no_sense_is_unknown() {
    for (arguments, words) in [
        (
            "--users --scheme grpc",
            "--users asks by JSON-RPC, not by grpc: leave --scheme out, and give the port of http:// (see --help)",
        ),
        (
            "--users --scheme tcp",
            "--users asks by JSON-RPC, not by tcp: ",
        ),
        (
            "--users --id 6f0c2a52-5f0e-4b7e-9a35-0c5f7f5a3c1e",
            "cannot be used with '--id",
        ),
        ("--users -W 1", "cannot be used with '--"),
        (
            "--warning-age 1",
            "required arguments were not provided: --users",
        ),
        (
            "--users-limit 5",
            "required arguments were not provided: --users",
        ),
        (
            "--users --users-limit 0",
            "not a whole number from 1 to 1000",
        ),
        (
            "--users --users-limit 1001",
            "not a whole number from 1 to 1000",
        ),
        ("--users --critical-age 1h", "not a range"),
    ] {
        let outcome = check(arguments);
        assert_eq!((outcome.status, outcome.lines.len()), (3, 1), "{outcome:?}");
        assert!(outcome.lines[0].contains(words), "{arguments}: {outcome:?}");
    }
    // Its port is that of the socket unit for JSON-RPC.
    let outcome = check("-H 127.0.0.1 --users --timeout 0.001 -vv");
    let asked = "addresses: [127.0.0.1:8080]";
    assert!(
        outcome.lines.iter().any(|line| line == asked),
        "{outcome:?}"
    );
}

/// A server that takes one connection, reads both calls and answers this.
fn server(answer: Vec<u8>) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
    let address = listener.local_addr().expect("bound");
    thread::spawn(move || {
        let (mut stream, _) = listener.accept().expect("it is asked");
        stream.set_read_timeout(Some(PATIENCE)).expect("a socket");
        let mut asked = Vec::new();
        while !asked.ends_with(b"}}") {
            let mut part = [0; 1024];
            let read = stream.read(&mut part).expect("both calls");
            assert!(read > 0, "{asked:?}");
            asked.extend_from_slice(&part[..read]);
        }
        // It may have heard enough.
        let _ = stream.write_all(&answer);
        let _ = stream.shutdown(std::net::Shutdown::Write);
        let _ = stream.read_to_end(&mut asked);
    });
    address
}

/// A response with this status and these fields.
fn response(status: &str, fields: &str, body: &[u8]) -> Vec<u8> {
    let length = body.len();
    let head = format!("HTTP/1.1 {status}\r\n{fields}Content-Length: {length}\r\n\r\n");
    [head.as_bytes(), body].concat()
}

const USER: &str = r#"{"id":"u","name":null,"email":null,"created_at":1,"updated_at":1}"#;

/// The body of an answer, as the table has it, to the call with this id.
fn body(cell: &str, id: usize) -> Vec<u8> {
    let right = ["= 1", "= [USER]"][id - 1];
    let cell = if cell == "RIGHT" { right } else { cell };
    let full = |member: &str, value: &str| {
        let value = value.replace("USER", USER);
        format!(r#"{{"jsonrpc":"2.0","id":{id},"{member}":{value}}}"#)
    };
    match cell.split_once(' ') {
        Some(("=", value)) => full("result", value).into_bytes(),
        Some(("!", value)) => full("error", value).into_bytes(),
        _ => cell.as_bytes().to_vec(),
    }
}

#[test]
fn right_answers_are_right_whoever_gives_them() {
    let answer = [
        response("200 OK", "", &body("RIGHT", 1)),
        response("200 Fine", "age: 2147483648\r\n", &body("RIGHT", 2)),
    ];
    let outcome = check_users(server(answer.concat()), "");
    assert_eq!(
        (outcome.status, age(&outcome)),
        (0, Some(1 << 31)),
        "{outcome:?}"
    );
}

#[test]
fn each_wrong_answer_is_critical_and_named() {
    let table = include_str!("users.txt");
    let rows: Vec<&str> = lines(table).collect();
    assert!(rows.len() > 40);
    for row in rows {
        let cells: Vec<&str> = row.splitn(2, " | ").collect();
        let [first, rest] = match row.strip_prefix("| ") {
            Some(rest) => ["", rest],
            None => [cells[0], cells[1]],
        };
        let (second, said) = rest.split_once(" | ").expect("three cells");
        // A bar within a cell has no blanks around it.
        let answer = [
            response("200 OK", "", &body(first, 1)),
            response("200 OK", "Age: 1\r\n", &body(second, 2)),
        ];
        let outcome = check_users(server(answer.concat()), "--users-limit 3");
        let really = critical(&outcome);
        match said.strip_suffix("[..]") {
            Some(begin) => assert!(really.starts_with(begin), "{row}: {really}"),
            None => assert_eq!(really, said, "{row}"),
        }
    }
}

#[test]
fn whatever_is_no_response_is_critical_and_bounded() {
    let first = response("200 OK", "", &body("RIGHT", 1));
    let both = |second: Vec<u8>| [first.clone(), second].concat();
    let right = body("RIGHT", 2);
    let long = format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n", 1 << 20);
    let whole = |fields: &str| both(response("200 OK", fields, &right));
    let mut more = whole("");
    more.extend_from_slice(b"HTTP");
    for (answer, said) in [
        (Vec::new(), "closed without an answer to users"),
        (first.clone(), "closed without an answer to get_users"),
        (b"HTTP/1.1 200".to_vec(), "closed in the middle of the answer to users: \"HTTP/1.1 200\""),
        (b"SSH-2.0-x\r\n".to_vec(), "users is answered \"SSH-2.0-x\x0d\x0a\" instead of HTTP/1.1"),
        (
            b"HTTP/1.1 200 OK\r\n\r\n{}".to_vec(),
            "users is answered \"HTTP/1.1 200 OK\x0d\x0a\x0d\x0a{}\" instead of a body of a known length up to 1048576",
        ),
        (
            response("404 Not Found", "", b"nothing here"),
            "the answer to users has the status 404: \"nothing here\"",
        ),
        (
            response("503 Busy", "", br#"{"jsonrpc":"2.0","error":{"code":-32001,"message":"full","data":"BUSY"},"id":null}"#),
            "the server answers users by the error -32001, \"ERR BUSY full\"",
        ),
        (
            response("200 OK", "", b"\xff"),
            "the answer to users is no JSON: \"\\xff\"",
        ),
        (
            response("200 OK", "", "[".repeat(2000).as_bytes()),
            "the answer to users is no JSON: \"[[[..]",
        ),
        (
            both(response("500 No", "", &right)),
            "the answer to get_users has the status 500: [..]",
        ),
        (
            format!("{long}{}", "x".repeat(1 << 20)).into_bytes(),
            "the answer to users is no JSON: \"[..]",
        ),
        (
            long.replace(&(1 << 20).to_string(), "1048577").into_bytes(),
            "users is answered \"[..]",
        ),
        (more, "more is answered than was asked: \"HTTP\""),
        (
            whole("Age: x|a=1\r\n"),
            "get_users is answered with the Age \"x\\x7ca=1\" instead of a number of seconds",
        ),
        (whole("Age: -1\r\n"), "get_users is answered with the Age \"-1\" [..]"),
        (whole("Age: 2147483649\r\n"), "get_users is answered with the Age \"2147483649\" [..]"),
        (whole("Age: 1\r\nAge: 1\r\n"), "get_users is answered with the Age \"1\" [..]"),
    ] {
        let said = said.replace("\x0d", "\\x0d").replace("\x0a", "\\x0a");
        let outcome = check_users(server(answer), "");
        let really = critical(&outcome);
        match said.strip_suffix("[..]") {
            Some(begin) => assert!(really.starts_with(begin), "{said}: {really}"),
            None => assert_eq!(really, said),
        }
        assert!(really.len() < 600, "{really}");
    }
}

/// One that says nothing, one that says it slowly, and one that has said everything and stays.
#[test]
fn silence_is_critical_at_the_time_out() {
    let right = [1, 2]
        .map(|id| response("200 OK", "", &body("RIGHT", id)))
        .concat();
    for (said_first, slowly, said) in [
        (Vec::new(), false, "no answer to users within 1 s"),
        (
            b"HTTP/1.1 200 OK\r\n".to_vec(),
            true,
            "no answer to users within 1 s",
        ),
        (
            right,
            false,
            "no answer to the end of the requests within 1 s",
        ),
    ] {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
        let address = listener.local_addr().expect("bound");
        thread::spawn(move || {
            let (mut stream, _) = listener.accept().expect("it is asked");
            let _ = stream.write_all(&said_first);
            // Until the plugin has gone, or the test.
            while slowly && stream.write_all(b"A: b\r\n").is_ok() {
                thread::park_timeout(Duration::from_millis(50));
            }
            let _ = stream.read_to_end(&mut Vec::new());
        });
        let begun = Instant::now();
        let outcome = check_users(address, "-t 1");
        let passed = begun.elapsed();
        assert_eq!(critical(&outcome), said);
        assert!(
            passed >= Duration::from_secs(1) && passed < Duration::from_secs(6),
            "{passed:?}"
        );
    }
}

#[test]
fn the_documents_show_what_it_prints() {
    Database::each(&[Kind::Sqlite], |database| {
        let server = fed(database, &FeedServer::of(THREE));
        let shape = |line: &str| {
            let (text, figures) = line.split_once(" | ").expect("figures");
            let words = text.split(' ').map(|word| match word {
                word if word.starts_with("0.") => "TIME",
                word if word.parse::<u64>().is_ok_and(|age| age != 3) => "AGE",
                word => word,
            });
            let words: Vec<&str> = words.collect();
            let (_, figures) = timed(figures);
            let (before, age) = figures.split_once(" age=").expect("an age");
            let (_, after) = age.split_once("s;").expect("seconds");
            format!("{} | {before} age=AGEs;{after}", words.join(" "))
        };
        let examples = manual::section("EXAMPLES").lines();
        let mut examples =
            examples.filter_map(|line| line.strip_prefix(".Dl check_blockchain_tcp "));
        let example = examples.find(|line| line.contains("--users")).expect("one");
        let (_, arguments) = example.split_once("--users ").expect("it");
        let outcome = check_users(server.address("http"), arguments);
        assert_eq!(outcome.status, 0, "{outcome:?}");
        let readme = include_str!("../../README.md");
        let shown = readme.split_once(&format!("check_blockchain_tcp --users {arguments}\n"));
        let shown = shown
            .expect("the same arguments")
            .1
            .lines()
            .next()
            .expect("a line");
        let mut output = manual::section("OUTPUT").lines();
        let in_manual = output.find(|line| line.starts_with("BLOCKCHAIN-TCP OK - 3 users, "));
        for line in [shown.trim(), in_manual.expect("a line")] {
            assert_eq!(shape(line), shape(&outcome.lines[0]));
        }
    });
}
