//! All that may keep the plugin from getting right answers, worded for whoever is called at night.

use std::fmt;

use blockchain_tcpd::dial::{self, quoted};

use crate::report::Status;

/// Why there are no right answers.
#[derive(Debug)]
pub enum Failure {
    /// There is no connection, or no reply.
    Dial(dial::Failure),
    /// The server says that it can't.
    Refused { line: Vec<u8> },
    /// Not what the protocol has as the reply to this.
    Wrong {
        request: &'static str,
        line: Vec<u8>,
        right: &'static str,
    },
}

impl Failure {
    /// UNKNOWN if it is this machine that lacks something; all else says that the service can't be used, a name without
    /// address and a time-out included, as the guidelines have it.
    pub fn status(&self) -> Status {
        match self {
            Failure::Dial(failure) if failure.is_our_own() => Status::Unknown,
            _ => Status::Critical,
        }
    }
}

impl From<dial::Failure> for Failure {
    fn from(failure: dial::Failure) -> Self {
        Failure::Dial(failure)
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Failure::Dial(failure) => failure.fmt(f),
            Failure::Refused { line } => write!(f, "the server says {}", quoted(line)),
            Failure::Wrong {
                request,
                line,
                right,
            } => {
                write!(
                    f,
                    "{request} is answered {} instead of {right}",
                    quoted(line)
                )
            }
        }
    }
}
