//! Who a server is to Redis, whom it believes there, and which settings are refused.

use std::fs;

use super::trouble::says;
use super::{figure, server_at, who};
use crate::support::certificates::Authority;
use crate::support::kernel::{shell, through};
use crate::support::redis::Redis;
use crate::support::{Daemon, Scratch, fails, free_port, program, run_to_end, wait_until};

const SECRET: &str = "correct-horse-battery-staple";

/// A file with this text, as an argument.
fn file(directory: &Scratch, name: &str, text: &str) -> String {
    let file = directory.path().join(name);
    fs::write(&file, text).expect("a file");
    file.to_str().expect("UTF-8").to_string()
}

/// Neither the log nor the process list shows it.
fn shows_no_secret(server: &Daemon) {
    let lines = server.log().lines().join("\n");
    assert!(!lines.contains(SECRET), "{lines}");
    for name in ["cmdline", "environ"] {
        let text = fs::read(format!("/proc/{}/{name}", server.pid())).expect("it lives");
        assert!(!String::from_utf8_lossy(&text).contains(SECRET), "{name}");
    }
}

#[test]
fn the_password_is_read_from_a_file_and_may_change() {
    needs!("redis-server");
    let files = Scratch::new();
    let password = file(&files, "password", &format!("{SECRET}\n"));
    let mut redis = Redis::start(&["--requirepass", SECRET]);
    redis.cli = vec!["-a".to_string(), SECRET.to_string()];
    let servers = [(); 2].map(|()| {
        server_at(
            &redis.url(),
            &["--cluster-password-file", &password, "--log", "trace"],
        )
    });
    let mut clients = servers.each_ref().map(|server| server.connect());
    wait_until("both are counted", || clients.each_mut().map(who) == [2, 2]);

    redis.order(&["CONFIG", "SET", "requirepass", "another"]);
    redis.cli[1] = "another".to_string();
    redis.ask(&["CLIENT", "KILL", "TYPE", "pubsub"]);
    for server in &servers {
        server.log().wait_for("WRONGPASS");
        wait_until("denied", || {
            figure(server, "errors_total{kind=\"denied\"}") > 1.0
        });
    }
    file(&files, "password", "another\n");
    for server in &servers {
        server.log().wait_for("over: cut off from the cluster");
        shows_no_secret(server);
    }
    wait_until("both are counted", || clients.each_mut().map(who) == [2, 2]);
}

/// It repeats the arguments of commands that it doesn't know.
#[test]
fn the_password_is_not_shown_by_who_does_not_know_the_command() {
    needs!("redis-server");
    let files = Scratch::new();
    let password = file(&files, "password", SECRET);
    // Redis truncates what it repeats.
    let long = SECRET.repeat(10);
    let long_password = file(&files, "long", &long);
    let access = ["--requirepass", SECRET];
    let long_access = ["--requirepass", &long];
    for (access, password, unknown) in [
        (access, &password, "HELLO"),
        (access, &password, "AUTH"),
        (long_access, &long_password, "AUTH"),
    ] {
        let arguments = [&access[..], &["--rename-command", unknown, ""]].concat();
        let redis = Redis::start(&arguments);
        let arguments = ["--cluster-password-file", password, "--log", "trace"];
        let server = server_at(&redis.url(), &arguments);
        let line = server.log().wait_for("cut off from the cluster");
        // Valkey 9.1 asks for the password before it looks for the command.
        let kind = if line.contains("NOAUTH") {
            "denied"
        } else {
            assert!(line.contains("unknown command"), "{line}");
            assert!(line.contains(unknown), "{line}");
            assert!(line.contains("HELLO 3 is not known there"), "{line}");
            assert!(line.contains("Redis 6 or later is needed"), "{line}");
            "refused"
        };
        assert!(!line.contains("correct"), "{line}");
        wait_until(kind, || {
            figure(&server, &format!("errors_total{{kind=\"{kind}\"}}")) > 1.0
        });
        shows_no_secret(&server);
    }
}

