//! The contract, sentence by sentence: each item of docs/protocol.md is quoted by the test that proves it.
//!
//! The commands that compute are proved in `computing`, the section on errors in `errors`, that on connections in `connections` and tests/handover.rs, that on load
//! balancers in tests/proxy.rs, the independence of how bytes are cut in `chopping`.

mod chopping;
pub mod computing;
mod connections;
mod errors;

use std::collections::BTreeSet;

use crate::support::{Daemon, field};

const DOCUMENT: &str = include_str!("../docs/protocol.md");
const SOURCES: &[&str] = &[
    include_str!("protocol.rs"),
    include_str!("protocol/computing.rs"),
    include_str!("protocol/connections.rs"),
    include_str!("protocol/errors.rs"),
    include_str!("redis.rs"),
    include_str!("handover.rs"),
    include_str!("proxy.rs"),
];

const COMMANDS: [&str; 7] = ["WHO", "WHERE", "WHY", "PING", "HELP", "QUIT", "EXIT"];

/// Says which sentence a test proves. It must be in the document, word by word.
pub fn proves(sentence: &str) {
    let sentence = one_blank_between_words(sentence);
    assert!(
        items(DOCUMENT).contains(&sentence),
        "docs/protocol.md doesn't say: {sentence}"
    );
}

/// The list items from the heading "Requests" on.
fn items(document: &str) -> Vec<String> {
    let (_, sections) = document
        .split_once("\n## Requests\n")
        .expect("there is such a section");
    sections
        .split("\n- ")
        .skip(1)
        .map(|item| item.split("\n\n").next().unwrap_or_default())
        .map(one_blank_between_words)
        .collect()
}

fn one_blank_between_words(text: &str) -> String {
    text.split_whitespace().collect::<Vec<_>>().join(" ")
}

/// A daemon with few workers, which starts sooner.
fn daemon() -> Daemon {
    Daemon::start(["--max-clients", "8"])
}

/// What one of everything that can be wrong with a request is answered. None of these ends the connection.
fn errors(daemon: &Daemon) -> Vec<String> {
    let wrong = b"FOO\nWHY not\nWHO \x07\nHELP FOO\nHELP a b\nF\"\\\xff\n\x1b[31m\n";
    daemon.ask(wrong).lines().map(str::to_string).collect()
}

/// The words in the items "`ERR WORD`…".
fn words_of_the_document() -> BTreeSet<&'static str> {
    DOCUMENT
        .split("\n- `ERR ")
        .skip(1)
        .filter_map(|item| item.split('`').next())
        .collect()
}

#[test]
fn every_sentence_has_a_test_that_quotes_it() {
    let without_blanks = |text: &str| text.split_whitespace().collect::<String>();
    let sources = without_blanks(&SOURCES.concat());
    let items = items(DOCUMENT);
    assert!(items.len() > 40, "only {} items found", items.len());
    for item in items {
        let quote = format!("proves(r#\"{}\"#", without_blanks(&item));
        assert!(sources.contains(&quote), "no test proves: {item}");
    }
}

// Requests

