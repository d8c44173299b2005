//! Heads of the responses.

use std::cell::Cell;
use std::io::Write as _;

use jiff::Timestamp;
use jiff::fmt::rfc2822::DateTimePrinter;
use rustix::time::{ClockId, clock_gettime};

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

/// Inserts the head of a response that is sent as it comes before its beginning, which is the output
/// from `start` on: in chunks, or to the end of the connection. `fields` are further fields.
pub fn write_stream_head(
    is_chunked: bool,
    closes: bool,
    fields: &str,
    start: usize,
    output: &mut Vec<u8>,
) {
    let beginning = output.split_off(start);
    output.extend_from_slice(b"HTTP/1.1 200 OK\r\nDate: ");
    write_date(output);
    output.extend_from_slice(b"\r\nContent-Type: ");
    output.extend_from_slice(JSON.as_bytes());
    if is_chunked {
        output.extend_from_slice(b"\r\nTransfer-Encoding: chunked");
    }
    output.extend_from_slice(b"\r\n");
    output.extend_from_slice(fields.as_bytes());
    if closes {
        output.extend_from_slice(b"Connection: close\r\n");
    }
    output.extend_from_slice(b"\r\n");
    write_chunk(is_chunked, &beginning, output);
}

/// Appends a part of the body of such a response.
pub fn write_chunk(is_chunked: bool, part: &[u8], output: &mut Vec<u8>) {
    if is_chunked && !part.is_empty() {
        // Writing into a Vec can't fail.
        let _ = write!(output, "{:x}\r\n", part.len());
    }
    output.extend_from_slice(part);
    if is_chunked && !part.is_empty() {
        output.extend_from_slice(b"\r\n");
    }
}

/// The end of such a response, if it is in chunks.
pub const LAST_CHUNK: &[u8] = b"0\r\n\r\n";

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
    output.extend_from_slice(b"HTTP/1.1 ");
    write_number(status.into(), output);
    output.push(b' ');
    output.extend_from_slice(phrase.as_bytes());
    output.extend_from_slice(b"\r\nDate: ");
    write_date(output);
    // A 204 has neither.
    if status != 204 {
        output.extend_from_slice(b"\r\nContent-Type: ");
        output.extend_from_slice(media_type.as_bytes());
        output.extend_from_slice(b"\r\nContent-Length: ");
        write_number(length, output);
    }
    output.extend_from_slice(b"\r\n");
    output.extend_from_slice(fields.as_bytes());
    output.extend_from_slice(match connection {
        Connection::Unsaid => b"\r\n",
        Connection::KeepAlive => b"Connection: keep-alive\r\n\r\n",
        Connection::Close => b"Connection: close\r\n\r\n",
    });
    output[start..].rotate_left(length);
}

/// Appends decimal digits, without the detour of `write!`.
fn write_number(number: usize, output: &mut Vec<u8>) {
    // Writing into a Vec can't fail.
    let _ = serde_json::to_writer(output, &number);
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
    static DATE: Cell<(i64, [u8; 29])> = const { Cell::new((0, [0; 29])) };
}

/// Appends the date (RFC 9110, section 6.6.1), which is written anew once a second.
fn write_date(output: &mut Vec<u8>) {
    // The coarse clock is read without a system call, and is late by some milliseconds at most.
    let second = clock_gettime(ClockId::RealtimeCoarse).tv_sec;
    let (mut written_at, mut date) = DATE.get();
    if written_at != second || written_at == 0 {
        let now = Timestamp::from_second(second).unwrap_or_default();
        // It fails only for years beyond 9999.
        let text = DateTimePrinter::new().timestamp_to_rfc9110_string(&now);
        if let Some(text) = text.ok().and_then(|text| text.into_bytes().try_into().ok()) {
            (written_at, date) = (second, text);
            DATE.set((written_at, date));
        }
    }
    output.extend_from_slice(&date);
}