/// What is said does not depend on the password, so that nothing that is missing tells of it.
#[test]
fn a_password_that_is_a_part_of_the_answer_is_neither_told_nor_cut_out() {
    needs!("redis-server");
    let redis = Redis::start(&["--requirepass", SECRET]);
    let files = Scratch::new();
    let said = ["a", "ERR", "WRONGPASS", "another one"].map(|guess| {
        let password = file(&files, "password", guess);
        let server = server_at(&redis.url(), &["--cluster-password-file", &password]);
        let line = server.log().wait_for("cut off from the cluster");
        line.split_once("reason=").expect("a reason").1.to_string()
    });
    let whole = "says to AUTH: WRONGPASS invalid username-password pair or user is disabled";
    assert!(said[0].contains(whole), "{said:?}");
    assert!(said.iter().all(|line| *line == said[0]), "{said:?}");
}

/// A server other than Redis may say it in a sentence of its own.
#[test]
fn a_password_that_is_repeated_in_other_words_is_not_shown() {
    let files = Scratch::new();
    let password = file(&files, "password", SECRET);
    for (reply, shown) in [
        (
            "-ERR user default with correct-horse-battery-staple is unknown\r\n",
            "says to AUTH: ERR",
        ),
        (
            "-correct-horse-battery-staple\r\n",
            "says to AUTH: an error",
        ),
        (
            "-ERR unknown command 'AUTH default correct-horse-bat'\r\n",
            "ERR unknown command",
        ),
    ] {
        let url = format!("redis://{}", says(reply, ""));
        let arguments = ["--cluster-password-file", &password, "--log", "trace"];
        let server = server_at(&url, &arguments);
        let line = server.log().wait_for(shown);
        assert!(!line.contains("correct"), "{line}");
        shows_no_secret(&server);
    }
}

/// Redis 7.0 words it in one way, later ones and Valkey in another.
#[test]
fn a_right_that_is_missing_within_the_script_is_a_denial() {
    needs!("redis-server");
    let redis = Redis::start(&[]);
    let files = Scratch::new();
    let password = file(&files, "password", SECRET);
    let user = file(&files, "user", "tcpd\n");
    let arguments = [
        "--cluster-user-file",
        &user,
        "--cluster-password-file",
        &password,
    ];
    let secret = format!(">{SECRET}");
    for rights in [
        &["~*", "&*", "+@all", "-hset"][..],
        &["%R~blockchain-tcpd:*", "&*", "+@all"],
        &["~*", "resetchannels", "&other", "+@all"],
    ] {
        let user = ["ACL", "SETUSER", "tcpd", "reset", "on", &secret];
        redis.order(&[&user[..], rights].concat());
        let server = server_at(&redis.url(), &arguments);
        wait_until("denied", || {
            figure(&server, "errors_total{kind=\"denied\"}") > 1.0
        });
        let refused = figure(&server, "errors_total{kind=\"refused\"}");
        assert_eq!(refused, 0.0, "{:?}", server.log().lines());
    }
}

/// Commands that no heartbeat needs at once: the sum is counted each 120 of them, and who has gone is taken out.
const RARE: [&str; 3] = ["hgetall", "hdel", "zrem"];

