//! A protocol in one file, with a line in a registry: frames of a length byte and a text. A request's frame is a command;
//! a reply's frame is the number of the request and a value or the word of an error.

use blockchain_tcpd::protocol::{
    Codec, Exchange, Goodbye, Input, Next, Progress, Protocol, Protocols,
};
use shared::command::{CommandClass, CommandError, Line, Outcome};

/// The registry: one line for each protocol.
pub const WITH_TOY: Protocols =
    Protocols(&[&blockchain_tcpd::protocol::line::LineProtocol, &ToyProtocol]);

struct ToyProtocol;

impl Protocol for ToyProtocol {
    fn scheme(&self) -> &'static str {
        "toy"
    }

    fn open(&self, saved: &[u8]) -> Box<dyn Codec> {
        let requests = saved.first().copied().unwrap_or(0);
        Box::new(ToyCodec { requests })
    }

    fn reject(&self, error: &CommandError<'_>, output: &mut Vec<u8>) {
        write_frame(&format!("- {}", error.word()), output);
    }
}

struct ToyCodec {
    /// Number of requests so far.
    requests: u8,
}

impl Codec for ToyCodec {
    fn receive(&mut self, input: Input<'_>, exchange: &mut Exchange<'_>) -> Progress {
        let mut used = 0;
        let mut next = Next::More;
        while next == Next::More
            && let Some((&length, rest)) = input.bytes[used..].split_first()
            && let Some(text) = rest.get(..length.into())
        {
            let request = exchange.context.parse(Line::new(text), exchange.read_at);
            let (outcome, reply) = match &request {
                None => (Outcome::BLANK, String::new()),
                Some(Err(error)) => (Outcome::refused(None, error), error.word().to_string()),
                Some(Ok(request)) => match request.execute(exchange.context) {
                    Err(CommandError::Deferred) => {
                        next = Next::Defer;
                        break;
                    }
                    Err(error) => (
                        Outcome::refused(Some(request.index), &error),
                        error.word().to_string(),
                    ),
                    Ok(reply) => {
                        if request.spec.class == CommandClass::Quit {
                            next = Next::Close;
                        }
                        (Outcome::value(request.index), reply.to_string())
                    }
                },
            };
            used += 1 + text.len();
            self.requests += 1;
            exchange.counters.note(outcome);
            write_frame(&format!("{} {reply}", self.requests), exchange.output);
        }
        Progress { used, next }
    }

    fn goodbye(&mut self, why: Goodbye, output: &mut Vec<u8>) {
        write_frame(&format!("- {why:?}"), output);
    }

    fn save(&self) -> Vec<u8> {
        vec![self.requests]
    }
}

fn write_frame(text: &str, output: &mut Vec<u8>) {
    output.push(text.len().try_into().expect("short texts"));
    output.extend_from_slice(text.as_bytes());
}
