//! JSON-RPC 2.0 over HTTP/1.1: a request and a response for each call.

use serde::Deserialize;
use serde_json::Value as Json;
use serde_json::value::RawValue;

use super::{Answer, Wire};
use crate::command::user::ascii;
use crate::command::{Argument, Call, CommandClass, CommandSpec, join};
use crate::dial::Server;
use crate::dial::reply::Refusal;

/// Largest length of a response that is read: a list of 1,024 numbers has a tenth of it.
const LONGEST_RESPONSE: usize = 1024 * 1024;

/// Largest number of fields in the head of a response.
const MAX_FIELDS: usize = 64;

/// The HTTP of a connection.
pub struct JsonRpcWire {
    /// The name and port of the server.
    host: String,
    /// The beginning of a response.
    received: Vec<u8>,
}

/// A response, as far as a client needs it.
#[derive(Deserialize)]
struct Response {
    id: Option<u64>,
    result: Option<Box<RawValue>>,
    error: Option<RpcError>,
}

/// Its error.
#[derive(Deserialize)]
struct RpcError {
    message: String,
    /// The word of the line protocol.
    data: Option<String>,
}

impl JsonRpcWire {
    /// Returns that of a new connection to this server.
    pub fn new(server: &Server) -> Self {
        let server = Server::new(server.host.clone(), server.port);
        JsonRpcWire {
            host: server.to_string(),
            received: Vec::new(),
        }
    }
}

impl Wire for JsonRpcWire {
    fn offers(&self, spec: &CommandSpec) -> bool {
        spec.class != CommandClass::Quit
    }

    fn call(&mut self, number: u64, call: &Call<'_>, output: &mut Vec<u8>) {
        let parameters = call.arguments.iter().map(|argument| match argument {
            Argument::Integer(number) => Json::from(*number),
            Argument::Word(word) => Json::from(String::from_utf8_lossy(word)),
            Argument::Text(text) => Json::from(&**text),
        });
        let body = serde_json::json!({
            "jsonrpc": "2.0",
            "id": number,
            "method": call.spec.name.to_lowercase(),
            "params": parameters.collect::<Vec<_>>(),
        });
        let (host, body) = (&self.host, body.to_string());
        let length = body.len();
        let request = format!(
            "POST / HTTP/1.1\r\nHost: {host}\r\nContent-Type: application/json\r\n\
             Content-Length: {length}\r\n\r\n{body}"
        );
        output.extend_from_slice(request.as_bytes());
    }

    fn receive(&mut self, bytes: &[u8], _: &mut Vec<u8>) -> Result<Vec<Answer>, &'static str> {
        self.received.extend_from_slice(bytes);
        let (mut answers, mut used) = (Vec::new(), 0);
        while let Some((length, answer)) = response(&self.received[used..])? {
            used += length;
            answers.push(answer);
        }
        self.received.drain(..used);
        Ok(answers)
    }
}

/// Parses the response at the beginning of `bytes`. Returns its length and the answer, or `None` if
/// it is incomplete.
fn response(bytes: &[u8]) -> Result<Option<(usize, Answer)>, &'static str> {
    const NO_HTTP: &str = "not a response of HTTP";
    let mut fields = [httparse::EMPTY_HEADER; MAX_FIELDS];
    let mut head = httparse::Response::new(&mut fields);
    let httparse::Status::Complete(begin) = head.parse(bytes).map_err(|_| NO_HTTP)? else {
        return match bytes.len() > LONGEST_RESPONSE {
            true => Err(NO_HTTP),
            false => Ok(None),
        };
    };
    let mut fields = head.headers.iter();
    let length = fields.find(|field| field.name.eq_ignore_ascii_case("content-length"));
    let length = length.and_then(|field| std::str::from_utf8(field.value).ok());
    let length: usize = length
        .and_then(|length| length.parse().ok())
        .ok_or(NO_HTTP)?;
    if length > LONGEST_RESPONSE {
        return Err("a response of HTTP that is too long");
    }
    let Some(body) = bytes.get(begin..begin + length) else {
        return Ok(None);
    };
    let response: Response =
        serde_json::from_slice(body).map_err(|_| "not a response of JSON-RPC")?;
    let result = match (response.result, response.error) {
        (Some(value), None) => Ok(line(value.get()).ok_or("a result that no command has")?),
        (_, Some(error)) => Err(Refusal {
            word: error.data.unwrap_or_else(|| "INTERNAL".to_string()),
            sentence: error.message,
        }),
        (None, None) => return Err("neither a result nor an error"),
    };
    let number = response.id;
    Ok(Some((begin + length, Answer { number, result })))
}

/// Returns the result as a line shows it: a list of numbers as words, a record as it is.
fn line(result: &str) -> Option<String> {
    let is_record = |text: &str| text.starts_with('{');
    let inner = result.strip_prefix('[').map(str::trim_start);
    if is_record(result) || inner.is_some_and(|inner| is_record(inner) || inner == "]") {
        return Some(ascii(result).into_owned());
    }
    match serde_json::from_str(result).ok()? {
        Json::Number(number) => Some(number.as_i64()?.to_string()),
        Json::String(text) => Some(text),
        Json::Array(values) => {
            let words = values.iter().map(|value| value.as_i64());
            let words: Option<Vec<_>> = words.collect();
            Some(join(&words?))
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn responses_are_read_however_they_are_cut() {
        let server = "http://localhost:80".parse().unwrap();
        let body = r#"{"jsonrpc":"2.0","id":7,"result":[2,-3]}"#;
        let error =
            r#"{"jsonrpc":"2.0","id":null,"error":{"code":-32001,"message":"full","data":"BUSY"}}"#;
        let stream = [body, error].map(|body| {
            format!(
                "HTTP/1.1 200 OK\r\ncontent-length: {}\r\n\r\n{body}",
                body.len()
            )
        });
        let stream = stream.concat();
        for cut in 0..stream.len() {
            let mut wire = JsonRpcWire::new(&server);
            let (first, second) = stream.as_bytes().split_at(cut);
            let mut answers = wire.receive(first, &mut Vec::new()).unwrap();
            answers.extend(wire.receive(second, &mut Vec::new()).unwrap());
            let shown = answers.into_iter().map(|answer| match answer.result {
                Ok(line) => (answer.number, line),
                Err(refusal) => (answer.number, refusal.to_string()),
            });
            let expected = [
                (Some(7), "2 -3".to_string()),
                (None, "ERR BUSY full".to_string()),
            ];
            assert_eq!(shown.collect::<Vec<_>>(), expected, "cut at {cut}");
        }
        let mut wire = JsonRpcWire::new(&server);
        assert!(wire.receive(b"ERR BUSY full\n", &mut Vec::new()).is_err());
    }
}
