//! What goes wrong with the place where the servers meet, in words that fit into the log.

use std::fmt;

/// The most characters of what others say that are repeated.
const LONGEST_QUOTE: usize = 200;

/// What went wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ErrorKind {
    /// There is no connection.
    Unreachable,
    /// It did not answer in time.
    Late,
    /// It does not know this server, or lets it do nothing.
    Denied,
    /// It takes no writes.
    ReadOnly,
    /// It answered an error of another sort.
    Refused,
}

impl ErrorKind {
    /// All there are.
    pub const ALL: [ErrorKind; 5] = [
        ErrorKind::Unreachable,
        ErrorKind::Late,
        ErrorKind::Denied,
        ErrorKind::ReadOnly,
        ErrorKind::Refused,
    ];

    /// What the metrics call it.
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

/// What went wrong with the place where the servers meet.
#[derive(Clone, Debug)]
pub struct ClusterError {
    /// Its sort.
    pub kind: ErrorKind,
    /// The rest of the story.
    pub what: String,
    /// The code of the error that was answered: the first word of one of Redis, the number of one of gRPC. Empty if there is
    /// none.
    pub code: String,
}

impl ClusterError {
    /// This sort of trouble.
    pub fn new(kind: ErrorKind, what: impl Into<String>) -> Self {
        ClusterError {
            kind,
            what: what.into(),
            code: String::new(),
        }
    }
}

impl fmt::Display for ClusterError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.what)
    }
}

/// What others say, so that it fits into the log.
pub fn cut(text: &str) -> String {
    let printable = |c: char| if (' '..='~').contains(&c) { c } else { '?' };
    text.chars().take(LONGEST_QUOTE).map(printable).collect()
}