#[test]
fn a_line_ends_with_lf_or_cr_lf() {
    proves(r#"A request is one line of ASCII text, ended by LF or by CR LF."#);
    let daemon = daemon();
    assert_eq!(daemon.ask("WHY\nPING\r\nWHY\n"), "42\nPONG\n42\n");
    assert!(daemon.ask("WHY\r\r\n").starts_with("ERR BADINPUT "));
    assert!(daemon.ask("WH\u{d6}\n").starts_with("ERR BADINPUT "));
}

#[test]
fn a_request_of_1024_bytes_is_answered_and_one_of_1025_is_not() {
    proves(r#"A request is at most 1,024 bytes long, its end included."#);
    let daemon = daemon();
    for end in ["\n", "\r\n"] {
        let longest = format!("{:1$}{end}", "WHY", 1024 - end.len());
        assert_eq!(longest.len(), 1024);
        assert_eq!(daemon.ask(&longest), "42\n");
        let longer = daemon.ask(format!(" {longest}"));
        assert!(longer.starts_with("ERR TOOLONG "), "{longer}");
    }
}

#[test]
fn blanks_part_words_and_mean_nothing_around_them() {
    proves(
        r#"The words of a request are separated by blanks (spaces and tabs); blanks before the first and after the last word
        mean nothing."#,
    );
    let daemon = daemon();
    assert_eq!(daemon.ask(" \t WHY\t \n"), "42\n");
    let plain = daemon.ask("HELP WHY\n");
    assert_eq!(daemon.ask("\tHELP \t  WHY \t\r\n"), plain);
    assert!(plain.starts_with("WHY"), "{plain}");
}

#[test]
fn the_first_word_is_the_command_in_any_case() {
    proves(r#"The first word is the command, in capital letters, small letters or both."#);
    assert_eq!(daemon().ask("WHY\nwhy\nwHy\n"), "42\n42\n42\n");
}

#[test]
fn the_other_words_are_arguments() {
    proves(r#"The words after the command are its arguments."#);
    let daemon = daemon();
    assert!(daemon.ask("HELP PING\n").starts_with("PING"));
    assert!(daemon.ask("HELP PING WHO\n").starts_with("ERR USAGE "));
    assert!(daemon.ask("PING WHO\n").starts_with("ERR USAGE "));
}

#[test]
fn a_line_without_a_word_gets_no_reply() {
    proves(r#"A line without a word gets no reply."#);
    assert_eq!(daemon().ask("\n\r\n \t\n \r\nWHY\n\n \t"), "42\n");
}

#[test]
fn a_hundred_thousand_requests_may_be_sent_at_once() {
    proves(r#"Any number of requests may be sent at once, without waiting for replies."#);
    let daemon = daemon();
    let mut client = daemon.connect();
    let socket = client.socket().try_clone().expect("a second handle");
    let sender = std::thread::spawn(move || {
        use std::io::Write as _;
        (&socket).write_all(&b"WHY\n".repeat(100_000))
    });
    for _ in 0..100_000 {
        assert_eq!(client.line().as_deref(), Some("42"));
    }
    sender.join().expect("no panic").expect("all is sent");
}

#[test]
fn a_request_that_comes_byte_by_byte_is_answered_as_a_whole_one() {
    proves(r#"How the bytes are cut into packets makes no difference."#);
    let daemon = daemon();
    let mut client = daemon.connect();
    for byte in b"HELP WHY\r\nWHY\n" {
        client.send([*byte]);
    }
    assert_eq!(
        client.line(),
        Some(daemon.ask("HELP WHY").trim().to_string())
    );
    assert_eq!(client.line().as_deref(), Some("42"));
}

#[test]
fn the_last_line_needs_no_end() {
    proves(
        r#"When the client shuts down its sending side, what came after the last line end counts as a request too."#,
    );
    let daemon = daemon();
    assert_eq!(daemon.ask("PING\nWHY"), "PONG\n42\n");
    assert_eq!(daemon.ask("WHY"), "42\n");
}

// Replies

#[test]
fn replies_come_in_order_one_for_each_request() {
    proves(r#"Every request gets exactly one reply, in the order of the requests."#);
    let requests = "WHY\nPING\nFOO\n\nWHY x\nHELP WHY\nWHERE\nWHY\n";
    let daemon = daemon();
    let alone = requests.lines().map(|line| daemon.ask(line));
    let alone: String = alone.collect();
    assert_eq!(alone.lines().count(), 7);
    assert_eq!(daemon.ask(requests.repeat(500)), alone.repeat(500));
}

#[test]
fn a_reply_is_printable_whatever_was_asked() {
    proves(r#"A reply is one line of printable ASCII, ended by LF."#);
    let daemon = daemon();
    for byte in (0..=255).filter(|byte| *byte != b'\n') {
        let request = [b"F", &[byte][..], b"O\nHELP ", &[byte, b'\n']].concat();
        let replies = daemon.ask(request);
        assert_eq!(replies.matches('\n').count(), 2, "{replies:?}");
        assert!(replies.ends_with('\n'), "{replies:?}");
        let text = replies.replace('\n', "");
        assert!(
            text.bytes().all(|byte| matches!(byte, b' '..=b'~')),
            "{replies:?}"
        );
    }
}

#[test]
fn an_answer_is_the_bare_value() {
    proves(r#"What was done is answered by the bare value."#);
    assert_eq!(daemon().ask("WHO\nWHY\nPING\nQUIT\n"), "1\n42\nPONG\nBYE\n");
}

#[test]
fn an_error_is_err_a_word_and_a_sentence() {
    proves(
        r#"What can't be done is answered by `ERR`, one of the words below and a sentence for a person, separated by single
        blanks."#,
    );
    let errors = errors(&daemon());
    assert_eq!(errors.len(), 7);
    for error in errors {
        let parts: Vec<&str> = error.splitn(3, ' ').collect();
        assert_eq!(parts[0], "ERR");
        assert!(words_of_the_document().contains(parts[1]), "{error}");
        assert!(parts[2].split(' ').all(|word| !word.is_empty()), "{error}");
    }
}

#[test]
fn no_value_looks_like_an_error() {
    proves(r#"No value begins with `ERR `."#);
    let daemon = daemon();
    for command in COMMANDS {
        for request in [command.to_string(), format!("HELP {command}")] {
            let value = daemon.ask(&request);
            assert!(!value.is_empty() && !value.starts_with("ERR "), "{value}");
        }
    }
}

#[test]
fn half_a_close_is_answered_and_then_closed() {
    proves(
        r#"When the client has shut down its sending side, the server answers all that it was sent and then closes."#,
    );
    // `ask` returns at the end of the stream.
    let daemon = daemon();
    assert_eq!(daemon.ask("WHY\n".repeat(10_000)), "42\n".repeat(10_000));
    assert_eq!(daemon.ask(""), "");
}

// Commands

#[test]
fn who_counts_the_clients_with_the_asking_one() {
    proves(
        r#"`WHO` answers the number of clients connected, the asking one included, in decimal digits."#,
    );
    let daemon = Daemon::start(["--max-clients", "12"]);
    let mut clients = Vec::new();
    for number in 1..=12 {
        clients.push(daemon.connect());
        assert_eq!(clients[number - 1].ask("WHO"), number.to_string());
    }
    assert_eq!(clients[0].ask("WHO"), "12");
}

#[test]
fn where_is_a_uuid_in_small_letters() {
    proves(
        r#"`WHERE` answers the id of the server, a UUID in the usual 36 characters, small letters."#,
    );
    let id = daemon().ask("WHERE\n");
    let id = id.strip_suffix('\n').expect("a line");
    let parsed = uuid::Uuid::parse_str(id).expect("a UUID");
    assert_eq!(id, parsed.hyphenated().to_string());
    let given = "6F0C2A52-5F0E-4B7E-9A35-0C5F7F5A3C1E";
    let daemon = Daemon::start(["--max-clients", "2", "--server-id", given]);
    assert_eq!(daemon.ask("WHERE").trim(), given.to_lowercase());
    assert_eq!(
        field(&daemon.log().wait_for("ready listen="), "id"),
        given.to_lowercase()
    );
}

#[test]
fn why_is_42() {
    proves(r#"`WHY` answers `42`."#);
    assert_eq!(daemon().ask("WHY\n"), "42\n");
}

#[test]
fn ping_is_answered_pong() {
    proves(r#"`PING` answers `PONG`."#);
    assert_eq!(daemon().ask("PING\n"), "PONG\n");
}

#[test]
fn help_names_all_commands_and_tells_of_each() {
    proves(r#"`HELP` answers the names of all commands, separated by blanks."#);
    proves(
        r#"`HELP` with the name of a command answers how that command is used and what it does."#,
    );
    let daemon = daemon();
    assert_eq!(
        daemon.ask("HELP\n").trim().split(' ').collect::<Vec<_>>(),
        COMMANDS
    );
    for command in COMMANDS {
        let help = daemon.ask(format!("HELP {}\n", command.to_lowercase()));
        let (usage, does) = help.split_once(": ").expect("use and purpose");
        assert_eq!(usage.split(' ').next(), Some(command), "{help}");
        assert!(does.len() > 5, "{help}");
    }
    assert!(daemon.ask("HELP help\n").starts_with("HELP [COMMAND]: "));
}

#[test]
fn quit_and_exit_say_bye_and_answer_no_more() {
    proves(
        r#"`QUIT` and `EXIT` answer `BYE`, and then the server closes; requests after it are not answered."#,
    );
    let daemon = daemon();
    for command in ["QUIT", "exit"] {
        let mut client = daemon.connect();
        client.send(format!("WHY\n{command}\nWHY\n"));
        assert_eq!(client.rest(), "42\nBYE\n");
    }
}
