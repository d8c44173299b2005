//! A way to a server that can be shut.

use std::io::{Read as _, Write as _};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::{Arc, RwLock};
use std::thread;

/// Passes on what comes to its address. A write lock of the gate shuts it: nothing passes any more, neither side learns of that,
/// and what was under way goes on when it is open again.
pub struct Way {
    pub address: SocketAddr,
    pub gate: Arc<RwLock<()>>,
}

impl Way {
    /// One to this server.
    pub fn new(to: SocketAddr) -> Self {
        Way::at(SocketAddr::from(([127, 0, 0, 1], 0)), to)
    }

    /// The same at this address.
    pub fn at(address: SocketAddr, to: SocketAddr) -> Self {
        let gate = Arc::new(RwLock::new(()));
        let listener = TcpListener::bind(address).expect("a free port");
        let address = listener.local_addr().expect("bound");
        let both = gate.clone();
        thread::spawn(move || {
            for here in listener.incoming().flatten() {
                let there = TcpStream::connect(to).expect("the server runs");
                for (from, to) in [(&here, &there), (&there, &here)] {
                    let gate = both.clone();
                    let [from, to] = [from, to].map(|end| end.try_clone().expect("a descriptor"));
                    thread::spawn(move || pass(&gate, &from, &to));
                }
            }
        });
        Way { address, gate }
    }
}

fn pass(gate: &RwLock<()>, mut from: &TcpStream, mut to: &TcpStream) {
    let mut bytes = [0; 4096];
    while let Ok(read @ 1..) = from.read(&mut bytes) {
        let open = gate.read();
        if open.is_err() || to.write_all(&bytes[..read]).is_err() {
            break;
        }
    }
    // It may have gone.
    let _ = to.shutdown(Shutdown::Write);
}
