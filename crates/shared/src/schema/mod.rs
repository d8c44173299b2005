//! Protobuf messages of the commands, encoded and decoded by the command table.
//!
//! A command `Add` with the parameters `X` and `Y` has the messages `AddRequest`, whose fields 1 and
//! 2 are its arguments, and `AddResponse`, whose field 1 is its result. [`proto()`] writes them down;
//! [`envelope`] wraps them for the protocol without gRPC. As in proto3, a number that is missing is
//! 0, fields that are not known are skipped, and of a field that comes twice the last counts.

pub mod envelope;
mod proto;
mod user;

use std::borrow::Cow;

use prost::encoding::{
    DecodeContext, WireType, decode_key, decode_varint, encode_key, encode_varint,
    encoded_len_varint, key_len, skip_field,
};

use crate::command::user::User;
use crate::command::{Argument, CommandError, CommandSpec, Count, ParameterType, Value, ValueType};

pub use self::proto::{PACKAGE, USER, proto};

/// The bytes are not a message of the schema. Displays the reason.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Malformed(pub &'static str);

impl From<Malformed> for CommandError<'_> {
    fn from(malformed: Malformed) -> Self {
        CommandError::Malformed(malformed.0)
    }
}

/// The message ends within a field, or a field has a wrong key, length or type.
const NOT_PROTOBUF: Malformed = Malformed("not a protobuf message");
const WRONG_TYPE: Malformed = Malformed("a field has another type than in the schema");
const NOT_UTF8: Malformed = Malformed("a text is not UTF-8");

/// The field of a result in its response.
const RESULT: u32 = 1;

/// A field's content.
#[derive(Clone, Copy, Debug)]
enum Content<'a> {
    Varint(u64),
    Bytes(&'a [u8]),
    /// Of a type that the schema has nowhere.
    Other,
}

/// Splits the first field off `message`. Returns its number and content.
#[inline]
fn next_field<'a>(message: &mut &'a [u8]) -> Result<(u32, Content<'a>), Malformed> {
    let (number, wire_type) = decode_key(message).map_err(|_| NOT_PROTOBUF)?;
    let content = match wire_type {
        WireType::Varint => Content::Varint(varint(message)?),
        WireType::LengthDelimited => {
            let length = usize::try_from(varint(message)?).map_err(|_| NOT_PROTOBUF)?;
            let (content, rest) = message.split_at_checked(length).ok_or(NOT_PROTOBUF)?;
            *message = rest;
            Content::Bytes(content)
        }
        other => {
            skip_field(other, number, message, DecodeContext::default())
                .map_err(|_| NOT_PROTOBUF)?;
            Content::Other
        }
    };
    Ok((number, content))
}

#[inline]
fn varint(bytes: &mut &[u8]) -> Result<u64, Malformed> {
    match **bytes {
        [byte @ ..0x80, ..] => {
            *bytes = &bytes[1..];
            Ok(byte.into())
        }
        _ => decode_varint(bytes).map_err(|_| NOT_PROTOBUF),
    }
}

fn text(bytes: &[u8]) -> Result<&str, Malformed> {
    std::str::from_utf8(bytes).map_err(|_| NOT_UTF8)
}

/// Appends the numbers in `content`, which is one number or a packed list of them.
fn numbers(content: Content<'_>, to: &mut Vec<i64>) -> Result<(), Malformed> {
    match content {
        Content::Varint(number) => to.push(number as i64),
        Content::Bytes(mut packed) => {
            while !packed.is_empty() {
                to.push(varint(&mut packed)? as i64);
            }
        }
        Content::Other => return Err(WRONG_TYPE),
    }
    Ok(())
}

