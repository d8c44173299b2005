//! Resolves the addresses of a server.

use std::io::ErrorKind;
use std::net::SocketAddr;

use clap::Args;

use super::dns::{DnsCache, reason};
use super::{Deadline, Failure, FailureKind, Server};
use crate::text::{quoted, without_errno};

/// Address family to connect over, as options of a command line.
#[derive(Args, Clone, Copy, Debug, Default)]
#[group(skip)]
pub struct AddressFamily {
    /// Only over IPv4
    #[arg(short = '4', long, global = true, conflicts_with = "use_ipv6")]
    pub use_ipv4: bool,

    /// Only over IPv6
    #[arg(short = '6', long, global = true)]
    pub use_ipv6: bool,
}

/// Returns the addresses of this family, in the resolver's order; at least one.
pub fn addresses(
    server: &Server,
    family: AddressFamily,
    deadline: Deadline,
) -> Result<Vec<SocketAddr>, Failure> {
    let mut addresses = lookup(server, deadline)?;
    addresses.retain(|address| match address {
        SocketAddr::V4(_) => !family.use_ipv6,
        SocketAddr::V6(_) => !family.use_ipv4,
    });
    if addresses.is_empty() {
        let family = if family.use_ipv6 { "IPv6" } else { "IPv4" };
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
