//! HTTP/2 (RFC 9113) without input and output: a [`Session`] is one end of a connection, of a server
//! or of a client. It takes the bytes that arrive, tells what they mean as [`Event`]s, and gives the
//! bytes to send.
//!
//! The frames, the header compression, the states of streams and the windows are nghttp2's. It is
//! called in `session` alone, the one file with unsafe code.

mod frame_counter;
mod session;

use std::borrow::Cow;
use std::fmt;

pub use session::Session;

/// Identifies a stream of a session.
pub type StreamId = i32;

/// Error codes of frames that end streams and connections (RFC 9113, section 7).
pub mod code {
    /// Not an error.
    pub const NO_ERROR: u32 = 0;
    /// The sender can't go on by its own fault.
    pub const INTERNAL_ERROR: u32 = 2;
    /// The request was not processed: the client may send it again.
    pub const REFUSED_STREAM: u32 = 7;
    /// The receiver of an answer needs it no more.
    pub const CANCEL: u32 = 8;
    /// The peer causes too much work.
    pub const ENHANCE_YOUR_CALM: u32 = 11;
}

/// What one end allows the other.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Number of streams that the peer may have open at a time.
    pub streams: u32,
    /// Size of a list of headers: names, values, and 32 bytes each. A longer one arrives as
    /// [`Headers::is_too_large`].
    pub header_list: u32,
    /// Number of frames that carry nothing (all but data) before [`Error::Flood`].
    /// [`Session::allow`] adds to them.
    pub control_frames: u32,
}

impl Default for Limits {
    fn default() -> Self {
        Limits {
            streams: 100,
            header_list: 16 * 1024,
            control_frames: 500,
        }
    }
}

/// A list of headers this many times longer than the limit is no mistake, but a flood.
const HEADER_BOMB: usize = 16;

/// A header to send.
#[derive(Clone, Debug)]
pub struct Field {
    /// Its name, in small letters.
    pub name: &'static str,
    /// Its value.
    pub value: Cow<'static, str>,
}

impl Field {
    /// Returns a header.
    pub fn new(name: &'static str, value: impl Into<Cow<'static, str>>) -> Self {
        Field {
            name,
            value: value.into(),
        }
    }
}

/// Headers or trailers that have arrived.
#[derive(Clone, Default, PartialEq)]
pub struct Headers {
    bytes: Vec<u8>,
    /// Where each name and each value ends.
    ends: Vec<(usize, usize)>,
    size: usize,
    /// Whether the list was longer than the limit: some of it is missing.
    pub is_too_large: bool,
}

impl Headers {
    /// Returns the first value of this name.
    pub fn get(&self, name: &str) -> Option<&[u8]> {
        let mut headers = self.iter();
        headers.find_map(|(key, value)| (key == name.as_bytes()).then_some(value))
    }

    /// Returns all names and values.
    pub fn iter(&self) -> impl Iterator<Item = (&[u8], &[u8])> {
        let mut start = 0;
        self.ends.iter().map(move |&(name_end, end)| {
            let name = &self.bytes[start..name_end];
            start = end;
            (name, &self.bytes[name_end..end])
        })
    }

    /// Returns an empty list with room for what requests usually have.
    fn with_room() -> Self {
        Headers {
            bytes: Vec::with_capacity(512),
            ends: Vec::with_capacity(16),
            ..Headers::default()
        }
    }

    /// Adds a header, unless the list gets longer than `limit`.
    fn push(&mut self, name: &[u8], value: &[u8], limit: usize) {
        self.size += name.len() + value.len() + 32;
        self.is_too_large |= self.size > limit;
        if !self.is_too_large {
            self.bytes.extend_from_slice(name);
            let name_end = self.bytes.len();
            self.bytes.extend_from_slice(value);
            self.ends.push((name_end, self.bytes.len()));
        }
    }
}

impl fmt::Debug for Headers {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let text = |bytes| String::from_utf8_lossy(bytes);
        let headers = self.iter().map(|(name, value)| (text(name), text(value)));
        f.debug_map().entries(headers).finish()
    }
}

/// What has arrived.
#[derive(Clone, Debug, PartialEq)]
pub enum Event {
    /// Headers of a request or an answer, or trailers.
    Headers(StreamId, Headers),
    /// A part of a body.
    Data(StreamId, Vec<u8>),
    /// The peer sends no more on this stream.
    End(StreamId),
    /// The stream is closed in both directions: with this error code, or completely.
    Closed(StreamId, u32),
    /// The peer has answered a ping.
    Pong([u8; 8]),
    /// The peer opens no more streams, and answers those up to this one.
    GoAway {
        /// The last stream that it answers.
        last: StreamId,
        /// Its error code.
        code: u32,
    },
}

/// Why a session can't go on. What it has to say is in its output.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Error {
    /// The peer sends too much that carries nothing.
    Flood,
    /// The peer breaks the protocol, in a way that nghttp2 knows by this number, or the system
    /// lacks memory.
    Broken(i32),
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Error::Flood => f.write_str("too many frames that carry nothing"),
            Error::Broken(error) => write!(f, "not HTTP/2 (nghttp2 {error})"),
        }
    }
}

impl std::error::Error for Error {}
