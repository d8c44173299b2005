//! What etcd may do: lose a member or its quorum, begin anew, ask who this server is, speak TLS.

use std::io::{Read as _, Write as _};
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use super::registry::{Etcd, free_address, somebody};
use super::{
    BUSY, LEASE, OUTSIDE, REGISTRY, YOUNG, client, leave, server, server_over, servers,
    takes_a_lease, unavailable_until, wait_for,
};
use crate::support::certificates::Authority;
use crate::support::watch::watch;
use crate::support::{Client, Daemon, Scratch, fails, wait_until};

/// Without a leader until there is another: two of etcd's time-outs, and an attempt of a server's.
const LEADERLESS: Duration = Duration::from_secs(2);

#[test]
fn one_member_of_etcd_may_be_lost_and_a_quorum_comes_back() {
    needs!("etcd");
    let etcd = Etcd::start(3);
    let servers = servers(&etcd, 2);
    let mut clients: Vec<Client> = servers.iter().map(client).collect();
    let become_right = |clients: &mut Vec<Client>, what: &str, bound: Duration| {
        let begun = Instant::now();
        for client in clients {
            unavailable_until(client, &[REGISTRY, OUTSIDE, YOUNG], "2");
        }
        let took = begun.elapsed();
        eprintln!("{what}: right after {took:?}");
        assert!(took < bound + BUSY, "{what}: {took:?}");
    };
    for lost in 0..3 {
        etcd.kill(lost);
        become_right(
            &mut clients,
            &format!("member {lost} of etcd lost"),
            LEADERLESS,
        );
        etcd.begin(lost);
        etcd.wait();
        become_right(
            &mut clients,
            &format!("member {lost} of etcd back"),
            LEADERLESS,
        );
    }
    etcd.kill(0);
    etcd.kill(1);
    for client in &mut clients {
        let answer = client.ask("WHO");
        assert!(answer.contains(REGISTRY), "{answer}");
        assert_eq!(client.ask("WHY"), "42");
    }
    let line = servers[0].log().wait_for("cut off from the cluster");
    assert!(line.contains("WHO is unavailable on this server"), "{line}");
    etcd.begin(0);
    etcd.wait();
    // Its leases may be over by then.
    become_right(&mut clients, "etcd back", LEASE + LEADERLESS);
    servers[0].log().wait_for("over: cut off from the cluster");
}

/// The member that the servers ask, which is not the one that leads, hangs, and is then killed: nobody is told but a number,
/// and nobody waits for long.
#[test]
fn a_member_of_etcd_that_is_asked_in_vain_makes_who_a_little_later_and_never_unavailable() {
    needs!("etcd");
    let etcd = Etcd::start(3);
    let lost = (etcd.leader() + 1) % 3;
    let url = etcd.url_from(lost);
    let servers = [(); 2].map(|()| server_over(free_address(), &url, &[]));
    wait_for(&servers, 1);
    let mut clients = servers.each_ref().map(client);
    wait_for(&servers, 3);
    let hang = |member| etcd.signal(member, "STOP");
    let kill = |member| {
        etcd.signal(member, "CONT");
        etcd.kill(member);
    };
    for (how, lose) in [("hangs", &hang as &dyn Fn(usize)), ("is killed", &kill)] {
        lose(lost);
        let mut worst = Duration::ZERO;
        for _ in 0..50 {
            for client in &mut clients {
                let asked = Instant::now();
                assert_eq!(client.ask("WHO"), "2");
                worst = worst.max(asked.elapsed());
            }
        }
        eprintln!("the member of etcd that is asked {how}: right after {worst:?} at worst");
        assert!(worst < BUSY, "{worst:?}");
    }
}

#[test]
fn an_etcd_that_has_lost_everything_is_not_believed_before_all_can_be_back() {
    needs!("etcd");
    let etcd = Etcd::start(1);
    let servers = servers(&etcd, 3);
    let mut clients: Vec<Client> = servers.iter().map(client).collect();
    // The first comes back long before the others.
    servers[1].signal("STOP");
    servers[2].signal("STOP");
    etcd.kill(0);
    etcd.wipe(0);
    servers[0].log().wait_for("cut off from the cluster");
    etcd.begin(0);
    etcd.wait();
    wait_until("the roster has begun anew", || {
        let answer = clients[0].ask("WHO");
        assert!(answer.starts_with("ERR UNAVAILABLE "), "{answer}");
        answer.contains(YOUNG)
    });
    servers[1].signal("CONT");
    servers[2].signal("CONT");
    let begun = Instant::now();
    for client in &mut clients {
        unavailable_until(client, &[REGISTRY, OUTSIDE, YOUNG], "3");
    }
    eprintln!("etcd empty: right after {:?}", begun.elapsed());
    takes_a_lease(begun.elapsed());
}

