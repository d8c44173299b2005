//! Lingering close: half-closed sockets are drained until the peer closes.
//!
//! If a server closes a socket while the client still sends, the kernel answers with a reset, which
//! may overtake and destroy data that the client has not read yet (RFC 9112, section 9.6, describes
//! the same for HTTP). So the server shuts down its sending side, discards what still arrives, and
//! closes when the client has closed too, or after a second. Any thread may push a socket; the
//! front checks them.

use std::net::TcpStream;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use crossbeam_channel::{Receiver, Sender, TryRecvError};
use rustix::io::Errno;
use rustix::net::RecvFlags;

use crate::waker::Waker;
use shared::clock::Millis;

/// Time that a client has to close its side.
const LINGER_TIMEOUT: Duration = Duration::from_secs(1);

/// Interval between two checks of a socket.
const INTERVAL: Duration = Duration::from_millis(10);

/// Maximum number of bytes that one check discards of one socket.
const DISCARD: usize = 64 * 1024;

/// A socket that lingers, and since when.
pub type LingeringSocket = (TcpStream, Millis);

/// Handle by which a thread leaves sockets to the front.
#[derive(Clone, Default)]
pub struct LingeringClose {
    /// `None` without a front: sockets are closed at once. The front itself needs no waker.
    front: Option<(Sender<LingeringSocket>, Option<Arc<Waker>>)>,
    /// Number of further sockets that there is room for.
    room: Arc<AtomicUsize>,
}

impl LingeringClose {
    /// Closes `stream`, whose sending side is shut down, once the client has closed too; or at once
    /// if there is no room.
    pub fn push(&self, stream: TcpStream) {
        self.resume((stream, Millis::now()));
    }

    /// Continues the lingering close of a socket.
    pub fn resume(&self, socket: LingeringSocket) {
        let take = |room: usize| room.checked_sub(1);
        let has_room = self
            .room
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, take);
        if let (Some((sender, waker)), Ok(_)) = (&self.front, has_room) {
            // It fails only if the front is gone, and then the socket is closed at once.
            let _ = sender.send(socket);
            if let Some(waker) = waker {
                waker.wake();
            }
        }
    }

    /// Returns a handle for the front itself.
    pub fn within_front(&self) -> Self {
        let sender = self.front.as_ref().map(|(sender, _)| sender.clone());
        LingeringClose {
            front: sender.map(|sender| (sender, None)),
            room: self.room.clone(),
        }
    }
}

impl Drop for LingeringClose {
    fn drop(&mut self) {
        if let Some((sender, Some(waker))) = self.front.take() {
            drop(sender);
            // After the last handle, the front may end.
            waker.wake();
        }
    }
}

/// The sockets that linger.
pub struct LingeringSockets {
    sockets: Vec<LingeringSocket>,
    pushed: Receiver<LingeringSocket>,
    room: Arc<AtomicUsize>,
    next_check: Millis,
    discarded: Vec<u8>,
}

impl LingeringSockets {
    /// Returns room for `limit` sockets at a time. The handles wake the front by `waker`.
    pub fn new(limit: usize, waker: Arc<Waker>) -> (LingeringClose, Self) {
        let (sender, pushed) = crossbeam_channel::unbounded();
        let room = Arc::new(AtomicUsize::new(limit));
        let handle = LingeringClose {
            front: Some((sender, Some(waker))),
            room: room.clone(),
        };
        let sockets = LingeringSockets {
            sockets: Vec::new(),
            pushed,
            room,
            next_check: Millis(0),
            discarded: Vec::new(),
        };
        (handle, sockets)
    }

    /// Takes the sockets that were pushed, and checks all when a check is due. Returns whether more
    /// may come or some are left.
    pub fn advance(&mut self, now: Millis) -> bool {
        let may_come = loop {
            match self.pushed.try_recv() {
                Ok(socket) => self.sockets.push(socket),
                Err(error) => break error == TryRecvError::Empty,
            }
        };
        // One check per interval: with a flood of sockets, each new one would cause a check of all
        // others.
        if !self.sockets.is_empty() && now >= self.next_check {
            self.next_check = now.after(INTERVAL);
            self.discarded.resize(DISCARD, 0);
            let before = self.sockets.len();
            self.sockets.retain(|(socket, since)| {
                now.since(*since) < LINGER_TIMEOUT && !has_closed(socket, &mut self.discarded)
            });
            self.free(before - self.sockets.len());
        }
        may_come || !self.sockets.is_empty()
    }

    /// Returns when the next check is due.
    pub fn next_check(&self) -> Option<Millis> {
        (!self.sockets.is_empty()).then_some(self.next_check)
    }

    /// Returns all lingering sockets, to be continued elsewhere.
    pub fn take_all(&mut self) -> Vec<LingeringSocket> {
        let mut all = std::mem::take(&mut self.sockets);
        all.extend(self.pushed.try_iter());
        self.free(all.len());
        all
    }

    fn free(&self, sockets: usize) {
        self.room.fetch_add(sockets, Ordering::Relaxed);
    }
}

/// Discards what has arrived, and returns whether the peer has closed.
fn has_closed(socket: &TcpStream, buffer: &mut [u8]) -> bool {
    loop {
        // TCP data is discarded without being copied (tcp(7), MSG_TRUNC).
        let flags = RecvFlags::DONTWAIT | RecvFlags::TRUNC;
        match rustix::net::recv(socket, &mut *buffer, flags) {
            Ok((0, _)) => return true,
            Ok(_) | Err(Errno::AGAIN) => return false,
            Err(Errno::INTR) => {}
            Err(_) => return true,
        }
    }
}
