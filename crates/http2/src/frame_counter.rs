//! Counts frames, whatever nghttp2 makes of them: it tells nothing of those that it ignores.

/// Type of the frames that carry a body.
const DATA: u8 = 0;

/// Flag of those that end with up to 256 bytes of nothing.
const PADDED: u8 = 8;

/// Size of a frame's header.
const HEADER: usize = 9;

/// What a client sends before its first frame.
const PREFACE: usize = 24;

/// Which end of a connection.
#[derive(Clone, Copy)]
pub enum Role {
    /// The end that answers.
    Server,
    /// The end that asks.
    Client,
}

/// Follows the borders of frames.
pub struct FrameCounter {
    /// Number of bytes until the next header.
    skipped: usize,
    header: [u8; HEADER],
    /// Number of bytes of it that have arrived.
    filled: usize,
    /// Number of frames with a part of a body so far, which are not counted otherwise.
    pub parts: u64,
}

impl FrameCounter {
    /// Returns the counter of what arrives at this end.
    pub fn new(role: Role) -> Self {
        FrameCounter {
            skipped: match role {
                Role::Server => PREFACE,
                Role::Client => 0,
            },
            header: [0; HEADER],
            filled: 0,
            parts: 0,
        }
    }

    /// Returns the number of frames whose headers end in `bytes`, but for those with a part of a
    /// body.
    pub fn count(&mut self, mut bytes: &[u8]) -> u32 {
        let mut count = 0;
        loop {
            bytes = &bytes[take(&mut self.skipped, bytes.len())..];
            let mut missing = HEADER - self.filled;
            let taken = take(&mut missing, bytes.len());
            self.header[self.filled..][..taken].copy_from_slice(&bytes[..taken]);
            bytes = &bytes[taken..];
            self.filled += taken;
            if missing > 0 {
                return count;
            }
            let [high, middle, low, kind, flags, ..] = self.header;
            self.skipped = u32::from_be_bytes([0, high, middle, low]) as usize;
            self.filled = 0;
            let is_part = has_part(kind, flags, self.skipped);
            self.parts += u64::from(is_part);
            count += u32::from(!is_part);
        }
    }
}

/// Returns whether a frame surely carries a part of a body.
pub fn has_part(kind: u8, flags: u8, length: usize) -> bool {
    let least = if flags & PADDED == 0 { 1 } else { 257 };
    kind == DATA && length >= least
}

/// Takes up to `limit` from `number`, and returns how many.
fn take(number: &mut usize, limit: usize) -> usize {
    let taken = limit.min(*number);
    *number -= taken;
    taken
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn frames_are_counted_however_they_are_cut() {
        // Settings, an unknown frame, data, data without a byte or with padding alone, a ping.
        let frames = [
            &b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"[..],
            &[0, 0, 0, 4, 0, 0, 0, 0, 0],
            &[0, 0, 2, 99, 0, 0, 0, 0, 0, 1, 2],
            &[0, 0, 1, 0, 0, 0, 0, 0, 1, 1],
            &[0, 0, 0, 0, 1, 0, 0, 0, 1],
            &[0, 0, 1, 0, 8, 0, 0, 0, 1, 0],
            &[0, 0, 8, 6, 0, 0, 0, 0, 0, 1, 2, 3, 4, 5, 6, 7, 8],
        ]
        .concat();
        for size in 1..=frames.len() {
            let mut counter = FrameCounter::new(Role::Server);
            let counts = frames.chunks(size).map(|bytes| counter.count(bytes));
            assert_eq!(counts.sum::<u32>(), 5, "{size}");
            assert_eq!(counter.parts, 1, "{size}");
        }
    }
}