#[test]
fn a_server_starts_without_etcd_and_is_there_when_etcd_is() {
    needs!("etcd");
    let etcd = Etcd::start(1);
    etcd.kill(0);
    let server = server(&etcd, &[]);
    let mut client = client(&server);
    let answer = client.ask("WHO");
    assert!(
        answer.starts_with(&format!("ERR UNAVAILABLE {REGISTRY}")),
        "{answer}"
    );
    etcd.begin(0);
    unavailable_until(&mut client, &[REGISTRY, OUTSIDE, YOUNG], "1");
    let begun = Instant::now();
    server.stop();
    assert!(begun.elapsed().as_secs() < 5);
}

#[test]
fn an_etcd_that_asks_who_comes_is_told() {
    needs!("etcd");
    let etcd = Etcd::start(1);
    let secrets = Scratch::new();
    let file = |name: &str, text: &str| {
        let file = secrets.path().join(name);
        std::fs::write(&file, text).unwrap();
        file.display().to_string()
    };
    let user = file("user", "tcpd\n");
    let right = file("password", "secret\n");
    let wrong = file("wrong", "guess\n");
    let as_user = |password: &str| {
        let files = [
            "--cluster-user-file",
            &user,
            "--cluster-password-file",
            password,
            "--log",
            "trace",
        ];
        server(&etcd, &files)
    };
    // Whom nobody asks says nothing.
    let (known, unknown) = (as_user(&right), server(&etcd, &[]));
    let mut clients = (client(&known), client(&unknown));
    unavailable_until(&mut clients.0, &[OUTSIDE, YOUNG], "2");
    enable_auth(&etcd);
    // Its lease is gone by and by.
    unavailable_until(
        &mut clients.0,
        &[REGISTRY, OUTSIDE, YOUNG, "1 of 2 servers"],
        "2",
    );
    let answer = clients.1.ask("WHO");
    assert!(answer.contains(REGISTRY), "{answer}");
    let stranger = as_user(&wrong);
    let mut asking = client(&stranger);
    let answer = asking.ask("WHO");
    assert!(answer.contains(REGISTRY), "{answer}");
    let line = stranger.log().wait_for("cut off from the cluster");
    assert!(
        line.contains("authentication failed") && !line.contains("guess"),
        "{line}"
    );
    // The right one is written into the file: no restart is needed.
    std::fs::write(&wrong, "secret\n").unwrap();
    // Without the one that has no password: etcd 3.5.30 lets its lease expire, and the others don't.
    drop((clients.1, unknown));
    let allowed = [REGISTRY, OUTSIDE, YOUNG, "1 of 2 servers", "2 of 3 servers"];
    unavailable_until(&mut asking, &allowed, "2");
    for server in [known, stranger] {
        shows_no_secret(&server.stop());
    }
}

/// Neither a password nor the token that etcd answers is in the log, whatever it shows of what is sent.
fn shows_no_secret(log: &str) {
    // In a dump, sixteen bytes stand at the end of each line.
    let ends = log.lines().map(|line| {
        let begin = line.char_indices().rev().nth(15);
        begin.map_or(line, |(begin, _)| &line[begin..])
    });
    let dump: String = ends.collect();
    for text in [log, &dump] {
        let text = text.to_ascii_lowercase();
        for secret in ["secret", "guess", "authorization", "\"token\""] {
            let found = text.find(secret).map(|at| {
                let begin = at.saturating_sub(200);
                text.get(begin..at + 200).unwrap_or(secret).to_string()
            });
            assert_eq!(found, None, "{secret}");
        }
    }
}

