//! Where a server is and in which words it is asked.

use std::net::SocketAddrV4;

use crate::Result;

/// A server as its clients know it.
#[derive(Clone, Copy)]
pub struct Target {
    /// Where it listens.
    pub address: SocketAddrV4,
    /// What to ask, what to expect.
    pub dialect: Dialect,
}

/// A request and the one right reply to it.
#[derive(Clone, Copy)]
pub struct Dialect {
    /// One request with its end.
    pub request: &'static [u8],
    /// The reply to it with its end.
    pub reply: &'static [u8],
}

/// Compares what was read with what of the expected bytes is still to come, and says how many bytes that was.
///
/// Fewer bytes than expected are right as far as they go; more are wrong.
pub fn check(read: &[u8], expected: &[u8]) -> Result<usize> {
    if read.is_empty() {
        return Err("the server closed instead of replying".into());
    }
    if expected.get(..read.len()) == Some(read) {
        return Ok(read.len());
    }
    let right = read
        .iter()
        .zip(expected)
        .take_while(|(a, b)| a == b)
        .count();
    let shown = |bytes: &[u8]| {
        let from = right.min(bytes.len());
        let to = bytes.len().min(right + 60);
        bytes[from..to].escape_ascii().to_string()
    };
    Err(format!(
        "wrong reply: got \"{}\" where \"{}\" was expected",
        shown(read),
        shown(expected)
    )
    .into())
}
