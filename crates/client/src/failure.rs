//! Failures of the client and their exit status (sysexits.h).

use std::fmt;
use std::io;
use std::process::ExitCode;

use shared::dial::{self, FailureKind, Refusal};
use shared::stdio;
use shared::text::{escape, without_errno};

/// Exit status if the server's reply is an error (`ERR`).
pub const REFUSED: u8 = 1;

/// Error word of a server that is full.
pub const BUSY: &str = "BUSY";

/// Exit status of a wrong command line.
const USAGE: u8 = 64;

/// Exit status if a feed is not JSON, or breaks off.
pub const BAD_FEED: u8 = 65;

/// Exit status if a feed can't be read.
pub const NO_FEED: u8 = 66;

/// Exit status without a connection, or without a reply.
pub const NO_REPLY: u8 = 69;

/// Exit status if the system refuses something.
const SYSTEM: u8 = 71;

/// Exit status if standard input or output fails.
const STREAM: u8 = 74;

/// Exit status if the server is full.
pub const FULL: u8 = 75;

/// Exit status if a peer replies as our server never does.
pub const FOREIGN: u8 = 76;

/// Exit status after ^C, as in shells.
pub const INTERRUPTED: u8 = 130;

/// A reason for an exit status other than 0.
#[derive(Debug)]
pub enum Failure {
    /// There is no connection, or no reply.
    Dial(dial::Failure),
    /// The server replied `ERR` instead of a value.
    Refused(Refusal),
    /// Writing to standard output failed.
    Print(io::Error),
    /// Another reason: the exit status, and the whole message.
    Other(u8, String),
}

impl Failure {
    /// The command line or an environment variable is wrong.
    pub fn usage(text: impl Into<String>) -> Self {
        Failure::Other(USAGE, text.into())
    }

    /// A system call failed that normally succeeds; `action` is a verb and its object.
    pub fn system(action: &str, error: &io::Error) -> Self {
        Failure::Other(SYSTEM, format!("can't {action}: {}", without_errno(error)))
    }

    /// Reading standard input failed.
    pub fn read(error: io::Error) -> Self {
        let text = format!("can't read standard input: {}", without_errno(&error));
        Failure::Other(STREAM, text)
    }

    /// Returns the exit status.
    pub fn exit_status(&self) -> u8 {
        match self {
            Failure::Dial(failure) => match failure.kind {
                FailureKind::NoResources => SYSTEM,
                FailureKind::Foreign => FOREIGN,
                _ => NO_REPLY,
            },
            Failure::Refused(refusal) if refusal.word == BUSY => FULL,
            Failure::Refused(_) => REFUSED,
            Failure::Print(_) => STREAM,
            Failure::Other(status, _) => *status,
        }
    }

    /// Prints the failure to standard error, unless it is a broken pipe, and returns the exit
    /// status.
    pub fn report(&self) -> ExitCode {
        match self {
            // The reader closed the pipe because it needs no more.
            Failure::Print(error) if error.kind() == io::ErrorKind::BrokenPipe => {}
            Failure::Refused(_) => eprintln_line(self),
            Failure::Dial(failure) if failure.kind == FailureKind::Refused => {
                let hint = "is the server running? --server or BLOCKCHAIN_TCP_SERVER names another";
                eprintln_line(format_args!(
                    "blockchain-tcp: {self}\nblockchain-tcp: {hint}"
                ));
            }
            _ => eprintln_line(format_args!("blockchain-tcp: {self}")),
        }
        ExitCode::from(self.exit_status())
    }
}

/// Prints lines to standard error, with all control characters but line ends escaped, as a terminal
/// would interpret them. Text from outside is escaped before, where it enters the message: a line
/// end in it must not begin a line. If writing fails, only the exit status reports the failure.
pub fn eprintln_line(lines: impl fmt::Display) {
    let is_special = |c: char| c.is_control() && c != '\n';
    stdio::print_error(&(escape(&lines.to_string(), is_special) + "\n"));
}

impl From<dial::Failure> for Failure {
    fn from(failure: dial::Failure) -> Self {
        Failure::Dial(failure)
    }
}

impl From<Refusal> for Failure {
    fn from(refusal: Refusal) -> Self {
        Failure::Refused(refusal)
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Failure::Dial(failure) if failure.kind == FailureKind::Foreign => {
                write!(f, "this is not a blockchain-tcpd: {failure}")
            }
            Failure::Dial(failure) => failure.fmt(f),
            Failure::Refused(refusal) => refusal.fmt(f),
            Failure::Print(error) => {
                write!(
                    f,
                    "can't write to standard output: {}",
                    without_errno(error)
                )
            }
            Failure::Other(_, text) => f.write_str(text),
        }
    }
}
