//! Connection of the shell, which reconnects after a loss.

use std::fmt;
use std::net::{SocketAddr, TcpStream};
use std::sync::mpsc;
use std::thread;
use std::time::Duration;

use shared::dial::{self, Connection, Deadline, Reply, Route, was_not_processed};

use super::signals::{Interrupts, Opened, Wait};
use crate::failure::{Failure, eprintln_line};
use crate::options::Options;

/// The longest wait for the final message of a server that has closed, or is about to.
const LAST_WORDS: Duration = Duration::from_secs(1);

/// Message when the connection is found lost.
pub const LOST: &str = "connection lost; the next line connects again";

/// A lost connection, with the final message that the server sent unasked.
pub struct Disconnected(pub Option<Failure>);

impl fmt::Display for Disconnected {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(words) = &self.0 {
            writeln!(f, "{words}")?;
        }
        f.write_str(LOST)
    }
}

/// The link to the server.
pub struct Link<'a> {
    options: &'a Options,
    route: Route,
    interrupts: Interrupts,
    /// Prefix of this program's own messages.
    name: &'static str,
    connection: Option<Connection>,
    /// Addresses of the last lookup that were not tried.
    untried: Vec<SocketAddr>,
    /// Number of connections so far.
    connections: usize,
    /// Whether the last of them has had a reply.
    was_answered: bool,
}

impl<'a> Link<'a> {
    /// Returns a link that is not connected yet.
    pub fn new(options: &'a Options, interrupts: Interrupts, name: &'static str) -> Self {
        Link {
            options,
            route: options.route(),
            interrupts,
            name,
            connection: None,
            untried: Vec::new(),
            connections: 0,
            was_answered: false,
        }
    }

    /// Connects, unless the link is connected.
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
        let (connection, untried, _) = self.opened(move || {
            let (connection, untried) = route.open(deadline)?;
            Ok((connection, untried, Vec::new()))
        })?;
        self.untried = untried;
        if self.connections > 0 {
            self.say(format_args!("connected again to {}", connection.address()));
        }
        self.connections += 1;
        self.was_answered = false;
        Ok(connection)
    }

    /// Returns the server's address, if the link is connected.
    pub fn address(&self) -> Option<SocketAddr> {
        self.connection.as_ref().map(Connection::address)
    }

    /// Returns the socket, if the link is connected.
    pub fn socket(&self) -> Option<&TcpStream> {
        self.connection.as_ref().map(Connection::socket)
    }

    /// Returns the number of connections so far.
    pub fn connections(&self) -> usize {
        self.connections
    }

    /// Sends one request.
    pub fn ask(&mut self, request: &[u8]) -> Result<Reply, Failure> {
        self.ask_all(&[request])
            .map(|mut replies| replies.swap_remove(0))
    }

    /// Sends these requests at once, as [`Connection::ask_all`] does. Repeats them once if the
    /// connection turns out to have been lost before, and tries the other addresses if this one
    /// accepted the connection but never replied.
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

    /// Sends these requests to the addresses that were not tried, because `silent` accepted a
    /// connection but does not reply.
    fn ask_elsewhere(
        &mut self,
        silent: SocketAddr,
        failure: dial::Failure,
        requests: &[&[u8]],
    ) -> Result<Vec<Reply>, Failure> {
        let requests: Vec<Vec<u8>> = requests.iter().map(|request| request.to_vec()).collect();
        let (route, timeout) = (self.route.clone(), self.options.timeout);
        let untried = std::mem::take(&mut self.untried);
        let (connection, _, replies) = self.opened(move || {
            route.ask_elsewhere(untried, failure, timeout, |mut connection, time| {
                let requests: Vec<&[u8]> = requests.iter().map(Vec::as_slice).collect();
                let replies = connection.ask_all(&requests, time)?;
                Ok((connection, Vec::new(), replies))
            })
        })?;
        let address = connection.address();
        self.say(format_args!("no answer from {silent}; asked {address}"));
        self.connections += 1;
        self.was_answered = true;
        self.keep(connection, &replies);
        Ok(replies)
    }

    /// Checks whether the connection is lost.
    pub fn look(&mut self) -> Option<Disconnected> {
        let connection = self
            .connection
            .take_if(|connection| connection.is_readable());
        connection.map(read_final_message)
    }

    /// Takes the connection out while another thread watches it.
    pub fn take_connection(&mut self) -> Option<Connection> {
        self.connection.take()
    }

    /// Puts the connection back, or `None` if it was lost.
    pub fn take_back(&mut self, connection: Option<Connection>) {
        self.connection = connection;
    }

    /// Sends this final request and closes. Returns the reply, if it arrives.
    pub fn quit(mut self, request: &[u8]) -> Option<Reply> {
        let connection = self.connection.as_mut();
        let connection = connection.filter(|connection| !connection.is_readable());
        let reply = connection
            .and_then(|connection| connection.ask(request, Deadline::after(LAST_WORDS)).ok());
        self.leave();
        reply
    }

    /// Closes, and waits until the server no longer counts this client. Returns its final message.
    pub fn leave(self) -> Option<Failure> {
        let connection = self.connection?;
        connection.finish();
        // If that takes too long, the end of this process closes the connection.
        read_final_message(connection).0
    }

    /// Prints a message about the connection.
    pub fn say(&self, text: impl fmt::Display) {
        say(self.name, text);
    }

    /// Connects in a thread, because connecting can't be interrupted.
    fn opened(
        &self,
        open: impl FnOnce() -> Opened + Send + 'static,
    ) -> Result<(Connection, Vec<SocketAddr>, Vec<Reply>), Failure> {
        let (tell, told) = mpsc::channel();
        let opened = tell.clone();
        let open = move || {
            // It fails if the wait was abandoned.
            let _ = opened.send(Some(open()));
        };
        let opened = self.interrupts.during(Wait::Connection(tell), || {
            let thread = thread::Builder::new().name("connect".to_string());
            thread.spawn(open).map_err(dial::Failure::Thread)?;
            // The handler of ^C sends `None` instead.
            told.recv().unwrap_or_default().transpose()
        });
        opened.transpose()?.flatten().ok_or(Failure::Interrupted)
    }

    /// Sends the requests over the connection, or over a new one. After a failure the link is
    /// disconnected; the failure comes with the address.
    fn exchange(&mut self, requests: &[&[u8]]) -> Result<Exchanged, Failure> {
        let mut connection = self.take()?;
        let address = connection.address();
        // If the descriptor can't be duplicated, ^C has no effect on this wait.
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

/// The replies, or a failure and the address at which it occurred.
type Exchanged = Result<Vec<Reply>, (SocketAddr, dial::Failure)>;

/// Returns the first reply or the failure.
fn first(exchanged: &Exchanged) -> Result<&Reply, &dial::Failure> {
    match exchanged {
        Ok(replies) => Ok(&replies[0]),
        Err((_, failure)) => Err(failure),
    }
}

/// Prints a message about the connection, with the prefix `name` on each line.
pub fn say(name: &str, text: impl fmt::Display) {
    let text = text.to_string();
    let lines: Vec<String> = text.lines().map(|line| format!("{name}{line}")).collect();
    eprintln_line(lines.join("\n"));
}

/// Reads the final message of a server that has closed the connection or sent something unasked.
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
