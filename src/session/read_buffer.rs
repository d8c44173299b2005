//! Read buffer of a session.

use crate::protocol::{Input, READ_BUFFER};
use shared::clock::Nanos;

/// Bytes that are read and that the codec has not used yet. It is on the worker's stack and small,
/// which keeps idle clients cheap.
pub(super) struct ReadBuffer {
    bytes: [u8; READ_BUFFER],
    filled: usize,
    /// Number of leading bytes that the codec has seen.
    seen: usize,
    /// Time of the last read.
    pub read_at: Nanos,
}

impl ReadBuffer {
    /// Returns a buffer with bytes that were read elsewhere.
    #[inline]
    pub fn new(read: &[u8]) -> Self {
        let mut buffer = ReadBuffer {
            bytes: [0; READ_BUFFER],
            filled: read.len().min(READ_BUFFER),
            seen: 0,
            // A constant: a call would put two of these buffers on the stack.
            read_at: Nanos::START,
        };
        buffer.bytes[..buffer.filled].copy_from_slice(&read[..buffer.filled]);
        buffer
    }

    /// Returns the unused bytes.
    pub fn unused(&self) -> &[u8] {
        &self.bytes[..self.filled]
    }

    /// Returns the room for more bytes.
    #[inline]
    pub fn room(&mut self) -> &mut [u8] {
        &mut self.bytes[self.filled..]
    }

    /// Adds `read` bytes that were written to the room.
    #[inline]
    pub fn fill(&mut self, read: usize) {
        self.filled += read;
        self.read_at = Nanos::now();
    }

    /// Returns the input for the codec.
    #[inline]
    pub fn input(&self, is_last: bool) -> Input<'_> {
        Input {
            bytes: &self.bytes[..self.filled],
            seen: self.seen,
            is_last,
        }
    }

    /// Discards the first `used` bytes. The codec has seen the rest, which is the beginning of a
    /// request, or, if the connection is released, the input for its next session.
    #[inline]
    pub fn keep_from(&mut self, used: usize) {
        if used == self.filled {
            self.filled = 0;
        } else if used > 0 {
            self.bytes.copy_within(used..self.filled, 0);
            self.filled -= used;
        }
        self.seen = self.filled;
    }
}
