//! At a terminal: where one is, editing, completion, `help`, and every way of leaving.

use std::process::Command;

use super::{Session, connect};
use crate::support::{Daemon, wait_until};

#[test]
fn it_says_where_one_is_and_answers_line_by_line() {
    let daemon = Daemon::start(["--server-id", "6f0c2a52-5f0e-4b7e-9a35-0c5f7f5a3c1e"]);
    let mut session = Session::start(daemon.address);
    let greeting = format!(
        "connected to {}, id 6f0c2a52-5f0e-4b7e-9a35-0c5f7f5a3c1e; try help",
        daemon.address
    );
    session.shows(&[&greeting, ">"]);
    session.type_in("why\r");
    session.shows(&["> why", "42", ">"]);
    session.type_in("who \r");
    session.shows(&["> who", "1", ">"]);
    session.type_in("foo\r");
    let unknown = "ERR UNKNOWN no such command: \"foo\" (try HELP)";
    session.shows(&["> foo", unknown, ">"]);
    session.type_in("\r \r");
    session.shows(&[unknown, ">", ">", ">"]);
    session.type_in("caf\u{e9}\r");
    let bad = r#"ERR BADINPUT not printable ASCII: "caf\xC3\xA9""#;
    session.shows(&["> caf\u{e9}", bad, ">"]);
    session.type_in("help why\r");
    session.shows(&["> help why", "WHY: the answer", ">"]);
    session.leave();
}

#[test]
fn a_line_can_be_edited_and_abandoned() {
    let daemon = Daemon::start(["--max-clients", "4"]);
    let mut session = Session::start(daemon.address);
    session.type_in("wha\x7fy\r");
    session.shows(&["> why", "42", ">"]);
    // The first letter is put in last.
    session.type_in("ing\x01p\r");
    session.shows(&["> ping", "PONG", ">"]);
    session.type_in("who");
    session.shows(&["> who"]);
    session.type_in("\x03");
    session.shows(&["> who", ">"]);
    session.type_in("why\r");
    session.shows(&["> who", "> why", "42", ">"]);
    session.leave();
}

#[test]
fn what_is_typed_ahead_or_pasted_is_asked_line_by_line() {
    let daemon = Daemon::start(["--max-clients", "4"]);
    let mut session = Session::start(daemon.address);
    session.type_in("why\rping\rfoo\r");
    let unknown = "ERR UNKNOWN no such command: \"foo\" (try HELP)";
    session.shows(&["> why", "42", "> ping", "PONG", "> foo", unknown, ">"]);
    session.type_in("\x1b[200~why\r\n\nping\x1b[201~\r");
    session.shows(&["42", "PONG", ">"]);
    // What is left of the paste is not asked behind the goodbye.
    session.type_in("\x1b[200~ping\nquit\nwhy\x1b[201~\r");
    assert_eq!(session.terminal.end().code(), Some(0));
    session.shows(&["PONG", "BYE"]);
}

#[test]
fn commands_are_completed() {
    let daemon = Daemon::start(["--max-clients", "4"]);
    let mut session = Session::start(daemon.address);
    session.type_in("w\t");
    session.shows(&["> wh", "who    where  why", "> wh"]);
    session.type_in("e\t");
    session.shows(&["> where"]);
    // The blank after a name that is whole is there.
    session.type_in("x\r");
    session.shows(&["ERR USAGE WHERE takes no arguments", ">"]);
    session.type_in("PI\t\r");
    session.shows(&["> PING", "PONG", ">"]);
    session.type_in("help pi\t\r");
    session.shows(&[
        "> help ping",
        "PING: PONG, to keep the connection or to try it",
        ">",
    ]);
    session.type_in("zz\t");
    session.shows(&["> zz"]);
    session.type_in("\x03");
    session.shows(&["> zz", ">"]);
    session.leave();
}

