//! Connection to Redis or a Sentinel, with a deadline for each reply as a whole. The redis crate
//! encodes and parses the protocol, RESP3, in which push messages and replies share one connection
//! and arrive in order.
//!
//! The redis crate has connections too, but they can't be polled together with a waker, their
//! timeouts are for each read and not for a reply, and they look up names without a timeout.

use std::error::Error as _;
use std::io::{self, Read as _};
use std::net::SocketAddr;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Arc;
use std::time::Instant;

use redis::{Cmd, Parser, PushKind, ServerError, Value};

use crate::cluster::error::{ClusterError, ErrorKind, Result, printable};
use crate::cluster::stream::Stream;
use crate::config::options::Credentials;
use shared::dial::{DnsCache, Server};

/// Largest size of a value in bytes. The longest expected one is the reply to HELLO, which
/// describes the Redis server and its modules.
const MAX_VALUE_SIZE: u64 = 64 * 1024;

/// Beginnings of error replies that may be quoted from the reply to AUTH. All other texts are left
/// out: they may hold the password or a part of it, and a search for it would reveal it by what is
/// missing.
const AUTH_ERRORS: [&str; 13] = [
    "DENIED Redis is running in protected mode",
    "ERR max number of clients reached",
    "ERR unknown command",
    "ERR wrong number of arguments",
    "NOPERM this user has no permissions",
    "WRONGPASS invalid username-password pair or user is disabled",
    "ERR",
    "LOADING",
    "MASTERDOWN",
    "NOAUTH",
    "NOPROTO",
    "OOM",
    "WRONGPASS",
];

type SharedError = Arc<dyn std::error::Error + Send + Sync>;

/// Connection to Redis or a Sentinel.
pub struct RedisConnection {
    stream: Stream,
    server: Server,
    deadline: Instant,
    parser: Parser,
    /// Number of bytes that the current value may still have.
    left: u64,
    /// Whether the current command holds a password.
    is_secret: bool,
    /// Last message received. Each message holds the whole state, so earlier ones are dropped.
    pub message: Option<Vec<u8>>,
}

impl AsFd for RedisConnection {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.stream.as_fd()
    }
}

impl RedisConnection {
    /// Connects to `server`, over TLS if there are credentials for it.
    pub fn connect(
        server: &Server,
        dns: &DnsCache,
        tls: Option<&Credentials>,
        deadline: Instant,
    ) -> Result<Self> {
        Ok(RedisConnection {
            stream: Stream::connect(server, dns, tls, deadline)?,
            server: server.clone(),
            deadline,
            parser: Parser::new(),
            left: MAX_VALUE_SIZE,
            is_secret: false,
            message: None,
        })
    }

