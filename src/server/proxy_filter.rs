//! PROXY protocol listener filter: holds connections from trusted proxies until their PROXY header,
//! which names the client, has arrived.
//!
//! One thread polls all of them, so that no acceptor waits, and a pending connection neither takes
//! a worker nor counts as a client. The thread reads exactly the header: all bytes after it stay in
//! the socket for the session. The number of pending connections and their time are limited. When
//! all places are taken, the connection that has waited longest is refused.

use std::collections::VecDeque;
use std::net::{IpAddr, TcpStream};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::time::Duration;

use crossbeam_channel::{Receiver, Sender, TryRecvError};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::net::RecvFlags;

use crate::config::network::Network;
use crate::error::Error;
use crate::handover::state::ConnectionState;
use crate::metrics::Closed;
use crate::protocol::proxy::{LONGEST_BINARY, ParseResult, ProxiedPeer, find};
use crate::thread;
use crate::waker::Waker;
use shared::clock::Millis;
use shared::command::BadHeader;

/// Time limit for a whole header: as long as it takes to retransmit a packet (section 2 of the
/// protocol).
pub const PATIENCE: Duration = Duration::from_secs(3);

/// Pause after an error of the system.
const PAUSE: Duration = Duration::from_millis(50);

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

/// A message to the thread.
enum Message {
    Filter(PendingConn),
    /// Ends the thread at this time, or earlier if no connection is pending, and sends back the
    /// pending ones.
    End(Millis, Sender<Vec<PendingConn>>),
}

/// Handle of the filter's thread.
pub struct ProxyFilter {
    trusted: Vec<Network>,
    /// `None` only while it is dropped.
    messages: Option<Sender<Message>>,
    wake: Arc<Waker>,
}

impl ProxyFilter {
    /// Starts the thread for at most `most` connections at a time from `trusted` networks. The
    /// thread passes each connection with its result to `on_filtered`, which must not block.
    pub fn start(
        trusted: Vec<Network>,
        most: usize,
        on_filtered: impl Fn(PendingConn, FilterResult) + Send + 'static,
    ) -> Result<Self, Error> {
        let wake = Arc::new(Waker::new()?);
        // Some of the places are for connections that the thread has not seen yet. When these are
        // taken, the acceptors wait for the thread, which waits for no client, and new connections
        // wait in the backlog.
        let unseen = most / 8 + 1;
        let (sender, messages) = crossbeam_channel::bounded(unseen);
        let filter = FilterThread {
            pending: VecDeque::new(),
            most: most.saturating_sub(unseen).max(1),
            messages,
            wake: wake.clone(),
            ending: None,
            on_filtered,
        };
        thread::spawn("proxy-filter", move || {
            let (left, to) = filter.run();
            if let Some(to) = to {
                // The caller of `end` waits for them.
                let _ = to.send(left);
            }
        })?;
        Ok(ProxyFilter {
            trusted,
            messages: Some(sender),
            wake,
        })
    }

    /// Returns whether `peer` is a trusted proxy, which must send a header.
    pub fn trusts(&self, peer: IpAddr) -> bool {
        self.trusted.iter().any(|network| network.contains(peer))
    }

    /// Takes over a connection that was just accepted, and waits for its header.
    pub fn receive(&self, mut client: ConnectionState, stream: TcpStream) {
        client.awaits_proxy_header = true;
        self.resume((client, stream));
    }

    /// Takes over a pending connection. Another process may have read a part of its header.
    pub fn resume(&self, pending: PendingConn) {
        self.send(Message::Filter(pending));
    }

    /// Ends the thread after at most `patience`, and returns the connections that are still
    /// pending. The acceptors must have ended.
    pub fn end(self, patience: Duration) -> Vec<PendingConn> {
        let (to, left) = crossbeam_channel::bounded(1);
        self.send(Message::End(Millis::now().after(patience), to));
        left.recv().unwrap_or_default()
    }

    fn send(&self, message: Message) {
        if let Some(messages) = &self.messages {
            // It fails only if the thread is gone, and then the connection is closed.
            let _ = messages.send(message);
        }
        self.wake.wake();
    }
}

impl Drop for ProxyFilter {
    fn drop(&mut self) {
        self.messages = None;
        self.wake.wake();
    }
}

/// A pending connection and its deadline.
struct Pending {
    conn: PendingConn,
    until: Millis,
}

