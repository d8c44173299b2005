//! JSON-RPC 2.0 over HTTP/1.1: a request's body is a call or a batch of calls. `docs/protocol.md`
//! specifies it.

mod call;
mod response;
mod stream;

use std::sync::atomic::{AtomicUsize, Ordering};

use serde::{Deserialize, Serialize};

use self::call::Answered;
use self::response::{Connection, write_head, write_stream_head};
use self::stream::Streaming;
use super::http::{BodyDecoder, Framing, Head, LONGEST_BODY, Problem, has_bare_lf, parse_head};
use super::{Codec, Exchange, FULL_OUTPUT, Goodbye, Input, Next, Progress, Protocol, READ_BUFFER};
use shared::command::CommandError;
use shared::command::user::UserStream;

/// The longest head of a request in bytes, its final blank line included.
const LONGEST_HEAD: usize = 16 * 1024;

/// The most memory in bytes for unfinished requests that all codecs together keep; more of them are
/// refused.
const MAX_KEPT: usize = 64 * 1024 * 1024;

/// The memory that all codecs keep.
static KEPT: AtomicUsize = AtomicUsize::new(0);

/// Seconds after which a client that finds no room may try again.
const RETRY: &str = "Retry-After: 1\r\n";

/// JSON-RPC 2.0 over HTTP/1.1.
pub struct JsonRpcProtocol;

impl Protocol for JsonRpcProtocol {
    fn scheme(&self) -> &'static str {
        "http"
    }

    fn open(&self, saved: &[u8]) -> Box<dyn Codec> {
        let held = (!saved.is_empty()).then(|| {
            // Another version may have saved it: its request is lost, and where the next begins.
            let held = postcard::from_bytes(saved).unwrap_or(Held::Lost);
            Box::new(held)
        });
        let mut codec = JsonRpcCodec {
            has_begun: held.is_some(),
            held,
            kept: 0,
            answered: 0,
        };
        codec.keep();
        Box::new(codec)
    }

    fn reject(&self, error: &CommandError<'_>, output: &mut Vec<u8>) {
        refuse(503, error, output);
    }
}

/// Codec of JSON-RPC over HTTP.
struct JsonRpcCodec {
    /// The request that does not fit into the session's buffer, or waits for another worker.
    held: Option<Box<Held>>,
    /// What of [`KEPT`] is its memory.
    kept: usize,
    /// Whether the next request has begun.
    has_begun: bool,
    /// Length of the output when the last request was answered.
    answered: usize,
}

