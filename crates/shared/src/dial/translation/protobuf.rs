//! Protobuf messages, each after its length.

use super::{Answer, Wire};
use crate::command::sets::with_rpc;
use crate::command::{Call, CommandSpec};
use crate::dial::reply::Refusal;
use crate::schema::decode_value;
use crate::schema::envelope::{
    Frame, MAX_RESPONSE, Response, decode_response, encode_request, frame,
};

/// The protobuf protocol of a connection.
#[derive(Default)]
pub struct ProtobufWire {
    /// The beginning of a message.
    received: Vec<u8>,
}

impl Wire for ProtobufWire {
    fn offers(&self, spec: &CommandSpec) -> bool {
        spec.rpc.is_some()
    }

    fn call(&mut self, number: u64, call: &Call<'_>, output: &mut Vec<u8>) {
        if let Some(rpc) = &call.spec.rpc {
            encode_request(number, call.spec, rpc, &call.arguments, output);
        }
    }

    fn receive(&mut self, bytes: &[u8], _: &mut Vec<u8>) -> Result<Vec<Answer>, &'static str> {
        self.received.extend_from_slice(bytes);
        let (mut answers, mut used) = (Vec::new(), 0);
        loop {
            match frame(&self.received[used..], MAX_RESPONSE) {
                Frame::Message(message, length) => {
                    used += length;
                    answers.push(answer(message).ok_or("not a response of the schema")?);
                }
                Frame::Partial(_) => break,
                Frame::TooLong | Frame::Malformed => return Err("not a message of protobuf"),
            }
        }
        self.received.drain(..used);
        Ok(answers)
    }
}

fn answer(message: &[u8]) -> Option<Answer> {
    let (id, response) = decode_response(message).ok()?;
    let result = match response {
        Response::Error(code, sentence) => Err(Refusal {
            word: code.map_or("UNKNOWN", |code| code.word()).to_string(),
            sentence,
        }),
        Response::Result(number, message) => {
            let (spec, _) = with_rpc().find(|(_, rpc)| rpc.number == number)?;
            Ok(decode_value(spec, &message).ok()?.to_string())
        }
    };
    let number = (id != 0).then_some(id);
    Some(Answer { number, result })
}
