//! The contract, sentence by sentence: each item of docs/protocol.md is quoted by the test that proves it, in the comment
//! above that test or in `transcripts.txt`.
//!
//! Commands that compute are tested in `computing` too, the sections on errors and connections in `errors` and
//! `connections`, load balancers in tests/proxy.rs, arbitrary cuts of the bytes in `chopping`.

mod chopping;
pub mod computing;
mod connections;
mod errors;

use std::collections::BTreeSet;

use crate::support::tables::exchanges;
use crate::support::{Client, Daemon};

const DOCUMENT: &str = include_str!("../docs/protocol.md");
const TRANSCRIPTS: &str = include_str!("protocol/transcripts.txt");
const SOURCES: &[&str] = &[
    include_str!("protocol.rs"),
    include_str!("protocol/chopping.rs"),
    include_str!("protocol/computing.rs"),
    include_str!("protocol/connections.rs"),
    include_str!("protocol/errors.rs"),
    include_str!("failures.rs"),
    include_str!("full.rs"),
    include_str!("handover.rs"),
    include_str!("hostile.rs"),
    include_str!("jsonrpc.rs"),
    include_str!("life.rs"),
    include_str!("grpc.rs"),
    include_str!("protobuf.rs"),
    include_str!("proxy.rs"),
    include_str!("redis.rs"),
    include_str!("stock.rs"),
    include_str!("users/age.rs"),
    include_str!("users/commands.rs"),
    include_str!("users/streams.rs"),
    include_str!("users/trouble.rs"),
];

/// Says which sentence a test proves. It must be in the document, word by word.
pub fn proves(sentence: &str) {
    let sentence = one_blank_between_words(sentence);
    assert!(
        sentences().contains(&sentence),
        "docs/protocol.md doesn't say: {sentence}"
    );
}

/// The list items from the heading "Requests" on.
fn sentences() -> BTreeSet<String> {
    let sections = DOCUMENT.split_once("\n## Requests\n");
    items(sections.expect("there is such a section").1).collect()
}

/// The list items of a text, whose further lines are indented.
fn items(text: &str) -> impl Iterator<Item = String> {
    text.split("\n- ").skip(1).map(|item| {
        let mut lines = item.lines();
        let first = lines.next().unwrap_or_default();
        let further = lines.take_while(|line| line.starts_with("  "));
        one_blank_between_words(&further.fold(first.to_string(), |item, line| item + line))
    })
}

fn one_blank_between_words(text: &str) -> String {
    text.split_whitespace().collect::<Vec<_>>().join(" ")
}

/// The sentences that the tests of a source file quote: as lists in their comments, or by [`proves`].
fn quotes(source: &str) -> Vec<String> {
    let mut quotes = Vec::new();
    for before_test in source.split("#[test]\n") {
        let lines = before_test.lines().rev();
        let mut comment: Vec<&str> = lines.map_while(|line| line.strip_prefix("/// ")).collect();
        comment.reverse();
        quotes.extend(items(&format!("\n{}", comment.join("\n"))));
    }
    let calls = source.split("proves(").skip(1);
    let calls = calls.filter_map(|call| call.trim_start().strip_prefix("r#\"")?.split_once("\"#"));
    quotes.extend(calls.map(|(sentence, _)| one_blank_between_words(sentence)));
    quotes
}

/// A daemon with few workers, which starts sooner.
fn daemon() -> Daemon {
    Daemon::start(["--max-clients", "8"])
}

/// The words in the items "`ERR WORD`…".
pub fn words_of_the_document() -> BTreeSet<&'static str> {
    let items = DOCUMENT.split("\n- `ERR ").skip(1);
    items.filter_map(|item| item.split('`').next()).collect()
}

/// Whether these are lines of printable ASCII, and an error has a word of the document and single blanks.
pub fn are_replies(text: &str) -> bool {
    let is_reply = |reply: &str| {
        let is_right = match reply.strip_prefix("ERR ") {
            None => true,
            Some(error) => {
                let word = error.split(' ').next().unwrap_or_default();
                words_of_the_document().contains(word) && !error.contains("  ")
            }
        };
        is_right && !reply.is_empty() && reply.bytes().all(|byte| matches!(byte, b' '..=b'~'))
    };
    let has_end = text.is_empty() || text.ends_with('\n');
    has_end && text.split_terminator('\n').all(is_reply)
}

#[test]
fn every_sentence_is_quoted_by_a_test() {
    let sentences = sentences();
    assert!(sentences.len() > 40, "only {}", sentences.len());
    let quoted = SOURCES.iter().flat_map(|source| quotes(source));
    let quoted: BTreeSet<String> = quoted.chain(items(TRANSCRIPTS)).collect();
    assert_eq!(&sentences - &quoted, BTreeSet::new(), "not quoted");
    assert_eq!(&quoted - &sentences, BTreeSet::new(), "not a sentence");
}

#[test]
fn the_transcripts_are_what_the_daemon_answers() {
    for (daemons, exchanges) in exchanges(TRANSCRIPTS) {
        for arguments in daemons {
            let few_workers = ["--max-clients", "8"];
            let daemon = Daemon::start(arguments.split(' ').chain(few_workers));
            for exchange in &exchanges {
                let replies = daemon.ask(&exchange.sent);
                exchange.check(&replies);
                assert!(are_replies(&replies), "{replies}");
                if exchange.sent.len() < 100 {
                    let bytes = exchange.sent.chunks(1);
                    assert_eq!(chopping::exchange(&daemon, bytes), replies);
                }
            }
        }
    }
}

/// - A reply is one line of printable ASCII, ended by LF.
/// - `ERR BADINPUT`: the line holds a byte that is neither printable ASCII nor a blank, or a PROXY header is invalid.
#[test]
fn a_reply_is_printable_whatever_byte_was_sent() {
    let daemon = daemon();
    for byte in (0..=255).filter(|byte| *byte != b'\n') {
        let requests = [&b"HELP "[..], b"F", b"FOO x"];
        let requests = requests.map(|request| [request, &[byte], b"O\n"].concat());
        let replies = daemon.ask(requests.concat());
        assert!(are_replies(&replies), "{replies:?}");
        let expected = match byte {
            b' '..=b'~' | b'\t' => "ERR UNKNOWN ",
            _ => "ERR BADINPUT ",
        };
        let errors = replies.lines().filter(|line| line.starts_with(expected));
        assert_eq!(errors.count(), 3, "{byte:#x}: {replies:?}");
    }
}

/// - `WHO` answers the number of clients connected, the asking one included, in decimal digits.
#[test]
fn who_counts_the_clients_with_the_asking_one() {
    let daemon = Daemon::start(["--max-clients", "12"]);
    let mut clients: Vec<Client> = Vec::new();
    for number in 1..=12 {
        clients.push(daemon.connect());
        assert_eq!(clients[number - 1].ask("WHO"), number.to_string());
    }
    assert_eq!(clients[0].ask("WHO"), "12");
}

/// - `WHERE` answers the id of the server, a UUID in the usual 36 characters, small letters.
#[test]
fn where_is_a_uuid_in_small_letters() {
    let id = daemon().ask("WHERE\n");
    let parsed = uuid::Uuid::parse_str(id.trim_end()).expect("a UUID");
    assert_eq!(id, format!("{}\n", parsed.hyphenated()));
    let given = "6F0C2A52-5F0E-4B7E-9A35-0C5F7F5A3C1E";
    let daemon = Daemon::start(["--max-clients", "2", "--server-id", given]);
    assert_eq!(daemon.ask("WHERE").trim(), given.to_lowercase());
    assert_eq!(daemon.ready("id"), given.to_lowercase());
}
