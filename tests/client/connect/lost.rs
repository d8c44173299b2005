//! A connection that is lost: said at once, and made anew with the next line; and one that isn't lost.

use std::fs;

use super::{Session, connect, fake, restarted};
use crate::client::run;
use crate::handover::replace;
use crate::support::terminal::Terminal;
use crate::support::{Daemon, wait_until};

const LOST: &str = "connection lost; the next line connects again";

#[test]
fn a_killed_server_is_noticed_without_a_key_and_found_again_when_it_is_back() {
    let daemon = Daemon::start(["--max-clients", "4"]);
    let address = daemon.address;
    let mut session = Session::start(address);
    session.type_in("wh");
    session.shows(&["> wh"]);
    drop(daemon);
    // What was being typed is still there.
    session.shows(&[LOST, "! wh"]);
    session.type_in("y\r");
    let refused = format!("can't connect to {address}: Connection refused");
    session.shows(&["! why", &refused, "!"]);
    session.type_in("\r");
    session.shows(&["!", "!"]);
    let daemon = restarted(address);
    let again = format!("connected again to {address}");
    // The line was kept.
    session.type_in("\x1b[A\r");
    session.shows(&["! why", &again, "42", ">"]);
    drop(daemon);
    session.shows(&[LOST, "!"]);
    let _daemon = restarted(address);
    session.type_in("ping\r");
    session.shows(&["! ping", &again, "PONG", ">"]);
    assert_eq!(session.times(LOST), 2);
    session.leave();
}

#[test]
fn a_server_that_hands_over_is_not_noticed() {
    let daemon = Daemon::start(["--max-clients", "4"]);
    let mut session = Session::start(daemon.address);
    session.type_in("why\r");
    session.shows(&["> why", "42", ">"]);
    session.type_in("pi");
    session.shows(&["> pi"]);
    replace(&daemon);
    session.type_in("ng\r");
    session.shows(&["> why", "42", "> ping", "PONG", ">"]);
    session.type_in("who\r");
    session.shows(&["> ping", "PONG", "> who", "1", ">"]);
    session.leave();
}

#[test]
fn what_the_server_says_unasked_is_shown() {
    let daemon = Daemon::start(["--idle-timeout", "1s"]);
    let mut session = Session::start(daemon.address);
    session.shows(&["ERR TIMEOUT no request for too long", LOST, "!"]);
    let again = format!("connected again to {}", daemon.address);
    session.type_in("why\r");
    session.shows(&["! why", &again, "42", ">"]);
    session.leave();
}

#[test]
fn a_server_that_stops_is_not_asked_to_be_left() {
    let daemon = Daemon::start(["--max-clients", "4"]);
    let mut session = Session::start(daemon.address);
    drop(daemon);
    session.shows(&[LOST, "!"]);
    session.type_in("exit\r");
    assert_eq!(session.terminal.end().code(), Some(0));
    session.shows(&[LOST, "! exit"]);
}

#[test]
fn a_line_that_is_too_long_costs_the_connection() {
    let daemon = Daemon::start(["--max-clients", "4"]);
    let mut session = Session::start(daemon.address);
    let line = "x".repeat(1500);
    session.type_in(&format!("{line}\r"));
    session.shows(&["ERR TOOLONG a request has at most 1024 bytes", LOST, "!"]);
    session.type_in("why\r");
    let again = format!("connected again to {}", daemon.address);
    session.shows(&["! why", &again, "42", ">"]);
    session.leave();
}

#[test]
fn what_a_lost_connection_has_not_answered_is_asked_once_more() {
    let server = fake(|connection, line| match (connection, line) {
        // The end, instead of a reply; and on the next connections, too.
        (0..=2, "ECHO") => Some(Vec::new()),
        (_, line) => Some(format!("{connection} {line}\n").into_bytes()),
    });
    let mut session = Session::start(server);
    session.type_in("ECHO\r");
    session.shows(&[
        "> ECHO",
        "connection lost; asked again",
        &format!("connected again to {server}"),
        "closed without an answer to ECHO",
        "!",
    ]);
    let again = format!("connected again to {server}");
    // That is new, and can't have been lost before.
    session.type_in("ECHO\r");
    session.shows(&["! ECHO", &again, "closed without an answer to ECHO", "!"]);
    session.type_in("ECHO\r");
    session.shows(&["! ECHO", &again, "3 ECHO", ">"]);
    session.leave();
}

