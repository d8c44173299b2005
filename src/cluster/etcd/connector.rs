//! ureq connector: resolves and connects to etcd's members with this project's DNS cache and
//! deadlines.

use std::collections::HashMap;
use std::io::{self, ErrorKind, Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use rustix::net::RecvFlags;
use ureq::Error;
use ureq::config::Config;
use ureq::http::Uri;
use ureq::unversioned::resolver::{ResolvedSocketAddrs, Resolver};
use ureq::unversioned::transport::{
    Buffers, ConnectionDetails, Connector, LazyBuffers, NextTimeout, Transport,
};

use crate::cluster::settings::Host;
use shared::dial::DnsCache;
use shared::dial::socket::{connect_first, is_closed_by_peer};

/// Longest wait for the first lookup of a name, and for a connection, even if the deadline is
/// later.
const LONGEST: Duration = Duration::from_secs(1);

/// Number of addresses that ureq has room for.
const MOST_ADDRESSES: usize = 16;

/// Resolver of and connector to etcd's members. Clones share their state.
#[derive(Clone, Debug)]
pub struct Members {
    names: Arc<DnsCache>,
    /// Last connected address of each host.
    used: Arc<Mutex<HashMap<Host, SocketAddr>>>,
}

impl Members {
    /// Creates a connector that uses this DNS cache.
    pub fn new(names: Arc<DnsCache>) -> Self {
        let used = Arc::default();
        Members { names, used }
    }

    /// Returns the DNS cache.
    pub fn names(&self) -> &DnsCache {
        &self.names
    }

    /// Reports a failure of `host`: the next connection tries another of its addresses first.
    pub fn failed(&self, host: &Host) {
        if let Some(address) = self.used().remove(host) {
            self.names.failed(address);
        }
    }

    /// Locks the addresses. No code panics while it holds this lock.
    fn used(&self) -> MutexGuard<'_, HashMap<Host, SocketAddr>> {
        self.used.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Resolver for Members {
    fn resolve(
        &self,
        uri: &Uri,
        _: &Config,
        timeout: NextTimeout,
    ) -> Result<ResolvedSocketAddrs, Error> {
        let Host { name, port } = host(uri)?;
        let by = Instant::now() + (*timeout.after).min(LONGEST);
        let addresses = self.names.addresses(&name, port, by)?;
        let mut all = self.empty();
        for address in addresses.into_iter().take(MOST_ADDRESSES) {
            all.push(address);
        }
        if all.is_empty() {
            return Err(Error::HostNotFound);
        }
        Ok(all)
    }
}

impl Connector for Members {
    type Out = Tcp;

    fn connect(
        &self,
        details: &ConnectionDetails<'_>,
        _: Option<()>,
    ) -> Result<Option<Tcp>, Error> {
        let by = Instant::now() + (*details.timeout.after).min(LONGEST);
        let mut last = None;
        let connected = connect_first(&details.addrs, by, |address, error| {
            self.names.failed(address);
            last = Some(error);
        });
        let Some((stream, address)) = connected else {
            let error = last.map_or(Error::HostNotFound, |error| failed(error, details.timeout));
            return Err(error);
        };
        self.used().insert(host(details.uri)?, address);
        let config = details.config;
        let buffers = LazyBuffers::new(config.input_buffer_size(), config.output_buffer_size());
        Ok(Some(Tcp { stream, buffers }))
    }
}

/// Returns the host of a URI such as `http://[::1]:2379/v3/…`.
fn host(uri: &Uri) -> Result<Host, Error> {
    let authority = uri.authority().ok_or(Error::HostNotFound)?;
    let name = authority.host().trim_matches(['[', ']']).to_string();
    let port = authority.port_u16().ok_or(Error::HostNotFound)?;
    Ok(Host { name, port })
}

/// TCP connection with ureq's buffers.
#[derive(Debug)]
pub struct Tcp {
    stream: TcpStream,
    buffers: LazyBuffers,
}

impl Transport for Tcp {
    fn buffers(&mut self) -> &mut dyn Buffers {
        &mut self.buffers
    }

    fn transmit_output(&mut self, amount: usize, timeout: NextTimeout) -> Result<(), Error> {
        let timeout = timeout.for_write();
        self.stream.set_write_timeout(Some(left(timeout)?))?;
        let output = &self.buffers.output()[..amount];
        match self.stream.write_all(output) {
            Err(error) if !is_closed_by_peer(&error) => Err(failed(error, timeout)),
            _ => Ok(()),
        }
    }

    fn await_input(&mut self, timeout: NextTimeout) -> Result<bool, Error> {
        let timeout = timeout.for_read();
        self.stream.set_read_timeout(Some(left(timeout)?))?;
        let input = self.buffers.input_append_buf();
        let read = loop {
            match self.stream.read(input) {
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                read => break read.map_err(|error| failed(error, timeout))?,
            }
        };
        self.buffers.input_appended(read);
        Ok(read > 0)
    }

    /// Returns whether the connection can be reused: neither data nor an end of file waits to be
    /// read.
    fn is_open(&mut self) -> bool {
        let flags = RecvFlags::DONTWAIT | RecvFlags::PEEK;
        let waiting = rustix::net::recv(&self.stream, &mut [0; 1], flags);
        waiting == Err(rustix::io::Errno::AGAIN)
    }
}

/// Returns the remaining time; an error if it is 0, which is not a valid socket timeout.
fn left(timeout: NextTimeout) -> Result<Duration, Error> {
    match *timeout.after {
        Duration::ZERO => Err(Error::Timeout(timeout.reason)),
        left => Ok(left),
    }
}

fn failed(error: io::Error, timeout: NextTimeout) -> Error {
    match error.kind() {
        ErrorKind::TimedOut | ErrorKind::WouldBlock => Error::Timeout(timeout.reason),
        _ => Error::Io(error),
    }
}

#[cfg(test)]
mod tests {
    use std::net::TcpListener;

    use super::*;

    #[test]
    fn what_a_member_sent_before_it_closed_is_read_although_writing_fails() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let stream = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        listener.accept().unwrap().0.write_all(b"why").unwrap();
        let buffers = LazyBuffers::new(16, 16);
        let mut tcp = Tcp { stream, buffers };
        let timeout = || NextTimeout {
            after: Duration::from_secs(10).into(),
            ..NextTimeout::default()
        };
        // The first write makes the member reset the connection, and the next ones fail.
        for _ in 0..3 {
            tcp.transmit_output(1, timeout()).unwrap();
        }
        assert!(tcp.await_input(timeout()).unwrap());
        assert_eq!(tcp.buffers.input(), b"why");
    }
}
