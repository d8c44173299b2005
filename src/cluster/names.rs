//! The addresses of hosts, kept for a while: whoever must connect to one again can't wait for a name server each time.

use std::collections::HashMap;
use std::io;
use std::net::{IpAddr, SocketAddr, ToSocketAddrs as _};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

/// The address of a name is looked up again after this time.
const NAME_HOLDS: Duration = Duration::from_secs(5);

/// What was found for a name and a port, and when.
type Known = HashMap<(String, u16), (Vec<SocketAddr>, Instant)>;

/// The addresses of names, looked up by whoever needs one.
#[derive(Debug, Default)]
pub struct Names(Mutex<Known>);

impl Names {
    /// Those of this name, or address, with this port: as they were a while ago, or looked up now, which may take longer than anybody has time.
    pub fn addresses(&self, name: &str, port: u16) -> io::Result<Vec<SocketAddr>> {
        if let Ok(address) = name.parse::<IpAddr>() {
            return Ok(vec![(address, port).into()]);
        }
        // No code panics while it holds this lock.
        let lock = || self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let known = lock().get(&(name.to_string(), port)).cloned();
        match known {
            Some((addresses, at)) if at.elapsed() < NAME_HOLDS => Ok(addresses),
            known => {
                // This may take its time, and nobody else waits meanwhile.
                let found = match ((name, port).to_socket_addrs(), known) {
                    (Ok(found), _) => found.collect(),
                    // As long as nobody knows better.
                    (Err(_), Some((addresses, _))) => addresses,
                    (Err(error), None) => return Err(error),
                };
                lock().insert((name.to_string(), port), (found.clone(), Instant::now()));
                Ok(found)
            }
        }
    }
}
