//! Errors of Redis, the Sentinels and etcd, with texts that fit into the log.

use std::fmt;
use std::io;

use rustls::AlertDescription as Alert;

use shared::text::without_errno;

/// Largest number of characters that are quoted from a remote text.
const MAX_QUOTE: usize = 200;

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
    /// Names of the kinds in the metrics, in the order of the kinds.
    pub const NAMES: [&str; 5] = ["unreachable", "late", "denied", "read_only", "refused"];
}

/// Result with a [`ClusterError`].
pub type Result<T, E = ClusterError> = std::result::Result<T, E>;

/// Error of Redis, a Sentinel or etcd.
#[derive(Clone, Debug)]
pub struct ClusterError {
    /// Kind of the error.
    pub kind: ErrorKind,
    /// Description, for the log.
    pub what: String,
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
            code: String::new(),
        }
    }

    /// Creates an error about credentials.
    pub fn denied(what: impl Into<String>) -> Self {
        ClusterError::new(ErrorKind::Denied, what)
    }

    /// Creates an error about a wrong or negative answer.
    pub fn refused(what: impl Into<String>) -> Self {
        ClusterError::new(ErrorKind::Refused, what)
    }

    /// Creates an error for a failed connection to a `server`. TLS errors arrive as I/O errors of
    /// kind `InvalidData`.
    pub fn connection(server: impl fmt::Display, error: &io::Error) -> Self {
        let kind = match error.kind() {
            io::ErrorKind::InvalidData => ErrorKind::Denied,
            io::ErrorKind::TimedOut => ErrorKind::Late,
            _ => ErrorKind::Unreachable,
        };
        let inner = error.get_ref().and_then(|inner| inner.downcast_ref());
        let advice = match inner {
            Some(rustls::Error::AlertReceived(
                Alert::BadCertificate
                | Alert::CertificateExpired
                | Alert::CertificateRequired
                | Alert::CertificateRevoked
                | Alert::CertificateUnknown
                | Alert::UnknownCA
                | Alert::UnsupportedCertificate,
            )) => " (of this server, or for want of one: --cluster-certificate-file)",
            _ => "",
        };
        let what = format!("{server}: {}{advice}", without_errno(error));
        ClusterError::new(kind, printable(&what))
    }
}

impl fmt::Display for ClusterError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.what)
    }
}

/// Truncates a remote text to `MAX_QUOTE` characters and replaces unprintable ones, for the
/// log.
pub fn printable(text: &str) -> String {
    let replace = |c: char| if (' '..='~').contains(&c) { c } else { '?' };
    text.chars().take(MAX_QUOTE).map(replace).collect()
}
