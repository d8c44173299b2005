//! A call: its headers and its messages.

use std::borrow::Cow;
use std::time::Duration;

use http2::{Field, Headers};
use shared::clock::Nanos;
use shared::command::user::UserStream;
use shared::command::{CommandSpec, Quoted, Rpc, Table};
use shared::schema::PACKAGE;

use super::health::{self, Serving};
use super::reflection;
use super::status::{Code, Status};
use crate::protocol::Exchange;

/// Largest length of a message.
pub const MAX_MESSAGE: usize = 64 * 1024;

/// Length of what comes before a message: a flag, and the message's length.
const PREFIX: usize = 5;

/// The headers of an answer.
pub const HEADERS: [Field; 2] = [
    field(":status", "200"),
    field("content-type", "application/grpc"),
];

const fn field(name: &'static str, value: &'static str) -> Field {
    Field {
        name,
        value: Cow::Borrowed(value),
    }
}

/// A call that is not answered.
pub struct Stream {
    /// What is called.
    pub method: Method,
    /// When it began.
    pub begun: Nanos,
    /// When its request was whole, or the last of its messages; before that, when it began.
    pub asked: Nanos,
    /// Its time from the beginning.
    pub timeout: Option<Duration>,
    /// The messages of its request.
    pub body: Vec<u8>,
    /// Whether the client sends no more.
    pub is_whole: bool,
    /// Whether the answer has begun.
    pub is_begun: bool,
}

/// What is called.
pub enum Method {
    /// A command, at this index of the table.
    Command(usize, &'static CommandSpec),
    /// A command that is answered with these users, one message after the other.
    Users(Box<dyn UserStream>),
    /// `Check` of grpc.health.v1.
    HealthCheck,
    /// `List` of it.
    HealthList,
    /// `Watch` of it, and which state was last told, if it has begun.
    HealthWatch(Option<Serving>),
    /// `ServerReflectionInfo` of either version.
    Reflection,
}

/// Why a request is no call.
pub enum Refusal {
    /// It is no call of gRPC. The headers of the answer.
    Http(Vec<Field>),
    /// The call ends with this status.
    Status(Status),
}

impl Stream {
    /// Begins a call that has these headers.
    pub fn new(headers: &Headers, exchange: &Exchange<'_>) -> Result<Self, Refusal> {
        let status = |code, message: &'static str| Refusal::Status(Status::new(code, message));
        if headers.is_too_large {
            let message = "the headers are longer than 16384 bytes";
            return Err(status(Code::ResourceExhausted, message));
        }
        if headers.get(":method") != Some(b"POST") {
            return Err(Refusal::Http(vec![
                field(":status", "405"),
                field("allow", "POST"),
            ]));
        }
        if !headers.get("content-type").is_some_and(is_grpc) {
            return Err(Refusal::Http(vec![
                field(":status", "415"),
                field("accept", "application/grpc"),
            ]));
        }
        let timeout = match headers.get("grpc-timeout").map(timeout) {
            None => None,
            Some(Some(timeout)) => Some(timeout),
            Some(None) => return Err(status(Code::Internal, "malformed grpc-timeout")),
        };
        let path = headers.get(":path").unwrap_or_default();
        let Some(method) = find(path, &exchange.context.table) else {
            let message = format!("no such method: {}", Quoted(path));
            return Err(Refusal::Status(Status::new(Code::Unimplemented, message)));
        };
        Ok(Stream {
            method,
            begun: exchange.read_at,
            asked: exchange.read_at,
            timeout,
            body: Vec::new(),
            is_whole: false,
            is_begun: false,
        })
    }

