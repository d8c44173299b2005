//! Elements: the values of a JSON array, or of a row of JSON values, found in a stream of bytes.
//!
//! Only brackets and strings are looked at: enough to know where a value ends, also one that is no
//! JSON.

use std::io::{self, Read};

use super::LARGEST_USER;

/// Number of bytes that are read at a time.
const CHUNK: usize = 64 * 1024;

/// Finds the values.
pub struct Elements<R> {
    reader: R,
    /// What was read. Its part before `start` is done.
    buffer: Vec<u8>,
    start: usize,
    state: State,
    /// Number of values that were found.
    count: u64,
}

/// A value.
pub enum Element<'a> {
    /// Its bytes.
    Value(&'a [u8]),
    /// It is longer than any user is.
    TooLong,
}

/// Where in the feed `start` is.
#[derive(Clone, Copy, PartialEq)]
enum State {
    /// At its beginning.
    Beginning,
    /// In an array, at its beginning.
    ArrayBeginning,
    /// In an array, behind a comma.
    ArrayComma,
    /// In an array, behind a value.
    ArrayValue,
    /// Behind the array.
    Behind,
    /// Between two values of a row.
    Row,
}

/// Progress within a value.
#[derive(Default)]
struct Scan {
    depth: usize,
    is_text: bool,
    is_escaped: bool,
}

impl<R: Read> Elements<R> {
    /// Returns the values of these bytes.
    pub fn new(reader: R) -> Self {
        Elements {
            reader,
            buffer: Vec::with_capacity(CHUNK),
            start: 0,
            state: State::Beginning,
            count: 0,
        }
    }

    /// Returns the number of values so far.
    pub fn count(&self) -> u64 {
        self.count
    }

    /// Returns the next value, or `None` after the last.
    pub fn next(&mut self) -> io::Result<Option<Element<'_>>> {
        if self.state == State::Beginning {
            while self.buffer.len() < 3 && self.fill()? {}
            if self.buffer.starts_with("\u{feff}".as_bytes()) {
                self.start = 3;
            }
        }
        loop {
            let Some(byte) = self.skip_blanks()? else {
                return match self.state {
                    State::Behind | State::Row => Ok(None),
                    State::Beginning => Err(broken_off("before its first value".to_string())),
                    _ => Err(broken_off(format!("after {} of its values", self.count))),
                };
            };
            self.state = match (self.state, byte) {
                (State::Beginning, b'[') => State::ArrayBeginning,
                (State::ArrayBeginning | State::ArrayValue, b']') => State::Behind,
                (State::ArrayValue, b',') => State::ArrayComma,
                (State::ArrayBeginning | State::ArrayComma, b) if begins_value(b) => {
                    self.state = State::ArrayValue;
                    return self.value().map(Some);
                }
                (State::Beginning | State::Row, b) if begins_value(b) => {
                    self.state = State::Row;
                    return self.value().map(Some);
                }
                (_, other) => {
                    let (count, other) = (self.count, other.escape_ascii());
                    let what = format!("the feed is no JSON: after {count} values comes '{other}'");
                    return Err(io::Error::new(io::ErrorKind::InvalidData, what));
                }
            };
            self.start += 1;
        }
    }

    /// Skips blanks. Returns the byte behind them, or `None` at the end.
    fn skip_blanks(&mut self) -> io::Result<Option<u8>> {
        loop {
            let rest = &self.buffer[self.start..];
            if let Some(blanks) = rest.iter().position(|byte| !is_blank(*byte)) {
                self.start += blanks;
                return Ok(self.buffer.get(self.start).copied());
            }
            self.start = self.buffer.len();
            if !self.fill()? {
                return Ok(None);
            }
        }
    }

    /// Returns the value that begins at `start`.
    fn value(&mut self) -> io::Result<Element<'_>> {
        let (mut scan, mut length, mut is_too_long) = (Scan::default(), 0, false);
        loop {
            let rest = &self.buffer[self.start + length..];
            let (used, is_whole) = scan.advance(rest);
            length += used;
            if is_whole {
                break;
            }
            if length > LARGEST_USER {
                // It is looked at, but not kept.
                is_too_long = true;
                self.start += length;
                length = 0;
            }
            if !self.fill()? {
                // A number or a word ends with the feed.
                if scan.depth == 0 && !scan.is_text && self.state == State::Row {
                    break;
                }
                let count = self.count;
                return Err(broken_off(format!(
                    "within a value, after {count} before it"
                )));
            }
        }
        self.count += 1;
        let value = &self.buffer[self.start..self.start + length];
        self.start += length;
        match is_too_long || length > LARGEST_USER {
            true => Ok(Element::TooLong),
            false => Ok(Element::Value(value)),
        }
    }

    /// Reads more. Returns whether there is more.
    fn fill(&mut self) -> io::Result<bool> {
        self.buffer.drain(..self.start);
        self.start = 0;
        let before = self.buffer.len();
        self.buffer.resize(before + CHUNK, 0);
        let read = loop {
            match self.reader.read(&mut self.buffer[before..]) {
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                read => break read,
            }
        };
        self.buffer.truncate(before + *read.as_ref().unwrap_or(&0));
        Ok(read? > 0)
    }
}

impl Scan {
    /// Looks at the next bytes of a value. Returns how many are its, and whether it ends there.
    fn advance(&mut self, bytes: &[u8]) -> (usize, bool) {
        for (index, &byte) in bytes.iter().enumerate() {
            if self.is_text {
                match byte {
                    _ if self.is_escaped => self.is_escaped = false,
                    b'\\' => self.is_escaped = true,
                    b'"' => {
                        self.is_text = false;
                        if self.depth == 0 {
                            return (index + 1, true);
                        }
                    }
                    _ => {}
                }
                continue;
            }
            match byte {
                b'"' => self.is_text = true,
                b'[' | b'{' => self.depth += 1,
                b']' | b'}' if self.depth > 1 => self.depth -= 1,
                b']' | b'}' if self.depth == 1 => {
                    self.depth = 0;
                    return (index + 1, true);
                }
                // Behind a number or a word.
                b']' | b'}' | b',' if self.depth == 0 => return (index, true),
                byte if self.depth == 0 && is_blank(byte) => return (index, true),
                _ => {}
            }
        }
        (bytes.len(), false)
    }
}

fn is_blank(byte: u8) -> bool {
    matches!(byte, b' ' | b'\n' | b'\r' | b'\t')
}

fn begins_value(byte: u8) -> bool {
    matches!(
        byte,
        b'{' | b'[' | b'"' | b'-' | b'0'..=b'9' | b't' | b'f' | b'n'
    )
}

fn broken_off(wherever: String) -> io::Error {
    let what = format!("the feed breaks off {wherever}");
    io::Error::new(io::ErrorKind::UnexpectedEof, what)
}
