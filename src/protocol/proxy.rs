//! PROXY protocol, versions 1 and 2: the header by which a load balancer names the client before it
//! forwards the client's bytes (HAProxy's `doc/proxy-protocol.txt`). This module finds the end of
//! the header, so that it makes no difference how the header is split into packets; the crate
//! `proxy-header` parses its addresses.

use std::net::SocketAddr;

use proxy_header::{ParseConfig, Protocol, ProxyHeader};

use shared::command::BadHeader;

/// The longest header of version 1, its CR LF included (section 2.1, whose buffer of 108 bytes has
/// room for a final zero byte).
pub const LONGEST_TEXT: usize = 107;

/// The longest header of version 2 that is accepted: 536 bytes, which fit in every TCP segment
/// (section 2). The format allows 64 KiB.
pub const LONGEST_BINARY: usize = 536;

/// Signature of version 1.
const TEXT: &[u8] = b"PROXY ";

/// Signature of version 2.
const BINARY: &[u8] = b"\r\n\r\n\0\r\nQUIT\n";

/// Length of the fixed part of a header of version 2; its last two bytes are the length of the
/// rest.
const FIXED: usize = 16;

/// Version 2, command LOCAL: the sender made the connection for itself.
const LOCAL: u8 = 0x20;

/// Version 2, command PROXY: the sender forwards a client's connection.
const PASSED_ON: u8 = 0x21;

/// The peer for which the connection was made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ProxiedPeer {
    /// The client at this address.
    Client(SocketAddr),
    /// A peer without a known TCP address: the sender's address stands for it.
    Unknown,
    /// The sender itself, for a health check.
    Sender,
}

/// Result of parsing the beginning of a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ParseResult {
    /// A complete header, and its length.
    Header(ProxiedPeer, usize),
    /// The beginning of a header, and nothing else.
    Partial,
    /// Not a valid header, and more bytes will not make it one.
    Bad(BadHeader),
}

/// Parses the header at the beginning of `bytes`.
pub fn find(bytes: &[u8]) -> ParseResult {
    let begins = |start: &[u8]| {
        let length = start.len().min(bytes.len());
        bytes[..length] == start[..length]
    };
    if begins(TEXT) {
        find_text(bytes)
    } else if begins(BINARY) {
        find_binary(bytes)
    } else {
        ParseResult::Bad(BadHeader::Missing)
    }
}

fn find_text(bytes: &[u8]) -> ParseResult {
    let within = &bytes[..bytes.len().min(LONGEST_TEXT)];
    let Some(lf) = within.iter().position(|&byte| byte == b'\n') else {
        return match within.len() {
            LONGEST_TEXT => ParseResult::Bad(BadHeader::TooLong),
            _ => ParseResult::Partial,
        };
    };
    let header = &within[..=lf];
    let Some(line) = header.strip_suffix(b"\r\n") else {
        return ParseResult::Bad(BadHeader::Malformed);
    };
    let mut words = line[TEXT.len().min(lf)..].split(|&byte| byte == b' ');
    if words.next() == Some(b"UNKNOWN") {
        // The rest of an UNKNOWN header is ignored.
        return ParseResult::Header(ProxiedPeer::Unknown, header.len());
    }
    // Two addresses and two ports. The crate accepts ports that the specification forbids: with a
    // sign, or with leading zeroes.
    if words.clone().count() != 4 || !words.skip(2).all(is_port) {
        return ParseResult::Bad(BadHeader::Malformed);
    }
    parse(header)
}

/// Returns whether a word has the format of a port; the crate checks its range.
fn is_port(word: &[u8]) -> bool {
    word.iter().all(u8::is_ascii_digit) && (word.len() == 1 || word.first() != Some(&b'0'))
}

