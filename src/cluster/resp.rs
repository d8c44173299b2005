//! A connection to a Redis or a Sentinel that never waits for longer than it may. The protocol is the redis crate's, version 3
//! of it (RESP3), in which messages come over the same connection as replies, and in order with them.

use std::collections::VecDeque;
use std::io::{self, Read, Write};
use std::net::TcpStream;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Arc;
use std::time::{Duration, Instant};

use redis::{Cmd, Parser, PushKind, Value};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustls::pki_types::ServerName;
use rustls::{ClientConfig, ClientConnection, StreamOwned};

use super::figures::{Kind, Trouble, cut};
use super::names::Names;
use super::settings::Host;
use crate::error::plain;

/// A connection.
pub struct Link {
    stream: Stream,
    parser: Parser,
    /// Whom it is to, for what is said of it.
    host: String,
    /// Messages that came while a reply was waited for.
    messages: VecDeque<Vec<u8>>,
}

enum Stream {
    Plain(TcpStream),
    Tls(Box<StreamOwned<ClientConnection, TcpStream>>),
}

impl Stream {
    fn socket(&self) -> &TcpStream {
        match self {
            Stream::Plain(socket) => socket,
            Stream::Tls(stream) => &stream.sock,
        }
    }

    fn halves(&mut self) -> &mut (dyn ReadWrite + Send) {
        match self {
            Stream::Plain(socket) => socket,
            Stream::Tls(stream) => stream.as_mut(),
        }
    }
}

trait ReadWrite: Read + Write {}
impl<T: Read + Write> ReadWrite for T {}

/// What arrives, and why nothing more does: the parser keeps that for itself.
struct Arriving<'a> {
    stream: &'a mut (dyn ReadWrite + Send),
    failed: Option<io::Error>,
}

impl Read for Arriving<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let read = match self.stream.read(buffer) {
            Ok(0) => Err(io::ErrorKind::UnexpectedEof.into()),
            read => read,
        };
        read.map_err(|error| {
            let kind = error.kind();
            self.failed = Some(error);
            kind.into()
        })
    }
}

impl AsFd for Link {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.stream.socket().as_fd()
    }
}

impl Link {
    /// Connects to `host`, with TLS if there is such a configuration.
    pub fn connect(
        host: &Host,
        names: &Names,
        tls: Option<Arc<ClientConfig>>,
        deadline: Instant,
    ) -> Result<Self, Trouble> {
        let name = host.to_string();
        let lost = |error: io::Error| unreachable(&name, &error);
        let addresses = names.addresses(&host.name, host.port, deadline);
        let addresses = addresses.map_err(lost)?;
        let mut addresses = addresses.into_iter().peekable();
        let mut result = Err(Trouble::new(
            Kind::Unreachable,
            format!("{name} has no address"),
        ));
        while let Some(address) = addresses.next() {
            let left = deadline.saturating_duration_since(Instant::now());
            // Each gets its share of the time.
            let share = if addresses.peek().is_some() {
                left / 2
            } else {
                left
            };
            let share = share.max(Duration::from_millis(1));
            result = TcpStream::connect_timeout(&address, share)
                .and_then(|socket| {
                    socket.set_nodelay(true)?;
                    socket.set_nonblocking(true)?;
                    Ok(socket)
                })
                .map_err(lost);
            if result.is_ok() {
                break;
            }
        }
        let socket = result?;
        let stream = match tls {
            None => Stream::Plain(socket),
            Some(config) => {
                let server = ServerName::try_from(host.name.clone()).map_err(|_| {
                    Trouble::new(Kind::Denied, format!("{name} is no name for a certificate"))
                })?;
                let client = ClientConnection::new(config, server)
                    .map_err(|error| Trouble::new(Kind::Denied, format!("{name}: {error}")))?;
                Stream::Tls(Box::new(StreamOwned::new(client, socket)))
            }
        };
        Ok(Link {
            stream,
            parser: Parser::new(),
            host: name,
            messages: VecDeque::new(),
        })
    }

    /// Sends `command` and returns its reply. Messages that come before it are kept.
    pub fn ask(&mut self, command: &Cmd, deadline: Instant) -> Result<Value, Trouble> {
        self.send(&command.get_packed_command(), deadline)?;
        loop {
            match self.next()? {
                Some(Value::ServerError(error)) => {
                    let code = error.code();
                    let details = error.details().unwrap_or_default();
                    return Err(self.refused(code, details));
                }
                Some(Value::Push { kind, data }) => self.keep(&kind, data),
                Some(value) => return Ok(value),
                None => self.wait(PollFlags::IN, deadline)?,
            }
        }
    }

