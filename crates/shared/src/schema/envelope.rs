//! The envelope of the protobuf protocol: `Request` and `Response`, each behind its length as a
//! varint.

use std::borrow::Cow;

use prost::encoding::{WireType, encode_key, encode_varint, encoded_len_varint, key_len};

use super::{
    Content, Malformed, NOT_PROTOBUF, NOT_UTF8, WRONG_TYPE, encode_arguments, encode_bytes,
    encode_value, field_len, next_field, value_len,
};
use crate::command::{Argument, CommandError, CommandSpec, ErrorCode, Rpc, Value};

/// Largest length of a request.
pub const MAX_MESSAGE: usize = 64 * 1024;

/// Largest length of a response that a client reads.
pub const MAX_RESPONSE: usize = 1024 * 1024;

/// The field of the id, in both messages.
const ID: u32 = 1;

/// The field of an error.
pub(super) const ERROR: u32 = 2;

/// The fields of an error.
const CODE: u32 = 1;
const MESSAGE: u32 = 2;

/// What is at the beginning of some bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Frame<'a> {
    /// A whole message, and how many bytes it takes with its length.
    Message(&'a [u8], usize),
    /// The beginning of a message, and how many bytes it takes with its length, as far as that is known.
    Partial(usize),
    /// A length that is longer than the limit.
    TooLong,
    /// No length.
    Malformed,
}

/// Finds the message at the beginning of `bytes`, of this length at most.
#[inline]
pub fn frame(bytes: &[u8], longest: usize) -> Frame<'_> {
    let (mut length, mut head) = (0, 0);
    for (index, &byte) in bytes.iter().take(5).enumerate() {
        length |= usize::from(byte & 0x7f) << (7 * index);
        if byte < 0x80 {
            head = index + 1;
            break;
        }
    }
    match (head, bytes.get(head..head + length)) {
        (0, _) if bytes.len() >= 5 => Frame::Malformed,
        (0, _) => Frame::Partial(bytes.len() + 1),
        _ if length > longest => Frame::TooLong,
        (_, Some(message)) => Frame::Message(message, head + length),
        (_, None) => Frame::Partial(head + length),
    }
}

/// A decoded envelope.
#[derive(Debug, PartialEq, Eq)]
pub struct Envelope<'a> {
    /// The id, or 0.
    pub id: u64,
    /// The number of the command or of its result, and its message; `None` if no field is known.
    pub content: Option<(u32, Cow<'a, [u8]>)>,
}

/// Decodes an envelope; `is_known` says which fields may hold its content. On an error, the id is
/// the one that was decoded until then.
#[inline]
pub fn decode(
    mut message: &[u8],
    is_known: impl Fn(u32) -> bool,
) -> Result<Envelope<'_>, (u64, Malformed)> {
    let mut envelope = Envelope {
        id: 0,
        content: None,
    };
    while !message.is_empty() {
        let (number, content) = next_field(&mut message).map_err(|error| (envelope.id, error))?;
        match (number, content) {
            (ID, Content::Varint(id)) => envelope.id = id,
            (number, Content::Bytes(bytes)) if is_known(number) => {
                envelope.content = Some(match envelope.content.take() {
                    // Messages in the same field are merged, which is what their bytes in a row
                    // are.
                    Some((before, merged)) if before == number => {
                        let mut merged = merged.into_owned();
                        merged.extend_from_slice(bytes);
                        (number, merged.into())
                    }
                    _ => (number, bytes.into()),
                });
            }
            (number, _) if number == ID || is_known(number) => {
                return Err((envelope.id, WRONG_TYPE));
            }
            _ => {}
        }
    }
    Ok(envelope)
}

/// Appends an envelope with one content of this length, which `write` appends.
#[inline]
fn encode(
    id: u64,
    number: u32,
    content: usize,
    to: &mut Vec<u8>,
    write: impl FnOnce(&mut Vec<u8>),
) {
    let id_len = match id {
        0 => 0,
        id => key_len(ID) + encoded_len_varint(id),
    };
    encode_varint((id_len + field_len(number, content)) as u64, to);
    if id != 0 {
        encode_key(ID, WireType::Varint, to);
        encode_varint(id, to);
    }
    encode_key(number, WireType::LengthDelimited, to);
    encode_varint(content as u64, to);
    write(to);
}

/// Appends the response with the result of the command of this number.
#[inline]
pub fn encode_result(id: u64, number: u32, value: &Value<'_>, to: &mut Vec<u8>) {
    encode(id, number, value_len(value), to, |to| {
        encode_value(value, to)
    });
}

/// Appends the response with this error.
#[cold]
pub fn encode_error(id: u64, error: &CommandError<'_>, to: &mut Vec<u8>) {
    let mut message = Vec::new();
    encode_key(CODE, WireType::Varint, &mut message);
    encode_varint(error.code() as u64, &mut message);
    encode_bytes(MESSAGE, error.to_string().as_bytes(), &mut message);
    encode(id, ERROR, message.len(), to, |to| to.extend(message));
}

