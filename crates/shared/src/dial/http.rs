//! HTTP/1.1 of a client that needs the fields of a response, too: it posts a body and reads the
//! response, whose length is bounded.

use super::{Failure, FailureKind, LONGEST_REPLY, Server};
use crate::text::{excerpt, quoted};

/// Largest length of the head of a response.
const LONGEST_HEAD: usize = 16 * 1024;

/// Largest number of fields in the head of a response.
const MAX_FIELDS: usize = 64;

/// A response.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HttpResponse {
    /// The status code.
    pub status: u16,
    /// The fields, in their order.
    fields: Vec<(String, Vec<u8>)>,
    /// The body.
    pub body: Vec<u8>,
}

impl HttpResponse {
    /// Returns the values of the fields with this name.
    pub fn fields<'a>(&'a self, name: &'a str) -> impl Iterator<Item = &'a [u8]> {
        let fields = self.fields.iter();
        let named = fields.filter(move |(known, _)| known.eq_ignore_ascii_case(name));
        named.map(|(_, value)| &**value)
    }

    /// Parses the response to `request` at the beginning of `bytes`. Returns it and its length, or
    /// `None` if it is incomplete.
    pub(super) fn parse(request: &str, bytes: &[u8]) -> Result<Option<(Self, usize)>, Failure> {
        let wrong = |expected: &str| {
            let (request, received) = (excerpt(request), quoted(bytes));
            let text = format!("{request} is answered {received} instead of {expected}");
            Err(Failure::new(FailureKind::Foreign, text))
        };
        let mut fields = [httparse::EMPTY_HEADER; MAX_FIELDS];
        let mut head = httparse::Response::new(&mut fields);
        let begin = match head.parse(bytes) {
            Ok(httparse::Status::Complete(begin)) if begin <= LONGEST_HEAD => begin,
            Ok(httparse::Status::Partial) if bytes.len() < LONGEST_HEAD => return Ok(None),
            _ => return wrong("HTTP/1.1"),
        };
        let fields = head.headers.iter();
        let fields = fields.map(|field| (field.name.to_string(), field.value.to_vec()));
        let mut response = HttpResponse {
            status: head.code.unwrap_or_default(),
            fields: fields.collect(),
            body: Vec::new(),
        };
        let length = {
            let mut lengths = response.fields("content-length");
            let length = lengths.next().filter(|_| lengths.next().is_none());
            let length = length.filter(|length| length.iter().all(u8::is_ascii_digit));
            let length = length.and_then(|length| std::str::from_utf8(length).ok());
            length.and_then(|length| length.parse::<usize>().ok())
        };
        match length.filter(|length| *length <= LONGEST_REPLY) {
            None => wrong(&format!("a body of a known length up to {LONGEST_REPLY}")),
            Some(length) => Ok(bytes.get(begin..begin + length).map(|body| {
                response.body = body.to_vec();
                (response, begin + length)
            })),
        }
    }
}

/// Returns a request that posts this JSON to `/`. If it `closes`, the server closes after it.
pub fn post(server: &Server, json: &str, closes: bool) -> String {
    let host = Server::new(server.host.clone(), server.port);
    let connection = if closes { "Connection: close\r\n" } else { "" };
    let length = json.len();
    format!(
        "POST / HTTP/1.1\r\nHost: {host}\r\nContent-Type: application/json\r\n\
         Content-Length: {length}\r\n{connection}\r\n{json}"
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_response_is_whole_or_not_yet_or_none() {
        let whole = "HTTP/1.1 200 OK\r\nAge: 7\r\nage: 8\r\ncontent-length: 2\r\n\r\n{}";
        let parse = |text: &str| HttpResponse::parse("users", text.as_bytes());
        for cut in 0..whole.len() {
            assert_eq!(parse(&whole[..cut]).unwrap(), None, "{cut}");
        }
        let (response, length) = parse(&format!("{whole}HTTP")).unwrap().unwrap();
        let ages: Vec<_> = response.fields("Age").collect();
        assert_eq!((length, response.status), (whole.len(), 200));
        assert_eq!((ages, &*response.body), (vec![&b"7"[..], b"8"], &b"{}"[..]));
        for bad in [
            "ERR BADINPUT",
            "HTTP/1.1 200 OK\r\n\r\n{}",
            "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\n{}\r\n0\r\n\r\n",
            "HTTP/1.1 200 OK\r\nContent-Length: +2\r\n\r\n{}",
            "HTTP/1.1 200 OK\r\nContent-Length: 2\r\nContent-Length: 2\r\n\r\n{}",
            "HTTP/1.1 200 OK\r\nContent-Length: 1048577\r\n\r\n{}",
            &format!("HTTP/1.1 200 OK\r\nA: {}", "x".repeat(LONGEST_HEAD)),
        ] {
            let failure = parse(bad).unwrap_err().to_string();
            assert!(failure.starts_with("users is answered \""), "{failure}");
        }
    }
}
