//! What the Sentinels say is the Redis that takes writes, whatever the one before takes still.

use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpListener};
use std::sync::Arc;
use std::sync::atomic::{AtomicU16, Ordering};
use std::thread;
use std::time::Instant;

use super::{HEARTBEAT, server_at, who};
use crate::support::redis::Redis;
use crate::support::{installed, wait_until};

/// Answers each question as a Sentinel does, whose master is at this port.
fn sentinel(master: Arc<AtomicU16>) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
    let address = listener.local_addr().expect("bound");
    thread::spawn(move || {
        for mut socket in listener.incoming().flatten() {
            let master = master.clone();
            thread::spawn(move || {
                while let Ok(1..) = socket.read(&mut [0; 4096]) {
                    let port = master.load(Ordering::Relaxed).to_string();
                    let length = port.len();
                    let reply = format!("*2\r\n$9\r\n127.0.0.1\r\n${length}\r\n{port}\r\n");
                    if socket.write_all(reply.as_bytes()).is_err() {
                        return;
                    }
                }
            });
        }
    });
    address
}

#[test]
fn a_master_that_is_none_any_more_and_lives_is_left() {
    if !installed("redis-server") {
        return;
    }
    let (old, new) = (Redis::start(&[]), Redis::start(&[]));
    let master = Arc::new(AtomicU16::new(old.port));
    let url = format!("redis-sentinel://{}/main", sentinel(master.clone()));
    let servers = [(); 2].map(|()| server_at(&url, &[]));
    let mut clients = servers.each_ref().map(|server| server.connect());
    wait_until("both are counted", || clients.each_mut().map(who) == [2, 2]);
    old.wait_for_servers(2);
    master.store(new.port, Ordering::Relaxed);
    let chosen = Instant::now();
    new.wait_for_servers(2);
    let moved = chosen.elapsed();
    assert!(moved < HEARTBEAT * 4, "{moved:?}");
    old.wait_for_servers(0);
    // And what is in the new one is enough.
    while chosen.elapsed() < HEARTBEAT * 8 {
        assert_eq!(clients.each_mut().map(who), [2, 2]);
    }
}