/// The line of the manual makes a user that can do what is needed, and nothing else.
#[test]
fn a_user_with_the_rights_that_the_manual_names_is_enough() {
    needs!("redis-server");
    let manual = include_str!("../../man/blockchain-tcpd.8");
    let line = manual
        .lines()
        .find_map(|line| line.strip_prefix(".Dl ACL SETUSER "))
        .expect("the manual has it");
    let line = line.replace("PASSWORD", SECRET);
    let mut words = vec!["ACL", "SETUSER"];
    words.extend(line.split(' '));
    let redis = Redis::start(&[]);
    redis.order(&words);
    redis.order(&["ACL", "SETUSER", "default", "resetkeys", "-@write"]);
    let files = Scratch::new();
    let password = file(&files, "password", SECRET);
    let user = file(&files, "user", "blockchain-tcpd\n");
    let access = [
        "--cluster-heartbeat",
        "50ms",
        "--cluster-user-file",
        &user,
        "--cluster-password-file",
        &password,
    ];
    let mut logs = Vec::new();
    for database in ["", "/1"] {
        let url = format!("{}{database}", redis.url());
        let mut servers: Vec<Daemon> = (0..4).map(|_| server_at(&url, &access)).collect();
        let mut client = servers[0].connect();
        let denied = |server: &Daemon| figure(server, "errors_total{kind=\"denied\"}") > 0.0;
        wait_until("120 heartbeats", || {
            figure(&servers[0], "heartbeats_total") > 120.0 || denied(&servers[0])
        });
        logs.push(servers.pop().expect("the fourth").stop());
        let killed = servers.pop().expect("the third");
        logs.push(killed.log().lines().join("\n"));
        drop(killed);
        wait_until("two are left, and all is counted", || {
            let called = redis.ask(&["INFO", "commandstats"]);
            let is_called = |command| called.contains(&format!("cmdstat_{command}:"));
            let is_done = figure(&servers[0], "servers") == 2.0 && RARE.into_iter().all(is_called);
            is_done || servers.iter().any(denied)
        });
        assert_eq!(who(&mut client), 1);
        logs.extend(servers.into_iter().map(Daemon::stop));
    }
    // Who is busy may be late.
    for log in logs {
        for denial in ["NOPERM", "The user executing the script can't "] {
            assert!(!log.contains(denial), "{log}");
        }
    }
    let called = redis.ask(&["INFO", "commandstats"]);
    for command in line.split(' ').filter_map(|word| word.strip_prefix('+')) {
        let is_called = called.contains(&format!("cmdstat_{command}:"));
        assert!(is_called, "nobody needs {command}");
    }
    // Without the script in its cache, too.
    redis.order(&["SCRIPT", "FLUSH"]);
    let one = server_at(&redis.url(), &access);
    assert_eq!(figure(&one, "connected"), 1.0);
    // And one without rights is told so.
    let nobody = server_at(&redis.url(), &[]);
    nobody.log().wait_for("NOPERM");
}

/// systemd passes credentials in a directory. Those that the operator has not made are what the unit says.
#[test]
fn credentials_that_systemd_passes_are_used_unless_they_are_blank() {
    let unit = include_str!("../../systemd/blockchain-tcpd.service");
    let loaded = unit
        .lines()
        .filter_map(|line| line.strip_prefix("LoadCredential="));
    let loaded: Vec<_> = loaded.filter_map(|line| line.split_once(':')).collect();
    assert!(loaded.len() >= 3, "{unit}");
    for (name, _) in &loaded {
        let blank = format!("\nSetCredential={name}:\\n\n");
        assert!(unit.contains(&blank), "systemd 257 would log it: {name}");
    }
    needs!("redis-server");
    let credentials = Scratch::new();
    for (name, _) in &loaded {
        file(&credentials, name, "\n");
    }
    let connects = |redis: &Redis| {
        let mut command = program();
        command
            .args(["--listen", "127.0.0.1:0", "--http", "127.0.0.1:0"])
            .env("CREDENTIALS_DIRECTORY", credentials.path())
            .env("BLOCKCHAIN_TCPD_CLUSTER", redis.url());
        let server = Daemon::run(command);
        wait_until("connected", || figure(&server, "connected") == 1.0);
        shows_no_secret(&server);
    };
    connects(&Redis::start(&[]));
    file(&credentials, "cluster-password", SECRET);
    connects(&Redis::start(&["--requirepass", SECRET]));
}

