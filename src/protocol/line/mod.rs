//! The line protocol: one line per request and one line per reply. `docs/protocol.md` specifies it.

mod frame;

use std::fmt::{self, Write as _};
use std::io::Write as _;

use super::{Codec, Exchange, FULL_OUTPUT, Goodbye, Input, Next, Progress, Protocol, READ_BUFFER};
use shared::command::{CommandClass, CommandError, Line, Outcome, Request, Value, join};

pub use self::frame::LONGEST_REQUEST;
use self::frame::{FrameResult, find, last};

// The longest request fits into the session's buffer: this codec keeps nothing itself.
const _: () = assert!(LONGEST_REQUEST <= READ_BUFFER);

/// The line protocol.
pub struct LineProtocol;

impl Protocol for LineProtocol {
    fn scheme(&self) -> &'static str {
        "tcp"
    }

    fn open(&self, _: &[u8]) -> Box<dyn Codec> {
        Box::new(LineCodec)
    }

    fn reject(&self, error: &CommandError<'_>, output: &mut Vec<u8>) {
        write_error(error, output);
    }
}

/// Codec of the line protocol. It has no state: all of it is in the unused input.
pub struct LineCodec;

impl Codec for LineCodec {
    fn receive(&mut self, input: Input<'_>, exchange: &mut Exchange<'_>) -> Progress {
        match exchange.log.is_some() {
            true => receive::<true>(input, exchange),
            false => receive::<false>(input, exchange),
        }
    }

    fn goodbye(&mut self, why: Goodbye, output: &mut Vec<u8>) {
        let error = match why {
            Goodbye::Idle => CommandError::Idle,
            Goodbye::MadeRoom => CommandError::MadeRoom,
            Goodbye::Panicked => {
                // The requests before the failed one get their replies.
                let end = output.iter().rposition(|&byte| byte == b'\n');
                output.truncate(end.map_or(0, |lf| lf + 1));
                CommandError::Internal
            }
            Goodbye::Drained => return,
        };
        write_error(&error, output);
    }
}

/// Answers all whole lines up to a deferred one; the last line of the last input may lack its LF.
#[inline]
fn receive<const LOGS: bool>(input: Input<'_>, exchange: &mut Exchange<'_>) -> Progress {
    let (mut used, mut searched) = (0, input.seen);
    loop {
        let bytes = &input.bytes[used..];
        let (frame, is_last) = match find(bytes, std::mem::take(&mut searched)) {
            FrameResult::Partial if input.is_last => (last(bytes), true),
            frame => (frame, false),
        };
        let next = match frame {
            FrameResult::Line { line, length } => {
                let before = exchange.output.len();
                let answered = answer(line, exchange);
                if answered.outcome == Outcome::DEFERRED {
                    return Progress {
                        used,
                        next: Next::Defer,
                    };
                }
                exchange.counters.note(answered.outcome);
                if LOGS && let Some(log) = &mut exchange.log {
                    log.note(&bytes[..length], &exchange.output[before..]);
                }
                used += length;
                match answered.closes {
                    true => Next::Close,
                    false if is_last => Next::More,
                    false if exchange.output.len() >= FULL_OUTPUT => Next::Again,
                    false => continue,
                }
            }
            FrameResult::Partial => Next::More,
            FrameResult::TooLong => {
                let error = CommandError::TooLong(LONGEST_REQUEST);
                write_error(&error, exchange.output);
                exchange.counters.note(Outcome::refused(None, &error));
                Next::CloseBroken
            }
        };
        return Progress { used, next };
    }
}

/// Result of answering a request.
struct Answered {
    /// The outcome, for the counters.
    outcome: Outcome,
    /// Whether the server closes the connection after the reply.
    closes: bool,
}

/// Answers one request: appends the reply to the output, or nothing if the request is blank or
/// deferred.
#[inline]
fn answer(line: Line<'_>, exchange: &mut Exchange<'_>) -> Answered {
    let context = exchange.context;
    // By reference: moving the request and its reply would cost more than producing them.
    match &context.parse(line, exchange.read_at) {
        None => Answered {
            outcome: Outcome::BLANK,
            closes: false,
        },
        Some(Ok(request)) => match &request.execute(context) {
            Ok(value) => {
                write_value(value, exchange.output);
                Answered {
                    outcome: Outcome::value(request.index).of(request.spec.class),
                    closes: request.spec.class == CommandClass::Quit,
                }
            }
            Err(error) => answer_error(Some(request), error, exchange.output),
        },
        Some(Err(error)) => answer_error(None, error, exchange.output),
    }
}

#[cold]
fn answer_error(
    request: Option<&Request<'_>>,
    error: &CommandError<'_>,
    output: &mut Vec<u8>,
) -> Answered {
    let outcome = match (error, request) {
        (CommandError::Deferred, _) => Outcome::DEFERRED,
        (_, None) => Outcome::refused(None, error),
        (_, Some(request)) => Outcome::refused(Some(request.index), error).of(request.spec.class),
    };
    if outcome != Outcome::DEFERRED {
        write_error(error, output);
    }
    Answered {
        outcome,
        closes: false,
    }
}

/// Appends `value` to `output`, as one line.
#[inline]
fn write_value(value: &Value<'_>, output: &mut Vec<u8>) {
    match value {
        Value::Integer(number) => return write_integer(*number, output),
        Value::Text(text) => output.extend_from_slice(text.as_bytes()),
        Value::Integers(numbers) => output.extend_from_slice(join(numbers).as_bytes()),
        // Writing into a Vec can't fail.
        Value::User(_) | Value::Users(_) => drop(write!(output, "{value}")),
    }
    output.push(b'\n');
}

/// Appends `ERR`, the word of `error` and its sentence to `output`, as one line.
#[cold]
fn write_error(error: &CommandError<'_>, output: &mut Vec<u8>) {
    output.extend_from_slice(b"ERR ");
    output.extend_from_slice(error.word().as_bytes());
    output.push(b' ');
    // Writing into a Vec can't fail.
    let _ = write!(Ascii(output), "{error}");
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
}
