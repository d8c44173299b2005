//! At a terminal: where one is, editing, completion, `help`, and every way of leaving.

use std::sync::mpsc;

use super::{Session, connect, fake, speaking};
use crate::support::terminal::Terminal;
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
        "^C abandons the line, or the wait for a reply; exit, quit or ^D leaves.",
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
fn no_server_writes_to_the_terminal() {
    let server = fake(|_, line| {
        Some(match line {
            "WHERE" => b"anywhere\n".to_vec(),
            "HELP" => b"WHO EVIL\n".to_vec(),
            "HELP WHO" => b"WHO: \x1b[2J\xc2\x9b2J\n".to_vec(),
            _ => b"ERR X \x1b]0;owned\x07\r\x08y\n".to_vec(),
        })
    });
    let mut session = Session::start(server);
    session.type_in("help\r");
    session
        .terminal
        .wait_for(r#"HELP WHO is answered "WHO: \x1b[2J\xc2\x9b2J" instead of"#);
    session.type_in("evil\r");
    session
        .terminal
        .wait_for(r#"evil is answered "ERR X \x1b]0;owned\x07\x0d\x08y" instead of"#);
    for said in ["\x1b[2J", "\x1b]0", "\x08y"] {
        assert_eq!(session.times(said), 0, "{said:?}");
    }
}

#[test]
fn a_server_of_another_kind_is_not_conversed_with() {
    for (greeting, said) in [
        (
            &b"HTTP/1.1 400 Bad Request\r\n"[..],
            r#"WHERE is answered "HTTP/1.1 400 Bad Request\x0d" instead of a UUID"#,
        ),
        (b"here\n", r#"WHERE is answered "here" instead of a UUID"#),
    ] {
        let server = speaking(greeting);
        let mut terminal = Terminal::start(connect(server, &[]), 24, 120);
        assert_eq!(terminal.end().code(), Some(76));
        terminal.wait_for(&format!(
            "blockchain-tcp: this is no blockchain-tcpd: {said}"
        ));
        assert!(!terminal.all().contains("> "), "{}", terminal.all());
    }
}

/// ^C is a signal there, and what was typed of the line is dropped by the terminal.
#[test]
fn a_terminal_that_can_not_be_edited_in_shows_a_new_prompt_at_each_interrupt() {
    let daemon = Daemon::start(["--max-clients", "4"]);
    let mut shell = std::process::Command::new("sh");
    shell.args(["-c", "TERM=dumb exec \"$@\"", "sh"]);
    let client = connect(daemon.address, &[]);
    shell.arg(client.get_program()).args(client.get_args());
    let mut session = Session::run(shell, daemon.address);
    session.type_in("wh");
    session.shows(&["> wh"]);
    session.type_in("\x03");
    session.shows(&["> wh^C", ">"]);
    session.type_in("\x03");
    session.shows(&["> wh^C", "> ^C", ">"]);
    session.type_in("why\r");
    session.shows(&["> why", "42", ">"]);
    session.leave();
}

#[test]
fn a_list_that_the_screen_has_no_room_for_is_not_shown() {
    let names: Vec<String> = (0..200).map(|number| format!("NAME{number:020}")).collect();
    let names = names.join(" ");
    let server = fake(move |_, line| match line {
        "HELP" => Some(format!("{names}\n").into_bytes()),
        _ => Some(b"1\n".to_vec()),
    });
    let mut session = Session::start(server);
    session.type_in("na\t");
    let common = "> name00000000000000000";
    session.shows(&[common]);
    session.type_in("\x03");
    session.shows(&[common, ">"]);
    // These fit.
    session.type_in("na\t19\t");
    session.terminal.wait_for("name00000000000000000199");
    session.type_in("\x03");
    session.shows(&["> name0000000000000000019", ">"]);
    session.leave();
}

#[test]
fn the_first_wait_can_be_ended_too() {
    let (asked, heard) = mpsc::channel();
    let server = fake(move |_, _| {
        let _ = asked.send(());
        None
    });
    let mut terminal = Terminal::start(connect(server, &[]), 24, 100);
    heard.recv().expect("it is asked");
    terminal.type_in("\x03");
    assert_eq!(terminal.end().code(), Some(130));
}

#[test]
fn the_terminal_is_left_as_it_was() {
    let daemon = Daemon::start(["--max-clients", "4"]);
    for signal in ["TERM", "HUP"] {
        let client = connect(daemon.address, &[]);
        let mut shell = std::process::Command::new("sh");
        // Dash executes the last command of a -c in its own place.
        shell.args(["-c", "\"$@\"; stty -a; echo status $?", "sh"]);
        shell.arg(client.get_program()).args(client.get_args());
        shell.env("BLOCKCHAIN_TCP_HISTORY", "");
        let mut terminal = Terminal::start(shell, 24, 100);
        terminal.type_in("wh");
        terminal.wait_for("> wh");
        let children = format!("/proc/{0}/task/{0}/children", terminal.pid());
        let child = std::fs::read_to_string(children).expect("the shell lives");
        let kill = std::process::Command::new("kill")
            .args(["-s", signal, child.trim()])
            .status();
        assert!(kill.expect("kill runs").success());
        terminal.wait_for("status 0");
        let screen = terminal.screen().join(" ");
        for mode in ["icanon", "echo", "isig", "icrnl"] {
            assert!(screen.contains(&format!(" {mode} ")), "{signal}: {screen}");
        }
        assert!(terminal.all().contains("\x1b[?2004l"), "{signal}");
        terminal.end();
    }
}

#[test]
fn a_wait_for_a_reply_can_be_abandoned() {
    let (asked, heard) = mpsc::channel();
    let server = fake(move |connection, line| match line {
        "HELP" => Some(b"SLOW\n".to_vec()),
        "SLOW" if connection == 0 => {
            asked.send(()).expect("the test lives");
            None
        }
        _ => Some(format!("{connection}\n").into_bytes()),
    });
    let mut session = Session::start(server);
    session.type_in("SLOW\r");
    heard.recv().expect("it is asked");
    session.type_in("\x03");
    let abandoned = "abandoned; the next line connects again";
    session.shows(&["> SLOW", "^C", abandoned, "!"]);
    session.type_in("SLOW\r");
    let again = format!("connected again to {server}");
    session.shows(&["! SLOW", &again, "1", ">"]);
    session.leave();
}

#[test]
fn a_wait_for_a_connection_can_be_abandoned() {
    let daemon = Daemon::start(["--max-clients", "4"]);
    let address = daemon.address;
    let mut session = Session::run(connect(address, &["--timeout", "1h"]), address);
    drop(daemon);
    session.shows(&["connection lost; the next line connects again", "!"]);
    // With a backlog that is full, it neither takes connections nor refuses them.
    let deaf = std::net::TcpListener::bind(address).expect("the port is free");
    rustix::net::listen(&deaf, 0).expect("it is bound");
    let moment = std::time::Duration::from_millis(200);
    let one_more = || std::net::TcpStream::connect_timeout(&address, moment).ok();
    let waiting: Vec<_> = std::iter::from_fn(one_more).collect();
    session.type_in("why\r");
    let tasks = format!("/proc/{}/task", session.terminal.pid());
    wait_until("it connects", || {
        let mut tasks = std::fs::read_dir(&tasks).expect("it lives").flatten();
        tasks.any(|task| {
            let name = std::fs::read_to_string(task.path().join("comm"));
            name.is_ok_and(|name| name == "connect\n")
        })
    });
    session.type_in("\x03");
    let abandoned = "abandoned; the next line connects again";
    session.shows(&["! why", "^C", abandoned, "!"]);
    drop((deaf, waiting));
    session.type_in("exit\r");
    assert_eq!(session.terminal.end().code(), Some(0));
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
