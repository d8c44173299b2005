//! Peer request: a non-blocking HTTP request for the census of one other server.

use std::net::TcpStream;

use httparse::{EMPTY_HEADER, Status};
use rustix::event::PollFlags;
use rustix::io::Errno;
use rustix::net::{RecvFlags, SendFlags};

use super::membership::Entry;
use crate::cluster::Member;
use shared::dial::socket::{begin_to_connect, is_connected};
use shared::text::without_errno;

/// Largest size of a response in bytes: its head and one line.
const LARGEST_RESPONSE: usize = 4096;

/// Largest number of header fields of a response.
const MOST_FIELDS: usize = 32;

/// Error for a response of another kind of server.
const NOT_A_CENSUS: &str = "it answers something that is not a census";

/// Returns the body with which a server answers a census request: its id, its incarnation and its
/// number of clients.
pub fn answer(member: Member, clients: usize) -> String {
    format!("{} {} {clients}", member.id, member.incarnation)
}

/// Request to one server.
pub struct PeerRequest {
    /// The server.
    pub peer: Entry,
    /// Number of its clients, once it has answered.
    pub clients: Option<u64>,
    /// Connection to it; `None` if the request has failed, or if the server has answered and closes
    /// the connection.
    pub connection: Option<TcpStream>,
    /// Whether the request is sent, and not only the connection begun.
    is_sent: bool,
    /// Whether the connection is a kept-alive one, which the server may have closed in good order.
    is_reused: bool,
    received: Vec<u8>,
    /// Last error, if there was one.
    error: Option<String>,
}

impl PeerRequest {
    /// Starts a request to `peer`, over this kept-alive connection if there is one.
    pub fn new(peer: Entry, connection: Option<TcpStream>) -> Self {
        let mut request = PeerRequest {
            peer,
            clients: None,
            is_reused: connection.is_some(),
            connection,
            is_sent: false,
            received: Vec::new(),
            error: None,
        };
        if !request.is_reused || request.send().is_err() {
            request.connect();
        }
        request
    }

    /// Starts the request, also again after a failure, over a new connection.
    pub fn connect(&mut self) {
        (self.is_sent, self.is_reused) = (false, false);
        self.received.clear();
        let connection = begin_to_connect(self.peer.address);
        self.connection = connection
            .inspect_err(|error| self.error = Some(without_errno(error)))
            .ok();
    }

    /// Returns the socket and the events to poll for; `None` once the request is answered or has
    /// failed.
    pub fn polled(&self) -> Option<(&TcpStream, PollFlags)> {
        let events = if self.is_sent {
            PollFlags::IN
        } else {
            PollFlags::OUT
        };
        let connection = self.connection.as_ref();
        let connection = connection.filter(|_| self.clients.is_none());
        connection.map(|socket| (socket, events))
    }

    /// Returns whether there is an answer.
    pub fn is_answered(&self) -> bool {
        self.clients.is_some()
    }

    /// Returns whether the request has failed. [`PeerRequest::connect`] repeats it.
    pub fn has_failed(&self) -> bool {
        self.clients.is_none() && self.connection.is_none()
    }

    /// Returns why there is no answer.
    pub fn error(&self) -> String {
        let why = self.error.as_deref();
        let why = why.unwrap_or("it does not answer in time");
        format!("{}: {why}", self.peer.address)
    }

    /// Advances the request without blocking.
    pub fn advance(&mut self) {
        let advanced = match self.is_sent {
            true => self.receive(),
            false => self.send(),
        };
        match advanced {
            Ok(()) => {}
            // The server's process was replaced, most likely, or the idle connection timed out.
            Err(_) if self.is_reused && self.received.is_empty() => self.connect(),
            Err(error) => {
                self.connection = None;
                self.error = Some(error);
            }
        }
    }

    /// Sends the request if the socket is connected by now. It fits into the send buffer of a
    /// connection without unsent data.
    fn send(&mut self) -> Result<(), String> {
        let Some(socket) = &self.connection else {
            return Ok(());
        };
        if !self.is_reused && !is_connected(socket).map_err(|error| without_errno(&error))? {
            return Ok(());
        }
        let request = format!(
            "GET /census HTTP/1.1\r\nHost: {}\r\nUser-Agent: blockchain-tcpd\r\n\r\n",
            self.peer.address
        );
        let flags = SendFlags::DONTWAIT | SendFlags::NOSIGNAL;
        match rustix::net::send(socket, request.as_bytes(), flags) {
            Ok(length) if length == request.len() => self.is_sent = true,
            Ok(_) => return Err("it takes no request".to_string()),
            Err(error) => return Err(without_errno(&error.into())),
        }
        Ok(())
    }