#[test]
fn tls_is_spoken_with_whom_the_certificates_name_and_nobody_else() {
    needs!("etcd", "openssl");
    let authority = Authority::new();
    authority.certify("server", "/CN=etcd");
    let files = ["server.crt", "server.key", "ca.crt"].map(|file| authority.path(file).into());
    let etcd = Etcd::start_with(1, |_| Some(files), &[]);
    let ours = authority.path("ca.crt");
    let trusting = server(&etcd, &["--cluster-ca-file", &ours]);
    let mut asking = client(&trusting);
    unavailable_until(&mut asking, &[OUTSIDE, YOUNG], "1");
    let theirs = Authority::new();
    let distrusting = server(&etcd, &["--cluster-ca-file", &theirs.path("ca.crt")]);
    let answer = client(&distrusting).ask("WHO");
    assert!(answer.contains(REGISTRY), "{answer}");
    let line = distrusting.log().wait_for("cut off from the cluster");
    assert!(line.contains("certificate"), "{line}");
    wait_for(&[trusting], 2);
}

/// Has etcd ask who comes, and know the user `tcpd` by the password `secret`.
fn enable_auth(etcd: &Etcd) {
    for command in [
        "user add root:root",
        "user grant-role root root",
        "user add tcpd:secret",
        "role add tcpd",
        "role grant-permission tcpd --prefix=true readwrite /blockchain-tcpd/",
        "user grant-role tcpd tcpd",
        "auth enable",
    ] {
        etcd.does(&command.split(' ').collect::<Vec<_>>());
    }
}

/// The files with that user and password, and the arguments that name them.
fn as_user(secrets: &Scratch) -> [String; 4] {
    let file = |name: &str, text: &str| {
        let file = secrets.path().join(name);
        std::fs::write(&file, text).unwrap();
        file.display().to_string()
    };
    let [user, password] = ["--cluster-user-file", "--cluster-password-file"].map(str::to_string);
    [
        user,
        file("user", "tcpd\n"),
        password,
        file("password", "secret\n"),
    ]
}

/// etcd that wants certificates of its clients. Its gateway does not pass on who they are: a client whose certificate has a
/// common name is refused when etcd asks for users, and one without is a user by its password.
#[test]
fn a_certificate_is_shown_to_an_etcd_that_asks_for_one() {
    needs!("etcd", "openssl");
    let authority = Authority::new();
    authority.certify("server", "/CN=etcd");
    authority.certify("nobody", "/");
    authority.certify("somebody", "/CN=tcpd");
    let files = ["server.crt", "server.key", "ca.crt"].map(|file| authority.path(file).into());
    let ca = authority.path("ca.crt");
    let asks = ["--client-cert-auth", "--trusted-ca-file", &ca];
    let etcd = Etcd::start_with(1, |_| Some(files), &asks);
    let with = |name: &str, more: &[String]| {
        let certificate = authority.path(&format!("{name}.crt"));
        let key = authority.path(&format!("{name}.key"));
        let arguments = ["--cluster-ca-file", &ca, "--cluster-certificate-file"];
        let arguments = arguments
            .into_iter()
            .chain([&*certificate, "--cluster-key-file", &key]);
        let arguments: Vec<&str> = arguments.chain(more.iter().map(String::as_str)).collect();
        server(&etcd, &arguments)
    };
    let without = server(&etcd, &["--cluster-ca-file", &ca]);
    without.log().wait_for("--cluster-certificate-file");
    let servers = [with("nobody", &[]), with("somebody", &[])];
    wait_for(&servers, 1);
    drop((servers, without));
    enable_auth(&etcd);
    let secrets = Scratch::new();
    let user = as_user(&secrets);
    let somebody = with("somebody", &user);
    somebody
        .log()
        .wait_for("refuses certificates with a common name");
    let nobody = with("nobody", &user);
    wait_for(&[nobody], 1);
}

/// Passes on what comes to its address, and has every answer say `then` in the place of `said`, which are equally long.
fn reworded(to: SocketAddr, words: &'static [(&'static str, &'static str)]) -> SocketAddr {
    somebody(move |here| {
        let Ok(there) = TcpStream::connect(to) else {
            return;
        };
        here.set_nodelay(true).unwrap();
        there.set_nodelay(true).unwrap();
        let (mut asked, mut etcd) = (here.try_clone().unwrap(), there.try_clone().unwrap());
        let asks = thread::spawn(move || {
            // Either may have gone.
            let _ = std::io::copy(&mut asked, &mut etcd);
            let _ = etcd.shutdown(Shutdown::Write);
        });
        let mut bytes = [0; 1 << 16];
        while let Ok(read @ 1..) = (&there).read(&mut bytes) {
            let mut text = String::from_utf8_lossy(&bytes[..read]).into_owned();
            if words.iter().all(|(said, _)| text.contains(said)) {
                for (said, then) in words {
                    assert_eq!(said.len(), then.len());
                    text = text.replace(said, then);
                }
            }
            if (&here).write_all(text.as_bytes()).is_err() {
                break;
            }
        }
        let _ = here.shutdown(Shutdown::Both);
        asks.join().unwrap();
    })
}

