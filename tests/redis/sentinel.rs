//! What the Sentinels say is the Redis that takes writes, whatever the one before takes still.

use std::fs;
use std::process::{Child, Stdio};
use std::time::Instant;

use super::{HEARTBEAT, figure, server_at, who};
use crate::support::certificates::Authority;
use crate::support::redis::Redis;
use crate::support::{Log, Scratch, clean, free_port, wait_until};

/// A Sentinel of the test's own, which believes what it is told. Dropped, it is killed.
pub struct Sentinel {
    _directory: Scratch,
    child: Child,
    pub port: u16,
}

impl Sentinel {
    pub fn start(master: &Redis) -> Self {
        Self::start_with(master.port, "")
    }

    /// One that knows a master at this port, with these lines in its configuration besides.
    fn start_with(master: u16, more: &str) -> Self {
        let (directory, port) = (Scratch::new(), free_port());
        let settings = directory.path().join("sentinel.conf");
        let lines = format!(
            "port {port}\nbind 127.0.0.1\nsentinel monitor main 127.0.0.1 {master} 1\n{more}\n"
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

/// Theirs may be another than that of Redis, or the same, or none.
#[test]
fn sentinels_may_have_a_user_and_a_password_of_their_own() {
    needs!("redis-server", "redis-sentinel");
    let redis = Redis::start(&["--requirepass", "of-redis"]);
    let files = Scratch::new();
    let file = |name: &str, text: &str| {
        let file = files.path().join(name);
        fs::write(&file, text).expect("the directory is ours");
        file.to_str().expect("UTF-8").to_string()
    };
    let (of_redis, own) = (
        file("redis", "of-redis\n"),
        file("own", "of-the-sentinels\n"),
    );
    let user = file("user", "watcher\n");
    let password = ["--cluster-password-file", &of_redis];
    let sentinel_password = ["--cluster-sentinel-password-file", &own];
    let apart = [&password[..], &sentinel_password].concat();
    let as_user = [&apart[..], &["--cluster-sentinel-user-file", &user]].concat();
    let watcher = "user default off\nuser watcher on >of-the-sentinels allchannels +@all";
    for (lines, arguments) in [
        ("requirepass of-the-sentinels", &apart),
        (watcher, &as_user),
        ("requirepass of-redis", &password.to_vec()),
        ("", &password.to_vec()),
        ("", &as_user),
    ] {
        let sentinel = Sentinel::start_with(redis.port, lines);
        let url = format!("redis-sentinel://127.0.0.1:{}/main", sentinel.port);
        let server = server_at(&url, arguments);
        wait_until(lines, || figure(&server, "connected") == 1.0);
    }
    let sentinel = Sentinel::start_with(redis.port, "requirepass of-the-sentinels");
    let url = format!("redis-sentinel://127.0.0.1:{}/main", sentinel.port);
    let server = server_at(&url, &password);
    let line = server.log().wait_for("WRONGPASS");
    assert!(line.contains("--cluster-sentinel-password-file"), "{line}");
}

#[test]
fn tls_may_be_spoken_by_the_sentinels_alone_or_by_redis_alone() {
    needs!("redis-server", "redis-sentinel", "openssl");
    let authority = Authority::new();
    authority.certify("server", "/CN=server");
    let [certificate, key, ca] =
        ["server.crt", "server.key", "ca.crt"].map(|file| authority.path(file));
    let tls = [
        ("cert-file", &certificate),
        ("key-file", &key),
        ("ca-cert-file", &ca),
    ];
    let port = free_port();
    let number = port.to_string();
    let flags = tls
        .map(|(name, file)| [format!("--tls-{name}"), file.clone()])
        .concat();
    let mut arguments = vec!["--tls-port", &number, "--tls-auth-clients", "no"];
    arguments.extend(flags.iter().map(String::as_str));
    let redis = Redis::start(&arguments);
    let lines = tls
        .map(|(name, file)| format!("tls-{name} {file}\n"))
        .concat();
    let sentinel_port = free_port();
    let lines = format!("{lines}tls-auth-clients no\ntls-port {sentinel_port}\n");
    let to_tls = Sentinel::start_with(port, "");
    let to_plain = Sentinel::start_with(redis.port, &lines);
    for (scheme, port, is_fine) in [
        ("redis-sentinel+rediss", to_tls.port, true),
        ("rediss-sentinel+redis", sentinel_port, true),
        ("redis-sentinel", to_plain.port, true),
        ("redis-sentinel", to_tls.port, false),
        ("rediss-sentinel", sentinel_port, false),
    ] {
        let url = format!("{scheme}://127.0.0.1:{port}/main");
        let server = server_at(&url, &["--cluster-ca-file", &ca]);
        match is_fine {
            true => wait_until(scheme, || figure(&server, "connected") == 1.0),
            false => {
                server.log().wait_for("cut off from the cluster");
                assert_eq!(figure(&server, "connected"), 0.0, "{scheme}");
            }
        }
    }
}

#[test]
fn a_master_that_is_none_any_more_and_lives_is_left() {
    needs!("redis-server", "redis-sentinel");
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
