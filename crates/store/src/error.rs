//! Errors of the store.

use std::fmt;

use diesel::ConnectionError;
use diesel::result::{DatabaseErrorKind, Error as QueryError};

/// Why the store did not answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StoreError {
    /// Its kind.
    pub kind: ErrorKind,
    /// The SQLSTATE that PostgreSQL gives.
    pub code: Option<[u8; 5]>,
    /// The reason, for the log.
    pub why: String,
}

/// A kind of error.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ErrorKind {
    /// No connection can be made.
    Away,
    /// The connection was lost.
    Lost,
    /// All connections are in use.
    Busy,
    /// The answer did not come in time.
    Late,
    /// The database refused the statement.
    Refused,
    /// Another server may write, and this one may not any more.
    Deposed,
    /// The schema is of a newer version of this program.
    Newer,
    /// This program failed.
    Failed,
}

impl ErrorKind {
    /// The names of all kinds, as metrics show them.
    pub const NAMES: [&str; 8] = [
        "away", "lost", "busy", "late", "refused", "deposed", "newer", "failed",
    ];
}

impl StoreError {
    /// Returns an error.
    pub fn new(kind: ErrorKind, why: impl Into<String>) -> Self {
        StoreError {
            kind,
            code: None,
            why: why.into(),
        }
    }
}

impl fmt::Display for StoreError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.why)
    }
}

impl std::error::Error for StoreError {}

impl From<ConnectionError> for StoreError {
    fn from(error: ConnectionError) -> Self {
        match error {
            // It was made, and then lost.
            ConnectionError::CouldntSetupConfiguration(error) => error.into(),
            error => StoreError::new(ErrorKind::Away, one_line(&error)),
        }
    }
}

/// The SQLSTATEs of what PostgreSQL says before it closes a connection: an administrator has cut it,
/// another process has crashed, the server can't be used now.
const LAST_WORDS: [[u8; 5]; 3] = [*b"57P01", *b"57P02", *b"57P03"];

/// The SQLSTATE of a statement that PostgreSQL has ended, as it does after `statement_timeout`.
const CANCELLED: [u8; 5] = *b"57014";

impl From<QueryError> for StoreError {
    fn from(error: QueryError) -> Self {
        use DatabaseErrorKind::{ClosedConnection, UnableToSendCommand};
        // Of this error: none of an earlier one is left.
        let code = libpq::take_sqlstate();
        let kind = match &error {
            QueryError::DatabaseError(ClosedConnection | UnableToSendCommand, _) => ErrorKind::Lost,
            _ if code.is_some_and(|code| LAST_WORDS.contains(&code)) => ErrorKind::Lost,
            _ if code == Some(CANCELLED) => ErrorKind::Late,
            _ => ErrorKind::Refused,
        };
        StoreError {
            code,
            ..StoreError::new(kind, one_line(&error))
        }
    }
}

/// Returns the text of an error in one line: libpq's have several.
fn one_line(error: &dyn fmt::Display) -> String {
    let text = error.to_string();
    text.split_whitespace().collect::<Vec<_>>().join(" ")
}
