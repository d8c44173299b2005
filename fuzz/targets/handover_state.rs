//! Fuzz target for the handover state: any bytes are decoded or rejected, and what is decoded is
//! encoded again to an equal state.
#![no_main]

use blockchain_tcpd::handover::state::{self, MAGIC, VERSION};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    same(data);
    // Without a right checksum, all inputs would be rejected: append it to reach the decoder behind
    // it.
    let mut whole = [&MAGIC[..], &VERSION.to_le_bytes(), &[0, 0], data].concat();
    let sum = state::checksum(&whole);
    whole.extend_from_slice(&sum.to_le_bytes());
    same(&whole);
});

fn same(bytes: &[u8]) {
    if let Ok(state) = state::decode(bytes) {
        // A number and an address have several encodings, of which only one is written: compare the
        // states, not the bytes.
        let again = state::encode(&state).expect("a state that was decoded");
        assert_eq!(state::decode(&again), Ok(state));
    }
}
