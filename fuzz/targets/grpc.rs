//! Fuzz target for gRPC: any frames, in any pieces, get whole frames that another HTTP/2 understands, and the codec ends when
//! it is told to.
#![no_main]

use std::net::Ipv4Addr;
use std::sync::LazyLock;

use blockchain_tcpd::protocol::grpc::GrpcProtocol;
use blockchain_tcpd::protocol::{
    Codec, Exchange, Goodbye, Input, Next, Protocol as _, READ_BUFFER,
};
use blockchain_tcpd::transport::clients::Clients;
use blockchain_tcpd_fuzz::{part, piece};
use libfuzzer_sys::fuzz_target;
use shared::clock::Nanos;
use shared::command::sets::{calc, server};
use shared::command::{BatchCounters, Context};
use uuid::Uuid;

static CONTEXT: LazyLock<Context> = LazyLock::new(|| {
    // No NP: it computes.
    let calc: &'static [_] = &calc::SET[..2];
    Context::new(Default::default(), Uuid::from_u128(7), &[server::SET, calc])
});

/// What a client begins with.
const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0";

/// The most that is answered to one read: what waits for a client, and what 1,024 bytes of frames can ask.
const MAX_OUTPUT: usize = 2 * 1024 * 1024;

fuzz_target!(|input: &[u8]| {
    let (plan, frames) = part(input);
    // A plan that begins with `p` lacks the preface.
    let bytes = match plan {
        [b'p', ..] => frames.to_vec(),
        _ => [PREFACE, frames].concat(),
    };
    check(&answer(&bytes, plan));
});

/// Answers `rest`, which arrives in pieces as `plan` says; `d` begins a drain.
fn answer(mut rest: &[u8], plan: &[u8]) -> Vec<u8> {
    let plan = if plan.is_empty() { b"0" } else { plan };
    let mut plan = plan.iter().copied().cycle();
    let mut codec = GrpcProtocol.open(&[]);
    let address = Ipv4Addr::LOCALHOST.into();
    let mut guard = Clients::new(1, 0)
        .admit(address, false)
        .unwrap_or_else(|_| panic!("it has room"));
    let mut said = Vec::new();
    let mut receive = |codec: &mut dyn Codec, bytes: &[u8], is_last| {
        let before = said.len();
        let mut exchange = Exchange {
            context: &CONTEXT,
            read_at: Nanos::now(),
            output: &mut said,
            counters: &mut BatchCounters::new(),
            log: None,
            guard: &mut guard,
        };
        let progress = codec.receive(
            Input {
                bytes,
                seen: 0,
                is_last,
            },
            &mut exchange,
        );
        assert_eq!(progress.used, bytes.len());
        assert_ne!(progress.next, Next::Defer, "nothing computes");
        assert!(said.len() - before < MAX_OUTPUT);
        progress.next
    };
    loop {
        let planned = plan.next().unwrap_or(b'0');
        if planned == b'd' {
            assert!(codec.drain());
        }
        let (next, after) = rest.split_at(piece(planned, rest.len().min(READ_BUFFER)));
        let is_last = rest.is_empty();
        rest = after;
        match receive(&mut *codec, next, is_last) {
            Next::More | Next::MoreWithin(_) if !is_last => {}
            _ => break,
        }
    }
    codec.goodbye(Goodbye::Drained, &mut said);
    said
}

/// Checks that frames are whole, and no longer than peers allow unless they say otherwise.
fn check(mut frames: &[u8]) {
    while !frames.is_empty() {
        let (head, rest) = frames
            .split_at_checked(9)
            .unwrap_or_else(|| panic!("half a frame"));
        let length = u32::from_be_bytes([0, head[0], head[1], head[2]]) as usize;
        assert!(length <= 16 * 1024 && head[3] <= 9);
        frames = rest.get(length..).unwrap_or_else(|| panic!("half a frame"));
    }
}
