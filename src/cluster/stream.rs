//! TCP stream with a deadline, with TLS if configured: the connection to Redis, a Sentinel or etcd.
//!
//! The deadline bounds each read and write as a whole, also a TLS handshake within it. A write
//! after the peer has closed the connection succeeds: the next read returns what the peer sent
//! before, such as a TLS alert, where rustls would not read after a failed write.

use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::os::fd::{AsFd, BorrowedFd};
use std::time::Instant;

use rustix::event::{PollFd, PollFlags};
use rustix::io::Errno;
use rustls::ClientConnection;
use rustls::pki_types::ServerName;

use super::error::{ClusterError, Result};
use crate::config::options::Credentials;
use crate::waker::poll_until;
use shared::dial::socket::is_closed_by_peer;
use shared::dial::{DnsCache, Server};

/// Connected stream.
pub struct Stream {
    socket: Socket,
    tls: Option<ClientConnection>,
    /// Address that the connection was made to.
    pub address: SocketAddr,
}

/// Non-blocking socket; reads and writes wait until the deadline.
struct Socket {
    socket: TcpStream,
    deadline: Instant,
}

trait ReadWrite: Read + Write {}
impl<T: Read + Write> ReadWrite for T {}

impl Stream {
    /// Connects to `server`, over TLS if there are credentials for it; the handshake comes with the
    /// first read or write.
    pub fn connect(
        server: &Server,
        dns: &DnsCache,
        tls: Option<&Credentials>,
        deadline: Instant,
    ) -> Result<Self> {
        let config = tls.map(Credentials::tls).transpose()?;
        let connect = || {
            let (socket, address) = dns.connect(&server.host, server.port, deadline)?;
            socket.set_nonblocking(true)?;
            let start = |config| {
                let name = ServerName::try_from(server.host.clone()).map_err(invalid)?;
                ClientConnection::new(config, name).map_err(invalid)
            };
            Ok(Stream {
                socket: Socket { socket, deadline },
                tls: config.map(start).transpose()?,
                address,
            })
        };
        connect().map_err(|error| ClusterError::connection(server, &error))
    }

    /// Sets the deadline of all reads and writes from now on. They fail with `TimedOut` then; with
    /// a deadline in the past, they do only what is possible without waiting.
    pub fn set_deadline(&mut self, deadline: Instant) {
        self.socket.deadline = deadline;
    }

    /// Sends all `bytes`.
    pub fn send(&mut self, bytes: &[u8]) -> io::Result<()> {
        let mut transport = self.transport();
        transport.write_all(bytes)?;
        transport.flush()
    }

    /// Returns whether the connection is open and nothing waits to be read.
    pub fn is_idle(&mut self) -> bool {
        self.set_deadline(Instant::now());
        let read = self.read(&mut [0]);
        read.is_err_and(|error| error.kind() == io::ErrorKind::TimedOut)
    }

    fn transport(&mut self) -> Box<dyn ReadWrite + '_> {
        match &mut self.tls {
            None => Box::new(&mut self.socket),
            Some(tls) => Box::new(rustls::Stream::new(tls, &mut self.socket)),
        }
    }
}

fn invalid(error: impl std::error::Error + Send + Sync + 'static) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, error)
}

impl Read for Stream {
    /// Receives some bytes; 0 at the end of the stream.
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        self.transport().read(buffer)
    }
}

impl AsFd for Stream {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.socket.as_fd()
    }
}

impl Socket {
    /// Calls `attempt` until it doesn't block, or until the deadline.
    fn wait<T>(
        &self,
        events: PollFlags,
        mut attempt: impl FnMut(&TcpStream) -> io::Result<T>,
    ) -> io::Result<T> {
        loop {
            match attempt(&self.socket) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                done => return done,
            }
            match poll_until(&mut [PollFd::new(&self.socket, events)], self.deadline) {
                Ok(true) | Err(Errno::INTR) => {}
                Ok(false) => {
                    let what = "it does not answer in time";
                    return Err(io::Error::new(io::ErrorKind::TimedOut, what));
                }
                Err(error) => return Err(error.into()),
            }
        }
    }
}

impl Read for Socket {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        self.wait(PollFlags::IN, |mut socket| socket.read(buffer))
    }
}

impl Write for Socket {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        match self.wait(PollFlags::OUT, |mut socket| socket.write(bytes)) {
            Err(error) if is_closed_by_peer(&error) => Ok(bytes.len()),
            written => written,
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::net::TcpListener;
    use std::time::Duration;

    use super::*;

    #[test]
    fn what_a_peer_sent_before_it_closed_is_read_although_writing_fails() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let (host, port) = (
            "127.0.0.1".to_string(),
            listener.local_addr().unwrap().port(),
        );
        let by = Instant::now() + Duration::from_secs(10);
        let server = Server::new(host, port);
        let mut stream = Stream::connect(&server, &DnsCache::default(), None, by).unwrap();
        listener.accept().unwrap().0.write_all(b"why").unwrap();
        // The first write makes the peer reset the connection, and the next ones fail.
        for _ in 0..3 {
            stream.send(b"PING\r\n").unwrap();
        }
        let mut buffer = [0; 9];
        assert_eq!(stream.read(&mut buffer).unwrap(), 3);
        assert_eq!(&buffer[..3], b"why");
    }
}
