//! Fuzz target for the handover state: any bytes are decoded or rejected, and what is decoded is
//! encoded again to an equal state.
#![no_main]

use blockchain_tcpd::handover::state::{self, MAGIC, VERSION};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    same(data);
    // Without a right checksum, all inputs would be rejected: append it to reach the decoder behind
    // it.
    let mut whole = [&MAGIC[..], &[0], &VERSION.to_le_bytes(), data].concat();
    let sum = state::checksum(&whole);
    whole.extend_from_slice(&sum.to_le_bytes());
    same(&whole);
});

fn same(bytes: &[u8]) {
    if let Ok(contents) = state::decode(bytes) {
        // An address has several encodings, of which only one is written: compare the states, not
        // the bytes.
        let again = state::encode(&contents, false);
        assert_eq!(state::decode(&again), Ok(contents));
    }
}
