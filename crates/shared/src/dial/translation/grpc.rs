//! gRPC: each call is a stream of one HTTP/2 connection.

use std::collections::HashMap;

use http2::{Event, Field, Headers, Limits, Session, StreamId, code};

use super::{Answer, Wire};
use crate::command::{Call, CommandSpec};
use crate::dial::Server;
use crate::dial::reply::Refusal;
use crate::schema::{PACKAGE, decode_value, encode_arguments};

/// Length of what is before a message: whether it is compressed, and its length.
const PREFIX: usize = 5;

/// Largest length of a message that is read.
const LONGEST_MESSAGE: usize = 1024 * 1024;

/// Number of frames that the server may send for an answer.
const FRAMES_PER_ANSWER: u32 = 16;

/// The HTTP/2 of a connection.
pub struct GrpcWire {
    session: Session,
    /// The name and port of the server.
    authority: String,
    calls: HashMap<StreamId, Open>,
    /// Whether the server closes the connection soon: it has not processed what it does not answer.
    closes: bool,
}

/// A call that is not answered.
struct Open {
    number: u64,
    spec: &'static CommandSpec,
    /// The answer's message, with what is before it.
    body: Vec<u8>,
    status: Option<Result<(), Refusal>>,
}

impl GrpcWire {
    /// Returns that of a new connection to this server.
    pub fn new(server: &Server) -> Self {
        let server = Server::new(server.host.clone(), server.port);
        GrpcWire {
            session: Session::client(Limits::default()),
            authority: server.to_string(),
            calls: HashMap::new(),
            closes: false,
        }
    }

    /// Notes what has arrived. Returns an answer that is whole by it.
    fn take(&mut self, event: Event) -> Option<Answer> {
        match event {
            Event::Headers(stream, headers) => {
                let open = self.calls.get_mut(&stream)?;
                open.status = status(&headers).or(open.status.take());
            }
            Event::Data(stream, data) => {
                let open = self.calls.get_mut(&stream)?;
                if open.body.len() + data.len() > LONGEST_MESSAGE {
                    self.session.reset(stream, code::CANCEL);
                } else {
                    open.body.extend(data);
                }
            }
            Event::Closed(stream, code) => {
                let open = self.calls.remove(&stream)?;
                if self.closes && open.status.is_none() {
                    // The end of the connection says that there is no answer.
                    return None;
                }
                self.session.allow(FRAMES_PER_ANSWER);
                let number = Some(open.number);
                let result = open.result(code);
                return Some(Answer { number, result });
            }
            Event::GoAway {
                last: 0,
                code: code::ENHANCE_YOUR_CALM,
            } => {
                let sentence = "the server takes no more clients, try again later".to_string();
                let word = "BUSY".to_string();
                let result = Err(Refusal { word, sentence });
                return Some(Answer {
                    number: None,
                    result,
                });
            }
            Event::End(_) | Event::Pong(_) | Event::GoAway { .. } => {}
        }
        None
    }
}

impl Open {
    /// Returns the result of a call whose stream was closed with this code.
    fn result(self, code: u32) -> Result<String, Refusal> {
        let failed = |sentence: String| {
            let word = "UNAVAILABLE".to_string();
            Err(Refusal { word, sentence })
        };
        match self.status {
            None => failed(format!(
                "the call ended without an answer, with code {code}"
            )),
            Some(Err(refusal)) => Err(refusal),
            Some(Ok(())) => {
                let message = merged(&self.body);
                match message.map(|message| decode_value(self.spec, &message)) {
                    Some(Ok(value)) => Ok(value.to_string()),
                    _ => failed("the answer is not of the schema".to_string()),
                }
            }
        }
    }
}

/// Returns the messages of a body merged, which is what their bytes in a row are; `None` if one is
/// not whole, or there is none.
fn merged(mut body: &[u8]) -> Option<Vec<u8>> {
    let mut merged = Vec::new();
    loop {
        let (prefix, rest) = body.split_first_chunk::<PREFIX>()?;
        let length = u32::from_be_bytes([prefix[1], prefix[2], prefix[3], prefix[4]]);
        let (message, rest) = rest.split_at_checked(length as usize)?;
        merged.extend_from_slice(message);
        if rest.is_empty() {
            return Some(merged);
        }
        body = rest;
    }
}

