//! Reference model for the fuzz targets: a second implementation of the line protocol, written from
//! `docs/protocol.md` alone, slow and simple, which takes all input in one piece.
//!
//! An input of the fuzzer is a plan, an LF, and the bytes that the client sends. Each byte of the
//! plan controls one call of the server on its socket, from the first to the last and then again
//! from the first; see [`piece`].

use std::sync::Arc;

use shared::command::Context;
use shared::command::sets::server;
use uuid::Uuid;

/// The longest reply in bytes, its line end included: `ERR BADINPUT` with 64 bytes quoted as
/// `\xNN`.
pub const LONGEST_REPLY: usize = 293;

/// Number of clients that `WHO` reports.
const CLIENTS: usize = 3;
const ID: Uuid = Uuid::from_u128(7);
const COMMANDS: &[&str] = &["WHO", "WHERE", "WHY", "PING", "HELP", "QUIT", "EXIT"];

/// Returns the context in which commands are executed.
pub fn context() -> Context {
    Context::new(Arc::new(CLIENTS.into()), ID, &[server::SET])
}

/// Splits an input into its plan and the bytes that the client sends.
pub fn part(input: &[u8]) -> (&[u8], &[u8]) {
    let end = input.iter().position(|&byte| byte == b'\n');
    let (plan, text) = input.split_at(end.unwrap_or(0));
    (plan, text.strip_prefix(b"\n").unwrap_or(text))
}

/// Returns how many of `all` bytes one call transfers: `1` to `9` mean at most that number, `0`
/// means all, and other bytes mean their distance from `0` in ASCII, modulo 256.
pub fn piece(planned: u8, all: usize) -> usize {
    match planned.wrapping_sub(b'0') {
        0 => all,
        some => all.min(some.into()),
    }
}

/// Expectation for one reply.
enum Expected {
    /// Exactly this value.
    Value(String),
    /// A value with this beginning.
    Beginning(String),
    /// An error with this word.
    Error(&'static str),
}

/// The expected replies to all that a client sends.
pub struct Expectation {
    replies: Vec<Expected>,
    /// Number of replies that are due before the end of the input: to lines that end in an LF or
    /// are too long.
    whole: usize,
    /// Whether the server closes the connection after the replies and ignores further input.
    pub close_after_write: bool,
}

impl Expectation {
    /// Returns the replies that `text` must get.
    pub fn of(text: &[u8]) -> Self {
        let mut expected = Expectation {
            replies: Vec::new(),
            whole: 0,
            close_after_write: false,
        };
        for line in text.split_inclusive(|&byte| byte == b'\n') {
            let (body, whole) = match line.strip_suffix(b"\n") {
                Some(body) => (body, true),
                None => (line, false),
            };
            let too_long = body.len() > 1023;
            if too_long {
                expected.replies.push(Expected::Error("TOOLONG"));
                expected.close_after_write = true;
            } else {
                let body = body.strip_suffix(b"\r").unwrap_or(body);
                let words: Vec<_> = body.split(|byte| b" \t".contains(byte)).collect();
                let words: Vec<_> = words.into_iter().filter(|word| !word.is_empty()).collect();
                if let Some((command, arguments)) = words.split_first() {
                    expected.replies.push(reply(body, command, arguments));
                    expected.close_after_write = arguments.is_empty() && is_leave(command);
                }
            }
            if whole || too_long {
                expected.whole = expected.replies.len();
            }
            if expected.close_after_write {
                break;
            }
        }
        expected
    }

    /// Compares with all that the server sent.
    pub fn check(&self, output: &[u8]) {
        assert_eq!(self.check_beginning(output, true), self.replies.len());
    }

    /// Compares with all that a server sent which stops, and which therefore ignores an incomplete
    /// last line.
    pub fn check_whole(&self, output: &[u8]) {
        assert_eq!(self.check_beginning(output, true), self.whole);
    }

    /// Compares as far as the server got; the output must end with a reply's end if it is `uncut`.
    /// Returns the number of complete replies.
    pub fn check_beginning(&self, output: &[u8], uncut: bool) -> usize {
        let mut lines: Vec<_> = output.split(|&byte| byte == b'\n').collect();
        let rest = lines.pop().unwrap_or_default();
        assert!(rest.is_empty() || !uncut, "a reply is cut");
        assert!(lines.len() <= self.replies.len(), "too many replies");
        for (line, expected) in lines.iter().zip(&self.replies) {
            let line = str::from_utf8(line).expect("a reply must be ASCII");
            assert!(line.len() < LONGEST_REPLY, "too long: {line}");
            assert!(line.bytes().all(|byte| matches!(byte, b' '..=b'~')));
            match expected {
                Expected::Value(value) => assert_eq!(line, value),
                Expected::Beginning(value) => assert!(line.starts_with(value), "{line}"),
                Expected::Error(word) => {
                    let sentence = line.strip_prefix(&format!("ERR {word} "));
                    let sentence = sentence.unwrap_or_else(|| panic!("{line} instead of {word}"));
                    assert!(sentence.starts_with(|first: char| first != ' '), "{line}");
                }
            }
        }
        lines.len()
    }
}

fn is_leave(command: &[u8]) -> bool {
    ["QUIT", "EXIT"].contains(&name(command).as_str())
}

/// Returns the name of a command as the document spells it.
fn name(word: &[u8]) -> String {
    String::from_utf8_lossy(word).to_ascii_uppercase()
}

fn reply(line: &[u8], command: &[u8], arguments: &[&[u8]]) -> Expected {
    if !line.iter().all(|byte| matches!(byte, b' '..=b'~' | b'\t')) {
        return Expected::Error("BADINPUT");
    }
    let command = name(command);
    match (command.as_str(), arguments) {
        ("WHO", []) => Expected::Value(CLIENTS.to_string()),
        ("WHERE", []) => Expected::Value("00000000-0000-0000-0000-000000000007".to_string()),
        ("WHY", []) => Expected::Value("42".to_string()),
        ("PING", []) => Expected::Value("PONG".to_string()),
        ("HELP", []) => Expected::Value(COMMANDS.join(" ")),
        ("HELP", [about]) => {
            let about = name(about);
            match COMMANDS.contains(&about.as_str()) {
                true => Expected::Beginning(about),
                false => Expected::Error("UNKNOWN"),
            }
        }
        ("QUIT" | "EXIT", []) => Expected::Value("BYE".to_string()),
        (known, _) if COMMANDS.contains(&known) => Expected::Error("USAGE"),
        _ => Expected::Error("UNKNOWN"),
    }
}
