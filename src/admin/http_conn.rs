//! Connection of the admin HTTP server: a state machine with a deadline.

use std::net::{Shutdown, TcpStream};
use std::time::{Duration, Instant};

use rustix::event::PollFlags;
use rustix::io::Errno;
use rustix::net::{RecvFlags, SendFlags};

use super::CHECK_TIMEOUT;
use crate::admin::Handlers;
use crate::protocol::http::{self, ParseResult, Request, Response};

/// Timeout for a request to arrive completely, and for a response to be received.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(5);

/// Keep-alive timeout: longer than tools usually wait between two requests.
const KEEP_ALIVE_TIMEOUT: Duration = Duration::from_secs(75);

/// Timeout of the lingering close after a last response.
const LINGER_TIMEOUT: Duration = Duration::from_secs(1);

/// Number of bytes to read at a time.
const READ_CHUNK: usize = 2048;

/// A connection.
pub(super) struct HttpConn {
    pub stream: TcpStream,
    pub input: Vec<u8>,
    pub state: ConnState,
    /// Whether a request was answered on it before.
    was_answered: bool,
    /// Whether it is closed after the next response.
    pub is_last: bool,
    /// Its deadline.
    pub until: Instant,
}

/// State of a connection.
pub(super) enum ConnState {
    /// Waits for a request, or for the rest of one.
    Reading,
    /// The request waits for the health check.
    AwaitingCheck(Request),
    /// Writes the rest of a response.
    Writing { rest: Vec<u8>, keep_alive: bool },
    /// The response is sent, and the buffer holds the beginning of another request (pipelining).
    Continuing,
    /// Lingering close: half-closed, and input is discarded.
    Lingering,
    /// The connection is finished.
    Gone,
}

impl ConnState {
    pub fn events(&self) -> PollFlags {
        match self {
            ConnState::Reading | ConnState::Lingering => PollFlags::IN,
            // Pipelined requests are answered one per poll, so that other connections get their
            // turn.
            ConnState::Writing { .. } | ConnState::Continuing => PollFlags::OUT,
            // POLLHUP and POLLERR, which are always reported, are enough.
            ConnState::AwaitingCheck(_) | ConnState::Gone => PollFlags::empty(),
        }
    }
}

impl HttpConn {
    /// Returns a new connection.
    pub fn new(stream: TcpStream) -> Self {
        HttpConn {
            stream,
            input: Vec::new(),
            state: ConnState::Reading,
            was_answered: false,
            is_last: false,
            until: Instant::now() + REQUEST_TIMEOUT,
        }
    }

    /// Returns whether a request was answered and no other has begun.
    pub fn is_idle(&self) -> bool {
        self.was_answered && self.input.is_empty() && matches!(self.state, ConnState::Reading)
    }

    /// Does everything that is possible without blocking.
    pub fn advance(&mut self, handlers: &mut Handlers) {
        match &mut self.state {
            ConnState::Reading => self.read(handlers),
            ConnState::Writing { .. } => self.write(),
            ConnState::Continuing => {
                self.state = ConnState::Reading;
                self.parse(handlers);
            }
            // Input is discarded, so that the client receives the response and not a reset.
            ConnState::Lingering => drop(self.receive(&mut [0; READ_CHUNK])),
            // The peer has gone: only that was polled for.
            ConnState::AwaitingCheck(_) => self.state = ConnState::Gone,
            ConnState::Gone => {}
        }
    }

    fn read(&mut self, handlers: &mut Handlers) {
        let mut chunk = [0; READ_CHUNK];
        let read = self.receive(&mut chunk);
        if read == 0 {
            return;
        }
        let begins = self.input.is_empty();
        self.input.extend_from_slice(&chunk[..read]);
        self.skip_blank();
        if begins && !self.input.is_empty() {
            self.until = Instant::now() + REQUEST_TIMEOUT;
        }
        self.parse(handlers);
    }

    /// Receives what has arrived, and returns its length. Notes whether the peer has gone.
    fn receive(&mut self, chunk: &mut [u8]) -> usize {
        match rustix::net::recv(&self.stream, chunk, RecvFlags::DONTWAIT) {
            Ok((read, _)) if read > 0 => return read,
            Err(Errno::AGAIN | Errno::INTR) => {}
            Ok(_) | Err(_) => self.state = ConnState::Gone,
        }
        0
    }

    /// Skips empty lines before a request (RFC 9112, section 2.2).
    fn skip_blank(&mut self) {
        let is_blank = |byte: &&u8| matches!(byte, b'\r' | b'\n');
        let blank = self.input.iter().take(4).take_while(is_blank).count();
        self.input.drain(..blank);
    }

    /// Answers the request in the buffer, if it is complete.
    fn parse(&mut self, handlers: &mut Handlers) {
        match http::parse(&self.input) {
            ParseResult::Partial => {}
            ParseResult::Bad(problem, head_only) => {
                self.reply(handlers, &problem.response(), head_only, false);
            }
            ParseResult::Request(request, length) => {
                self.input.drain(..length);
                self.skip_blank();
                match handlers.answer(&request) {
                    Some(response) => {
                        self.reply(handlers, &response, request.head_only, request.keep_alive);
                    }
                    None => {
                        // Time for the check, and for the response.
                        self.until = Instant::now() + CHECK_TIMEOUT + REQUEST_TIMEOUT;
                        self.state = ConnState::AwaitingCheck(request);
                    }
                }
            }
        }
    }

    pub fn reply(
        &mut self,
        handlers: &mut Handlers,
        response: &Response,
        head_only: bool,
        keep_alive: bool,
    ) {
        handlers.count_response(response.status);
        self.was_answered = true;
        let keep_alive = keep_alive && !self.is_last;
        self.until = Instant::now() + REQUEST_TIMEOUT;
        self.state = ConnState::Writing {
            rest: response.encode(head_only, keep_alive),
            keep_alive,
        };
        self.write();
    }

    fn write(&mut self) {
        let ConnState::Writing { rest, keep_alive } = &mut self.state else {
            return;
        };
        let flags = SendFlags::DONTWAIT | SendFlags::NOSIGNAL;
        match rustix::net::send(&self.stream, rest, flags) {
            Ok(sent) => drop(rest.drain(..sent)),
            Err(Errno::AGAIN | Errno::INTR) => return,
            Err(_) => return self.state = ConnState::Gone,
        }
        if !rest.is_empty() {
            return;
        }
        if *keep_alive && self.input.is_empty() {
            self.state = ConnState::Reading;
            self.until = Instant::now() + KEEP_ALIVE_TIMEOUT;
            self.input = Vec::new();
        } else if *keep_alive {
            self.state = ConnState::Continuing;
            self.until = Instant::now() + REQUEST_TIMEOUT;
        } else {
            // It fails if the client has gone, which does no harm.
            let _ = self.stream.shutdown(Shutdown::Write);
            self.input = Vec::new();
            self.until = Instant::now() + LINGER_TIMEOUT;
            self.state = ConnState::Lingering;
        }
    }
}
