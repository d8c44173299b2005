//! What the Sentinels say is the Redis that takes writes, whatever the one before takes still.

use std::fs;
use std::process::{Child, Stdio};
use std::time::Instant;

use super::{HEARTBEAT, server_at, who};
use crate::support::redis::{Redis, free_port};
use crate::support::{Log, Scratch, clean, installed, wait_until};

/// A Sentinel of the test's own, which believes what it is told. Dropped, it is killed.
pub struct Sentinel {
    _directory: Scratch,
    child: Child,
    pub port: u16,
}

impl Sentinel {
    pub fn start(master: &Redis) -> Self {
        let (directory, port) = (Scratch::new(), free_port());
        let settings = directory.path().join("sentinel.conf");
        let lines = format!(
            "port {port}\nbind 127.0.0.1\nsentinel monitor main 127.0.0.1 {} 1\n",
            master.port
        );
        fs::write(&settings, lines).expect("the directory is ours");
        let mut command = clean("redis-sentinel");
        let mut child = command
            .arg(&settings)
            .stdout(Stdio::piped())
            .spawn()
            .expect("it starts");
        let log = Log::follow(child.stdout.take().expect("stdout is piped"));
        log.wait_for("+monitor master main");
        Sentinel {
            _directory: directory,
            child,
            port,
        }
    }

    /// From now on this one is the master.
    fn choose(&self, master: &Redis) {
        let (own, port) = (self.port.to_string(), master.port.to_string());
        for command in [
            &["remove", "main"][..],
            &["monitor", "main", "127.0.0.1", &port, "1"],
        ] {
            let mut cli = clean("redis-cli");
            let said = cli.args(["-p", &own, "sentinel"]).args(command).output();
            assert_eq!(said.expect("redis-cli runs").stdout, b"OK\n");
        }
    }
}

impl Drop for Sentinel {
    fn drop(&mut self) {
        // It is our child, and waited for.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[test]
fn a_master_that_is_none_any_more_and_lives_is_left() {
    if !installed("redis-server") || !installed("redis-sentinel") {
        return;
    }
    let (old, new) = (Redis::start(&[]), Redis::start(&[]));
    let sentinels = [(); 2].map(|()| Sentinel::start(&old));
    let [asked, other] = sentinels.each_ref().map(|sentinel| sentinel.port);
    let url = format!("redis-sentinel://127.0.0.1:{asked},127.0.0.1:{other}/main");
    let servers = [(); 2].map(|()| server_at(&url, &[]));
    let mut clients = servers.each_ref().map(|server| server.connect());
    wait_until("both are counted", || clients.each_mut().map(who) == [2, 2]);
    old.wait_for_servers(2);
    // The other never hears of it.
    sentinels[0].choose(&new);
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