    /// Receives a part of the response.
    fn receive(&mut self) -> Result<(), String> {
        let Some(socket) = &self.connection else {
            return Ok(());
        };
        let mut buffer = [0; LARGEST_RESPONSE];
        match rustix::net::recv(socket, &mut buffer, RecvFlags::DONTWAIT) {
            Ok((0, _)) => return Err("it closes the connection".to_string()),
            Ok((length, _)) => self.received.extend_from_slice(&buffer[..length]),
            Err(Errno::AGAIN | Errno::INTR) => return Ok(()),
            Err(error) => return Err(without_errno(&error.into())),
        }
        if let Some((clients, keeps_alive)) = parse_response(&self.received, self.peer.member)? {
            self.clients = Some(clients);
            self.connection.take_if(|_| !keeps_alive);
        }
        Ok(())
    }
}

/// Parses a response. Once it is complete, returns the number of clients and whether the connection
/// is kept alive. Fails if another server than `member` has sent it.
fn parse_response(response: &[u8], member: Member) -> Result<Option<(u64, bool)>, String> {
    let mut fields = [EMPTY_HEADER; MOST_FIELDS];
    let mut head = httparse::Response::new(&mut fields);
    let body = match head.parse(response) {
        Ok(Status::Complete(length)) => &response[length..],
        Ok(Status::Partial) if response.len() < LARGEST_RESPONSE => return Ok(None),
        Ok(Status::Partial) => return Err("it answers too much".to_string()),
        Err(_) => return Err("it answers something that is not HTTP".to_string()),
    };
    if head.code != Some(200) {
        let status = head.code.unwrap_or(0);
        return Err(format!("it answers with HTTP status {status}"));
    }
    let field = |name: &str| {
        let mut fields = head.headers.iter();
        let field = fields.find(|field| field.name.eq_ignore_ascii_case(name))?;
        str::from_utf8(field.value).ok().map(str::trim)
    };
    let length = field("content-length").and_then(|length| length.parse().ok());
    match length.filter(|length| *length <= LARGEST_RESPONSE) {
        None => return Err(NOT_A_CENSUS.to_string()),
        Some(length) if body.len() < length => return Ok(None),
        Some(length) if body.len() > length => {
            return Err("it answers more than it was asked".to_string());
        }
        Some(_) => {}
    }
    let keeps_alive = head.version == Some(1)
        && !field("connection").is_some_and(|value| value.eq_ignore_ascii_case("close"));
    let words: Vec<&str> = str::from_utf8(body)
        .unwrap_or_default()
        .split_whitespace()
        .collect();
    match words[..] {
        [id, incarnation, clients] => {
            if [id, incarnation] != [member.id, member.incarnation].map(|id| id.to_string()) {
                return Err("another server answers there".to_string());
            }
            let clients: u32 = clients.parse().map_err(|_| NOT_A_CENSUS)?;
            Ok(Some((clients.into(), keeps_alive)))
        }
        _ => Err(NOT_A_CENSUS.to_string()),
    }
}

#[cfg(test)]
mod tests {
    use uuid::Uuid;

    use super::*;
    use crate::protocol::http::Response;

    const ME: Member = Member {
        id: Uuid::from_u128(1),
        incarnation: Uuid::from_u128(2),
    };

    #[test]
    fn only_a_complete_response_of_the_right_server_is_parsed() {
        let whole = Response::text(200, &answer(ME, 7)).encode(false, true);
        for length in 0..whole.len() {
            assert_eq!(parse_response(&whole[..length], ME), Ok(None), "{length}");
        }
        assert_eq!(parse_response(&whole, ME), Ok(Some((7, true))));
        let last = Response::text(200, &answer(ME, 7)).encode(false, false);
        assert_eq!(parse_response(&last, ME), Ok(Some((7, false))));
        let another = Member {
            incarnation: Uuid::from_u128(3),
            ..ME
        };
        let text = |text: &str| Response::text(200, text).encode(false, true);
        let head = |field: &str| format!("HTTP/1.1 200 OK\r\n{field}\r\n\r\n").into_bytes();
        for invalid in [
            text(&answer(another, 7)),
            Response::text(404, &answer(ME, 7)).encode(false, true),
            text(&answer(ME, usize::MAX)),
            text(&(answer(ME, 7) + " x")),
            text(""),
            text(&"x".repeat(LARGEST_RESPONSE)),
            [whole.clone(), whole].concat(),
            head(&format!("X: {}", "x".repeat(LARGEST_RESPONSE))),
            head("X: y"),
            head("Content-Length: 18446744073709551615"),
            head("Content-Length: -1"),
            b"ERR UNKNOWN\n".to_vec(),
        ] {
            let text = String::from_utf8_lossy(&invalid).into_owned();
            assert!(parse_response(&invalid, ME).is_err(), "{text}");
        }
    }
}
