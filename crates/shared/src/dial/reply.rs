//! Parser and validator of replies.

use std::fmt;

use uuid::Uuid;

use super::{Failure, FailureKind};
use crate::text::{excerpt, quoted};

/// Errors after which the connection stays open. After all others, those of later versions
/// included, the server closes it.
const NON_FATAL: [&str; 4] = ["UNKNOWN", "USAGE", "BADINPUT", "UNAVAILABLE"];

/// Word of the error that the server sends unasked to an idle client.
const TIMEOUT: &str = "TIMEOUT";

/// Returns whether the server closes the connection after an error of this word.
pub fn is_fatal(word: &str) -> bool {
    !NON_FATAL.contains(&word)
}

/// The reply to a request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Reply {
    /// The value.
    Value(String),
    /// `ERR`: the request has no value.
    Refused(Refusal),
}

/// An error of the server.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refusal {
    /// The word for programs, such as `USAGE`.
    pub word: String,
    /// The sentence for people.
    pub sentence: String,
}

impl Reply {
    /// Parses this line as the reply to this request.
    pub fn read(request: &str, line: &[u8]) -> Result<Self, Failure> {
        let text = std::str::from_utf8(line).ok();
        let text = text.filter(|text| !text.is_empty() && is_printable(text.as_bytes()));
        let reply = text.and_then(|text| match text.strip_prefix("ERR") {
            Some(refusal) if refusal.is_empty() || refusal.starts_with(' ') => refused(refusal),
            _ => reply_format(request)
                .is_none_or(|(_, is_right)| is_right(text))
                .then(|| Reply::Value(text.to_string())),
        });
        reply.ok_or_else(|| wrong(request, line))
    }

    /// Returns whether the server closes the connection after it.
    pub fn closes(&self) -> bool {
        matches!(self, Reply::Refused(refusal) if is_fatal(&refusal.word))
    }

    /// Returns the value, or the error.
    pub fn value(self) -> Result<String, Refusal> {
        match self {
            Reply::Value(value) => Ok(value),
            Reply::Refused(refusal) => Err(refusal),
        }
    }
}

impl fmt::Display for Reply {
    /// Writes the line as the server sent it.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Reply::Value(value) => f.write_str(value),
            Reply::Refused(refusal) => refusal.fmt(f),
        }
    }
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "ERR {} {}", self.word, self.sentence)
    }
}

/// Returns whether the server had ended the connection before it read the request, as far as the
/// result shows. If so, a request on a kept connection may be repeated on another.
pub fn was_not_processed(asked: Result<&Reply, &Failure>) -> bool {
    match asked {
        Ok(Reply::Refused(refusal)) => refusal.word == TIMEOUT,
        Ok(Reply::Value(_)) => false,
        Err(failure) => failure.kind == FailureKind::Lost,
    }
}

/// Parses the value of `WHO`, which is at least 1: the client itself.
pub fn clients(value: &str) -> Result<u64, Failure> {
    let is_digits = value.bytes().all(|byte| byte.is_ascii_digit());
    let clients = value.parse().ok().filter(|clients| *clients > 0);
    let clients = clients.filter(|_| is_digits);
    clients.ok_or_else(|| wrong("WHO", value.as_bytes()))
}

/// Parses the value of `WHERE`: a UUID of 36 characters in lower case.
pub fn id(value: &str) -> Result<Uuid, Failure> {
    let id = Uuid::try_parse(value).ok();
    let id = id.filter(|id| !id.is_nil() && id.hyphenated().to_string() == value);
    id.ok_or_else(|| wrong("WHERE", value.as_bytes()))
}

