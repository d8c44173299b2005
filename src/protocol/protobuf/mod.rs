//! Protobuf protocol: messages of `proto/blockchain_tcp/v1/blockchain_tcp.proto`, each behind its
//! length as a varint. `docs/protocol.md` specifies it.

use super::{Codec, Exchange, FULL_OUTPUT, Goodbye, Input, Next, Progress, Protocol, READ_BUFFER};
use shared::command::CommandError;
use shared::schema::envelope::{self, Envelope, Frame, MAX_MESSAGE};
use shared::schema::{Malformed, decode_arguments};

/// The protobuf protocol.
pub struct ProtobufProtocol;

impl Protocol for ProtobufProtocol {
    fn scheme(&self) -> &'static str {
        "protobuf"
    }

    fn open(&self, saved: &[u8]) -> Box<dyn Codec> {
        Box::new(ProtobufCodec {
            long: saved.to_vec(),
            whole: 0,
        })
    }

    fn reject(&self, error: &CommandError<'_>, output: &mut Vec<u8>) {
        envelope::encode_error(0, error, output);
    }
}

/// Codec of the protobuf protocol.
struct ProtobufCodec {
    /// The beginning of a message that is longer than the session's buffer, or a whole one that is
    /// deferred.
    long: Vec<u8>,
    /// Length of the output when the last message was answered.
    whole: usize,
}

impl Codec for ProtobufCodec {
    fn receive(&mut self, input: Input<'_>, exchange: &mut Exchange<'_>) -> Progress {
        let mut used = 0;
        let next = loop {
            self.whole = exchange.output.len();
            let rest = &input.bytes[used..];
            let bytes = match self.long.is_empty() {
                true => rest,
                false => {
                    used += self.extend_long(rest);
                    &self.long
                }
            };
            let next = match envelope::frame(bytes, MAX_MESSAGE) {
                Frame::Message(message, length) => {
                    if answer(message, exchange).is_none() {
                        break Next::Defer;
                    }
                    if self.long.is_empty() {
                        used += length;
                    } else {
                        self.long = Vec::new();
                    }
                    if exchange.output.len() >= FULL_OUTPUT {
                        break Next::Again;
                    }
                    continue;
                }
                Frame::Partial(length) if !input.is_last => {
                    if self.long.is_empty() && length > READ_BUFFER {
                        self.long = rest.to_vec();
                        used = input.bytes.len();
                    }
                    Next::More
                }
                Frame::Partial(_) if bytes.is_empty() => Next::More,
                Frame::Partial(_) => {
                    let ended = Malformed("the input ended within a message");
                    refuse(&ended.into(), exchange)
                }
                Frame::TooLong => refuse(&CommandError::TooLong(MAX_MESSAGE), exchange),
                Frame::Malformed => {
                    let malformed = Malformed("no length of a message");
                    refuse(&malformed.into(), exchange)
                }
            };
            break next;
        };
        Progress { used, next }
    }

    fn goodbye(&mut self, why: Goodbye, output: &mut Vec<u8>) {
        let error = match why {
            Goodbye::Idle => CommandError::Idle,
            Goodbye::MadeRoom => CommandError::MadeRoom,
            Goodbye::Panicked => {
                // The requests before the failed one get their replies.
                output.truncate(self.whole);
                CommandError::Internal
            }
            Goodbye::Drained => return,
        };
        envelope::encode_error(0, &error, output);
    }

    fn save(&self) -> Vec<u8> {
        self.long.clone()
    }
}

impl ProtobufCodec {
    /// Moves as much of `rest` into the long message as it lacks. Returns how much.
    fn extend_long(&mut self, rest: &[u8]) -> usize {
        let Frame::Partial(length) = envelope::frame(&self.long, MAX_MESSAGE) else {
            return 0;
        };
        let missing = rest.len().min(length - self.long.len());
        self.long.extend_from_slice(&rest[..missing]);
        missing
    }
}

/// Refuses input that is no message, and with it the rest of the input.
#[cold]
fn refuse(error: &CommandError<'_>, exchange: &mut Exchange<'_>) -> Next {
    exchange.refuse(b"(no message)", error);
    envelope::encode_error(0, error, exchange.output);
    Next::CloseBroken
}

/// Answers a message. Returns `None` if it is deferred.
#[inline]
fn answer(message: &[u8], exchange: &mut Exchange<'_>) -> Option<()> {
    let table = &exchange.context.table;
    let find = |number| table.find_rpc(|rpc| rpc.number == number);
    let (id, error) = match envelope::decode(message, |number| find(number).is_some()) {
        Ok(Envelope {
            id,
            content: Some((number, content)),
        }) if let Some((index, spec)) = find(number) => {
            let arguments = decode_arguments(spec, &content);
            let call = match arguments {
                Ok(arguments) => spec.call(arguments, exchange.read_at),
                Err(malformed) => Err(malformed.into()),
            };
            match exchange.execute((index, spec), call)? {
                Ok(value) => envelope::encode_result(id, number, &value, exchange.output),
                Err(error) => envelope::encode_error(id, &error, exchange.output),
            }
            return Some(());
        }
        Ok(Envelope { id, .. }) => (id, CommandError::Unnamed),
        Err((id, malformed)) => (id, malformed.into()),
    };
    exchange.refuse(b"(no command)", &error);
    envelope::encode_error(id, &error, exchange.output);
    Some(())
}
