//! What else may be registered in etcd: servers at addresses of others, and addresses at which no server answers.

use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::thread;
use std::time::{Duration, Instant};

use crate::clusters::{
    Cluster, ID, NO_MEMBERSHIP, ONE_OF_TWO, OUTSIDE, YOUNG, answers_until, free_address, server_at,
};
use crate::support::backends::{Kind, MEMBERS, somebody};
use crate::support::http::get;
use crate::support::{Daemon, wait_until};

/// A server waits for another until its deadline, and a little more on a busy machine.
const PATIENCE: Duration = Duration::from_secs(3);

/// Whether the log names this address as one at which no server answers.
fn names(server: &Daemon, address: SocketAddr) -> bool {
    let (what, address) = ("server of the cluster does not answer", address.to_string());
    let mut lines = server.log().lines().into_iter();
    lines.any(|line| line.contains(what) && line.contains(&address))
}

/// Somebody who answers the first question like this.
fn answers(does: impl Fn(&mut TcpStream) + Send + Sync + 'static) -> SocketAddr {
    somebody(move |mut socket| {
        let _ = socket.read(&mut [0; 1024]);
        does(&mut socket);
    })
}

#[test]
fn an_address_where_no_server_answers_makes_who_unavailable_in_time() {
    let says = |text: &'static [u8]| {
        answers(move |socket| {
            let _ = socket.write_all(text);
            let _ = socket.read_to_end(&mut Vec::new());
        })
    };
    let silent = |mut socket: TcpStream| drop(socket.read_to_end(&mut Vec::new()));
    let dribbles = |socket: &mut TcpStream| {
        let head = b"HTTP/1.1 200 OK\r\nContent-Length: 80\r\n\r\n";
        let mut bytes = head.iter().cycle();
        while bytes
            .next()
            .is_some_and(|byte| socket.write_all(&[*byte]).is_ok())
        {
            thread::park_timeout(Duration::from_millis(20));
        }
    };
    let floods = |socket: &mut TcpStream| while socket.write_all(&[b'x'; 4096]).is_ok() {};
    Cluster::with(Kind::Etcd, 1, |mut cluster| {
        let (etcd, server, asker) = (
            cluster.backend.etcd(),
            &cluster.servers[0],
            &mut cluster.askers[0],
        );
        for (who, address) in [
            ("nobody", free_address()),
            ("one who says nothing", somebody(silent)),
            ("one who closes", answers(|_| {})),
            (
                "one who talks nonsense",
                says(b"220 mail.example ESMTP\r\n"),
            ),
            (
                "one who says no",
                says(b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n"),
            ),
            (
                "one who answers a number",
                says(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n7\n"),
            ),
            ("one who dribbles", answers(dribbles)),
            ("one who floods", answers(floods)),
        ] {
            let key = etcd.register(address);
            // etcd may be slow on a busy machine, and then the server says so in time, too.
            wait_until("etcd answers in time", || {
                let begun = Instant::now();
                let answer = asker.ask("WHO");
                let took = begun.elapsed();
                assert!(took < PATIENCE, "{who}: {took:?}");
                let is_slow = answer.contains(NO_MEMBERSHIP);
                assert!(is_slow || answer == ONE_OF_TWO, "{who}: {answer}");
                !is_slow
            });
            assert_eq!(asker.ask("WHY"), "42");
            wait_until("it is named", || names(server, address));
            etcd.order(&format!("del {key}"));
            answers_until(asker, &[NO_MEMBERSHIP, OUTSIDE, YOUNG], "1");
        }

        // Another server at the address of one does not answer for it.
        let alone = Daemon::start(["--http", "127.0.0.1:0"]);
        let census = get(alone.http(), "/census");
        assert_eq!(census.status, 200);
        assert!(census.body.ends_with(" 0\n"), "{}", census.body);
        let key = etcd.register(alone.http());
        assert_eq!(asker.ask("WHO"), ONE_OF_TWO);
        server.log().wait_for("another server answers there");
        etcd.order(&format!("del {key}"));
        assert_eq!(asker.ask("WHO"), "1");

        // What can't be read may be a server.
        let key = format!("{MEMBERS}{ID}/{ID}");
        etcd.order(&format!("put {key} 127.0.0.1:1"));
        assert!(asker.ask("WHO").contains(NO_MEMBERSHIP));
        server.log().wait_for("etcd holds nonsense");
        etcd.order(&format!("del {key}"));
        answers_until(asker, &[NO_MEMBERSHIP], "1");
    });
}

/// What a process has left that ended is taken away by the next at its address; another server that has it by mistake lives. One
/// that can't be reached where it says makes WHO unavailable on the others, which say where nobody answers; so does it itself.
#[test]
fn a_server_that_has_a_wrong_address_is_told_so_and_is_missed() {
    Cluster::with(Kind::Etcd, 2, |mut cluster| {
        let url = cluster.backend.url();
        let lost = |advertised| server_at(free_address(), advertised, &url, "");
        // Each is named, also while WHO is unavailable anyway.
        let addresses = [(); 2].map(|()| free_address());
        let servers = addresses.map(lost);
        let (here, asker) = (&cluster.servers[0], &mut cluster.askers[0]);
        for (server, address) in servers.iter().zip(addresses) {
            let line = server.log().wait_for("can't reach itself");
            assert!(line.contains(&address.to_string()), "{line}");
            wait_until("it is named", || {
                asker.ask("WHO");
                names(here, address)
            });
        }
        for server in servers {
            let log = server.stop();
            assert_eq!(log.matches("can't reach itself").count(), 1, "{log}");
        }
        cluster.wait_for(2);
        for server in &cluster.servers {
            let log = server.log().lines().join("\n");
            assert!(!log.contains("reach itself"), "{log}");
        }

        cluster.askers.pop();
        cluster.servers.pop().expect("the second").stop();
        cluster.wait_for(1);
        let members = || cluster.backend.etcd().members();
        let first = members();
        assert_eq!(first.len(), 1);
        let address = cluster.servers[0].http();
        let mistaken = lost(address);
        let said = "answers at this server's --advertise address";
        let line = mistaken.log().wait_for(said);
        assert!(line.contains(&address.to_string()), "{line}");
        wait_until("both are registered", || members().len() == 2);
        assert!(members().contains(&first[0]));
        // Where nobody answers for both.
        let asker = &mut cluster.askers[0];
        wait_until("it is missed", || asker.ask("WHO") == ONE_OF_TWO);
        let log = mistaken.stop();
        assert_eq!(log.matches(said).count(), 1, "{log}");
        answers_until(asker, &[ONE_OF_TWO, YOUNG], "1");
    });
}
