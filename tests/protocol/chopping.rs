//! Arbitrary requests, cut arbitrarily: the replies are those to the same bytes in one piece, and those that a simple
//! model of the document expects.

use std::io::Write as _;
use std::net::Shutdown;

use proptest::prelude::*;
use proptest::test_runner::{Config, TestRunner};

use super::daemon;
use crate::support::Daemon;

/// - How the bytes are cut into packets makes no difference.
#[test]
fn replies_are_the_same_in_whatever_pieces_the_requests_come() {
    let daemon = daemon();
    let id = daemon.ask("WHERE").trim().to_string();
    let input = (requests(), prop::collection::vec(0..=1200usize, 0..40));
    let config = Config {
        cases: 300,
        failure_persistence: None,
        ..Config::default()
    };
    TestRunner::new(config)
        .run(&input, |(requests, cuts)| {
            let whole = exchange(&daemon, [&requests]);
            let chopped = exchange(&daemon, pieces(&requests, &cuts));
            prop_assert_eq!(&whole, &chopped);
            let expected = model(&requests, &id);
            prop_assert_eq!(without_sentences(&whole), expected);
            Ok(())
        })
        .unwrap_or_else(|failure| panic!("{failure}"));
}

/// Lines of all sorts, with an LF after the last or without.
fn requests() -> impl Strategy<Value = Vec<u8>> {
    let text = |text: &'static str| Just(text.as_bytes().to_vec()).boxed();
    let command = prop::sample::select(vec!["WHO", "where", "Why", "PING", "HELP"]);
    let command = command.prop_map(|name| name.as_bytes().to_vec());
    let blanks = "[ \t]{0,3}".prop_map(String::into_bytes);
    let padded = (blanks.clone(), command.clone(), blanks)
        .prop_map(|(before, command, after)| [before, command, after].concat());
    let line = prop_oneof![
        20 => command,
        4 => padded,
        2 => text("HELP why"),
        2 => text("help  FOO"),
        2 => text("WHY not"),
        2 => text(" \t"),
        2 => text(""),
        2 => text("\r"),
        2 => "[ -~]{1,80}".prop_map(String::into_bytes),
        2 => prop::collection::vec(any::<u8>(), 0..30),
        2 => (1015..1030usize).prop_map(|length| format!("{:length$}", "PING").into_bytes()),
        1 => (1000..3000usize).prop_map(|length| vec![b'x'; length]),
        1 => text("QUIT"),
        1 => text("exit "),
    ];
    let ends = prop::sample::select(vec!["\n", "\n", "\r\n"]);
    let lines = prop::collection::vec((line, ends), 0..30);
    (lines, any::<bool>()).prop_map(|(lines, ended)| {
        let mut all = Vec::new();
        for (line, end) in lines {
            all.extend(line);
            all.extend(end.as_bytes());
        }
        if !ended {
            all.pop();
        }
        all
    })
}

/// `bytes` cut into pieces of these lengths and the rest.
fn pieces<'a>(mut bytes: &'a [u8], lengths: &[usize]) -> Vec<&'a [u8]> {
    let mut pieces = Vec::new();
    for length in lengths {
        let (piece, rest) = bytes.split_at((*length).min(bytes.len()));
        pieces.push(piece);
        bytes = rest;
    }
    pieces.push(bytes);
    pieces
}

/// Sends each piece in a write of its own, shuts down, and returns all replies.
pub fn exchange(daemon: &Daemon, pieces: impl IntoIterator<Item = impl AsRef<[u8]>>) -> String {
    let mut client = daemon.connect();
    for piece in pieces {
        // After a QUIT the daemon may have closed already.
        if client.socket().write_all(piece.as_ref()).is_err() {
            break;
        }
        // Lets the daemon read this piece alone, mostly.
        std::thread::yield_now();
    }
    let _ = client.socket().shutdown(Shutdown::Write);
    // A reset after the daemon's end takes nothing from what is compared.
    client.whatever_comes()
}

/// Errors cut after their word: the document leaves the sentences open.
fn without_sentences(replies: &str) -> String {
    let shapes = replies
        .lines()
        .map(|reply| match reply.strip_prefix("ERR ") {
            Some(error) => format!("ERR {}\n", error.split(' ').next().unwrap_or_default()),
            None => format!("{reply}\n"),
        });
    shapes.collect()
}

/// What docs/protocol.md says is answered to `input` and its end, by a lone client of the server `id`.
fn model(input: &[u8], id: &str) -> String {
    let mut replies = String::new();
    // What comes after the last LF is a request too, and if it is nothing, a line without a word.
    for line in input.split(|byte| *byte == b'\n') {
        // An unended line has the length that it would have with its end.
        if line.len() + 1 > 1024 {
            return replies + "ERR TOOLONG\n";
        }
        let text = line.strip_suffix(b"\r").unwrap_or(line);
        let words = text.split(|byte| b" \t".contains(byte));
        let words: Vec<&[u8]> = words.filter(|word| !word.is_empty()).collect();
        let good = |byte: &u8| (32..127).contains(byte) || *byte == 9;
        let words: Vec<String> = words
            .iter()
            .map(|word| String::from_utf8_lossy(word).to_uppercase())
            .collect();
        let words: Vec<&str> = words.iter().map(String::as_str).collect();
        let known = ["WHO", "WHERE", "WHY", "PING", "HELP", "QUIT", "EXIT"];
        let reply = match words[..] {
            [] => continue,
            _ if !text.iter().all(good) => "ERR BADINPUT",
            ["WHO"] => "1",
            ["WHERE"] => id,
            ["WHY"] => "42",
            ["PING"] => "PONG",
            ["HELP"] => "WHO WHERE WHY PING HELP QUIT EXIT",
            ["HELP", "WHY"] => "WHY: the answer",
            ["HELP", name] if known.contains(&name) => unreachable!("not among the requests"),
            ["HELP", _] => "ERR UNKNOWN",
            ["QUIT" | "EXIT"] => return replies + "BYE\n",
            [name, ..] if known.contains(&name) => "ERR USAGE",
            _ => "ERR UNKNOWN",
        };
        replies += reply;
        replies += "\n";
    }
    replies
}
