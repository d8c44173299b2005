//! Connection to Redis or a Sentinel, with a deadline for each reply as a whole. The redis crate
//! encodes and parses the protocol, RESP3, in which push messages and replies share one connection
//! and arrive in order.
//!
//! The redis crate has connections too, but they can't be polled together with a waker, their
//! timeouts are for each read and not for a reply, and they look up names without a timeout.

use std::io;
use std::net::SocketAddr;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Arc;
use std::time::Instant;

use redis::{Cmd, PushKind, ServerError, Value};
use rustls::ClientConfig;

use super::framing::{Frame, find};
use crate::cluster::error::{ClusterError, ErrorKind, Result, printable};
use crate::cluster::stream::Stream;
use shared::dial::{DnsCache, Server};

/// Error codes, separated by blanks, that may be quoted from the reply to AUTH.
const CODES: &str = "DENIED ERR LOADING MASTERDOWN NOAUTH NOPERM NOPROTO OOM WRONGPASS";

/// Beginnings of error texts that may be quoted from the reply to AUTH. All other texts are left
/// out: they may hold the password or a part of it, and a search for it would reveal it by what is
/// missing.
const AUTH_ERRORS: [&str; 6] = [
    "Redis is running in protected mode",
    "invalid username-password pair or user is disabled",
    "max number of clients reached",
    "this user has no permissions",
    "unknown command",
    "wrong number of arguments",
];

/// Connection to Redis or a Sentinel.
pub struct RedisConnection {
    stream: Stream,
    server: Server,
    deadline: Instant,
    /// Bytes received and not parsed yet.
    received: Vec<u8>,
    /// Whether the current command holds a password.
    is_secret: bool,
    /// Last message received. Each message holds the whole state, so earlier ones are dropped.
    message: Option<Vec<u8>>,
}

impl AsFd for RedisConnection {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.stream.as_fd()
    }
}

impl RedisConnection {
    /// Connects to `server`, with TLS if `tls` is given.
    pub fn connect(
        server: &Server,
        dns: &DnsCache,
        tls: Option<Arc<ClientConfig>>,
        deadline: Instant,
    ) -> Result<Self> {
        let stream = Stream::connect(server, dns, tls, deadline);
        Ok(RedisConnection {
            stream: stream.map_err(|error| ClusterError::connection(server, &error))?,
            server: server.clone(),
            deadline,
            received: Vec::new(),
            is_secret: false,
            message: None,
        })
    }

    /// Returns the address that the connection was made to.
    pub fn address(&self) -> SocketAddr {
        self.stream.address()
    }

    /// Sets the deadline of all commands from now on.
    pub fn set_deadline(&mut self, deadline: Instant) {
        self.deadline = deadline;
    }

    /// Authenticates with AUTH. Without a `user`, that is Redis's default user.
    pub fn authenticate(&mut self, user: Option<&str>, password: String) -> Result<()> {
        let mut command = redis::cmd("AUTH");
        command.arg(user.unwrap_or("default")).arg(password);
        self.is_secret = true;
        self.query(&command)?;
        self.is_secret = false;
        Ok(())
    }

    /// Sends `command` and returns its reply. Keeps the last of the messages that arrive before the
    /// reply.
    pub fn query(&mut self, command: &Cmd) -> Result<Value> {
        self.send(command)?;
        loop {
            match self.receive()? {
                Value::Push { kind, data } => self.store_message(&kind, data),
                reply => return Ok(reply),
            }
        }
    }

    /// Subscribes to `channel`. Redis confirms that with a push message.
    pub fn subscribe(&mut self, channel: &str) -> Result<()> {
        self.send(redis::cmd("SUBSCRIBE").arg(channel))?;
        loop {
            match self.receive()? {
                Value::Push {
                    kind: PushKind::Subscribe,
                    ..
                } => return Ok(()),
                Value::Push { kind, data } => self.store_message(&kind, data),
                _ => return Err(self.unexpected()),
            }
        }
    }

    /// Reads the next value that has arrived, and keeps it if it is a message. Returns whether
    /// there was one: then there may be more in the buffer, which poll does not report.
    pub fn read_message(&mut self) -> Result<bool> {
        match self.next(Instant::now())? {
            Some(Value::Push { kind, data }) => self.store_message(&kind, data),
            Some(_) => return Err(self.unexpected()),
            None => return Ok(false),
        }
        Ok(true)
    }