/// Appends the request for this command, which has names here.
pub fn encode_request(
    id: u64,
    spec: &CommandSpec,
    rpc: &Rpc,
    arguments: &[Argument<'_>],
    to: &mut Vec<u8>,
) {
    let mut message = Vec::new();
    encode_arguments(spec, arguments, &mut message);
    encode(id, rpc.number, message.len(), to, |to| to.extend(message));
}

/// What a response holds.
#[derive(Debug, PartialEq, Eq)]
pub enum Response<'a> {
    /// The message with the result of the command of this number.
    Result(u32, Cow<'a, [u8]>),
    /// An error: its code, if this program knows it, and its sentence.
    Error(Option<ErrorCode>, String),
}

/// Decodes a response. Returns its id and content.
pub fn decode_response(message: &[u8]) -> Result<(u64, Response<'_>), Malformed> {
    let envelope = decode(message, |number| number >= ERROR).map_err(|(_, error)| error)?;
    let response = match envelope.content {
        Some((ERROR, error)) => {
            let (code, text) = decode_error(&error)?;
            Response::Error(code, text)
        }
        Some((number, message)) => Response::Result(number, message),
        None => return Err(NOT_PROTOBUF),
    };
    Ok((envelope.id, response))
}

fn decode_error(mut message: &[u8]) -> Result<(Option<ErrorCode>, String), Malformed> {
    let (mut code, mut text) = (None, String::new());
    while !message.is_empty() {
        match next_field(&mut message)? {
            (CODE, Content::Varint(number)) => {
                code = ErrorCode::ALL
                    .into_iter()
                    .find(|code| *code as u64 == number);
            }
            (MESSAGE, Content::Bytes(bytes)) => {
                text = String::from_utf8(bytes.to_vec()).map_err(|_| NOT_UTF8)?;
            }
            (CODE | MESSAGE, _) => return Err(WRONG_TYPE),
            _ => {}
        }
    }
    Ok((code, text))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn frames_are_found_however_they_are_cut() {
        for (bytes, expected) in [
            (&b""[..], Frame::Partial(1)),
            (b"\x00", Frame::Message(b"", 1)),
            (b"\x02ab\x01", Frame::Message(b"ab", 3)),
            (b"\x02a", Frame::Partial(3)),
            (b"\x80", Frame::Partial(2)),
            (b"\x80\x01", Frame::Partial(130)),
            (b"\x80\x80\x04", Frame::Partial(3 + MAX_MESSAGE)),
            (b"\x81\x80\x04", Frame::TooLong),
            (b"\xff\xff\xff\xff\x0f", Frame::TooLong),
            (b"\xff\xff\xff\xff\xff", Frame::Malformed),
            (b"\xff\xff\xff\xff", Frame::Partial(5)),
        ] {
            assert_eq!(
                frame(bytes, MAX_MESSAGE),
                expected,
                "{}",
                bytes.escape_ascii()
            );
        }
    }

    #[test]
    fn envelopes_keep_id_and_content() {
        let known = |number| number >= 10;
        let decode = |bytes| decode(bytes, known);
        let envelope = |id, content: Option<(u32, &'static [u8])>| {
            let content = content.map(|(number, bytes)| (number, Cow::Borrowed(bytes)));
            Ok(Envelope { id, content })
        };
        assert_eq!(decode(b""), envelope(0, None));
        assert_eq!(decode(b"\x08\x07\x52\x00"), envelope(7, Some((10, b""))));
        // The order is free, the last command counts, and its parts are merged.
        assert_eq!(
            decode(b"\x52\x00\x5a\x01a\x5a\x01b\x08\x07"),
            envelope(7, Some((11, b"ab")))
        );
        assert_eq!(decode(b"\x08\x07\x18\x01\x22\x01x"), envelope(7, None));
        assert_eq!(decode(b"\x08\x07\x50\x01"), Err((7, WRONG_TYPE)));
        assert_eq!(decode(b"\x0a\x01x"), Err((0, WRONG_TYPE)));
        assert_eq!(decode(b"\x08\x07\x52\x05x"), Err((7, NOT_PROTOBUF)));
        let mut encoded = Vec::new();
        encode_result(300, 10, &Value::Integer(42), &mut encoded);
        assert_eq!(encoded, b"\x07\x08\xac\x02\x52\x02\x08\x2a");
        let content = Response::Result(10, Cow::Borrowed(b"\x08\x2a"));
        assert_eq!(decode_response(&encoded[1..]), Ok((300, content)));
        encoded.clear();
        encode_error(0, &CommandError::Internal, &mut encoded);
        let Ok((0, Response::Error(Some(ErrorCode::Internal), text))) =
            decode_response(&encoded[1..])
        else {
            panic!("{encoded:?}");
        };
        assert!(text.starts_with("the server failed"));
    }
}
