//! Heads of the responses.

use std::cell::Cell;
use std::io::Write as _;
use std::time::{SystemTime, UNIX_EPOCH};

use jiff::Timestamp;
use jiff::fmt::rfc2822::DateTimePrinter;

use crate::protocol::http::STATUSES;

/// Media type of replies: exactly this, without parameters, is what clients compare.
pub const JSON: &str = "application/json";

/// Media type of a sentence.
pub const TEXT: &str = "text/plain; charset=utf-8";

/// What a response says about its connection.
#[derive(Clone, Copy)]
pub enum Connection {
    /// Nothing: it stays open.
    Unsaid,
    /// It stays open, also with HTTP/1.0.
    KeepAlive,
    /// The server closes it.
    Close,
}

/// Inserts a head before the body, which is the output from `start` on. `fields` are further
/// fields, each with its line end.
pub fn write_head(
    status: u16,
    media_type: &str,
    fields: &str,
    connection: Connection,
    start: usize,
    output: &mut Vec<u8>,
) {
    let length = output.len() - start;
    let known = STATUSES.iter().find(|(code, _)| *code == status);
    let phrase = known.map_or("", |(_, phrase)| phrase);
    // Writing into a Vec can't fail.
    let _ = write!(output, "HTTP/1.1 {status} {phrase}\r\nDate: ");
    write_date(output);
    output.extend_from_slice(b"\r\n");
    // A 204 has neither.
    if status != 204 {
        let _ = write!(
            output,
            "Content-Type: {media_type}\r\nContent-Length: {length}\r\n"
        );
    }
    output.extend_from_slice(fields.as_bytes());
    output.extend_from_slice(match connection {
        Connection::Unsaid => b"\r\n",
        Connection::KeepAlive => b"Connection: keep-alive\r\n\r\n",
        Connection::Close => b"Connection: close\r\n\r\n",
    });
    output[start..].rotate_left(length);
}

/// Adds to the response at `start` that the server closes the connection.
#[cold]
pub fn add_close(output: &mut Vec<u8>, start: usize) {
    const KEEP_ALIVE: &[u8] = b"Connection: keep-alive\r\n";
    let head = &output[start..];
    let old = head
        .windows(KEEP_ALIVE.len())
        .position(|field| field == KEEP_ALIVE);
    let line_end = head.iter().position(|byte| *byte == b'\n').unwrap_or(0) + 1;
    let replaced = match old {
        Some(at) => start + at..start + at + KEEP_ALIVE.len(),
        None => start + line_end..start + line_end,
    };
    output.splice(replaced, *b"Connection: close\r\n");
}

thread_local! {
    /// The date of a second, as a response says it.
    static DATE: Cell<(u64, [u8; 29])> = const { Cell::new((0, [0; 29])) };
}

/// Appends the date (RFC 9110, section 6.6.1), which is written anew once a second.
fn write_date(output: &mut Vec<u8>) {
    let now = SystemTime::now().duration_since(UNIX_EPOCH);
    let second = now.map_or(0, |now| now.as_secs());
    let (mut written_at, mut date) = DATE.get();
    if written_at != second || written_at == 0 {
        let now = Timestamp::from_second(second as i64).unwrap_or_default();
        // It fails only for years beyond 9999.
        let text = DateTimePrinter::new().timestamp_to_rfc9110_string(&now);
        if let Some(text) = text.ok().and_then(|text| text.into_bytes().try_into().ok()) {
            (written_at, date) = (second, text);
            DATE.set((written_at, date));
        }
    }
    output.extend_from_slice(&date);
}
