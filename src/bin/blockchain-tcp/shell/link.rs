//! The connection of a conversation, made anew when it is lost.

use std::io::{self, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::sync::mpsc;
use std::thread;
use std::time::Duration;

use blockchain_tcpd::dial::{Connection, Deadline, Failure, Reply};

use super::signals::{Interrupts, Wait};
use crate::options::Options;

/// How long a server that has closed, or should, may take to say its last words.
const LAST_WORDS: Duration = Duration::from_secs(1);

/// What the server says unasked when it has waited for too long.
const TIMEOUT: &str = "TIMEOUT";

/// What is said when the connection is found lost.
pub const LOST: &str = "connection lost; the next line connects again";

/// Why there is no reply.
#[derive(Debug)]
pub enum Trouble {
    /// The person doesn't want to wait any longer.
    Abandoned,
    /// It can't be had.
    Failed(Failure),
}

impl From<Trouble> for crate::failure::Failure {
    fn from(trouble: Trouble) -> Self {
        match trouble {
            Trouble::Failed(failure) => failure.into(),
            Trouble::Abandoned => crate::failure::Failure::System {
                action: "wait for the server",
                source: io::ErrorKind::Interrupted.into(),
            },
        }
    }
}

impl From<Failure> for Trouble {
    fn from(failure: Failure) -> Self {
        Trouble::Failed(failure)
    }
}

/// The way to the server.
pub struct Link<'a> {
    options: &'a Options,
    interrupts: Interrupts,
    /// What our own words begin with.
    name: &'static str,
    connection: Option<Connection>,
    /// How many connections there have been.
    connections: usize,
}

impl<'a> Link<'a> {
    /// A link that is not connected yet.
    pub fn new(options: &'a Options, interrupts: Interrupts, name: &'static str) -> Self {
        Link {
            options,
            interrupts,
            name,
            connection: None,
            connections: 0,
        }
    }

    /// Connects, unless it is connected.
    pub fn connect(&mut self) -> Result<(), Trouble> {
        if self.connection.is_none() {
            let connection = self.open()?;
            if self.connections > 0 {
                self.say(&format!("connected again to {}", connection.address()));
            }
            self.connections += 1;
            self.connection = Some(connection);
        }
        Ok(())
    }

    /// The server's address, if there is a connection.
    pub fn address(&self) -> Option<SocketAddr> {
        self.connection.as_ref().map(Connection::address)
    }

    /// The socket, if there is a connection.
    pub fn socket(&self) -> Option<&TcpStream> {
        self.connection.as_ref().map(Connection::socket)
    }

    /// How many connections there have been.
    pub fn connections(&self) -> usize {
        self.connections
    }

    /// Asks one thing.
    pub fn ask(&mut self, request: &[u8]) -> Result<Reply, Trouble> {
        self.ask_all(&[request])
            .map(|mut replies| replies.swap_remove(0))
    }

    /// Asks these things at once: their replies, at least one, and fewer than there are requests only if the server closes at one
    /// of them. It is asked again if the connection turns out to have been lost before.
    pub fn ask_all(&mut self, requests: &[&[u8]]) -> Result<Vec<Reply>, Trouble> {
        self.look();
        let was_connected = self.connection.is_some();
        let replies = self.exchange(requests);
        if was_connected && is_unheard(&replies) {
            self.connection = None;
            self.say("connection lost; asked again");
            return self.exchange(requests);
        }
        replies
    }

    /// Looks whether the connection is lost, and says so. What the server said before that is the result.
    pub fn look(&mut self) -> Option<Reply> {
        let connection = self.connection.take()?;
        if !connection.is_readable() {
            self.connection = Some(connection);
            return None;
        }
        let (words, text) = farewell(connection);
        self.say(&text);
        words
    }

    /// Lets go of the connection while somebody else watches it.
    pub fn lend(&mut self) -> Option<Connection> {
        self.connection.take()
    }

    /// Takes back what was lent; nothing if it was lost.
    pub fn take_back(&mut self, connection: Option<Connection>) {
        self.connection = connection;
    }

