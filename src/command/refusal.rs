//! Why a request gets no value.

use std::fmt::{self, Write as _};

use super::CommandSpec;
use crate::clients::NoRoom;
use crate::cluster::Unavailable;

/// The most characters of a request that an error repeats, before they are escaped.
const LONGEST_QUOTE: usize = 64;

/// Why there is no value: the word is for programs, `Display` is the sentence for a person.
pub enum CommandError<'a> {
    /// There is no command of this name.
    Unknown(&'a [u8]),
    /// The command takes other arguments.
    Usage(&'static CommandSpec),
    /// An argument is not what the command takes.
    Argument {
        /// What it takes: a noun.
        wanted: &'static str,
        /// What was given.
        given: &'a [u8],
    },
    /// These arguments have no value: why.
    OutOfRange(&'static str),
    /// This line holds a byte that is not text.
    BadInput(&'a [u8]),
    /// The line is longer than this many bytes.
    TooLong(usize),
    /// There are as many clients as may be.
    NoRoom(NoRoom),
    /// The client idled for too long.
    Idle,
    /// The client made room for another.
    MadeRoom,
    /// The cluster can't answer now.
    Unavailable(Unavailable),
    /// Too many want to compute at the same time.
    ComputeBusy,
    /// Whoever serves the client next answers this.
    Deferred,
    /// The connection, of somebody from whom a PROXY header must come, doesn't begin with one.
    BadHeader(BadHeader),
    /// The server failed.
    Internal,
}

/// What is wrong with the PROXY header of a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BadHeader {
    /// Something else came.
    Missing,
    /// It is not as it must be, or ends too early.
    Malformed,
    /// It is longer than one may be.
    TooLong,
    /// It was not whole in time.
    Late,
}

impl CommandError<'_> {
    /// The word after `ERR`. All of them are in `docs/protocol.md`.
    pub fn word(&self) -> &'static str {
        match self {
            CommandError::Unknown(_) => "UNKNOWN",
            CommandError::Usage(_)
            | CommandError::Argument { .. }
            | CommandError::OutOfRange(_) => "USAGE",
            CommandError::BadInput(_) | CommandError::BadHeader(_) => "BADINPUT",
            CommandError::TooLong(_) => "TOOLONG",
            CommandError::NoRoom(_) => "BUSY",
            CommandError::Idle | CommandError::MadeRoom => "TIMEOUT",
            CommandError::Unavailable(_) | CommandError::ComputeBusy | CommandError::Deferred => {
                "UNAVAILABLE"
            }
            CommandError::Internal => "INTERNAL",
        }
    }
}

impl fmt::Display for CommandError<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            CommandError::Unknown(name) => {
                write!(f, "no such command: {} (try HELP)", Quoted(name))
            }
            CommandError::Usage(entry) if entry.arguments.is_empty() => {
                write!(f, "{} takes no arguments", entry.name)
            }
            CommandError::Usage(entry) => write!(f, "usage: {} {}", entry.name, entry.arguments),
            CommandError::Argument { wanted, given } => {
                write!(f, "not {wanted}: {}", Quoted(given))
            }
            CommandError::OutOfRange(why) => f.write_str(why),
            CommandError::BadInput(line) => write!(f, "not printable ASCII: {}", Quoted(line)),
            CommandError::TooLong(limit) => write!(f, "a request has at most {limit} bytes"),
            CommandError::NoRoom(NoRoom::Here { clients }) => {
                write!(f, "full with {clients} clients, try again later")
            }
            CommandError::NoRoom(NoRoom::ForAddress { limit }) => {
                write!(f, "{limit} clients of your address are the limit")
            }
            CommandError::NoRoom(NoRoom::Uncounted { limit }) => {
                write!(f, "{limit} connections that don't count are the limit")
            }
            CommandError::NoRoom(NoRoom::BeforeHeader { limit }) => {
                write!(
                    f,
                    "{limit} connections without a PROXY header are the limit"
                )
            }
            CommandError::BadHeader(bad) => f.write_str(match bad {
                BadHeader::Missing => "a connection from there must begin with a PROXY header",
                BadHeader::Malformed => "the PROXY header is malformed",
                BadHeader::TooLong => "the PROXY header is too long",
                BadHeader::Late => "the PROXY header did not come in time",
            }),
            CommandError::Idle => write!(f, "no request for too long"),
            CommandError::MadeRoom => write!(f, "idle while others wait, try again later"),
            CommandError::Unavailable(unavailable) => unavailable.fmt(f),
            CommandError::ComputeBusy => {
                f.write_str("too many clients compute at once, try again later")
            }
            CommandError::Deferred => f.write_str("this is answered later"),
            CommandError::Internal => write!(f, "the server failed at this, its log says more"),
        }
    }
}

impl fmt::Debug for CommandError<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {self}", self.word())
    }
}

/// A part of a request as an error repeats it: between double quotes, cut, and with everything escaped that is not
/// printable ASCII, so that nothing hostile reaches a reply or the log.
pub struct Quoted<'a>(pub &'a [u8]);

impl fmt::Display for Quoted<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_char('"')?;
        for &byte in self.0.iter().take(LONGEST_QUOTE) {
            match byte {
                b'"' | b'\\' => write!(f, "\\{}", byte as char)?,
                b' '..=b'~' => f.write_char(byte as char)?,
                _ => write!(f, "\\x{byte:02X}")?,
            }
        }
        f.write_char('"')
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quotes_are_cut_and_escaped() {
        assert_eq!(
            Quoted(b"a\"b\\c\x1b\xff").to_string(),
            r#""a\"b\\c\x1B\xFF""#
        );
        assert_eq!(Quoted(&[b'x'; 100]).to_string().len(), LONGEST_QUOTE + 2);
    }
}
