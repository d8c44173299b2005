//! The line protocol: a request is a line, and so is its reply. `docs/protocol.md` is the contract.

use std::fmt::{self, Write as _};

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
    match unsearched.iter().position(|&byte| byte == b'\n') {
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
    match reply {
        Reply::Text(text) => output.extend_from_slice(text.as_bytes()),
        Reply::Number(number) => write_number(*number, output),
        Reply::Owned(text) => output.extend_from_slice(text.as_bytes()),
    }
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

/// Decimal digits, several times faster than `write!`: at 128 requests a read this is a tenth of the work.
fn write_number(mut number: u64, output: &mut Vec<u8>) {
    let mut digits = [0u8; 20];
    let mut start = digits.len();
    loop {
        start -= 1;
        digits[start] = b'0' + (number % 10) as u8;
        number /= 10;
        if number == 0 {
            break;
        }
    }
    output.extend_from_slice(&digits[start..]);
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
        for value in [0, 1, 9, 10, 42, 99, 100, 12_345, u64::MAX - 1, u64::MAX] {
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
