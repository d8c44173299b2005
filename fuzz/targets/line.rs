//! Fuzz target for lines and commands: any bytes, in any pieces, get the replies that the document
//! requires.
#![no_main]

use std::sync::LazyLock;

use shared::clock::Nanos;
use shared::command::{Context, CommandError};
use blockchain_tcpd::protocol::line::{self, Found, LONGEST_REQUEST};
use blockchain_tcpd_fuzz::{Expectation, context, part, piece};
use libfuzzer_sys::fuzz_target;

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
    let mut searched = 0;
    let mut rest = text;
    loop {
        let planned = plan.next().copied().unwrap_or(b'0');
        let (piece, after) = rest.split_at(piece(planned, rest.len()));
        let end = rest.is_empty();
        rest = after;
        buffer.extend_from_slice(piece);
        loop {
            let found = match line::find(&buffer, std::mem::take(&mut searched)) {
                Found::Part if end => line::last(&buffer),
                found => found,
            };
            let length = match found {
                Found::Part => break,
                Found::TooLong => {
                    line::write_refusal(&CommandError::TooLong(LONGEST_REQUEST), &mut output);
                    return output;
                }
                Found::Line { line, length } => {
                    if line::answer(&CONTEXT, line, Nanos::now(), &mut output).close_after_write {
                        return output;
                    }
                    length
                }
            };
            buffer.drain(..length);
            if end && buffer.is_empty() {
                return output;
            }
        }
        searched = buffer.len();
    }
}