/// Decodes the arguments of a command from its request message. Their number and range are still to
/// be checked: [`CommandSpec::call`] does it.
pub fn decode_arguments<'a>(
    spec: &CommandSpec,
    mut message: &'a [u8],
) -> Result<Vec<Argument<'a>>, Malformed> {
    let zero = |kind: &ParameterType| match kind {
        ParameterType::Integer { .. } => Argument::Integer(0),
        ParameterType::Word => Argument::Word(b""),
        ParameterType::Id => Argument::Text("".into()),
    };
    let scalars = spec.parameters.iter();
    let scalars = scalars.take_while(|parameter| parameter.count == Count::One);
    let mut arguments: Vec<_> = scalars.map(|parameter| zero(&parameter.kind)).collect();
    // Those of a repeated parameter, which is the last.
    let mut further = Vec::new();
    while !message.is_empty() {
        let (number, content) = next_field(&mut message)?;
        let index = number as usize - 1;
        let Some(parameter) = spec.parameters.get(index) else {
            continue;
        };
        let argument = match (&parameter.kind, content) {
            (ParameterType::Integer { .. }, _) if parameter.count == Count::Repeated => {
                let mut integers = Vec::new();
                numbers(content, &mut integers)?;
                further.extend(integers.into_iter().map(Argument::Integer));
                continue;
            }
            (ParameterType::Integer { .. }, Content::Varint(value)) => {
                Argument::Integer(value as i64)
            }
            (ParameterType::Word, Content::Bytes(word)) => Argument::Word(text(word)?.as_bytes()),
            (ParameterType::Id, Content::Bytes(id)) => Argument::Text(text(id)?.into()),
            _ => return Err(WRONG_TYPE),
        };
        match parameter.count {
            Count::One | Count::Optional => {
                // Optional ones before it may be left out.
                while arguments.len() < index {
                    arguments.push(zero(&spec.parameters[arguments.len()].kind));
                }
                match arguments.get_mut(index) {
                    Some(place) => *place = argument,
                    None => arguments.push(argument),
                }
            }
            Count::Repeated => further.push(argument),
        }
    }
    arguments.append(&mut further);
    Ok(arguments)
}

