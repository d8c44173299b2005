//! Fuzz target for JSON-RPC over HTTP: any bytes, in any pieces and over any handovers, get whole
//! responses with replies in JSON, the same as in one piece.
#![no_main]

use std::net::Ipv4Addr;
use std::sync::{Arc, LazyLock};

use blockchain_tcpd::protocol::jsonrpc::JsonRpcProtocol;
use blockchain_tcpd::protocol::{Exchange, Goodbye, Input, Next, Protocol as _, READ_BUFFER};
use blockchain_tcpd::transport::clients::Clients;
use blockchain_tcpd_fuzz::{part, piece};
use libfuzzer_sys::fuzz_target;
use serde_json::Value;
use shared::clock::Nanos;
use shared::command::sets::{calc, server};
use shared::command::{BatchCounters, Context};
use uuid::Uuid;

/// The contexts of the front, where computations are deferred, and of a worker.
static CONTEXTS: LazyLock<[Context; 2]> = LazyLock::new(|| {
    let worker = Context::new(Arc::new(3.into()), Uuid::nil(), &[server::SET, calc::SET]);
    let front = Context {
        may_wait: false,
        ..worker.clone()
    };
    [front, worker]
});

fuzz_target!(|input: &[u8]| {
    let (plan, text) = part(input);
    let in_pieces = responses(&answer(text, plan));
    let at_once = responses(&answer(text, b"0"));
    // What is asked for and refused early depends on what has arrived.
    if !text
        .to_ascii_lowercase()
        .windows(6)
        .any(|word| word == b"expect")
    {
        assert_eq!(in_pieces, at_once);
    }
});

/// Answers `text`, which arrives in pieces as `plan` says; before each call of an odd byte there, the
/// codec is saved and opened again. Half a request at the end is said goodbye to.
fn answer(text: &[u8], plan: &[u8]) -> Vec<u8> {
    let plan = if plan.is_empty() { b"0" } else { plan };
    let mut plan = plan.iter().copied().cycle();
    let mut codec = JsonRpcProtocol.open(&[]);
    let (mut output, mut buffer, mut rest, mut seen) = (Vec::new(), Vec::new(), text, 0);
    let mut context = &CONTEXTS[0];
    let address = Ipv4Addr::LOCALHOST.into();
    let mut guard = Clients::new(1, 0)
        .admit(address, true)
        .unwrap_or_else(|_| panic!("it has room"));
    loop {
        let planned = plan.next().unwrap_or(b'0');
        let is_last = rest.is_empty();
        let deferred = std::ptr::eq(context, &CONTEXTS[1]);
        if !deferred {
            let room = READ_BUFFER - buffer.len();
            assert!(room > 0, "nothing of a full buffer is used");
            let (piece, after) = rest.split_at(piece(planned, rest.len()).min(room));
            buffer.extend_from_slice(piece);
            rest = after;
        }
        if planned % 2 == 1 {
            codec = JsonRpcProtocol.open(&codec.save());
        }
        let mut exchange = Exchange {
            context,
            read_at: Nanos::now(),
            output: &mut output,
            counters: &mut BatchCounters::new(),
            log: None,
            guard: &mut guard,
        };
        let input = Input {
            bytes: &buffer,
            seen,
            is_last: is_last && !deferred,
        };
        let progress = codec.receive(input, &mut exchange);
        buffer.drain(..progress.used);
        seen = buffer.len();
        context = match progress.next {
            Next::Defer => &CONTEXTS[1],
            Next::More if is_last && !deferred => {
                codec.goodbye(Goodbye::Idle, &mut output);
                return output;
            }
            Next::More => &CONTEXTS[0],
            _ => return output,
        };
    }
}

/// Returns the status, the body and the end of each response, but for those that ask for a body.
fn responses(mut output: &[u8]) -> Vec<(u16, String, bool)> {
    let mut responses = Vec::new();
    while !output.is_empty() {
        let mut fields = [httparse::EMPTY_HEADER; 16];
        let mut read = httparse::Response::new(&mut fields);
        let Ok(httparse::Status::Complete(head)) = read.parse(output) else {
            panic!("no response: {}", String::from_utf8_lossy(output));
        };
        let field = |name| {
            read.headers
                .iter()
                .find(|field| field.name == name)
                .map(|field| field.value)
        };
        let status = read.code.expect("a status");
        let length = field("Content-Length")
            .map_or(0, |value| str::from_utf8(value).unwrap().parse().unwrap());
        let closes = field("Connection") == Some(b"close");
        // The response to HEAD has a length and no body.
        let is_head = status >= 400 && !closes && output.len() < head + length
            || output[head..].starts_with(b"HTTP/1.1 ")
            || output.len() == head;
        let end = if is_head { head } else { head + length };
        let body = str::from_utf8(&output[head..end]).expect("UTF-8");
        if field("Content-Type") == Some(b"application/json") {
            serde_json::from_str::<Value>(body).expect("JSON");
        }
        assert!(
            !closes || output.len() == end,
            "something comes after the last response"
        );
        if status != 100 {
            responses.push((status, body.to_string(), closes));
        }
        output = &output[end..];
    }
    responses
}
