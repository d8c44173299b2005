//! Wire protocols, a folder each: a [`Codec`] turns the bytes of one connection into calls of the
//! command table, and their results into bytes. Nothing here touches a socket.
//!
//! A protocol is added by its folder and its line in [`PROTOCOLS`]. Everything else, such as
//! reading, time-outs, counting, closing and the handover, is the [`session`](crate::session)'s.

pub mod grpc;
pub mod http;
pub mod jsonrpc;
pub mod line;
pub mod protobuf;
pub mod proxy;

use std::fmt;
use std::time::Duration;

use crate::request_log::RequestLog;
use crate::transport::clients::ConnectionGuard;
use shared::clock::Nanos;
use shared::command::user::{Encode, UserStream};
use shared::command::{
    BatchCounters, Call, CommandError, CommandSpec, Context, Outcome, Unavailable, Value,
};

/// The protocols of this program. The first is the default: of an address without a scheme, and of
/// a socket of systemd without a name.
pub const PROTOCOLS: Protocols = Protocols(&[
    &line::LineProtocol,
    &protobuf::ProtobufProtocol,
    &grpc::GrpcProtocol,
    &jsonrpc::JsonRpcProtocol,
]);

/// Size of a session's read buffer in bytes. A codec keeps longer messages itself: it must use some
/// of the input whenever this buffer is full.
pub const READ_BUFFER: usize = 1024;

/// Length of the output in bytes from which on a codec answers no further request, but returns
/// [`Next::Again`]: replies may be long, and there may be many.
pub const FULL_OUTPUT: usize = 128 * 1024;

/// A registry of protocols.
#[derive(Clone, Copy)]
pub struct Protocols(pub &'static [&'static dyn Protocol]);

impl Protocols {
    /// Returns the protocol with this scheme.
    pub fn find(self, scheme: &str) -> Option<&'static dyn Protocol> {
        let mut protocols = self.0.iter().copied();
        protocols.find(|protocol| protocol.scheme() == scheme)
    }

    /// Returns the place of the protocol with this scheme, or 0 if there is none.
    pub fn position(self, scheme: &str) -> usize {
        let mut protocols = self.0.iter();
        let position = protocols.position(|protocol| protocol.scheme() == scheme);
        position.unwrap_or(0)
    }

    /// Returns the protocol of an address without a scheme.
    pub fn default(self) -> &'static dyn Protocol {
        self.0[0]
    }

    /// Returns all schemes, separated by commas.
    pub fn schemes(self) -> String {
        let schemes: Vec<&str> = self.0.iter().map(|protocol| protocol.scheme()).collect();
        schemes.join(", ")
    }
}

/// A protocol: what is known of it without a connection.
pub trait Protocol: Sync {
    /// Returns the scheme of its addresses, `tcp` in `tcp://127.0.0.1:4242`, which also names it in
    /// the handover state.
    fn scheme(&self) -> &'static str;

    /// Opens the codec of a connection: a new one, or one whose codec returned `saved` from
    /// [`Codec::save`]. A new codec saves nothing, so that `saved` is empty. A codec without fields
    /// costs no memory.
    fn open(&self, saved: &[u8]) -> Box<dyn Codec>;

    /// Returns whether a connection counts as a client from its beginning. Otherwise its codec
    /// decides when, by [`ConnectionGuard::count`]: a health check need not count.
    fn counts_at_once(&self) -> bool {
        true
    }

    /// Appends to `output` what is told to a client that is not admitted.
    fn reject(&self, error: &CommandError<'_>, output: &mut Vec<u8>);
}

impl fmt::Debug for dyn Protocol {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.scheme())
    }
}

/// The protocol state of one connection.
pub trait Codec: Send {
    /// Answers the whole requests at the beginning of `input`, and appends the replies to the
    /// exchange's output. The session calls it once for each read, and sends the output in one
    /// piece.
    fn receive(&mut self, input: Input<'_>, exchange: &mut Exchange<'_>) -> Progress;

    /// Appends to `output` what the client is told before the server closes the connection. After a
    /// panic, `output` ends with whatever the failed request has left.
    fn goodbye(&mut self, why: Goodbye, output: &mut Vec<u8>);

    /// Returns whether the connection can be continued in another process. Otherwise it is drained.
    fn is_movable(&self) -> bool {
        true
    }

    /// Returns what [`Protocol::open`] needs to continue the connection in another process. The
    /// session keeps the unused input.
    fn save(&self) -> Vec<u8> {
        Vec::new()
    }

    /// Begins the end of a connection that can't be continued, if the client has a part in it: then
    /// the session calls [`Codec::receive`] at once, and goes on until that returns [`Next::Close`],
    /// within a second, or in a drain of the server, as long as the client takes answers. Otherwise
    /// it answers what has arrived, and closes.
    fn drain(&mut self) -> bool {
        false
    }
}

