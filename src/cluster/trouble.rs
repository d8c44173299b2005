//! What goes wrong with the place where the servers meet, in words that fit into the log.

use std::fmt;

/// The most characters of what others say that are repeated.
const LONGEST_QUOTE: usize = 200;

/// What went wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
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

impl Kind {
    /// All there are.
    pub const ALL: [Kind; 5] = [
        Kind::Unreachable,
        Kind::Late,
        Kind::Denied,
        Kind::ReadOnly,
        Kind::Refused,
    ];

    /// What the metrics call it.
    pub fn name(self) -> &'static str {
        match self {
            Kind::Unreachable => "unreachable",
            Kind::Late => "late",
            Kind::Denied => "denied",
            Kind::ReadOnly => "read_only",
            Kind::Refused => "refused",
        }
    }
}

/// What went wrong with the place where the servers meet.
#[derive(Clone, Debug)]
pub struct Trouble {
    /// Its sort.
    pub kind: Kind,
    /// The rest of the story.
    pub what: String,
    /// The code of the error that was answered: the first word of one of Redis, the number of one of gRPC. Empty if there is
    /// none.
    pub code: String,
}

impl Trouble {
    /// This sort of trouble.
    pub fn new(kind: Kind, what: impl Into<String>) -> Self {
        Trouble {
            kind,
            what: what.into(),
            code: String::new(),
        }
    }
}

impl fmt::Display for Trouble {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.what)
    }
}

/// What others say, so that it fits into the log.
pub fn cut(text: &str) -> String {
    let printable = |c: char| if (' '..='~').contains(&c) { c } else { '?' };
    text.chars().take(LONGEST_QUOTE).map(printable).collect()
}
