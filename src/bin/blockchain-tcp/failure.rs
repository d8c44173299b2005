//! Why the client failed, and its exit status (sysexits.h).

use std::fmt;
use std::io;
use std::process::ExitCode;

use blockchain_tcpd::dial;
use blockchain_tcpd::error::plain;
use blockchain_tcpd::stdio;

/// The server's reply is an error: `ERR`.
pub const REFUSED: u8 = 1;

/// The word of a server that knows no such command.
pub const UNKNOWN: &str = "UNKNOWN";

/// The word of a server that has no room.
pub const BUSY: &str = "BUSY";

/// What ends the client with another status than 0.
#[derive(Debug)]
pub enum Failure {
    /// The command line, or a variable, is wrong. The text is the whole message.
    Usage(String),
    /// There is no connection, or it gave no reply.
    Dial(dial::Failure),
    /// The server said `ERR`, instead of a value.
    Refused {
        /// Its word.
        word: String,
        /// Its sentence.
        sentence: String,
    },
    /// The person at the terminal wants it no longer.
    Interrupted,
    /// The server has room for some clients, and not for all. The text is the whole message.
    Full(String),
    /// Something answered as no server of ours does. The text is the whole message.
    Wrong(String),
    /// Standard output doesn't take what is printed.
    Print(io::Error),
    /// Standard input can't be read.
    Read(io::Error),
    /// The system refused something that it always grants.
    System {
        /// What was tried: a verb and its object.
        action: &'static str,
        /// What the system said.
        source: io::Error,
    },
}

impl Failure {
    /// 1 an error of the server's, 64 usage, 69 no connection or no reply, 71 refused by the system, 74 input or output,
    /// 75 the server has no room now, 76 no server of ours, 130 (as shells have it) ^C.
    pub fn exit_status(&self) -> u8 {
        match self {
            Failure::Usage(_) => 64,
            Failure::Dial(failure) if failure.is_our_own() => 71,
            Failure::Dial(failure) if failure.is_foreign() => 76,
            Failure::Dial(_) => 69,
            Failure::Refused { word, .. } if word == BUSY => 75,
            Failure::Full(_) => 75,
            Failure::Refused { .. } => REFUSED,
            Failure::Wrong(_) => 76,
            Failure::Print(_) | Failure::Read(_) => 74,
            Failure::System { .. } => 71,
            Failure::Interrupted => 130,
        }
    }

    /// Says it on standard error, unless nobody wants to hear it, and gives the exit status.
    pub fn report(&self) -> ExitCode {
        match self {
            // Whoever read our output has seen enough.
            Failure::Print(error) if error.kind() == io::ErrorKind::BrokenPipe => {}
            // The terminal has echoed ^C.
            Failure::Interrupted => eprintln_line(""),
            Failure::Refused { .. } => eprintln_line(self),
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

/// Says this on standard error, without any control character that it may hold but line ends: a terminal would obey it. If that
/// can't be written either, the exit status still tells.
pub fn eprintln_line(lines: impl fmt::Display) {
    let mut text = String::new();
    for c in lines.to_string().chars() {
        match c {
            '\n' => text.push(c),
            c if c.is_control() => {
                let mut bytes = [0; 4];
                let bytes = c.encode_utf8(&mut bytes).bytes();
                text.extend(bytes.map(|byte| format!("\\x{byte:02x}")));
            }
            c => text.push(c),
        }
    }
    stdio::print_error(&(text + "\n"));
}

impl From<dial::Failure> for Failure {
    fn from(failure: dial::Failure) -> Self {
        Failure::Dial(failure)
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Failure::Usage(text) | Failure::Full(text) | Failure::Wrong(text) => f.write_str(text),
            Failure::Dial(failure) if failure.is_foreign() => {
                write!(f, "this is no blockchain-tcpd: {failure}")
            }
            Failure::Dial(failure) => failure.fmt(f),
            Failure::Refused { word, sentence } => write!(f, "ERR {word} {sentence}"),
            Failure::Print(error) => write!(f, "can't write to standard output: {}", plain(error)),
            Failure::Read(error) => write!(f, "can't read standard input: {}", plain(error)),
            Failure::Interrupted => f.write_str("interrupted"),
            Failure::System { action, source } => write!(f, "can't {action}: {}", plain(source)),
        }
    }
}