/// The input of a connection that no codec has used yet.
#[derive(Clone, Copy)]
pub struct Input<'a> {
    /// The bytes.
    pub bytes: &'a [u8],
    /// Number of leading bytes that the codec has seen before, and did not use.
    pub seen: usize,
    /// Whether the client sends no more.
    pub is_last: bool,
}

/// What a codec works with during one call.
pub struct Exchange<'a> {
    /// Context of the commands.
    pub context: &'a Context,
    /// When the input was read.
    pub read_at: Nanos,
    /// The replies.
    pub output: &'a mut Vec<u8>,
    /// Counters of the requests.
    pub counters: &'a mut BatchCounters,
    /// Log of the requests, if it is kept.
    pub log: Option<&'a mut RequestLog>,
    /// The connection's place in the count.
    pub guard: &'a mut ConnectionGuard,
}

impl<'a> Exchange<'a> {
    /// Executes a call of `spec`, which is at `index` of the table, counts and logs it. Returns
    /// `None` if the request is deferred.
    #[inline]
    pub fn execute<'b>(
        &mut self,
        (index, spec): (usize, &'static CommandSpec),
        call: Result<Call<'b>, CommandError<'b>>,
    ) -> Option<Result<Value<'b>, CommandError<'b>>>
    where
        'a: 'b,
    {
        let logged = self.log.is_some().then(|| match &call {
            Ok(call) => call.to_string(),
            Err(_) => spec.name.to_string(),
        });
        let result = call.and_then(|call| call.execute(self.context));
        let outcome = match &result {
            Err(CommandError::Deferred) => return None,
            Ok(_) => Outcome::value(index),
            Err(error) => Outcome::refused(Some(index), error),
        };
        self.counters.note(outcome.of(spec.class));
        if let Some(request) = logged {
            self.log_result(&request, &result);
        }
        Some(result)
    }

    /// Begins a stream of all users after an id, for the command `spec` at `index` of the table; the
    /// users are encoded by `encode`. Counts and logs it. Returns `None` if the request is deferred.
    pub fn stream(
        &mut self,
        (index, spec): (usize, &'static CommandSpec),
        after: &str,
        encode: Encode,
    ) -> Option<Result<Box<dyn UserStream>, CommandError<'static>>> {
        if !self.context.may_wait {
            return None;
        }
        let none = || CommandError::Unavailable(Unavailable::Store);
        let users = self.context.users.as_ref().ok_or_else(none);
        let stream = users.and_then(|users| {
            let stream = users.stream(after, encode);
            stream.map_err(CommandError::Unavailable)
        });
        let (outcome, reply) = match &stream {
            Ok(_) => (Outcome::value(index), "(a stream)".to_string()),
            Err(error) => (
                Outcome::refused(Some(index), error),
                format!("ERR {error:?}"),
            ),
        };
        self.counters.note(outcome.of(spec.class));
        if let Some(log) = &mut self.log {
            log.note(spec.name.as_bytes(), reply.as_bytes());
        }
        Some(stream)
    }

    /// Counts and logs a request that names no command.
    #[cold]
    pub fn refuse(&mut self, request: &[u8], error: &CommandError<'_>) {
        self.counters.note(Outcome::refused(None, error));
        if let Some(log) = &mut self.log {
            log.note(request, format!("ERR {error:?}").as_bytes());
        }
    }

    #[cold]
    fn log_result(&mut self, request: &str, result: &Result<Value<'_>, CommandError<'_>>) {
        let reply = match result {
            Ok(value) => value.to_string(),
            Err(error) => format!("ERR {error:?}"),
        };
        if let Some(log) = &mut self.log {
            log.note(request.as_bytes(), reply.as_bytes());
        }
    }
}

/// How far a codec has come with its input.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Progress {
    /// Number of bytes used. The rest comes again, with more input.
    pub used: usize,
    /// What comes next.
    pub next: Next,
}

/// What a session does after a codec's call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Next {
    /// Read more input. After the last input, close the connection.
    More,
    /// The same, but after this time without input the codec is called without any: it watches
    /// something for its client, which counts as active meanwhile.
    MoreWithin(Duration),
    /// Send the replies, read what has arrived if there is room for it, and call the codec again,
    /// whether that is the last input or not: something is still to be answered. The client counts
    /// as active if there were replies.
    Again,
    /// Close the connection after the replies: the client asked for it.
    Close,
    /// Close the connection after the replies: the input breaks the protocol.
    CloseBroken,
    /// The same, and the log says it: the client sends too much that asks nothing, or takes nothing.
    CloseFlood,
    /// Another worker, or the next process, is to answer the rest of the input: the codec is called
    /// there without any new one.
    Defer,
}

/// Why the server closes a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Goodbye {
    /// The client completed no request for too long.
    Idle,
    /// Another client waits for a worker, and this one has been idle for the longest time.
    MadeRoom,
    /// A request failed by a panic.
    Panicked,
    /// The server drains, and everything that had arrived is answered.
    Drained,
}
