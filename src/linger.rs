//! Closing so that the last words arrive: a lingering close.
//!
//! A socket that is closed while the client still sends answers with a reset, and a reset may overtake and undo what
//! the client has not read yet (RFC 9112, section 9.6, tells the same of HTTP). So the server shuts down its sending
//! side, reads and throws away what still comes, and closes when the client has closed too, or after a second.
//! The thread wakes only while somebody is leaving.

use std::net::TcpStream;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, RecvTimeoutError, Sender};
use rustix::io::Errno;
use rustix::net::RecvFlags;

use crate::clock::Millis;
use crate::error::Error;
use crate::thread;

/// How long a client has to close its side.
const PATIENCE: Duration = Duration::from_secs(1);

/// How often it is looked after.
const INTERVAL: Duration = Duration::from_millis(10);

/// The most that is thrown away of one client's bytes each time that it is looked after.
const DISCARD: usize = 64 * 1024;

/// The sockets of clients that have been told goodbye.
#[derive(Clone)]
pub struct Linger {
    sender: Sender<(TcpStream, Millis)>,
    held: Arc<AtomicUsize>,
    limit: usize,
    /// Set when the sockets are to go on elsewhere.
    over: Arc<AtomicBool>,
}

impl Linger {
    /// Starts the thread, for at most `limit` sockets at a time. It ends when the last clone is dropped and no socket
    /// is left, or when it has given those back that are; then the receiver disconnects.
    pub fn start(limit: usize) -> Result<(Self, Receiver<TcpStream>), Error> {
        let (sender, leaving) = crossbeam_channel::unbounded();
        let (back, ended) = crossbeam_channel::unbounded();
        let held = Arc::new(AtomicUsize::new(0));
        let over = Arc::new(AtomicBool::new(false));
        let (counted, is_over) = (held.clone(), over.clone());
        thread::spawn("linger", move || {
            for (socket, _) in run(&leaving, &counted, &is_over) {
                // Nobody wants it any more: then it is closed.
                let _ = back.send(socket);
            }
        })?;
        let linger = Linger {
            sender,
            held,
            limit,
            over,
        };
        Ok((linger, ended))
    }

    /// Has the thread give back, by the receiver, what is left when the last clone is dropped.
    pub fn give_back(&self) {
        self.over.store(true, Ordering::Relaxed);
    }

    /// Closes `stream`, whose sending side is shut down, when the client has closed too. With too many already it is
    /// closed at once.
    pub fn leave(&self, stream: TcpStream) {
        if self.held.fetch_add(1, Ordering::Relaxed) < self.limit {
            // It fails only if the thread is gone, and then the socket is closed at once.
            let _ = self.sender.send((stream, Millis::now()));
        } else {
            self.held.fetch_sub(1, Ordering::Relaxed);
        }
    }
}

/// Returns those that are to go on elsewhere.
fn run(
    leaving: &Receiver<(TcpStream, Millis)>,
    held: &AtomicUsize,
    over: &AtomicBool,
) -> Vec<(TcpStream, Millis)> {
    let mut sockets: Vec<(TcpStream, Millis)> = Vec::new();
    let mut discarded = vec![0; DISCARD];
    loop {
        if sockets.is_empty() {
            match leaving.recv() {
                Ok(socket) => sockets.push(socket),
                Err(_) => return sockets,
            }
        }
        // Once in an interval, however many come: a flood of them would look after each at each arrival of another.
        let next = Instant::now() + INTERVAL;
        loop {
            match leaving.recv_deadline(next) {
                Ok(socket) => sockets.push(socket),
                Err(RecvTimeoutError::Timeout) => break,
                Err(RecvTimeoutError::Disconnected) if over.load(Ordering::Relaxed) => {
                    return sockets;
                }
                Err(RecvTimeoutError::Disconnected) => break std::thread::sleep(INTERVAL),
            }
        }
        let now = Millis::now();
        let before = sockets.len();
        sockets.retain(|(socket, since)| {
            now.since(*since) < PATIENCE && !has_closed(socket, &mut discarded)
        });
        held.fetch_sub(before - sockets.len(), Ordering::Relaxed);
    }
}

/// Throws away what has arrived, and tells whether that was all that will.
fn has_closed(socket: &TcpStream, buffer: &mut [u8]) -> bool {
    loop {
        match rustix::net::recv(socket, &mut *buffer, RecvFlags::DONTWAIT) {
            Ok((0, _)) => return true,
            Ok(_) | Err(Errno::AGAIN) => return false,
            Err(Errno::INTR) => {}
            Err(_) => return true,
        }
    }
}
