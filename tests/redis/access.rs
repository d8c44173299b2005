//! How a server authenticates to Redis, and which Redis it trusts.

use std::fs;

use super::trouble::says;
use crate::clusters::{
    BACK, Cluster, client, cut_off_by, errors, figure, file, server, wait_for, wait_for_errors,
    wait_until_connected,
};
use crate::support::backends::{Kind, Redis};
use crate::support::certificates::Authority;
use crate::support::{Daemon, Scratch, fails, free_port, installed_for_part, program, wait_until};

const SECRET: &str = "correct-horse-battery-staple";

/// Neither the log nor the process list shows it.
fn shows_no_secret(server: &Daemon) {
    let lines = server.log().lines().join("\n");
    assert!(!lines.contains(SECRET), "{lines}");
    for name in ["cmdline", "environ"] {
        let text = fs::read(format!("/proc/{}/{name}", server.pid())).expect("it lives");
        assert!(!String::from_utf8_lossy(&text).contains(SECRET), "{name}");
    }
}

/// A server with the password in this file, which logs all that it can.
fn server_with(redis: &str, password: &str) -> Daemon {
    server(
        redis,
        &format!("--cluster-password-file {password} --log trace"),
    )
}

#[test]
fn the_password_is_read_from_a_file_and_may_change() {
    needs!("redis-server");
    let files = Scratch::new();
    let password = file(&files, "password", &format!("{SECRET}\n"));
    let mut redis = Redis::start(&format!("--requirepass {SECRET}"));
    redis.password = SECRET.to_string();
    let servers = [(); 2].map(|()| server_with(&redis.url(), &password));
    let mut clients = servers.each_ref().map(client);
    wait_for(&mut clients, 2);

    redis.order("CONFIG SET requirepass another");
    redis.password = "another".to_string();
    redis.ask("CLIENT KILL TYPE pubsub");
    for server in &servers {
        server.log().wait_for("WRONGPASS");
        wait_for_errors(server, "denied");
    }
    file(&files, "password", "another\n");
    for server in &servers {
        server.log().wait_for(BACK);
        shows_no_secret(server);
    }
    wait_for(&mut clients, 2);
}

/// A Redis that doesn't know a command repeats its arguments, and truncates them. Others may say it in a sentence of their own.
#[test]
fn a_password_that_is_repeated_is_not_shown() {
    let files = Scratch::new();
    let (short, long) = (SECRET.to_string(), SECRET.repeat(10));
    let is_there = installed_for_part("redis-server");
    let rows = [(&short, "HELLO"), (&short, "AUTH"), (&long, "AUTH")];
    for (secret, unknown) in rows.into_iter().filter(|_| is_there) {
        let password = file(&files, "password", secret);
        let redis = Redis::start(&format!(
            r#"--requirepass {secret} --rename-command {unknown} """#
        ));
        let server = server_with(&redis.url(), &password);
        let line = cut_off_by(&server, "");
        // Valkey 9.1 asks for the password before it looks for the command.
        let is_denied = line.contains("NOAUTH");
        let advice = "HELLO 3 is not known there: Redis 6 or later is needed";
        for said in ["unknown command", unknown, advice] {
            assert!(is_denied || line.contains(said), "{line}");
        }
        assert!(!line.contains("correct"), "{line}");
        wait_for_errors(&server, if is_denied { "denied" } else { "refused" });
        shows_no_secret(&server);
    }
    let password = file(&files, "password", SECRET);
    let truncated = &SECRET[..17];
    for row in [
        format!("says to AUTH: ERR <- -ERR user default with {SECRET} is unknown"),
        format!("says to AUTH: an error <- -{SECRET}"),
        format!("ERR unknown command <- -ERR unknown command 'AUTH default {truncated}'"),
    ] {
        let (shown, reply) = row.split_once(" <- ").expect("two parts");
        let server = server_with(&says(format!("{reply}\r\n"), ""), &password);
        let line = server.log().wait_for(shown);
        assert!(!line.contains("correct"), "{line}");
        shows_no_secret(&server);
    }
}

/// What is said does not depend on the password, so that nothing that is missing tells of it.
#[test]
fn a_password_that_is_a_part_of_the_answer_is_neither_told_nor_cut_out() {
    needs!("redis-server");
    let redis = Redis::start(&format!("--requirepass {SECRET}"));
    let files = Scratch::new();
    let said = ["a", "ERR", "WRONGPASS", "another one"].map(|guess| {
        let server = server_with(&redis.url(), &file(&files, "password", guess));
        let whole = "says to AUTH: WRONGPASS invalid username-password pair or user is disabled";
        let line = cut_off_by(&server, whole);
        line.split_once("reason=").expect("a reason").1.to_string()
    });
    assert!(said.iter().all(|line| *line == said[0]), "{said:?}");
}

