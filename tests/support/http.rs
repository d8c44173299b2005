//! A daemon with HTTP, and a client that asks as little as possible and reads whatever comes.

use std::io::{self, Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};

use super::{Client, Daemon, PATIENCE};

/// A daemon with HTTP on a free port, with these arguments besides.
pub fn daemon(arguments: &[&str]) -> Daemon {
    Daemon::start(["--http", "127.0.0.1:0"].iter().chain(arguments))
}

/// A request for `path`, after which the server closes.
pub fn request(method: &str, path: &str) -> String {
    format!("{method} {path} HTTP/1.1\r\nHost: test\r\nConnection: close\r\n\r\n")
}

impl Daemon {
    /// Connects to its HTTP server.
    pub fn connect_http(&self) -> Client {
        Client::connect(self.http()).expect("it accepts")
    }

    /// Sends its HTTP server these bytes and returns all that comes until it closes.
    pub fn ask_http(&self, bytes: impl AsRef<[u8]>) -> String {
        let mut client = self.connect_http();
        client.send(bytes);
        client.rest()
    }
}

/// A reply.
#[derive(Debug)]
pub struct Reply {
    /// Its status code.
    pub status: u16,
    /// Its status line and fields, in small letters.
    pub head: String,
    /// Its body.
    pub body: String,
}

impl Reply {
    /// The reply in these bytes, which were all that came.
    pub fn of(bytes: &[u8]) -> Option<Self> {
        let text = std::str::from_utf8(bytes).ok()?;
        let (head, body) = text.split_once("\r\n\r\n")?;
        Some(Reply {
            status: head.strip_prefix("HTTP/1.1 ")?.get(..3)?.parse().ok()?,
            head: head.to_ascii_lowercase(),
            body: body.to_string(),
        })
    }

    /// The value of a field, whose name is in small letters.
    pub fn field(&self, name: &str) -> Option<&str> {
        self.head
            .lines()
            .find_map(|line| line.strip_prefix(name)?.strip_prefix(": "))
    }
}

/// Connects, with time-outs so that nothing hangs.
pub fn connect(address: SocketAddr) -> io::Result<TcpStream> {
    let stream = TcpStream::connect_timeout(&address, PATIENCE)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.set_write_timeout(Some(PATIENCE))?;
    Ok(stream)
}

/// Sends these bytes, and returns all that comes until the server closes.
pub fn send(address: SocketAddr, bytes: impl AsRef<[u8]>) -> io::Result<Vec<u8>> {
    let mut stream = connect(address)?;
    stream.write_all(bytes.as_ref())?;
    let mut all = Vec::new();
    stream.read_to_end(&mut all)?;
    Ok(all)
}

/// Asks for `path`, with these fields besides, in a connection of its own.
pub fn try_get(address: SocketAddr, path: &str, fields: &str) -> io::Result<Reply> {
    let request = format!("GET {path} HTTP/1.1\r\nHost: test\r\nConnection: close\r\n{fields}\r\n");
    let bytes = send(address, request)?;
    Reply::of(&bytes).ok_or_else(|| io::Error::other(String::from_utf8_lossy(&bytes)))
}

/// The same where nothing may fail.
pub fn get_with(address: SocketAddr, path: &str, fields: &str) -> Reply {
    try_get(address, path, fields).unwrap_or_else(|error| panic!("{path}: {error}"))
}

/// Asks for `path`.
pub fn get(address: SocketAddr, path: &str) -> Reply {
    get_with(address, path, "")
}