    /// Takes the last message received.
    pub fn take_message(&mut self) -> Option<Vec<u8>> {
        self.message.take()
    }

    fn store_message(&mut self, kind: &PushKind, data: Vec<Value>) {
        // The channel name comes first, then the text.
        if let (PushKind::Message, Some(Value::BulkString(text))) = (kind, data.into_iter().nth(1))
        {
            self.message = Some(text);
        }
    }

    fn send(&mut self, command: &Cmd) -> Result<()> {
        self.stream.set_deadline(self.deadline);
        let sent = self.stream.send(&command.get_packed_command());
        sent.map_err(|error| self.failed(&error))
    }

    /// Returns the next value. Fails at the deadline, whatever has arrived: messages may come
    /// without end, and a reply that was received before a suspension is out of date.
    fn receive(&mut self) -> Result<Value> {
        let value = self.next(self.deadline)?;
        let value = value.filter(|_| Instant::now() < self.deadline);
        value.ok_or_else(|| ClusterError::late(&self.server))
    }

    /// Returns the next value, if it is complete by the deadline. Returns an error reply as an
    /// error.
    fn next(&mut self, deadline: Instant) -> Result<Option<Value>> {
        self.stream.set_deadline(deadline);
        loop {
            let invalid = match find(&self.received) {
                Frame::Complete(length) => {
                    let value = parse(&self.received[..length]);
                    self.received.drain(..length);
                    match value {
                        Some(Value::ServerError(error)) => return Err(self.error_reply(&error)),
                        Some(value) => return Ok(Some(value)),
                        None => "does not speak as Redis does",
                    }
                }
                Frame::TooLarge => "sends more than anybody asked for",
                Frame::Invalid => "does not speak as Redis does",
                Frame::Incomplete => {
                    let mut buffer = [0; 4096];
                    match self.stream.receive(&mut buffer) {
                        Ok(0) => return Err(self.closed()),
                        Ok(length) => self.received.extend_from_slice(&buffer[..length]),
                        Err(error) if error.kind() == io::ErrorKind::TimedOut => return Ok(None),
                        Err(error) => return Err(self.failed(&error)),
                    }
                    continue;
                }
            };
            return Err(self.error(ErrorKind::Refused, invalid));
        }
    }

    /// Creates an error that says `what` the server does.
    pub fn error(&self, kind: ErrorKind, what: &str) -> ClusterError {
        ClusterError::new(kind, format!("{} {what}", self.server))
    }

    fn unexpected(&self) -> ClusterError {
        self.error(ErrorKind::Refused, "says what nobody asked")
    }

    fn closed(&self) -> ClusterError {
        self.error(ErrorKind::Unreachable, "closes the connection")
    }

    fn failed(&self, error: &io::Error) -> ClusterError {
        match error.kind() {
            io::ErrorKind::UnexpectedEof => self.closed(),
            _ => ClusterError::connection(&self.server, error),
        }
    }

    fn error_reply(&self, reply: &ServerError) -> ClusterError {
        let (code, details) = (reply.code(), reply.details().unwrap_or_default());
        let (says, text) = match self.is_secret {
            true => ("says to AUTH", quote_auth_error(code, details)),
            false => ("says", printable(&quote_error(code, details))),
        };
        ClusterError {
            kind: error_kind(code, details),
            what: format!("{} {says}: {text}", self.server),
            code: code.to_string(),
            text,
        }
    }
}

/// Parses a complete value; `None` if it is not one. Unrequested values that the redis crate can't
/// parse are skipped: they become a message of unknown kind, or nil where a reply is due.
fn parse(bytes: &[u8]) -> Option<Value> {
    let ignored = Value::Push {
        kind: PushKind::Other(String::new()),
        data: Vec::new(),
    };
    match (bytes.first(), redis::parse_redis_value(bytes)) {
        // An attribute of the next value.
        (Some(b'|'), _) => Some(ignored),
        (_, Ok(value)) => Some(without_attributes(value)),
        (Some(b'>'), _) => Some(ignored),
        // Streamed values, which the redis crate can't parse.
        _ => {
            let mut lines = bytes.windows(4);
            let is_streamed =
                lines.any(|line| b"$*~%>|".contains(&line[0]) && line.ends_with(b"?\r\n"));
            is_streamed.then_some(Value::Nil)
        }
    }
}

