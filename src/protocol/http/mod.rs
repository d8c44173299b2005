//! HTTP/1.1 (RFC 9110, RFC 9112): parses requests and encodes responses. It touches no socket, and
//! the handlers are elsewhere.

mod body;
mod head;
mod request;
mod response;

pub use self::body::{BodyDecoder, LONGEST_BODY};
pub use self::head::{Framing, Head, has_bare_lf, parse_head};
pub use self::request::{LONGEST_HEAD, ParseResult, Problem, Request, parse};
pub use self::response::{Response, STATUSES};
