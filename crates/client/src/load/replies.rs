//! Verifies replies byte for byte, however the stream is split.

use shared::dial::{LONGEST_REPLY, Refusal, Reply, is_fatal};
use shared::text::quoted;

/// Number of bytes to read at a time.
pub const CHUNK: usize = 64 * 1024;

/// What every reply must be.
pub enum Expected {
    /// These lines in turn, all of the same length.
    Lines {
        /// Length of a line, its end included.
        length: usize,
        /// Length of all lines.
        cycle: usize,
        /// The lines, repeated so that they cover a whole read wherever it begins.
        repeated: Vec<u8>,
    },
    /// A number of clients, whose lower bound the caller checks.
    Count,
}

impl Expected {
    /// Expects this line, given here without its end. Several lines of the same length, separated
    /// by line ends, are expected in turn, by each client from another one on.
    pub fn same_as(lines: &[u8]) -> Self {
        let (length, lines) = cycle(lines);
        Expected::Lines {
            length,
            cycle: lines.len(),
            repeated: lines.repeat(CHUNK / lines.len() + 2),
        }
    }

    /// Expects exactly these bytes, which are no line.
    pub fn raw(reply: &[u8]) -> Self {
        Expected::Lines {
            length: reply.len(),
            cycle: reply.len(),
            repeated: reply.repeat(CHUNK / reply.len() + 2),
        }
    }

    /// Expects replies like the first one, given here without its end: to WHO any number.
    pub fn like(request: &[u8], line: &[u8]) -> Self {
        match request.trim_ascii().eq_ignore_ascii_case(b"WHO") && number(line).is_some() {
            true => Expected::Count,
            false => Expected::same_as(line),
        }
    }

    /// Verifies a line that is not one of [`Expected::Lines`].
    fn verify(&self, line: &[u8]) -> Verdict {
        if let (Expected::Count, Some(number)) = (self, number(line)) {
            return Verdict::Count(number);
        }
        match Reply::read("", line) {
            Ok(Reply::Refused(Refusal { word, .. })) => Verdict::Refused {
                ends: is_fatal(&word),
                line: quoted(line),
                word,
            },
            _ => Verdict::Wrong(quoted(line)),
        }
    }
}

/// Returns the length of the first of these lines, its end included, and all lines with the end of
/// the last.
pub fn cycle(lines: &[u8]) -> (usize, Vec<u8>) {
    let lines = [lines, b"\n"].concat();
    let end = lines.iter().position(|byte| *byte == b'\n');
    (end.map_or(1, |end| end + 1), lines)
}

/// Parses a line of decimal digits only.
fn number(line: &[u8]) -> Option<u64> {
    if !line.iter().all(u8::is_ascii_digit) {
        return None;
    }
    std::str::from_utf8(line).ok()?.parse().ok()
}

/// Result of verifying a reply.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// The expected line.
    Right,
    /// A number of clients.
    Count(u64),
    /// An error: its word, the whole line in quotes, and whether the server closes the connection
    /// after it.
    Refused {
        word: String,
        line: String,
        ends: bool,
    },
    /// Anything else, in quotes.
    Wrong(String),
}

/// A number of consecutive replies with the same verdict.
#[derive(Debug, PartialEq, Eq)]
pub struct Verified {
    pub count: u32,
    pub verdict: Verdict,
}

/// State of the reply stream of a connection.
#[derive(Default)]
pub struct Reading {
    /// Position in the cycle of the next expected line.
    position: usize,
    /// The part of the next line that was received; at most [`LONGEST_REPLY`] bytes.
    pub part: Vec<u8>,
}

impl Reading {
    /// Begins a connection of the client with this number.
    pub fn new(expected: &Expected, number: u64) -> Self {
        let position = match expected {
            Expected::Lines { length, cycle, .. } => number as usize % (cycle / length) * length,
            Expected::Count => 0,
        };
        let part = Vec::new();
        Reading { position, part }
    }

    /// Takes the next replies from `bytes`, which begin with [`part`](Reading::part). Returns
    /// `None` if the rest is an incomplete reply. A line that has no end within [`LONGEST_REPLY`]
    /// is wrong.
    pub fn next(&mut self, expected: &Expected, bytes: &mut &[u8]) -> Option<Verified> {
        if let Expected::Lines {
            length, repeated, ..
        } = expected
        {
            let right = common(bytes, &repeated[self.position..]) / length;
            if right > 0 {
                *bytes = &bytes[right * length..];
                return Some(self.verified(expected, right, Verdict::Right));
            }
        }
        let verdict = match bytes.iter().position(|byte| *byte == b'\n') {
            Some(end) => {
                let line = &bytes[..end];
                *bytes = &bytes[end + 1..];
                expected.verify(line)
            }
            None if bytes.len() > LONGEST_REPLY => Verdict::Wrong(quoted(std::mem::take(bytes))),
            None => return None,
        };
        Some(self.verified(expected, 1, verdict))
    }

