//! Client connection: sends requests and reads replies, with a bound on the length of a reply
//! however it is split.

use std::io::{self, ErrorKind, Read as _, Write as _};
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec, poll};

use super::reply::{is_printable, wrong};
use super::socket::connect_first;
use super::{Deadline, Failure, FailureKind, HttpResponse, Reply, Server, Translator};
use crate::text::{excerpt, quoted, without_errno};

/// The most bytes of a reply that are read. A reply of our server is shorter: the longest is a page
/// of users, of half as many.
pub const LONGEST_REPLY: usize = 1024 * 1024;

/// Number of bytes to read at a time.
const CHUNK: usize = 4096;

/// An address, and the result of connecting to it.
pub type Attempt<'a> = (SocketAddr, Result<(), &'a io::Error>);

/// A connection to a server.
pub struct Connection {
    stream: TcpStream,
    address: SocketAddr,
    /// Bytes that were read and are not consumed yet, as lines.
    unread: Vec<u8>,
    /// For another protocol than that of lines.
    translator: Option<Translator>,
}

impl Connection {
    /// Connects to the first of these addresses that accepts. Removes the addresses that it tried.
    /// Each attempt may take an equal share of the time that is left; `tried` is called with the
    /// result of each.
    pub fn open_one_of(
        server: &Server,
        addresses: &mut Vec<SocketAddr>,
        deadline: Deadline,
        mut tried: impl FnMut(Attempt<'_>),
    ) -> Result<Self, Failure> {
        let mut refusals = Vec::new();
        let connected = connect_first(addresses, deadline.moment(), |address, error| {
            tried((address, Err(&error)));
            refusals.push((address, error));
        });
        addresses.drain(..refusals.len());
        let Some((stream, address)) = connected else {
            return Err(Failure::not_connected(&refusals));
        };
        addresses.remove(0);
        tried((address, Ok(())));
        Ok(Connection {
            stream,
            address,
            unread: Vec::new(),
            translator: Translator::new(server),
        })
    }

    /// Returns the address of the server.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Returns the socket, to watch it or to shut it down from elsewhere.
    pub fn socket(&self) -> &TcpStream {
        &self.stream
    }

    /// Returns whether there is something to read, the end of the stream included. With no request
    /// open, it means that the server is closing the connection.
    pub fn is_readable(&self) -> bool {
        let mut polled = [PollFd::new(&self.stream, PollFlags::IN)];
        // An error of poll(2) counts as not ready: the next request will find it.
        let ready = poll(&mut polled, Some(&Timespec::default()));
        !self.unread.is_empty() || ready.is_ok_and(|ready| ready > 0)
    }

    /// Sends these requests, which include their line ends.
    pub fn send(&mut self, requests: &[u8], deadline: Deadline) -> Result<(), Failure> {
        let Some(translator) = &mut self.translator else {
            return self.write(requests, deadline);
        };
        let mut bytes = Vec::new();
        for line in requests.split_inclusive(|byte| *byte == b'\n') {
            translator.request(line.trim_ascii_end(), &mut bytes);
        }
        translator.take_lines(&mut self.unread);
        self.write(&bytes, deadline)
    }

    fn write(&mut self, mut unsent: &[u8], deadline: Deadline) -> Result<(), Failure> {
        while !unsent.is_empty() {
            let left = deadline.left(|| "the server takes no requests".to_string())?;
            let sent = self
                .stream
                .set_write_timeout(Some(left))
                .and_then(|()| self.stream.write(unsent));
            match sent {
                Ok(sent) => unsent = &unsent[sent..],
                // The deadline is checked above.
                Err(error) if is_retryable(&error) => {}
                // A server that has closed may have sent a reason: the next read finds it.
                Err(_) => return Ok(()),
            }
        }
        Ok(())
    }

    /// Half-closes the connection: there are no more requests.
    pub fn finish(&self) {
        // If it fails, the connection is broken, and the next read finds that.
        let _ = self.stream.shutdown(Shutdown::Write);
    }

    /// Sends one request and waits for its reply.
    pub fn ask(&mut self, request: &[u8], deadline: Deadline) -> Result<Reply, Failure> {
        self.exchange(&[request], || deadline)
            .map(|mut replies| replies.swap_remove(0))
    }

    /// Sends these requests at once. Each reply may take this time. Returns fewer replies than
    /// requests, but at least one, only if the server closes after the last of them.
    pub fn ask_all(
        &mut self,
        requests: &[&[u8]],
        timeout: Duration,
    ) -> Result<Vec<Reply>, Failure> {
        self.exchange(requests, || Deadline::after(timeout))
    }

    /// Sends these requests at once, and waits for each reply until the deadline that `deadline`
    /// returns for it.
    fn exchange(
        &mut self,
        requests: &[&[u8]],
        deadline: impl Fn() -> Deadline,
    ) -> Result<Vec<Reply>, Failure> {
        let lines: Vec<&[u8]> = requests
            .iter()
            .flat_map(|line| [line, &b"\n"[..]])
            .collect();
        self.send(&lines.concat(), deadline())?;
        let mut replies = Vec::new();
        for request in requests {
            let request = String::from_utf8_lossy(request);
            let line = self.line(&request, deadline())?;
            let reply = Reply::read(&request, &line)?;
            let closes = reply.closes();
            replies.push(reply);
            if closes {
                return Ok(replies);
            }
        }
        match &self.unread[..] {
            // The server may send the reason before it closes.
            rest if rest.is_empty() || rest.starts_with(b"ERR ") => Ok(replies),
            rest => Err(Failure::more(rest)),
        }
    }

    /// Returns the next line, without its end, as the reply to `request`. Stops early at a byte
    /// that our server never sends.
    pub fn line(&mut self, request: &str, deadline: Deadline) -> Result<Vec<u8>, Failure> {
        loop {
            if let Some(end) = self.unread.iter().position(|byte| *byte == b'\n') {
                let mut line: Vec<u8> = self.unread.drain(..=end).collect();
                line.pop();
                return Ok(line);
            }
            let rest = &self.unread;
            if !is_printable(rest) {
                return Err(wrong(request, rest));
            }
            let request_text = excerpt(request);
            if rest.len() > LONGEST_REPLY {
                let text = format!("the answer to {request_text} doesn't end: {}", quoted(rest));
                return Err(Failure::new(FailureKind::Foreign, text));
            }
            if self.read(request, deadline)? == 0 {
                return Err(self.closed(request));
            }
        }
    }

    /// Returns the next response of HTTP, as the reply to `request`. For a connection that was opened
    /// as one of lines, and is sent requests of HTTP.
    pub fn response(&mut self, request: &str, deadline: Deadline) -> Result<HttpResponse, Failure> {
        loop {
            if let Some((response, length)) = HttpResponse::parse(request, &self.unread)? {
                self.unread.drain(..length);
                return Ok(response);
            }
            if self.read(request, deadline)? == 0 {
                return Err(self.closed(request));
            }
        }
    }

    /// Waits for the end of the stream, after which the server no longer counts this client.
    pub fn end(mut self, deadline: Deadline) -> Result<(), Failure> {
        while self.unread.is_empty() {
            if self.read("the end of the requests", deadline)? == 0 {
                return Ok(());
            }
        }
        Err(Failure::more(&self.unread))
    }

    /// Reads the next bytes. Returns their number, 0 at the end of the stream.
    fn read(&mut self, request: &str, deadline: Deadline) -> Result<usize, Failure> {
        let mut chunk = [0; CHUNK];
        loop {
            let left = deadline.left(|| format!("no answer to {}", excerpt(request)))?;
            let read = self
                .stream
                .set_read_timeout(Some(left))
                .and_then(|()| self.stream.read(&mut chunk));
            match read {
                Ok(read) => return self.take(&chunk[..read], deadline),
                // The deadline is checked above.
                Err(error) if is_retryable(&error) => {}
                Err(error) => {
                    let (request, why) = (excerpt(request), without_errno(&error));
                    return Err(self.ended(format!("no answer to {request}: {why}")));
                }
            }
        }
    }

    /// Takes what was read. Returns its length.
    fn take(&mut self, bytes: &[u8], deadline: Deadline) -> Result<usize, Failure> {
        match &mut self.translator {
            None => self.unread.extend_from_slice(bytes),
            Some(translator) => {
                let mut replies = Vec::new();
                translator.receive(bytes, &mut replies).map_err(|what| {
                    Failure::new(FailureKind::Foreign, format!("{what}: {}", quoted(bytes)))
                })?;
                translator.take_lines(&mut self.unread);
                self.write(&replies, deadline)?;
            }
        }
        Ok(bytes.len())
    }

    /// Returns the failure of a connection that was closed before the whole reply to `request`.
    fn closed(&self, request: &str) -> Failure {
        let request = excerpt(request);
        self.ended(match &self.unread[..] {
            b"" => format!("closed without an answer to {request}"),
            part => format!(
                "closed in the middle of the answer to {request}: {}",
                quoted(part)
            ),
        })
    }

    /// Returns the failure of a connection that has ended, with this message.
    fn ended(&self, text: String) -> Failure {
        let kind = match self.unread.is_empty() {
            true => FailureKind::Lost,
            false => FailureKind::Cut,
        };
        Failure::new(kind, text)
    }
}

/// Returns whether the call may be retried.
fn is_retryable(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        ErrorKind::WouldBlock | ErrorKind::TimedOut | ErrorKind::Interrupted
    )
}
