//! Status of a call: how it ended.

use std::borrow::Cow;
use std::fmt::Write as _;

use http2::Field;
use shared::command::{CommandError, ErrorCode};

/// Status codes of gRPC that this server uses, with their numbers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Code {
    /// The call has a result.
    Ok = 0,
    /// The arguments are wrong, whatever the state of the server.
    InvalidArgument = 3,
    /// The time of the call is over.
    DeadlineExceeded = 4,
    /// There is no such thing.
    NotFound = 5,
    /// A message is too long, or there are too many.
    ResourceExhausted = 8,
    /// There is no value for these arguments.
    OutOfRange = 11,
    /// There is no such method, or it is not called so.
    Unimplemented = 12,
    /// The server failed, or the request is no message.
    Internal = 13,
    /// There is no answer now: try again.
    Unavailable = 14,
}

/// How a call ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Status {
    /// For programs.
    pub code: Code,
    /// For people.
    pub message: Cow<'static, str>,
    /// Whether to say which compressions are accepted: none.
    pub names_encodings: bool,
}

impl Status {
    /// The call has a result.
    pub const OK: Status = Status {
        code: Code::Ok,
        message: Cow::Borrowed(""),
        names_encodings: false,
    };

    /// Returns a status.
    pub fn new(code: Code, message: impl Into<Cow<'static, str>>) -> Self {
        Status {
            code,
            message: message.into(),
            names_encodings: false,
        }
    }

    /// Returns the trailers that end a call.
    pub fn trailers(&self) -> Vec<Field> {
        let number = match self.code {
            Code::Ok => "0".into(),
            code => Cow::Owned((code as u32).to_string()),
        };
        let mut trailers = vec![Field::new("grpc-status", number)];
        if !self.message.is_empty() {
            trailers.push(Field::new("grpc-message", percent_encoded(&self.message)));
        }
        if self.names_encodings {
            trailers.push(Field::new("grpc-accept-encoding", "identity"));
        }
        trailers
    }

    /// Returns the headers of an answer that has nothing else.
    pub fn fields(&self) -> Vec<Field> {
        let mut fields = super::call::HEADERS.to_vec();
        fields.append(&mut self.trailers());
        fields
    }
}

impl From<CommandError<'_>> for Status {
    fn from(error: CommandError<'_>) -> Self {
        let code = match (&error, error.code()) {
            (CommandError::OutOfRange(_), _) => Code::OutOfRange,
            (_, ErrorCode::Unknown) => Code::Unimplemented,
            (_, ErrorCode::NotFound) => Code::NotFound,
            (_, ErrorCode::Usage) => Code::InvalidArgument,
            (_, ErrorCode::TooLong) => Code::ResourceExhausted,
            (_, ErrorCode::Busy | ErrorCode::Timeout | ErrorCode::Unavailable) => Code::Unavailable,
            (_, ErrorCode::BadInput | ErrorCode::Internal) => Code::Internal,
        };
        Status::new(code, error.to_string())
    }
}

/// Encodes a message for a header: printable ASCII but `%` stays as it is.
fn percent_encoded(text: &str) -> String {
    let mut encoded = String::with_capacity(text.len());
    for byte in text.bytes() {
        match byte {
            b' '..=b'~' if byte != b'%' => encoded.push(char::from(byte)),
            // Writing into a String can't fail.
            _ => drop(write!(encoded, "%{byte:02X}")),
        }
    }
    encoded
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_are_printable_ascii() {
        for (text, encoded) in [
            ("a \"b\"~", "a \"b\"~"),
            ("100%", "100%25"),
            ("é\n", "%C3%A9%0A"),
        ] {
            assert_eq!(percent_encoded(text), encoded);
        }
    }
}
