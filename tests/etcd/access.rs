//! How a server authenticates to etcd: users, certificates, tokens; and what of that is never logged.

use std::io::{Read as _, Write as _};
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;

use crate::clusters::{
    Cluster, NO_MEMBERSHIP, ONE_OF_TWO, OUTSIDE, TWO_OF_THREE, YOUNG, answers_until, client,
    cut_off_by, file, server, wait_for,
};
use crate::support::backends::{Etcd, Kind, somebody};
use crate::support::certificates::Authority;
use crate::support::{Scratch, wait_until};

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
        etcd.order(command);
    }
}

/// The arguments for that user with this password, which is in a file of this name.
fn as_user(secrets: &Scratch, name: &str, password: &str) -> String {
    let (user, password) = (
        file(secrets, "user", "tcpd\n"),
        file(secrets, name, password),
    );
    format!("--cluster-user-file {user} --cluster-password-file {password}")
}

#[test]
fn an_etcd_that_asks_who_comes_is_told() {
    Cluster::with(Kind::Etcd, 0, |cluster| {
        let secrets = Scratch::new();
        let server_as = |name, password| {
            let user = as_user(&secrets, name, password);
            cluster.server(&format!("{user} --log trace"))
        };
        // One that nobody asks says nothing.
        let (known, unknown) = (server_as("password", "secret\n"), cluster.server(""));
        let mut clients = (client(&known), client(&unknown));
        answers_until(&mut clients.0, &[OUTSIDE, YOUNG], "2");
        enable_auth(cluster.backend.etcd());
        // Its lease is gone by and by.
        answers_until(
            &mut clients.0,
            &[NO_MEMBERSHIP, OUTSIDE, YOUNG, ONE_OF_TWO],
            "2",
        );
        let answer = clients.1.ask("WHO");
        assert!(answer.contains(NO_MEMBERSHIP), "{answer}");
        let stranger = server_as("wrong", "guess\n");
        let mut asker = client(&stranger);
        let answer = asker.ask("WHO");
        assert!(answer.contains(NO_MEMBERSHIP), "{answer}");
        let line = cut_off_by(&stranger, "authentication failed");
        assert!(!line.contains("guess"), "{line}");
        // The right one is written into the file: no restart is needed.
        file(&secrets, "wrong", "secret\n");
        // Without the one that has no password: etcd 3.5.30 lets its lease expire, and the others don't.
        drop((clients.1, unknown));
        let allowed = [NO_MEMBERSHIP, OUTSIDE, YOUNG, ONE_OF_TWO, TWO_OF_THREE];
        answers_until(&mut asker, &allowed, "2");
        for server in [known, stranger] {
            shows_no_secret(&server.stop());
        }
    });
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

/// etcd that wants certificates of its clients. Its gateway does not pass on who they are: a client whose certificate has a
/// common name is refused when etcd asks for users, and one without is a user by its password.
#[test]
fn a_certificate_is_shown_to_an_etcd_that_asks_for_one() {
    needs!("etcd", "etcdctl", "openssl");
    let authority = Authority::new();
    for (name, subject) in [
        ("server", "/CN=etcd"),
        ("nobody", "/"),
        ("somebody", "/CN=tcpd"),
    ] {
        authority.certify(name, subject);
    }
    let files = ["server.crt", "server.key", "ca.crt"].map(|file| authority.path(file));
    let ca = files[2].clone();
    let arguments = format!("--client-cert-auth --trusted-ca-file {ca}");
    let etcd = Etcd::start_with(1, Some(files), &arguments);
    let with = |name: &str, more: &str| {
        let [certificate, key] = ["crt", "key"].map(|end| authority.path(&format!("{name}.{end}")));
        let own = format!("--cluster-certificate-file {certificate} --cluster-key-file {key}");
        server(&etcd.url(), &format!("--cluster-ca-file {ca} {own} {more}"))
    };
    let without = server(&etcd.url(), &format!("--cluster-ca-file {ca}"));
    without.log().wait_for("--cluster-certificate-file");
    let servers = ["nobody", "somebody"].map(|name| with(name, ""));
    wait_for(&mut servers.each_ref().map(client), 2);
    drop((servers, without));
    enable_auth(&etcd);
    let secrets = Scratch::new();
    let user = as_user(&secrets, "password", "secret\n");
    let somebody = with("somebody", &user);
    somebody
        .log()
        .wait_for("refuses certificates with a common name");
    wait_for(&mut [client(&with("nobody", &user))], 1);
}

/// Passes on what comes to its address, and has every answer say other words, which are equally long.
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
    needs!("etcd", "etcdctl", "openssl");
    const OLD: &str = "etcdserver: revision of auth store is old";
    let keys = Authority::new();
    keys.openssl("genrsa -out jwt.key 2048");
    keys.openssl("rsa -in jwt.key -pubout -out jwt.pub");
    let (public, private) = (keys.path("jwt.pub"), keys.path("jwt.key"));
    let token = format!("jwt,pub-key={public},priv-key={private},sign-method=RS256,ttl=5m");
    let etcd = Etcd::start_with(1, None, &format!("--auth-token {token}"));
    enable_auth(&etcd);
    let secrets = Scratch::new();
    let user = as_user(&secrets, "password", "secret\n");
    let etcd_itself = etcd.address(0);
    let without_code = &[
        ("HTTP/1.1 400 Bad Request", "HTTP/1.1 500 Bad Request"),
        (OLD, "auth: revision in header is old, they say"),
    ];
    let with_code = &[(OLD, "etcdserver: somebody else says it so now.")];
    let addresses = [
        etcd_itself,
        reworded(etcd_itself, without_code),
        reworded(etcd_itself, with_code),
    ];
    let servers = addresses.map(|address| server(&format!("etcd://{address}"), &user));
    let mut askers = servers.each_ref().map(client);
    wait_for(&mut askers, 3);
    for round in 0..3 {
        let name = format!("somebody{round}:else");
        etcd.order(&format!("--user=root:root user add {name}"));
        // Long before the token expires.
        for asker in &mut askers {
            answers_until(asker, &[NO_MEMBERSHIP, OUTSIDE, YOUNG, TWO_OF_THREE], "3");
        }
    }
}

