//! One client as a value that can move: its socket, what it sent and was not answered, its place in the count.

use std::io;
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::time::Duration;

use rustix::io::Errno;
use rustix::net::{RecvFlags, SendFlags};

use crate::clients::ConnectionGuard;
use crate::clock::Nanos;
use crate::handover_state;

/// What a session needs of a socket. One that is no socket serves to try sessions: see `fuzz/` and `tests/shuttle.rs`.
pub trait Socket {
    /// See recv(2).
    fn recv(&self, buffer: &mut [u8], flags: RecvFlags) -> Result<usize, Errno>;
    /// See send(2).
    fn send(&self, bytes: &[u8], flags: SendFlags) -> Result<usize, Errno>;
    /// How many bytes can be read at once.
    fn unread(&self) -> Result<u64, Errno>;
}

impl Socket for TcpStream {
    #[inline]
    fn recv(&self, buffer: &mut [u8], flags: RecvFlags) -> Result<usize, Errno> {
        rustix::net::recv(self, buffer, flags).map(|(read, _)| read)
    }

    #[inline]
    fn send(&self, bytes: &[u8], flags: SendFlags) -> Result<usize, Errno> {
        rustix::net::send(self, bytes, flags | SendFlags::NOSIGNAL)
    }

    fn unread(&self) -> Result<u64, Errno> {
        rustix::io::ioctl_fionread(self)
    }
}

/// A live connection. It can be moved between threads in the middle of anything but a request.
pub struct Connection<S = TcpStream> {
    /// What is known of the client. Its replies are here, and not on the worker's stack, so that they outlive a panic.
    pub client: handover_state::ConnectionState,
    /// When it was accepted, until a worker takes it.
    pub waiting: Option<Nanos>,
    stream: S,
    guard: ConnectionGuard,
}

impl<S: Socket> Connection<S> {
    /// A connection just accepted.
    pub fn new(number: u64, stream: S, peer: SocketAddr, guard: ConnectionGuard) -> Self {
        Connection::accepted(
            handover_state::ConnectionState::new(number, peer),
            stream,
            guard,
        )
    }

    /// The same, of whom something is known already.
    pub fn accepted(
        client: handover_state::ConnectionState,
        stream: S,
        guard: ConnectionGuard,
    ) -> Self {
        Connection {
            waiting: Some(Nanos::now()),
            ..Connection::of(client, stream, guard)
        }
    }

    /// A client of the last process.
    pub fn of(client: handover_state::ConnectionState, stream: S, guard: ConnectionGuard) -> Self {
        Connection {
            client,
            waiting: None,
            stream,
            guard,
        }
    }

    /// The client counts no more here, and is ready to go to the next process.
    pub fn into_parts(self) -> (handover_state::ConnectionState, S) {
        (self.client, self.stream)
    }

    /// Reads what there is, waiting for the first byte unless `flags` say otherwise; 0 is the end of the input.
    #[inline]
    pub fn read(&self, buffer: &mut [u8], flags: RecvFlags) -> Result<usize, Errno> {
        self.stream.recv(buffer, flags)
    }

    /// Writes some of `bytes`, waiting for the client to take some unless `flags` say otherwise.
    #[inline]
    pub fn write(&self, bytes: &[u8], flags: SendFlags) -> Result<usize, Errno> {
        self.stream.send(bytes, flags)
    }

    /// How many bytes have arrived that were not read.
    pub fn unread(&self) -> usize {
        usize::try_from(self.stream.unread().unwrap_or(0)).unwrap_or(usize::MAX)
    }

    /// The socket.
    pub fn socket(&self) -> &S {
        &self.stream
    }

    /// The client counts no more, and the socket is closed.
    pub fn close(self) {
        drop(self.guard);
    }
}

impl Connection {
    /// The client counts no more, and then learns that nothing more will come. What is left is a socket to linger on.
    pub fn say_goodbye(self) -> TcpStream {
        drop(self.guard);
        // It fails if the client has gone already, which is as well.
        let _ = self.stream.shutdown(Shutdown::Write);
        self.stream
    }

    /// The client counts no more and is cut off: it learns so by a reset, and the system forgets what it did not take.
    pub fn cut(self) {
        drop(self.guard);
        // If it fails, the client sees an end instead of a reset.
        let _ = rustix::net::sockopt::set_socket_linger(&self.stream, Some(Duration::ZERO));
    }
}

/// Writes a last line to a socket without waiting. The client may be gone, or take nothing more: then it is lost.
pub fn last_words(stream: &TcpStream, line: &[u8]) -> io::Result<()> {
    rustix::net::send(stream, line, SendFlags::DONTWAIT | SendFlags::NOSIGNAL)?;
    Ok(())
}
