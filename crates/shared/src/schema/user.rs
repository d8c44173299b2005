//! The message of a user.

use prost::encoding::{WireType, encode_key, encode_varint, encoded_len_varint, key_len};

use super::{Content, Malformed, WRONG_TYPE, encode_bytes, field_len, next_field, text};
use crate::command::user::User;

/// A field with its number: a text, if there is one, or a time.
enum Field<'a> {
    Text(u32, Option<&'a str>),
    Time(u32, i64),
}

/// Returns the fields, in the order of [`USER`](super::USER). What proto3 leaves out has no text, or
/// the time 0.
fn fields(user: &User) -> [Field<'_>; 6] {
    let present = |text: &'_ String| !text.is_empty();
    [
        Field::Text(1, Some(&*user.id).filter(|id| !id.is_empty())),
        Field::Text(2, user.name.as_deref()),
        Field::Text(3, user.email.as_deref()),
        Field::Text(
            4,
            Some(&user.members)
                .filter(|all| present(all))
                .map(|all| &**all),
        ),
        Field::Time(5, user.created_at),
        Field::Time(6, user.updated_at),
    ]
}

/// Returns the length of the message.
pub fn len(user: &User) -> usize {
    let lengths = fields(user).map(|field| match field {
        Field::Text(number, Some(text)) => field_len(number, text.len()),
        Field::Text(_, None) | Field::Time(_, 0) => 0,
        Field::Time(number, time) => key_len(number) + encoded_len_varint(time as u64),
    });
    lengths.iter().sum()
}

/// Appends the message.
pub fn encode(user: &User, to: &mut Vec<u8>) {
    for field in fields(user) {
        match field {
            Field::Text(number, Some(text)) => encode_bytes(number, text.as_bytes(), to),
            Field::Text(_, None) | Field::Time(_, 0) => {}
            Field::Time(number, time) => {
                encode_key(number, WireType::Varint, to);
                encode_varint(time as u64, to);
            }
        }
    }
}

/// Decodes the message into `user`.
pub fn decode(mut message: &[u8], user: &mut User) -> Result<(), Malformed> {
    while !message.is_empty() {
        match next_field(&mut message)? {
            (1, Content::Bytes(bytes)) => user.id = text(bytes)?.to_string(),
            (2, Content::Bytes(bytes)) => user.name = Some(text(bytes)?.to_string()),
            (3, Content::Bytes(bytes)) => user.email = Some(text(bytes)?.to_string()),
            (4, Content::Bytes(bytes)) => user.members = text(bytes)?.to_string(),
            (5, Content::Varint(time)) => user.created_at = time as i64,
            (6, Content::Varint(time)) => user.updated_at = time as i64,
            (1..=6, _) => return Err(WRONG_TYPE),
            _ => {}
        }
    }
    Ok(())
}
