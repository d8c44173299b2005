//! The head of an HTTP/1.1 request, and how its body is delimited.

use std::mem::MaybeUninit;

use httparse::Status;
use serde::{Deserialize, Serialize};

use super::request::Problem;

/// The most header fields of a request.
pub const MAX_FIELDS: usize = 64;

/// The head of a request, without the fields that only some servers need.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Head<'a> {
    /// The method.
    pub method: &'a str,
    /// The path, without the query.
    pub path: &'a str,
    /// Whether it is HTTP/1.1, and not HTTP/1.0.
    pub is_new: bool,
    /// Whether the client wants to keep the connection open (persistent connection).
    pub keep_alive: bool,
    /// How the body is delimited.
    pub framing: Framing,
}

/// How a body is delimited.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Framing {
    /// By its length in bytes, which is 0 if there is none. A length beyond 64 bits is the greatest.
    Sized(u64),
    /// By the chunked transfer coding.
    Chunked,
}

/// Parses the head at the beginning of `bytes`, which has at most `longest` bytes. Calls `field`
/// with each field that concerns neither the connection nor the framing. Returns the head and its
/// length, or `None` if it is incomplete. An error comes with whether its response has no body
/// (HEAD).
#[inline(never)]
pub fn parse_head<'a>(
    bytes: &'a [u8],
    longest: usize,
    mut field: impl FnMut(&'a str, &'a [u8]),
) -> Result<Option<(Head<'a>, usize)>, (Problem, bool)> {
    let mut fields = [const { MaybeUninit::uninit() }; MAX_FIELDS];
    let mut request = httparse::Request::new(&mut []);
    let window = &bytes[..bytes.len().min(longest)];
    let length = match request.parse_with_uninit_headers(window, &mut fields) {
        Ok(Status::Complete(length)) => length,
        Ok(Status::Partial) if bytes.len() >= longest => return Err((Problem::TooLong, false)),
        Ok(Status::Partial) => return Ok(None),
        Err(httparse::Error::TooManyHeaders) => return Err((Problem::TooLong, false)),
        Err(httparse::Error::Version) => return Err((Problem::Version, false)),
        Err(_) => return Err((Problem::Malformed("this is not an HTTP request"), false)),
    };
    match convert(&request, &mut field) {
        Ok(head) => Ok(Some((head, length))),
        Err(problem) => Err((problem, request.method == Some("HEAD"))),
    }
}

/// Converts a complete head.
fn convert<'a>(
    request: &httparse::Request<'_, 'a>,
    other: &mut impl FnMut(&'a str, &'a [u8]),
) -> Result<Head<'a>, Problem> {
    let is_new = request.version == Some(1);
    let (mut hosts, mut length, mut coding) = (0, None, None);
    let (mut says_close, mut says_keep_alive) = (false, false);
    for field in &*request.headers {
        let (name, value) = (field.name, field.value.trim_ascii());
        let is = |known: &str| name.eq_ignore_ascii_case(known);
        if is("host") {
            hosts += 1;
        } else if is("content-length") {
            if length.replace(value).is_some() {
                return Err(Problem::Malformed("Content-Length is given twice"));
            }
        } else if is("transfer-encoding") {
            if coding.replace(value).is_some() {
                return Err(Problem::Malformed("Transfer-Encoding is given twice"));
            }
        } else if is("connection") {
            for option in value.split(|byte| *byte == b',') {
                let option = option.trim_ascii();
                says_close |= option.eq_ignore_ascii_case(b"close");
                says_keep_alive |= option.eq_ignore_ascii_case(b"keep-alive");
            }
        } else {
            other(name, value);
        }
    }
    let framing = match (length, coding) {
        // A proxy may obey one of them and this server the other: request smuggling (RFC 9112,
        // section 11.2).
        (Some(_), Some(_)) => {
            let what = "Transfer-Encoding and Content-Length exclude each other";
            return Err(Problem::Malformed(what));
        }
        (None, Some(_)) if !is_new => {
            return Err(Problem::Malformed("HTTP/1.0 has no Transfer-Encoding"));
        }
        (None, Some(coding)) if coding.eq_ignore_ascii_case(b"chunked") => Ok(Framing::Chunked),
        (None, Some(_)) => Err(Problem::Coding),
        (None, None) => Ok(Framing::Sized(0)),
        (Some(digits), None) => match std::str::from_utf8(digits) {
            Ok(digits)
                if !digits.is_empty() && digits.bytes().all(|byte| byte.is_ascii_digit()) =>
            {
                Ok(Framing::Sized(digits.parse().unwrap_or(u64::MAX)))
            }
            _ => return Err(Problem::Malformed("Content-Length is not a number")),
        },
    };
    if is_new && hosts != 1 {
        return Err(Problem::Malformed(
            "HTTP/1.1 needs a Host field, and one only",
        ));
    }
    Ok(Head {
        method: request.method.unwrap_or_default(),
        path: path(request.path.unwrap_or("/")),
        is_new,
        keep_alive: !says_close && (is_new || says_keep_alive),
        framing: framing?,
    })
}

/// Returns whether a line of a head ends with LF alone: to a proxy before this server it may end
/// elsewhere, and with it the request.
pub fn has_bare_lf(head: &[u8]) -> bool {
    let pairs = head.iter().zip(head.iter().skip(1));
    // Without an early end, many bytes are compared at once.
    let begins = head.first() == Some(&b'\n');
    pairs.fold(begins, |found, (before, byte)| {
        found | ((*byte == b'\n') & (*before != b'\r'))
    })
}

/// Returns the path of a request target, which may be in absolute form (RFC 9112, section 3.2.2).
fn path(target: &str) -> &str {
    let path = match target.split_once("://") {
        Some((scheme, rest)) if scheme.bytes().all(|byte| byte.is_ascii_alphanumeric()) => {
            rest.find('/').map_or("/", |start| &rest[start..])
        }
        _ => target,
    };
    path.split(['?', '#']).next().unwrap_or(path)
}
