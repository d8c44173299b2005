//! Failures of the client, with messages for the person who has to fix them.

use std::fmt;
use std::io;
use std::net::SocketAddr;
use std::time::Duration;

use crate::text::without_errno;
use crate::text::{excerpt, quoted};

/// The most tried addresses that a message names.
const ADDRESSES_NAMED: usize = 3;

/// Why there is no connection, or no reply.
#[derive(Debug)]
pub enum Failure {
    /// The name has no address.
    Lookup {
        /// The name.
        host: String,
        /// The resolver's message.
        reason: String,
    },
    /// No thread could be started for the lookup.
    Thread(io::Error),
    /// The name has no address of the requested family.
    Family {
        /// The name.
        host: String,
        /// The family.
        family: &'static str,
    },
    /// None of the addresses accepted the connection.
    Connect(Vec<(SocketAddr, io::Error)>),
    /// The deadline has passed.
    Late {
        /// What was being done, as a sentence to which "within … s" can be added.
        doing: String,
        /// The timeout.
        timeout: Duration,
    },
    /// The connection broke.
    Broken {
        /// The request.
        request: String,
        /// The system's error.
        error: io::Error,
        /// The part of a line that was received before.
        part: Vec<u8>,
    },
    /// The server closed the connection before it replied.
    Closed {
        /// The request.
        request: String,
        /// The part of a line that was received before.
        part: Vec<u8>,
    },
    /// The reply is a line without an end.
    Endless {
        /// The request.
        request: String,
        /// Its beginning.
        part: Vec<u8>,
    },
    /// The reply is not one that the protocol allows.
    Wrong {
        /// The request.
        request: String,
        /// What was received.
        received: Vec<u8>,
        /// What the protocol allows, in words.
        expected: &'static str,
    },
    /// The server sent more than the replies.
    More {
        /// Its beginning.
        part: Vec<u8>,
    },
}

impl Failure {
    /// Returns whether this machine lacks the resources for a socket or a thread.
    pub fn is_local_resource_error(&self) -> bool {
        let lacks = [libc::EMFILE, libc::ENFILE, libc::ENOMEM, libc::ENOBUFS];
        let lacking = |error: &io::Error| {
            let number = error.raw_os_error();
            number.is_some_and(|number| lacks.contains(&number))
        };
        match self {
            Failure::Thread(_) => true,
            Failure::Connect(refusals) => refusals.iter().all(|(_, error)| lacking(error)),
            _ => false,
        }
    }

    /// Returns whether all addresses refused the connection.
    pub fn is_refused(&self) -> bool {
        let is_refused = |error: &io::Error| error.kind() == io::ErrorKind::ConnectionRefused;
        matches!(self, Failure::Connect(refusals) if refusals.iter().all(|(_, error)| is_refused(error)))
    }

    /// Returns whether the server accepted the connection, but did not reply.
    pub fn is_no_reply(&self) -> bool {
        match self {
            Failure::Late { .. } => true,
            Failure::Broken { part, .. } | Failure::Closed { part, .. } => part.is_empty(),
            _ => false,
        }
    }

    /// Returns whether the peer behaves as our server never does.
    pub fn is_foreign(&self) -> bool {
        matches!(
            self,
            Failure::Endless { .. } | Failure::Wrong { .. } | Failure::More { .. }
        )
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Failure::Lookup { host, reason } => {
                write!(f, "no address of {}: {reason}", quoted(host.as_bytes()))
            }
            Failure::Thread(error) => {
                write!(
                    f,
                    "can't start a thread for the lookup: {}",
                    without_errno(error)
                )
            }
            Failure::Family { host, family } => {
                write!(f, "{} has no {family} address", quoted(host.as_bytes()))
            }
            Failure::Connect(refusals) => {
                f.write_str("can't connect to ")?;
                for (number, (address, error)) in refusals.iter().take(ADDRESSES_NAMED).enumerate()
                {
                    let separator = if number > 0 { ", to " } else { "" };
                    write!(f, "{separator}{address}: {}", without_errno(error))?;
                }
                match refusals.len().saturating_sub(ADDRESSES_NAMED) {
                    0 => Ok(()),
                    more => write!(f, ", nor to {more} more"),
                }
            }
            Failure::Late { doing, timeout } => {
                write!(f, "{doing} within {} s", timeout.as_secs_f64())
            }
            Failure::Broken { request, error, .. } => {
                write!(
                    f,
                    "no answer to {}: {}",
                    excerpt(request),
                    without_errno(error)
                )
            }
            Failure::Closed { request, part } if part.is_empty() => {
                write!(f, "closed without an answer to {}", excerpt(request))
            }
            Failure::Closed { request, part } => {
                write!(
                    f,
                    "closed in the middle of the answer to {}: {}",
                    excerpt(request),
                    quoted(part)
                )
            }
            Failure::Endless { request, part } => {
                let request = excerpt(request);
                write!(f, "the answer to {request} doesn't end: {}", quoted(part))
            }
            Failure::Wrong {
                request,
                received,
                expected,
            } => {
                write!(
                    f,
                    "{} is answered {} instead of {expected}",
                    excerpt(request),
                    quoted(received)
                )
            }
            Failure::More { part } => {
                write!(f, "more is answered than was asked: {}", quoted(part))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_is_a_local_resource_error_only_if_this_machine_lacks_something() {
        let address = SocketAddr::from(([127, 0, 0, 1], 4242));
        let refusal = |number| (address, io::Error::from_raw_os_error(number));
        let is_local_resource_error =
            |refusals| Failure::Connect(refusals).is_local_resource_error();
        assert!(is_local_resource_error(vec![
            refusal(libc::EMFILE),
            refusal(libc::ENOMEM)
        ]));
        assert!(!is_local_resource_error(vec![
            refusal(libc::EMFILE),
            refusal(libc::ECONNREFUSED)
        ]));
        assert!(!is_local_resource_error(vec![refusal(libc::ENETUNREACH)]));
    }
}