/// Removes the attributes from a value.
fn without_attributes(value: Value) -> Value {
    let all = |values: Vec<Value>| values.into_iter().map(without_attributes).collect();
    match value {
        Value::Attribute { data, .. } => without_attributes(*data),
        Value::Array(values) => Value::Array(all(values)),
        Value::Push { kind, data } => Value::Push {
            kind,
            data: all(data),
        },
        value => value,
    }
}

/// Returns the kind of an error reply. Redis 6 embeds an error within a script unchanged in an
/// error of the script. Later versions report missing permissions by text and without a code: Redis
/// 7.0 with the first text below, Redis 7.2 and Valkey with the second.
fn error_kind(code: &str, details: &str) -> ErrorKind {
    let is = |word: &str| code == word || details.contains(&format!("-{word} "));
    let texts = [
        "The user executing the script can't ",
        "ACL failure in script",
    ];
    let denies = texts.iter().any(|text| details.contains(text));
    if denies || ["NOAUTH", "WRONGPASS", "NOPERM"].into_iter().any(is) {
        ErrorKind::Denied
    } else if is("READONLY") {
        ErrorKind::ReadOnly
    } else {
        ErrorKind::Refused
    }
}

/// Quotes an error, without the arguments that Redis repeats of an unknown command.
fn quote_error(code: &str, details: &str) -> String {
    let details = details.split(", with args").next().unwrap_or_default();
    format!("{code} {details}").trim_end().to_string()
}

/// Quotes an error reply to AUTH, restricted to the known codes and texts.
fn quote_auth_error(code: &str, details: &str) -> String {
    let code = CODES.split(' ').find(|known| *known == code);
    let mut texts = AUTH_ERRORS.into_iter();
    let details = texts.find(|text| details.starts_with(text));
    quote_error(code.unwrap_or("an error"), details.unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn errors_have_the_same_kind_within_scripts_of_all_versions() {
        use ErrorKind::{Denied, ReadOnly, Refused};
        for (kind, error) in [
            (Denied, "NOAUTH Authentication required."),
            (Denied, "WRONGPASS invalid username-password pair"),
            (Denied, "NOPERM this user has no permissions"),
            (
                Denied,
                "ERR The user executing the script can't run this command",
            ),
            (
                Denied,
                "ERR SCRIPT: The user executing the script can't access at least",
            ),
            (
                Denied,
                "ERR SCRIPT: @user_script: 15: -NOPERM No permissions to access",
            ),
            (
                Denied,
                "ERR ACL failure in script: User default has no permissions",
            ),
            (
                ReadOnly,
                "READONLY You can't write against a read only replica.",
            ),
            (
                ReadOnly,
                "ERR SCRIPT: @user_script: 15: -READONLY You can't write",
            ),
            (
                Refused,
                "ERR SCRIPT: @user_script: 15: -OOM command not allowed",
            ),
            (Refused, "OOM command not allowed"),
            (Refused, "ERR unknown command"),
        ] {
            let script = "Error running script (call to f_1f): @user_script:15";
            let error = error.replace("SCRIPT", script);
            let (code, details) = error.split_once(' ').unwrap();
            assert_eq!(error_kind(code, details), kind, "{error}");
        }
    }

    /// The error text can't depend on the password, whatever the server answers.
    #[test]
    fn a_reply_to_a_password_is_quoted_only_if_it_is_known() {
        for (code, details, quoted) in [
            (
                "ERR",
                "unknown command `AUTH`, with `hunt",
                "ERR unknown command",
            ),
            (
                "ERR",
                "unknown command 'AUTH hunter2'",
                "ERR unknown command",
            ),
            ("ERR", "hunter2 is no hunter2", "ERR"),
            ("hunter2", "", "an error"),
            (
                "OOM",
                "max number of clients reached.",
                "OOM max number of clients reached",
            ),
        ] {
            assert_eq!(quote_auth_error(code, details), quoted);
        }
    }
}
