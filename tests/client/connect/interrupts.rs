//! ^C: it ends a wait, or a line, and nothing else.

use std::sync::mpsc;

use super::{Session, connect, fake};
use crate::support::terminal::Terminal;
use crate::support::{Daemon, wait_until};

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
