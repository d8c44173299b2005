//! HTTP/1.1 requests of the admin server: GET and HEAD, without bodies.

use super::head::{Framing, parse_head};
use super::response::Response;

/// The longest head of a request in bytes, its final blank line included.
pub const LONGEST_HEAD: usize = 8 * 1024;

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
    /// It has a body that is too long, or one at all where no request needs it.
    Body,
    /// It has a body in a transfer coding that is not supported.
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
    let mut accept: Vec<&[u8]> = Vec::new();
    let parsed = parse_head(buffer, LONGEST_HEAD, |name, value| {
        if name.eq_ignore_ascii_case("accept") {
            accept.push(value);
        }
    });
    let (head, length) = match parsed {
        Ok(Some(parsed)) => parsed,
        Ok(None) => return ParseResult::Partial,
        Err((problem, head_only)) => return ParseResult::Bad(problem, head_only),
    };
    let head_only = head.method == "HEAD";
    let problem = match head.framing {
        _ if !head_only && head.method != "GET" => Problem::Method,
        Framing::Chunked => Problem::Coding,
        Framing::Sized(1..) => Problem::Body,
        Framing::Sized(0) => {
            let request = Request {
                head_only,
                path: head.path.to_string(),
                accept: String::from_utf8_lossy(&accept.join(&b","[..])).into_owned(),
                // HTTP/1.0 connections stay open only if the response says so, and ours does not.
                keep_alive: head.is_new && head.keep_alive,
            };
            return ParseResult::Request(request, length);
        }
    };
    ParseResult::Bad(problem, head_only)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::protocol::http::head::MAX_FIELDS;

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
                "GET / HTTP/1.1\r\nHost: a\r\nContent-Length: 0\r\nContent-Length: 0\r\n\r\n",
                400,
            ),
            (
                "GET / HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\n\r\n",
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
