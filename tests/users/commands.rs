//! The commands, on each protocol and each store.

use shared::command::{Argument, ErrorCode, sets};
use shared::schema::encode_arguments;
use shared::schema::envelope::{self, Frame, MAX_RESPONSE, Response};

use super::{Database, Kind, SCHEMES, Server, User, ids, numbered, on_a_line, word};
use crate::grpc::{GrpcClient, framed};
use crate::support::{Client, assert_contains};

const EACH: [Kind; 3] = [Kind::Postgres, Kind::Bouncer, Kind::Sqlite];

/// Users in the order of their ids' bytes, which is that of no language.
const USERS: [User; 16] = [
    user("\" \\", r#"{}"#),
    user(
        "10",
        r#"{"big":9007199254740993,"huge":18446744073709551615}"#,
    ),
    user(
        "9",
        r#"{"nested":{"a":[1,{"b":null},[]],"c":{}},"float":1.0,"exponent":1e400}"#,
    ),
    user("B", r#"{"text":"\u00e9 é \ud83d\ude00 \" \\"}"#),
    user("Z", r#"{"key with \"quotes\" and é":true}"#),
    user("_", r#"{ "spaced" : [ 1 , 2 ] }"#),
    User {
        name: Some(""),
        email: Some(""),
        ..user("a", "{}")
    },
    User {
        name: Some("It's \"Zoë\" \\ \u{1f600}\n\t"),
        email: None,
        ..user("a b", r#"{"id_of_others":"x","Name":1}"#)
    },
    User {
        name: None,
        email: Some("zoë@example.org"),
        ..user("ab", "{}")
    },
    user(
        "it's; DROP TABLE users --",
        "{\n\t\"pretty\": 1,\n\t\"é\": [\n]\n}",
    ),
    user("line\nbreak\ttab", "{}"),
    user("z", "{}"),
    user("é", "{}"),
    user("\u{2028}", "{}"),
    user("\u{fffd}", "{}"),
    user("\u{1f600}", "{}"),
];

const fn user(id: &'static str, members: &'static str) -> User {
    User {
        id,
        name: Some("Name"),
        email: Some("me@example.org"),
        members,
        created_at: 1_700_000_000_123_456,
        updated_at: -1,
    }
}

/// A page with these users.
fn page(users: &[User]) -> String {
    let users: Vec<_> = users.iter().map(User::json).collect();
    format!("[{}]", users.join(","))
}

/// - `USERS` answers how many there are.
/// - `USER` with an id answers that user, a JSON object on one line, or `ERR NOTFOUND`.
/// - `GET_USERS` answers a JSON array of users in the order of the bytes of their ids: those after the id that is given, or the
///   first ones, and no more than the number behind it.
/// - An id on a line is a word, or a JSON string without blanks, where `\u0020` is one; it has at most 2,000 bytes, and no
///   more than fit into the line.
/// - A user has an `id`, a `name` and an `email`, which may be null, the further members that came with it, and `created_at` and
///   `updated_at`, in microseconds since 1970.
#[test]
fn each_command_has_the_same_answer_on_each_protocol_and_each_store() {
    Database::each(&EACH, |database| {
        let server = Server::start(&database.url(), "");
        for scheme in SCHEMES {
            assert_eq!(
                server.ask_by(scheme, "users").as_deref(),
                Ok("0"),
                "{scheme}"
            );
            assert_eq!(
                server.ask_by(scheme, "get_users").as_deref(),
                Ok("[]"),
                "{scheme}"
            );
        }
        // In an order that is not theirs.
        let inserts = USERS.iter().rev().map(User::insert).collect::<String>();
        database.sql(&inserts);
        let count = USERS.len().to_string();
        for scheme in SCHEMES {
            let asked = |request: &str| {
                let answer = server.ask_by(scheme, request);
                answer.unwrap_or_else(|why| panic!("{scheme}: {request}: {why}"))
            };
            assert_eq!(asked("users"), count, "{scheme}");
            assert_eq!(asked("get_users"), on_a_line(&page(&USERS)), "{scheme}");
            for (index, user) in USERS.iter().enumerate() {
                let id = word(user.id);
                assert_eq!(
                    asked(&format!("user {id}")),
                    on_a_line(&user.json()),
                    "{scheme}"
                );
                if index % 4 == 0 {
                    let rest = on_a_line(&page(&USERS[index + 1..]));
                    assert_eq!(asked(&format!("get_users {id}")), rest, "{scheme}");
                }
                let next = &USERS[index + 1..(index + 3).min(USERS.len())];
                let next = on_a_line(&page(next));
                assert_eq!(asked(&format!("get_users {id} 2")), next, "{scheme}");
            }
            let first = on_a_line(&page(&USERS[..1]));
            assert_eq!(asked("get_users \"\" 1"), first, "{scheme}");
            assert_eq!(
                asked("get_users zz 1000"),
                on_a_line(&page(&USERS[12..])),
                "{scheme}"
            );
        }
        // A word needs no quotes on a line, whatever it holds but for blanks.
        assert_eq!(server.ask("USER ab"), on_a_line(&USERS[8].json()));
        assert_eq!(
            server.ask("user it's"),
            "ERR NOTFOUND there is none of this id: \"it's\""
        );
        // JSON-RPC has texts as they are, positions or names, and all of a row byte for byte.
        for user in &USERS {
            let id = serde_json::to_string(user.id).expect("a text");
            for params in [format!("[{id}]"), format!("{{\"id\":{id}}}")] {
                let call =
                    format!(r#"{{"jsonrpc":"2.0","id":7,"method":"user","params":{params}}}"#);
                let json = user.json();
                let expected = format!(r#"{{"jsonrpc":"2.0","result":{json},"id":7}}"#);
                assert_eq!(server.call(&call), expected);
            }
        }
        let call =
            r#"{"jsonrpc":"2.0","id":7,"method":"get_users","params":{"after":"Z","limit":3}}"#;
        let expected = format!(
            r#"{{"jsonrpc":"2.0","result":{},"id":7}}"#,
            page(&USERS[5..8])
        );
        assert_eq!(server.call(call), expected);
        let log = server.daemon.stop();
        assert!(!log.contains("WARN") && !log.contains("ERROR"), "{log}");
    });
}

/// The words with which a call is refused by each protocol, or nothing where it is answered.
fn refused(server: &Server, name: &str, arguments: &[Argument<'_>]) -> Vec<String> {
    let mut known = sets::with_rpc();
    let (spec, rpc) = known.find(|(spec, _)| spec.name == name).expect("known");
    let mut message = Vec::new();
    encode_arguments(spec, arguments, &mut message);

    let shown = arguments.iter().map(|argument| match argument {
        Argument::Text(text) => serde_json::to_string(text).expect("a text"),
        Argument::Integer(number) => number.to_string(),
        Argument::Word(_) => unreachable!("no word"),
    });
    let shown: Vec<_> = shown.collect();
    let on_line = shown
        .iter()
        .map(|json| on_a_line(json).replace(' ', "\\u0020"));
    let line = format!("{name} {}", on_line.collect::<Vec<_>>().join(" "));
    let line = server.ask(line.trim_end());
    let line = line
        .strip_prefix("ERR ")
        .map_or("", |rest| rest.split(' ').next().unwrap());

    let method = name.to_lowercase();
    let params = shown.join(",");
    let call = format!(r#"{{"jsonrpc":"2.0","id":1,"method":"{method}","params":[{params}]}}"#);
    let answer: serde_json::Value = serde_json::from_str(&server.call(&call)).expect("JSON");
    let json = answer["error"]["data"].as_str().unwrap_or_default();

    let mut client = Client::connect(server.address("protobuf")).expect("it accepts");
    let mut request = Vec::new();
    envelope::encode_request(1, spec, rpc, arguments, &mut request);
    client.send(request);
    client.shutdown();
    let answer = client.take(u64::MAX);
    let Frame::Message(answer, _) = envelope::frame(&answer, MAX_RESPONSE) else {
        panic!("{answer:?}");
    };
    let protobuf = match envelope::decode_response(answer).expect("a response") {
        (1, Response::Error(code, _)) => code.map_or("?", ErrorCode::word),
        _ => "",
    };

    let path = format!("/blockchain_tcp.v1.{}/{}", rpc.service, rpc.method);
    let mut client = GrpcClient::connect(server.address("grpc"));
    let stream = client.send(&path, &[], &framed(&message));
    let grpc = match client.answer(stream).header("grpc-status") {
        "0" => "",
        "3" => "USAGE",
        "5" => "NOTFOUND",
        "14" => "UNAVAILABLE",
        other => panic!("{other}"),
    };
    [line, json, protobuf, grpc].map(str::to_string).to_vec()
}

/// - `ERR NOTFOUND`: there is no record of this id.
#[test]
fn each_error_has_its_word_on_each_protocol_and_each_store() {
    Database::each(&EACH, |database| {
        let server = Server::start(&database.url(), "");
        let text = |text: &'static str| Argument::Text(text.into());
        let long = |length: usize| Argument::Text("x".repeat(length).into());
        for (name, arguments, expected) in [
            ("USER", vec![text("7")], "NOTFOUND"),
            ("USER", vec![text("")], "NOTFOUND"),
            ("USER", vec![text("a b\u{1f600}\n")], "NOTFOUND"),
            ("USER", vec![long(1000)], "NOTFOUND"),
            ("USER", vec![long(2000)], "TOOLONG NOTFOUND"),
            ("USER", vec![long(2001)], "TOOLONG USAGE"),
            ("USER", vec![text("a\0b")], "USAGE"),
            ("GET_USERS", vec![long(2001)], "TOOLONG USAGE"),
            ("GET_USERS", vec![text("\0")], "USAGE"),
            ("GET_USERS", vec![text(""), Argument::Integer(0)], "USAGE"),
            (
                "GET_USERS",
                vec![text(""), Argument::Integer(1001)],
                "USAGE",
            ),
            ("GET_USERS", vec![text(""), Argument::Integer(-1)], "USAGE"),
            (
                "GET_USERS",
                vec![text(""), Argument::Integer(i64::MAX)],
                "USAGE",
            ),
            ("GET_USERS", vec![text(""), Argument::Integer(1000)], ""),
            ("GET_USERS", vec![long(1000), Argument::Integer(1)], ""),
        ] {
            let said = refused(&server, name, &arguments);
            // A line is shorter than an id may be.
            let (on_line, elsewhere) = expected.split_once(' ').unwrap_or((expected, expected));
            let expected = [on_line, elsewhere, elsewhere, elsewhere];
            assert_eq!(said, expected, "{name} {arguments:?}");
        }
        // Half a character, no text at all, a text that does not end.
        for line in [
            "USER \"\\ud800\"",
            "USER \"a",
            "USER \"a\"b",
            "USER",
            "USER a b",
            "GET_USERS a b",
            "GET_USERS a 1 c",
            "USERS 1",
        ] {
            assert_contains(&server.ask(line), "ERR USAGE ");
        }
        for params in [
            "[7]",
            "[null]",
            r#"["\ud800"]"#,
            "{}",
            r#"{"ID":"7"}"#,
            r#"{"id":"7","limit":1}"#,
        ] {
            let call = format!(r#"{{"jsonrpc":"2.0","id":1,"method":"user","params":{params}}}"#);
            assert_contains(&server.call(&call), r#""code":-32602,"#);
        }
        let call = r#"{"jsonrpc":"2.0","id":1,"method":"user","params":["7"]}"#;
        let error =
            r#"{"code":-32004,"message":"there is none of this id: \"7\"","data":"NOTFOUND"}"#;
        assert_contains(&server.call(call), error);
        // An id that is not inserted is no reason for anything in the log.
        let log = server.daemon.stop();
        assert!(!log.contains("WARN"), "{log}");
    });
}

/// - Such a page has at most 1,000 users, and ends early before 524,288 bytes; the next one begins after its last id.
/// - Once the replies of a batch have two mebibytes, its further calls have the error `UNAVAILABLE`.
#[test]
fn pages_end_early_before_they_are_too_large() {
    Database::each(&EACH, |database| {
        let server = Server::start(&database.url(), "");
        server.wait_for("USERS", "0");
        // With the rest of the user, five are not larger than a page, and six are.
        let members = |length: usize| format!("{{\"filler\":\"{}\"}}", "x".repeat(length));
        let insert = |id: &str, length: usize| {
            format!(
                "INSERT INTO users VALUES ('{id}', NULL, NULL, '{}', 0, 0);\n",
                members(length)
            )
        };
        let many = (10..30).map(|number| insert(&number.to_string(), 100_000));
        let alone = insert("9", 600_000);
        database.sql(&many.chain([alone]).collect::<String>());
        for scheme in SCHEMES {
            let mut pages = Vec::new();
            let mut after = String::new();
            loop {
                let asked = server.ask_by(scheme, &format!("get_users \"{after}\" 1000"));
                let answer = asked.unwrap_or_else(|why| panic!("{scheme}: {why}"));
                assert!(answer.len() < 700_000, "{scheme}: {}", answer.len());
                let page = ids(&format!("{{\"result\":{answer}}}"));
                let Some(last) = page.last() else {
                    break;
                };
                after.clone_from(last);
                pages.push(page.len());
            }
            assert_eq!(pages, [5, 5, 5, 5, 1], "{scheme}");
        }
        let page = r#"{"jsonrpc":"2.0","id":1,"method":"get_users","params":["",5]}"#;
        let answer = server.call(&format!("[{}]", [page; 8].join(",")));
        // Five pages are longer than two mebibytes.
        assert_eq!(answer.matches("\"result\"").count(), 5);
        assert_eq!(answer.matches("too long, ask again").count(), 3);
    });
}

#[test]
fn pages_in_a_row_are_all_users() {
    Database::each(&EACH, |database| {
        let server = Server::start(&database.url(), "");
        server.wait_for("USERS", "0");
        database.fill(2345);
        for (limit, most) in [
            ("", 1000),
            (" 1000", 1000),
            (" 7", 7),
            (" 100", 100),
            (" 101", 101),
        ] {
            let mut client = server.daemon.connect();
            let (mut all, mut after) = (Vec::new(), "\"\"".to_string());
            loop {
                let answer = client.ask(&format!("GET_USERS {after}{limit}"));
                let mut page = ids(&format!("{{\"result\":{answer}}}"));
                let Some(last) = page.last() else {
                    break;
                };
                assert!(page.len() <= most);
                after.clone_from(last);
                all.append(&mut page);
            }
            assert_eq!(all, numbered(1..=2345), "{limit}");
        }
        // Requests at once are answered in their order, however long the answers are.
        let lines = "USERS\nGET_USERS\nUSERS\nUSER 00000007\nGET_USERS 00002000\nWHY\n".repeat(20);
        let answers = server.daemon.ask(lines);
        let lengths: Vec<_> = answers.lines().map(str::len).collect();
        assert_eq!(lengths.len(), 120, "{lengths:?}");
        assert!(
            lengths.chunks(6).all(|chunk| chunk == &lengths[..6]),
            "{lengths:?}"
        );
    });
}
