//! Streams of all users: by JSON-RPC and by gRPC, for clients that are fast, slow, gone or many.

use std::io::Read as _;
use std::thread;
use std::time::{Duration, Instant};

use super::{ALL_USERS, Database, HttpClient, Kind, SCHEMES, Server, ids, numbered, post};
use crate::grpc::{GrpcClient, framed, script};
use crate::handover::{replace, times};
use crate::support::kernel::asked_for;
use crate::support::watch::watch;
use crate::support::{assert_contains, clean, wait_until};

const EACH: [Kind; 3] = [Kind::Postgres, Kind::Bouncer, Kind::Sqlite];

/// Both stores, without what is between.
const STORES: [Kind; 2] = [Kind::Postgres, Kind::Sqlite];

const GET_USERS: &str = "/blockchain_tcp.v1.Users/GetUsers";

/// What a client hears that is too slow, at the end of what is no JSON then.
const SLOW: &str = "\nERR TIMEOUT the users were not taken in time\n";

/// A daemon with this number of users.
fn filled(database: &Database, users: usize, arguments: &str) -> Server {
    let server = Server::start(&database.url(), arguments);
    server.wait_for("USERS", "0");
    database.fill(users);
    server
}

impl Server {
    /// How many streams it takes from its store.
    fn streams(&self) -> usize {
        let threads = format!("/proc/{}/task", self.daemon.pid());
        let threads = std::fs::read_dir(threads)
            .expect("the daemon lives")
            .flatten();
        let names =
            threads.filter_map(|thread| std::fs::read_to_string(thread.path().join("comm")).ok());
        names.filter(|name| name == "stream\n").count()
    }

    /// Waits until it takes this number of streams, and its PostgreSQL has as many.
    fn wait_for_streams(&self, database: &Database, streams: usize) {
        wait_until(&format!("{streams} streams"), || self.streams() == streams);
        if database.kind != Kind::Sqlite && streams == 0 {
            let query = "SELECT count(*) FROM pg_stat_activity WHERE state = 'active' AND query LIKE 'SELECT id, name%'";
            wait_until("the database sends nothing any more", || {
                database.sql(query).trim() == "0"
            });
        }
    }
}

