//! HTTP responses, of etcd and of the other servers: parsed once they are complete, within a bound.

use httparse::{EMPTY_HEADER, Header, Status, parse_chunk_size};

/// Largest number of header fields.
const MAX_FIELDS: usize = 32;

/// Complete response.
#[derive(Debug, PartialEq, Eq)]
pub struct HttpResponse {
    /// Status code.
    pub status: u16,
    /// Body.
    pub body: Vec<u8>,
    /// Whether the connection takes another request.
    pub keeps_alive: bool,
}

impl HttpResponse {
    /// Parses the response to the only request of a connection that is not answered yet. Returns
    /// `None` if it is incomplete, and fails if it is longer than `largest` bytes.
    pub fn parse(bytes: &[u8], largest: usize) -> Result<Option<Self>, String> {
        let mut fields = [EMPTY_HEADER; MAX_FIELDS];
        let mut head = httparse::Response::new(&mut fields);
        let body = match head.parse(bytes) {
            Ok(Status::Complete(length)) => &bytes[length..],
            Ok(Status::Partial) if bytes.len() < largest => return Ok(None),
            Ok(Status::Partial) => return Err("it answers too much".to_string()),
            Err(_) => return Err("it answers something that is not HTTP".to_string()),
        };
        let has =
            |name, value| field(head.headers, name).is_some_and(|v| v.eq_ignore_ascii_case(value));
        let body = match field(head.headers, "content-length").map(str::parse) {
            _ if has("transfer-encoding", "chunked") => dechunk(body)?,
            Some(Ok(length)) if body.len() == length => Some(body.to_vec()),
            Some(Ok(length)) if body.len() > length => {
                return Err("it answers more than it was asked".to_string());
            }
            Some(Ok(length)) if length <= largest => None,
            _ => return Err("it answers something without a length, or too much".to_string()),
        };
        if body.is_none() && bytes.len() >= largest {
            return Err("it answers too much".to_string());
        }
        Ok(body.map(|body| HttpResponse {
            status: head.code.unwrap_or(0),
            body,
            keeps_alive: head.version == Some(1) && !has("connection", "close"),
        }))
    }
}

/// Returns the value of a header field.
fn field<'a>(fields: &[Header<'a>], name: &str) -> Option<&'a str> {
    let field = fields
        .iter()
        .find(|field| field.name.eq_ignore_ascii_case(name))?;
    str::from_utf8(field.value).ok().map(str::trim)
}

/// Joins the chunks of a body; `None` if it is incomplete. Trailer fields are ignored.
fn dechunk(mut bytes: &[u8]) -> Result<Option<Vec<u8>>, String> {
    let mut body = Vec::new();
    loop {
        let (start, size) = match parse_chunk_size(bytes) {
            Ok(Status::Complete((start, size))) => (start, size as usize),
            Ok(Status::Partial) => return Ok(None),
            Err(_) => return Err("it answers something that is not HTTP".to_string()),
        };
        let chunk = &bytes[start..];
        // The line end after it belongs to the chunk.
        if chunk.len() < size.saturating_add(2) {
            return Ok(None);
        }
        if size == 0 {
            return Ok(Some(body));
        }
        body.extend_from_slice(&chunk[..size]);
        bytes = &chunk[size + 2..];
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn chunks_are_joined_once_all_are_there() {
        let head = "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n";
        let parse = |bytes: &str| HttpResponse::parse(bytes.as_bytes(), 1000);
        let whole = format!("{head}4\r\nabcd\r\n2;x=y\r\nef\r\n0\r\n\r\n");
        for length in 0..whole.len() {
            assert_eq!(parse(&whole[..length]), Ok(None), "{length}");
        }
        let response = parse(&whole).unwrap().unwrap();
        assert_eq!((&response.body[..], response.status), (&b"abcdef"[..], 200));
        assert!(parse(&format!("{head}x\r\n")).is_err());
        let endless = format!("{head}ffffffffffffffff\r\n");
        assert_eq!(parse(&endless), Ok(None));
        assert!(parse(&(endless + &"x".repeat(1000))).is_err());
    }
}
