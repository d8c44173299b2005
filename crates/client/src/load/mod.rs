//! Load generator: clients send requests as fast as they are answered (closed loop) or at a fixed
//! rate (open loop), and verify every reply. `blockchain-tcp bench` and the benches use it.
//!
//! A [`Workload`] says what all clients send and what the replies must be. A [`Generator`] is a
//! number of clients on one epoll instance and one thread; its [`Stats`] are what it measured.

mod client;
mod generator;
mod replies;
mod stats;
mod workload;

use std::fmt;
use std::io;

use shared::text::without_errno;

pub use self::generator::{AT_ONCE, Generator};
pub use self::replies::Expected;
pub use self::stats::{KINDS, Stats};
pub use self::workload::Workload;

/// Why a client lost its connection, or why the generator can't go on.
#[derive(Debug)]
pub enum Error {
    /// The server closed the connection.
    Closed,
    /// The connection broke.
    Broken(io::Error),
    /// A reply, or connecting, timed out.
    Timeout,
    /// The connection was never established.
    NotConnected(io::Error),
    /// The server sent this error, in quotes, and closes the connection.
    Refused {
        /// Its word.
        word: String,
        /// The whole line.
        line: String,
    },
    /// The server sent what no valid reply can follow.
    Wrong(String),
    /// A system call failed that normally succeeds.
    System(io::Error),
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Error::Closed => f.write_str("the server closed a connection"),
            Error::Broken(error) => write!(f, "a connection broke: {}", without_errno(error)),
            Error::Timeout => f.write_str("a client waited too long for a reply"),
            Error::NotConnected(error) => {
                write!(f, "a client can't connect: {}", without_errno(error))
            }
            Error::Refused { line, .. } => write!(f, "the server said {line}"),
            Error::Wrong(text) => f.write_str(text),
            Error::System(error) => write!(f, "the system says {}", without_errno(error)),
        }
    }
}

impl std::error::Error for Error {}
