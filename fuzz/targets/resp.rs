//! Fuzz target for RESP framing: any bytes, in any pieces, are a complete value, the beginning of
//! one, or rejected; and the redis crate parses or rejects a complete value within the stack and
//! the time of a small one.
#![no_main]

use blockchain_tcpd::cluster::redis::framing::{Frame, LONGEST, find};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    let whole = find(data);
    for cut in 0..data.len().min(LONGEST) {
        let beginning = find(&data[..cut]);
        match whole {
            Frame::Incomplete => assert_eq!(beginning, Frame::Incomplete),
            Frame::Complete(length) if cut < length => assert_eq!(beginning, Frame::Incomplete),
            Frame::Complete(_) => assert_eq!(beginning, whole),
            Frame::TooLarge | Frame::Invalid => {
                assert!(beginning == Frame::Incomplete || beginning == whole)
            }
        }
    }
    // All values of a stream, one after the other.
    let mut rest = data;
    while let Frame::Complete(length) = find(rest) {
        assert!(length > 0);
        let value = redis::parse_redis_value(&rest[..length]);
        // The value needs all its bytes: a shorter piece must not be a value.
        if value.is_ok() {
            assert!(redis::parse_redis_value(&rest[..length - 1]).is_err());
        }
        rest = &rest[length..];
    }
});
