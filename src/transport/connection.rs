//! One client connection as a movable value: its transport, its codec, its unanswered input and
//! unsent replies, and its place in the count.

use std::net::{Shutdown, SocketAddr, TcpStream};
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec};
use rustix::io::Errno;
use rustix::net::{RecvFlags, SendFlags};

use crate::handover::state;
use crate::protocol::{Codec, Exchange, Goodbye, Input, PROTOCOLS, Progress, Protocol};
use crate::request_log::RequestLog;
use crate::transport::clients::ConnectionGuard;
use shared::clock::Nanos;
use shared::command::{BatchCounters, Context};

/// Carries the bytes of a connection. Fuzzers and model checks use one without a socket: see
/// `fuzz/` and `tests/shuttle`.
pub trait Transport {
    /// Receives, as recv(2).
    fn read(&mut self, buffer: &mut [u8], flags: RecvFlags) -> Result<usize, Errno>;
    /// Waits for input for at most `time`. Returns whether there is some.
    fn wait(&self, time: Duration) -> Result<bool, Errno>;
    /// Sends, as send(2).
    fn write(&mut self, bytes: &[u8], flags: SendFlags) -> Result<usize, Errno>;
    /// Returns the number of bytes that can be read at once.
    fn unread(&self) -> Result<u64, Errno>;
    /// Returns whether another process can continue with the descriptor alone.
    fn is_movable(&self) -> bool;
}

impl Transport for TcpStream {
    #[inline]
    fn read(&mut self, buffer: &mut [u8], flags: RecvFlags) -> Result<usize, Errno> {
        rustix::net::recv(self, buffer, flags).map(|(read, _)| read)
    }

    fn wait(&self, time: Duration) -> Result<bool, Errno> {
        let time = Timespec::try_from(time).ok();
        let mut polled = [PollFd::new(self, PollFlags::IN)];
        rustix::event::poll(&mut polled, time.as_ref()).map(|ready| ready > 0)
    }

    #[inline]
    fn write(&mut self, bytes: &[u8], flags: SendFlags) -> Result<usize, Errno> {
        rustix::net::send(self, bytes, flags | SendFlags::NOSIGNAL)
    }

    fn unread(&self) -> Result<u64, Errno> {
        rustix::io::ioctl_fionread(self)
    }

    fn is_movable(&self) -> bool {
        true
    }
}

/// A live connection. It can move between threads at any point except within a request.
pub struct Connection<T = TcpStream> {
    /// State of the client. Its replies are here and not on the worker's stack, so that they
    /// survive a panic. Boxed, because a worker's stack holds the connection several times, and one
    /// page more of it would cost each idle client 4 KiB.
    pub client: Box<state::ConnectionState>,
    /// Place of its protocol in [`PROTOCOLS`], for the metrics.
    pub protocol: u8,
    /// Time of the admission, until the front or a worker takes the connection.
    pub waiting: Option<Nanos>,
    /// In a box, because most servers have none.
    log: Option<Box<RequestLog>>,
    codec: Box<dyn Codec>,
    transport: T,
    guard: ConnectionGuard,
}

impl<T: Transport> Connection<T> {
    /// Returns a connection that has just been accepted.
    pub fn new(
        number: u64,
        protocol: &'static dyn Protocol,
        transport: T,
        peer: SocketAddr,
        guard: ConnectionGuard,
    ) -> Self {
        let client = state::ConnectionState::new(number, protocol.scheme(), peer);
        Connection::accepted(client, protocol, transport, guard)
    }

    /// Returns a connection that has just been accepted, with a state that is partly known.
    pub fn accepted(
        client: state::ConnectionState,
        protocol: &dyn Protocol,
        transport: T,
        guard: ConnectionGuard,
    ) -> Self {
        Connection {
            waiting: Some(Nanos::now()),
            ..Connection::inherited(client, protocol, transport, guard)
        }
    }

