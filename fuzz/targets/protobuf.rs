//! Fuzz target for the protobuf protocol: any bytes, in any pieces and over a handover at any point,
//! get the same responses, all of them whole messages of the schema.
#![no_main]

use std::net::Ipv4Addr;
use std::sync::LazyLock;

use blockchain_tcpd::protocol::protobuf::ProtobufProtocol;
use blockchain_tcpd::protocol::{Exchange, Input, Next, Protocol as _, READ_BUFFER};
use blockchain_tcpd::transport::clients::Clients;
use blockchain_tcpd_fuzz::{part, piece};
use libfuzzer_sys::fuzz_target;
use shared::clock::Nanos;
use shared::command::sets::{calc, server};
use shared::command::{BatchCounters, Context};
use shared::schema::envelope::{Frame, MAX_MESSAGE, MAX_RESPONSE, decode_response, frame};
use uuid::Uuid;

static CONTEXT: LazyLock<Context> = LazyLock::new(|| {
    // No NP: it computes.
    let calc: &'static [_] = &calc::SET[..2];
    Context::new(Default::default(), Uuid::from_u128(7), &[server::SET, calc])
});

fuzz_target!(|input: &[u8]| {
    let (plan, bytes) = part(input);
    let whole = answer(bytes, b"0");
    assert_eq!(whole, answer(bytes, plan));
    let mut rest = &whole[..];
    while !rest.is_empty() {
        let Frame::Message(response, length) = frame(rest, MAX_RESPONSE) else {
            panic!("half a response");
        };
        decode_response(response).unwrap_or_else(|_| panic!("no response"));
        rest = &rest[length..];
    }
});

/// Answers `bytes`, which arrive in pieces as `plan` says, in a session's buffer; `h` hands over.
fn answer(mut rest: &[u8], plan: &[u8]) -> Vec<u8> {
    let plan = if plan.is_empty() { b"0" } else { plan };
    let mut plan = plan.iter().copied().cycle();
    let address = Ipv4Addr::LOCALHOST.into();
    let mut guard = Clients::new(1, 0)
        .admit(address, true)
        .unwrap_or_else(|_| panic!("it has room"));
    let mut codec = ProtobufProtocol.open(&[]);
    let (mut output, mut buffer) = (Vec::new(), Vec::new());
    loop {
        let planned = plan.next().unwrap_or(b'0');
        if planned == b'h' {
            let saved = codec.save();
            assert!(saved.len() <= MAX_MESSAGE + 3);
            codec = ProtobufProtocol.open(&saved);
        }
        let room = READ_BUFFER - buffer.len();
        assert!(room > 0, "it has used nothing of a full buffer");
        let (next, after) = rest.split_at(piece(planned, rest.len().min(room)));
        let is_last = rest.is_empty();
        rest = after;
        let seen = buffer.len();
        buffer.extend_from_slice(next);
        let mut exchange = Exchange {
            context: &CONTEXT,
            read_at: Nanos::now(),
            output: &mut output,
            counters: &mut BatchCounters::new(),
            log: None,
            guard: &mut guard,
        };
        let input = Input {
            bytes: &buffer,
            seen,
            is_last,
        };
        let progress = codec.receive(input, &mut exchange);
        if is_last || progress.next != Next::More {
            return output;
        }
        buffer.drain(..progress.used);
    }
}
