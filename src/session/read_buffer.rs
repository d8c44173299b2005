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
    /// Returns an empty buffer.
    #[inline]
    pub fn new() -> Self {
        ReadBuffer {
            bytes: [0; READ_BUFFER],
            filled: 0,
            seen: 0,
            // A constant: a call would put two of these buffers on the stack.
            read_at: Nanos::START,
        }
    }

    /// Takes over bytes that were read elsewhere and not used.
    pub fn resume(&mut self, unused: &[u8]) {
        self.filled = unused.len().min(READ_BUFFER);
        self.bytes[..self.filled].copy_from_slice(&unused[..self.filled]);
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