impl Wire for GrpcWire {
    fn offers(&self, spec: &CommandSpec) -> bool {
        spec.rpc.is_some()
    }

    fn call(&mut self, number: u64, call: &Call<'_>, output: &mut Vec<u8>) {
        let Some(rpc) = &call.spec.rpc else {
            return;
        };
        let headers = [
            Field::new(":method", "POST"),
            Field::new(":scheme", "http"),
            Field::new(
                ":path",
                format!("/{PACKAGE}.{}/{}", rpc.service, rpc.method),
            ),
            Field::new(":authority", self.authority.clone()),
            Field::new("te", "trailers"),
            Field::new("content-type", "application/grpc"),
            Field::new(
                "user-agent",
                concat!("blockchain-tcp/", env!("CARGO_PKG_VERSION")),
            ),
        ];
        // A server that takes no more calls closes the connection, which the next read finds.
        if let Some(stream) = self.session.request(&headers, false) {
            let mut message = vec![0; PREFIX];
            encode_arguments(call.spec, &call.arguments, &mut message);
            let length = (message.len() - PREFIX) as u32;
            message[1..PREFIX].copy_from_slice(&length.to_be_bytes());
            self.session.send(stream, message);
            self.session.finish(stream, Vec::new());
            let open = Open {
                number,
                spec: call.spec,
                body: Vec::new(),
                status: None,
            };
            self.calls.insert(stream, open);
        }
        self.session.take_output(output);
    }

    fn receive(&mut self, bytes: &[u8], output: &mut Vec<u8>) -> Result<Vec<Answer>, &'static str> {
        let received = self.session.receive(bytes);
        let events: Vec<_> = std::iter::from_fn(|| self.session.next_event()).collect();
        // The streams that it closes are closed before it is told of.
        let leaves = |event: &Event| matches!(event, Event::GoAway { .. });
        self.closes |= events.iter().any(leaves);
        let answers = events.into_iter().filter_map(|event| self.take(event));
        let answers = answers.collect();
        self.session.take_output(output);
        received.map_err(|_| "not HTTP/2").map(|()| answers)
    }
}

/// Returns the status in headers or trailers, if they have one.
fn status(headers: &Headers) -> Option<Result<(), Refusal>> {
    let text = |name| headers.get(name).map(String::from_utf8_lossy);
    let code = text("grpc-status");
    let http = text(":status").filter(|status| status != "200");
    if let Some(http) = http.filter(|_| code.is_none()) {
        let sentence = format!("the server answers with the HTTP status {http}");
        let word = "UNAVAILABLE".to_string();
        return Some(Err(Refusal { word, sentence }));
    }
    let word = match &*code? {
        "0" => return Some(Ok(())),
        "3" | "11" => "USAGE",
        "5" => "NOTFOUND",
        "8" => "TOOLONG",
        "12" => "UNKNOWN",
        "4" | "14" => "UNAVAILABLE",
        _ => "INTERNAL",
    };
    let sentence = headers.get("grpc-message").map(percent_decoded);
    Some(Err(Refusal {
        word: word.to_string(),
        sentence: sentence.unwrap_or_else(|| "without a reason".to_string()),
    }))
}

/// Decodes a message of gRPC; bytes that a reply may not have become question marks.
fn percent_decoded(mut bytes: &[u8]) -> String {
    let mut text = String::new();
    while let [first, rest @ ..] = bytes {
        let escaped = rest
            .get(..2)
            .and_then(|digits| std::str::from_utf8(digits).ok());
        let escaped = escaped.and_then(|digits| u8::from_str_radix(digits, 16).ok());
        let byte = match (first, escaped) {
            (b'%', Some(byte)) => {
                bytes = &rest[2..];
                byte
            }
            (byte, _) => {
                bytes = rest;
                *byte
            }
        };
        text.push(if matches!(byte, b' '..=b'~') {
            byte.into()
        } else {
            '?'
        });
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_are_decoded_and_printable() {
        let decoded = percent_decoded(b"100%25 of %22it%22%0a%C3%A9 %2");
        assert_eq!(decoded, "100% of \"it\"??? %2");
    }
}