/// The format of the values of a command: in words, and whether a value has it.
type ReplyFormat = (&'static str, fn(&str) -> bool);

/// Returns the format by which our server is recognized.
fn reply_format(request: &str) -> Option<ReplyFormat> {
    let command = request.split([' ', '\t']).find(|word| !word.is_empty())?;
    Some(match command.to_ascii_uppercase().as_str() {
        "WHO" => ("a number from 1 on", |value| clients(value).is_ok()),
        "WHERE" => ("a UUID", |value| id(value).is_ok()),
        "WHY" => ("42", |value| value == "42"),
        "PING" => ("PONG", |value| value == "PONG"),
        "QUIT" | "EXIT" => ("BYE", |value| value == "BYE"),
        "ADD" | "MAX" => ("a whole number of 64 bits", |value| {
            value.parse::<i64>().is_ok()
        }),
        "NP" => ("primes", |value| {
            let mut primes = value.split(' ').map(str::parse);
            primes.all(|prime| prime.is_ok_and(|prime: u32| prime > 1))
        }),
        _ => return None,
    })
}

/// Parses what follows `ERR`: a word and a sentence.
fn refused(refusal: &str) -> Option<Reply> {
    let (word, sentence) = refusal.strip_prefix(' ')?.split_once(' ')?;
    let is_word = !word.is_empty() && word.bytes().all(|byte| byte.is_ascii_uppercase());
    (is_word && !sentence.is_empty()).then(|| {
        Reply::Refused(Refusal {
            word: word.to_string(),
            sentence: sentence.to_string(),
        })
    })
}

/// Returns the failure of a request that got an invalid reply.
pub(super) fn wrong(request: &str, received: &[u8]) -> Failure {
    let expected = reply_format(request).map_or("a line of printable ASCII", |(words, _)| words);
    let (request, received) = (excerpt(request), quoted(received));
    let text = format!("{request} is answered {received} instead of {expected}");
    Failure::new(FailureKind::Foreign, text)
}

/// Returns whether all bytes are allowed in a reply.
pub fn is_printable(bytes: &[u8]) -> bool {
    bytes.iter().all(|byte| matches!(byte, b' '..=b'~'))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(request: &str, line: &str) -> Option<Reply> {
        Reply::read(request, line.as_bytes()).ok()
    }

    #[test]
    fn a_reply_is_a_value_or_says_why_not() {
        for line in ["42", "ERRATIC", "3 -37", "a \"b\""] {
            assert_eq!(read("NEW", line), Some(Reply::Value(line.to_string())));
        }
        let reply = read("WHO", "ERR BUSY full, try again").unwrap();
        assert_eq!(reply.to_string(), "ERR BUSY full, try again");
        let refusal = reply.value().unwrap_err();
        let parts = (refusal.word.as_str(), refusal.sentence.as_str());
        assert_eq!(parts, ("BUSY", "full, try again"));
        for line in [
            "",
            "42\r",
            "\u{1b}[2J",
            "\u{e9}",
            "ERR",
            "ERR ",
            "ERR NEW ",
            "ERR new no",
        ] {
            assert_eq!(read("NEW", line), None, "{line:?}");
        }
    }

    #[test]
    fn the_values_that_are_known_have_their_form() {
        let id = "6f0c2a52-5f0e-4b7e-9a35-0c5f7f5a3c1e";
        for (request, right, wrong) in [
            ("who", "17", &["0", "+1", " 1", "99999999999999999999"][..]),
            (
                " Where",
                id,
                &["42", &id[1..], "6F0C2A52-5F0E-4B7E-9A35-0C5F7F5A3C1E"],
            ),
            ("WHY ", "42", &["43"]),
            ("\tping", "PONG", &["pong"]),
            ("quit", "BYE", &["-5"]),
            ("add 1 2", "3", &["1 2", "9223372036854775808"]),
            ("np 2 12", "3 37", &["3 -37", "3  37", "1"]),
        ] {
            assert_eq!(read(request, right), Some(Reply::Value(right.to_string())));
            for line in wrong {
                assert_eq!(read(request, line), None, "{request}: {line}");
            }
        }
    }

    #[test]
    fn what_the_server_has_not_heard_is_told_by_the_end() {
        let refused = |line| read("WHO", line).unwrap();
        assert!(was_not_processed(Ok(&refused(
            "ERR TIMEOUT no request for too long"
        ))));
        assert!(!was_not_processed(Ok(&refused("ERR BUSY full"))));
        assert!(!was_not_processed(Ok(&Reply::Value("1".to_string()))));
        for (kind, unheard) in [(FailureKind::Lost, true), (FailureKind::Cut, false)] {
            let closed = Failure::new(kind, "closed".to_string());
            assert_eq!(was_not_processed(Err(&closed)), unheard);
        }
        assert!(!was_not_processed(Err(&wrong("WHO", b"x"))));
    }
}