    /// Leaves, with this request or none, and waits until the server no longer counts us: its last words.
    pub fn leave(mut self, request: Option<&[u8]>) -> Option<Reply> {
        let mut connection = self.connection.take()?;
        let asked = request.filter(|_| !connection.is_readable());
        let reply = asked.and_then(|request| {
            let asked = connection.ask(request, Deadline::after(LAST_WORDS));
            asked.ok()
        });
        connection.finish();
        // If the end takes too long, that of this process is the end.
        let words = connection.line("nothing", Deadline::after(LAST_WORDS));
        reply.or(words.ok().map(Reply::from))
    }

    /// Says something about the connection.
    pub fn say(&self, text: &str) {
        say(self.name, text);
    }

    /// Connects in a thread, because a wait for a connection can't be ended.
    fn open(&self) -> Result<Connection, Trouble> {
        let (tell, told) = mpsc::channel();
        let opened = tell.clone();
        let (server, family) = (self.options.server.clone(), self.options.family());
        let deadline = Deadline::after(self.options.timeout);
        let open = move || {
            // Nobody waits any more if it was abandoned.
            let _ = opened.send(Some(Connection::open(&server, family, deadline)));
        };
        let opened = self.interrupts.during(Wait::Connection(tell), || {
            let thread = thread::Builder::new().name("connect".to_string());
            thread.spawn(open).map_err(Failure::Thread)?;
            // The handler of ^C sends nothing instead of it.
            told.recv().unwrap_or_default().transpose()
        });
        opened.transpose()?.flatten().ok_or(Trouble::Abandoned)
    }

    /// Asks over the connection, or a new one. After a failure there is none.
    fn exchange(&mut self, requests: &[&[u8]]) -> Result<Vec<Reply>, Trouble> {
        self.connect()?;
        let mut connection = self.connection.take().ok_or(Trouble::Abandoned)?;
        let timeout = self.options.timeout;
        // If there is no descriptor for it, ^C has no effect on this wait.
        let socket = connection.socket().try_clone().ok();
        let wait = socket.map_or(Wait::Nothing, Wait::Reply);
        let replies = self
            .interrupts
            .during(wait, || exchange(&mut connection, requests, timeout));
        let replies = replies.ok_or(Trouble::Abandoned)??;
        if !replies.iter().any(Reply::closes) {
            self.connection = Some(connection);
        }
        Ok(replies)
    }
}

/// Says something about the connection, line by line.
pub fn say(name: &str, text: &str) {
    let text: String = text.lines().map(|line| format!("{name}{line}\n")).collect();
    // There is nobody else to tell.
    let _ = io::stderr().write_all(text.as_bytes());
}

/// What a server said that has spoken unasked or closed, and what there is to say about it.
pub fn farewell(mut connection: Connection) -> (Option<Reply>, String) {
    let words = connection.line("nothing", Deadline::after(LAST_WORDS));
    match words.map(Reply::from) {
        Ok(words) => {
            let text = format!("{words}\n{LOST}");
            (Some(words), text)
        }
        Err(_) => (None, LOST.to_string()),
    }
}

fn exchange(
    connection: &mut Connection,
    requests: &[&[u8]],
    timeout: Duration,
) -> Result<Vec<Reply>, Failure> {
    let lines: Vec<u8> = requests
        .iter()
        .flat_map(|line| [line, &b"\n"[..]].concat())
        .collect();
    connection.send(&lines, Deadline::after(timeout))?;
    let mut replies = Vec::new();
    for request in requests {
        let request = String::from_utf8_lossy(request);
        let line = connection.line(&request, Deadline::after(timeout))?;
        replies.push(Reply::from(line));
        if replies.last().is_some_and(Reply::closes) {
            break;
        }
    }
    Ok(replies)
}

/// Whether the server had gone, as far as can be told: nothing came but the end.
fn is_unheard(replies: &Result<Vec<Reply>, Trouble>) -> bool {
    match replies {
        Ok(replies) => {
            matches!(replies.first(), Some(Reply::Refused { word, .. }) if word == TIMEOUT)
        }
        Err(Trouble::Failed(Failure::Closed { part, .. } | Failure::Broken { part, .. })) => {
            part.is_empty()
        }
        Err(_) => false,
    }
}
