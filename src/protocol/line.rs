//! The line protocol: a request is a line, and so is its reply. `docs/protocol.md` is the contract.

use std::fmt::{self, Write as _};
use std::io::Write as _;

use crate::command::{Refusal, Reply};

/// The longest request, in bytes, its end included.
pub const LONGEST_REQUEST: usize = 1024;

/// The most characters of a request that an error repeats, before they are escaped.
const LONGEST_QUOTE: usize = 64;

/// What the beginning of a buffer holds.
#[derive(Debug, PartialEq, Eq)]
pub enum Found<'a> {
    /// A whole line.
    Line {
        /// Its bytes without its end.
        line: &'a [u8],
        /// How many bytes of the buffer it took, with its end.
        length: usize,
    },
    /// The beginning of a line that may yet become whole.
    Part,
    /// The beginning of a line that is too long already.
    TooLong,
}

/// Looks for a line at the beginning of `buffer`, whose first `searched` bytes are known to hold no LF.
#[inline]
pub fn find(buffer: &[u8], searched: usize) -> Found<'_> {
    let end = buffer.len().min(LONGEST_REQUEST);
    let unsearched = buffer.get(searched..end).unwrap_or_default();
    match position_of_lf(unsearched) {
        Some(offset) => {
            let lf = searched + offset;
            Found::Line {
                line: without_cr(&buffer[..lf]),
                length: lf + 1,
            }
        }
        None if end == LONGEST_REQUEST => Found::TooLong,
        None => Found::Part,
    }
}

/// Where the first LF is. Most requests are short: their first eight bytes are looked at together.
#[inline]
fn position_of_lf(bytes: &[u8]) -> Option<usize> {
    const ONES: u64 = u64::from_ne_bytes([1; 8]);
    const LFS: u64 = u64::from_ne_bytes([b'\n'; 8]);
    if let Some(eight) = bytes.first_chunk() {
        // Zero where an LF is. Subtracting one borrows from a zero, and the lowest borrow is the first zero.
        let zero_at_lf = u64::from_le_bytes(*eight) ^ LFS;
        let borrows = zero_at_lf.wrapping_sub(ONES) & !zero_at_lf & ONES << 7;
        if borrows != 0 {
            return Some(borrows.trailing_zeros() as usize / 8);
        }
    }
    bytes.iter().position(|&byte| byte == b'\n')
}

/// The last line of an input that ended without an LF.
pub fn last(buffer: &[u8]) -> Found<'_> {
    match find(buffer, 0) {
        Found::Part => Found::Line {
            line: without_cr(buffer),
            length: buffer.len(),
        },
        found => found,
    }
}

#[inline]
fn without_cr(line: &[u8]) -> &[u8] {
    line.strip_suffix(b"\r").unwrap_or(line)
}

/// Appends `reply` to `output`, as one line.
#[inline]
pub fn write_reply(reply: &Reply<'_>, output: &mut Vec<u8>) {
    let text = match reply {
        Reply::Number(number) => return write_number(*number, output),
        Reply::Text(text) => *text,
        Reply::Owned(text) => text,
    };
    output.extend_from_slice(text.as_bytes());
    output.push(b'\n');
}

/// Appends `ERR`, the word of `refusal` and its sentence to `output`, as one line.
pub fn write_refusal(refusal: &Refusal<'_>, output: &mut Vec<u8>) {
    output.extend_from_slice(b"ERR ");
    output.extend_from_slice(refusal.word().as_bytes());
    output.push(b' ');
    // Writing into a Vec can't fail.
    let _ = write!(Ascii(output), "{refusal}");
    output.push(b'\n');
}

/// Appends decimal digits and the end of the line. Most numbers are small, and few bytes of a known number are copied
/// without a call: with many requests to a read, `write!` would be half of the work.
#[inline]
fn write_number(number: u64, output: &mut Vec<u8>) {
    let digit = |power: u64| b'0' + (number / power % 10) as u8;
    match number {
        0..=9 => output.extend_from_slice(&[digit(1), b'\n']),
        10..=99 => output.extend_from_slice(&[digit(10), digit(1), b'\n']),
        100..=999 => output.extend_from_slice(&[digit(100), digit(10), digit(1), b'\n']),
        // Writing into a Vec can't fail.
        _ => drop(writeln!(output, "{number}")),
    }
}

