//! What all clients share: the addresses that they come from and the way in which they wait.

use std::net::{Ipv4Addr, SocketAddrV4};

use crate::Result;
use crate::watch::Watch;

/// How many addresses take turns. Each has about 28,000 ports, and a port stays taken for a minute after a client has
/// closed: one address would be used up within a second.
const ADDRESSES: u8 = 50;

/// The generator of the load.
pub struct Generator {
    /// The address that was given out last.
    last: u8,
    /// Whether to wait without sleeping.
    spins: bool,
}

impl Generator {
    /// A generator with a core of its own never sleeps there: to wake it would take an interrupt from the server's
    /// core, for which the server would be charged, and on a virtual machine that costs several times the request.
    pub fn new(own_core: bool) -> Generator {
        Generator {
            last: 0,
            spins: own_core,
        }
    }

    /// The address for the next client, a loopback address in turn; its port is chosen when it connects.
    pub fn source(&mut self) -> SocketAddrV4 {
        self.last = self.last % ADDRESSES + 1;
        SocketAddrV4::new(Ipv4Addr::new(127, 0, self.last, 1), 0)
    }

    /// A way to wait for sockets.
    pub fn watch(&self) -> Result<Watch> {
        Watch::new(self.spins)
    }
}
