//! The addresses of a server.

use std::io;
use std::net::{SocketAddr, ToSocketAddrs as _};
use std::sync::mpsc;
use std::thread;

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

/// The resolver can't be told how long it may take: it is asked in a thread, which ends with the process at the latest.
fn lookup(server: &Server, deadline: Deadline) -> Result<Vec<SocketAddr>, Failure> {
    let (answer, answered) = mpsc::channel();
    let name = (server.host.clone(), server.port);
    let resolver = move || {
        // Nobody waits any more if the time is over.
        let _ = answer.send(name.to_socket_addrs().map(Vec::from_iter));
    };
    // With the usual stack: the resolver may load modules of the system's.
    let thread = thread::Builder::new().name("lookup".to_string());
    thread.spawn(resolver).map_err(Failure::Thread)?;
    let doing = || format!("no address of {} is found", quoted(server.host.as_bytes()));
    match answered.recv_timeout(deadline.left(doing)?) {
        Ok(Ok(addresses)) => Ok(addresses),
        Ok(Err(error)) => Err(Failure::Lookup {
            host: server.host.clone(),
            reason: reason(&error),
        }),
        Err(_) => Err(deadline.missed(doing())),
    }
}

/// What the resolver said, without the words that std puts before it.
fn reason(error: &io::Error) -> String {
    let text = error.to_string();
    text.rsplit(": ").next().unwrap_or(&text).to_string()
}