/// A part of a request as an error repeats it: between double quotes, cut, and with everything escaped that is not
/// printable ASCII, so that nothing hostile reaches a reply or the log.
pub struct Quoted<'a>(pub &'a [u8]);

impl fmt::Display for Quoted<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_char('"')?;
        for &byte in self.0.iter().take(LONGEST_QUOTE) {
            match byte {
                b'"' | b'\\' => write!(f, "\\{}", byte as char)?,
                b' '..=b'~' => f.write_char(byte as char)?,
                _ => write!(f, "\\x{byte:02X}")?,
            }
        }
        f.write_char('"')
    }
}

/// Takes formatted text into a byte buffer and lets nothing through that would break the line: a reply is one line of
/// printable ASCII even if a message should be wrong.
struct Ascii<'a>(&'a mut Vec<u8>);

impl fmt::Write for Ascii<'_> {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        self.0.extend(text.bytes().map(|byte| match byte {
            b' '..=b'~' => byte,
            _ => b'?',
        }));
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn number(value: u64) -> String {
        let mut output = Vec::new();
        write_reply(&Reply::Number(value), &mut output);
        String::from_utf8(output).unwrap()
    }

    #[test]
    fn numbers_are_written_as_std_writes_them() {
        for value in [0, 1, 9, 10, 42, 99, 100, 999, 1000, 12_345, u64::MAX] {
            assert_eq!(number(value), format!("{value}\n"));
        }
    }

    #[test]
    fn a_line_may_be_1024_bytes_long_with_its_end() {
        let mut longest = vec![b'x'; LONGEST_REQUEST - 1];
        longest.push(b'\n');
        assert_eq!(
            find(&longest, 0),
            Found::Line {
                line: &longest[..LONGEST_REQUEST - 1],
                length: LONGEST_REQUEST
            }
        );
        let longer = [b"x", &longest[..]].concat();
        assert_eq!(find(&longer, 0), Found::TooLong);
        assert_eq!(last(&longer[..LONGEST_REQUEST]), Found::TooLong);
        assert_eq!(find(&longer[..LONGEST_REQUEST - 1], 0), Found::Part);
    }

    #[test]
    fn the_first_lf_is_found_wherever_it_is() {
        for length in 0..20 {
            for first in 0..length {
                for filler in [b'x', 0, b'\n' - 1, b'\n' + 1, 0x8a, 0xff] {
                    let mut bytes = vec![filler; length];
                    assert_eq!(position_of_lf(&bytes), None);
                    bytes[first..].fill(b'\n');
                    assert_eq!(position_of_lf(&bytes), Some(first));
                    bytes[first + 1..].fill(filler);
                    assert_eq!(position_of_lf(&bytes), Some(first));
                }
            }
        }
    }

    #[test]
    fn one_cr_before_the_lf_belongs_to_the_end() {
        let line = |bytes| match find(bytes, 0) {
            Found::Line { line, .. } => line.to_vec(),
            found => panic!("{found:?}"),
        };
        assert_eq!(line(b"WHO\r\nWHY"), b"WHO");
        assert_eq!(line(b"WHO\r\r\n"), b"WHO\r");
        assert_eq!(line(b"\n"), b"");
        assert_eq!(
            last(b"WHO\r"),
            Found::Line {
                line: b"WHO",
                length: 4
            }
        );
    }

    #[test]
    fn what_was_searched_is_not_searched_again() {
        assert_eq!(find(b"WH", 2), Found::Part);
        assert_eq!(
            find(b"WHO\n", 2),
            Found::Line {
                line: b"WHO",
                length: 4
            }
        );
    }

    #[test]
    fn quotes_are_cut_and_escaped() {
        assert_eq!(
            Quoted(b"a\"b\\c\x1b\xff").to_string(),
            r#""a\"b\\c\x1B\xFF""#
        );
        assert_eq!(Quoted(&[b'x'; 100]).to_string().len(), LONGEST_QUOTE + 2);
    }
}
