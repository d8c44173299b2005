//! The connection of a conversation, made anew when it is lost.

use std::fmt;
use std::net::{SocketAddr, TcpStream};
use std::sync::mpsc;
use std::thread;
use std::time::Duration;

use blockchain_tcpd::dial::{self, Connection, Deadline, Reply, is_unheard};

use super::signals::{Interrupts, Wait};
use crate::failure::{Failure, complain};
use crate::options::Options;

/// How long a server that has closed, or should, may take to say its last words.
const LAST_WORDS: Duration = Duration::from_secs(1);

/// What is said when the connection is found lost.
pub const LOST: &str = "connection lost; the next line connects again";

/// That the connection is lost, with what the server said unasked before.
pub struct Loss(pub Option<Failure>);

impl fmt::Display for Loss {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(words) = &self.0 {
            writeln!(f, "{words}")?;
        }
        f.write_str(LOST)
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
    pub fn connect(&mut self) -> Result<(), Failure> {
        self.connection = Some(self.take()?);
        Ok(())
    }

    /// Takes the connection, or a new one.
    fn take(&mut self) -> Result<Connection, Failure> {
        if let Some(connection) = self.connection.take() {
            return Ok(connection);
        }
        let connection = self.open()?;
        if self.connections > 0 {
            self.say(format_args!("connected again to {}", connection.address()));
        }
        self.connections += 1;
        Ok(connection)
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
    pub fn ask(&mut self, request: &[u8]) -> Result<Reply, Failure> {
        self.ask_all(&[request])
            .map(|mut replies| replies.swap_remove(0))
    }

    /// Asks these things at once, as [`Connection::ask_all`] does; once more if the connection turns out to have been lost before.
    pub fn ask_all(&mut self, requests: &[&[u8]]) -> Result<Vec<Reply>, Failure> {
        let was_connected = self.connection.is_some();
        let mut replies = self.exchange(requests)?;
        if was_connected && is_unheard(replies.as_ref().map(|replies| &replies[0])) {
            self.say("connection lost; asked again");
            replies = self.exchange(requests)?;
        }
        Ok(replies?)
    }

    /// Looks whether the connection is lost.
    pub fn look(&mut self) -> Option<Loss> {
        let connection = self
            .connection
            .take_if(|connection| connection.is_readable());
        connection.map(farewell)
    }

    /// Lets go of the connection while somebody else watches it.
    pub fn lend(&mut self) -> Option<Connection> {
        self.connection.take()
    }

    /// Takes back what was lent; nothing if it was lost.
    pub fn take_back(&mut self, connection: Option<Connection>) {
        self.connection = connection;
    }

    /// Leaves with this request: the reply, if it comes.
    pub fn quit(mut self, request: &[u8]) -> Option<Reply> {
        let connection = self.connection.as_mut();
        let connection = connection.filter(|connection| !connection.is_readable());
        let reply = connection.and_then(|connection| connection.ask(request, LAST_WORDS).ok());
        self.leave();
        reply
    }

    /// Leaves, and waits until the server no longer counts us: what it said before.
    pub fn leave(self) -> Option<Failure> {
        let connection = self.connection?;
        connection.finish();
        // If the end takes too long, that of this process is the end.
        farewell(connection).0
    }

    /// Says something about the connection.
    pub fn say(&self, text: impl fmt::Display) {
        say(self.name, text);
    }

    /// Connects in a thread, because a wait for a connection can't be ended.
    fn open(&self) -> Result<Connection, Failure> {
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
            thread.spawn(open).map_err(dial::Failure::Thread)?;
            // The handler of ^C sends nothing instead of it.
            told.recv().unwrap_or_default().transpose()
        });
        opened.transpose()?.flatten().ok_or(Failure::Interrupted)
    }

    /// Asks over the connection, or a new one. After a failure there is none.
    fn exchange(
        &mut self,
        requests: &[&[u8]],
    ) -> Result<Result<Vec<Reply>, dial::Failure>, Failure> {
        let mut connection = self.take()?;
        // If there is no descriptor for it, ^C has no effect on this wait.
        let socket = connection.socket().try_clone().ok();
        let wait = socket.map_or(Wait::Nothing, Wait::Reply);
        let timeout = self.options.timeout;
        let replies = self
            .interrupts
            .during(wait, || connection.ask_all(requests, timeout));
        let replies = replies.ok_or(Failure::Interrupted)?;
        let goes_on = |replies: &Vec<Reply>| !replies.iter().any(Reply::closes);
        if replies.as_ref().is_ok_and(goes_on) {
            self.connection = Some(connection);
        }
        Ok(replies)
    }
}

/// Says something about the connection, line by line.
pub fn say(name: &str, text: impl fmt::Display) {
    let text = text.to_string();
    let lines: Vec<String> = text.lines().map(|line| format!("{name}{line}")).collect();
    complain(lines.join("\n"));
}

/// How a connection ends on which the server has spoken unasked, or closed.
pub fn farewell(mut connection: Connection) -> Loss {
    let line = connection.line("nothing", Deadline::after(LAST_WORDS));
    Loss(match line.and_then(|line| Reply::read("nothing", &line)) {
        Ok(Reply::Refused { word, sentence }) => Some(Failure::Refused { word, sentence }),
        Ok(Reply::Value(value)) => {
            let part = value.into_bytes();
            Some(dial::Failure::More { part }.into())
        }
        Err(failure) if failure.is_foreign() => Some(failure.into()),
        Err(_) => None,
    })
}
