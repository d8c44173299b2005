//! Errors that a client receives instead of a value.

use std::borrow::Cow;
use std::fmt::{self, Write as _};

use super::{CommandSpec, MAX_ARGUMENTS, ParameterType};

/// The most bytes of a request that an error quotes, counted before escaping.
const LONGEST_QUOTE: usize = 64;

/// Error of a request or a connection. [`word`](CommandError::word) is for programs; `Display`
/// writes a sentence for people.
pub enum CommandError<'a> {
    /// No command has this name.
    Unknown(&'a [u8]),
    /// The command takes other arguments.
    Usage(&'static CommandSpec),
    /// There are more arguments than any command takes.
    TooManyArguments,
    /// An argument is not what the command takes.
    Argument {
        /// What the command takes.
        wanted: &'static ParameterType,
        /// What was given.
        given: Cow<'a, [u8]>,
    },
    /// The command has no value for these arguments; the text is the reason.
    OutOfRange(&'static str),
    /// There is no record of this id.
    NotFound(String),
    /// The line holds a byte that is not printable ASCII or a tab.
    BadInput(&'a [u8]),
    /// The request is no message of the protocol; the text is the reason.
    Malformed(&'static str),
    /// The request names no command.
    Unnamed,
    /// The request is longer than this many bytes.
    TooLong(usize),
    /// A limit on clients or connections is reached.
    NoRoom(NoRoom),
    /// The client was idle for too long.
    Idle,
    /// The client was idle and is disconnected to make room for another.
    MadeRoom,
    /// The cluster can't answer now.
    Unavailable(Unavailable),
    /// No permit to compute became free in time.
    ComputeBusy,
    /// The server can't answer this now; the text is the reason.
    NotNow(&'static str),
    /// The server that serves the client next answers this request.
    Deferred,
    /// The connection, which must begin with a PROXY header, has none or a bad one.
    BadHeader(BadHeader),
    /// The server failed.
    Internal,
}

/// Reason to refuse a client.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NoRoom {
    /// All workers are taken, and the queue is full.
    Here {
        /// Number of clients.
        clients: usize,
    },
    /// The address has reached its limit.
    ForAddress {
        /// Maximum number of clients of an address.
        limit: usize,
    },
    /// The uncounted connections have reached their limit.
    Uncounted {
        /// Maximum number of uncounted connections.
        limit: usize,
    },
    /// The connections without a PROXY header have reached their limit.
    BeforeHeader {
        /// Maximum number of connections without a PROXY header.
        limit: usize,
    },
}

/// Why something that other servers or a database know is unknown. Small, because every worker reserves stack space for it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unavailable {
    /// Some servers did not answer in time.
    Silent {
        /// Number of servers that answered.
        answered: u16,
        /// Number of servers in the cluster.
        members: u16,
    },
    /// The membership can't be read: etcd did not answer.
    Membership,
    /// This server is not in the membership.
    Outside,
    /// The membership is new, or has lost the entry of a live server: other servers may be missing.
    Unstable,
    /// The database does not answer.
    Store,
    /// Too many clients take all users at once.
    Streams,
}

impl fmt::Display for Unavailable {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let why = match self {
            Unavailable::Store => {
                return f.write_str(
                    "the users are not at hand: the database does not answer, try again",
                );
            }
            Unavailable::Streams => {
                return f.write_str("too many clients take all users at once, try again later");
            }
            Unavailable::Silent { answered, members } => {
                return write!(f, "{answered} of {members} servers answered, try again");
            }
            Unavailable::Membership => "etcd does not answer",
            Unavailable::Outside => "this server is not registered now",
            Unavailable::Unstable => "etcd may lack a server for a moment",
        };
        write!(f, "the number of clients is unknown: {why}, try again")
    }
}

/// What is wrong with the PROXY header of a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BadHeader {
    /// The connection begins with something else.
    Missing,
    /// The header is malformed, or ends too early.
    Malformed,
    /// The header is longer than the limit.
    TooLong,
    /// The header was not complete in time.
    Late,
}

/// The kinds of errors, with their numbers in the protobuf schema. `docs/protocol.md` says what
/// each means.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ErrorCode {
    /// There is no such command.
    Unknown = 1,
    /// The command takes other arguments.
    Usage,
    /// The input is malformed.
    BadInput,
    /// The request is too long.
    TooLong,
    /// There is no room for the client.
    Busy,
    /// The client was idle for too long.
    Timeout,
    /// There is no answer now.
    Unavailable,
    /// The server failed.
    Internal,
    /// There is no such record.
    NotFound,
}

