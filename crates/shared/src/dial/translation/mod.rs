//! Translator: for the rest of the client every server answers lines. It makes calls of another
//! protocol of request lines, and reply lines of the results.
//!
//! What is wrong with a request is found here, by the same table of commands, and said in the same
//! words as the server's; so is `HELP` answered, where the protocol has none.

mod grpc;
mod jsonrpc;
mod protobuf;

use std::collections::VecDeque;

use uuid::Uuid;

use super::reply::Refusal;
use super::{Scheme, Server};
use crate::clock::Nanos;
use crate::command::user::LONGEST_PAGE;
use crate::command::{Argument, Call, CommandError, CommandSpec, Context, Line, SETS, ValueType};

/// What a client says and hears in one protocol.
trait Wire: Send {
    /// Returns whether the command can be called.
    fn offers(&self, spec: &CommandSpec) -> bool;

    /// Appends a call, whose result gets this number.
    fn call(&mut self, number: u64, call: &Call<'_>, output: &mut Vec<u8>);

    /// Takes what was received, and returns the results. Appends what the protocol has to say to
    /// that. The error says what the bytes are not.
    fn receive(&mut self, bytes: &[u8], output: &mut Vec<u8>) -> Result<Vec<Answer>, &'static str>;
}

/// A result, of the call with this number; without one it is what the server says of its own
/// accord.
struct Answer {
    number: Option<u64>,
    result: Result<String, Refusal>,
}

/// The translator of a connection.
pub struct Translator {
    wire: Box<dyn Wire>,
    context: Context,
    /// The replies to the requests in flight, the oldest first, as far as they are known.
    replies: VecDeque<Option<String>>,
    /// Number of the oldest.
    oldest: u64,
    /// What the server has said of its own accord.
    unasked: Vec<String>,
}

impl Translator {
    /// Returns the translator of a new connection, or `None` if it speaks lines.
    pub fn new(server: &Server) -> Option<Self> {
        let wire: Box<dyn Wire> = match server.scheme {
            Scheme::Tcp => return None,
            Scheme::Protobuf => Box::new(protobuf::ProtobufWire::default()),
            Scheme::Http => Box::new(jsonrpc::JsonRpcWire::new(server)),
            Scheme::Grpc => Box::new(grpc::GrpcWire::new(server)),
        };
        let sets: Vec<_> = SETS.iter().map(|(_, set)| *set).collect();
        Some(Translator {
            wire,
            context: Context::new(Default::default(), Uuid::nil(), &sets),
            replies: VecDeque::new(),
            oldest: 1,
            unasked: Vec::new(),
        })
    }

    /// Appends to `output` what is sent for this line, which has no end.
    pub fn request(&mut self, line: &[u8], output: &mut Vec<u8>) {
        let Some(request) = self.context.parse(Line::new(line), Nanos::now()) else {
            return;
        };
        let mut call = request.and_then(|request| request.call());
        if let Ok(call) = &mut call
            && call.spec.result == ValueType::Users
        {
            // A line has a page; other protocols stream all users unless they are asked for one.
            let page = [
                Argument::Text("".into()),
                Argument::Integer(LONGEST_PAGE as i64),
            ];
            let given = call.arguments.len().min(page.len());
            call.arguments.extend(page.into_iter().skip(given));
        }
        let reply = match call {
            Ok(call) if self.wire.offers(call.spec) => {
                let number = self.oldest + self.replies.len() as u64;
                self.wire.call(number, &call, output);
                None
            }
            Ok(call) => Some(match call.execute(&self.context) {
                Ok(value) => value.to_string(),
                Err(error) => refusal(&error),
            }),
            Err(error) => Some(refusal(&error)),
        };
        self.replies.push_back(reply);
    }

    /// Returns whether it answers this line without the server. Not for a translator in use.
    pub fn answers(&mut self, line: &[u8]) -> bool {
        let mut output = Vec::new();
        self.request(line, &mut output);
        output.is_empty()
    }

    /// Takes what was received; [`take_lines`](Translator::take_lines) has the replies. Appends to
    /// `output` what is to be sent. The error says what the bytes are not.
    pub fn receive(&mut self, bytes: &[u8], output: &mut Vec<u8>) -> Result<(), &'static str> {
        for Answer { number, result } in self.wire.receive(bytes, output)? {
            let line = result.unwrap_or_else(|refusal| refusal.to_string());
            let Some(number) = number else {
                self.unasked.push(line);
                continue;
            };
            let index = number.checked_sub(self.oldest).map(|index| index as usize);
            match index.and_then(|index| self.replies.get_mut(index)) {
                Some(reply @ None) => *reply = Some(line),
                _ => return Err("an answer to no request"),
            }
        }
        Ok(())
    }

    /// Appends the replies that are due to `lines`.
    pub fn take_lines(&mut self, lines: &mut Vec<u8>) {
        let known = self.replies.iter().take_while(|reply| reply.is_some());
        let known = known.count();
        self.oldest += known as u64;
        let known = self.replies.drain(..known).flatten();
        for line in known.chain(self.unasked.drain(..)) {
            lines.extend_from_slice(line.as_bytes());
            lines.push(b'\n');
        }
    }
}

fn refusal(error: &CommandError<'_>) -> String {
    format!("ERR {error:?}")
}