    /// Moves on in the cycle of the expected lines.
    fn verified(&mut self, expected: &Expected, count: usize, verdict: Verdict) -> Verified {
        if let Expected::Lines { length, cycle, .. } = expected {
            self.position = (self.position + count * length) % cycle;
        }
        let count = count as u32;
        Verified { count, verdict }
    }
}

/// Returns the length of the common prefix.
fn common(read: &[u8], expected: &[u8]) -> usize {
    if expected.get(..read.len()) == Some(read) {
        return read.len();
    }
    let same = read.iter().zip(expected).take_while(|(a, b)| a == b);
    same.count()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Returns the number of right replies in these pieces, and the other verdicts.
    fn verified(expected: &Expected, pieces: &[&[u8]]) -> (u32, Vec<Verdict>) {
        let mut reading = Reading::default();
        let (mut right, mut others) = (0, Vec::new());
        for piece in pieces {
            let bytes = [&reading.part, *piece].concat();
            let mut rest = &bytes[..];
            while let Some(Verified { count, verdict }) = reading.next(expected, &mut rest) {
                match verdict {
                    Verdict::Right => right += count,
                    other => others.push(other),
                }
            }
            reading.part = rest.to_vec();
        }
        (right, others)
    }

    #[test]
    fn replies_are_verified_however_they_are_cut() {
        let expected = Expected::same_as(b"42");
        let many = b"42\n".repeat(CHUNK / 3);
        let pieces: &[&[u8]] = &[b"42\n4", b"2\n", &many, b"4"];
        assert_eq!(verified(&expected, pieces), (CHUNK as u32 / 3 + 2, vec![]));
        let stream = b"42\n43\n42\n\n42\nERR UNAVAILABLE so\nERR BUSY full\nERR x\n421\n42\r\n42\n";
        let wrong = |line: &str| Verdict::Wrong(format!("\"{line}\""));
        let refused = |word: &str, line: &str, ends| Verdict::Refused {
            word: word.to_string(),
            line: format!("\"{line}\""),
            ends,
        };
        let others = vec![
            wrong("43"),
            wrong(""),
            refused("UNAVAILABLE", "ERR UNAVAILABLE so", false),
            refused("BUSY", "ERR BUSY full", true),
            wrong("ERR x"),
            wrong("421"),
            wrong("42\\x0d"),
        ];
        for cut in 0..stream.len() {
            let (first, second) = stream.split_at(cut);
            let all = verified(&expected, &[first, second]);
            assert_eq!(all, (4, others.clone()), "{cut}");
        }
    }

    #[test]
    fn each_request_has_its_own_reply() {
        let expected = Expected::same_as(b"one\ntwo\nsix");
        let many = b"one\ntwo\nsix\n".repeat(CHUNK / 12);
        let all = verified(&expected, &[b"one\ntw", b"o\nsix\n", &many]);
        assert_eq!(all, (CHUNK as u32 / 4 + 2, vec![]));
        let wrong = |line: &str| Verdict::Wrong(format!("\"{line}\""));
        let swapped = verified(&expected, &[b"one\nsix\nt", b"wo\none\ntwo\ntwo\n"]);
        assert_eq!(swapped, (3, vec![wrong("six"), wrong("two"), wrong("two")]));
        let mut third = Reading::new(&expected, 5);
        let count = |verified: Option<Verified>| verified.map(|verified| verified.count);
        assert_eq!(
            count(third.next(&expected, &mut &b"six\none\n"[..])),
            Some(2)
        );
    }

    #[test]
    fn counts_are_digits_only_and_a_line_without_an_end_is_wrong() {
        let one = |bytes: &[u8]| verified(&Expected::Count, &[bytes]).1.remove(0);
        assert_eq!(one(b"17\n"), Verdict::Count(17));
        for bytes in [&b"+1\n"[..], b"\n", b"1 \n", b"99999999999999999999\n"] {
            assert!(matches!(one(bytes), Verdict::Wrong(_)), "{bytes:?}");
        }
        assert!(matches!(one(&[b'1'; LONGEST_REPLY + 1]), Verdict::Wrong(_)));
    }
}
