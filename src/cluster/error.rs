//! Errors of Redis, the Sentinels and etcd, with texts that fit into the log.

use std::fmt;

/// Largest number of characters that are quoted from a remote text.
const LONGEST_QUOTE: usize = 200;

/// Kind of a cluster error.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ErrorKind {
    /// No connection, or a lost one.
    Unreachable,
    /// No answer in time.
    Late,
    /// Authentication or authorization failed, or TLS did.
    Denied,
    /// The server accepts no writes.
    ReadOnly,
    /// The server answered with another error.
    Refused,
}

impl ErrorKind {
    /// All kinds, in the order of their numbers.
    pub const ALL: [ErrorKind; 5] = [
        ErrorKind::Unreachable,
        ErrorKind::Late,
        ErrorKind::Denied,
        ErrorKind::ReadOnly,
        ErrorKind::Refused,
    ];

    /// Returns the name of the kind in the metrics.
    pub fn name(self) -> &'static str {
        match self {
            ErrorKind::Unreachable => "unreachable",
            ErrorKind::Late => "late",
            ErrorKind::Denied => "denied",
            ErrorKind::ReadOnly => "read_only",
            ErrorKind::Refused => "refused",
        }
    }
}

/// Error of Redis, a Sentinel or etcd.
#[derive(Clone, Debug)]
pub struct ClusterError {
    /// Kind of the error.
    pub kind: ErrorKind,
    /// Description, for the log.
    pub what: String,
    /// What Redis or a Sentinel said, in which to search: unlike the description, it holds no host.
    /// Empty without an error reply.
    pub said: String,
    /// Error code from the server: the first word of a Redis error, or the number of a gRPC status.
    /// Empty without one.
    pub code: String,
}

impl ClusterError {
    /// Creates an error without a code.
    pub fn new(kind: ErrorKind, what: impl Into<String>) -> Self {
        ClusterError {
            kind,
            what: what.into(),
            said: String::new(),
            code: String::new(),
        }
    }
}

impl fmt::Display for ClusterError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.what)
    }
}

/// Shortens a remote text to `LONGEST_QUOTE` characters and replaces unprintable ones, for the
/// log.
pub fn cut(text: &str) -> String {
    let printable = |c: char| if (' '..='~').contains(&c) { c } else { '?' };
    text.chars().take(LONGEST_QUOTE).map(printable).collect()
}
