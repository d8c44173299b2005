//! The section on connections: who counts, who is closed when, who makes room. And the errors that come unasked.

use std::io::{self, Read as _, Write as _};
use std::time::{Duration, Instant};

use super::{daemon, proves};
use crate::support::{Client, Daemon, wait_until};

/// The daemon measures idle times by a clock of this grain.
const GRAIN: Duration = Duration::from_millis(20);

/// Takes what came before the reset that must follow.
fn was_cut_off(client: &Client) -> String {
    let mut all = Vec::new();
    let error = client.socket().read_to_end(&mut all).expect_err("a reset");
    assert_eq!(error.kind(), io::ErrorKind::ConnectionReset);
    String::from_utf8_lossy(&all).into_owned()
}

#[test]
fn a_client_counts_from_its_arrival_until_its_end_whatever_that_is() {
    proves(
        r#"A client counts from the moment the server accepts it until the server closes, the end of the connection for
        whatever reason included."#,
    );
    let daemon = Daemon::start(["--max-clients", "2", "--idle-timeout", "0s"]);
    let mut asking = daemon.connect();
    let mut count = |clients: &str| {
        wait_until(&format!("{clients} clients"), || {
            asking.ask("WHO") == clients
        });
    };
    let silent = daemon.connect();
    count("2");
    drop(silent);
    count("1");
    let reset = daemon.connect();
    count("2");
    reset.reset();
    count("1");
    for last in ["QUIT\n", &"x".repeat(2000)] {
        let mut open = daemon.connect();
        open.send(last);
        // It holds its socket still, but the server has closed.
        count("1");
        open.rest();
    }
}

#[test]
fn a_client_that_waits_for_a_worker_counts() {
    let daemon = Daemon::start(["--max-clients", "2"]);
    let mut asking = daemon.connect();
    // The silent one makes room for the waiting one after half a second, which may be too soon on a slow machine.
    wait_until("all three count", || {
        wait_until("the others have left", || asking.ask("WHO") == "1");
        let _silent_and_waiting = [daemon.connect(), daemon.connect()];
        (0..100).any(|_| asking.ask("WHO") == "3")
    });
}

