//! The addresses of a server.

use std::io::ErrorKind;
use std::net::SocketAddr;

use super::names::{Names, reason};
use super::{Deadline, Failure, Server, quoted};

/// Which addresses of a name are wanted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Family {
    /// All.
    #[default]
    Any,
    /// Those of IPv4.
    V4,
    /// Those of IPv6.
    V6,
}

impl Family {
    fn wants(self, address: &SocketAddr) -> bool {
        match self {
            Family::Any => true,
            Family::V4 => address.is_ipv4(),
            Family::V6 => address.is_ipv6(),
        }
    }
}

/// The addresses of this family, in the order in which the system names them; at least one.
pub fn addresses(
    server: &Server,
    family: Family,
    deadline: Deadline,
) -> Result<Vec<SocketAddr>, Failure> {
    let mut addresses = lookup(server, deadline)?;
    addresses.retain(|address| family.wants(address));
    if addresses.is_empty() {
        return Err(Failure::Kind {
            host: server.host.clone(),
            kind: if family == Family::V6 { "IPv6" } else { "IPv4" },
        });
    }
    Ok(addresses)
}

fn lookup(server: &Server, deadline: Deadline) -> Result<Vec<SocketAddr>, Failure> {
    let host = &server.host;
    let found = Names::default().addresses(host, server.port, deadline.moment());
    found.map_err(|error| match error.kind() {
        ErrorKind::TimedOut => deadline.missed(format!(
            "no address of {} is found",
            quoted(host.as_bytes())
        )),
        // That is what a system says which has no room for another thread.
        ErrorKind::WouldBlock => Failure::Thread(error),
        _ => Failure::Lookup {
            host: host.clone(),
            reason: reason(&error),
        },
    })
}