#[test]
fn curl_gets_all_users() {
    needs!("curl");
    Database::each(&EACH, |database| {
        let server = filled(database, 2345, "");
        let url = format!("http://{}", server.address("http"));
        let mut curl = clean("curl");
        let output = curl.args(["-s", "-i", "-d", ALL_USERS, &url]).output();
        let output = output.expect("curl runs");
        assert!(output.status.success(), "{output:?}");
        let said = String::from_utf8(output.stdout).expect("UTF-8");
        let (head, body) = said.split_once("\r\n\r\n").expect("a head");
        assert!(head.starts_with("HTTP/1.1 200 OK\r\n"), "{head}");
        assert_contains(head, "\r\nContent-Type: application/json\r\n");
        assert_contains(head, "\r\nTransfer-Encoding: chunked");
        assert_eq!(ids(body), numbered(1..=2345));
        // A page is a part of it, byte for byte.
        let page = server
            .call(r#"{"jsonrpc":"2.0","id":1,"method":"get_users","params":{"after":"00001000"}}"#);
        let page = page
            .strip_prefix(r#"{"jsonrpc":"2.0","result":["#)
            .expect("a result");
        assert_contains(body, page.strip_suffix(r#"],"id":1}"#).expect("an id"));
    });
}

/// - `get_users` without params answers all users, in chunks, as they were at one moment; with `after` and `limit`, or with one of
///   them in an array, it answers a page. In a batch it needs params.
#[test]
fn each_form_of_the_call_and_of_http_has_its_answer() {
    Database::each(&STORES, |database| {
        let server = filled(database, 1500, "");
        let users = server.call(ALL_USERS);
        assert_eq!(ids(&users), numbered(1..=1500));
        let users = users
            .strip_prefix(r#"{"jsonrpc":"2.0","result":"#)
            .expect("a result");
        let users = users.strip_suffix(r#","id":1}"#).expect("an id");
        for params in [
            "",
            r#","params":null"#,
            r#","params":{}"#,
            r#","params":[]"#,
        ] {
            for (members, begins, ends) in [
                (
                    r#""jsonrpc":"2.0","id":"x""#,
                    r#"{"jsonrpc":"2.0","#,
                    r#","id":"x"}"#,
                ),
                (r#""jsonrpc":"1.1","id":1"#, "{", r#","error":null,"id":1}"#),
                (
                    r#""jsonrpc":"1.0","id":"é""#,
                    "{",
                    r#","error":null,"id":"é"}"#,
                ),
                (r#""id":[1],"jsonrpc":"2.0""#, "", ""),
                (
                    r#""id":18446744073709551616"#,
                    "{",
                    r#","error":null,"id":18446744073709551616}"#,
                ),
            ] {
                let body = server.call(&format!(r#"{{"method":"get_users",{members}{params}}}"#));
                match ends {
                    "" => assert_contains(&body, "-32600"),
                    _ => assert_eq!(
                        body,
                        format!("{begins}\"result\":{users}{ends}"),
                        "{members}"
                    ),
                }
            }
        }
        // HTTP/1.0 has no chunks: the end of the connection is that of the body.
        for fields in ["", "Connection: keep-alive\r\n"] {
            let mut client = HttpClient::connect(server.address("http"));
            let request = post(ALL_USERS).replace("HTTP/1.1\r\n", &format!("HTTP/1.0\r\n{fields}"));
            client.send(request);
            let mut body = Vec::new();
            let read = client.response(|part| body.extend_from_slice(part));
            let (head, _) = read.expect("a response");
            assert_contains(&head, "\nConnection: close");
            assert!(!head.contains("Transfer-Encoding"), "{head}");
            let body = String::from_utf8(body).expect("UTF-8");
            assert_eq!(
                body,
                format!(r#"{{"jsonrpc":"2.0","result":{users},"id":1}}"#)
            );
        }
        // The connection goes on, and what was sent meanwhile is answered afterwards.
        let why = r#"{"jsonrpc":"2.0","id":2,"method":"why"}"#;
        let answer = r#"{"jsonrpc":"2.0","result":42,"id":2}"#;
        let mut client = HttpClient::connect(server.address("http"));
        for _ in 0..3 {
            client.post(ALL_USERS);
            assert_eq!(ids(&client.body().expect("whole")).len(), 1500);
            client.post(why);
            assert_eq!(client.body().as_deref(), Ok(answer));
        }
        let calls = [ALL_USERS, why, ALL_USERS, ALL_USERS, why, why].repeat(3);
        let sent: String = calls.iter().map(|call| post(call)).collect();
        // In one piece and in many, also longer than what is read at once.
        for piece in [sent.len(), 100, 7] {
            let mut writing = HttpClient::connect(server.address("http"));
            let reading = writing.0.get_ref().try_clone().expect("a socket");
            let mut reading = HttpClient(std::io::BufReader::new(reading));
            let sent = sent.clone();
            let writer = thread::spawn(move || {
                for piece in sent.as_bytes().chunks(piece) {
                    writing.send(piece);
                }
            });
            for call in &calls {
                let body = reading.body().expect("whole");
                match *call == why {
                    true => assert_eq!(body, answer),
                    false => assert_eq!(ids(&body).len(), 1500),
                }
            }
            writer.join().expect("all is sent");
        }
        // It closes where it is told to.
        let mut client = HttpClient::connect(server.address("http"));
        client.send(post(ALL_USERS).replace("Host: a\r\n", "Host: a\r\nConnection: close\r\n"));
        assert_eq!(ids(&client.body().expect("whole")).len(), 1500);
        assert_eq!(client.line(), None);
        // Not in a batch, not for nobody.
        let batch = format!("[{ALL_USERS},{why}]");
        let body = server.call(&batch);
        assert_contains(&body, "all users at once are not for a batch");
        assert_contains(&body, answer);
        let mut client = HttpClient::connect(server.address("http"));
        for call in [
            r#"{"jsonrpc":"2.0","method":"get_users","params":[]}"#,
            r#"{"method":"get_users","params":[],"id":null}"#,
            r#"[{"jsonrpc":"2.0","method":"get_users"}]"#,
        ] {
            client.post(call);
            let head = client.head().expect("a response");
            assert!(head.starts_with("HTTP/1.1 204 "), "{call}: {head}");
        }
    });
}

/// Reads an answer of JSON-RPC with [`Database::fill`]'s users, whose ids must be in order. Returns how many they are.
pub fn count_users(client: &mut HttpClient) -> (usize, bool) {
    let (mut users, mut rest) = (0, Vec::new());
    let read = client.response(|part| {
        rest.extend_from_slice(part);
        let mut taken = 0;
        while let Some(end) = rest[taken..].iter().position(|byte| *byte == b'}') {
            let user = &rest[taken..=taken + end];
            // Before the first one is the begin of the response; behind the last one comes its end.
            let begin = match users {
                0 => user.windows(6).position(|bytes| bytes == b"{\"id\":"),
                _ => user.starts_with(b",{\"id\":").then_some(1),
            };
            match begin {
                Some(at) => {
                    users += 1;
                    let id = format!("\"{users:08}\"");
                    let ends = format!(",\"created_at\":{users},\"updated_at\":0}}");
                    let is_next = user[at + 6..].starts_with(id.as_bytes());
                    assert!(
                        is_next && user.ends_with(ends.as_bytes()),
                        "{}",
                        user.escape_ascii()
                    );
                }
                None => assert_eq!(user, b"],\"id\":1}", "{}", user.escape_ascii()),
            }
            taken += end + 1;
        }
        rest.drain(..taken);
    });
    (users, read.expect("a response").1)
}

#[test]
fn a_stream_is_of_one_moment() {
    Database::each(&EACH, |database| {
        let server = filled(database, 100_000, "");
        let mut client = HttpClient::connect(server.address("http"));
        let mut grpc = GrpcClient::connect(server.address("grpc"));
        client.post(ALL_USERS);
        let stream = grpc.send(GET_USERS, &[], &framed(b""));
        grpc.receive_until(|client| {
            client
                .answers
                .get(&stream)
                .is_some_and(|answer| answer.body.len() > 10)
        });
        // Far more than all buffers hold is still to come, all of it of the time before this.
        client.wait_for_users();
        database.sql("UPDATE users SET updated_at = 1, name = 'Other'");
        database.sql("DELETE FROM users WHERE id LIKE '%5'");
        database.sql("INSERT INTO users VALUES ('00000001a', NULL, NULL, '{}', 0, 0), ('999', NULL, NULL, '{}', 0, 0)");
        assert_eq!(count_users(&mut client), (100_000, true));
        let answer = grpc.answer(stream);
        assert_eq!(answer.header("grpc-status"), "0");
        // The messages are no text, but all that is of interest is.
        let body = String::from_utf8_lossy(&answer.body);
        assert!(!body.contains("\x12\x05Other"));
        assert_contains(&body, "\x0a\x0800099999\x12\x0aName 99999");
        server.wait_for("USERS", "90002");
    });
}

#[test]
fn many_users_are_streamed_in_constant_memory() {
    // All of them are more than may be above idle.
    let count = asked_for("BLOCKCHAIN_TCPD_TEST_USERS", 300_000);
    Database::each(&STORES, |database| {
        let server = filled(database, count, "--store-stream-timeout 10m");
        server.wait_for("USERS", &count.to_string());
        let idle = server.daemon.status_number("VmHWM");
        let mut client = HttpClient::connect(server.address("http"));
        client.post(ALL_USERS);
        let begun = Instant::now();
        assert_eq!(count_users(&mut client), (count, true));
        println!("HTTP: {:?}", begun.elapsed());
        let mut grpc = GrpcClient::connect(server.address("grpc"));
        let stream = grpc.send(GET_USERS, &[], &framed(b""));
        let begun = Instant::now();
        let answer = grpc.answer(stream);
        println!("gRPC: {:?}", begun.elapsed());
        assert_eq!(answer.header("grpc-status"), "0");
        assert!(answer.body.len() > count * 60, "{}", answer.body.len());
        let more = server.daemon.status_number("VmHWM") - idle;
        println!("{more} KiB above {idle}");
        assert!(more < 32 * 1024, "{more} KiB");
    });
}

/// - `GetUsers` without a limit is a stream of all users, or of those after an id, as they were at one moment; each message has
///   some of them. It ends with RESOURCE_EXHAUSTED if the client does not take it within the time of `--store-stream-timeout`.
#[test]
fn the_official_client_of_grpc_streams() {
    Database::each(&STORES, |database| {
        let Some((mut script, _scratch)) = script("users.py") else {
            return;
        };
        let server = filled(database, 50_000, "--store-connections 2");
        script.arg(server.address("grpc").to_string());
        let output = script.output().expect("it runs");
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{said}");
        assert_eq!(
            String::from_utf8(output.stdout).expect("UTF-8"),
            "count 50000\n\
             all 50000 ['00000001'] ['00050000'] True\n\
             after 1000 ['00049001'] ['00050000'] True\n\
             page 10 ['00049001'] ['00049010'] True\n\
             one 00000007 Name 7 7@example.org {\"group\":7,\"tags\":[\"a\",\"b\"]} 7 0\n\
             late DEADLINE_EXCEEDED\n\
             meanwhile {42} 50000\n\
             beside it 50000 ['00000001'] ['00050000'] True\n\
             then 50000 ['00000001'] ['00050000'] True\n\
             cancelled\n"
        );
        server.wait_for_streams(database, 0);
        let log = server.daemon.stop();
        assert!(!log.contains("WARN"), "{log}");
    });
}

#[test]
fn a_call_of_grpc_ends_by_its_deadline_at_the_server() {
    Database::each(&STORES, |database| {
        let server = filled(database, 100_000, "");
        let mut client = GrpcClient::connect(server.address("grpc"));
        // The client reads nothing until its time is over, and does not look at the clock itself.
        let stream = client.send(GET_USERS, &[("grpc-timeout", "300m")], &framed(b""));
        server.wait_for_streams(database, 1);
        server.wait_for_streams(database, 0);
        assert_eq!(client.answer(stream).header("grpc-status"), "4");
        // A client that is gone frees its connection, too.
        for gone in 0..3 {
            let mut client = GrpcClient::connect(server.address("grpc"));
            let stream = client.send(GET_USERS, &[], &framed(b""));
            server.wait_for_streams(database, 1);
            if gone > 0 {
                client.session.reset(stream, http2::code::CANCEL);
                client.flush();
            } else {
                drop(client);
            }
            server.wait_for_streams(database, 0);
        }
        let mut client = HttpClient::connect(server.address("http"));
        client.post(ALL_USERS);
        server.wait_for_streams(database, 1);
        drop(client);
        server.wait_for_streams(database, 0);
        let log = server.daemon.stop();
        assert!(!log.contains("unavailable"), "{log}");
    });
}

/// - All users that are not taken within the time of `--store-stream-timeout`, or whose database fails, end without the end of
///   the JSON and of the response: an error as on a line comes last, and the server closes.
#[test]
fn a_slow_reader_is_told_so_and_holds_nothing_any_more() {
    Database::each(&EACH, |database| {
        let server = filled(database, 200_000, "--store-stream-timeout 1s");
        let mut http = HttpClient::connect(server.address("http"));
        let mut old = HttpClient::connect(server.address("http"));
        let mut grpc = GrpcClient::connect(server.address("grpc"));
        http.post(ALL_USERS);
        old.send(post(ALL_USERS).replace("HTTP/1.1", "HTTP/1.0"));
        let stream = grpc.send(GET_USERS, &[], &framed(b""));
        server.wait_for_streams(database, 3);
        server.wait_for_streams(database, 0);
        for client in [&mut http, &mut old] {
            let (body, is_whole) = client.text();
            assert!(
                !is_whole && body.ends_with(SLOW),
                "{}",
                &body[body.len() - 100..]
            );
            assert!(serde_json::from_str::<serde_json::Value>(&body).is_err());
            assert_eq!(client.line(), None);
        }
        let answer = grpc.answer(stream);
        assert_eq!(
            answer.header("grpc-status"),
            "8",
            "{}",
            answer.header("grpc-message")
        );
        assert_eq!(
            answer.header("grpc-message"),
            "the users were not taken in time"
        );
        // One that reads all the time, but too little of it, is told the same.
        let mut client = HttpClient::connect(server.address("http"));
        client.post(ALL_USERS);
        let mut body = Vec::new();
        let begun = Instant::now();
        let read = client.response(|part| {
            body.extend_from_slice(part);
            thread::park_timeout(Duration::from_micros(part.len() as u64 / 4));
        });
        assert!(begun.elapsed() < Duration::from_secs(20));
        assert!(!read.expect("a response").1);
        let body = String::from_utf8_lossy(&body);
        assert!(body.ends_with(SLOW), "{}", &body[body.len() - 100..]);
        // None of that is the database's fault, and others are answered.
        assert_eq!(server.ask("USERS"), "200000");
        let log = server.daemon.stop();
        assert!(!log.contains("unavailable"), "{log}");
    });
}

#[test]
fn more_streams_than_connections_are_refused() {
    Database::each(&STORES, |database| {
        let server = filled(database, 100_000, "--store-connections 2");
        let mut taking: Vec<_> = (0..2)
            .map(|_| {
                let mut client = HttpClient::connect(server.address("http"));
                client.post(ALL_USERS);
                client.head().expect("it begins");
                client
            })
            .collect();
        let why = "too many clients take all users at once, try again later";
        let refused = format!(
            r#"{{"jsonrpc":"2.0","error":{{"code":-32000,"message":"{why}","data":"UNAVAILABLE"}},"id":1}}"#
        );
        let mut client = HttpClient::connect(server.address("http"));
        for _ in 0..3 {
            client.post(ALL_USERS);
            assert_eq!(client.body().as_ref(), Ok(&refused));
        }
        let mut grpc = GrpcClient::connect(server.address("grpc"));
        assert_eq!(grpc.ask(GET_USERS, &framed(b"")), format!("14 {why}"));
        // Others are answered, pages among them.
        assert_eq!(server.ask("USERS"), "100000");
        for scheme in SCHEMES {
            let page = server.ask_by(scheme, "get_users 0 1").expect("a page");
            assert_contains(&page, "\"id\":\"00000001\"");
        }
        drop(taking.pop());
        wait_until("one more may come", || {
            client.post(ALL_USERS);
            client.body() != Ok(refused.clone())
        });
    });
}

/// Time that the daemon has used of the processors, in clock ticks.
fn ticks(server: &Server) -> u64 {
    let stat = std::fs::read_to_string(format!("/proc/{}/stat", server.daemon.pid()));
    let stat = stat.expect("the daemon lives");
    let (_, rest) = stat.rsplit_once(')').expect("a name in brackets");
    let fields: Vec<_> = rest.split_whitespace().collect();
    [fields[11], fields[12]]
        .map(|time| time.parse::<u64>().expect("a number"))
        .iter()
        .sum()
}

#[test]
fn streams_that_wait_for_the_database_cost_nothing() {
    Database::each(&[Kind::Postgres], |database| {
        let server = filled(database, 1000, "--store-stream-timeout 3s");
        let _lock = database.session("BEGIN; LOCK TABLE users IN ACCESS EXCLUSIVE MODE;");
        let mut client = GrpcClient::connect(server.address("grpc"));
        let streams = [(); 3].map(|()| client.send(GET_USERS, &[], &framed(b"")));
        wait_until("they wait", || {
            let waiting = "SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock'";
            database.sql(waiting).trim() == "3"
        });
        let before = ticks(&server);
        for stream in streams {
            let answer = client.answer(stream);
            assert_ne!(answer.header("grpc-status"), "0");
        }
        let used = ticks(&server) - before;
        assert!(used < 50, "{used} hundredths of a second");
    });
}

/// - When another process takes over, a client that is taking all users has half a second for the rest; then they end as if they
///   had not been taken in time.
#[test]
fn a_handover_ends_streams_with_their_own_errors_and_keeps_the_store() {
    Database::each(&STORES, |database| {
        let server = filled(database, 200_000, "");
        let watched = watch(server.daemon.connect());
        let mut grpc = GrpcClient::connect(server.address("grpc"));
        let stream = grpc.send(GET_USERS, &[], &framed(b""));
        // One reads and one does not.
        let mut idle = HttpClient::connect(server.address("http"));
        let mut slow = HttpClient::connect(server.address("http"));
        for client in [&mut idle, &mut slow] {
            client.post(ALL_USERS);
            client.head().expect("it begins");
        }
        let begun = Instant::now();
        let reader = thread::spawn(move || {
            let mut body = Vec::new();
            loop {
                let Some(line) = slow.line() else {
                    return (body, false);
                };
                let length = u64::from_str_radix(&line, 16).expect("a length");
                if length == 0 {
                    return (body, true);
                }
                if !slow.copy(length, &mut |part| {
                    body.extend_from_slice(part);
                    thread::park_timeout(Duration::from_micros(part.len() as u64 / 2));
                }) {
                    return (body, false);
                }
                slow.line();
            }
        });
        replace(&server.daemon);
        let took = begun.elapsed();
        assert!(took < Duration::from_secs(4), "{took:?}");
        let (body, is_whole) = reader.join().expect("it reads");
        assert!(!is_whole);
        let body = String::from_utf8_lossy(&body);
        let stops = "\nERR UNAVAILABLE the server stops, try again\n";
        assert!(body.ends_with(stops), "{}", &body[body.len() - 100..]);
        // This one has not made room for more than the end of the connection.
        let mut body = Vec::new();
        let _ = idle.0.read_to_end(&mut body);
        assert!(!body.ends_with(b"0\r\n\r\n") && body.len() < 20_000_000);
        // Where its windows have no room, this one hears only that the server takes no more calls, and then the end.
        let answer = grpc.answer(stream);
        assert!(["14", ""].contains(&answer.header("grpc-status")));
        assert_eq!(server.ask("USERS"), "200000");
        let mut client = HttpClient::connect(server.address("http"));
        client.post(ALL_USERS);
        assert_eq!(count_users(&mut client), (200_000, true));
        let (answers, _) = watched.end();
        assert!(
            answers.iter().all(|answer| answer.parse::<u32>().is_ok()),
            "{answers:?}"
        );
        assert_eq!(times(&server.daemon, "unavailable"), 0);
        assert_eq!(times(&server.daemon, "are lost in the handover"), 0);
    });
}

#[test]
fn a_drain_waits_for_streams() {
    Database::each(&STORES, |database| {
        let server = filled(database, 100_000, "");
        let mut client = HttpClient::connect(server.address("http"));
        client.post(ALL_USERS);
        client.wait_for_users();
        let mut grpc = GrpcClient::connect(server.address("grpc"));
        let stream = grpc.send(GET_USERS, &[], &framed(b""));
        grpc.receive_until(|client| {
            client
                .answers
                .get(&stream)
                .is_some_and(|answer| answer.body.len() > 10)
        });
        server.daemon.signal("TERM");
        server.daemon.log().wait_for("stopping");
        assert_eq!(count_users(&mut client), (100_000, true));
        assert_eq!(client.line(), None);
        assert_eq!(grpc.answer(stream).header("grpc-status"), "0");
        let Server { mut daemon, .. } = server;
        assert!(daemon.wait().success());
    });
}
