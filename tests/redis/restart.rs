//! `systemctl restart`: systemd keeps the clients, and what they send meanwhile, until the next process takes them.

use std::collections::BTreeSet;
use std::net::TcpListener;
use std::os::fd::OwnedFd;
use std::process::Stdio;
use std::time::Instant;

use super::{BELIEVED, HEARTBEAT, Trio, figure};
use crate::support::kernel::{shell, through};
use crate::support::manager::{Fate, Manager};
use crate::support::watch::{Watch, watch};
use crate::support::{Client, Daemon, wait_until};

/// A service manager, and the socket that it passes.
struct Socket {
    manager: Manager,
    listener: TcpListener,
}

impl Socket {
    fn new() -> Self {
        Socket {
            manager: Manager::new(),
            listener: TcpListener::bind("127.0.0.1:0").expect("a free port"),
        }
    }

    /// Starts a process that goes on with the pack of the one before, if there is one.
    fn start(&self, pack: Option<OwnedFd>, cluster: &str) -> Daemon {
        let script = shell("exec 3<&0 4<&1 </dev/null >/dev/null; export LISTEN_PID=$$");
        let wrapper: Vec<&str> = script.iter().map(String::as_str).collect();
        let mut command = through(&wrapper);
        let (number, names) = match pack {
            Some(_) => ("2", "line:pack"),
            None => ("1", "line"),
        };
        command
            .args(["--http", "127.0.0.1:0", "--max-clients", "32"])
            .args(["--cluster", cluster])
            .env("NOTIFY_SOCKET", self.manager.path())
            .envs([("LISTEN_FDS", number), ("LISTEN_FDNAMES", names)])
            .stdin(OwnedFd::from(self.listener.try_clone().expect("a socket")))
            .stdout(pack.map_or_else(Stdio::null, Stdio::from));
        Daemon::run(command)
    }
}

#[test]
fn a_server_that_systemd_restarts_is_counted_once_all_the_while() {
    needs!("redis-server");
    let mut trio = Trio::new(&[]);
    let socket = Socket::new();
    let mut server = socket.start(None, &trio.redis.url());
    let mut clients: Vec<Client> = (0..5).map(|_| server.connect()).collect();
    trio.wait_for(8);
    let asking = trio.askers.drain(..).chain(clients.drain(..2));
    let watches: Vec<Watch> = asking.map(watch).collect();
    for _ in 0..3 {
        let kept = socket.manager.store(Fate::Kept);
        server.stop();
        let kept = kept.join().expect("it keeps them");
        server = socket.start(kept, &trio.redis.url());
    }
    // Until whom nobody speaks for any more would be gone.
    let begun = Instant::now();
    wait_until("all is forgotten", || {
        begun.elapsed() > BELIEVED + HEARTBEAT * 2
    });
    for (index, watch) in watches.into_iter().enumerate() {
        let (answers, client) = watch.end();
        let said: BTreeSet<String> = answers.into_iter().collect();
        assert_eq!(said, ["8".to_string()].into(), "{index}");
        match index {
            0..3 => trio.askers.push(client),
            _ => clients.push(client),
        }
    }
    assert_eq!(figure(&server, "servers"), 4.0);
    // It is heard still.
    clients.push(server.connect());
    assert!(trio.wait_for(9) < HEARTBEAT * 2);
    let handovers = crate::support::http::get(server.http(), "/metrics").body;
    assert!(
        handovers.contains("blockchain_tcpd_handovers_total 3\n"),
        "{handovers}"
    );
}
