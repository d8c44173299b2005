//! Connection to Redis or a Sentinel, with deadlines and bounded replies. The redis crate encodes
//! and parses the protocol, RESP3, in which push messages and replies share one connection and
//! arrive in order.

use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Arc;
use std::time::{Duration, Instant};

use redis::{Cmd, PushKind, ServerError, Value};
use rustix::event::{PollFd, PollFlags};
use rustix::io::Errno;
use rustls::pki_types::ServerName;
use rustls::{ClientConfig, ClientConnection, StreamOwned};

use super::framing::{Bad, Found, find};
use crate::cluster::error::{ClusterError, ErrorKind, cut};
use crate::cluster::settings::Host;
use crate::cluster::tls;
use crate::waker::poll_until;
use shared::dial::DnsCache;
use shared::dial::socket::is_closed_by_peer;

/// Error codes that may be quoted from the reply to AUTH.
const CODES: [&str; 9] = [
    "DENIED",
    "ERR",
    "LOADING",
    "MASTERDOWN",
    "NOAUTH",
    "NOPERM",
    "NOPROTO",
    "OOM",
    "WRONGPASS",
];

/// Beginnings of error texts that may be quoted from the reply to AUTH. All other texts are left
/// out: they may hold the password or a part of it, and a search for it would reveal it by what is
/// missing.
const ANSWERS: [&str; 6] = [
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
    address: SocketAddr,
    /// Bytes received and not parsed yet.
    arrived: Vec<u8>,
    /// Host and port, for errors.
    host: String,
    /// Whether the current command holds a password.
    is_secret: bool,
    /// Last message received. Each message holds the whole state, so earlier ones are dropped.
    message: Option<Vec<u8>>,
}

enum Stream {
    Plain(Socket),
    Tls(Box<StreamOwned<ClientConnection, Socket>>),
}

impl Stream {
    fn socket(&self) -> &TcpStream {
        match self {
            Stream::Plain(socket) => &socket.0,
            Stream::Tls(stream) => &stream.sock.0,
        }
    }

    fn halves(&mut self) -> &mut (dyn ReadWrite + Send) {
        match self {
            Stream::Plain(socket) => socket,
            Stream::Tls(stream) => stream.as_mut(),
        }
    }
}

/// Socket to which writes succeed after the server has closed: what the server sent before, such as
/// a TLS alert, is read instead. rustls would not read on after a failed write.
struct Socket(TcpStream);

impl Read for Socket {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        self.0.read(buffer)
    }
}

impl Write for Socket {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        match self.0.write(bytes) {
            Err(error) if is_closed_by_peer(&error) => Ok(bytes.len()),
            written => written,
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        self.0.flush()
    }
}

trait ReadWrite: Read + Write {}
impl<T: Read + Write> ReadWrite for T {}

impl AsFd for RedisConnection {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.stream.socket().as_fd()
    }
}

impl RedisConnection {
    /// Connects to `host`, with TLS if `tls` is given.
    pub fn connect(
        host: &Host,
        names: &DnsCache,
        tls: Option<Arc<ClientConfig>>,
        deadline: Instant,
    ) -> Result<Self, ClusterError> {
        let name = host.to_string();
        let lost = |error: io::Error| unreachable(&name, &error);
        let (socket, address) = names
            .connect(&host.name, host.port, deadline)
            .map_err(lost)?;
        socket.set_nonblocking(true).map_err(lost)?;
        let socket = Socket(socket);
        let stream = match tls {
            None => Stream::Plain(socket),
            Some(config) => {
                let server = ServerName::try_from(host.name.clone()).map_err(|_| {
                    ClusterError::new(
                        ErrorKind::Denied,
                        format!("{name} is not a name for a certificate"),
                    )
                })?;
                let client = ClientConnection::new(config, server).map_err(|error| {
                    ClusterError::new(ErrorKind::Denied, format!("{name}: {error}"))
                })?;
                Stream::Tls(Box::new(StreamOwned::new(client, socket)))
            }
        };
        Ok(RedisConnection {
            stream,
            address,
            arrived: Vec::new(),
            host: name,
            is_secret: false,
            message: None,
        })
    }

    /// Returns the address that the connection was made to.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Authenticates with AUTH. Without a `user`, that is Redis's default user.
    pub fn authenticate(
        &mut self,
        user: Option<&str>,
        password: String,
        deadline: Instant,
    ) -> Result<(), ClusterError> {
        let mut command = redis::cmd("AUTH");
        command.arg(user.unwrap_or("default")).arg(password);
        self.is_secret = true;
        self.ask(&command, deadline)?;
        self.is_secret = false;
        Ok(())
    }

