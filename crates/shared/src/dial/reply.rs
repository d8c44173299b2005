//! Parser and validator of replies.

use std::fmt;

use uuid::Uuid;

use super::Failure;

/// Errors after which the connection stays open. After all others, those of later versions
/// included, the server closes it.
const GOING_ON: [&str; 4] = ["UNKNOWN", "USAGE", "BADINPUT", "UNAVAILABLE"];

/// Word of the error that the server sends unasked to an idle client.
const TIMEOUT: &str = "TIMEOUT";

/// Returns whether the server closes the connection after an error of this word.
pub fn is_fatal(word: &str) -> bool {
    !GOING_ON.contains(&word)
}

/// The reply to a request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Reply {
    /// The value.
    Value(String),
    /// `ERR`: the request has no value.
    Refused {
        /// The word for programs, such as `USAGE`.
        word: String,
        /// The sentence for people.
        sentence: String,
    },
}

impl Reply {
    /// Parses this line as the reply to this request.
    pub fn read(request: &str, line: &[u8]) -> Result<Self, Failure> {
        let text = std::str::from_utf8(line).ok();
        let text = text.filter(|text| !text.is_empty() && is_printable(text.as_bytes()));
        let reply = text.and_then(|text| match text.strip_prefix("ERR") {
            Some(refusal) if refusal.is_empty() || refusal.starts_with(' ') => refused(refusal),
            _ => form(request)
                .is_none_or(|form| (form.is_right)(text))
                .then(|| Reply::Value(text.to_string())),
        });
        reply.ok_or_else(|| wrong(request, line))
    }

    /// Returns whether the server closes the connection after it.
    pub fn closes(&self) -> bool {
        matches!(self, Reply::Refused { word, .. } if is_fatal(word))
    }
}

impl fmt::Display for Reply {
    /// Writes the line as the server sent it.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Reply::Value(value) => f.write_str(value),
            Reply::Refused { word, sentence } => write!(f, "ERR {word} {sentence}"),
        }
    }
}

/// Returns whether the server had ended the connection before it read the request, as far as the
/// result shows. If so, a request on a kept connection may be repeated on another.
pub fn was_not_processed(asked: Result<&Reply, &Failure>) -> bool {
    match asked {
        Ok(Reply::Refused { word, .. }) => word == TIMEOUT,
        Err(Failure::Closed { part, .. } | Failure::Broken { part, .. }) => part.is_empty(),
        _ => false,
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

/// The format of the values of some commands.
struct ReplyFormat {
    commands: &'static [&'static str],
    /// The format in words.
    right: &'static str,
    is_right: fn(&str) -> bool,
}

/// The formats by which our server is recognized.
const FORMS: [ReplyFormat; 7] = [
    ReplyFormat {
        commands: &["WHO"],
        right: "a number from 1 on",
        is_right: |value| clients(value).is_ok(),
    },
    ReplyFormat {
        commands: &["WHERE"],
        right: "a UUID",
        is_right: |value| id(value).is_ok(),
    },
    ReplyFormat {
        commands: &["WHY"],
        right: "42",
        is_right: |value| value == "42",
    },
    ReplyFormat {
        commands: &["PING"],
        right: "PONG",
        is_right: |value| value == "PONG",
    },
    ReplyFormat {
        commands: &["QUIT", "EXIT"],
        right: "BYE",
        is_right: |value| value == "BYE",
    },
    ReplyFormat {
        commands: &["ADD", "MAX"],
        right: "a whole number of 64 bits",
        is_right: |value| value.parse::<i64>().is_ok(),
    },
    ReplyFormat {
        commands: &["NP"],
        right: "primes",
        is_right: |value| {
            let mut primes = value.split(' ').map(str::parse);
            primes.all(|prime| prime.is_ok_and(|prime: u32| prime > 1))
        },
    },
];

fn form(request: &str) -> Option<&'static ReplyFormat> {
    let command = request.split([' ', '\t']).find(|word| !word.is_empty())?;
    let is_it = |name: &&str| name.eq_ignore_ascii_case(command);
    FORMS.iter().find(|form| form.commands.iter().any(is_it))
}

/// Parses what follows `ERR`: a word and a sentence.
fn refused(refusal: &str) -> Option<Reply> {
    let (word, sentence) = refusal.strip_prefix(' ')?.split_once(' ')?;
    let is_word = !word.is_empty() && word.bytes().all(|byte| byte.is_ascii_uppercase());
    (is_word && !sentence.is_empty()).then(|| Reply::Refused {
        word: word.to_string(),
        sentence: sentence.to_string(),
    })
}

/// Returns the failure of a request that got an invalid reply.
pub(super) fn wrong(request: &str, said: &[u8]) -> Failure {
    Failure::Wrong {
        request: request.to_string(),
        said: said.to_vec(),
        right: form(request).map_or("a line of printable ASCII", |form| form.right),
    }
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
        let value = |text: &str| Some(Reply::Value(text.to_string()));
        for line in ["42", "ERRATIC", "3 -37", "a \"b\""] {
            assert_eq!(read("NEW", line), value(line));
        }
        let reply = read("WHO", "ERR BUSY full, try again").unwrap();
        let refused = Reply::Refused {
            word: "BUSY".to_string(),
            sentence: "full, try again".to_string(),
        };
        assert_eq!(reply, refused);
        assert_eq!(reply.to_string(), "ERR BUSY full, try again");
        for line in [
            "",
            "42\r",
            "1\u{1b}[2J",
            "\u{e9}",
            "ERR",
            "ERR ",
            "ERR NEW",
            "ERR NEW ",
            "ERR new no",
            "ERR  no",
        ] {
            assert_eq!(read("NEW", line), None, "{line:?}");
        }
    }

    #[test]
    fn the_values_that_are_known_have_their_form() {
        let id = "6f0c2a52-5f0e-4b7e-9a35-0c5f7f5a3c1e";
        for (request, right, wrong) in [
            (
                "who",
                "17",
                &["0", "+1", " 1", "x", "99999999999999999999"][..],
            ),
            (
                " Where",
                id,
                &["42", &id[1..], "6F0C2A52-5F0E-4B7E-9A35-0C5F7F5A3C1E"],
            ),
            ("WHY ", "42", &["43", "042"]),
            ("\tping", "PONG", &["pong"]),
            ("quit", "BYE", &["-5"]),
            ("add 1 2", "3", &["<html>", "1 2", "9223372036854775808"]),
            ("MAX -1 -2", "-1", &["", "1.5"]),
            ("np 2 12", "3 37", &["3 -37", "3  37", "1", "3,37"]),
        ] {
            assert_eq!(read(request, right), Some(Reply::Value(right.to_string())));
            for line in wrong {
                assert_eq!(read(request, line), None, "{request}: {line}");
            }
        }
    }

    #[test]
    fn what_the_server_has_not_heard_is_told_by_the_end() {
        let request = || "WHO".to_string();
        let refused = |line| read("WHO", line).unwrap();
        assert!(was_not_processed(Ok(&refused(
            "ERR TIMEOUT no request for too long"
        ))));
        assert!(!was_not_processed(Ok(&refused("ERR BUSY full"))));
        assert!(!was_not_processed(Ok(&Reply::Value("1".to_string()))));
        for (part, unheard) in [(&b""[..], true), (b"1", false)] {
            let closed = Failure::Closed {
                request: request(),
                part: part.to_vec(),
            };
            assert_eq!(was_not_processed(Err(&closed)), unheard);
        }
        assert!(!was_not_processed(Err(&wrong("WHO", b"x"))));
    }
}
