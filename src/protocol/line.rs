//! The line protocol: one line per request and one line per reply. `docs/protocol.md` specifies it.

use std::fmt::{self, Write as _};
use std::io::Write as _;

use shared::clock::Nanos;
use shared::command::{CommandClass, CommandError, Context, Line, Outcome, Request, Value, join};

/// The longest request in bytes, its line end included.
pub const LONGEST_REQUEST: usize = 1024;

/// Result of searching the beginning of a buffer for a line.
#[derive(Debug, PartialEq, Eq)]
pub enum Found<'a> {
    /// A complete line.
    Line {
        /// The line without its end.
        line: Line<'a>,
        /// Number of bytes that it takes in the buffer, its end included.
        length: usize,
    },
    /// The beginning of a line that may still become complete.
    Part,
    /// The beginning of a line that is already too long.
    TooLong,
}

/// Finds the line at the beginning of `buffer`, whose first `searched` bytes are known to hold no
/// LF.
#[inline]
pub fn find(buffer: &[u8], searched: usize) -> Found<'_> {
    // Most requests are short: test their first eight bytes together.
    if let Some(eight) = buffer.first_chunk::<8>()
        && let Some(lf) = eight.iter().position(|&byte| byte == b'\n')
    {
        let eight = u64::from_le_bytes(*eight);
        return Found::Line {
            line: Line::within_eight(buffer, eight, without_cr(&buffer[..lf])),
            length: lf + 1,
        };
    }
    let end = buffer.len().min(LONGEST_REQUEST);
    let unsearched = buffer.get(searched..end).unwrap_or_default();
    match unsearched.iter().position(|&byte| byte == b'\n') {
        Some(offset) => {
            let lf = searched + offset;
            Found::Line {
                line: Line::new(&buffer[..without_cr(&buffer[..lf])]),
                length: lf + 1,
            }
        }
        None if end == LONGEST_REQUEST => Found::TooLong,
        None => Found::Part,
    }
}

/// Returns the last line of an input that ended without an LF.
pub fn last(buffer: &[u8]) -> Found<'_> {
    match find(buffer, 0) {
        Found::Part => Found::Line {
            line: Line::new(&buffer[..without_cr(buffer)]),
            length: buffer.len(),
        },
        found => found,
    }
}

/// Returns the length of `line` without a CR at its end.
#[inline]
fn without_cr(line: &[u8]) -> usize {
    line.len() - usize::from(line.last() == Some(&b'\r'))
}

/// Result of answering a request.
pub struct Answered {
    /// The outcome, for the counters.
    pub outcome: Outcome,
    /// Whether the server closes the connection after the reply.
    pub close_after_write: bool,
}

/// Answers one request, which was read at `asked`: appends the reply to `output`, or nothing if the
/// request is blank or deferred.
#[inline]
pub fn answer(context: &Context, line: Line<'_>, asked: Nanos, output: &mut Vec<u8>) -> Answered {
    // By reference: moving the request and its reply would cost more than producing them.
    match &context.parse(line, asked) {
        None => Answered {
            outcome: Outcome::BLANK,
            close_after_write: false,
        },
        Some(Ok(request)) => match &request.execute(context) {
            Ok(value) => {
                write_value(value, output);
                Answered {
                    outcome: Outcome::value(request.index).of(request.spec.class),
                    close_after_write: request.spec.class == CommandClass::Quit,
                }
            }
            Err(refusal) => refuse(Some(request), refusal, output),
        },
        Some(Err(refusal)) => refuse(None, refusal, output),
    }
}

#[cold]
fn refuse(
    request: Option<&Request<'_>>,
    refusal: &CommandError<'_>,
    output: &mut Vec<u8>,
) -> Answered {
    let outcome = match (refusal, request) {
        (CommandError::Deferred, _) => Outcome::DEFERRED,
        (_, None) => Outcome::refused(None, refusal),
        (_, Some(request)) => Outcome::refused(Some(request.index), refusal).of(request.spec.class),
    };
    if outcome != Outcome::DEFERRED {
        write_refusal(refusal, output);
    }
    Answered {
        outcome,
        close_after_write: false,
    }
}

/// Appends `value` to `output`, as one line.
#[inline]
fn write_value(value: &Value<'_>, output: &mut Vec<u8>) {
    match value {
        Value::Integer(number) => return write_integer(*number, output),
        Value::Text(text) => output.extend_from_slice(text.as_bytes()),
        Value::Integers(numbers) => output.extend_from_slice(join(numbers).as_bytes()),
    }
    output.push(b'\n');
}

/// Appends `ERR`, the word of `refusal` and its sentence to `output`, as one line.
#[cold]
pub fn write_refusal(refusal: &CommandError<'_>, output: &mut Vec<u8>) {
    output.extend_from_slice(b"ERR ");
    output.extend_from_slice(refusal.word().as_bytes());
    output.push(b' ');
    // Writing into a Vec can't fail.
    let _ = write!(Ascii(output), "{refusal}");
    output.push(b'\n');
}

/// Appends decimal digits and the end of the line. Most numbers are small, and appending an array
/// of known length needs no call: with many requests per read, `write!` would be half of the work.
#[inline]
fn write_integer(number: i64, output: &mut Vec<u8>) {
    let digit = |power: i64| b'0' + (number / power % 10) as u8;
    match number {
        0..=9 => output.extend_from_slice(&[digit(1), b'\n']),
        10..=99 => output.extend_from_slice(&[digit(10), digit(1), b'\n']),
        100..=999 => output.extend_from_slice(&[digit(100), digit(10), digit(1), b'\n']),
        // Writing into a Vec can't fail.
        _ => drop(writeln!(output, "{number}")),
    }
}

/// Writer of formatted text that replaces all bytes that would break the line: a reply is one line
/// of printable ASCII even if a message is wrong.
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

    fn number(value: i64) -> String {
        let mut output = Vec::new();
        write_value(&Value::Integer(value), &mut output);
        String::from_utf8(output).unwrap()
    }

    #[test]
    fn numbers_are_written_as_std_writes_them() {
        for value in [
            0,
            1,
            9,
            10,
            42,
            99,
            100,
            999,
            1000,
            12_345,
            i64::MAX,
            -1,
            i64::MIN,
        ] {
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
                line: Line::new(&longest[..LONGEST_REQUEST - 1]),
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
        let length = |bytes: &[u8]| match find(bytes, 0) {
            Found::Line { length, line } => {
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
            Found::Line { line, .. } => line.text().to_vec(),
            found => panic!("{found:?}"),
        };
        assert_eq!(line(b"WHO\r\nWHY"), b"WHO");
        assert_eq!(line(b"WHO\r\r\n"), b"WHO\r");
        assert_eq!(line(b"\n"), b"");
        assert_eq!(
            last(b"WHO\r"),
            Found::Line {
                line: Line::new(b"WHO"),
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
                line: Line::new(b"WHO"),
                length: 4
            }
        );
    }
}