#[test]
fn a_server_that_has_given_us_up_while_it_was_asked_is_asked_once_more() {
    let server = fake(|connection, line| match (connection, line) {
        (0, "ECHO") => Some(b"ERR TIMEOUT no request for too long\n".to_vec()),
        (_, line) => Some(format!("{connection} {line}\n").into_bytes()),
    });
    let mut session = Session::start(server);
    session.type_in("ECHO\r");
    let again = format!("connected again to {server}");
    session.shows(&[
        "> ECHO",
        "connection lost; asked again",
        &again,
        "1 ECHO",
        ">",
    ]);
    session.leave();
}

#[test]
fn a_server_that_does_not_answer_is_given_up() {
    let server = fake(|connection, line| match (connection, line) {
        (0, "ECHO") => None,
        (_, line) => Some(format!("{connection} {line}\n").into_bytes()),
    });
    let mut session = Session::run(connect(server, &["--timeout", "300ms"]), server);
    session.type_in("ECHO\r");
    session.shows(&["> ECHO", "no answer to ECHO within 0.3 s", "!"]);
    // A reply that comes too late is not taken for that of another request.
    session.type_in("ECHO\r");
    let again = format!("connected again to {server}");
    session.shows(&["! ECHO", &again, "1 ECHO", ">"]);
    session.leave();
}

#[test]
fn without_a_server_there_is_no_prompt() {
    let address = Daemon::start(["--max-clients", "4"]).address;
    let mut terminal = Terminal::start(connect(address, &[]), 24, 100);
    assert_eq!(terminal.end().code(), Some(69));
    let refused = format!("blockchain-tcp: can't connect to {address}: Connection refused");
    terminal.wait_for(&refused);
    assert!(!terminal.all().contains("> "), "{}", terminal.all());
}

#[test]
fn a_full_server_says_so_instead_of_a_prompt() {
    let daemon = Daemon::start(["--max-clients", "1", "--queue", "0"]);
    let mut client = daemon.connect();
    assert_eq!(client.ask("WHO"), "1");
    let mut terminal = Terminal::start(connect(daemon.address, &[]), 24, 100);
    assert_eq!(terminal.end().code(), Some(75));
    terminal.wait_for("ERR BUSY full with 1 clients, try again later");
    assert!(!terminal.all().contains("> "), "{}", terminal.all());
    let ran = run(["connect", &daemon.address.to_string()]);
    assert_eq!((ran.status, ran.output.as_str()), (75, ""), "{ran:?}");
}

#[test]
fn names_are_completed_as_the_server_of_now_tells() {
    let server = fake(|connection, line| match line {
        "HELP" if connection == 0 => Some(b"OLD\n".to_vec()),
        "HELP" => Some(b"NEW\n".to_vec()),
        "old" if connection == 0 => Some(Vec::new()),
        line => Some(format!("{line}.\n").into_bytes()),
    });
    let mut session = Session::start(server);
    session.type_in("o\t\r");
    let again = format!("connected again to {server}");
    session.shows(&["connection lost; asked again", &again, "old.", ">"]);
    session.type_in("n\t\r");
    session.shows(&["> new", "new.", ">"]);
    session.type_in("o\t\r");
    session.shows(&["> o", "o.", ">"]);
    session.leave();
}

/// How many descriptors and threads it has.
fn held(session: &Session) -> (usize, usize) {
    let count = |what: &str| {
        let folder = format!("/proc/{}/{what}", session.terminal.pid());
        fs::read_dir(folder).expect("it lives").count()
    };
    (count("fd"), count("task"))
}

#[test]
fn nothing_piles_up() {
    let daemon = Daemon::start(["--max-clients", "4"]);
    let mut session = Session::start(daemon.address);
    session.type_in("why\r");
    session.shows(&["> why", "42", ">"]);
    let before = held(&session);
    let again = format!("connected again to {}", daemon.address);
    for number in 1..=20 {
        session.type_in(&format!("{}\r", "x".repeat(1100)));
        session.shows(&[LOST, "!"]);
        session.type_in("why\r");
        session.shows(&["! why", &again, "42", ">"]);
        wait_until("it all was noticed", || session.times(&again) == number);
    }
    wait_until("nothing is left", || held(&session) == before);
    session.leave();
}
