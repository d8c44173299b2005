//! Servers that do what no server of ours does, line by line.

use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

/// What is done at a request.
pub enum Does {
    /// Sends this, as it is.
    Say(String),
    /// The same, a byte at a time.
    Dribble(String),
    /// Sends this and closes.
    SayAndClose(String),
    /// Nothing any more.
    Stall,
}

/// A request, as the server sees it.
pub struct Asked<'a> {
    /// How many connections came before its own.
    pub connection: usize,
    /// How many requests came before it on its connection.
    pub number: usize,
    /// What it is.
    pub request: &'a str,
}

/// Such a server, for the rest of the test's process.
pub struct Scripted {
    pub address: SocketAddr,
    connections: Arc<AtomicUsize>,
}

impl Scripted {
    /// Answers on any number of connections.
    pub fn start(does: impl Fn(Asked<'_>) -> Does + Send + Sync + 'static) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
        let address = listener.local_addr().expect("an address");
        let does = Arc::new(does);
        let connections = Arc::new(AtomicUsize::new(0));
        let counted = connections.clone();
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                let (does, connection) = (does.clone(), counted.fetch_add(1, Ordering::SeqCst));
                let stream = stream.expect("a connection");
                std::thread::spawn(move || converse(stream, connection, &*does));
            }
        });
        Scripted {
            address,
            connections,
        }
    }

    /// How many connections there were.
    pub fn connections(&self) -> usize {
        self.connections.load(Ordering::SeqCst)
    }
}

/// Until the client closes, or the script says so.
fn converse(stream: TcpStream, connection: usize, does: &impl Fn(Asked<'_>) -> Does) {
    let mut output = stream.try_clone().expect("a descriptor");
    output.set_nodelay(true).expect("a socket");
    let mut input = BufReader::new(stream);
    for number in 0.. {
        let mut line = String::new();
        if input.read_line(&mut line).unwrap_or(0) == 0 {
            return;
        }
        let request = line.trim_end();
        let asked = Asked {
            connection,
            number,
            request,
        };
        // A client that has closed meanwhile is no failure of the server's.
        match does(asked) {
            Does::Say(text) => drop(output.write_all(text.as_bytes())),
            Does::Dribble(text) => {
                for byte in text.bytes() {
                    drop(output.write_all(&[byte]));
                }
            }
            Does::SayAndClose(text) => {
                drop(output.write_all(text.as_bytes()));
                return;
            }
            Does::Stall => {
                drop(input.read_to_end(&mut Vec::new()));
                return;
            }
        }
    }
}
