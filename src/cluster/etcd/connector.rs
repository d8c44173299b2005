//! ureq connector: connects to one host of etcd by a [`Stream`], which resolves the name by this
//! project's DNS cache and does TLS.

use std::io::ErrorKind;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use rustls::ClientConfig;
use ureq::Error;
use ureq::config::Config;
use ureq::http::Uri;
use ureq::unversioned::resolver::{ResolvedSocketAddrs, Resolver};
use ureq::unversioned::transport::{
    Buffers, ConnectionDetails, Connector, LazyBuffers, NextTimeout, Transport,
};

use crate::cluster::stream::Stream;
use shared::dial::{DnsCache, Server};
use shared::sync::ignore_poison;

/// Longest wait of one step, should ureq set no timeout.
const LONGEST: Duration = Duration::from_secs(1);

/// Connector to one host.
#[derive(Clone, Debug)]
pub struct HostConnector {
    host: Server,
    dns: Arc<DnsCache>,
    tls: Option<Arc<ClientConfig>>,
    /// Last connected address of the host.
    address: Arc<Mutex<Option<SocketAddr>>>,
}

impl HostConnector {
    /// Creates a connector to `host`, with TLS if `tls` is given.
    pub fn new(host: Server, dns: Arc<DnsCache>, tls: Option<Arc<ClientConfig>>) -> Self {
        HostConnector {
            host,
            dns,
            tls,
            address: Arc::default(),
        }
    }

    /// Reports a failure of the host: the next connection tries another of its addresses first.
    pub fn failed(&self) {
        if let Some(address) = ignore_poison(self.address.lock()).take() {
            self.dns.failed(address);
        }
    }
}

impl Resolver for HostConnector {
    /// Returns any address: the connector resolves the name itself.
    fn resolve(&self, _: &Uri, _: &Config, _: NextTimeout) -> Result<ResolvedSocketAddrs, Error> {
        let mut addresses = self.empty();
        addresses.push((Ipv4Addr::UNSPECIFIED, 0).into());
        Ok(addresses)
    }
}

impl Connector for HostConnector {
    type Out = HttpStream;

    fn connect(
        &self,
        details: &ConnectionDetails<'_>,
        _: Option<()>,
    ) -> Result<Option<HttpStream>, Error> {
        let (tls, deadline) = (self.tls.clone(), deadline(details.timeout));
        let stream = Stream::connect(&self.host, &self.dns, tls, deadline)?;
        *ignore_poison(self.address.lock()) = Some(stream.address());
        let config = details.config;
        let buffers = LazyBuffers::new(config.input_buffer_size(), config.output_buffer_size());
        Ok(Some(HttpStream { stream, buffers }))
    }
}

fn deadline(timeout: NextTimeout) -> Instant {
    Instant::now() + (*timeout.after).min(LONGEST)
}

/// Stream with ureq's buffers.
#[derive(Debug)]
pub struct HttpStream {
    stream: Stream,
    buffers: LazyBuffers,
}

impl Transport for HttpStream {
    fn buffers(&mut self) -> &mut dyn Buffers {
        &mut self.buffers
    }

    fn transmit_output(&mut self, amount: usize, timeout: NextTimeout) -> Result<(), Error> {
        self.stream.set_deadline(deadline(timeout));
        Ok(self.stream.send(&self.buffers.output()[..amount])?)
    }

    fn await_input(&mut self, timeout: NextTimeout) -> Result<bool, Error> {
        self.stream.set_deadline(deadline(timeout));
        let received = self.stream.receive(self.buffers.input_append_buf())?;
        self.buffers.input_appended(received);
        Ok(received > 0)
    }

    /// Returns whether the connection can be reused: neither data nor an end of file waits to be
    /// read.
    fn is_open(&mut self) -> bool {
        self.stream.set_deadline(Instant::now());
        let received = self.stream.receive(&mut [0; 1]);
        received.is_err_and(|error| error.kind() == ErrorKind::TimedOut)
    }
}
