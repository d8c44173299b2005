//! What a session has read and not answered yet.

use super::CloseReason;
use crate::clock::Nanos;
use crate::connection::Connection;
use crate::protocol::line::LONGEST_REQUEST;
use crate::scoreboard::WorkerSlot;

/// What was read of a client and not answered yet: room for one request, so that a client which idles costs no more.
pub(super) struct Input {
    pub bytes: [u8; LONGEST_REQUEST],
    pub filled: usize,
    /// So many of them are known to hold no LF.
    pub searched: usize,
    /// When the last of them were read.
    pub read_at: Nanos,
}

impl Input {
    #[inline]
    pub fn new() -> Self {
        Input {
            bytes: [0; LONGEST_REQUEST],
            filled: 0,
            searched: 0,
            // No call, or there would be two of this on the stack.
            read_at: Nanos::START,
        }
    }

    /// Takes up what was read and not answered elsewhere.
    pub fn resume(&mut self, read_buffer: &[u8]) {
        self.filled = read_buffer.len().min(LONGEST_REQUEST);
        self.bytes[..self.filled].copy_from_slice(&read_buffer[..self.filled]);
    }

    /// Gives `connection` what it has read and not answered, if it goes on elsewhere. Returns how it ended.
    #[cold]
    pub fn let_go<S>(&self, connection: &mut Connection<S>, ended: CloseReason) -> CloseReason {
        if matches!(ended, CloseReason::Released) {
            connection.client.read_buffer = self.bytes[..self.filled].to_vec();
        }
        ended
    }

    /// The same between two requests: its idle time goes on counting elsewhere.
    #[cold]
    pub fn release<S>(&self, connection: &mut Connection<S>, slot: &WorkerSlot) -> CloseReason {
        connection.client.active = Some(slot.state().since());
        self.let_go(connection, CloseReason::Released)
    }

    /// Keeps what is left from `used` on: the beginning of a line, unless the rest is for whoever goes on.
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
