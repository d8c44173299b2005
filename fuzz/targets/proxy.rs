//! Fuzz target for PROXY headers: any bytes, in any pieces, are a header, the beginning of one, or
//! rejected; and the parsed address is that in the header.
#![no_main]

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use blockchain_tcpd::protocol::proxy::{
    LONGEST_BINARY, LONGEST_TEXT, ParseResult, ProxiedPeer, find,
};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    let whole = find(data);
    for cut in 0..data.len().min(LONGEST_BINARY + 1) {
        let beginning = find(&data[..cut]);
        match whole {
            ParseResult::Partial => assert_eq!(beginning, ParseResult::Partial),
            ParseResult::Header(_, length) if cut < length => {
                assert_eq!(beginning, ParseResult::Partial)
            }
            ParseResult::Header(..) => assert_eq!(beginning, whole),
            ParseResult::Bad(_) => assert!(beginning == ParseResult::Partial || beginning == whole),
        }
    }
    match whole {
        ParseResult::Partial => assert!(data.len() < LONGEST_BINARY),
        ParseResult::Header(caller, length) => check(&data[..length], caller),
        ParseResult::Bad(_) => {}
    }
});

/// Parses the header in another way and compares.
fn check(header: &[u8], caller: ProxiedPeer) {
    if header[0] == b'P' {
        assert!(header.len() <= LONGEST_TEXT);
        let text = header.strip_suffix(b"\r\n").expect("its end");
        if let ProxiedPeer::Client(address) = caller {
            let text = std::str::from_utf8(text).expect("text");
            let words: Vec<&str> = text.split(' ').collect();
            let [_, family, ip, _, port, _] = words[..] else {
                panic!("{text}");
            };
            assert_eq!(
                address,
                SocketAddr::new(ip.parse().unwrap(), port.parse().unwrap())
            );
            assert_eq!(family, if address.is_ipv4() { "TCP4" } else { "TCP6" });
        } else {
            assert_eq!(caller, ProxiedPeer::Unknown);
            assert!(text.starts_with(b"PROXY UNKNOWN"));
        }
        return;
    }
    assert_eq!(
        header.len() - 16,
        usize::from(u16::from_be_bytes([header[14], header[15]]))
    );
    let address = |ip: IpAddr, at: usize| {
        ProxiedPeer::Client(SocketAddr::new(
            ip,
            u16::from_be_bytes([header[at], header[at + 1]]),
        ))
    };
    let expected = match (header[12], header[13]) {
        (0x20, _) => ProxiedPeer::Sender,
        (0x21, 0x11) => {
            let ip: [u8; 4] = header[16..20].try_into().expect("four");
            address(Ipv4Addr::from(ip).into(), 24)
        }
        (0x21, 0x21) => {
            let ip: [u8; 16] = header[16..32].try_into().expect("sixteen");
            address(Ipv6Addr::from(ip).into(), 48)
        }
        (0x21, _) => ProxiedPeer::Unknown,
        other => panic!("{other:?}"),
    };
    assert_eq!(caller, expected);
}