/// A token that etcd has signed holds the revision of its users: with each change of them it is too old. etcd 3.5.1 says so in other
/// words than those before and after it, and without a code.
#[test]
fn a_token_that_is_too_old_is_replaced_whatever_the_words() {
    needs!("etcd", "openssl");
    let keys = Authority::new();
    keys.openssl("genrsa -out jwt.key 2048");
    keys.openssl("rsa -in jwt.key -pubout -out jwt.pub");
    let (public, private) = (keys.path("jwt.pub"), keys.path("jwt.key"));
    let token = format!("jwt,pub-key={public},priv-key={private},sign-method=RS256,ttl=5m");
    let etcd = Etcd::start_with(1, |_| None, &["--auth-token", &token]);
    enable_auth(&etcd);
    let secrets = Scratch::new();
    let user = as_user(&secrets);
    let user = user.each_ref().map(String::as_str);
    let other = reworded(
        etcd.addresses()[0],
        &[
            ("HTTP/1.1 400 Bad Request", "HTTP/1.1 500 Bad Request"),
            (
                "etcdserver: revision of auth store is old",
                "auth: revision in header is old, they say",
            ),
        ],
    );
    let coded = reworded(
        etcd.addresses()[0],
        &[(
            "etcdserver: revision of auth store is old",
            "etcdserver: somebody else says it so now.",
        )],
    );
    let at = |address: SocketAddr| server_over(free_address(), &format!("etcd://{address}"), &user);
    let servers = [at(etcd.addresses()[0]), at(other), at(coded)];
    wait_for(&servers, 1);
    let mut clients: Vec<Client> = servers.iter().map(client).collect();
    for round in 0..3 {
        let name = format!("somebody{round}:else");
        etcd.does(&["--user=root:root", "user", "add", &name]);
        // Long before the token expires.
        for client in &mut clients {
            unavailable_until(client, &[REGISTRY, OUTSIDE, YOUNG, "2 of 3"], "3");
        }
    }
}

/// What was sent comes back, as from a proxy that shows what it got. A server that may do nothing asks for one token each time, and
/// not for one after the other.
#[test]
fn what_repeats_a_password_or_a_token_is_not_repeated_and_a_refusal_is_no_loop() {
    const TOKEN: &str = "a-token-that-nobody-may-see.7";
    let (asked, tokens) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
    let counts = (asked.clone(), tokens.clone());
    let address = somebody(move |mut socket| {
        let mut heard = vec![0; 1 << 14];
        while let Ok(read @ 1..) = socket.read(&mut heard) {
            let text = String::from_utf8_lossy(&heard[..read]).into_owned();
            let is_first = counts.1.load(Ordering::SeqCst) == 0;
            let answer = if !text.contains("/v3/auth/authenticate ") {
                counts.0.fetch_add(1, Ordering::SeqCst);
                serde_json::json!({ "code": 7, "message": format!("no: {text}") })
            } else if is_first {
                // Then it is said anew, as it was.
                counts.1.fetch_add(1, Ordering::SeqCst);
                serde_json::json!({ "code": 3, "message": format!("no: {text}") })
            } else {
                counts.1.fetch_add(1, Ordering::SeqCst);
                serde_json::json!({ "token": TOKEN })
            };
            let (status, body) = match answer["code"].as_u64() {
                Some(_) => ("403 Forbidden", answer.to_string()),
                None => ("200 OK", answer.to_string()),
            };
            let head = format!(
                "HTTP/1.1 {status}\r\nContent-Length: {}\r\n\r\n",
                body.len()
            );
            if socket.write_all((head + &body).as_bytes()).is_err() {
                return;
            }
        }
    });
    let secrets = Scratch::new();
    let user = as_user(&secrets);
    let mut arguments: Vec<&str> = user.iter().map(String::as_str).collect();
    arguments.extend(["--log", "trace"]);
    let server = server_over(free_address(), &format!("etcd://{address}"), &arguments);
    wait_until("it has been denied several times", || {
        asked.load(Ordering::SeqCst) > 8
    });
    let (asked, tokens) = (asked.load(Ordering::SeqCst), tokens.load(Ordering::SeqCst));
    assert!(tokens <= asked + 2, "{tokens} tokens for {asked} questions");
    let log = server.stop();
    assert!(log.contains("says: HTTP status 403"), "{log}");
    assert!(!log.contains("a-token"), "{log}");
    shows_no_secret(&log);
}

