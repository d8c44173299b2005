//! HTTP/1.1 requests: GET and HEAD, without bodies.

use httparse::{EMPTY_HEADER, Status};

use super::response::Response;

/// The longest head of a request in bytes, its final blank line included.
pub const LONGEST_HEAD: usize = 8 * 1024;

/// The most header fields of a request.
const MAX_FIELDS: usize = 64;

/// A valid request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Request {
    /// Whether the client wants only the head of the response (HEAD).
    pub head_only: bool,
    /// The path, without the query.
    pub path: String,
    /// Value of the `Accept` fields, joined with commas.
    pub accept: String,
    /// Whether the client wants to keep the connection open (persistent connection).
    pub keep_alive: bool,
}

impl Request {
    /// Returns whether the client prefers the media type `other` to `default` (RFC 9110, section
    /// 12.5.1). If it gives both the same weight, the default wins, unless the client names the
    /// other explicitly.
    pub fn prefers(&self, other: &str, default: &str) -> bool {
        let ((how, other), (_, default)) = (self.weight(other), self.weight(default));
        other > default || (other == default && other > 0.0 && how == EXACT)
    }

    /// Returns how specific the most specific range of `Accept` is that matches a media type, and
    /// its weight, from 0 to 1. Parameters of a range are not compared.
    fn weight(&self, media_type: &str) -> (u8, f32) {
        let ranges = self.accept.split(',').map(|range| {
            let mut parts = range.split(';').map(str::trim);
            let name = parts.next().unwrap_or_default();
            let how = how_exactly(name, media_type);
            let is_weight = |part: &str| {
                let (name, value) = part.split_once('=')?;
                name.trim()
                    .eq_ignore_ascii_case("q")
                    .then(|| value.trim().parse().ok())
            };
            // The default is 1 (section 12.4.2). An invalid weight counts as 0.
            let q = parts.find_map(is_weight).map_or(1.0, |q| q.unwrap_or(0.0));
            let q = if (0.0..=1.0).contains(&q) { q } else { 0.0 };
            (how, q)
        });
        let matching = ranges.filter(|(how, _)| *how > 0);
        matching.fold(
            (0, 0.0),
            |best, range| if range > best { range } else { best },
        )
    }
}

/// Specificity of a range of `Accept` that is the media type itself.
const EXACT: u8 = 3;

/// Returns how specifically a range of `Accept` matches a media type: [`EXACT`], 2 for `type/*`, 1
/// for `*/*`, or 0 if it does not match.
fn how_exactly(range: &str, media_type: &str) -> u8 {
    let kind = media_type.split('/').next().unwrap_or_default();
    let is_kind = |range: &str| range.eq_ignore_ascii_case(kind);
    if range.eq_ignore_ascii_case(media_type) {
        EXACT
    } else if range == "*/*" {
        1
    } else if range.strip_suffix("/*").is_some_and(is_kind) {
        2
    } else {
        0
    }
}

/// Result of parsing the beginning of a buffer.
#[derive(Debug, PartialEq, Eq)]
pub enum ParseResult {
    /// A complete request and its length in bytes.
    Request(Request, usize),
    /// The beginning of a request that may still become complete.
    Partial,
    /// An error, and whether its response has no body (HEAD). The beginning of the next request is
    /// unknown after it, so the connection must be closed.
    Bad(Problem, bool),
}

/// An error of a request, or of the time that it takes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Problem {
    /// It is not valid HTTP.
    Malformed(&'static str),
    /// It has a body, which no request here needs.
    Body,
    /// It has a body in a transfer coding, and none is supported.
    Coding,
    /// Its head is too long.
    TooLong,
    /// Its method is neither GET nor HEAD.
    Method,
    /// Its version of HTTP is not supported.
    Version,
    /// It did not arrive in time.
    Late,
}

