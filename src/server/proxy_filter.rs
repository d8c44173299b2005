//! PROXY protocol listener filter: holds connections from trusted proxies until their PROXY header,
//! which names the client, has arrived.
//!
//! The front polls them. A pending connection neither takes a worker nor counts as a client. The
//! filter reads exactly the header: all bytes after it stay in the socket for the session. The
//! number of pending connections and their time are limited. When all places are taken, the
//! connection that has waited longest is refused.

use std::collections::{HashSet, VecDeque};
use std::net::{IpAddr, TcpStream};
use std::time::Duration;

use rustix::io::Errno;
use rustix::net::RecvFlags;

use crate::config::network::Network;
use crate::handover::state::ConnectionState;
use crate::metrics::Closed;
use crate::protocol::proxy::{LONGEST_BINARY, ParseResult, ProxiedPeer, find};
use shared::clock::Millis;
use shared::command::BadHeader;

/// Time limit for a whole header: as long as it takes to retransmit a packet (section 2 of the
/// protocol).
pub const PATIENCE: Duration = Duration::from_secs(3);

/// A connection whose header is incomplete. `read_buffer` holds the part that has arrived.
pub type PendingConn = (ConnectionState, TcpStream);

/// Result for a pending connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FilterResult {
    /// The header names this peer. The header is read, and nothing after it.
    Peer(ProxiedPeer),
    /// The header is missing, malformed, too long or late.
    Bad(BadHeader),
    /// The filter is full (the limit is given), and this connection has waited longest.
    NoRoom(usize),
    /// The connection ended before any byte of a header, for this reason.
    Gone(Closed),
}

/// A pending connection and the result for it.
pub type Filtered = (PendingConn, FilterResult);

/// The pending connections. The one that has waited longest is the first.
pub struct ProxyFilter {
    trusted: Vec<Network>,
    pending: VecDeque<(PendingConn, Millis)>,
    most: usize,
}

impl ProxyFilter {
    /// Returns a filter of the connections from these networks, for at most `most` at a time.
    pub fn new(trusted: Vec<Network>, most: usize) -> Self {
        ProxyFilter {
            trusted,
            pending: VecDeque::new(),
            most,
        }
    }

    /// Returns whether `peer` is a trusted proxy, which must send a header.
    pub fn trusts(&self, peer: IpAddr) -> bool {
        self.trusted.iter().any(|network| network.contains(peer))
    }

    /// Takes over a connection, a part of whose header may have been read, and reads what has
    /// arrived: most proxies have sent the header by now. Appends what is done to `filtered`.
    pub fn receive(&mut self, mut conn: PendingConn, now: Millis, filtered: &mut Vec<Filtered>) {
        conn.0.awaits_proxy_header = true;
        self.try_read_header((conn, now.after(PATIENCE)), now, filtered);
        if self.pending.len() > self.most
            && let Some((first, _)) = self.pending.pop_front()
        {
            filtered.push((first, FilterResult::NoRoom(self.most)));
        }
    }

    /// Reads from the connections whose numbers are `ready`, and gives up those that are late.
    /// Appends what is done to `filtered`.
    pub fn advance(&mut self, ready: &[u64], now: Millis, filtered: &mut Vec<Filtered>) {
        if self.pending.is_empty() {
            return;
        }
        let ready: HashSet<u64> = ready.iter().copied().collect();
        let is_ready = |((client, _), until): &(PendingConn, Millis)| {
            now >= *until || ready.contains(&client.number)
        };
        if !self.pending.iter().any(is_ready) {
            return;
        }
        for pending in std::mem::take(&mut self.pending) {
            match is_ready(&pending) {
                true => self.try_read_header(pending, now, filtered),
                false => self.pending.push_back(pending),
            }
        }
    }

    /// Reads what has arrived. Without a result the connection stays pending.
    fn try_read_header(
        &mut self,
        (mut conn, until): (PendingConn, Millis),
        now: Millis,
        filtered: &mut Vec<Filtered>,
    ) {
        let (client, stream) = &mut conn;
        match read(stream, &mut client.read_buffer) {
            Some(result) => filtered.push((conn, result)),
            None if now >= until => filtered.push((conn, FilterResult::Bad(BadHeader::Late))),
            None => self.pending.push_back((conn, until)),
        }
    }

    /// Returns the connection that was received last.
    pub fn newest(&self) -> Option<&PendingConn> {
        self.pending.back().map(|(conn, _)| conn)
    }

    /// Returns when the next connection is late.
    pub fn next_deadline(&self) -> Option<Millis> {
        self.pending.front().map(|(_, until)| *until)
    }

    /// Returns the pending connections, to be continued elsewhere.
    pub fn into_pending(self) -> Vec<PendingConn> {
        self.pending.into_iter().map(|(conn, _)| conn).collect()
    }
}

/// Reads what has arrived of a header, and appends it to `header`, the part that was read before.
/// Returns `None` if the header is still incomplete.
fn read(stream: &TcpStream, header: &mut Vec<u8>) -> Option<FilterResult> {
    loop {
        let mut bytes = [0; LONGEST_BINARY];
        let before = header.len();
        let Some(room) = bytes.get_mut(before..).filter(|room| !room.is_empty()) else {
            return Some(FilterResult::Bad(BadHeader::TooLong));
        };
        // Peeks first: the bytes after the header must stay in the socket.
        let seen = match rustix::net::recv(stream, room, RecvFlags::PEEK | RecvFlags::DONTWAIT) {
            Ok((0, _)) if before == 0 => return Some(FilterResult::Gone(Closed::Left)),
            Ok((0, _)) => return Some(FilterResult::Bad(BadHeader::Malformed)),
            Ok((seen, _)) => seen,
            Err(Errno::AGAIN) => return None,
            Err(Errno::INTR) => continue,
            Err(Errno::CONNRESET) => return Some(FilterResult::Gone(Closed::Reset)),
            Err(_) => return Some(FilterResult::Gone(Closed::Failed)),
        };
        bytes[..before].copy_from_slice(header);
        let (peer, length) = match find(&bytes[..before + seen]) {
            ParseResult::Partial => (None, before + seen),
            ParseResult::Header(peer, length) => (Some(peer), length),
            ParseResult::Bad(bad) => return Some(FilterResult::Bad(bad)),
        };
        while header.len() < length {
            let mut taken = [0; LONGEST_BINARY];
            let rest = &mut taken[header.len()..length];
            match rustix::net::recv(stream, rest, RecvFlags::DONTWAIT) {
                Ok((0, _)) => return Some(FilterResult::Gone(Closed::Failed)),
                Ok((more, _)) => header.extend_from_slice(&bytes[header.len()..][..more]),
                Err(Errno::INTR) => {}
                // These bytes were peeked, and no other thread reads from this socket.
                Err(_) => return Some(FilterResult::Gone(Closed::Failed)),
            }
        }
        if let Some(peer) = peer {
            *header = Vec::new();
            return Some(FilterResult::Peer(peer));
        }
    }
}