    /// Returns how much of its time is left, if it is limited.
    pub fn time_left(&self, now: Nanos) -> Option<Duration> {
        let gone = Duration::from_nanos(self.begun.until(now));
        Some(self.timeout?.saturating_sub(gone))
    }
}

/// Returns whether a media type is gRPC's, with messages of protobuf.
fn is_grpc(media_type: &[u8]) -> bool {
    let rest = media_type.strip_prefix(b"application/grpc");
    rest.is_some_and(|rest| matches!(rest, [] | [b';', ..]) || rest.starts_with(b"+proto"))
}

/// Parses a `grpc-timeout`: up to eight digits and a unit.
fn timeout(text: &[u8]) -> Option<Duration> {
    let (unit, digits) = text.split_last()?;
    if !(1..=8).contains(&digits.len()) || !digits.iter().all(u8::is_ascii_digit) {
        return None;
    }
    let number: u64 = std::str::from_utf8(digits).ok()?.parse().ok()?;
    Some(match unit {
        b'H' => Duration::from_secs(number * 3600),
        b'M' => Duration::from_secs(number * 60),
        b'S' => Duration::from_secs(number),
        b'm' => Duration::from_millis(number),
        b'u' => Duration::from_micros(number),
        b'n' => Duration::from_nanos(number),
        _ => return None,
    })
}

/// Finds the method of a path, `/package.Service/Method`.
fn find(path: &[u8], table: &Table) -> Option<Method> {
    let path = std::str::from_utf8(path).ok()?.strip_prefix('/')?;
    let (service, method) = path.split_once('/')?;
    let own = service.strip_prefix(PACKAGE);
    if let Some(service) = own.and_then(|service| service.strip_prefix('.')) {
        let is_it = |rpc: &Rpc| (rpc.service, rpc.method) == (service, method);
        return table
            .find_rpc(is_it)
            .map(|(index, spec)| Method::Command(index, spec));
    }
    match (service, method) {
        (health::SERVICE, "Check") => Some(Method::HealthCheck),
        (health::SERVICE, "List") => Some(Method::HealthList),
        (health::SERVICE, "Watch") => Some(Method::HealthWatch(None)),
        (service, "ServerReflectionInfo") if reflection::SERVICES.contains(&service) => {
            Some(Method::Reflection)
        }
        _ => None,
    }
}

/// Returns the size of the first message of a body, with its prefix, as soon as that is known.
pub fn size(body: &[u8]) -> Result<Option<usize>, Status> {
    match body.first() {
        None | Some(0) => {}
        Some(1) => {
            return Err(Status {
                names_encodings: true,
                ..Status::new(Code::Unimplemented, "messages must not be compressed")
            });
        }
        Some(_) => return Err(Status::new(Code::Internal, "a message has unknown flags")),
    }
    let Some(&[a, b, c, d]) = body.get(1..PREFIX).and_then(<[u8]>::first_chunk) else {
        return Ok(None);
    };
    match u32::from_be_bytes([a, b, c, d]) as usize {
        length @ ..=MAX_MESSAGE => Ok(Some(PREFIX + length)),
        _ => Err(Status::new(
            Code::ResourceExhausted,
            "a message has at most 65536 bytes",
        )),
    }
}

/// The content of a message, and what follows it.
type Split<'a> = (&'a [u8], &'a [u8]);

/// Splits the first message off a body, if it is whole.
pub fn split(body: &[u8]) -> Result<Option<Split<'_>>, Status> {
    let split = size(body)?.and_then(|size| body.split_at_checked(size));
    Ok(split.map(|(message, rest)| (&message[PREFIX..], rest)))
}

/// Returns the content of the only message of a whole body.
pub fn message(body: &[u8]) -> Result<&[u8], Status> {
    match split(body)? {
        Some((message, [])) => Ok(message),
        None if !body.is_empty() => Err(Status::new(
            Code::Internal,
            "the request ended within a message",
        )),
        _ => Err(Status::new(
            Code::Unimplemented,
            "the method takes one message",
        )),
    }
}

/// Returns an answer's message, behind its prefix.
pub fn reply(encode: impl FnOnce(&mut Vec<u8>)) -> Vec<u8> {
    let mut message = Vec::with_capacity(32);
    message.resize(PREFIX, 0);
    encode(&mut message);
    let length = (message.len() - PREFIX) as u32;
    message[1..PREFIX].copy_from_slice(&length.to_be_bytes());
    message
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn timeouts_have_up_to_eight_digits_and_a_unit() {
        let seconds = Duration::from_secs;
        for (text, expected) in [
            ("27000H", Some(seconds(97_200_000))),
            ("99999999H", Some(seconds(359_999_996_400))),
            ("16700M", Some(seconds(1_002_000))),
            ("3S", Some(seconds(3))),
            ("3010m", Some(Duration::from_millis(3010))),
            ("2997516u", Some(Duration::from_micros(2_997_516))),
            ("1n", Some(Duration::from_nanos(1))),
            ("0m", Some(Duration::ZERO)),
            ("123456789m", None),
            ("m", None),
            ("", None),
            ("5", None),
            ("5s", None),
            ("-5m", None),
            ("5 m", None),
        ] {
            assert_eq!(timeout(text.as_bytes()), expected, "{text}");
        }
    }

    #[test]
    fn media_types_of_grpc_are_known() {
        for (media_type, is) in [
            ("application/grpc", true),
            ("application/grpc+proto", true),
            ("application/grpc;charset=utf-8", true),
            ("application/grpc+json", false),
            ("application/grpc-web", false),
            ("application/json", false),
            ("", false),
        ] {
            assert_eq!(is_grpc(media_type.as_bytes()), is, "{media_type}");
        }
    }
}
