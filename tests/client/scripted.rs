//! Servers with a script: they do what no server of ours does.

use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

/// What the server does at a request.
pub enum Action {
    /// Sends this, as it is.
    Send(String),
    /// Sends this and closes.
    SendAndClose(String),
    /// Sends nothing any more.
    Stall,
}

/// A request, as the server sees it.
pub struct Request<'a> {
    /// Number of connections before its own.
    pub connection: usize,
    /// Number of requests before it on its connection.
    pub number: usize,
    /// The request, without its line end.
    pub line: &'a str,
}

/// A server that runs until the end of the test's process.
pub struct Scripted {
    pub address: SocketAddr,
    connections: Arc<AtomicUsize>,
}

impl Scripted {
    /// Answers on any number of connections.
    pub fn start(script: impl Fn(Request<'_>) -> Action + Send + Sync + 'static) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
        let address = listener.local_addr().expect("an address");
        let script = Arc::new(script);
        let connections = Arc::new(AtomicUsize::new(0));
        let counted = connections.clone();
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                let (script, connection) = (script.clone(), counted.fetch_add(1, Ordering::SeqCst));
                let stream = stream.expect("a connection");
                std::thread::spawn(move || converse(stream, connection, &*script));
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
fn converse(stream: TcpStream, connection: usize, script: &impl Fn(Request<'_>) -> Action) {
    let mut output = stream.try_clone().expect("a descriptor");
    output.set_nodelay(true).expect("a socket");
    let mut input = BufReader::new(stream);
    for number in 0.. {
        let mut line = String::new();
        if input.read_line(&mut line).unwrap_or(0) == 0 {
            return;
        }
        let request = Request {
            connection,
            number,
            line: line.trim_end(),
        };
        // A client that has closed meanwhile is no failure of the server's.
        match script(request) {
            Action::Send(text) => drop(output.write_all(text.as_bytes())),
            Action::SendAndClose(text) => {
                drop(output.write_all(text.as_bytes()));
                return;
            }
            Action::Stall => {
                drop(input.read_to_end(&mut Vec::new()));
                return;
            }
        }
    }
}
