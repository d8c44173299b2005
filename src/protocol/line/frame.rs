//! Framing: finds the lines in the input.

use shared::command::Line;

/// The longest request in bytes, its line end included.
pub const LONGEST_REQUEST: usize = 1024;

/// Result of searching the beginning of a buffer for a line.
#[derive(Debug, PartialEq, Eq)]
pub enum FrameResult<'a> {
    /// A complete line.
    Line {
        /// The line without its end.
        line: Line<'a>,
        /// Number of bytes that it takes in the buffer, its end included.
        length: usize,
    },
    /// The beginning of a line that may still become complete.
    Partial,
    /// The beginning of a line that is already too long.
    TooLong,
}

/// Finds the line at the beginning of `buffer`, whose first `searched` bytes are known to hold no
/// LF.
#[inline]
pub fn find(buffer: &[u8], searched: usize) -> FrameResult<'_> {
    // Most requests are short: test their first eight bytes together.
    if let Some(eight) = buffer.first_chunk::<8>()
        && let Some(lf) = eight.iter().position(|&byte| byte == b'\n')
    {
        let eight = u64::from_le_bytes(*eight);
        return FrameResult::Line {
            line: Line::within_eight(buffer, eight, without_cr(&buffer[..lf])),
            length: lf + 1,
        };
    }
    let end = buffer.len().min(LONGEST_REQUEST);
    let unsearched = buffer.get(searched..end).unwrap_or_default();
    match unsearched.iter().position(|&byte| byte == b'\n') {
        Some(offset) => {
            let lf = searched + offset;
            FrameResult::Line {
                line: Line::new(&buffer[..without_cr(&buffer[..lf])]),
                length: lf + 1,
            }
        }
        None if end == LONGEST_REQUEST => FrameResult::TooLong,
        None => FrameResult::Partial,
    }
}

/// Returns the last line of an input that ended without an LF.
pub fn last(buffer: &[u8]) -> FrameResult<'_> {
    match find(buffer, 0) {
        FrameResult::Partial => FrameResult::Line {
            line: Line::new(&buffer[..without_cr(buffer)]),
            length: buffer.len(),
        },
        result => result,
    }
}

/// Returns the length of `line` without a CR at its end.
#[inline]
fn without_cr(line: &[u8]) -> usize {
    line.len() - usize::from(line.last() == Some(&b'\r'))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_may_be_1024_bytes_long_with_its_end() {
        let mut longest = vec![b'x'; LONGEST_REQUEST - 1];
        longest.push(b'\n');
        assert_eq!(
            find(&longest, 0),
            FrameResult::Line {
                line: Line::new(&longest[..LONGEST_REQUEST - 1]),
                length: LONGEST_REQUEST
            }
        );
        let longer = [b"x", &longest[..]].concat();
        assert_eq!(find(&longer, 0), FrameResult::TooLong);
        assert_eq!(last(&longer[..LONGEST_REQUEST]), FrameResult::TooLong);
        assert_eq!(
            find(&longer[..LONGEST_REQUEST - 1], 0),
            FrameResult::Partial
        );
    }

    #[test]
    fn the_first_lf_is_found_wherever_it_is() {
        let length = |bytes: &[u8]| match find(bytes, 0) {
            FrameResult::Line { length, line } => {
                assert_eq!(line, Line::new(&bytes[..length - 1]));
                Some(length)
            }
            _ => None,
        };
        for end in 0..20 {
            for first in 0..end {
                for filler in [b'x', 0, b'\n' - 1, b'\n' + 1, 0x8a, 0xff] {
                    let mut bytes = vec![filler; end];
                    assert_eq!(length(&bytes), None);
                    bytes[first..].fill(b'\n');
                    assert_eq!(length(&bytes), Some(first + 1));
                    bytes[first + 1..].fill(filler);
                    assert_eq!(length(&bytes), Some(first + 1));
                }
            }
        }
    }

    #[test]
    fn one_cr_before_the_lf_belongs_to_the_end() {
        let line = |bytes| match find(bytes, 0) {
            FrameResult::Line { line, .. } => line.text().to_vec(),
            result => panic!("{result:?}"),
        };
        assert_eq!(line(b"WHO\r\nWHY"), b"WHO");
        assert_eq!(line(b"WHO\r\r\n"), b"WHO\r");
        assert_eq!(line(b"\n"), b"");
        assert_eq!(
            last(b"WHO\r"),
            FrameResult::Line {
                line: Line::new(b"WHO"),
                length: 4
            }
        );
    }

    #[test]
    fn what_was_searched_is_not_searched_again() {
        assert_eq!(find(b"WH", 2), FrameResult::Partial);
        assert_eq!(
            find(b"WHO\n", 2),
            FrameResult::Line {
                line: Line::new(b"WHO"),
                length: 4
            }
        );
    }
}
