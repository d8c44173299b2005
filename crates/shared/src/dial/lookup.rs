//! Resolves the addresses of a server.

use std::io::ErrorKind;
use std::net::SocketAddr;

use super::dns::{DnsCache, reason};
use super::{Deadline, Failure, FailureKind, Server};
use crate::text::{quoted, without_errno};

/// Address family to connect over.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum AddressFamily {
    /// IPv4 and IPv6.
    #[default]
    Any,
    /// IPv4 only.
    V4,
    /// IPv6 only.
    V6,
}

impl AddressFamily {
    /// Returns the family that the flags `-4` and `-6` name.
    pub fn from_flags(v4: bool, v6: bool) -> Self {
        match (v4, v6) {
            (true, _) => AddressFamily::V4,
            (_, true) => AddressFamily::V6,
            _ => AddressFamily::Any,
        }
    }

    fn wants(self, address: &SocketAddr) -> bool {
        match self {
            AddressFamily::Any => true,
            AddressFamily::V4 => address.is_ipv4(),
            AddressFamily::V6 => address.is_ipv6(),
        }
    }
}

/// Returns the addresses of this family, in the resolver's order; at least one.
pub fn addresses(
    server: &Server,
    family: AddressFamily,
    deadline: Deadline,
) -> Result<Vec<SocketAddr>, Failure> {
    let mut addresses = lookup(server, deadline)?;
    addresses.retain(|address| family.wants(address));
    if addresses.is_empty() {
        let family = match family {
            AddressFamily::V6 => "IPv6",
            _ => "IPv4",
        };
        let text = format!("{} has no {family} address", quoted(server.host.as_bytes()));
        return Err(Failure::new(FailureKind::NotConnected, text));
    }
    Ok(addresses)
}

fn lookup(server: &Server, deadline: Deadline) -> Result<Vec<SocketAddr>, Failure> {
    let host = quoted(server.host.as_bytes());
    let found = DnsCache::default().addresses(&server.host, server.port, deadline.moment());
    found.map_err(|error| match error.kind() {
        ErrorKind::TimedOut => deadline.missed(&format!("no address of {host} is found")),
        // pthread_create(3) fails with EAGAIN if the system has no room for another thread.
        ErrorKind::WouldBlock => {
            let why = without_errno(&error);
            let text = format!("can't start a thread for the lookup: {why}");
            Failure::new(FailureKind::NoResources, text)
        }
        _ => {
            let text = format!("no address of {host}: {}", reason(&error));
            Failure::new(FailureKind::NotConnected, text)
        }
    })
}