    /// Sends `command` and returns its reply. Keeps the last of the messages that arrive before the
    /// reply.
    pub fn ask(&mut self, command: &Cmd, deadline: Instant) -> Result<Value, ClusterError> {
        self.send(&command.get_packed_command(), deadline)?;
        loop {
            match self.wait_for_next(deadline)? {
                Value::Push { kind, data } => self.keep(&kind, data),
                value => {
                    // A reply that was received before a suspension is out of date.
                    self.left(deadline)?;
                    return Ok(value);
                }
            }
            // Messages may come without end.
            self.left(deadline)?;
        }
    }

    /// Subscribes to `channel`. Redis confirms that with a push message.
    pub fn subscribe(&mut self, channel: &str, deadline: Instant) -> Result<(), ClusterError> {
        let command = redis::cmd("SUBSCRIBE").arg(channel).get_packed_command();
        self.send(&command, deadline)?;
        loop {
            match self.wait_for_next(deadline)? {
                Value::Push {
                    kind: PushKind::Subscribe,
                    ..
                } => return Ok(()),
                Value::Push { kind, data } => self.keep(&kind, data),
                _ => return Err(self.trouble("says what nobody asked")),
            }
            self.left(deadline)?;
        }
    }

    /// Reads the next value, if it is complete, and keeps it if it is a message. Returns whether
    /// there was one: then there may be more in the buffer, which poll does not report.
    pub fn hear(&mut self) -> Result<bool, ClusterError> {
        match self.next()? {
            Some(Value::Push { kind, data }) => {
                self.keep(&kind, data);
                Ok(true)
            }
            Some(Value::ServerError(error)) => Err(self.refused(&error)),
            Some(_) => Err(self.trouble("says what nobody asked")),
            None => Ok(false),
        }
    }

    /// Takes the last message received.
    pub fn message(&mut self) -> Option<Vec<u8>> {
        self.message.take()
    }

    fn keep(&mut self, kind: &PushKind, data: Vec<Value>) {
        // The channel name comes first, then the text.
        if let (PushKind::Message, Some(Value::BulkString(text))) = (kind, data.into_iter().nth(1))
        {
            self.message = Some(text);
        }
    }

    /// Waits for the next value. Returns an error reply as an error.
    fn wait_for_next(&mut self, deadline: Instant) -> Result<Value, ClusterError> {
        loop {
            match self.next()? {
                Some(Value::ServerError(error)) => return Err(self.refused(&error)),
                Some(value) => return Ok(value),
                None => self.wait(PollFlags::IN, deadline)?,
            }
        }
    }

    /// Returns the next value, if it is complete.
    fn next(&mut self) -> Result<Option<Value>, ClusterError> {
        let nonsense = "does not speak as Redis does";
        loop {
            match find(&self.arrived) {
                Found::Whole(length) => {
                    let value = read(&self.arrived[..length]);
                    self.arrived.drain(..length);
                    return value.map(Some).ok_or_else(|| self.trouble(nonsense));
                }
                Found::Bad(Bad::TooMuch) => {
                    return Err(self.trouble("sends more than anybody asked for"));
                }
                Found::Bad(Bad::Nonsense) => return Err(self.trouble(nonsense)),
                Found::Part => {}
            }
            let mut buffer = [0; 4096];
            match self.stream.halves().read(&mut buffer) {
                Ok(0) => return Err(self.closed()),
                Ok(read) => self.arrived.extend_from_slice(&buffer[..read]),
                Err(error) if is_blocked(&error) => return Ok(None),
                Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => {
                    return Err(self.closed());
                }
                Err(error) => return Err(self.lost(&error)),
            }
        }
    }

    fn send(&mut self, mut bytes: &[u8], deadline: Instant) -> Result<(), ClusterError> {
        loop {
            let stream = self.stream.halves();
            let done = match bytes {
                [] => stream.flush(),
                _ => stream.write(bytes).map(|written| bytes = &bytes[written..]),
            };
            match done {
                Ok(()) if bytes.is_empty() && !self.is_behind() => return Ok(()),
                Ok(()) => {}
                Err(error) if is_blocked(&error) => {}
                Err(error) => return Err(self.lost(&error)),
            }
            let events = match &self.stream {
                Stream::Tls(stream) if !stream.conn.wants_write() => PollFlags::IN,
                _ => PollFlags::OUT,
            };
            self.wait(events, deadline)?;
        }
    }

