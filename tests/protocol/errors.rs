//! The section on errors: each word, when it is said, and what becomes of the connection.

use std::collections::BTreeSet;
use std::time::Duration;

use shared::command::NoRoom;
use shared::command::Unavailable;
use shared::command::{
    self, BadHeader, CommandClass, CommandError, CommandSet, CommandSpec, ParameterType, ValueType,
};

use super::{COMMANDS, daemon, proves, words_of_the_document};
use crate::support::kernel::local_server;
use crate::support::{Client, Daemon};

#[test]
fn each_mistake_has_its_word_and_the_connection_goes_on() {
    proves(r#"`ERR UNKNOWN`: there is no such command."#);
    proves(
        r#"`ERR USAGE`: the arguments are not those that the command takes, or it has no value for them."#,
    );
    proves(
        r#"After `UNKNOWN`, `USAGE`, `BADINPUT` and `UNAVAILABLE` the connection goes on, unless it is about a PROXY header."#,
    );
    let daemon = daemon();
    let mut client = daemon.connect();
    for (request, word) in [
        ("FOO", "UNKNOWN"),
        ("WHOM", "UNKNOWN"),
        ("HELP FOO", "UNKNOWN"),
        ("HELP WHO WHY", "USAGE"),
        ("WHO \u{e9}", "BADINPUT"),
    ] {
        let error = client.ask(request);
        assert!(error.starts_with(&format!("ERR {word} ")), "{error}");
        assert_eq!(client.ask("WHY"), "42");
    }
    for command in COMMANDS.iter().filter(|command| **command != "HELP") {
        let error = client.ask(&format!("{command} x"));
        assert!(error.starts_with("ERR USAGE "), "{error}");
        assert_eq!(client.ask("WHY"), "42");
    }
}

#[test]
fn any_byte_that_is_no_text_is_bad_input() {
    proves(
        r#"`ERR BADINPUT`: the line holds a byte that is neither printable ASCII nor a blank, or a PROXY header is not as it
        must be."#,
    );
    let daemon = daemon();
    let mut client = daemon.connect();
    for byte in (0..=255).filter(|byte| *byte != b'\n') {
        client.send([b"FOO x", &[byte][..], b"y\n"].concat());
        let error = client.line().expect("a reply");
        let word = match byte {
            b' '..=b'~' | b'\t' => "ERR UNKNOWN ",
            _ => "ERR BADINPUT ",
        };
        assert!(error.starts_with(word), "{byte:#x}: {error}");
    }
}

#[test]
fn a_line_that_is_too_long_ends_the_connection() {
    proves(
        r#"`ERR TOOLONG`: the line with its end is longer than 1,024 bytes; the requests before it are answered, and then the server
        closes."#,
    );
    let daemon = daemon();
    let mut client = daemon.connect();
    client.send(["WHY\nPING\n", &"x".repeat(1025), "\nWHY\n"].concat());
    let replies = client.rest();
    assert!(replies.starts_with("42\nPONG\nERR TOOLONG "), "{replies}");
    assert_eq!(replies.lines().count(), 3, "{replies}");
}

#[test]
fn what_an_error_repeats_is_cut_and_escaped() {
    proves(
        r#"What an error repeats of a request is between double quotes, at most 64 characters of it, with `\`, `"` and
        whatever is not printable ASCII written as `\\`, `\"` and `\xNN`."#,
    );
    let daemon = daemon();
    let repeated = |request: &[u8]| {
        let error = daemon.ask(request);
        let (start, end) = (
            error.find('"').expect("a quote"),
            error.rfind('"').expect("its end"),
        );
        error[start..=end].to_string()
    };
    assert_eq!(repeated(br#"a\b"c"#), r#""a\\b\"c""#);
    assert_eq!(repeated(b"\x1b[31m\xff"), r#""\x1B[31m\xFF""#);
    assert_eq!(repeated(&[b'x'; 64]), format!("\"{}\"", "x".repeat(64)));
    assert_eq!(repeated(&[b'x'; 1000]), format!("\"{}\"", "x".repeat(64)));
    assert_eq!(
        repeated(&[0xff; 1000]),
        format!("\"{}\"", "\\xFF".repeat(64))
    );
}

#[test]
fn the_server_says_no_word_that_the_document_lacks() {
    proves(
        r#"More words may come in later versions; a client takes one that it doesn't know as it takes `INTERNAL`."#,
    );
    let known: BTreeSet<&str> = [
        CommandError::Unknown(b"x"),
        CommandError::Usage(&command::sets::server::SET[0]),
        CommandError::Argument {
            wanted: &ParameterType::Word,
            given: b"x",
        },
        CommandError::OutOfRange("too large"),
        CommandError::ComputeBusy,
        CommandError::BadInput(b"x"),
        CommandError::TooLong(1),
        CommandError::NoRoom(NoRoom::Here { clients: 1 }),
        CommandError::NoRoom(NoRoom::ForAddress { limit: 1 }),
        CommandError::NoRoom(NoRoom::Uncounted { limit: 1 }),
        CommandError::NoRoom(NoRoom::BeforeHeader { limit: 1 }),
        CommandError::BadHeader(BadHeader::Missing),
        CommandError::Idle,
        CommandError::MadeRoom,
        CommandError::Unavailable(Unavailable::Registry),
        CommandError::Internal,
    ]
    .iter()
    .map(CommandError::word)
    .collect();
    assert_eq!(words_of_the_document(), known);
}

#[test]
fn an_answer_that_can_not_be_had_is_none_and_the_connection_goes_on() {
    proves(
        r#"`ERR UNAVAILABLE`: the answer needs something which the server can't have now, as `WHO` may in a cluster that is
        always consistent."#,
    );
    // There is no etcd.
    let cluster = ["--cluster", "etcd://127.0.0.1:1"];
    let http = ["--advertise", "127.0.0.1:1", "--http", "127.0.0.1:0"];
    let daemon = Daemon::start(cluster.iter().chain(&http));
    let mut client = daemon.connect();
    for _ in 0..2 {
        let answer = client.ask("WHO");
        assert!(answer.starts_with("ERR UNAVAILABLE 0 of "), "{answer}");
        assert_eq!(client.ask("WHY"), "42");
    }
}

#[test]
fn a_request_that_fails_inside_costs_its_client_the_connection_and_nobody_else_anything() {
    proves(r#"`ERR INTERNAL`: the server failed at this request, and then it closes."#);
    const FAILING: CommandSet = &[CommandSpec {
        name: "FAIL",
        parameters: &[],
        result: ValueType::Text,
        summary: "a failure of the server",
        class: CommandClass::Query,
        execute: |_, _| panic!("asked to fail"),
    }];
    let server = local_server(
        &["--max-clients", "1"],
        &[command::sets::server::SET, FAILING],
    );
    for _ in 0..3 {
        let mut client = Client::connect(server.addresses()[0]).expect("it accepts");
        assert_eq!(client.ask("WHY"), "42");
        client.send("FAIL\nWHY\n");
        let replies = client.rest();
        assert!(replies.starts_with("ERR INTERNAL "), "{replies}");
        assert_eq!(replies.lines().count(), 1, "{replies}");
    }
    let mut pipelining = Client::connect(server.addresses()[0]).expect("it accepts");
    pipelining.send("WHY\nFAIL\nWHY\n");
    let replies = pipelining.rest();
    assert!(replies.starts_with("42\nERR INTERNAL "), "{replies}");
    let mut other = Client::connect(server.addresses()[0]).expect("it accepts");
    assert_eq!(other.ask("WHO"), "1");
    drop(other);
    server.stop(Duration::from_secs(10));
}