/// Redis 7.0 words it in one way, later ones and Valkey in another.
#[test]
fn a_right_that_is_missing_within_the_script_is_a_denial() {
    Cluster::with(Kind::Redis, 0, |cluster| {
        let files = Scratch::new();
        let password = file(&files, "password", SECRET);
        let user = file(&files, "user", "tcpd\n");
        let access = format!("--cluster-user-file {user} --cluster-password-file {password}");
        for rights in [
            "~* &* +@all -hset",
            "%R~blockchain-tcpd:* &* +@all",
            "~* resetchannels &other +@all",
        ] {
            let user = format!("ACL SETUSER tcpd reset on >{SECRET} {rights}");
            cluster.backend.redis().order(&user);
            let server = cluster.server(&access);
            wait_for_errors(&server, "denied");
            let refused = errors(&server, "refused");
            assert_eq!(refused, 0.0, "{:?}", server.log().lines());
        }
    });
}

/// Commands that no heartbeat needs at once: the sum is counted each 120 of them, and those that are gone are taken out.
const RARE: [&str; 3] = ["hgetall", "hdel", "zrem"];

/// The line of the manual makes a user that can do what is needed, and nothing else.
#[test]
fn a_user_with_the_rights_that_the_manual_names_is_enough() {
    needs!("redis-server");
    let manual = include_str!("../../man/blockchain-tcpd.8");
    let mut lines = manual.lines();
    let line = lines.find_map(|line| line.strip_prefix(".Dl ACL SETUSER "));
    let line = line.expect("the manual has it").replace("PASSWORD", SECRET);
    let redis = Redis::start("");
    redis.order(&format!("ACL SETUSER {line}"));
    redis.order("ACL SETUSER default resetkeys -@write");
    let files = Scratch::new();
    let user = file(&files, "user", "blockchain-tcpd\n");
    let password = file(&files, "password", SECRET);
    let access = format!(
        "--cluster-heartbeat 50ms --cluster-user-file {user} --cluster-password-file {password}"
    );
    let is_called = |command: &&str| {
        let called = redis.ask("INFO commandstats");
        called.contains(&format!("cmdstat_{command}:"))
    };
    let mut logs = Vec::new();
    for database in ["", "/1"] {
        let url = format!("{}{database}", redis.url());
        let mut servers: Vec<Daemon> = (0..4).map(|_| server(&url, &access)).collect();
        let mut asker = client(&servers[0]);
        let denied = |server: &Daemon| errors(server, "denied") > 0.0;
        wait_until("120 heartbeats", || {
            figure(&servers[0], "heartbeats_total") > 120.0 || denied(&servers[0])
        });
        logs.push(servers.pop().expect("the fourth").stop());
        let killed = servers.pop().expect("the third");
        logs.push(killed.log().lines().join("\n"));
        drop(killed);
        wait_until("two are left, and all is counted", || {
            let is_done = figure(&servers[0], "servers") == 2.0 && RARE.iter().all(is_called);
            is_done || servers.iter().any(denied)
        });
        assert_eq!(asker.ask("WHO"), "1");
        logs.extend(servers.into_iter().map(Daemon::stop));
    }
    // A busy one may be late.
    for log in logs {
        for denial in ["NOPERM", "The user executing the script can't "] {
            assert!(!log.contains(denial), "{log}");
        }
    }
    let mut needless = line.split(' ').filter_map(|word| word.strip_prefix('+'));
    assert_eq!(needless.find(|command| !is_called(command)), None);
    // Without the script in its cache, too.
    redis.order("SCRIPT FLUSH");
    assert_eq!(figure(&server(&redis.url(), &access), "connected"), 1.0);
    // And one without rights is told so.
    let nobody = server(&redis.url(), "");
    nobody.log().wait_for("NOPERM");
}

/// A server to which systemd passes the credentials in this directory.
fn server_with_credentials(credentials: &Scratch, cluster: &str) -> Daemon {
    let mut command = program();
    command
        .args(["--listen", "127.0.0.1:0", "--http", "127.0.0.1:0"])
        .env("CREDENTIALS_DIRECTORY", credentials.path())
        .env("BLOCKCHAIN_TCPD_CLUSTER", cluster);
    Daemon::run(command)
}