#[test]
fn tls_is_spoken_with_whom_the_named_authority_vouches_for_and_with_nobody_else() {
    needs!("redis-server", "openssl");
    let authority = Authority::new();
    authority.certify("server", "/CN=redis");
    let ours = authority.path("ca.crt");
    let port = free_port().to_string();
    let redis = Redis::start(&[
        "--tls-port",
        &port,
        "--tls-cert-file",
        &authority.path("server.crt"),
        "--tls-key-file",
        &authority.path("server.key"),
        "--tls-auth-clients",
        "no",
        "--tls-ca-cert-file",
        &ours,
    ]);
    let url = format!("rediss://127.0.0.1:{port}");
    let servers = [(); 2].map(|()| server_at(&url, &["--cluster-ca-file", &ours]));
    let mut clients = servers.each_ref().map(|server| server.connect());
    wait_until("both are counted", || clients.each_mut().map(who) == [2, 2]);
    let encrypted = redis.ask(&["INFO", "clients"]);
    assert!(encrypted.contains("connected_clients"), "{encrypted}");

    let theirs = Authority::new();
    let stranger = server_at(&url, &["--cluster-ca-file", &theirs.path("ca.crt")]);
    stranger.log().wait_for("invalid peer certificate");
    assert!(figure(&stranger, "errors_total{kind=\"denied\"}") > 0.0);
    let by_name = server_at(
        &format!("rediss://localhost:{port}"),
        &["--cluster-ca-file", &ours],
    );
    by_name.log().wait_for("invalid peer certificate");
    // Neither TLS with who speaks none, nor none with who does.
    let plain = server_at(&format!("redis://127.0.0.1:{port}"), &[]);
    plain.log().wait_for("cut off from the cluster");
    let crossed = server_at(
        &format!("rediss://127.0.0.1:{}", redis.port),
        &["--cluster-ca-file", &ours],
    );
    crossed.log().wait_for("cut off from the cluster");
}

/// As Redis does unless it is told otherwise. Keys and chains have several forms.
#[test]
fn a_certificate_is_shown_to_a_redis_that_asks_for_one() {
    needs!("redis-server", "openssl");
    let authority = Authority::new();
    authority.certify("server", "/CN=redis");
    authority.certify_by("ca", "between", "/CN=between", "TRUE");
    authority.certify_by("between", "chained", "/CN=client", "FALSE");
    authority.certify("pkcs8", "/CN=client");
    authority.openssl("ecparam -name secp384r1 -genkey -out sec1.key");
    authority.openssl("genrsa -traditional -out pkcs1.key 2048");
    authority.openssl("genpkey -algorithm ed25519 -out ed25519.key");
    for name in ["sec1", "pkcs1", "ed25519"] {
        authority.openssl(&format!(
            "req -x509 -key {name}.key -days 2 -out {name}.crt -subj /CN={name} -CA ca.crt -CAkey ca.key"
        ));
    }
    let read = |name: &str| fs::read_to_string(authority.path(name)).expect("a file");
    let write = |name: &str, text: String| fs::write(authority.path(name), text).expect("a file");
    write("chained.crt", read("chained.crt") + &read("between.crt"));
    // One file for all, as some make it.
    write("both.crt", read("pkcs8.key") + &read("pkcs8.crt"));
    write("both.key", read("both.crt"));
    let files = ["server.crt", "server.key", "ca.crt"];
    let [certificate, key, ca] = files.map(|file| authority.path(file));
    let port = free_port().to_string();
    let redis = Redis::start(&[
        "--tls-port",
        &port,
        "--tls-cert-file",
        &certificate,
        "--tls-key-file",
        &key,
        "--tls-ca-cert-file",
        &ca,
    ]);
    let url = format!("rediss://127.0.0.1:{port}");
    let without = server_at(&url, &["--cluster-ca-file", &ca]);
    let line = without.log().wait_for("CertificateRequired");
    assert!(line.contains("--cluster-certificate-file"), "{line}");
    assert!(figure(&without, "errors_total{kind=\"denied\"}") > 0.0);
    for name in ["pkcs8", "sec1", "pkcs1", "ed25519", "chained", "both"] {
        let (certificate, key) = (
            authority.path(&format!("{name}.crt")),
            authority.path(&format!("{name}.key")),
        );
        let arguments = [
            "--cluster-ca-file",
            &ca,
            "--cluster-certificate-file",
            &certificate,
        ];
        let server = server_at(
            &url,
            &[&arguments[..], &["--cluster-key-file", &key]].concat(),
        );
        wait_until(name, || figure(&server, "connected") == 1.0);
    }
    // By systemd; and what is wrong may be mended while it runs.
    let credentials = Scratch::new();
    let pass = |name: &str, from: &str| {
        fs::copy(authority.path(from), credentials.path().join(name)).expect("a file");
    };
    let others = Authority::new();
    others.certify("other", "/CN=client");
    pass("cluster-ca", "ca.crt");
    for (name, from) in [
        ("cluster-certificate", "other.crt"),
        ("cluster-key", "other.key"),
    ] {
        fs::copy(others.path(from), credentials.path().join(name)).expect("a file");
    }
    let mut command = program();
    command
        .args(["--listen", "127.0.0.1:0", "--http", "127.0.0.1:0"])
        .env("CREDENTIALS_DIRECTORY", credentials.path())
        .env("BLOCKCHAIN_TCPD_CLUSTER", &url);
    let server = Daemon::run(command);
    server.log().wait_for("cut off from the cluster");
    assert_eq!(figure(&server, "connected"), 0.0);
    pass("cluster-certificate", "pkcs8.crt");
    pass("cluster-key", "pkcs8.key");
    wait_until("connected", || figure(&server, "connected") == 1.0);
    drop(redis);
}