#[test]
fn an_etcd_without_its_gateway_is_told_what_to_switch_on() {
    needs!("etcd");
    let etcd = Etcd::start_with(1, |_| None, &["--enable-grpc-gateway=false"]);
    let server = server(&etcd, &[]);
    let line = server.log().wait_for("cut off from the cluster");
    assert!(line.contains("enable-grpc-gateway: true"), "{line}");
    assert!(line.contains("--enable-grpc-gateway"), "{line}");
}

#[test]
fn settings_that_can_not_work_are_refused() {
    let address = free_address().to_string();
    let cluster = format!("etcd://{}", free_address());
    let etcd = ["--listen", "127.0.0.1:0", "--cluster", &cluster];
    for (more, why) in [
        (vec!["--http", "127.0.0.1:0"], "needs --advertise"),
        (vec!["--http", "", "--advertise", &address], "needs HTTP"),
        (
            vec!["--check", "--http", "", "--advertise", &address],
            "needs HTTP",
        ),
        (
            vec!["--http", "127.0.0.1:0", "--advertise", "127.0.0.1:0"],
            "can't be any",
        ),
    ] {
        let (status, said) = fails(etcd.iter().chain(&more));
        assert_eq!(status, 78, "{said}");
        assert!(said.contains(why), "{said}");
    }
    let http = ["--http", "127.0.0.1:0", "--advertise", &address];
    Daemon::start(etcd[2..].iter().chain(&http)).stop();
}

/// As a leader that stood still does before it learns that it is none any more: etcd takes leases that are being kept alive.
/// The roster lacks somebody who lives then, and nobody answers a sum without him.
#[test]
fn a_lease_that_is_taken_from_a_server_that_lives_makes_no_number_wrong() {
    needs!("etcd");
    let etcd = Etcd::start(1);
    let servers = servers(&etcd, 3);
    let clients: Vec<Client> = servers.iter().map(client).collect();
    let watched = watch(client(&servers[0]));
    wait_for(&servers, 5);
    for _ in 0..3 {
        let leases = etcd.does(&["lease", "list"]);
        for lease in leases.lines().skip(1) {
            etcd.does(&["lease", "revoke", lease]);
        }
        wait_for(&servers, 5);
    }
    let (answers, last) = watched.end();
    let is_right = |answer: &String| {
        answer.starts_with("ERR UNAVAILABLE ") || ["4", "5"].contains(&answer.as_str())
    };
    let wrong: Vec<_> = answers.iter().filter(|answer| !is_right(answer)).collect();
    assert!(wrong.is_empty(), "of {}: {wrong:?}", answers.len());
    drop((clients, last));
}

/// They ask for longer than a client must be idle to make room for another.
#[test]
fn whoever_waits_for_the_census_is_not_said_to_make_room() {
    needs!("etcd");
    let etcd = Etcd::start(3);
    let (http, url) = (free_address().to_string(), etcd.url());
    let cluster = ["--http", &http, "--advertise", &http, "--cluster", &url];
    let small = ["--max-clients", "2", "--queue", "2"];
    let server = Daemon::start(cluster.iter().chain(&small));
    let mut asking = [client(&server), client(&server)];
    (0..3).for_each(|member| etcd.signal(member, "STOP"));
    let mut waiting = server.connect();
    waiting.send("WHY\n");
    for _ in 0..3 {
        for client in &mut asking {
            client.send("WHO\n");
        }
        for client in &mut asking {
            let said = client.line().expect("it is answered");
            assert!(said.contains(REGISTRY), "{said}");
        }
    }
    let [first, _second] = asking;
    leave(first);
    assert_eq!(waiting.line().as_deref(), Some("42"));
    let log = server.log().lines().join("\n");
    assert!(!log.contains("to make room"), "{log}");
    (0..3).for_each(|member| etcd.signal(member, "CONT"));
}
