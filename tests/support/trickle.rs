//! Many clients that take places and ask nothing.

use std::io::{self, Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use super::watch::{Repeated, repeat};
use super::{PATIENCE, wait_until};

/// A thousand clients that send a byte a second each, and come again when they are sent away; until it is dropped.
pub struct Trickle {
    _sending: Repeated<usize>,
}

impl Trickle {
    /// Starts them against the server at `address`, and waits until all have connected.
    pub fn start(address: SocketAddr) -> Self {
        let mut streams: Vec<Option<TcpStream>> = (0..1000).map(|_| None).collect();
        let (begun, done) = (Instant::now(), Arc::new(AtomicUsize::new(0)));
        let counter = done.clone();
        let sending = repeat(0, move |number| {
            let stream = &mut streams[*number % 1000];
            if !stream.as_mut().is_some_and(is_alive) {
                *stream = TcpStream::connect_timeout(&address, PATIENCE)
                    .and_then(|stream| stream.set_nonblocking(true).map(|()| stream))
                    .ok();
            }
            *number += 1;
            counter.store(*number, Ordering::Relaxed);
            if *number > 1000 {
                let due = Duration::from_millis(*number as u64);
                thread::park_timeout(due.saturating_sub(begun.elapsed()));
            }
        });
        wait_until("all have connected", || {
            done.load(Ordering::Relaxed) >= 1000
        });
        Trickle { _sending: sending }
    }
}

/// Sends it a byte, and tells whether it takes it and is not at its end.
fn is_alive(stream: &mut TcpStream) -> bool {
    let sent = stream.write_all(b"x").is_ok();
    match stream.read(&mut [0; 100]) {
        Ok(read) => sent && read > 0,
        Err(error) => sent && error.kind() == io::ErrorKind::WouldBlock,
    }
}