    /// Returns a connection of a client of the last process.
    pub fn inherited(
        mut client: state::ConnectionState,
        protocol: &dyn Protocol,
        transport: T,
        guard: ConnectionGuard,
    ) -> Self {
        let codec = protocol.open(&std::mem::take(&mut client.codec));
        Connection {
            log: RequestLog::is_kept()
                .then(|| Box::new(RequestLog::new(client.number, protocol.scheme()))),
            protocol: PROTOCOLS.position(protocol.scheme()) as u8,
            client: Box::new(client),
            waiting: None,
            codec,
            transport,
            guard,
        }
    }

    /// Returns whether another process can continue with the connection.
    pub fn is_movable(&self) -> bool {
        self.transport.is_movable() && self.codec.is_movable()
    }

    /// Stops counting the client here, and returns its state and transport for the next process.
    /// Only for a movable connection.
    pub fn into_parts(mut self) -> (state::ConnectionState, T) {
        self.client.codec = self.codec.save();
        (*self.client, self.transport)
    }

    /// Reads the available bytes. Waits for the first one unless `flags` say otherwise; 0 is the
    /// end of the input.
    #[inline]
    pub fn read(&mut self, buffer: &mut [u8], flags: RecvFlags) -> Result<usize, Errno> {
        self.transport.read(buffer, flags)
    }

    /// Writes some of the replies after the first `written` bytes. Waits until the client takes
    /// some unless `flags` say otherwise.
    #[inline]
    pub fn write_replies(&mut self, written: usize, flags: SendFlags) -> Result<usize, Errno> {
        self.transport.write(&self.client.replies[written..], flags)
    }

    /// Lets the codec answer `input`, which was read at `read_at`.
    #[inline]
    pub fn receive(
        &mut self,
        input: Input<'_>,
        read_at: Nanos,
        context: &Context,
        counters: &mut BatchCounters,
    ) -> Progress {
        let mut exchange = Exchange {
            context,
            read_at,
            output: &mut self.client.replies,
            counters,
            log: self.log.as_deref_mut(),
            guard: &mut self.guard,
        };
        self.codec.receive(input, &mut exchange)
    }

    /// Begins the end of a connection that is not movable; see [`Codec::drain`].
    pub fn drain(&mut self) -> bool {
        self.codec.drain()
    }

    /// Waits for input for at most `time`. Returns whether there is some.
    pub fn wait(&self, time: Duration) -> Result<bool, Errno> {
        self.transport.wait(time)
    }

    /// Returns the number of bytes that have arrived and are unread.
    pub fn unread(&self) -> usize {
        usize::try_from(self.transport.unread().unwrap_or(0)).unwrap_or(usize::MAX)
    }

    /// Returns the transport.
    pub fn transport(&self) -> &T {
        &self.transport
    }

    /// Stops counting the client, and closes the transport.
    pub fn close(self) {
        drop(self.guard);
    }
}

impl Connection {
    /// Sends the remaining replies and the codec's goodbye without waiting, and half-closes the
    /// connection. Returns the socket for a lingering close.
    pub fn say_goodbye(mut self, why: Goodbye) -> TcpStream {
        self.codec.goodbye(why, &mut self.client.replies);
        if !self.client.replies.is_empty() {
            // A client that takes no more data loses these replies too.
            let _ = self.write_replies(0, SendFlags::DONTWAIT);
        }
        self.half_close()
    }

    /// Stops counting the client, then shuts down the sending side. Returns the socket for a
    /// lingering close.
    pub fn half_close(self) -> TcpStream {
        drop(self.guard);
        // It fails if the client has already gone, which does no harm.
        let _ = self.transport.shutdown(Shutdown::Write);
        self.transport
    }

    /// Stops counting the client, and aborts the connection: the client gets a reset, and the
    /// system discards all data that the client has not taken.
    pub fn abort(self) {
        drop(self.guard);
        // If it fails, the client sees an end of input instead of a reset.
        let _ = rustix::net::sockopt::set_socket_linger(&self.transport, Some(Duration::ZERO));
    }
}

/// Writes a last line to a socket without waiting, and shuts down the sending side. The line is
/// lost if the client is gone or takes no more data.
pub fn send_last_line(stream: TcpStream, line: &[u8]) -> TcpStream {
    let flags = SendFlags::DONTWAIT | SendFlags::NOSIGNAL;
    let _ = rustix::net::send(&stream, line, flags);
    let _ = stream.shutdown(Shutdown::Write);
    stream
}