/// systemd passes credentials in a directory. Those that the operator has not made are what the unit says.
#[test]
fn credentials_that_systemd_passes_are_used_unless_they_are_blank() {
    let unit = include_str!("../../systemd/blockchain-tcpd.service");
    let loaded = unit.lines();
    let loaded = loaded.filter_map(|line| line.strip_prefix("LoadCredential="));
    let loaded: Vec<_> = loaded.filter_map(|line| line.split_once(':')).collect();
    assert!(loaded.len() >= 3, "{unit}");
    let credentials = Scratch::new();
    for (name, _) in &loaded {
        let blank = format!("\nSetCredential={name}:\\n\n");
        assert!(unit.contains(&blank), "systemd 257 would log it: {name}");
        file(&credentials, name, "\n");
    }
    needs!("redis-server");
    for arguments in ["", &format!("--requirepass {SECRET}")] {
        let redis = Redis::start(arguments);
        let server = server_with_credentials(&credentials, &redis.url());
        wait_until_connected(&server);
        shows_no_secret(&server);
        file(&credentials, "cluster-password", SECRET);
    }
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
    for (name, make) in [
        ("sec1", "ecparam -name secp384r1 -genkey -out sec1.key"),
        ("pkcs1", "genrsa -traditional -out pkcs1.key 2048"),
        ("ed25519", "genpkey -algorithm ed25519 -out ed25519.key"),
    ] {
        authority.openssl(make);
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
    let port = free_port();
    let _redis = Redis::start(&format!(
        "--tls-port {port} --tls-cert-file {certificate} --tls-key-file {key} --tls-ca-cert-file {ca}"
    ));
    let url = format!("rediss://127.0.0.1:{port}");
    let without = server(&url, &format!("--cluster-ca-file {ca}"));
    let line = without.log().wait_for("CertificateRequired");
    assert!(line.contains("--cluster-certificate-file"), "{line}");
    assert!(errors(&without, "denied") > 0.0);
    for name in ["pkcs8", "sec1", "pkcs1", "ed25519", "chained", "both"] {
        let certificate = authority.path(&format!("{name}.crt"));
        let key = authority.path(&format!("{name}.key"));
        let own = format!("--cluster-certificate-file {certificate} --cluster-key-file {key}");
        let server = server(&url, &format!("--cluster-ca-file {ca} {own}"));
        wait_until_connected(&server);
    }
    // By systemd; and what is wrong may be mended while it runs.
    let others = Authority::new();
    others.certify("other", "/CN=client");
    let credentials = Scratch::new();
    let pass = |name: &str, from: String| {
        fs::copy(from, credentials.path().join(name)).expect("a file");
    };
    pass("cluster-ca", ca);
    pass("cluster-certificate", others.path("other.crt"));
    pass("cluster-key", others.path("other.key"));
    let server = server_with_credentials(&credentials, &url);
    cut_off_by(&server, "");
    assert_eq!(figure(&server, "connected"), 0.0);
    pass("cluster-certificate", authority.path("pkcs8.crt"));
    pass("cluster-key", authority.path("pkcs8.key"));
    wait_until_connected(&server);
}

/// A certificate, its key, and what is said about them.
const CANNOT_BE_SHOWN: &str = "
one.crt - one.crt is a certificate without its private key: name that with --cluster-key-file
- one.key one.key is a private key without its certificate: name that with --cluster-certificate-file
one.crt two.key two.key is not the private key of the first certificate in
one.crt pkcs8.key pkcs8.key holds an encrypted private key
one.crt sec1.key sec1.key holds an encrypted private key
one.crt one.crt one.crt holds no whole private key
one.key one.key one.key holds no whole certificate
small.crt small.key small.key holds a private key of a kind that is not supported
one.crt missing can't read
";

#[test]
fn a_certificate_that_cannot_be_shown_is_said_at_start() {
    needs!("openssl");
    let authority = Authority::new();
    authority.certify("one", "/CN=one");
    authority.certify("two", "/CN=two");
    for make in [
        "pkey -in one.key -aes256 -passout pass:x -out pkcs8.key",
        "ec -in one.key -aes256 -passout pass:x -out sec1.key",
        "genrsa -out small.key 1024",
        "req -x509 -key small.key -days 2 -out small.crt -subj /CN=small",
    ] {
        authority.openssl(make);
    }
    for row in CANNOT_BE_SHOWN.trim().lines() {
        let mut words = row.splitn(3, ' ');
        let mut next = || words.next().expect("three parts");
        let mut arguments = vec!["--listen=127.0.0.1:0".to_string()];
        arguments.push("--cluster=rediss://127.0.0.1:1".to_string());
        for (kind, file) in [("certificate", next()), ("key", next())] {
            if file != "-" {
                arguments.push(format!("--cluster-{kind}-file={}", authority.path(file)));
            }
        }
        let (status, said) = fails(arguments);
        assert_eq!(status, 78, "{said}");
        assert!(said.contains(next()), "{row}: {said}");
        assert!(!said.contains("BEGIN"), "{said}");
    }
}