fn find_binary(bytes: &[u8]) -> ParseResult {
    // Refuse a bad command as early as possible.
    match bytes.get(BINARY.len()) {
        None | Some(&(LOCAL | PASSED_ON)) => {}
        Some(_) => return ParseResult::Bad(BadHeader::Malformed),
    }
    let Some(fixed) = bytes.first_chunk::<FIXED>() else {
        return ParseResult::Partial;
    };
    let length = FIXED + usize::from(u16::from_be_bytes([fixed[14], fixed[15]]));
    if length > LONGEST_BINARY {
        return ParseResult::Bad(BadHeader::TooLong);
    }
    match bytes.get(..length) {
        None => ParseResult::Partial,
        // Addresses of a LOCAL header are ignored.
        Some(_) if fixed[BINARY.len()] == LOCAL => ParseResult::Header(ProxiedPeer::Sender, length),
        Some(header) => parse(header),
    }
}

/// Parses the addresses of a complete header.
fn parse(header: &[u8]) -> ParseResult {
    let config = ParseConfig {
        include_tlvs: false,
        ..ParseConfig::default()
    };
    let caller = match ProxyHeader::parse(header, config) {
        Ok((parsed, length)) if length == header.len() => match parsed.proxied_address() {
            Some(address) if address.protocol == Protocol::Stream => {
                ProxiedPeer::Client(address.source)
            }
            _ => ProxiedPeer::Unknown,
        },
        Ok(_) | Err(_) => return ParseResult::Bad(BadHeader::Malformed),
    };
    ParseResult::Header(caller, header.len())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn binary(command: u8, family: u8, body: &[u8]) -> Vec<u8> {
        let length = (body.len() as u16).to_be_bytes();
        [BINARY, &[command, family], &length, body].concat()
    }

    fn client(address: &str) -> ParseResult {
        ParseResult::Header(ProxiedPeer::Client(address.parse().unwrap()), 0)
    }

    /// Checks that every prefix of the header is a part, and that bytes after it are left alone.
    fn check(header: &[u8], expected: ParseResult) {
        let expected = match expected {
            ParseResult::Header(caller, _) => ParseResult::Header(caller, header.len()),
            other => other,
        };
        let followed = [header, b"WHO\nWHY\n\r\n"].concat();
        assert_eq!(find(&followed), expected, "{}", header.escape_ascii());
        for cut in 0..header.len() {
            let beginning = find(&header[..cut]);
            let is_sound = match expected {
                ParseResult::Bad(_) => beginning == ParseResult::Partial || beginning == expected,
                _ => beginning == ParseResult::Partial,
            };
            assert!(is_sound, "{cut} of {}", header.escape_ascii());
        }
    }

    #[test]
    fn text() {
        let unknown = ParseResult::Header(ProxiedPeer::Unknown, 0);
        let longest = format!("PROXY UNKNOWN {}\r\n", "x".repeat(LONGEST_TEXT - 16));
        let ones = "1:".repeat(7);
        let four = "192.0.2.1 198.51.100.1";
        for (header, expected) in [
            (
                format!("PROXY TCP4 {four} 56324 443\r\n"),
                client("192.0.2.1:56324"),
            ),
            (
                format!("PROXY TCP4 {four} 0 65535\r\n"),
                client("192.0.2.1:0"),
            ),
            (
                "PROXY TCP6 2001:db8::1 ::1 1 2\r\n".into(),
                client("[2001:db8::1]:1"),
            ),
            (
                "PROXY TCP6 ::ffff:192.0.2.1 ::1 1 2\r\n".into(),
                client("[::ffff:192.0.2.1]:1"),
            ),
            ("PROXY UNKNOWN\r\n".into(), unknown),
            ("PROXY UNKNOWN x\ry 1 2\r\n".into(), unknown),
            (longest, unknown),
        ] {
            check(header.as_bytes(), expected);
        }
        for bad in [
            format!("PROXY TCP4 {four} 56324 443\n"),
            format!("PROXY TCP4 {four} 56324 443\r\r\n"),
            format!("PROXY TCP4 {four} 56324\r\n"),
            format!("PROXY TCP4 {four} 1 2 3\r\n"),
            format!("PROXY TCP4 {four} 65536 2\r\n"),
            format!("PROXY TCP4 {four} +1 2\r\n"),
            format!("PROXY TCP4 {four} 1 02\r\n"),
            format!("PROXY TCP4 {four} 1 \r\n"),
            format!("PROXY  TCP4 {four} 1 2\r\n"),
            format!("PROXY TCP6 {four} 1 2\r\n"),
            format!("PROXY tcp4 {four} 1 2\r\n"),
            format!("PROXY UDP4 {four} 1 2\r\n"),
            "PROXY TCP4 192.0.2.256 198.51.100.1 1 2\r\n".to_string(),
            "PROXY TCP4 192.0.02.1 198.51.100.1 1 2\r\n".to_string(),
            "PROXY TCP4 ::1 ::1 1 2\r\n".to_string(),
            format!("PROXY TCP6 {ones}1:1 ::1 1 2\r\n"),
            "PROXY UNKNOWNS\r\n".to_string(),
            "PROXY UNKNOWN\n".to_string(),
            "PROXY \r\n".to_string(),
            "PROXY \n".to_string(),
        ] {
            check(bad.as_bytes(), ParseResult::Bad(BadHeader::Malformed));
        }
        let longer = format!("PROXY UNKNOWN {}\r\n", "x".repeat(LONGEST_TEXT - 15));
        check(longer.as_bytes(), ParseResult::Bad(BadHeader::TooLong));
        for none in [
            &b"WHO\n"[..],
            b"proxy TCP4",
            b"PROXYTCP4",
            b"\n",
            b"\r\n\r\nWHO",
            b"\0",
        ] {
            check(none, ParseResult::Bad(BadHeader::Missing));
        }
    }

    #[test]
    fn binary_form() {
        let four = [192, 0, 2, 1, 198, 51, 100, 1, 0xdc, 4, 1, 187];
        let mut six = [0; 36];
        (six[0], six[1], six[15], six[33]) = (0x20, 1, 7, 9);
        let with_more = |length: usize| [&four[..], &vec![4; length - FIXED - 12]].concat();
        let unknown = ParseResult::Header(ProxiedPeer::Unknown, 0);
        let sender = ParseResult::Header(ProxiedPeer::Sender, 0);
        for (header, expected) in [
            (binary(PASSED_ON, 0x11, &four), client("192.0.2.1:56324")),
            (binary(PASSED_ON, 0x21, &six), client("[2001::7]:9")),
            (
                binary(PASSED_ON, 0x11, &with_more(LONGEST_BINARY)),
                client("192.0.2.1:56324"),
            ),
            (binary(PASSED_ON, 0x12, &four), unknown),
            (binary(PASSED_ON, 0x22, &six), unknown),
            (binary(PASSED_ON, 0, &[]), unknown),
            (binary(PASSED_ON, 0, b"ignored"), unknown),
            (binary(PASSED_ON, 0x31, &[0; 216]), unknown),
            (binary(PASSED_ON, 0x32, &[0; 216]), unknown),
            (binary(LOCAL, 0, &[]), sender),
            // The family of a LOCAL header is ignored.
            (binary(LOCAL, 0x11, &[]), sender),
            (binary(LOCAL, 0x11, &four), sender),
            (binary(LOCAL, 0xff, b"ignored"), sender),
        ] {
            check(&header, expected);
        }
        for bad in [
            binary(PASSED_ON, 0x11, &four[..11]),
            binary(PASSED_ON, 0x21, &six[..35]),
            binary(PASSED_ON, 0x31, &[0; 215]),
            binary(PASSED_ON, 0x41, &four),
            binary(PASSED_ON, 0x13, &four),
            binary(0x22, 0x11, &four),
            binary(0x11, 0x11, &four),
        ] {
            check(&bad, ParseResult::Bad(BadHeader::Malformed));
        }
        let longer = binary(PASSED_ON, 0x11, &with_more(LONGEST_BINARY + 1));
        check(&longer, ParseResult::Bad(BadHeader::TooLong));
        check(
            &[BINARY, b"\x20\x00\xff\xff"].concat(),
            ParseResult::Bad(BadHeader::TooLong),
        );
    }
}
