//! The connection of a conversation, made anew when it is lost.

use std::fmt;
use std::net::{SocketAddr, TcpStream};
use std::sync::mpsc;
use std::thread;
use std::time::Duration;

use blockchain_tcpd::dial::{self, Connection, Deadline, Reply, Route, was_not_processed};

use super::signals::{Interrupts, Opened, Wait};
use crate::failure::{Failure, eprintln_line};
use crate::options::Options;

/// How long a server that has closed, or should, may take to say its last words.
const LAST_WORDS: Duration = Duration::from_secs(1);

/// What is said when the connection is found lost.
pub const LOST: &str = "connection lost; the next line connects again";

/// That the connection is lost, with what the server said unasked before.
pub struct Disconnected(pub Option<Failure>);

impl fmt::Display for Disconnected {
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
    route: Route,
    interrupts: Interrupts,
    /// What our own words begin with.
    name: &'static str,
    connection: Option<Connection>,
    /// How many connections there have been.
    connections: usize,
    /// Whether something was answered on the last of them.
    was_answered: bool,
}

impl<'a> Link<'a> {
    /// A link that is not connected yet.
    pub fn new(options: &'a Options, interrupts: Interrupts, name: &'static str) -> Self {
        Link {
            options,
            route: options.route(),
            interrupts,
            name,
            connection: None,
            connections: 0,
            was_answered: false,
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
        let (route, deadline) = (self.route.clone(), Deadline::after(self.options.timeout));
        let (connection, _) = self.opened(move || {
            route
                .open(deadline)
                .map(|connection| (connection, Vec::new()))
        })?;
        if self.connections > 0 {
            self.say(format_args!("connected again to {}", connection.address()));
        }
        self.connections += 1;
        self.was_answered = false;
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

    /// Asks these things at once, as [`Connection::ask_all`] does; once more if the connection turns out to have been lost before,
    /// and at the other addresses if this one has let us in and has never said anything.
    pub fn ask_all(&mut self, requests: &[&[u8]]) -> Result<Vec<Reply>, Failure> {
        let was_connected = self.connection.is_some();
        let mut replies = self.exchange(requests)?;
        if was_connected && was_not_processed(first(&replies)) {
            self.say("connection lost; asked again");
            replies = self.exchange(requests)?;
        }
        match replies {
            Err((silent, failure)) if !self.was_answered && failure.is_silence() => {
                self.ask_elsewhere(silent, failure, requests)
            }
            replies => Ok(replies.map_err(|(_, failure)| failure)?),
        }
    }

    /// Asks these things where this address is not, which has let us in and says nothing.
    fn ask_elsewhere(
        &mut self,
        silent: SocketAddr,
        failure: dial::Failure,
        requests: &[&[u8]],
    ) -> Result<Vec<Reply>, Failure> {
        let requests: Vec<Vec<u8>> = requests.iter().map(|request| request.to_vec()).collect();
        let (route, timeout) = (self.route.clone(), self.options.timeout);
        let (connection, replies) = self.opened(move || {
            route.ask_elsewhere(silent, failure, timeout, |mut connection, time| {
                let requests: Vec<&[u8]> = requests.iter().map(Vec::as_slice).collect();
                let replies = connection.ask_all(&requests, time)?;
                Ok((connection, replies))
            })
        })?;
        let address = connection.address();
        self.say(format_args!("no answer from {silent}; asked {address}"));
        self.connections += 1;
        self.was_answered = true;
        self.keep(connection, &replies);
        Ok(replies)
    }

    /// Looks whether the connection is lost.
    pub fn look(&mut self) -> Option<Disconnected> {
        let connection = self
            .connection
            .take_if(|connection| connection.is_readable());
        connection.map(read_final_message)
    }

    /// Lets go of the connection while somebody else watches it.
    pub fn take_connection(&mut self) -> Option<Connection> {
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
        let reply = connection
            .and_then(|connection| connection.ask(request, Deadline::after(LAST_WORDS)).ok());
        self.leave();
        reply
    }

    /// Leaves, and waits until the server no longer counts us: what it said before.
    pub fn leave(self) -> Option<Failure> {
        let connection = self.connection?;
        connection.finish();
        // If the end takes too long, that of this process is the end.
        read_final_message(connection).0
    }

    /// Says something about the connection.
    pub fn say(&self, text: impl fmt::Display) {
        say(self.name, text);
    }

    /// Connects in a thread, because a wait for a connection can't be ended.
    fn opened(
        &self,
        open: impl FnOnce() -> Opened + Send + 'static,
    ) -> Result<(Connection, Vec<Reply>), Failure> {
        let (tell, told) = mpsc::channel();
        let opened = tell.clone();
        let open = move || {
            // Nobody waits any more if it was abandoned.
            let _ = opened.send(Some(open()));
        };
        let opened = self.interrupts.during(Wait::Connection(tell), || {
            let thread = thread::Builder::new().name("connect".to_string());
            thread.spawn(open).map_err(dial::Failure::Thread)?;
            // The handler of ^C sends nothing instead of it.
            told.recv().unwrap_or_default().transpose()
        });
        opened.transpose()?.flatten().ok_or(Failure::Interrupted)
    }

    /// Asks over the connection, or a new one. After a failure there is none, and it is said at which address.
    fn exchange(&mut self, requests: &[&[u8]]) -> Result<Exchanged, Failure> {
        let mut connection = self.take()?;
        let address = connection.address();
        // If there is no descriptor for it, ^C has no effect on this wait.
        let socket = connection.socket().try_clone().ok();
        let wait = socket.map_or(Wait::Nothing, Wait::Reply);
        let time = Deadline::after(self.options.timeout);
        let replies = self
            .interrupts
            .during(wait, || connection.ask_all(requests, time));
        match replies.ok_or(Failure::Interrupted)? {
            Ok(replies) => {
                self.was_answered = true;
                self.keep(connection, &replies);
                Ok(Ok(replies))
            }
            Err(failure) => {
                if failure.is_silence() {
                    self.route.failed(address);
                }
                Ok(Err((address, failure)))
            }
        }
    }

    /// Keeps the connection, unless the server closes it after one of these replies.
    fn keep(&mut self, connection: Connection, replies: &[Reply]) {
        if !replies.iter().any(Reply::closes) {
            self.connection = Some(connection);
        }
    }
}

/// What was answered, or why nothing was, at which address.
type Exchanged = Result<Vec<Reply>, (SocketAddr, dial::Failure)>;

/// The first reply.
fn first(exchanged: &Exchanged) -> Result<&Reply, &dial::Failure> {
    match exchanged {
        Ok(replies) => Ok(&replies[0]),
        Err((_, failure)) => Err(failure),
    }
}

/// Says something about the connection, line by line.
pub fn say(name: &str, text: impl fmt::Display) {
    let text = text.to_string();
    let lines: Vec<String> = text.lines().map(|line| format!("{name}{line}")).collect();
    eprintln_line(lines.join("\n"));
}

/// How a connection ends on which the server has spoken unasked, or closed.
pub fn read_final_message(mut connection: Connection) -> Disconnected {
    let line = connection.line("nothing", Deadline::after(LAST_WORDS));
    Disconnected(match line.and_then(|line| Reply::read("nothing", &line)) {
        Ok(Reply::Refused { word, sentence }) => Some(Failure::Refused { word, sentence }),
        Ok(Reply::Value(value)) => {
            let part = value.into_bytes();
            Some(dial::Failure::More { part }.into())
        }
        Err(failure) if failure.is_foreign() => Some(failure.into()),
        Err(_) => None,
    })
}