impl Problem {
    /// Returns the response to it.
    pub fn response(self) -> Response {
        let (status, text) = match self {
            Problem::Malformed(what) => (400, what),
            Problem::Body => (413, "a request here has no body"),
            Problem::Coding => (501, "a request here has no body, in whatever coding"),
            Problem::TooLong => (
                431,
                "a request here has at most 8,192 bytes and 64 header fields",
            ),
            Problem::Method => (405, "only GET and HEAD are answered here"),
            Problem::Version => (505, "HTTP/1.1 and HTTP/1.0 are spoken here"),
            Problem::Late => (408, "the request took too long to arrive"),
        };
        Response::text(status, text)
    }
}

/// Parses the request at the beginning of `buffer`.
pub fn parse(buffer: &[u8]) -> ParseResult {
    let mut fields = [EMPTY_HEADER; MAX_FIELDS];
    let mut request = httparse::Request::new(&mut fields);
    let window = &buffer[..buffer.len().min(LONGEST_HEAD)];
    let length = match request.parse(window) {
        Ok(Status::Complete(length)) => length,
        Ok(Status::Partial) if buffer.len() >= LONGEST_HEAD => {
            return ParseResult::Bad(Problem::TooLong, false);
        }
        Ok(Status::Partial) => return ParseResult::Partial,
        Err(httparse::Error::TooManyHeaders) => return ParseResult::Bad(Problem::TooLong, false),
        Err(httparse::Error::Version) => return ParseResult::Bad(Problem::Version, false),
        Err(_) => {
            return ParseResult::Bad(Problem::Malformed("this is not an HTTP request"), false);
        }
    };
    match convert(&request) {
        Ok(request) => ParseResult::Request(request, length),
        Err(problem) => ParseResult::Bad(problem, request.method == Some("HEAD")),
    }
}