#[test]
fn help_shows_all_commands_of_the_server() {
    let daemon = Daemon::start(["--max-clients", "4"]);
    let mut session = Session::start(daemon.address);
    session.type_in(" Help\r");
    session.shows(&[
        ">  Help",
        "WHO             the number of clients connected, in a cluster to all its servers",
        "WHERE           the id of this server",
        "WHY             the answer",
        "PING            PONG, to keep the connection or to try it",
        "HELP [COMMAND]  the names of all commands, or what one of them does",
        "QUIT            BYE, and the server closes",
        "EXIT            the same as QUIT",
        "",
        "Tab completes a command, the arrows up and down go through what was typed before, ^R searches it.",
        "^C abandons the line; exit, quit or ^D leaves.",
        ">",
    ]);
    session.leave();
}

#[test]
fn each_way_of_leaving_is_told_to_the_server() {
    let daemon = Daemon::start(["--max-clients", "4"]);
    for (keys, last) in [
        ("exit\r", vec!["> exit", "BYE"]),
        (" QUIT \r", vec![">  QUIT", "BYE"]),
        ("\x04", vec![">"]),
    ] {
        let mut session = Session::start(daemon.address);
        daemon.wait_for_others(1);
        session.type_in(keys);
        assert_eq!(session.terminal.end().code(), Some(0), "{keys:?}");
        session.shows(&last);
        // At once: it has waited for the server.
        assert_eq!(daemon.ask("WHO"), "1\n", "{keys:?}");
    }
}

#[test]
fn words_behind_a_goodbye_are_for_the_server() {
    let daemon = Daemon::start(["--max-clients", "4"]);
    let mut session = Session::start(daemon.address);
    session.type_in("exit now\r");
    session.shows(&["ERR USAGE EXIT takes no arguments", ">"]);
    session.leave();
}

#[test]
fn a_terminal_of_another_size_shows_the_same() {
    let daemon = Daemon::start(["--max-clients", "4"]);
    let mut session = Session::start(daemon.address);
    session.type_in("why and again");
    session.shows(&["> why and again"]);
    session.terminal.resize(24, 30);
    session.type_in(" and again");
    let prompt = format!("{}>", daemon.address);
    session.terminal.wait_until("it is in two rows", |screen| {
        let line = screen.concat();
        line.ends_with(&format!("{prompt} why and again and again"))
    });
    session.terminal.resize(24, 100);
    session.type_in("\x15why\r");
    session.shows(&["42", ">"]);
    session.leave();
}

#[test]
fn json_is_printed_at_a_terminal_too() {
    let daemon = Daemon::start(["--max-clients", "4"]);
    let mut session = Session::run(connect(daemon.address, &["--json"]), daemon.address);
    session.type_in("why\r");
    session
        .terminal
        .wait_for(r#""numbers":[42],"reply":"42","request":"why""#);
    session.type_in("help\r");
    session
        .terminal
        .wait_for(r#""reply":"WHO WHERE WHY PING HELP QUIT EXIT","#);
    wait_until("the prompt is back", || session.times("> ") >= 3);
    session.leave();
}

#[test]
fn the_session_of_the_calculators_manual_is_so() {
    let daemon = Daemon::start(["--commands", "server,calc", "--max-clients", "4"]);
    let mut session = Session::start(daemon.address);
    session.type_in("max 2 6\r");
    session.shows(&["> max 2 6", "6", ">"]);
    session.type_in("np 9999 1234 1 2 3 4\r");
    session.shows(&["> np 9999 1234 1 2 3 4", "104723 10061 2 3 5 7", ">"]);
    session.type_in("exit\r");
    assert_eq!(session.terminal.end().code(), Some(0));
    session.shows(&["> exit", "BYE"]);
}

#[test]
fn a_terminal_that_does_not_block_is_waited_for() {
    needs!("perl");
    let daemon = Daemon::start(["--max-clients", "4"]);
    let client = connect(daemon.address, &[]);
    let mut command = Command::new("perl");
    let unblock = "fcntl(STDIN, F_SETFL, fcntl(STDIN, F_GETFL, 0) | O_NONBLOCK); exec @ARGV";
    command.args(["-MFcntl", "-e", unblock]);
    command.args(["env", "TERM=xterm", "BLOCKCHAIN_TCP_HISTORY="]);
    command.arg(client.get_program()).args(client.get_args());
    let mut session = Session::run(command, daemon.address);
    session.type_in("why\r");
    session.shows(&["> why", "42", ">"]);
    session.type_in("who\r");
    session.shows(&["> who", "1", ">"]);
    session.leave();
}