#[test]
fn a_certificate_that_cannot_be_shown_is_said_at_start() {
    needs!("openssl");
    let authority = Authority::new();
    authority.certify("one", "/CN=one");
    authority.certify("two", "/CN=two");
    authority.openssl("pkey -in one.key -aes256 -passout pass:x -out pkcs8.key");
    authority.openssl("ec -in one.key -aes256 -passout pass:x -out sec1.key");
    authority.openssl("genrsa -out small.key 1024");
    authority.openssl("req -x509 -key small.key -days 2 -out small.crt -subj /CN=small");
    let path = |name: &str| authority.path(name);
    for (certificate, key, why) in [
        (
            Some("one.crt"),
            None,
            "one.crt is a certificate without its private key: name that with --cluster-key-file",
        ),
        (
            None,
            Some("one.key"),
            "one.key is a private key without its certificate: name that with --cluster-certificate-file",
        ),
        (
            Some("one.crt"),
            Some("two.key"),
            "two.key is not the private key of the first certificate in",
        ),
        (
            Some("one.crt"),
            Some("pkcs8.key"),
            "pkcs8.key holds an encrypted private key",
        ),
        (
            Some("one.crt"),
            Some("sec1.key"),
            "sec1.key holds an encrypted private key",
        ),
        (
            Some("one.crt"),
            Some("one.crt"),
            "one.crt holds no whole private key",
        ),
        (
            Some("one.key"),
            Some("one.key"),
            "one.key holds no whole certificate",
        ),
        (
            Some("small.crt"),
            Some("small.key"),
            "small.key holds a private key of a kind that is not supported",
        ),
        (Some("one.crt"), Some("missing"), "can't read"),
    ] {
        let mut arguments = vec!["--listen".to_string(), "127.0.0.1:0".to_string()];
        arguments.extend(["--cluster", "rediss://127.0.0.1:1"].map(str::to_string));
        for (flag, file) in [
            ("--cluster-certificate-file", certificate),
            ("--cluster-key-file", key),
        ] {
            arguments.extend(file.map(|file| format!("{flag}={}", path(file))));
        }
        let (status, said) = fails(&arguments);
        assert_eq!(status, 78, "{said}");
        assert!(said.contains(why), "{why}: {said}");
        assert!(!said.contains("BEGIN"), "{said}");
    }
}

