//! Lingering close: half-closed sockets are drained until the peer closes.
//!
//! If a server closes a socket while the client still sends, the kernel answers with a reset, which
//! may overtake and destroy data that the client has not read yet (RFC 9112, section 9.6, describes
//! the same for HTTP). So the server shuts down its sending side, discards what still arrives, and
//! closes when the client has closed too, or after a second. The thread wakes only while a socket
//! lingers.

use std::net::TcpStream;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, RecvTimeoutError, Sender};
use rustix::io::Errno;
use rustix::net::RecvFlags;

use crate::error::Error;
use crate::thread;
use shared::clock::Millis;

/// Time that a client has to close its side.
const LINGER_TIMEOUT: Duration = Duration::from_secs(1);

/// Interval between two checks of a socket.
const INTERVAL: Duration = Duration::from_millis(10);

/// Maximum number of bytes that one check discards of one socket.
const DISCARD: usize = 64 * 1024;

/// Handle of the thread that drains half-closed sockets.
#[derive(Clone)]
pub struct LingeringClose {
    sender: Sender<Command>,
    held: Arc<AtomicUsize>,
    limit: usize,
}

/// A socket that lingers, and since when.
pub type LingeringSocket = (TcpStream, Millis);

/// A message to the thread.
enum Command {
    Close(LingeringSocket),
    TakeAll(Sender<Vec<LingeringSocket>>),
}

impl LingeringClose {
    /// Starts the thread, for at most `limit` sockets at a time. It ends when the last clone is
    /// dropped and no socket is left; then the receiver disconnects.
    pub fn start(limit: usize) -> Result<(Self, Receiver<()>), Error> {
        let (sender, commands) = crossbeam_channel::unbounded();
        let (running, ended) = crossbeam_channel::bounded::<()>(0);
        let held = Arc::new(AtomicUsize::new(0));
        let counted = held.clone();
        thread::spawn("linger", move || {
            run(&commands, &counted);
            drop(running);
        })?;
        let linger = LingeringClose {
            sender,
            held,
            limit,
        };
        Ok((linger, ended))
    }

    /// Closes `stream`, whose sending side is shut down, once the client has closed too; or at once
    /// if `limit` sockets already linger.
    pub fn push(&self, stream: TcpStream) {
        self.resume((stream, Millis::now()));
    }

    /// Continues the lingering close of a socket.
    pub fn resume(&self, leaving: LingeringSocket) {
        if self.held.fetch_add(1, Ordering::Relaxed) < self.limit {
            // It fails only if the thread is gone, and then the socket is closed at once.
            let _ = self.sender.send(Command::Close(leaving));
        } else {
            self.held.fetch_sub(1, Ordering::Relaxed);
        }
    }

    /// Returns all lingering sockets, to be continued elsewhere.
    pub fn take_all(&self) -> Vec<LingeringSocket> {
        let (to, given) = crossbeam_channel::bounded(1);
        // It fails only if the thread is gone, with all sockets.
        let _ = self.sender.send(Command::TakeAll(to));
        given.recv().unwrap_or_default()
    }
}

fn run(commands: &Receiver<Command>, held: &AtomicUsize) {
    let mut sockets: Vec<LingeringSocket> = Vec::new();
    let mut discarded = vec![0; DISCARD];
    let handle = |command, sockets: &mut Vec<LingeringSocket>| match command {
        Command::Close(leaving) => sockets.push(leaving),
        Command::TakeAll(to) => {
            held.fetch_sub(sockets.len(), Ordering::Relaxed);
            // The caller of `take_all` waits for it.
            let _ = to.send(std::mem::take(sockets));
        }
    };
    loop {
        if sockets.is_empty() {
            match commands.recv() {
                Ok(command) => handle(command, &mut sockets),
                Err(_) => return,
            }
        }
        // One check per interval: with a flood of sockets, each new one would cause a check of all
        // others.
        let next = Instant::now() + INTERVAL;
        loop {
            match commands.recv_deadline(next) {
                Ok(command) => handle(command, &mut sockets),
                Err(RecvTimeoutError::Timeout) => break,
                Err(RecvTimeoutError::Disconnected) => break std::thread::sleep(INTERVAL),
            }
        }
        let now = Millis::now();
        let before = sockets.len();
        sockets.retain(|(socket, since)| {
            now.since(*since) < LINGER_TIMEOUT && !has_closed(socket, &mut discarded)
        });
        held.fetch_sub(before - sockets.len(), Ordering::Relaxed);
    }
}

/// Discards what has arrived, and returns whether the peer has closed.
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
