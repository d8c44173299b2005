//! A conversation: at a real terminal in `terminal`, with ^C in `interrupts`, over a connection that is lost in `lost`, what was typed
//! before in `history`; with a program in `piped`, with one that reads JSON in `json`; with a server of another kind in `foreign`.

mod foreign;
mod history;
mod interrupts;
mod json;
mod lost;
mod piped;
mod terminal;

use std::io::{BufRead as _, BufReader, Write as _};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::process::Command;

use super::client;
use crate::support::Daemon;
use crate::support::terminal::Terminal;

/// A client at a terminal.
pub struct Session {
    pub terminal: Terminal,
    prompt: String,
}

impl Session {
    /// Connected with this server, and waiting for a line.
    pub fn start(server: SocketAddr) -> Self {
        Session::run(connect(server, &[]), server)
    }

    /// The same by this command.
    pub fn run(command: Command, server: SocketAddr) -> Self {
        let session = Session {
            terminal: Terminal::start(command, 24, 100),
            prompt: server.to_string(),
        };
        session.shows(&[">"]);
        session
    }

    pub fn type_in(&mut self, text: &str) {
        self.terminal.type_in(text);
    }

    /// Waits until the screen ends with these lines. Where one begins with `>` or `!`, that stands for the prompt, of a client
    /// that is connected or not.
    pub fn shows(&self, end: &[&str]) {
        let line = |line: &&str| match line.starts_with(['>', '!']) {
            true => format!("{}{line}", self.prompt),
            false => line.to_string(),
        };
        let end: Vec<String> = end.iter().map(line).collect();
        self.terminal.wait_until(&format!("{end:#?}"), |screen| {
            let used = screen.iter().rposition(|line| !line.is_empty());
            screen[..used.map_or(0, |last| last + 1)].ends_with(&end)
        });
    }

    /// How often all that was written contains this.
    pub fn times(&self, text: &str) -> usize {
        self.terminal.all().matches(text).count()
    }

    /// Leaves, and it must have been without trouble.
    pub fn leave(mut self) {
        self.type_in("exit\r");
        assert_eq!(self.terminal.end().code(), Some(0));
    }
}

/// The command for a conversation with this server.
pub fn connect(server: SocketAddr, arguments: &[&str]) -> Command {
    let mut command = client();
    command.env("BLOCKCHAIN_TCP_HISTORY", "");
    command
        .args(["connect", &server.to_string()])
        .args(arguments);
    command
}

/// A daemon where another one was.
pub fn restarted(address: SocketAddr) -> Daemon {
    let mut command = crate::support::program();
    command.args(["--listen", &address.to_string()]);
    Daemon::run(command)
}

/// A server that answers what it is told to: nothing at all to a request, or these bytes, and closes if they are none. It has an
/// id all the same.
pub fn fake(answer: impl Fn(usize, &str) -> Option<Vec<u8>> + Send + Sync + 'static) -> SocketAddr {
    let listener = TcpListener::bind(("127.0.0.1", 0)).expect("a port");
    let address = listener.local_addr().expect("an address");
    let answer = std::sync::Arc::new(answer);
    std::thread::spawn(move || {
        for (number, client) in listener.incoming().flatten().enumerate() {
            let answer = answer.clone();
            std::thread::spawn(move || serve(number, client, |number, line| answer(number, line)));
        }
    });
    address
}

/// A server that says this to each client, whatever it is asked, and keeps the connection.
pub fn speaking(words: &'static [u8]) -> SocketAddr {
    let listener = TcpListener::bind(("127.0.0.1", 0)).expect("a port");
    let address = listener.local_addr().expect("an address");
    std::thread::spawn(move || {
        let mut clients = Vec::new();
        for mut client in listener.incoming().flatten() {
            // It may have gone.
            let _ = client.write_all(words);
            clients.push(client);
        }
    });
    address
}

fn serve(number: usize, client: TcpStream, answer: impl Fn(usize, &str) -> Option<Vec<u8>>) {
    let mut lines = BufReader::new(client.try_clone().expect("a descriptor"));
    let mut line = String::new();
    while lines.read_line(&mut line).is_ok_and(|read| read > 0) {
        match answer(number, line.trim_end()) {
            Some(reply) if reply.is_empty() => return,
            Some(reply) if line == "WHERE\n" && !reply.starts_with(b"ERR ") => {
                drop((&client).write_all(b"6f0c2a52-5f0e-4b7e-9a35-0c5f7f5a3c1e\n"));
            }
            Some(reply) => drop((&client).write_all(&reply)),
            None => {}
        }
        line.clear();
    }
}
