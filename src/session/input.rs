//! Read buffer of a session.

use super::CloseReason;
use crate::protocol::line::LONGEST_REQUEST;
use crate::session::scoreboard::WorkerSlot;
use crate::transport::connection::Connection;
use shared::clock::Nanos;

/// Bytes that are read and not answered yet. It has room for one request, which keeps idle clients
/// cheap.
pub(super) struct Input {
    pub bytes: [u8; LONGEST_REQUEST],
    pub filled: usize,
    /// Number of leading bytes that are known to hold no LF.
    pub searched: usize,
    /// Time of the last read.
    pub read_at: Nanos,
}

impl Input {
    #[inline]
    pub fn new() -> Self {
        Input {
            bytes: [0; LONGEST_REQUEST],
            filled: 0,
            searched: 0,
            // A constant: a call would put two of these buffers on the stack.
            read_at: Nanos::START,
        }
    }

    /// Takes over bytes that were read elsewhere and not answered.
    pub fn resume(&mut self, read_buffer: &[u8]) {
        self.filled = read_buffer.len().min(LONGEST_REQUEST);
        self.bytes[..self.filled].copy_from_slice(&read_buffer[..self.filled]);
    }

    /// Stores the unanswered bytes in `connection` if it is released. Returns `ended`.
    #[cold]
    pub fn let_go<S>(&self, connection: &mut Connection<S>, ended: CloseReason) -> CloseReason {
        if matches!(ended, CloseReason::Released) {
            connection.client.read_buffer = self.bytes[..self.filled].to_vec();
        }
        ended
    }

    /// Releases the connection between two requests: its idle time continues elsewhere.
    #[cold]
    pub fn release<S>(&self, connection: &mut Connection<S>, slot: &WorkerSlot) -> CloseReason {
        connection.client.active = Some(slot.state().since());
        self.let_go(connection, CloseReason::Released)
    }

    /// Discards the first `used` bytes. The rest is the beginning of a line, or, if the connection
    /// is released, the input for its next server.
    #[inline]
    pub fn keep_from(&mut self, used: usize) {
        if used == self.filled {
            self.filled = 0;
        } else if used > 0 {
            self.bytes.copy_within(used..self.filled, 0);
            self.filled -= used;
        }
        self.searched = self.filled;
    }
}
