//! Peer request: a non-blocking HTTP request for the census of one other server.

use std::fmt;
use std::net::{SocketAddr, TcpStream};

use httparse::{EMPTY_HEADER, Status};
use rustix::event::PollFlags;
use rustix::io::Errno;
use rustix::net::{RecvFlags, SendFlags};
use uuid::Uuid;

use super::membership::Entry;
use crate::cluster::Member;
use shared::dial::socket::{begin_to_connect, is_connected};
use shared::text::without_errno;

/// Largest size of a response in bytes: its head and one line.
const LONGEST_ANSWER: usize = 4096;

/// Largest number of header fields of a response.
const MOST_FIELDS: usize = 32;

/// Returns the body with which a server answers a census request: its id, its incarnation and its
/// number of clients.
pub fn answer(member: Member, clients: usize) -> String {
    format!("{} {} {clients}", member.id, member.incarnation)
}

/// Reason why a server has not answered.
#[derive(Debug)]
pub struct PeerError {
    /// Address of the server.
    pub address: SocketAddr,
    /// Last error.
    pub why: String,
}

impl fmt::Display for PeerError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.address, self.why)
    }
}

/// Request to one server.
pub struct PeerRequest {
    /// The server.
    pub peer: Entry,
    doing: Doing,
    /// Last error; empty if there was none.
    why: String,
}

enum Doing {
    Connecting(TcpStream),
    Asking(HttpExchange),
    Answered(u64, Option<TcpStream>),
    Failed,
}

struct HttpExchange {
    socket: TcpStream,
    /// Whether the connection is a kept-alive one, which the server may have closed in good order.
    kept: bool,
    /// Number of bytes of the request that are sent.
    sent: usize,
    question: String,
    heard: Vec<u8>,
}

impl PeerRequest {
    /// Starts a request to `peer`, over the connection that was `kept` if there is one.
    pub fn begin(peer: Entry, kept: Option<TcpStream>) -> Self {
        let mut request = PeerRequest {
            peer,
            doing: Doing::Failed,
            why: String::new(),
        };
        match kept {
            Some(socket) => request.start_exchange(socket, true),
            None => request.connect(),
        }
        request
    }

    /// Returns the socket and the events to poll for; `None` once the request is answered or has
    /// failed.
    pub fn polled(&self) -> Option<(&TcpStream, PollFlags)> {
        match &self.doing {
            Doing::Connecting(socket) => Some((socket, PollFlags::OUT)),
            Doing::Asking(conversation) => Some((&conversation.socket, conversation.events())),
            Doing::Answered(..) | Doing::Failed => None,
        }
    }

    /// Returns whether there is an answer.
    pub fn is_answered(&self) -> bool {
        matches!(self.doing, Doing::Answered(..))
    }

    /// Returns whether the request has failed. [`PeerRequest::connect`] repeats it.
    pub fn has_failed(&self) -> bool {
        matches!(self.doing, Doing::Failed)
    }

    /// Returns the number of clients, if there is an answer, and the connection, if it may be kept
    /// alive.
    pub fn end(self) -> Option<(u64, Option<TcpStream>)> {
        match self.doing {
            Doing::Answered(clients, socket) => Some((clients, socket)),
            _ => None,
        }
    }

    /// Returns why there is no answer.
    pub fn silence(&self) -> PeerError {
        PeerError {
            address: self.peer.address,
            why: match self.why.as_str() {
                "" => "it does not answer in time".to_string(),
                why => why.to_string(),
            },
        }
    }

    fn fail(&mut self, why: impl Into<String>) {
        self.why = why.into();
        self.doing = Doing::Failed;
    }

    /// Starts the request again over a new connection.
    pub fn connect(&mut self) {
        match begin_to_connect(self.peer.address) {
            Ok(socket) => self.doing = Doing::Connecting(socket),
            Err(error) => self.fail(without_errno(&error)),
        }
    }

    /// Sends the request over this connection.
    fn start_exchange(&mut self, socket: TcpStream, kept: bool) {
        let mut conversation = HttpExchange {
            socket,
            kept,
            sent: 0,
            question: format!(
                "GET /census HTTP/1.1\r\nHost: {}\r\nUser-Agent: blockchain-tcpd\r\n\r\n",
                self.peer.address
            ),
            heard: Vec::new(),
        };
        match conversation.send() {
            Ok(()) => self.doing = Doing::Asking(conversation),
            Err(_) if kept => self.connect(),
            Err(error) => self.fail(without_errno(&error.into())),
        }
    }

    /// Advances the request without blocking.
    pub fn go_on(&mut self) {
        match std::mem::replace(&mut self.doing, Doing::Failed) {
            Doing::Connecting(socket) => match is_connected(&socket) {
                Ok(false) => self.doing = Doing::Connecting(socket),
                Ok(true) => self.start_exchange(socket, false),
                Err(error) => self.fail(without_errno(&error)),
            },
            Doing::Asking(mut conversation) => match conversation.go_on(self.peer.member) {
                Ok(Some((clients, keeps))) => {
                    let socket = keeps.then_some(conversation.socket);
                    self.doing = Doing::Answered(clients, socket);
                }
                Ok(None) => self.doing = Doing::Asking(conversation),
                // The server's process was replaced, most likely, or the idle connection timed out.
                Err(_) if conversation.kept && conversation.heard.is_empty() => self.connect(),
                Err(why) => self.fail(why),
            },
            other => self.doing = other,
        }
    }
}

