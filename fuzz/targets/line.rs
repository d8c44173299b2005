//! Fuzz target for lines and commands: any bytes, in any pieces, get the replies that the document
//! requires.
#![no_main]

use std::net::Ipv4Addr;
use std::sync::LazyLock;

use blockchain_tcpd::protocol::line::LineCodec;
use blockchain_tcpd::protocol::{Codec as _, Exchange, Input, Next};
use blockchain_tcpd::transport::clients::Clients;
use blockchain_tcpd_fuzz::{Expectation, context, part, piece};
use libfuzzer_sys::fuzz_target;
use shared::clock::Nanos;
use shared::command::{BatchCounters, Context};

static CONTEXT: LazyLock<Context> = LazyLock::new(context);

fuzz_target!(|input: &[u8]| {
    let (plan, text) = part(input);
    let expected = Expectation::of(text);
    expected.check(&answer(text, plan));
    expected.check(&answer(text, b"0"));
});

/// Answers `text`, which arrives in pieces as `plan` says.
fn answer(text: &[u8], plan: &[u8]) -> Vec<u8> {
    let plan = if plan.is_empty() { b"0" } else { plan };
    let mut plan = plan.iter().cycle();
    let mut output = Vec::new();
    let mut buffer: Vec<u8> = Vec::new();
    let mut seen = 0;
    let mut rest = text;
    let address = Ipv4Addr::LOCALHOST.into();
    let mut guard = Clients::new(1, 0)
        .admit(address, true)
        .unwrap_or_else(|_| panic!("it has room"));
    loop {
        let planned = plan.next().copied().unwrap_or(b'0');
        let (piece, after) = rest.split_at(piece(planned, rest.len()));
        let is_last = rest.is_empty();
        rest = after;
        buffer.extend_from_slice(piece);
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
        let progress = LineCodec.receive(input, &mut exchange);
        if is_last || progress.next != Next::More {
            return output;
        }
        buffer.drain(..progress.used);
        seen = buffer.len();
    }
}
