//! Failures of the client, with messages for the person who has to fix them.

use std::fmt;
use std::io;
use std::net::SocketAddr;

use crate::text::{quoted, without_errno};

/// The most tried addresses that a message names.
const MAX_ADDRESSES: usize = 3;

/// Why there is no connection, or no reply.
#[derive(Debug)]
pub struct Failure {
    /// What a program may do about it.
    pub kind: FailureKind,
    text: String,
}

/// Kind of a [`Failure`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FailureKind {
    /// This machine lacks the resources for a socket or a thread.
    NoResources,
    /// All addresses refused the connection.
    Refused,
    /// The name has no address, or no address accepts the connection.
    NotConnected,
    /// The deadline has passed.
    Late,
    /// The connection ended before any of the reply arrived.
    Lost,
    /// The connection ended in the middle of the reply.
    Cut,
    /// The peer behaves as our server never does.
    Foreign,
}

impl Failure {
    /// Returns a failure with this message.
    pub(super) fn new(kind: FailureKind, text: String) -> Self {
        Failure { kind, text }
    }

    /// None of the addresses accepted the connection.
    pub(super) fn not_connected(refusals: &[(SocketAddr, io::Error)]) -> Self {
        let lacks = [libc::EMFILE, libc::ENFILE, libc::ENOMEM, libc::ENOBUFS].map(Some);
        let all = |is: &dyn Fn(&io::Error) -> bool| refusals.iter().all(|(_, error)| is(error));
        let kind = if all(&|error| lacks.contains(&error.raw_os_error())) {
            FailureKind::NoResources
        } else if all(&|error| error.kind() == io::ErrorKind::ConnectionRefused) {
            FailureKind::Refused
        } else {
            FailureKind::NotConnected
        };
        let named = refusals.iter().take(MAX_ADDRESSES);
        let named: Vec<String> = named
            .map(|(address, error)| format!("{address}: {}", without_errno(error)))
            .collect();
        let mut text = format!("can't connect to {}", named.join(", to "));
        if refusals.len() > MAX_ADDRESSES {
            text += &format!(", nor to {} more", refusals.len() - MAX_ADDRESSES);
        }
        Failure { kind, text }
    }

    /// The server sent more than the replies; `part` is its beginning.
    pub fn more(part: &[u8]) -> Self {
        let text = format!("more is answered than was asked: {}", quoted(part));
        Failure::new(FailureKind::Foreign, text)
    }

    /// Returns whether the server accepted the connection, but did not reply.
    pub fn is_no_reply(&self) -> bool {
        matches!(self.kind, FailureKind::Late | FailureKind::Lost)
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_is_a_local_resource_error_only_if_this_machine_lacks_something() {
        let address = SocketAddr::from(([127, 0, 0, 1], 4242));
        let kind = |numbers: &[i32]| {
            let refusals = numbers.iter();
            let refusals = refusals.map(|number| (address, io::Error::from_raw_os_error(*number)));
            Failure::not_connected(&refusals.collect::<Vec<_>>()).kind
        };
        assert_eq!(
            kind(&[libc::EMFILE, libc::ENOMEM]),
            FailureKind::NoResources
        );
        assert_eq!(
            kind(&[libc::EMFILE, libc::ECONNREFUSED]),
            FailureKind::NotConnected
        );
        assert_eq!(kind(&[libc::ENETUNREACH]), FailureKind::NotConnected);
    }
}