/// State of the thread. The connection that has waited longest is the first in `pending`.
struct FilterThread<G> {
    pending: VecDeque<Pending>,
    most: usize,
    messages: Receiver<Message>,
    wake: Arc<Waker>,
    ending: Option<(Millis, Sender<Vec<PendingConn>>)>,
    on_filtered: G,
}

impl<G: Fn(PendingConn, FilterResult)> FilterThread<G> {
    /// Returns the pending connections, and the channel to send them to. Drops `on_filtered`, and
    /// everything that it holds, before that.
    fn run(mut self) -> (Vec<PendingConn>, Option<Sender<Vec<PendingConn>>>) {
        // A panic loses the pending connections and is logged by the panic hook. Later ones are
        // served.
        while catch_unwind(AssertUnwindSafe(|| self.serve())).is_err() {
            self.pending.clear();
            std::thread::sleep(PAUSE);
        }
        let left = self.pending.into_iter().map(|pending| pending.conn);
        (left.collect(), self.ending.map(|(_, to)| to))
    }

    /// Reads headers until the filter ends.
    fn serve(&mut self) {
        loop {
            let ready = self.wait();
            let now = Millis::now();
            let is_late = self.pending.front().is_some_and(|first| now >= first.until);
            if is_late || ready.contains(&true) {
                let all = std::mem::take(&mut self.pending);
                for (pending, ready) in all.into_iter().zip(ready) {
                    if ready || now >= pending.until {
                        self.try_read_header(pending, now);
                    } else {
                        self.pending.push_back(pending);
                    }
                }
            }
            // Limited, or a flood of new connections would starve the pending ones.
            for _ in 0..=self.messages.capacity().unwrap_or_default() {
                match self.messages.try_recv() {
                    Ok(Message::Filter(pending)) => self.admit_pending(pending),
                    Ok(Message::End(until, to)) => self.ending = Some((until, to)),
                    Err(TryRecvError::Empty) => break,
                    Err(TryRecvError::Disconnected) if self.ending.is_none() => return,
                    Err(TryRecvError::Disconnected) => break,
                }
            }
            if let Some((until, _)) = &self.ending
                && self.messages.is_empty()
                && (self.pending.is_empty() || Millis::now() >= *until)
            {
                return;
            }
        }
    }

    /// Most clients have already sent their header at this point.
    fn admit_pending(&mut self, conn: PendingConn) {
        let now = Millis::now();
        let until = now.after(PATIENCE);
        self.try_read_header(Pending { conn, until }, now);
        if self.pending.len() > self.most
            && let Some(first) = self.pending.pop_front()
        {
            (self.on_filtered)(first.conn, FilterResult::NoRoom(self.most));
        }
    }

    /// Reads what has arrived, and passes the result on, if there is one. Otherwise the connection
    /// stays pending.
    fn try_read_header(&mut self, mut pending: Pending, now: Millis) {
        let (client, stream) = &mut pending.conn;
        match read(stream, &mut client.read_buffer) {
            Some(result) => (self.on_filtered)(pending.conn, result),
            None if now >= pending.until => {
                (self.on_filtered)(pending.conn, FilterResult::Bad(BadHeader::Late));
            }
            None => self.pending.push_back(pending),
        }
    }

    /// Waits for an event. Returns, for each pending connection, whether it is readable.
    fn wait(&mut self) -> Vec<bool> {
        let mut polled = vec![PollFd::new(&*self.wake, PollFlags::IN)];
        for pending in &self.pending {
            polled.push(PollFd::new(&pending.conn.1, PollFlags::IN));
        }
        let first = self.pending.front().map(|first| first.until);
        let ends = self.ending.as_ref().map(|(until, _)| *until);
        let next = [first, ends].into_iter().flatten().min();
        let time = match next {
            _ if !self.messages.is_empty() => Some(Duration::ZERO),
            // 1 ms more: the clock advances in steps, and could still be just before the deadline.
            next => next.map(|next| next.since(Millis::now()) + Duration::from_millis(1)),
        };
        let time = time.and_then(|time| Timespec::try_from(time).ok());
        match poll(&mut polled, time.as_ref()) {
            Ok(_) => {}
            Err(Errno::INTR) => return vec![false; self.pending.len()],
            Err(_) => {
                drop(polled);
                // The limit on open files may have become lower than the number of descriptors
                // (poll(2)): try to read each.
                std::thread::sleep(PAUSE);
                return vec![true; self.pending.len()];
            }
        }
        let mut ready = polled.iter().map(|fd| !fd.revents().is_empty());
        if ready.next() == Some(true) {
            self.wake.clear();
        }
        ready.collect()
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