impl ErrorCode {
    /// All codes, in the order of their numbers.
    pub const ALL: [ErrorCode; 9] = [
        ErrorCode::Unknown,
        ErrorCode::Usage,
        ErrorCode::BadInput,
        ErrorCode::TooLong,
        ErrorCode::Busy,
        ErrorCode::Timeout,
        ErrorCode::Unavailable,
        ErrorCode::Internal,
        ErrorCode::NotFound,
    ];

    /// Returns the word for it, which follows `ERR` on a line.
    pub fn word(self) -> &'static str {
        match self {
            ErrorCode::Unknown => "UNKNOWN",
            ErrorCode::Usage => "USAGE",
            ErrorCode::BadInput => "BADINPUT",
            ErrorCode::TooLong => "TOOLONG",
            ErrorCode::Busy => "BUSY",
            ErrorCode::Timeout => "TIMEOUT",
            ErrorCode::Unavailable => "UNAVAILABLE",
            ErrorCode::Internal => "INTERNAL",
            ErrorCode::NotFound => "NOTFOUND",
        }
    }
}

impl CommandError<'_> {
    /// Returns its kind.
    pub fn code(&self) -> ErrorCode {
        match self {
            CommandError::Unknown(_) | CommandError::Unnamed => ErrorCode::Unknown,
            CommandError::Usage(_)
            | CommandError::TooManyArguments
            | CommandError::Argument { .. }
            | CommandError::OutOfRange(_) => ErrorCode::Usage,
            CommandError::BadInput(_) | CommandError::Malformed(_) | CommandError::BadHeader(_) => {
                ErrorCode::BadInput
            }
            CommandError::TooLong(_) => ErrorCode::TooLong,
            CommandError::NoRoom(_) => ErrorCode::Busy,
            CommandError::Idle | CommandError::MadeRoom => ErrorCode::Timeout,
            CommandError::Unavailable(_)
            | CommandError::ComputeBusy
            | CommandError::NotNow(_)
            | CommandError::Deferred => ErrorCode::Unavailable,
            CommandError::Internal => ErrorCode::Internal,
            CommandError::NotFound(_) => ErrorCode::NotFound,
        }
    }

    /// Returns the word of its kind.
    pub fn word(&self) -> &'static str {
        self.code().word()
    }
}

impl fmt::Display for CommandError<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            CommandError::Unknown(name) => {
                write!(f, "no such command: {} (try HELP)", Quoted(name))
            }
            CommandError::Usage(spec) if spec.parameters.is_empty() => {
                write!(f, "{} takes no arguments", spec.name)
            }
            CommandError::Usage(spec) => write!(f, "usage: {} {}", spec.name, spec.arguments()),
            CommandError::TooManyArguments => {
                write!(f, "a call takes at most {MAX_ARGUMENTS} arguments")
            }
            CommandError::Argument { wanted, given } => {
                write!(f, "not {wanted}: {}", Quoted(given))
            }
            CommandError::NotFound(id) => {
                write!(f, "there is none of this id: {}", Quoted(id.as_bytes()))
            }
            CommandError::OutOfRange(why)
            | CommandError::Malformed(why)
            | CommandError::NotNow(why) => f.write_str(why),
            CommandError::Unnamed => f.write_str("the request names no command of this server"),
            CommandError::BadInput(line) => write!(f, "not printable ASCII: {}", Quoted(line)),
            CommandError::TooLong(limit) => write!(f, "a request has at most {limit} bytes"),
            CommandError::NoRoom(NoRoom::Here { clients }) => {
                write!(f, "full with {clients} clients, try again later")
            }
            CommandError::NoRoom(NoRoom::ForAddress { limit }) => {
                write!(f, "the limit of {limit} clients for an address is reached")
            }
            CommandError::NoRoom(NoRoom::Uncounted { limit }) => {
                write!(f, "the limit of {limit} uncounted connections is reached")
            }
            CommandError::NoRoom(NoRoom::BeforeHeader { limit }) => {
                write!(
                    f,
                    "the limit of {limit} connections without a PROXY header is reached"
                )
            }
            CommandError::BadHeader(bad) => f.write_str(match bad {
                BadHeader::Missing => {
                    "a connection from your address must begin with a PROXY header"
                }
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

/// Quotes a part of a request for an error: in double quotes, truncated, and with everything
/// escaped that is not printable ASCII, so that no control character reaches a reply or the log.
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