/// A request that the codec keeps.
#[derive(Serialize, Deserialize)]
enum Held {
    /// The beginning of a head.
    Head(#[serde(with = "serde_bytes")] Vec<u8>),
    /// The beginning of a body, and what is missing.
    Body(Request, BodyDecoder, #[serde(with = "serde_bytes")] Vec<u8>),
    /// A whole body, the length of its answered part, and the replies to that.
    Deferred(
        Request,
        #[serde(with = "serde_bytes")] Vec<u8>,
        usize,
        #[serde(with = "serde_bytes")] Vec<u8>,
    ),
    /// Nothing is known of it.
    Lost,
    /// It is being answered. Another process can't go on with it.
    #[serde(skip)]
    Streaming(Streaming),
}

/// What remains of a request's head.
#[derive(Clone, Copy, Serialize, Deserialize)]
struct Request {
    framing: Framing,
    is_new: bool,
    is_head: bool,
    keep_alive: bool,
    /// Whether the client sends the body only when it is asked to.
    awaits_continue: bool,
    /// Status of the refusal, whatever the body is; 0 if there is none.
    refusal: u16,
}

impl Codec for JsonRpcCodec {
    fn receive(&mut self, input: Input<'_>, exchange: &mut Exchange<'_>) -> Progress {
        let mut used = 0;
        let mut last = None;
        let mut next = loop {
            self.answered = exchange.output.len();
            let (taken, step) = self.step(&input.bytes[used..], exchange);
            used += taken;
            match step {
                Ok(Step::Answered) => {
                    last = Some(self.answered);
                    if exchange.output.len() >= FULL_OUTPUT {
                        break Next::Again;
                    }
                }
                Ok(Step::Continues) => {}
                Ok(Step::Ends(next)) => break next,
                Err(problem) => break fail(problem, exchange),
            }
        };
        if (self.held.is_some() || self.kept > 0)
            && self.keep() > MAX_KEPT
            && self.held.is_some()
            && next == Next::More
        {
            self.held = None;
            let error = CommandError::NotNow("too many long requests at once, try again");
            exchange.refuse(b"(no call)", &error);
            refuse(503, &error, exchange.output);
            next = Next::CloseBroken;
        }
        self.has_begun = self.held.is_some() || used < input.bytes.len();
        let all_read = !self.has_begun && input.bytes.len() < READ_BUFFER;
        if let Some(last) = last
            && all_read
            && next == Next::More
            && exchange.context.draining.get().is_some()
        {
            response::add_close(exchange.output, last);
            next = Next::Close;
        }
        Progress { used, next }
    }

    fn goodbye(&mut self, why: Goodbye, output: &mut Vec<u8>) {
        match why {
            Goodbye::Panicked => {
                // The requests before the failed one get their responses.
                output.truncate(self.answered);
                refuse(500, &CommandError::Internal, output);
            }
            // To a client that asks nothing, a response would be one to its next request; to one that
            // has half a response, it would be the rest of that.
            _ if !self.has_begun || self.is_streaming() => {}
            Goodbye::Idle => refuse(408, &CommandError::Idle, output),
            Goodbye::MadeRoom => refuse(408, &CommandError::MadeRoom, output),
            Goodbye::Drained => {
                let error = CommandError::NotNow("the server stops, try again");
                refuse(503, &error, output);
            }
        }
    }

    fn is_movable(&self) -> bool {
        !self.is_streaming()
    }

    fn drain(&mut self) -> bool {
        if let Some(Held::Streaming(streaming)) = self.held.as_deref_mut() {
            streaming.leave();
        }
        self.is_streaming()
    }

    fn save(&self) -> Vec<u8> {
        let Some(held) = &self.held else {
            return Vec::new();
        };
        // It fails for no value of the type.
        postcard::to_allocvec(held).unwrap_or_default()
    }
}

impl Drop for JsonRpcCodec {
    fn drop(&mut self) {
        self.held = None;
        self.keep();
    }
}

/// What a step has come to.
enum Step {
    /// A request is answered.
    Answered,
    /// The next part of a request comes.
    Continues,
    /// Nothing more can be done.
    Ends(Next),
}

impl JsonRpcCodec {
    /// Counts the memory that it keeps now. Returns that of all.
    fn keep(&mut self) -> usize {
        let kept = match self.held.as_deref() {
            Some(Held::Head(bytes) | Held::Body(_, _, bytes)) => bytes.capacity(),
            Some(Held::Deferred(_, body, _, replies)) => body.capacity() + replies.capacity(),
            None | Some(Held::Lost | Held::Streaming(_)) => 0,
        };
        let before = std::mem::replace(&mut self.kept, kept);
        // They wrap around together.
        let change = kept.wrapping_sub(before);
        KEPT.fetch_add(change, Ordering::Relaxed)
            .wrapping_add(change)
    }

    /// Takes the next part of a request from `bytes`. Returns how many bytes that is.
    fn step(
        &mut self,
        bytes: &[u8],
        exchange: &mut Exchange<'_>,
    ) -> (usize, Result<Step, Problem>) {
        match self.held.take().map(|held| *held) {
            None => self.begin(bytes, exchange),
            Some(Held::Head(head)) => self.continue_head(head, bytes, exchange),
            Some(Held::Body(request, mut decoder, mut body)) => {
                match decoder.decode(bytes, &mut body) {
                    Ok(used) if decoder == BodyDecoder::Done => {
                        (used, Ok(self.answer_held(request, body, 0, exchange)))
                    }
                    Ok(used) => {
                        self.held = Some(Box::new(Held::Body(request, decoder, body)));
                        (used, Ok(Step::Ends(Next::More)))
                    }
                    Err(problem) => (0, Err(problem)),
                }
            }
            Some(Held::Deferred(request, body, answered, replies)) => {
                exchange.output.extend_from_slice(&replies);
                let step = self.answer_held(request, body, answered, exchange);
                (0, Ok(step))
            }
            Some(Held::Streaming(mut streaming)) => {
                if exchange.context.draining.get().is_some() {
                    streaming.close_after();
                    streaming.stay();
                }
                let step = match streaming.advance(exchange.output) {
                    Next::More => Step::Continues,
                    Next::Again => {
                        self.held = Some(Box::new(Held::Streaming(streaming)));
                        Step::Ends(Next::Again)
                    }
                    next => Step::Ends(next),
                };
                (0, Ok(step))
            }
            Some(Held::Lost) => {
                let error = CommandError::NotNow("the request is lost, try again");
                exchange.refuse(b"(no call)", &error);
                refuse(503, &error, exchange.output);
                (0, Ok(Step::Ends(Next::CloseBroken)))
            }
        }
    }

    /// Begins a request, and answers it at once if all of it is in `bytes`.
    #[inline]
    fn begin(
        &mut self,
        bytes: &[u8],
        exchange: &mut Exchange<'_>,
    ) -> (usize, Result<Step, Problem>) {
        if bytes.starts_with(b"\r\n") {
            // Blank lines before a request mean nothing (RFC 9112, section 2.2).
            return (2, Ok(Step::Continues));
        }
        let (request, head) = match parse(bytes) {
            Ok(Some(parsed)) => parsed,
            Ok(None) if bytes.len() < READ_BUFFER => return (0, Ok(Step::Ends(Next::More))),
            Ok(None) => {
                self.held = Some(Box::new(Held::Head(bytes.to_vec())));
                return (bytes.len(), Ok(Step::Ends(Next::More)));
            }
            Err(problem) => return (0, Err(problem)),
        };
        if let Framing::Sized(length) = request.framing
            && length <= READ_BUFFER.saturating_sub(head) as u64
        {
            let end = head + length as usize;
            if let Some(body) = bytes.get(head..end) {
                return (end, Ok(self.answer(request, body, exchange)));
            }
            if !request.awaits_continue && request.refusal != 417 {
                // The rest will come into the session's buffer, too.
                return (0, Ok(Step::Ends(Next::More)));
            }
        }
        (head, self.begin_body(request, bytes.len() > head, exchange))
    }

    /// Continues a head that is longer than the session's buffer.
    fn continue_head(
        &mut self,
        mut head: Vec<u8>,
        bytes: &[u8],
        exchange: &mut Exchange<'_>,
    ) -> (usize, Result<Step, Problem>) {
        let before = head.len();
        head.extend_from_slice(bytes);
        let searched = before.saturating_sub(3);
        let end = head[searched..]
            .windows(4)
            .position(|end| end == b"\r\n\r\n");
        head.truncate(end.map_or(head.len(), |end| searched + end + 4));
        let used = head.len() - before;
        if end.is_none() && head.len() < LONGEST_HEAD {
            self.held = Some(Box::new(Held::Head(head)));
            return (used, Ok(Step::Ends(Next::More)));
        }
        let step = parse(&head).and_then(|parsed| match parsed {
            Some((request, _)) => self.begin_body(request, bytes.len() > used, exchange),
            None => Err(Problem::TooLong),
        });
        (used, step)
    }

    /// Begins a body that is not complete; some of it has arrived if it `has_begun`.
    fn begin_body(
        &mut self,
        request: Request,
        has_begun: bool,
        exchange: &mut Exchange<'_>,
    ) -> Result<Step, Problem> {
        let decoder = BodyDecoder::new(request.framing)?;
        if decoder == BodyDecoder::Done {
            return Ok(self.answer(request, &[], exchange));
        }
        if request.refusal != 0 {
            // Its body is not read.
            let last = Request {
                keep_alive: false,
                ..request
            };
            return Ok(self.answer(last, &[], exchange));
        }
        if request.awaits_continue && !has_begun {
            exchange
                .output
                .extend_from_slice(b"HTTP/1.1 100 Continue\r\n\r\n");
        }
        self.held = Some(Box::new(Held::Body(request, decoder, Vec::new())));
        Ok(Step::Continues)
    }

    /// Answers a request whose body the codec has kept. Its first `answered` bytes are answered,
    /// and the output has the replies to them.
    fn answer_held(
        &mut self,
        request: Request,
        body: Vec<u8>,
        answered: usize,
        exchange: &mut Exchange<'_>,
    ) -> Step {
        match call::answer(&body, answered, self.answered, exchange) {
            Answered::Deferred(answered) => self.defer(request, body, answered, exchange),
            Answered::Streams(users, end) => self.stream(request, users, end, exchange),
            Answered::Users => self.finish_users(request, exchange),
            Answered::Done => self.finish(request, "", exchange),
        }
    }

    /// Answers a request.
    #[inline]
    fn answer(&mut self, request: Request, body: &[u8], exchange: &mut Exchange<'_>) -> Step {
        if request.refusal != 0 {
            return self.refuse_by_head(request, exchange);
        }
        match call::answer(body, 0, self.answered, exchange) {
            Answered::Deferred(answered) => self.defer(request, body.to_vec(), answered, exchange),
            Answered::Streams(users, end) => self.stream(request, users, end, exchange),
            Answered::Users => self.finish_users(request, exchange),
            Answered::Done => self.finish(request, "", exchange),
        }
    }

    /// Answers a request that is refused whatever its body is.
    #[cold]
    fn refuse_by_head(&mut self, request: Request, exchange: &mut Exchange<'_>) -> Step {
        let (sentence, fields) = match request.refusal {
            404 => ("JSON-RPC is at / and /rpc\n", ""),
            405 => (
                "JSON-RPC takes POST alone, with a call as its body\n",
                "Allow: POST\r\n",
            ),
            415 => (
                "a call is application/json, without a Content-Encoding\n",
                "",
            ),
            _ => ("of all expectations, only 100-continue is met\n", ""),
        };
        exchange.refuse(b"(no call)", &CommandError::Malformed(sentence.trim_end()));
        let (start, output) = (self.answered, &mut *exchange.output);
        output.extend_from_slice(sentence.as_bytes());
        write_head(
            request.refusal,
            response::TEXT,
            fields,
            request.connection(),
            start,
            output,
        );
        if request.is_head {
            output.truncate(output.len() - sentence.len());
        }
        request.step()
    }

    /// Keeps a request for another worker, with the replies that it has so far.
    #[cold]
    fn defer(
        &mut self,
        request: Request,
        body: Vec<u8>,
        answered: usize,
        exchange: &mut Exchange<'_>,
    ) -> Step {
        let replies = exchange.output.split_off(self.answered);
        let deferred = Held::Deferred(request, body, answered, replies);
        self.held = Some(Box::new(deferred));
        Step::Ends(Next::Defer)
    }

    /// Begins a response that is sent in parts. Its beginning is at the end of the output.
    #[cold]
    fn stream(
        &mut self,
        request: Request,
        users: Box<dyn UserStream>,
        end: String,
        exchange: &mut Exchange<'_>,
    ) -> Step {
        let streaming = Streaming::new(request, users, end);
        let (is_chunked, closes) = (request.is_new, streaming.closes());
        let age = age(exchange);
        write_stream_head(is_chunked, closes, &age, self.answered, exchange.output);
        self.held = Some(Box::new(Held::Streaming(streaming)));
        Step::Ends(Next::Again)
    }

    fn is_streaming(&self) -> bool {
        matches!(self.held.as_deref(), Some(Held::Streaming(_)))
    }

    /// Completes the response to a request whose replies are at the end of the output. `fields` are
    /// further fields of a response that has a body.
    #[inline]
    fn finish(&mut self, request: Request, fields: &str, exchange: &mut Exchange<'_>) -> Step {
        let (start, output) = (self.answered, &mut *exchange.output);
        let (status, media_type, fields) = match output.len() == start {
            true => (204, "", ""),
            false => (200, response::JSON, fields),
        };
        let connection = request.connection();
        write_head(status, media_type, fields, connection, start, output);
        request.step()
    }

    /// Completes the response to a call that was answered from the users.
    #[cold]
    fn finish_users(&mut self, request: Request, exchange: &mut Exchange<'_>) -> Step {
        let age = age(exchange);
        self.finish(request, &age, exchange)
    }
}

/// Returns the field with the age of the users (RFC 9111, section 5.1), if it is known.
fn age(exchange: &Exchange<'_>) -> String {
    let users = exchange.context.users.as_ref();
    match users.and_then(|users| users.age()) {
        Some(age) => format!("Age: {}\r\n", age.as_secs()),
        None => String::new(),
    }
}

impl Request {
    fn connection(self) -> Connection {
        match (self.keep_alive, self.is_new) {
            (false, _) => Connection::Close,
            (true, false) => Connection::KeepAlive,
            (true, true) => Connection::Unsaid,
        }
    }

    /// Returns what comes after the response.
    fn step(self) -> Step {
        match self.keep_alive {
            true => Step::Answered,
            false => Step::Ends(Next::Close),
        }
    }
}

/// Parses the head at the beginning of `bytes`. Returns it and its length, or `None` if it is
/// incomplete.
#[inline(never)]
fn parse(bytes: &[u8]) -> Result<Option<(Request, usize)>, Problem> {
    let (mut media_type, mut is_encoded) = (None, false);
    let (mut expects, mut fails) = (false, false);
    let parsed = parse_head(bytes, LONGEST_HEAD, |name, value| {
        if name.eq_ignore_ascii_case("content-type") {
            is_encoded |= media_type.replace(value).is_some();
        } else if name.eq_ignore_ascii_case("content-encoding") {
            is_encoded |= !value.eq_ignore_ascii_case(b"identity");
        } else if name.eq_ignore_ascii_case("expect") {
            expects = true;
            fails |= !value.eq_ignore_ascii_case(b"100-continue");
        }
    });
    let Some((head, length)) = parsed.map_err(|(problem, _)| problem)? else {
        return Ok(None);
    };
    if has_bare_lf(&bytes[..length]) {
        return Err(Problem::Malformed("a line ends with CR LF"));
    }
    let request = Request {
        framing: head.framing,
        is_new: head.is_new,
        is_head: head.method == "HEAD",
        keep_alive: head.keep_alive,
        // HTTP/1.0 has no expectations (RFC 9110, section 10.1.1).
        awaits_continue: head.is_new && expects && !fails,
        refusal: match head {
            Head { path, .. } if path != "/" && path != "/rpc" => 404,
            Head { method, .. } if method != "POST" => 405,
            _ if is_encoded || !media_type.is_none_or(is_json) => 415,
            _ if head.is_new && fails => 417,
            _ => 0,
        },
    };
    Ok(Some((request, length)))
}

/// Returns whether a body of this type is taken for JSON. `curl -d` says that it is a form.
fn is_json(media_type: &[u8]) -> bool {
    let end = media_type.iter().position(|byte| *byte == b';');
    let name = media_type[..end.unwrap_or(media_type.len())].trim_ascii();
    name.eq_ignore_ascii_case(b"application/json")
        || name.eq_ignore_ascii_case(b"application/x-www-form-urlencoded")
}

/// Answers input that is no request, after which the beginning of the next is unknown.
#[cold]
fn fail(problem: Problem, exchange: &mut Exchange<'_>) -> Next {
    let (status, error) = match problem {
        Problem::Malformed(what) => (400, CommandError::Malformed(what)),
        Problem::Body => (413, CommandError::TooLong(LONGEST_BODY)),
        Problem::Coding => {
            let what = "of the transfer codings, only chunked is supported";
            (501, CommandError::Malformed(what))
        }
        Problem::TooLong => {
            let what = "a head has at most 16,384 bytes and 64 fields";
            (431, CommandError::Malformed(what))
        }
        Problem::Version => {
            let what = "HTTP/1.1 and HTTP/1.0 are spoken here";
            (505, CommandError::Malformed(what))
        }
        Problem::Method | Problem::Late => (400, CommandError::Malformed("this is no request")),
    };
    exchange.refuse(b"(no call)", &error);
    refuse(status, &error, exchange.output);
    Next::CloseBroken
}

/// Appends a response with an error, after which the server closes.
#[cold]
fn refuse(status: u16, error: &CommandError<'_>, output: &mut Vec<u8>) {
    let start = output.len();
    call::write_refusal(error, output);
    let fields = if status == 503 { RETRY } else { "" };
    write_head(
        status,
        response::JSON,
        fields,
        Connection::Close,
        start,
        output,
    );
}