    /// Returns whether written bytes wait to be sent.
    fn is_behind(&self) -> bool {
        match &self.stream {
            Stream::Plain(_) => false,
            Stream::Tls(stream) => stream.conn.wants_write() || stream.conn.is_handshaking(),
        }
    }

    fn wait(&self, events: PollFlags, deadline: Instant) -> Result<(), ClusterError> {
        self.left(deadline)?;
        match poll_until(&mut [PollFd::new(self, events)], deadline) {
            Ok(_) | Err(Errno::INTR) => Ok(()),
            Err(error) => Err(self.lost(&error.into())),
        }
    }

    /// Returns the remaining time; an error if there is none.
    fn left(&self, deadline: Instant) -> Result<Duration, ClusterError> {
        let left = deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Err(self.late("does not answer in time"));
        }
        Ok(left)
    }

    /// Creates a timeout error.
    pub fn late(&self, what: &str) -> ClusterError {
        ClusterError::new(ErrorKind::Late, format!("{} {what}", self.host))
    }

    fn trouble(&self, what: &str) -> ClusterError {
        ClusterError::new(ErrorKind::Refused, format!("{} {what}", self.host))
    }

    fn closed(&self) -> ClusterError {
        let what = format!("{} closes the connection", self.host);
        ClusterError::new(ErrorKind::Unreachable, what)
    }

    fn lost(&self, error: &io::Error) -> ClusterError {
        unreachable(&self.host, error)
    }

    fn refused(&self, error: &ServerError) -> ClusterError {
        let (code, details) = (error.code(), error.details().unwrap_or_default());
        let (says, said) = match self.is_secret {
            true => ("says to AUTH", known(code, details)),
            false => ("says", cut(&quote(code, details))),
        };
        let what = format!("{} {says}: {said}", self.host);
        let mut trouble = ClusterError::new(sort(code, details), what);
        trouble.code = code.to_string();
        trouble.said = said;
        trouble
    }
}

/// Parses a complete value; `None` if it is not one. Unrequested values that the redis crate can't
/// parse are skipped: they become a message of unknown kind, or nil where a reply is due.
fn read(bytes: &[u8]) -> Option<Value> {
    let message = || Value::Push {
        kind: PushKind::Other(String::new()),
        data: Vec::new(),
    };
    // Streamed values, which the redis crate can't parse.
    let is_streamed = || {
        let mut lines = bytes.windows(4);
        lines.any(|line| b"$*~%>|".contains(&line[0]) && line.ends_with(b"?\r\n"))
    };
    match (bytes.first(), redis::parse_redis_value(bytes)) {
        // An attribute of the next value.
        (Some(b'|'), _) => Some(message()),
        (_, Ok(value)) => Some(without_attributes(value)),
        (Some(b'>'), _) => Some(message()),
        _ => is_streamed().then_some(Value::Nil),
    }
}