    /// Subscribes to `channel`, which is confirmed by a message.
    pub fn subscribe(&mut self, channel: &str, deadline: Instant) -> Result<(), Trouble> {
        let command = redis::cmd("SUBSCRIBE").arg(channel).get_packed_command();
        self.send(&command, deadline)?;
        loop {
            match self.next()? {
                Some(Value::ServerError(error)) => {
                    let details = error.details().unwrap_or_default();
                    return Err(self.refused(error.code(), details));
                }
                Some(Value::Push {
                    kind: PushKind::Subscribe,
                    ..
                }) => return Ok(()),
                Some(Value::Push { kind, data }) => self.keep(&kind, data),
                Some(_) => {}
                None => self.wait(PollFlags::IN, deadline)?,
            }
        }
    }

    /// The next message, if one has come.
    pub fn message(&mut self) -> Result<Option<Vec<u8>>, Trouble> {
        loop {
            if let Some(message) = self.messages.pop_front() {
                return Ok(Some(message));
            }
            match self.next()? {
                Some(Value::Push { kind, data }) => self.keep(&kind, data),
                Some(other) => {
                    let what = format!("{} says what nobody asked: {other:?}", self.host);
                    return Err(Trouble::new(Kind::Refused, cut(&what)));
                }
                None => return Ok(None),
            }
        }
    }

    fn keep(&mut self, kind: &PushKind, data: Vec<Value>) {
        // The channel, and what was said on it.
        if let (PushKind::Message, Some(Value::BulkString(text))) = (kind, data.into_iter().nth(1))
        {
            self.messages.push_back(text);
        }
    }

    /// What has come next, if it is whole.
    fn next(&mut self) -> Result<Option<Value>, Trouble> {
        let mut arriving = Arriving {
            stream: self.stream.halves(),
            failed: None,
        };
        match self.parser.parse_value(&mut arriving) {
            Ok(value) => Ok(Some(value)),
            Err(error) => match arriving.failed {
                Some(error) if is_blocked(&error) => Ok(None),
                Some(error) if error.kind() == io::ErrorKind::UnexpectedEof => Err(Trouble::new(
                    Kind::Unreachable,
                    format!("{} closes the connection", self.host),
                )),
                Some(error) => Err(self.lost(&error)),
                None => Err(Trouble::new(
                    Kind::Refused,
                    cut(&format!(
                        "{} does not speak as Redis does: {error}",
                        self.host
                    )),
                )),
            },
        }
    }

    fn send(&mut self, mut bytes: &[u8], deadline: Instant) -> Result<(), Trouble> {
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

    /// Whether something written has not gone out yet.
    fn is_behind(&self) -> bool {
        match &self.stream {
            Stream::Plain(_) => false,
            Stream::Tls(stream) => stream.conn.wants_write() || stream.conn.is_handshaking(),
        }
    }

    fn wait(&self, events: PollFlags, deadline: Instant) -> Result<(), Trouble> {
        let left = deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Err(Trouble::new(
                Kind::Late,
                format!("{} does not answer in time", self.host),
            ));
        }
        // A little more, or it would come back just before the deadline.
        let time = Timespec::try_from(left + Duration::from_millis(1));
        match poll(&mut [PollFd::new(self, events)], time.ok().as_ref()) {
            Ok(_) | Err(Errno::INTR) => Ok(()),
            Err(error) => Err(self.lost(&error.into())),
        }
    }

    fn lost(&self, error: &io::Error) -> Trouble {
        unreachable(&self.host, error)
    }

    fn refused(&self, code: &str, details: &str) -> Trouble {
        let kind = match code {
            "NOAUTH" | "WRONGPASS" | "NOPERM" => Kind::Denied,
            "READONLY" => Kind::ReadOnly,
            _ => Kind::Refused,
        };
        let what = format!("{} says: {code} {details}", self.host);
        Trouble::new(kind, cut(what.trim_end()))
    }
}

/// What went wrong with a connection. What TLS has against it comes as an error of the stream.
fn unreachable(host: &str, error: &io::Error) -> Trouble {
    let kind = match error.kind() {
        io::ErrorKind::InvalidData => Kind::Denied,
        io::ErrorKind::TimedOut => Kind::Late,
        _ => Kind::Unreachable,
    };
    Trouble::new(kind, cut(&format!("{host}: {}", plain(error))))
}

fn is_blocked(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted
    )
}
