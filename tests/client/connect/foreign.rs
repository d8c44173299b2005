//! With a server of another kind: it is told by its first words, and none of them reach the terminal.

use super::piped::converse;
use super::{Session, connect, fake, speaking};
use crate::support::terminal::Terminal;

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
            "blockchain-tcp: this is not a blockchain-tcpd: {said}"
        ));
        assert!(!terminal.all().contains("> "), "{}", terminal.all());
    }
}

#[test]
fn a_server_of_another_kind_ends_it() {
    for input in ["", "why\n", "np 1\n"] {
        let ran = converse(speaking(b"220 ready\r\n"), &[], input);
        assert_eq!((ran.status, ran.output.as_str()), (76, ""), "{ran:?}");
        assert_eq!(ran.errors.lines().count(), 1, "{ran:?}");
        let said = "blockchain-tcp: this is not a blockchain-tcpd: ";
        assert!(ran.errors.starts_with(said), "{ran:?}");
    }
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
