//! Peer request: a non-blocking HTTP request for the census of one other server.

use std::io;
use std::net::{SocketAddr, TcpStream};

use rustix::event::PollFlags;
use rustix::io::Errno;
use rustix::net::{RecvFlags, SendFlags};

use super::http_response::HttpResponse;
use super::membership::Entry;
use crate::cluster::Member;
use shared::dial::socket::{begin_to_connect, is_connected};
use shared::text::without_errno;

/// Largest size of a response in bytes: its head and one line.
const MAX_RESPONSE: usize = 4096;

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
    /// Whether the request is sent.
    is_sent: bool,
    received: Vec<u8>,
    /// Last error, if there was one.
    error: Option<String>,
}

impl PeerRequest {
    /// Starts a request to `peer`, over this kept-alive connection if there is one and it is open.
    pub fn new(peer: Entry, kept: Option<TcpStream>) -> Self {
        let mut request = PeerRequest {
            peer,
            clients: None,
            connection: kept.filter(is_idle),
            is_sent: false,
            received: Vec::new(),
            error: None,
        };
        if request.connection.is_none() {
            request.connect();
        }
        request
    }

    /// Starts the request, also again after a failure, over a new connection.
    pub fn connect(&mut self) {
        self.is_sent = false;
        self.received.clear();
        let connection = begin_to_connect(self.peer.address);
        let connection = connection.map_err(|error| self.error = Some(without_errno(&error)));
        self.connection = connection.ok();
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
        let Some(socket) = &self.connection else {
            return;
        };
        let advanced = match self.is_sent {
            true => receive(socket, &mut self.received),
            false => send(socket, self.peer.address).map(|is_sent| self.is_sent = is_sent),
        };
        let advanced = advanced.and_then(|()| parse_response(&self.received, self.peer.member));
        match advanced {
            Ok(None) => {}
            Ok(Some((clients, keeps_alive))) => {
                self.clients = Some(clients);
                self.connection.take_if(|_| !keeps_alive);
            }
            Err(error) => {
                self.connection = None;
                self.error = Some(error);
            }
        }
    }
}

/// Returns whether a kept-alive connection is open, and nothing waits to be read.
fn is_idle(socket: &TcpStream) -> bool {
    let flags = RecvFlags::DONTWAIT | RecvFlags::PEEK;
    rustix::net::recv(socket, &mut [0; 1], flags).is_err_and(|error| error == Errno::AGAIN)
}

/// Sends the request if the socket is connected by now, and returns whether it is. The request fits
/// into the send buffer of a connection without unsent data.
fn send(socket: &TcpStream, address: SocketAddr) -> Result<bool, String> {
    let failed = |error: io::Error| without_errno(&error);
    if !is_connected(socket).map_err(failed)? {
        return Ok(false);
    }
    let request =
        format!("GET /census HTTP/1.1\r\nHost: {address}\r\nUser-Agent: blockchain-tcpd\r\n\r\n");
    let flags = SendFlags::DONTWAIT | SendFlags::NOSIGNAL;
    let sent = rustix::net::send(socket, request.as_bytes(), flags);
    match sent.map_err(|error| failed(error.into()))? == request.len() {
        true => Ok(true),
        false => Err("it takes no request".to_string()),
    }
}

/// Receives a part of the response.
fn receive(socket: &TcpStream, received: &mut Vec<u8>) -> Result<(), String> {
    let mut buffer = [0; MAX_RESPONSE];
    match rustix::net::recv(socket, &mut buffer, RecvFlags::DONTWAIT) {
        Ok((0, _)) => Err("it closes the connection".to_string()),
        Ok((length, _)) => {
            received.extend_from_slice(&buffer[..length]);
            Ok(())
        }
        Err(Errno::AGAIN | Errno::INTR) => Ok(()),
        Err(error) => Err(without_errno(&error.into())),
    }
}

/// Parses a response. Once it is complete, returns the number of clients and whether the connection
/// is kept alive. Fails if another server than `member` has sent it.
fn parse_response(response: &[u8], member: Member) -> Result<Option<(u64, bool)>, String> {
    let Some(response) = HttpResponse::parse(response, MAX_RESPONSE)? else {
        return Ok(None);
    };
    if response.status != 200 {
        return Err(format!("it answers with HTTP status {}", response.status));
    }
    let body = str::from_utf8(&response.body).unwrap_or_default();
    let words: Vec<&str> = body.split_whitespace().collect();
    let [id, incarnation, clients] = words[..] else {
        return Err(NOT_A_CENSUS.to_string());
    };
    if [id, incarnation] != [member.id, member.incarnation].map(|id| id.to_string()) {
        return Err("another server answers there".to_string());
    }
    let clients: u32 = clients.parse().map_err(|_| NOT_A_CENSUS)?;
    Ok(Some((clients.into(), response.keeps_alive)))
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
            text(&"x".repeat(MAX_RESPONSE)),
            [whole.clone(), whole].concat(),
            head(&format!("X: {}", "x".repeat(MAX_RESPONSE))),
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