    /// Returns the address that the connection was made to.
    pub fn address(&self) -> SocketAddr {
        self.stream.address
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

    /// Sends `command` and returns its reply; Redis confirms SUBSCRIBE with a push message. Keeps
    /// the last of the messages that arrive before the reply.
    pub fn query(&mut self, command: &Cmd) -> Result<Value> {
        self.stream.set_deadline(self.deadline);
        let sent = self.stream.send(&command.get_packed_command());
        sent.map_err(|error| self.failed(&error))?;
        loop {
            // Fails at the deadline, whatever has arrived: messages may come without end, and a
            // reply that was received before a suspension is out of date.
            let value = self.next(self.deadline)?;
            match value.filter(|_| Instant::now() < self.deadline) {
                None => return Err(self.error(ErrorKind::Late, "does not answer in time")),
                Some(Value::Push { kind, data }) if kind != PushKind::Subscribe => {
                    self.store_message(&kind, data);
                }
                Some(reply) => return Ok(reply),
            }
        }
    }

    /// Reads the next value that has arrived, and keeps it if it is a message. Returns whether
    /// there was one: then there may be more in the buffer, which poll does not report.
    pub fn read_message(&mut self) -> Result<bool> {
        match self.next(Instant::now())? {
            Some(Value::Push { kind, data }) => self.store_message(&kind, data),
            Some(_) => return Err(self.error(ErrorKind::Refused, "says what nobody asked")),
            None => return Ok(false),
        }
        Ok(true)
    }

    fn store_message(&mut self, kind: &PushKind, data: Vec<Value>) {
        // The channel name comes first, then the text.
        if let (PushKind::Message, Some(Value::BulkString(text))) = (kind, data.into_iter().nth(1))
        {
            self.message = Some(text);
        }
    }

    /// Returns the next value, if it is complete by the deadline. Returns an error reply as an
    /// error.
    fn next(&mut self, deadline: Instant) -> Result<Option<Value>> {
        self.stream.set_deadline(deadline);
        let mut bounded = (&mut self.stream).take(self.left);
        let parsed = self.parser.parse_value(&mut bounded);
        self.left = bounded.limit();
        let error = match parsed {
            Ok(mut value) => {
                self.left = MAX_VALUE_SIZE;
                while let Value::Attribute { data, .. } = value {
                    value = *data;
                }
                return match value {
                    Value::ServerError(error) => Err(self.error_reply(&error)),
                    value => Ok(Some(value)),
                };
            }
            Err(error) if error.is_timeout() => return Ok(None),
            Err(error) => error,
        };
        // The crate shares the error of the stream, which says more than its own.
        let shared = error
            .source()
            .and_then(|source| source.downcast_ref::<SharedError>());
        let source = shared.and_then(|error| error.downcast_ref());
        Err(match source {
            _ if self.left == 0 => {
                self.error(ErrorKind::Refused, "sends more than anybody asked for")
            }
            Some(error) => self.failed(error),
            None => self.error(ErrorKind::Refused, "does not speak as Redis does"),
        })
    }

    /// Creates an error that says `what` the server does.
    pub fn error(&self, kind: ErrorKind, what: &str) -> ClusterError {
        ClusterError::new(kind, format!("{} {what}", self.server))
    }

    fn failed(&self, error: &io::Error) -> ClusterError {
        match error.kind() {
            io::ErrorKind::UnexpectedEof => {
                self.error(ErrorKind::Unreachable, "closes the connection")
            }
            _ => ClusterError::connection(&self.server, error),
        }
    }

    fn error_reply(&self, reply: &ServerError) -> ClusterError {
        let (code, details) = (reply.code(), reply.details().unwrap_or_default());
        let (says, text) = match self.is_secret {
            true => ("says to AUTH", quote_auth_error(code, details)),
            false => ("says", printable(&quote_error(code, details))),
        };
        let what = format!("{} {says}: {text}", self.server);
        ClusterError {
            code: code.to_string(),
            ..ClusterError::new(error_kind(code, details), what)
        }
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

/// Quotes an error reply to AUTH as far as it is known.
fn quote_auth_error(code: &str, details: &str) -> String {
    let reply = quote_error(code, details);
    let known = AUTH_ERRORS.iter().find(|known| reply.starts_with(**known));
    known.unwrap_or(&"an error").to_string()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cluster::STACK_SIZE;

    /// Errors with their kinds, also as the errors of a script.
    const ERRORS: &str = "\
Denied: NOAUTH Authentication required.
Denied: WRONGPASS invalid username-password pair
Denied: NOPERM this user has no permissions
Denied: ERR The user executing the script can't run this command
Denied: ERR SCRIPT: The user executing the script can't access at least
Denied: ERR SCRIPT: @user_script: 15: -NOPERM No permissions to access
Denied: ERR ACL failure in script: User default has no permissions
ReadOnly: READONLY You can't write against a read only replica.
ReadOnly: ERR SCRIPT: @user_script: 15: -READONLY You can't write
Refused: ERR SCRIPT: @user_script: 15: -OOM command not allowed
Refused: OOM command not allowed
Refused: ERR unknown command";

    #[test]
    fn errors_have_the_same_kind_within_scripts_of_all_versions() {
        for line in ERRORS.lines() {
            let (kind, error) = line.split_once(": ").unwrap();
            let script = "Error running script (call to f_1f): @user_script:15";
            let error = error.replace("SCRIPT", script);
            let (code, details) = error.split_once(' ').unwrap();
            assert_eq!(format!("{:?}", error_kind(code, details)), kind, "{error}");
        }
    }

    /// Values of all types, in which `/` stands for a line end.
    const VALUES: &str = "\
+OK/ +/ :-7/ _/ $-1/ *-1/ ,-1.5e3/ #t/ #f/ (34928903284093850943850943825024385/ $0// $4//// *0/ ~1/:1/ \
*3/*0/*1/:1/$1/*/ %1/+a/*1/_/ %2/+a/:1/+b/:2/ ~2/+a/#t/ =5/txt:x/ >3/$7/message/$1/x/$1/y/ -ERR/ !3/ERR/ \
|1/+ttl/:3600/*1/:1/ *2/|1/+ttl/:3600/:1/:2/";

    /// A stream that times out after each byte.
    struct Dribble<'a>(&'a [u8], bool);

    impl io::Read for Dribble<'_> {
        fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
            self.1 = !self.1;
            match self.1 {
                true => Err(io::ErrorKind::TimedOut.into()),
                false => self.0.read(&mut buffer[..1]),
            }
        }
    }

    #[test]
    fn a_value_may_come_in_any_pieces() {
        let mut parser = Parser::new();
        for text in VALUES.split(' ').map(|text| text.replace('/', "\r\n")) {
            let whole = redis::parse_redis_value(text.as_bytes()).unwrap();
            let mut pieces = Dribble(text.as_bytes(), false);
            let value = loop {
                match parser.parse_value(&mut pieces) {
                    Err(error) if error.is_timeout() => {}
                    parsed => break parsed.unwrap(),
                }
            };
            assert_eq!((value, pieces.0), (whole, &b""[..]), "{text:?}");
        }
    }

    /// The redis crate refuses a value that is deeper than a hundred levels.
    #[test]
    fn a_value_that_is_too_deep_is_refused_within_the_stack() {
        let thread = std::thread::Builder::new().stack_size(STACK_SIZE / 2);
        let parsed = thread.spawn(|| {
            for level in ["*1\r\n", "~1\r\n", ">1\r\n", "%1\r\n+a\r\n", "|1\r\n+a\r\n"] {
                let deep = |depth| format!("{}:1\r\n", level.repeat(depth)).into_bytes();
                assert!(redis::parse_redis_value(&deep(10_000)).is_err(), "{level}");
            }
        });
        parsed.unwrap().join().unwrap();
    }
}
