//! All that may keep the plugin from getting right answers, worded for whoever is called at night.

use std::fmt;
use std::io;
use std::net::SocketAddr;
use std::time::Duration;

use blockchain_tcpd::error::plain;

use crate::report::Status;

/// How many of the addresses that were tried are named.
const ADDRESSES_NAMED: usize = 3;

/// How much of what a server said is repeated.
const LONGEST_QUOTE: usize = 80;

/// Why there are no right answers.
#[derive(Debug)]
pub enum Failure {
    /// The name has no address.
    Lookup { host: String, reason: String },
    /// No thread for the lookup.
    Thread(io::Error),
    /// The name has no address of the kind that was asked for.
    Kind { host: String, kind: &'static str },
    /// None of the addresses lets us in.
    Connect(Vec<(SocketAddr, io::Error)>),
    /// The whole time is over.
    Late { doing: String, timeout: Duration },
    /// The connection broke.
    Broken {
        request: &'static str,
        error: io::Error,
    },
    /// The server closed too early, after this part of a line.
    Closed {
        request: &'static str,
        part: Vec<u8>,
    },
    /// The server says that it can't.
    Refused { line: Vec<u8> },
    /// A line without an end.
    Endless {
        request: &'static str,
        part: Vec<u8>,
    },
    /// Not what the protocol has as the reply to this.
    Wrong {
        request: &'static str,
        line: Vec<u8>,
        right: &'static str,
    },
    /// More than was asked for.
    More { part: Vec<u8> },
}

impl Failure {
    /// UNKNOWN if it is this machine that lacks something; all else says that the service can't be used, a name without
    /// address and a time-out included, as the guidelines have it.
    pub fn status(&self) -> Status {
        match self {
            Failure::Thread(_) => Status::Unknown,
            Failure::Connect(refusals) if refusals.iter().all(|(_, error)| is_our_own(error)) => {
                Status::Unknown
            }
            _ => Status::Critical,
        }
    }
}

/// Whether this machine couldn't even make a socket.
fn is_our_own(error: &io::Error) -> bool {
    let lacks = [libc::EMFILE, libc::ENFILE, libc::ENOMEM, libc::ENOBUFS];
    error
        .raw_os_error()
        .is_some_and(|number| lacks.contains(&number))
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Failure::Lookup { host, reason } => {
                write!(f, "no address of {}: {reason}", quoted(host.as_bytes()))
            }
            Failure::Thread(error) => {
                write!(f, "can't start a thread for the lookup: {}", plain(error))
            }
            Failure::Kind { host, kind } => {
                write!(f, "{} has no {kind} address", quoted(host.as_bytes()))
            }
            Failure::Connect(refusals) => {
                f.write_str("can't connect to ")?;
                for (number, (address, error)) in refusals.iter().take(ADDRESSES_NAMED).enumerate()
                {
                    let parting = if number > 0 { ", to " } else { "" };
                    write!(f, "{parting}{address}: {}", plain(error))?;
                }
                match refusals.len().saturating_sub(ADDRESSES_NAMED) {
                    0 => Ok(()),
                    more => write!(f, ", nor to {more} more"),
                }
            }
            Failure::Late { doing, timeout } => {
                write!(f, "{doing} within {} s", timeout.as_secs_f64())
            }
            Failure::Broken { request, error } => {
                write!(f, "no answer to {request}: {}", plain(error))
            }
            Failure::Closed { request, part } if part.is_empty() => {
                write!(f, "closed without an answer to {request}")
            }
            Failure::Closed { request, part } => {
                write!(
                    f,
                    "closed in the middle of the answer to {request}: {}",
                    quoted(part)
                )
            }
            Failure::Refused { line } => write!(f, "the server says {}", quoted(line)),
            Failure::Endless { request, part } => {
                write!(f, "the answer to {request} doesn't end: {}", quoted(part))
            }
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
            Failure::More { part } => {
                write!(f, "more is answered than was asked: {}", quoted(part))
            }
        }
    }
}

/// What somebody else said, between double quotes and cut, without anything that a monitoring, its shell or its web pages
/// could take for something else.
pub fn quoted(said: &[u8]) -> String {
    let mut text = String::from("\"");
    for &byte in said.iter().take(LONGEST_QUOTE) {
        match byte {
            b'|' | b'\\' | b'"' | b'\'' | b'`' | b'$' | b'&' | b'<' | b'>' => {
                text += &format!("\\x{byte:02x}")
            }
            b' '..=b'~' => text.push(char::from(byte)),
            _ => text += &format!("\\x{byte:02x}"),
        }
    }
    text += if said.len() > LONGEST_QUOTE {
        "...\""
    } else {
        "\""
    };
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_quoted_is_harmless_and_short() {
        assert_eq!(
            quoted(b"ERR BUSY no room; try again"),
            "\"ERR BUSY no room; try again\""
        );
        assert_eq!(
            quoted(b"1|time=0\n\x1b[2J\xff\"$(x)"),
            r#""1\x7ctime=0\x0a\x1b[2J\xff\x22\x24(x)""#
        );
        assert_eq!(quoted(&[b'x'; 80]).len(), 82);
        assert_eq!(quoted(&[b'x'; 81]), format!("\"{}...\"", "x".repeat(80)));
        assert!(quoted(&[b'|'; 100_000]).len() < 400);
    }

    #[test]
    fn it_is_unknown_only_if_this_machine_lacks_something() {
        let address = SocketAddr::from(([127, 0, 0, 1], 4242));
        let refusal = |number| (address, io::Error::from_raw_os_error(number));
        let status = |refusals| Failure::Connect(refusals).status();
        assert_eq!(
            status(vec![refusal(libc::EMFILE), refusal(libc::ENOMEM)]),
            Status::Unknown
        );
        assert_eq!(
            status(vec![refusal(libc::EMFILE), refusal(libc::ECONNREFUSED)]),
            Status::Critical
        );
        assert_eq!(status(vec![refusal(libc::ENETUNREACH)]), Status::Critical);
    }

    #[test]
    fn of_many_addresses_a_few_are_named() {
        let refused = || io::Error::from_raw_os_error(libc::ECONNREFUSED);
        let address = |last| SocketAddr::from(([127, 0, 0, last], 4242));
        let failure = Failure::Connect((1..=5).map(|last| (address(last), refused())).collect());
        assert_eq!(
            failure.to_string(),
            "can't connect to 127.0.0.1:4242: Connection refused, to 127.0.0.2:4242: Connection refused, \
             to 127.0.0.3:4242: Connection refused, nor to 2 more"
        );
    }
}
