//! HTTP/1.1 responses.

use std::fmt::Write as _;

use jiff::Timestamp;
use jiff::fmt::rfc2822::DateTimePrinter;

/// A response.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Response {
    /// Its status code.
    pub status: u16,
    /// Media type of the body.
    pub media_type: &'static str,
    /// The body.
    pub body: String,
}

impl Response {
    /// Returns a response of one line of plain text.
    pub fn text(status: u16, text: &str) -> Self {
        Response {
            status,
            media_type: "text/plain; charset=utf-8",
            body: format!("{text}\n"),
        }
    }

    /// Encodes the response; `keep_alive` says whether the connection stays open after it.
    pub fn encode(&self, head_only: bool, keep_alive: bool) -> Vec<u8> {
        let status = STATUSES.iter().find(|(code, _)| *code == self.status);
        let phrase = status.map_or("", |(_, phrase)| phrase);
        let mut head = format!("HTTP/1.1 {} {phrase}\r\n", self.status);
        let mut field = |name: &str, value: &str| {
            // Writing into a String can't fail.
            let _ = write!(head, "{name}: {value}\r\n");
        };
        let now = DateTimePrinter::new().timestamp_to_rfc9110_string(&Timestamp::now());
        // It fails only for years beyond 9999.
        if let Ok(date) = now {
            field("Date", &date);
        }
        field("Content-Type", self.media_type);
        field("Content-Length", &self.body.len().to_string());
        field("Cache-Control", "no-store");
        field("X-Content-Type-Options", "nosniff");
        // The page loads nothing and runs no script.
        field(
            "Content-Security-Policy",
            "default-src 'none'; style-src 'unsafe-inline'",
        );
        if self.status == 405 {
            field("Allow", "GET, HEAD");
        }
        if !keep_alive {
            field("Connection", "close");
        }
        head.push_str("\r\n");
        if !head_only {
            head.push_str(&self.body);
        }
        head.into_bytes()
    }
}

/// All status codes in use, with their reason phrases (RFC 9110, section 15; 431: RFC 6585, section
/// 5).
pub const STATUSES: [(u16, &str); 14] = [
    (200, "OK"),
    (204, "No Content"),
    (400, "Bad Request"),
    (404, "Not Found"),
    (405, "Method Not Allowed"),
    (408, "Request Timeout"),
    (413, "Content Too Large"),
    (415, "Unsupported Media Type"),
    (417, "Expectation Failed"),
    (431, "Request Header Fields Too Large"),
    (500, "Internal Server Error"),
    (501, "Not Implemented"),
    (503, "Service Unavailable"),
    (505, "HTTP Version Not Supported"),
];
