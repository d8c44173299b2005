//! Failures of the client and their exit status (sysexits.h).

use std::fmt;
use std::io;
use std::process::ExitCode;

use shared::dial::{self, Refusal};
use shared::stdio;
use shared::text::escape;
use shared::text::without_errno;

/// Exit status if the server's reply is an error (`ERR`).
pub const REFUSED: u8 = 1;

/// Error word of a server that is full.
pub const BUSY: &str = "BUSY";

/// A reason for an exit status other than 0.
#[derive(Debug)]
pub enum Failure {
    /// The command line or an environment variable is wrong. The text is the whole message.
    Usage(String),
    /// There is no connection, or no reply.
    Dial(dial::Failure),
    /// The server replied `ERR` instead of a value.
    Refused(Refusal),
    /// The user pressed ^C before there was anything to report.
    Interrupted,
    /// The server has room for some of the clients, but not for all. The text is the whole message.
    Full(String),
    /// A client of several has no connection, or no reply. The text is the whole message.
    NoReply(String),
    /// A peer replied as our server never does. The text is the whole message.
    Wrong(String),
    /// Writing to standard output failed.
    Print(io::Error),
    /// Reading standard input failed.
    Read(io::Error),
    /// A system call failed that normally succeeds.
    System {
        /// What was tried: a verb and its object.
        action: &'static str,
        /// The system's error.
        source: io::Error,
    },
}

impl Failure {
    /// Returns the exit status: 1 an error of the server, 64 usage, 69 no connection or no reply,
    /// 71 a system error, 74 input or output, 75 the server is full, 76 not our server, 130 (as in
    /// shells) ^C.
    pub fn exit_status(&self) -> u8 {
        match self {
            Failure::Usage(_) => 64,
            Failure::Dial(failure) if failure.is_local_resource_error() => 71,
            Failure::Dial(failure) if failure.is_foreign() => 76,
            Failure::Dial(_) | Failure::NoReply(_) => 69,
            Failure::Refused(refusal) if refusal.word == BUSY => 75,
            Failure::Full(_) => 75,
            Failure::Refused(_) => REFUSED,
            Failure::Wrong(_) => 76,
            Failure::Print(_) | Failure::Read(_) => 74,
            Failure::System { .. } => 71,
            Failure::Interrupted => 130,
        }
    }

    /// Prints the failure to standard error, unless it is a broken pipe, and returns the exit
    /// status.
    pub fn report(&self) -> ExitCode {
        match self {
            // The reader closed the pipe because it needs no more.
            Failure::Print(error) if error.kind() == io::ErrorKind::BrokenPipe => {}
            // The terminal has echoed ^C.
            Failure::Interrupted => eprintln_line(""),
            Failure::Refused(_) => eprintln_line(self),
            Failure::Dial(failure) if failure.is_refused() => {
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
            Failure::Usage(text)
            | Failure::Full(text)
            | Failure::NoReply(text)
            | Failure::Wrong(text) => f.write_str(text),
            Failure::Dial(failure) if failure.is_foreign() => {
                write!(f, "this is not a blockchain-tcpd: {failure}")
            }
            Failure::Dial(failure) => failure.fmt(f),
            Failure::Refused(refusal) => refusal.fmt(f),
            Failure::Print(error) => write!(
                f,
                "can't write to standard output: {}",
                without_errno(error)
            ),
            Failure::Read(error) => {
                write!(f, "can't read standard input: {}", without_errno(error))
            }
            Failure::Interrupted => f.write_str("interrupted"),
            Failure::System { action, source } => {
                write!(f, "can't {action}: {}", without_errno(source))
            }
        }
    }
}