/// What was sent comes back, as from a proxy that shows what it got. A server that may do nothing asks for one token each time, and
/// not for one after the other.
#[test]
fn what_repeats_a_password_or_a_token_is_not_repeated_and_a_refusal_is_no_loop() {
    const TOKEN: &str = "a-token-that-nobody-may-see.7";
    let counts: [Arc<AtomicUsize>; 2] = Default::default();
    let [asked, tokens] = counts.clone();
    let address = somebody(move |mut socket| {
        let mut heard = vec![0; 1 << 14];
        while let Ok(read @ 1..) = socket.read(&mut heard) {
            let text = String::from_utf8_lossy(&heard[..read]).into_owned();
            let [asked, tokens] = &counts;
            let is_for_token = text.contains("/v3/auth/authenticate ");
            let counter = if is_for_token { tokens } else { asked };
            // The first time, the password is said anew, as it was.
            let is_first = counter.fetch_add(1, Ordering::SeqCst) == 0;
            let no = |code| serde_json::json!({ "code": code, "message": format!("no: {text}") });
            let (status, body) = match (is_for_token, is_first) {
                (true, false) => ("200 OK", serde_json::json!({ "token": TOKEN })),
                (true, true) => ("403 Forbidden", no(3)),
                (false, _) => ("403 Forbidden", no(7)),
            };
            let body = body.to_string();
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
    let user = as_user(&secrets, "password", "secret\n");
    let server = server(&format!("etcd://{address}"), &format!("{user} --log trace"));
    wait_until("it has been denied several times", || {
        asked.load(Ordering::SeqCst) > 8
    });
    let [asked, tokens] = [asked, tokens].map(|count| count.load(Ordering::SeqCst));
    assert!(tokens <= asked + 2, "{tokens} tokens for {asked} questions");
    let log = server.stop();
    assert!(log.contains("says: HTTP status 403"), "{log}");
    assert!(!log.contains("a-token"), "{log}");
    shows_no_secret(&log);
}

#[test]
fn an_etcd_without_its_gateway_is_told_what_to_switch_on() {
    needs!("etcd");
    let etcd = Etcd::start_with(1, None, "--enable-grpc-gateway=false");
    let line = cut_off_by(&server(&etcd.url(), ""), "enable-grpc-gateway: true");
    assert!(line.contains("--enable-grpc-gateway"), "{line}");
}