impl HttpExchange {
    fn events(&self) -> PollFlags {
        match self.sent < self.question.len() {
            true => PollFlags::OUT,
            false => PollFlags::IN,
        }
    }

    fn send(&mut self) -> Result<(), Errno> {
        let flags = SendFlags::DONTWAIT | SendFlags::NOSIGNAL;
        match rustix::net::send(&self.socket, &self.question.as_bytes()[self.sent..], flags) {
            Ok(sent) => self.sent += sent,
            Err(Errno::AGAIN | Errno::INTR) => {}
            Err(error) => return Err(error),
        }
        Ok(())
    }

    /// Advances the exchange without blocking. Once the response is complete, returns the number of
    /// clients and whether the connection is kept alive.
    fn go_on(&mut self, member: Member) -> Result<Option<(u64, bool)>, String> {
        let system = |error: Errno| without_errno(&error.into());
        if self.sent < self.question.len() {
            self.send().map_err(system)?;
            return Ok(None);
        }
        let mut piece = [0; LONGEST_ANSWER];
        match rustix::net::recv(&self.socket, &mut piece, RecvFlags::DONTWAIT) {
            Ok((0, _)) => Err("it closes the connection".to_string()),
            Ok((read, _)) => {
                self.heard.extend_from_slice(&piece[..read]);
                understand(&self.heard, member)
            }
            Err(Errno::AGAIN | Errno::INTR) => Ok(None),
            Err(error) => Err(system(error)),
        }
    }
}

/// Parses a response. Once it is complete, returns the number of clients and whether the connection
/// is kept alive. Fails if another server than `member` has sent it.
fn understand(heard: &[u8], member: Member) -> Result<Option<(u64, bool)>, String> {
    let unheard_of = |what: &str| Err(format!("it answers {what}"));
    let mut fields = [EMPTY_HEADER; MOST_FIELDS];
    let mut head = httparse::Response::new(&mut fields);
    let length = match head.parse(heard) {
        Ok(Status::Complete(length)) => length,
        Ok(Status::Partial) if heard.len() < LONGEST_ANSWER => return Ok(None),
        Ok(Status::Partial) => return unheard_of("too much"),
        Err(_) => return unheard_of("something that is not HTTP"),
    };
    let field = |name: &str| {
        let mut fields = head.headers.iter();
        fields.find(|field| field.name.eq_ignore_ascii_case(name))
    };
    if head.code != Some(200) {
        return unheard_of(&format!("with HTTP status {}", head.code.unwrap_or(0)));
    }
    let size = field("content-length").and_then(|field| std::str::from_utf8(field.value).ok());
    let size = size.and_then(|size| size.trim().parse::<usize>().ok());
    let Some(size) = size.filter(|size| *size <= LONGEST_ANSWER - length) else {
        return unheard_of("something that is not a census");
    };
    let body = &heard[length..];
    if body.len() < size {
        return Ok(None);
    }
    if body.len() > size {
        return unheard_of("more than it was asked");
    }
    let body = std::str::from_utf8(body).unwrap_or_default();
    let words: Vec<&str> = body.split_whitespace().collect();
    let [id, incarnation, clients] = words[..] else {
        return unheard_of("something that is not a census");
    };
    let is = |text: &str, expected: Uuid| Uuid::try_parse(text) == Ok(expected);
    if !is(id, member.id) || !is(incarnation, member.incarnation) {
        return Err("another server answers there".to_string());
    }
    let Ok(clients) = clients.parse::<u32>() else {
        return unheard_of("something that is not a census");
    };
    let closes = |value: &[u8]| value.eq_ignore_ascii_case(b"close");
    let keeps = head.version == Some(1) && !field("connection").is_some_and(|f| closes(f.value));
    Ok(Some((clients.into(), keeps)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::protocol::http::Response;

    const ME: Member = Member {
        id: Uuid::from_u128(1),
        incarnation: Uuid::from_u128(2),
    };

    #[test]
    fn only_a_whole_answer_of_the_right_server_is_understood() {
        let whole = Response::text(200, &answer(ME, 7)).encode(false, true);
        for length in 0..whole.len() {
            assert_eq!(understand(&whole[..length], ME), Ok(None), "{length}");
        }
        assert_eq!(understand(&whole, ME), Ok(Some((7, true))));
        let last = Response::text(200, &answer(ME, 7)).encode(false, false);
        assert_eq!(understand(&last, ME), Ok(Some((7, false))));
        let another = Member {
            incarnation: Uuid::from_u128(3),
            ..ME
        };
        let long = format!("HTTP/1.1 200 OK\r\nX: {}", "x".repeat(LONGEST_ANSWER));
        let text = |text: &str| Response::text(200, text).encode(false, true);
        for bad in [
            Response::text(200, &answer(another, 7)).encode(false, true),
            Response::text(404, &answer(ME, 7)).encode(false, true),
            text(&answer(ME, usize::MAX)),
            text(&(answer(ME, 7) + " x")),
            text(""),
            text(&"x".repeat(LONGEST_ANSWER)),
            [whole.clone(), whole].concat(),
            long.into_bytes(),
            b"ERR UNKNOWN\n".to_vec(),
            b"HTTP/1.1 200 OK\r\n\r\n".to_vec(),
            b"HTTP/1.1 200 OK\r\nContent-Length: 18446744073709551615\r\n\r\n".to_vec(),
            b"HTTP/1.1 200 OK\r\nContent-Length: -1\r\n\r\n".to_vec(),
        ] {
            let text = String::from_utf8_lossy(&bad).into_owned();
            assert!(understand(&bad, ME).is_err(), "{text}");
        }
    }
}
