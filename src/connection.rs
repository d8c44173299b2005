//! One client as a value that can move: its socket, what it sent and was not answered, its place in the count.

use std::io;
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::time::Duration;

use rustix::io::Errno;
use rustix::net::{RecvFlags, SendFlags};

use crate::clients::Place;
use crate::clock::Millis;

/// A live connection. It can be moved between threads in the middle of anything but a request.
pub struct Connection {
    /// The number by which the log calls it, counted from 1 by each process.
    pub number: u64,
    /// The client's address.
    pub peer: SocketAddr,
    /// When it was accepted.
    pub since: Millis,
    /// What was read of a request that is not whole yet; less than a request may be long.
    pub unanswered: Vec<u8>,
    stream: TcpStream,
    place: Place,
}

impl Connection {
    /// A connection just accepted.
    pub fn new(number: u64, stream: TcpStream, peer: SocketAddr, place: Place) -> Self {
        Connection {
            number,
            peer,
            since: Millis::now(),
            unanswered: Vec::new(),
            stream,
            place,
        }
    }

    /// Reads what there is, waiting for the first byte unless `flags` say otherwise; 0 is the end of the input.
    #[inline]
    pub fn read(&self, buffer: &mut [u8], flags: RecvFlags) -> Result<usize, Errno> {
        rustix::net::recv(&self.stream, buffer, flags).map(|(read, _)| read)
    }

    /// Writes some of `bytes`, waiting for the client to take some unless `flags` say otherwise.
    #[inline]
    pub fn write(&self, bytes: &[u8], flags: SendFlags) -> Result<usize, Errno> {
        rustix::net::send(&self.stream, bytes, flags | SendFlags::NOSIGNAL)
    }

    /// How many bytes have arrived that were not read.
    pub fn unread(&self) -> usize {
        let unread = rustix::io::ioctl_fionread(&self.stream).unwrap_or(0);
        usize::try_from(unread).unwrap_or(usize::MAX)
    }

    /// The client counts no more, and then learns that nothing more will come. What is left is a socket to linger on.
    pub fn say_goodbye(self) -> TcpStream {
        drop(self.place);
        // It fails if the client has gone already, which is as well.
        let _ = self.stream.shutdown(Shutdown::Write);
        self.stream
    }

    /// The client counts no more and is cut off: it learns so by a reset, and the system forgets what it did not take.
    pub fn cut(self) {
        drop(self.place);
        // If it fails, the client sees an end instead of a reset.
        let _ = rustix::net::sockopt::set_socket_linger(&self.stream, Some(Duration::ZERO));
    }

    /// The client counts no more, and the socket is closed.
    pub fn close(self) {
        drop(self.place);
    }
}

/// Writes a last line to a socket without waiting. The client may be gone, or take nothing more: then it is lost.
pub fn last_words(stream: &TcpStream, line: &[u8]) -> io::Result<()> {
    rustix::net::send(stream, line, SendFlags::DONTWAIT | SendFlags::NOSIGNAL)?;
    Ok(())
}
