//! Decoder of a request's body that arrives in pieces: of a known length, or chunked (RFC 9112,
//! section 7.1).

use serde::{Deserialize, Serialize};

use super::{Framing, Problem};

/// The longest body in bytes.
pub const LONGEST_BODY: usize = 1024 * 1024;

/// The longest line between chunks in bytes: a size with its extensions, or a trailer field.
const LONGEST_LINE: usize = 256;

/// The most trailer fields.
const MAX_TRAILERS: u8 = 64;

/// State of the decoder: what comes next.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum BodyDecoder {
    /// The last bytes of the body, as many.
    Rest(usize),
    /// The line with the size of a chunk.
    Size,
    /// The rest of a chunk, of this many bytes.
    Chunk(usize),
    /// The end of a chunk's last line.
    ChunkEnd,
    /// This many trailer fields at most, or the blank line that ends the body.
    Trailers(u8),
    /// Nothing: the body is complete.
    Done,
}

impl BodyDecoder {
    /// Returns the decoder of a body.
    pub fn new(framing: Framing) -> Result<Self, Problem> {
        match framing {
            Framing::Chunked => Ok(BodyDecoder::Size),
            Framing::Sized(0) => Ok(BodyDecoder::Done),
            Framing::Sized(length) => match usize::try_from(length) {
                Ok(length) if length <= LONGEST_BODY => Ok(BodyDecoder::Rest(length)),
                _ => Err(Problem::Body),
            },
        }
    }

    /// Decodes what it can of `input`, appends it to `body`, and returns the number of bytes used.
    /// The others are the beginning of a line of at most 256 bytes or, if the body is complete, of
    /// the next request.
    pub fn decode(&mut self, input: &[u8], body: &mut Vec<u8>) -> Result<usize, Problem> {
        let mut used = 0;
        loop {
            let rest = &input[used..];
            if let BodyDecoder::Rest(missing) | BodyDecoder::Chunk(missing) = self {
                let piece = &rest[..rest.len().min(*missing)];
                if body.capacity() - body.len() < piece.len() {
                    // Never more than the longest body, which the memory of all counts.
                    let wanted =
                        (2 * body.capacity()).clamp(body.len() + piece.len(), LONGEST_BODY);
                    body.reserve_exact(wanted - body.len());
                }
                body.extend_from_slice(piece);
                used += piece.len();
                *missing -= piece.len();
                *self = match *self {
                    BodyDecoder::Rest(0) => BodyDecoder::Done,
                    BodyDecoder::Chunk(0) => BodyDecoder::ChunkEnd,
                    _ => return Ok(used),
                };
                continue;
            }
            if *self == BodyDecoder::Done {
                return Ok(used);
            }
            let Some(line) = line(rest)? else {
                return Ok(used);
            };
            used += line.len();
            *self = match *self {
                BodyDecoder::Size => match chunk_size(line)? {
                    0 => BodyDecoder::Trailers(MAX_TRAILERS),
                    size if size > (LONGEST_BODY - body.len()) as u64 => {
                        return Err(Problem::Body);
                    }
                    size => BodyDecoder::Chunk(size as usize),
                },
                BodyDecoder::ChunkEnd if line == b"\r\n" => BodyDecoder::Size,
                BodyDecoder::Trailers(_) if line == b"\r\n" => BodyDecoder::Done,
                BodyDecoder::Trailers(0) => return Err(Problem::TooLong),
                BodyDecoder::Trailers(more) => BodyDecoder::Trailers(more - 1),
                _ => return Err(Problem::Malformed("a chunk is longer than its size")),
            };
        }
    }
}

/// Returns the line at the beginning of `input` with its end, or `None` if it is incomplete.
fn line(input: &[u8]) -> Result<Option<&[u8]>, Problem> {
    let window = &input[..input.len().min(LONGEST_LINE)];
    match window.iter().position(|byte| *byte == b'\n') {
        Some(end) if window[..end].ends_with(b"\r") => Ok(Some(&window[..=end])),
        Some(_) => Err(Problem::Malformed("a line ends with CR LF")),
        None if window.len() == LONGEST_LINE => {
            Err(Problem::Malformed("a line between chunks is too long"))
        }
        None => Ok(None),
    }
}

/// Returns the size in the first line of a chunk. The parser takes a line without digits for 0.
fn chunk_size(line: &[u8]) -> Result<u64, Problem> {
    match httparse::parse_chunk_size(line) {
        Ok(httparse::Status::Complete((_, size))) if line[0].is_ascii_hexdigit() => Ok(size),
        _ => Err(Problem::Malformed("the size of a chunk is not a number")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const CHUNKED: &[u8] =
        b"3\r\nabc\r\n0A;name=\"a b\"\r\n0123456789\r\n000\r\nTrailer: x\r\n\r\nNEXT";

    #[test]
    fn a_body_is_the_same_however_it_is_cut() {
        for cut in 0..=CHUNKED.len() {
            let (mut decoder, mut body) = (BodyDecoder::Size, Vec::new());
            let used = decoder.decode(&CHUNKED[..cut], &mut body).unwrap();
            let used = used + decoder.decode(&CHUNKED[used..], &mut body).unwrap();
            assert_eq!(decoder, BodyDecoder::Done);
            assert_eq!(
                (&*body, &CHUNKED[used..]),
                (&b"abc0123456789"[..], &b"NEXT"[..])
            );
        }
    }

    #[test]
    fn what_is_not_chunked_or_too_long_is_refused() {
        let long = format!("1;{}\r\n", "x".repeat(LONGEST_LINE));
        let trailers = format!("0\r\n{}", "a: b\r\n".repeat(65));
        for (text, problem) in [
            ("\r\n", "Malformed"),
            (";x\r\n", "Malformed"),
            (" 1\r\n", "Malformed"),
            ("+1\r\n", "Malformed"),
            ("0x1\r\n", "Malformed"),
            ("1\n", "Malformed"),
            ("1;a\nb\r\n", "Malformed"),
            ("1;a\rb\r\n", "Malformed"),
            ("1\r\nab\r\n", "Malformed"),
            ("12345678123456781\r\n", "Malformed"),
            (&long, "Malformed"),
            ("100001\r\n", "Body"),
            ("fffff\r\n{}\r\n2\r\n", "Body"),
            (&trailers, "TooLong"),
        ] {
            let text = text.replace("{}", &"x".repeat(LONGEST_BODY - 1));
            let error = BodyDecoder::Size.decode(text.as_bytes(), &mut Vec::new());
            let error = format!("{:?}", error.unwrap_err());
            assert!(error.starts_with(problem), "{text:.40}: {error}");
        }
    }
}
