//! The state in a pack: whatever it is, it is read or refused, and what is read is written as it was.
#![no_main]

use blockchain_tcpd::handover_state::{self, MAGIC, VERSION};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    same(data);
    // The checksum keeps chance out; so it is made right, to see what is behind it.
    let mut whole = [&MAGIC[..], &[0], &VERSION.to_le_bytes(), data].concat();
    let sum = handover_state::checksum(&whole);
    whole.extend_from_slice(&sum.to_le_bytes());
    same(&whole);
});

fn same(bytes: &[u8]) {
    if let Ok(contents) = handover_state::decode(bytes) {
        // An address may be written in several ways, and is in one.
        let again = handover_state::encode(&contents, false);
        assert_eq!(handover_state::decode(&again), Ok(contents));
    }
}
