//! ^C ends a wait, and the client with it.

use std::os::unix::process::ExitStatusExt as _;
use std::sync::mpsc;

use super::{connect, fake};
use crate::support::terminal::Terminal;

#[test]
fn a_wait_can_be_ended() {
    let (asked, heard) = mpsc::channel();
    let server = fake(move |_, _| {
        let _ = asked.send(());
        None
    });
    let mut terminal = Terminal::start(connect(server, &[]), 24, 100);
    heard.recv().expect("it is asked");
    terminal.type_in("\x03");
    // As shells count it: 128 and the number of SIGINT.
    assert_eq!(terminal.end().signal(), Some(2));
}
