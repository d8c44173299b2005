//! Line buffer: splits a byte stream, however it is chunked, into lines.

/// Buffer of bytes that were received and not taken yet.
#[derive(Default)]
pub struct LineBuffer {
    bytes: Vec<u8>,
    /// Number of bytes at the beginning that hold no LF.
    searched: usize,
}

impl LineBuffer {
    /// Appends received bytes.
    pub fn push(&mut self, bytes: &[u8]) {
        self.bytes.extend_from_slice(bytes);
    }

    /// Takes the next complete line, without its end.
    pub fn take_line(&mut self) -> Option<Vec<u8>> {
        let unsearched = &self.bytes[self.searched..];
        let Some(end) = unsearched.iter().position(|byte| *byte == b'\n') else {
            self.searched = self.bytes.len();
            return None;
        };
        let mut line: Vec<u8> = self.bytes.drain(..=self.searched + end).collect();
        line.pop();
        self.searched = 0;
        Some(line)
    }

    /// Returns all bytes that are not taken yet.
    pub fn rest(&self) -> &[u8] {
        &self.bytes
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_found_however_they_come() {
        let text = b"one\n\nthree\r\nfour";
        for size in 1..=text.len() {
            let (mut lines, mut taken) = (LineBuffer::default(), Vec::new());
            for piece in text.chunks(size) {
                lines.push(piece);
                taken.extend(std::iter::from_fn(|| lines.take_line()));
            }
            assert_eq!(taken, [&b"one"[..], b"", b"three\r"]);
            assert_eq!(lines.rest(), b"four");
            lines.push(b"five\n");
            assert_eq!(lines.take_line().as_deref(), Some(&b"fourfive"[..]));
        }
    }
}