/// Appends the request message of a command with these arguments, which it takes.
pub fn encode_arguments(spec: &CommandSpec, arguments: &[Argument<'_>], to: &mut Vec<u8>) {
    for (index, parameter) in spec.parameters.iter().enumerate() {
        let number = index as u32 + 1;
        let given = arguments.get(index..).unwrap_or_default();
        let given = match parameter.count {
            Count::One | Count::Optional => &given[..given.len().min(1)],
            Count::Repeated => given,
        };
        if parameter.count == Count::Repeated && matches!(given, [Argument::Integer(_), ..]) {
            let numbers = given.iter().filter_map(|argument| match argument {
                Argument::Integer(number) => Some(*number),
                Argument::Word(_) | Argument::Text(_) => None,
            });
            encode_packed(number, numbers, to);
            continue;
        }
        for argument in given {
            match argument {
                Argument::Integer(0) if parameter.count == Count::One => {}
                Argument::Integer(value) => {
                    encode_key(number, WireType::Varint, to);
                    encode_varint(*value as u64, to);
                }
                Argument::Word(word) => encode_bytes(number, word, to),
                Argument::Text(text) => encode_bytes(number, text.as_bytes(), to),
            }
        }
    }
}

fn encode_bytes(number: u32, bytes: &[u8], to: &mut Vec<u8>) {
    encode_key(number, WireType::LengthDelimited, to);
    encode_varint(bytes.len() as u64, to);
    to.extend_from_slice(bytes);
}

fn encode_packed(number: u32, integers: impl Iterator<Item = i64> + Clone, to: &mut Vec<u8>) {
    let length = integers
        .clone()
        .map(|value| encoded_len_varint(value as u64));
    encode_key(number, WireType::LengthDelimited, to);
    encode_varint(length.sum::<usize>() as u64, to);
    for integer in integers {
        encode_varint(integer as u64, to);
    }
}

/// Returns the length of a field of this number with a length and `content` bytes.
fn field_len(number: u32, content: usize) -> usize {
    key_len(number) + encoded_len_varint(content as u64) + content
}

/// Returns the length of the response message with this result.
#[inline]
pub fn value_len(value: &Value<'_>) -> usize {
    match value {
        Value::Integer(0) => 0,
        Value::Integer(number) => key_len(RESULT) + encoded_len_varint(*number as u64),
        Value::Integers(numbers) => {
            let lengths = numbers
                .iter()
                .map(|number| encoded_len_varint(*number as u64));
            field_len(RESULT, lengths.sum())
        }
        Value::Text(text) => field_len(RESULT, text.len()),
        Value::User(user) => field_len(RESULT, user::len(user)),
        Value::Users(users) => {
            let lengths = users.iter().map(|user| field_len(RESULT, user::len(user)));
            lengths.sum()
        }
    }
}

/// Appends the response message with this result.
#[inline]
pub fn encode_value(value: &Value<'_>, to: &mut Vec<u8>) {
    match value {
        Value::Integer(0) => {}
        Value::Integer(number) => {
            encode_key(RESULT, WireType::Varint, to);
            encode_varint(*number as u64, to);
        }
        Value::Integers(numbers) => encode_packed(RESULT, numbers.iter().copied(), to),
        Value::Text(text) => encode_bytes(RESULT, text.as_bytes(), to),
        Value::User(user) => encode_user(user, to),
        Value::Users(users) => users.iter().for_each(|user| encode_user(user, to)),
    }
}

/// Appends a user as a field of a response: several make the message of a page.
pub fn encode_user(user: &User, to: &mut Vec<u8>) {
    encode_key(RESULT, WireType::LengthDelimited, to);
    encode_varint(user::len(user) as u64, to);
    user::encode(user, to);
}

/// Decodes the result of a command from its response message.
pub fn decode_value(spec: &CommandSpec, mut message: &[u8]) -> Result<Value<'static>, Malformed> {
    let mut value = match spec.result {
        ValueType::Integer => Value::Integer(0),
        ValueType::Integers => Value::Integers(Vec::new()),
        ValueType::Text => Value::Text(Cow::Borrowed("")),
        ValueType::User => Value::User(Box::default()),
        ValueType::Users => Value::Users(Vec::new()),
    };
    while !message.is_empty() {
        let (number, content) = next_field(&mut message)?;
        if number != RESULT {
            continue;
        }
        match (&mut value, content) {
            (Value::Integer(value), Content::Varint(number)) => *value = number as i64,
            (Value::Integers(all), content) => numbers(content, all)?,
            (Value::Text(all), Content::Bytes(bytes)) => *all = text(bytes)?.to_string().into(),
            (Value::User(user), Content::Bytes(bytes)) => user::decode(bytes, user)?,
            (Value::Users(users), Content::Bytes(bytes)) => {
                let mut user = User::default();
                user::decode(bytes, &mut user)?;
                users.push(user);
            }
            _ => return Err(WRONG_TYPE),
        }
    }
    Ok(value)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock::Nanos;
    use crate::command::Context;
    use crate::command::sets::{calc, server};

    fn command(name: &str) -> &'static CommandSpec {
        let mut specs = calc::SET.iter().chain(server::SET);
        specs.find(|spec| spec.name == name).unwrap()
    }

    #[test]
    fn arguments_and_results_come_back_as_they_were() {
        let word = |word: &'static str| Argument::Word(word.as_bytes());
        let integers = |all: &[i64]| all.iter().copied().map(Argument::Integer).collect();
        for (name, arguments, bytes) in [
            ("ADD", integers(&[2, 5]), &b"\x08\x02\x10\x05"[..]),
            ("ADD", integers(&[0, 0]), b""),
            (
                "MAX",
                integers(&[0, -1]),
                b"\x10\xff\xff\xff\xff\xff\xff\xff\xff\xff\x01",
            ),
            ("NP", integers(&[1, 300]), b"\x0a\x03\x01\xac\x02"),
            ("WHO", vec![], b""),
            ("HELP", vec![], b""),
            ("HELP", vec![word("WHO")], b"\x0a\x03WHO"),
        ] {
            let mut encoded = Vec::new();
            encode_arguments(command(name), &arguments, &mut encoded);
            assert_eq!(encoded, bytes, "{name}");
            assert_eq!(decode_arguments(command(name), bytes), Ok(arguments));
        }
        for (name, value, bytes) in [
            ("ADD", Value::Integer(0), &b""[..]),
            ("ADD", Value::Integer(42), b"\x08\x2a"),
            ("NP", Value::Integers(vec![2, 541]), b"\x0a\x03\x02\x9d\x04"),
            ("PING", Value::from("PONG"), b"\x0a\x04PONG"),
        ] {
            let mut encoded = Vec::new();
            encode_value(&value, &mut encoded);
            assert_eq!(encoded, bytes, "{name}");
            assert_eq!(value_len(&value), bytes.len());
            assert_eq!(decode_value(command(name), bytes), Ok(value));
        }
    }

    #[test]
    fn what_is_not_of_the_schema_is_skipped_or_refused() {
        let decode = |name, bytes| decode_arguments(command(name), bytes);
        let fives = |count| vec![Argument::Integer(5); count];
        for (name, bytes, expected) in [
            // Unknown fields of each wire type, and the last of two.
            (
                "NP",
                &b"\x10\x01\x1a\x01x\x25abcd\x29abcdefgh\x2b\x2c\x08\x05"[..],
                Ok(fives(1)),
            ),
            ("NP", b"\x0a\x01\x05\x08\x05", Ok(fives(2))),
            ("ADD", b"\x08\x01\x08\x05\x10\x05", Ok(fives(2))),
            ("ADD", b"\x0a\x01\x05", Err(WRONG_TYPE)),
            ("ADD", b"\x0dabcd", Err(WRONG_TYPE)),
            ("HELP", b"\x08\x05", Err(WRONG_TYPE)),
            ("HELP", b"\x0a\x01\xff", Err(NOT_UTF8)),
            ("ADD", b"\x08", Err(NOT_PROTOBUF)),
            (
                "ADD",
                b"\x08\xff\xff\xff\xff\xff\xff\xff\xff\xff\x02",
                Err(NOT_PROTOBUF),
            ),
            ("ADD", b"\x00\x01", Err(NOT_PROTOBUF)),
            ("ADD", b"\x0f", Err(NOT_PROTOBUF)),
            ("HELP", b"\x0a\x05x", Err(NOT_PROTOBUF)),
            (
                "HELP",
                b"\x0a\xff\xff\xff\xff\xff\xff\xff\xff\x7fx",
                Err(NOT_PROTOBUF),
            ),
            ("NP", b"\x0a\x01\x80", Err(NOT_PROTOBUF)),
        ] {
            assert_eq!(
                decode(name, bytes),
                expected,
                "{name} {}",
                bytes.escape_ascii()
            );
        }
    }

    #[test]
    fn typed_calls_are_checked_as_words_are() {
        let context = Context::new(
            Default::default(),
            uuid::Uuid::nil(),
            &[calc::SET, server::SET],
        );
        let answer = |name, bytes| {
            let arguments = decode_arguments(command(name), bytes).unwrap();
            let call = command(name).call(arguments, Nanos::now());
            let value = call.and_then(|call| call.execute(&context).map(|value| value.to_string()));
            value.unwrap_or_else(|error| format!("{error:?}"))
        };
        assert_eq!(answer("ADD", b"\x08\x02\x10\x05"), "7");
        assert_eq!(answer("NP", b""), "USAGE usage: NP N [N ...]");
        assert_eq!(
            answer("NP", b"\x08\x00"),
            "USAGE not a whole number from 1 to 10000000: \"0\""
        );
        assert_eq!(answer("HELP", b"\x0a\x03a b"), "USAGE not a word: \"a b\"");
        let many = [&b"\x0a\x81\x08"[..], &[1; 1025]].concat();
        assert_eq!(
            answer("NP", &many),
            "USAGE a call takes at most 1024 arguments"
        );
    }
}