/// Converts a complete head.
fn convert(request: &httparse::Request<'_, '_>) -> Result<Request, Problem> {
    let field = |name: &'static str| {
        let fields = request.headers.iter();
        fields
            .filter(move |field| field.name.eq_ignore_ascii_case(name))
            .map(|field| field.value)
    };
    let (coded, sized) = (
        field("transfer-encoding").next(),
        field("content-length").next(),
    );
    if coded.is_some() && sized.is_some() {
        // A proxy may obey one of them and this server the other: request smuggling (RFC 9112,
        // section 11.2).
        let what = "Transfer-Encoding and Content-Length exclude each other";
        return Err(Problem::Malformed(what));
    }
    let is_new = request.version == Some(1);
    if is_new && field("host").count() != 1 {
        return Err(Problem::Malformed(
            "HTTP/1.1 needs a Host field, and one only",
        ));
    }
    let head_only = match request.method {
        Some("GET") => false,
        Some("HEAD") => true,
        _ => return Err(Problem::Method),
    };
    if coded.is_some() {
        return Err(Problem::Coding);
    }
    for length in field("content-length") {
        match length.trim_ascii() {
            b"0" => {}
            digits if !digits.is_empty() && digits.iter().all(u8::is_ascii_digit) => {
                return Err(Problem::Body);
            }
            _ => return Err(Problem::Malformed("Content-Length is not a number")),
        }
    }
    let names = |option: &str| {
        let mut values = field("connection").flat_map(|value| value.split(|byte| *byte == b','));
        values.any(|value| value.trim_ascii().eq_ignore_ascii_case(option.as_bytes()))
    };
    let accept: Vec<_> = field("accept").map(String::from_utf8_lossy).collect();
    Ok(Request {
        head_only,
        path: path(request.path.unwrap_or("/")).to_string(),
        accept: accept.join(","),
        // HTTP/1.0 connections stay open only if the response says so, and ours does not.
        keep_alive: is_new && !names("close"),
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

#[cfg(test)]
mod tests {
    use super::*;

    fn request(text: &str) -> Request {
        match parse(text.as_bytes()) {
            ParseResult::Request(request, length) => {
                assert_eq!(length, text.len());
                request
            }
            result => panic!("{result:?} in {text:?}"),
        }
    }

    #[test]
    fn a_request_is_read_as_it_was_meant() {
        let plain =
            request("GET /metrics?x=1 HTTP/1.1\r\nHost: a\r\nAccept: text/html;q=0.5, a/b\r\n\r\n");
        assert_eq!(plain.path, "/metrics");
        assert!(!plain.head_only && plain.keep_alive);
        assert!(plain.prefers("A/b", "text/html") && !plain.prefers("text/html", "a/b"));
        let closing = request(
            "HEAD http://a:1 HTTP/1.1\r\nhost: a\r\nConnection: x, Close\r\nContent-Length: 0\r\n\r\n",
        );
        assert_eq!(
            (closing.path.as_str(), closing.head_only, closing.keep_alive),
            ("/", true, false)
        );
        let old = request("GET / HTTP/1.0\n\n");
        assert!(!old.keep_alive && !old.prefers("text/html", "text/plain"));
        assert!(!request("GET / HTTP/1.0\r\nConnection: keep-alive\r\n\r\n").keep_alive);
    }

    #[test]
    fn what_a_client_prefers_is_told_by_weights_and_then_by_name() {
        for (accept, prefers) in [
            ("", false),
            ("*/*", false),
            ("application/json", true),
            ("Application/JSON ; Q=0.1", true),
            ("application/json;q=0", false),
            ("application/json;q=0.000", false),
            ("text/plain, application/json;q=0.5", false),
            ("text/plain;q=0.5, application/json", true),
            ("text/plain;q=0.5, application/json;q=0.501", true),
            ("application/json, text/plain, */*", true),
            ("application/json, */*;q=0.1", true),
            ("application/json;q=0.1, */*", false),
            ("application/*", true),
            ("application/*, text/*", false),
            ("*/*, text/*;q=0.9", true),
            ("*/*, application/*;q=0.9", false),
            // The most specific range decides, at any position.
            ("text/plain;q=0, */*", true),
            ("application/*;q=0, application/json;q=0.2", true),
            (
                "application/json;q=0.2, application/*;q=0, text/*;q=0.1",
                true,
            ),
            ("application/json;q=0, application/*", false),
            ("application/json;version=2;q=0.7, text/plain;q=0.6", true),
            ("application/json;q=2", false),
            ("application/json;q=nan", false),
            ("application/json;q=", false),
            ("image/png", false),
            (",;,=;q", false),
        ] {
            let text = format!("GET / HTTP/1.0\r\nAccept: {accept}\r\n\r\n");
            let prefers_json = request(&text).prefers("application/json", "text/plain");
            assert_eq!(prefers_json, prefers, "{accept}");
        }
        let twice = request("GET / HTTP/1.0\r\nAccept: text/plain;q=0.1\r\nAccept: a/b\r\n\r\n");
        assert!(twice.prefers("a/b", "text/plain"));
    }

    #[test]
    fn what_cannot_be_answered_has_its_status() {
        let long = format!("GET /{} HTTP/1.1\r\n", "x".repeat(LONGEST_HEAD));
        let many = format!(
            "GET / HTTP/1.1\r\n{}\r\n",
            "a: b\r\n".repeat(MAX_FIELDS + 1)
        );
        for (text, status) in [
            ("WHO\n\n", 400),
            ("GET / HTTP/1.1\r\n\r\n", 400),
            ("GET / HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n", 400),
            (
                "GET / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\nContent-Length: 0\r\n\r\n",
                400,
            ),
            (
                "GET / HTTP/1.1\r\nHost: a\r\nContent-Length: 1, 1\r\n\r\n",
                400,
            ),
            ("POST / HTTP/1.1\r\nHost: a\r\n\r\n", 405),
            (
                "GET / HTTP/1.1\r\nHost: a\r\nContent-Length: 0\r\nContent-Length: 5\r\n\r\n",
                413,
            ),
            (&long, 431),
            (&many, 431),
            (
                "GET / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n",
                501,
            ),
            ("GET / HTTP/2.0\r\n\r\n", 505),
        ] {
            match parse(text.as_bytes()) {
                ParseResult::Bad(problem, _) => {
                    assert_eq!(problem.response().status, status, "{text:?}");
                }
                result => panic!("{result:?} in {text:?}"),
            }
        }
    }
}