/// Removes the attributes from a value.
fn without_attributes(value: Value) -> Value {
    let all = |values: Vec<Value>| values.into_iter().map(without_attributes).collect();
    match value {
        Value::Attribute { data, .. } => without_attributes(*data),
        Value::Array(values) => Value::Array(all(values)),
        Value::Set(values) => Value::Set(all(values)),
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
fn sort(code: &str, details: &str) -> ErrorKind {
    let is = |word: &str| code == word || details.contains(&format!("-{word} "));
    let words = [
        "The user executing the script can't ",
        "ACL failure in script",
    ];
    let denies = words.iter().any(|words| details.contains(words));
    if denies || ["NOAUTH", "WRONGPASS", "NOPERM"].into_iter().any(is) {
        ErrorKind::Denied
    } else if is("READONLY") {
        ErrorKind::ReadOnly
    } else {
        ErrorKind::Refused
    }
}

/// Quotes an error, without the arguments that Redis repeats of an unknown command.
fn quote(code: &str, details: &str) -> String {
    let details = details.split(", with args").next().unwrap_or_default();
    format!("{code} {details}").trim_end().to_string()
}

/// Quotes an error reply to AUTH, restricted to the known codes and texts.
fn known(code: &str, details: &str) -> String {
    let code = CODES.into_iter().find(|known| *known == code);
    let details = ANSWERS.into_iter().find(|known| details.starts_with(known));
    let said = [code.unwrap_or("an error"), details.unwrap_or_default()];
    said.join(" ").trim_end().to_string()
}

/// Creates an error for a failed connection. TLS errors arrive as I/O errors of kind `InvalidData`.
fn unreachable(host: &str, error: &io::Error) -> ClusterError {
    let kind = match error.kind() {
        io::ErrorKind::InvalidData => ErrorKind::Denied,
        io::ErrorKind::TimedOut => ErrorKind::Late,
        _ => ErrorKind::Unreachable,
    };
    ClusterError::new(kind, cut(&format!("{host}: {}", tls::explain(error))))
}

fn is_blocked(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted
    )
}

#[cfg(test)]
mod tests {
    use std::net::TcpListener;

    use super::*;

    #[test]
    fn what_a_server_sent_before_it_closed_is_read_although_writing_fails() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let name = "127.0.0.1".to_string();
        let port = listener.local_addr().unwrap().port();
        let (host, names) = (Host { name, port }, DnsCache::default());
        let by = Instant::now() + Duration::from_secs(10);
        let mut link = RedisConnection::connect(&host, &names, None, by).unwrap();
        let (mut server, _) = listener.accept().unwrap();
        server.write_all(b"-ERR why\r\n").unwrap();
        drop(server);
        // The first write makes the server reset the connection, and the next ones fail.
        for _ in 0..3 {
            link.send(b"PING\r\n", by).unwrap();
        }
        let error = link.ask(&redis::cmd("PING"), by).unwrap_err();
        assert_eq!(error.said, "ERR why");
    }

    #[test]
    fn errors_have_the_same_sort_within_scripts_of_all_versions() {
        for (code, details, kind) in [
            ("NOAUTH", "Authentication required.", ErrorKind::Denied),
            (
                "WRONGPASS",
                "invalid username-password pair",
                ErrorKind::Denied,
            ),
            ("NOPERM", "this user has no permissions", ErrorKind::Denied),
            (
                "ERR",
                "The user executing the script can't run this command or subcommand script: 1f, on @user_script:15.",
                ErrorKind::Denied,
            ),
            (
                "ERR",
                "Error running script (call to f_1f): @user_script:15: The user executing the script can't access at least one \
                 of the keys mentioned in the command arguments",
                ErrorKind::Denied,
            ),
            (
                "ERR",
                "Error running script (call to f_1f): @user_script:15: @user_script: 15: -NOPERM No permissions to access a key",
                ErrorKind::Denied,
            ),
            (
                "ERR",
                "ACL failure in script: User default has no permissions to run the 'hset' command script: 1f, on @user_script:15.",
                ErrorKind::Denied,
            ),
            (
                "READONLY",
                "You can't write against a read only replica. script: 1f, on @user_script:15.",
                ErrorKind::ReadOnly,
            ),
            (
                "ERR",
                "Error running script (call to f_1f): @user_script:15: @user_script: 15: -READONLY You can't write against a \
                 read only replica.",
                ErrorKind::ReadOnly,
            ),
            (
                "ERR",
                "Error running script (call to f_1f): @user_script:15: @user_script: 15: -OOM command not allowed when used \
                 memory > 'maxmemory'.",
                ErrorKind::Refused,
            ),
            ("OOM", "command not allowed", ErrorKind::Refused),
            ("ERR", "unknown command", ErrorKind::Refused),
            ("NOSCRIPT", "No matching script.", ErrorKind::Refused),
        ] {
            assert_eq!(sort(code, details), kind, "{code} {details}");
        }
    }

    /// The error text can't depend on the password, whatever the server answers.
    #[test]
    fn what_is_said_to_a_password_is_repeated_only_if_it_is_known() {
        for (code, details, said) in [
            (
                "ERR",
                "unknown command `AUTH`, with args beginning with: `default`, `hunt",
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
                "WRONGPASS",
                "invalid username-password pair or user is disabled.",
                "WRONGPASS invalid username-password pair or user is disabled",
            ),
            (
                "ERR",
                "max number of clients reached",
                "ERR max number of clients reached",
            ),
        ] {
            assert_eq!(known(code, details), said);
        }
        assert_eq!(quote("OOM", "no memory"), "OOM no memory");
        assert_eq!(
            quote("ERR", "unknown command `X`, with args beginning with: `y`"),
            "ERR unknown command `X`"
        );
    }
}
