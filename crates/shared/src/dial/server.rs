//! Address of a server: `[SCHEME://]HOST[:PORT]`.

use std::fmt;
use std::str::FromStr;

/// The default port of a server.
pub const PORT: u16 = 4242;

/// The protocol that a server is asked in.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Scheme {
    /// Lines of text.
    #[default]
    Tcp,
    /// Protobuf messages, each after its length.
    Protobuf,
    /// JSON-RPC over HTTP.
    Http,
    /// gRPC.
    Grpc,
}

impl Scheme {
    /// All, with their names.
    const NAMED: [(&str, Scheme); 4] = [
        ("tcp", Scheme::Tcp),
        ("protobuf", Scheme::Protobuf),
        ("http", Scheme::Http),
        ("grpc", Scheme::Grpc),
    ];
}

impl FromStr for Scheme {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let known = Scheme::NAMED.iter().find(|(name, _)| *name == text);
        known
            .map(|(_, scheme)| *scheme)
            .ok_or("the protocol is tcp, protobuf, http or grpc")
    }
}

impl fmt::Display for Scheme {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let named = Scheme::NAMED.iter().find(|(_, scheme)| scheme == self);
        f.write_str(named.map_or("", |(name, _)| name))
    }
}

/// A server by its name or address, and its port.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Server {
    /// Its protocol.
    pub scheme: Scheme,
    /// A name, or an address without brackets.
    pub host: String,
    /// Its port.
    pub port: u16,
}

impl Server {
    /// Returns a server that is asked in lines.
    pub fn new(host: String, port: u16) -> Self {
        Server {
            scheme: Scheme::Tcp,
            host,
            port,
        }
    }
}

impl FromStr for Server {
    type Err = &'static str;

    /// Parses `HOST`, `HOST:PORT`, and for an IPv6 address `[ADDR]:PORT`, `[ADDR]` or `ADDR`, with
    /// `SCHEME://` before it for another protocol than that of lines.
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let (scheme, text) = match text.trim().split_once("://") {
            None => (Scheme::Tcp, text.trim()),
            Some((name, rest)) => (name.parse()?, rest),
        };
        if text.contains('/') {
            return Err("HOST[:PORT] is wanted, such as localhost:4242, and nothing behind it");
        }
        let (host, port) = match text.strip_prefix('[') {
            Some(bracketed) => {
                let (host, rest) = bracketed
                    .split_once(']')
                    .ok_or("a bracket is not closed, as it is in [::1]:4242")?;
                match rest.strip_prefix(':') {
                    Some(port) => (host, Some(port)),
                    None if rest.is_empty() => (host, None),
                    None => return Err("after the bracket comes :PORT or nothing"),
                }
            }
            // Text with more than one colon is an IPv6 address.
            None if text.matches(':').count() > 1 => (text, None),
            None => match text.split_once(':') {
                Some((host, port)) => (host, Some(port)),
                None => (text, None),
            },
        };
        if host.is_empty() || host.contains(|c: char| c.is_whitespace() || c.is_control()) {
            return Err("not a name or an address, such as localhost:4242 or [::1]:4242");
        }
        let port = match port.map(str::parse) {
            None => PORT,
            Some(Ok(port)) if port > 0 => port,
            Some(_) => return Err("a port is a number from 1 to 65535"),
        };
        Ok(Server {
            scheme,
            host: host.to_string(),
            port,
        })
    }
}

impl fmt::Display for Server {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.scheme != Scheme::Tcp {
            write!(f, "{}://", self.scheme)?;
        }
        if self.host.contains(':') {
            write!(f, "[{}]:{}", self.host, self.port)
        } else {
            write!(f, "{}:{}", self.host, self.port)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_port_may_follow_a_name_or_an_address() {
        for (text, shown) in [
            ("localhost", "localhost:4242"),
            ("localhost:1", "localhost:1"),
            (" 192.0.2.1 ", "192.0.2.1:4242"),
            ("192.0.2.1:65535", "192.0.2.1:65535"),
            ("::1", "[::1]:4242"),
            ("[::1]", "[::1]:4242"),
            ("[fe80::1%eth0]:80", "[fe80::1%eth0]:80"),
            ("tcp://localhost", "localhost:4242"),
            ("protobuf://[::1]:1", "protobuf://[::1]:1"),
        ] {
            let server: Server = text.parse().unwrap();
            assert_eq!(server.to_string(), shown);
        }
        for bad in [
            "",
            ":1",
            "host:",
            "host:0",
            "host:65536",
            "[::1",
            "[::1]1",
            "[]:1",
            "a b",
            "h/path",
            "gopher://localhost",
            "://localhost",
            "tcp://localhost/",
        ] {
            assert!(bad.parse::<Server>().is_err(), "{bad}");
        }
    }
}
