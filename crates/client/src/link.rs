//! Connection to the server for the tasks that send many requests; it reconnects after a loss.

use std::fmt;
use std::net::SocketAddr;
use std::time::Duration;

use shared::dial::{self, Connection, Deadline, FailureKind, Reply, Route, was_not_processed};

use crate::failure::{Failure, eprintln_line};
use crate::options::Options;

/// The longest wait for the final message of a server that has closed, or is about to.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(1);

/// Message when the connection is found lost.
pub const LOST: &str = "connection lost; the next line connects again";

/// The link to the server.
pub struct Link {
    route: Route,
    timeout: Duration,
    /// Prefix of messages about the connection; `None` prints none.
    name: Option<&'static str>,
    /// The connection; another thread may take it out to watch it.
    pub connection: Option<Connection>,
    /// Number of connections so far.
    connections: usize,
}

impl Link {
    /// Returns a link that is not connected yet.
    pub fn new(options: &Options, name: Option<&'static str>) -> Self {
        Link {
            route: options.route(),
            timeout: options.timeout,
            name,
            connection: None,
            connections: 0,
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
        let connection = self.route.open(self.timeout)?;
        if self.connections > 0 {
            self.say(format_args!("connected again to {}", connection.address()));
        }
        self.connections += 1;
        Ok(connection)
    }

    /// Returns the server's address, if the link is connected.
    pub fn address(&self) -> Option<SocketAddr> {
        self.connection.as_ref().map(Connection::address)
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
    /// connection turns out to have been lost before.
    pub fn ask_all(&mut self, requests: &[&[u8]]) -> Result<Vec<Reply>, Failure> {
        let was_connected = self.connection.is_some();
        let mut replies = self.exchange(requests)?;
        if was_connected && was_not_processed(replies.as_ref().map(|replies| &replies[0])) {
            self.say("connection lost; asked again");
            replies = self.exchange(requests)?;
        }
        Ok(replies?)
    }

    /// Sends the requests over the connection, or over a new one. After a failure the link is
    /// disconnected, and the next connection is to another address, if there is one.
    fn exchange(
        &mut self,
        requests: &[&[u8]],
    ) -> Result<Result<Vec<Reply>, dial::Failure>, Failure> {
        let mut connection = self.take()?;
        let replies = connection.ask_all(requests, self.timeout);
        match &replies {
            // The server closes the connection after some replies.
            Ok(replies) if replies.iter().any(Reply::closes) => {}
            Ok(_) => self.connection = Some(connection),
            Err(failure) if failure.is_no_reply() => self.route.failed(connection.address()),
            Err(_) => {}
        }
        Ok(replies)
    }

    /// Checks whether the connection is lost, and says so.
    pub fn check(&mut self) {
        let is_lost = |connection: &mut Connection| connection.is_readable();
        if let Some(connection) = self.connection.take_if(is_lost) {
            self.say(loss_of(connection));
        }
    }

    /// Sends this final request. Returns the reply, if it arrives.
    pub fn quit(&mut self, request: &[u8]) -> Option<Reply> {
        let connection = self.connection.as_mut();
        let connection = connection.filter(|connection| !connection.is_readable());
        connection
            .and_then(|connection| connection.ask(request, Deadline::after(CLOSE_TIMEOUT)).ok())
    }

    /// Closes, and waits until the server no longer counts this client. Returns its final message.
    pub fn close(self) -> Option<Failure> {
        let connection = self.connection?;
        connection.finish();
        // If that takes too long, the end of this process closes the connection.
        read_final_message(connection)
    }

    /// Prints a message about the connection.
    pub fn say(&self, text: impl fmt::Display) {
        if let Some(name) = self.name {
            let text = text.to_string();
            let lines: Vec<String> = text.lines().map(|line| format!("{name}{line}")).collect();
            eprintln_line(lines.join("\n"));
        }
    }
}

/// Reads the final message of a server that has closed the connection or sent something unasked.
fn read_final_message(mut connection: Connection) -> Option<Failure> {
    let line = connection.line("nothing", Deadline::after(CLOSE_TIMEOUT));
    match line.and_then(|line| Reply::read("nothing", &line)) {
        Ok(Reply::Refused(refusal)) => Some(refusal.into()),
        Ok(Reply::Value(value)) => Some(dial::Failure::more(value.as_bytes()).into()),
        Err(failure) if failure.kind == FailureKind::Foreign => Some(failure.into()),
        Err(_) => None,
    }
}

/// Returns the message about the loss of this connection, with the final message that the server
/// sent unasked.
pub fn loss_of(connection: Connection) -> String {
    match read_final_message(connection) {
        Some(message) => format!("{message}\n{LOST}"),
        None => LOST.to_string(),
    }
}
