//! Poller: asks for the number of clients, on one connection as long as it stays open.

use std::net::SocketAddr;

use jiff::Timestamp;
use shared::dial::clients;

use crate::failure::Failure;
use crate::link::Link;
use crate::options::Options;

/// Result of one request.
pub struct Sample {
    /// When the reply arrived.
    pub time: Timestamp,
    /// The number of clients, or the failure.
    pub count: Result<u64, Failure>,
}

/// The poller.
pub struct Poller {
    link: Link,
    /// Number of the connection that was asked for its id.
    connection: usize,
    /// Address of the server that was asked last.
    pub address: Option<SocketAddr>,
    /// Its id, if it reports one.
    pub id: Option<String>,
}

impl Poller {
    /// Returns a poller that is not connected yet.
    pub fn new(options: &Options) -> Self {
        Poller {
            link: Link::new(options, None),
            connection: 0,
            address: None,
            id: None,
        }
    }

    /// Asks once.
    pub fn ask(&mut self) -> Sample {
        let count = self.count();
        let time = Timestamp::now();
        Sample { time, count }
    }

    fn count(&mut self) -> Result<u64, Failure> {
        let count = clients(&self.link.ask(b"WHO")?.value()?)?;
        self.address = self.link.address().or(self.address);
        if self.connection != self.link.connections() {
            self.connection = self.link.connections();
            let reply = self.link.ask(b"WHERE").ok();
            self.id = reply.and_then(|reply| reply.value().ok());
        }
        Ok(count)
    }
}