#[test]
fn who_has_seen_the_end_does_not_count() {
    proves(r#"A client that has seen the end of its stream no longer counts."#);
    let daemon = daemon();
    let mut asking = daemon.connect();
    for last in ["QUIT\n", "EXIT\n", &"x".repeat(1100)].repeat(500) {
        let mut leaving = daemon.connect();
        leaving.send(last);
        leaving.rest();
        assert_eq!(asking.ask("WHO"), "1");
    }
    for _ in 0..100 {
        daemon.ask("WHY\n");
        assert_eq!(asking.ask("WHO"), "1");
    }
}

#[test]
fn who_is_refused_does_not_count() {
    proves(
        r#"`ERR BUSY`: the server has no room for this client; it says so without being asked, and then it closes."#,
    );
    proves(r#"A client that is answered `ERR BUSY` on arrival never counts."#);
    let full = ["--max-clients", "1", "--queue", "0"];
    let full_for_address = ["--max-clients", "8", "--max-clients-per-address", "1"];
    for arguments in [&full[..], &full_for_address[..]] {
        let daemon = Daemon::start(arguments);
        let mut asking = daemon.connect();
        assert_eq!(asking.ask("WHO"), "1");
        let address = daemon.address;
        let refused = std::thread::spawn(move || {
            for _ in 0..500 {
                let mut refused = Client::connect(address).expect("it accepts");
                let reply = refused.rest();
                assert!(reply.starts_with("ERR BUSY "), "{reply}");
                assert_eq!(reply.lines().count(), 1, "{reply}");
            }
        });
        // Asked while they come and go.
        while !refused.is_finished() {
            asking.send("WHO\n".repeat(50));
            for _ in 0..50 {
                assert_eq!(asking.line().as_deref(), Some("1"), "{arguments:?}");
            }
        }
        refused.join().expect("all were refused");
    }
}

#[test]
fn an_idle_client_is_told_and_closed() {
    proves(
        r#"`ERR TIMEOUT`: the client has completed no request for too long; the server says so without being asked, and
        then it closes."#,
    );
    proves(
        r#"A client that completes no request for the idle time-out (5 minutes unless set otherwise) is answered `ERR
        TIMEOUT`."#,
    );
    assert_eq!(default_of("--idle-timeout"), "5m");
    let daemon = Daemon::start(["--max-clients", "4", "--idle-timeout", "400ms"]);
    for request in ["", "WHY\n"] {
        let begun = Instant::now();
        let mut client = daemon.connect();
        client.send(request);
        let replies = client.rest();
        assert!(begun.elapsed() + GRAIN >= Duration::from_millis(400));
        let last = replies.lines().last().expect("it is told");
        assert!(last.starts_with("ERR TIMEOUT "), "{replies}");
        assert_eq!(replies.lines().count(), 1 + request.lines().count());
    }
}

#[test]
fn trickling_bytes_do_not_keep_a_client_from_being_idle() {
    proves(r#"Bytes that complete no request don't put off the idle time-out."#);
    let daemon = Daemon::start(["--max-clients", "4", "--idle-timeout", "400ms"]);
    for byte in [b'x', b'\n', b' '] {
        let client = daemon.connect();
        let mut socket = client.socket();
        let pace = Some(Duration::from_millis(40));
        socket.set_read_timeout(pace).expect("a time-out");
        let mut reply = [0; 12];
        // A byte each time that nothing has come. If they counted, this would go on until the line is too long.
        let read = (0..600).find_map(|_| {
            socket.write_all(&[byte]).expect("it is taken");
            socket.read(&mut reply).ok()
        });
        assert!(read.is_some(), "{byte:?} keeps the client in");
        assert_eq!(String::from_utf8_lossy(&reply), "ERR TIMEOUT ");
    }
}

#[test]
fn the_longest_idle_makes_room_after_half_a_second() {
    proves(
        r#"When all workers are taken and clients wait, the one that has been idle longest, and at least half a second,
        is answered `ERR TIMEOUT` to make room; if it is one that doesn't take its replies, it is cut off instead."#,
    );
    let daemon = Daemon::start(["--max-clients", "2", "--idle-timeout", "0s"]);
    let (mut longest, mut shorter) = (daemon.connect(), daemon.connect());
    assert_eq!(shorter.ask("WHY"), "42");
    let idle_since = Instant::now();
    assert_eq!(longest.ask("WHY"), "42");
    // The other goes on asking until their times differ for certain.
    let answered = Instant::now();
    while answered.elapsed() < 3 * GRAIN {
        assert_eq!(shorter.ask("WHY"), "42");
    }
    let mut waiting = daemon.connect();
    assert_eq!(waiting.ask("WHY"), "42");
    assert!(idle_since.elapsed() + GRAIN >= Duration::from_millis(500));
    let told = longest.rest();
    assert!(told.starts_with("ERR TIMEOUT "), "{told}");
    assert_eq!(shorter.ask("WHO"), "2");

    let daemon = Daemon::start(["--max-clients", "1", "--write-timeout", "1h"]);
    let mut deaf = Client::connect_narrow(daemon.address);
    deaf.flood(&daemon, 1);
    assert_eq!(daemon.connect().ask("WHO"), "1");
    assert!(!was_cut_off(&deaf).contains("ERR TIMEOUT"));
}

#[test]
fn a_client_that_takes_no_replies_is_cut_off() {
    proves(
        r#"A client that takes longer than the write time-out (10 seconds unless set otherwise) to take its replies is cut off."#,
    );
    assert_eq!(default_of("--write-timeout"), "10s");
    let flags = [
        "--max-clients",
        "4",
        "--write-timeout",
        "400ms",
        "--idle-timeout",
        "0s",
    ];
    let daemon = Daemon::start(flags);
    let begun = Instant::now();
    let mut deaf = Client::connect_narrow(daemon.address);
    deaf.ask_until_cut_off();
    assert!(begun.elapsed() + GRAIN >= Duration::from_millis(400));
    assert!(!deaf.whatever_comes().contains("ERR "));
    assert_eq!(daemon.ask("WHO"), "1\n");
}

#[test]
fn told_to_stop_it_answers_what_has_arrived_and_closes() {
    proves(
        r#"When the server is told to stop, it answers every request that has arrived from the clients that it has accepted, cuts no reply, and closes."#,
    );
    let daemon = Daemon::start(["--max-clients", "1", "--queue", "2", "--log", "debug"]);
    let mut served = daemon.connect();
    assert_eq!(served.ask("WHO"), "1");
    // These wait for the only worker; what they sent has been read by nobody.
    let mut waiting = [daemon.connect(), daemon.connect()];
    for client in &mut waiting {
        client.send("HELP WHY\n".repeat(5_000));
    }
    daemon.log().wait_for("accepted connection=3 ");
    daemon.signal("TERM");
    // On a slow machine it may have made room before.
    let last_words = served.rest();
    assert!(last_words.is_empty() || last_words.starts_with("ERR TIMEOUT "));
    for client in &mut waiting {
        assert_eq!(client.rest(), "WHY: the answer\n".repeat(5_000));
    }
    daemon.log().wait_for("stopped");
}

/// The default that `--help` names for a flag.
fn default_of(flag: &str) -> String {
    let help = crate::support::program()
        .arg("--help")
        .output()
        .expect("it runs");
    let help = String::from_utf8(help.stdout).expect("ASCII");
    let (_, of_flag) = help
        .split_once(&format!("{flag} <"))
        .expect("it is in --help");
    let (_, default) = of_flag.split_once("[default: ").expect("it has a default");
    default.split(']').next().unwrap_or_default().to_string()
}
