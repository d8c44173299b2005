//! Many clients that take places and ask nothing.

use std::io::{self, Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, mpsc};
use std::thread;
use std::time::{Duration, Instant};

use super::PATIENCE;

/// A thousand clients that send a byte a second each, and come again when they are sent away; until it is dropped.
pub struct Trickle(Arc<AtomicBool>);

impl Trickle {
    /// Starts them against the server at `address`, and waits until all have connected.
    pub fn start(address: SocketAddr) -> Self {
        let mut streams: Vec<Option<TcpStream>> = (0..1000).map(|_| None).collect();
        let stop = Arc::new(AtomicBool::new(false));
        let (told, (ready, is_ready)) = (stop.clone(), mpsc::channel());
        thread::spawn(move || {
            let (begun, mut limiter) = (Instant::now(), 0);
            while !told.load(Ordering::Relaxed) {
                let stream = &mut streams[limiter % 1000];
                if !stream.as_mut().is_some_and(is_alive) {
                    *stream = TcpStream::connect_timeout(&address, PATIENCE)
                        .and_then(|stream| stream.set_nonblocking(true).map(|()| stream))
                        .ok();
                }
                limiter += 1;
                if limiter == 1000 {
                    // It fails only if the test has failed.
                    let _ = ready.send(());
                } else if limiter > 1000 {
                    let turn = Duration::from_millis(limiter as u64);
                    thread::park_timeout(turn.saturating_sub(begun.elapsed()));
                }
            }
        });
        is_ready.recv_timeout(PATIENCE).expect("all have connected");
        Trickle(stop)
    }
}

impl Drop for Trickle {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
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
