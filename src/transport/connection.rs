//! One client connection as a movable value: its socket, its unanswered input and unsent replies,
//! and its place in the count.

use std::io;
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::time::Duration;

use rustix::io::Errno;
use rustix::net::{RecvFlags, SendFlags};

use crate::handover::state;
use crate::transport::clients::ConnectionGuard;
use shared::clock::Nanos;

/// Socket operations of a session. Fuzzers and model checks use one without a socket: see `fuzz/`
/// and `tests/shuttle.rs`.
pub trait Socket {
    /// Receives, as recv(2).
    fn recv(&self, buffer: &mut [u8], flags: RecvFlags) -> Result<usize, Errno>;
    /// Sends, as send(2).
    fn send(&self, bytes: &[u8], flags: SendFlags) -> Result<usize, Errno>;
    /// Returns the number of bytes that can be read at once.
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

/// A live connection. It can move between threads at any point except within a request.
pub struct Connection<S = TcpStream> {
    /// State of the client. Its replies are here and not on the worker's stack, so that they
    /// survive a panic.
    pub client: state::ConnectionState,
    /// Time of the admission, until a worker takes the connection.
    pub waiting: Option<Nanos>,
    stream: S,
    guard: ConnectionGuard,
}

impl<S: Socket> Connection<S> {
    /// Returns a connection that has just been accepted.
    pub fn new(number: u64, stream: S, peer: SocketAddr, guard: ConnectionGuard) -> Self {
        Connection::accepted(state::ConnectionState::new(number, peer), stream, guard)
    }

    /// Returns a connection that has just been accepted, with a state that is partly known.
    pub fn accepted(client: state::ConnectionState, stream: S, guard: ConnectionGuard) -> Self {
        Connection {
            waiting: Some(Nanos::now()),
            ..Connection::of(client, stream, guard)
        }
    }

    /// Returns a connection of a client of the last process.
    pub fn of(client: state::ConnectionState, stream: S, guard: ConnectionGuard) -> Self {
        Connection {
            client,
            waiting: None,
            stream,
            guard,
        }
    }

    /// Stops counting the client here, and returns its state and socket for the next process.
    pub fn into_parts(self) -> (state::ConnectionState, S) {
        (self.client, self.stream)
    }

    /// Reads the available bytes. Waits for the first one unless `flags` say otherwise; 0 is the
    /// end of the input.
    #[inline]
    pub fn read(&self, buffer: &mut [u8], flags: RecvFlags) -> Result<usize, Errno> {
        self.stream.recv(buffer, flags)
    }

    /// Writes some of `bytes`. Waits until the client takes some unless `flags` say otherwise.
    #[inline]
    pub fn write(&self, bytes: &[u8], flags: SendFlags) -> Result<usize, Errno> {
        self.stream.send(bytes, flags)
    }

    /// Returns the number of bytes that have arrived and are unread.
    pub fn unread(&self) -> usize {
        usize::try_from(self.stream.unread().unwrap_or(0)).unwrap_or(usize::MAX)
    }

    /// Returns the socket.
    pub fn socket(&self) -> &S {
        &self.stream
    }

    /// Stops counting the client, and closes the socket.
    pub fn close(self) {
        drop(self.guard);
    }
}

impl Connection {
    /// Stops counting the client, then shuts down the sending side. Returns the socket for a
    /// lingering close.
    pub fn say_goodbye(self) -> TcpStream {
        drop(self.guard);
        // It fails if the client has already gone, which does no harm.
        let _ = self.stream.shutdown(Shutdown::Write);
        self.stream
    }

    /// Stops counting the client, and aborts the connection: the client gets a reset, and the
    /// system discards all data that the client has not taken.
    pub fn cut(self) {
        drop(self.guard);
        // If it fails, the client sees an end of input instead of a reset.
        let _ = rustix::net::sockopt::set_socket_linger(&self.stream, Some(Duration::ZERO));
    }
}

/// Writes a last line to a socket without waiting. The line is lost if the client is gone or takes
/// no more data.
pub fn last_words(stream: &TcpStream, line: &[u8]) -> io::Result<()> {
    rustix::net::send(stream, line, SendFlags::DONTWAIT | SendFlags::NOSIGNAL)?;
    Ok(())
}
