//! One connection of somebody who looks after the server: what is being done for it, and by when.

use std::net::{Shutdown, TcpStream};
use std::time::{Duration, Instant};

use rustix::event::PollFlags;
use rustix::io::Errno;
use rustix::net::{RecvFlags, SendFlags};

use super::CHECK;
use crate::admin::{Answer, Handlers};
use crate::protocol::http::{self, Found, Request, Response};

/// A request must be whole, and a reply taken, within this time.
const PATIENCE: Duration = Duration::from_secs(5);

/// So long may a connection wait for its next request: longer than tools usually wait between two.
const KEPT: Duration = Duration::from_secs(75);

/// A client that was told no gets so long to stop sending, before the connection is closed.
const LEAVE: Duration = Duration::from_secs(1);

/// How many bytes are read at a time.
const QUANTUM: usize = 2048;

/// One connection.
pub(super) struct HttpConn {
    pub stream: TcpStream,
    pub input: Vec<u8>,
    pub state: ConnState,
    /// Whether it has been answered before.
    kept: bool,
    /// Whether it is closed after the next answer.
    pub is_last: bool,
    /// When its time is over.
    pub until: Instant,
}

/// What is being done for a connection.
pub(super) enum ConnState {
    /// It sends a request, or will.
    Reading,
    /// Its request waits for a check, for the next one if that has not begun.
    Waiting { request: Request, begun: bool },
    /// It takes a reply, of which so many bytes are written.
    Writing {
        reply: Vec<u8>,
        written: usize,
        keeps: bool,
    },
    /// It has sent more than the request that was answered: that is next.
    Continuing,
    /// It has been told all, and may send what it will.
    LingeringSocket,
    /// There is nothing left to do.
    Gone,
}

impl ConnState {
    pub fn events(&self) -> PollFlags {
        match self {
            ConnState::Reading | ConnState::LingeringSocket => PollFlags::IN,
            // Who takes replies is asked on in its turn, and the others have theirs.
            ConnState::Writing { .. } | ConnState::Continuing => PollFlags::OUT,
            // Only that it has gone.
            ConnState::Waiting { .. } | ConnState::Gone => PollFlags::empty(),
        }
    }
}

impl HttpConn {
    /// One that has just connected.
    pub fn new(stream: TcpStream) -> Self {
        HttpConn {
            stream,
            input: Vec::new(),
            state: ConnState::Reading,
            kept: false,
            is_last: false,
            until: Instant::now() + PATIENCE,
        }
    }

    /// Whether it has been answered, and asks nothing now.
    pub fn is_idle(&self) -> bool {
        self.kept && self.input.is_empty() && matches!(self.state, ConnState::Reading)
    }

    /// Does what can be done without waiting.
    pub fn go_on(&mut self, handlers: &mut Handlers) {
        match &mut self.state {
            ConnState::Reading => self.read(handlers),
            ConnState::Writing { .. } => self.write(),
            ConnState::Continuing => {
                self.state = ConnState::Reading;
                self.look(handlers);
            }
            ConnState::LingeringSocket => self.discard(),
            // It has gone: that is all that was polled for.
            ConnState::Waiting { .. } => self.state = ConnState::Gone,
            ConnState::Gone => {}
        }
    }

    fn read(&mut self, handlers: &mut Handlers) {
        let mut piece = [0; QUANTUM];
        match rustix::net::recv(&self.stream, &mut piece, RecvFlags::DONTWAIT) {
            Ok((0, _)) => self.state = ConnState::Gone,
            Ok((read, _)) => {
                let begins = self.input.is_empty();
                self.input.extend_from_slice(&piece[..read]);
                self.skip_blank();
                if begins && !self.input.is_empty() {
                    self.until = Instant::now() + PATIENCE;
                }
                self.look(handlers);
            }
            Err(Errno::AGAIN | Errno::INTR) => {}
            Err(_) => self.state = ConnState::Gone,
        }
    }

    /// An empty line or two before a request is none (RFC 9112, section 2.2).
    fn skip_blank(&mut self) {
        let is_blank = |byte: &&u8| matches!(byte, b'\r' | b'\n');
        let blank = self.input.iter().take(4).take_while(is_blank).count();
        self.input.drain(..blank);
    }

    /// Answers the request in the input, if it is whole.
    fn look(&mut self, handlers: &mut Handlers) {
        match http::find(&self.input) {
            Found::Part => {}
            Found::Bad(problem, head_only) => {
                self.reply(handlers, &problem.response(), head_only, false);
            }
            Found::Request(request, length) => {
                self.input.drain(..length);
                self.skip_blank();
                match handlers.answer(&request) {
                    Answer::Now(response) => {
                        self.reply(handlers, &response, request.head_only, request.keeps);
                    }
                    Answer::AfterCheck => {
                        // The check takes its own time, and then the reply must be taken.
                        self.until = Instant::now() + CHECK * 2 + PATIENCE;
                        let begun = false;
                        self.state = ConnState::Waiting { request, begun };
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
        keeps: bool,
    ) {
        handlers.note(response.status);
        self.kept = true;
        let keeps = keeps && !self.is_last;
        self.until = Instant::now() + PATIENCE;
        self.state = ConnState::Writing {
            reply: response.encode(head_only, keeps),
            written: 0,
            keeps,
        };
        self.write();
    }

    fn write(&mut self) {
        let ConnState::Writing {
            reply,
            written,
            keeps,
        } = &mut self.state
        else {
            return;
        };
        let flags = SendFlags::DONTWAIT | SendFlags::NOSIGNAL;
        match rustix::net::send(&self.stream, &reply[*written..], flags) {
            Ok(more) => *written += more,
            Err(Errno::AGAIN | Errno::INTR) => return,
            Err(_) => return self.state = ConnState::Gone,
        }
        if *written < reply.len() {
            return;
        }
        if *keeps && self.input.is_empty() {
            self.state = ConnState::Reading;
            self.until = Instant::now() + KEPT;
            self.input = Vec::new();
        } else if *keeps {
            self.state = ConnState::Continuing;
            self.until = Instant::now() + PATIENCE;
        } else {
            // It fails if the client has gone, which is as well.
            let _ = self.stream.shutdown(Shutdown::Write);
            self.input = Vec::new();
            self.until = Instant::now() + LEAVE;
            self.state = ConnState::LingeringSocket;
        }
    }

    /// Throws away what it still sends, so that it gets its reply and not a reset.
    fn discard(&mut self) {
        let mut piece = [0; QUANTUM];
        match rustix::net::recv(&self.stream, &mut piece, RecvFlags::DONTWAIT) {
            Ok((0, _)) => self.state = ConnState::Gone,
            Ok(_) | Err(Errno::AGAIN | Errno::INTR) => {}
            Err(_) => self.state = ConnState::Gone,
        }
    }
}