#[test]
fn settings_that_cannot_work_are_said_at_start() {
    let files = Scratch::new();
    let empty = file(&files, "empty", "");
    let two = file(&files, "two", "one\ntwo\n");
    let user = file(&files, "user", "someone\n");
    let half = file(&files, "half", "-----BEGIN CERTIFICATE-----\nAAAA\n");
    let missing = files.path().join("missing");
    let missing = missing.to_str().expect("UTF-8");
    let redis = ["--cluster", "redis://127.0.0.1:1"];
    for (arguments, why) in [
        (
            vec!["--cluster", "memcached://127.0.0.1"],
            "no scheme \"memcached\"",
        ),
        (
            vec!["--cluster", "redis://nowhere.invalid"],
            "can't find the address of nowhere.invalid:6379",
        ),
        (
            vec!["--cluster", "redis://u:secret@127.0.0.1"],
            "--cluster-password-file",
        ),
        (
            [&redis[..], &["--cluster-name", "a b"]].concat(),
            "--cluster-name is \"a b\"",
        ),
        (
            [&redis[..], &["--cluster-name", "{x}"]].concat(),
            "--cluster-name is \"{x}\"",
        ),
        (
            [&redis[..], &["--cluster-password-file", missing]].concat(),
            "missing: No such file",
        ),
        (
            [&redis[..], &["--cluster-password-file", &empty]].concat(),
            "must hold one line",
        ),
        (
            [&redis[..], &["--cluster-password-file", &two]].concat(),
            "must hold one line",
        ),
        (
            [&redis[..], &["--cluster-user-file", &user]].concat(),
            "without a password",
        ),
        (
            [&redis[..], &["--cluster-sentinel-user-file", &user]].concat(),
            "give it a --cluster-sentinel-password-file",
        ),
        (
            [&redis[..], &["--cluster-sentinel-password-file", &empty]].concat(),
            "must hold one line",
        ),
        (
            [&redis[..], &["--cluster-password-file", "/dev/zero"]].concat(),
            "/dev/zero: it is not a regular file",
        ),
        (
            [&redis[..], &["--cluster-ca-file", &user]].concat(),
            "holds no whole certificate",
        ),
        (
            [&redis[..], &["--cluster-ca-file", &half]].concat(),
            "holds no whole certificate",
        ),
        (vec!["--cluster", "etcd://127.0.0.1"], "--advertise"),
        (
            vec![
                "--cluster",
                "etcd://127.0.0.1",
                "--advertise",
                "0.0.0.0:4280",
            ],
            "--advertise",
        ),
    ] {
        for also in [None, Some("--check")] {
            let arguments = arguments.iter().copied().chain(also);
            let arguments = ["--listen", "127.0.0.1:0"].into_iter().chain(arguments);
            let (status, said) = fails(arguments);
            assert_eq!(status, 78, "{said}");
            assert!(said.contains(why), "{why}: {said}");
            assert!(!said.contains("secret"), "{said}");
        }
    }
    let mut unreadable = program();
    unreadable
        .args(["--listen", "127.0.0.1:0"])
        .args(redis)
        .args(["--cluster-password-file", "/proc/self/mem"]);
    let (status, said) = run_to_end(unreadable);
    assert_eq!(status, 78, "{said}");
}

/// Whether a host exists is not known before a name server can be asked, which may start after this server.
#[test]
fn a_name_server_that_is_away_keeps_no_server_from_starting() {
    // Without any network, and with a name server in it.
    let unshare = ["unshare", "--mount", "--net"];
    needs!(run & unshare);
    let files = Scratch::new();
    let servers = file(&files, "resolv.conf", "nameserver 192.0.2.1\n");
    let alone = format!("ip link set lo up; mount --bind {servers} /etc/resolv.conf");
    let script = shell(&alone);
    let wrapper = unshare.into_iter().chain(script.iter().map(String::as_str));
    let wrapper: Vec<&str> = wrapper.collect();
    let cluster = ["--cluster", "redis://redis.example"];
    let mut check = through(&wrapper);
    check.args(cluster).arg("--check");
    let (status, said) = run_to_end(check);
    assert_eq!(status, 0, "{said}");
    let server = Daemon::start_through(&wrapper, cluster);
    let line = server
        .log()
        .wait_for("can't find the address of redis.example:6379");
    assert!(line.contains("Temporary failure"), "{line}");
}
