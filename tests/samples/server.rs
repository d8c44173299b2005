//! A server that does with each of its clients as a test likes.

use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use rustix::net::sockopt;

use crate::support::{PATIENCE, kernel::own_address};

/// What it answers if it means well.
pub fn answer(request: &str) -> String {
    match request {
        "PING" => "PONG".to_string(),
        _ => format!("to {request}"),
    }
}

/// So many requests that differ.
pub fn requests(number: usize) -> Vec<String> {
    (1..=number).map(|number| format!("ASK {number}")).collect()
}

/// What a client prints of them.
pub fn printed(requests: &[String]) -> Vec<String> {
    let lines = requests
        .iter()
        .map(|request| format!("{request}\t{}", answer(request)));
    lines.collect()
}

/// A server with a thread for each client.
pub struct Server {
    pub address: SocketAddr,
    accepted: Arc<AtomicUsize>,
    ended: Arc<AtomicBool>,
    listener: Option<JoinHandle<()>>,
    peers: Arc<Mutex<Vec<JoinHandle<()>>>>,
}

impl Server {
    /// Each client is served with its number, from 0 on.
    pub fn start(serve: impl Fn(usize, Peer) + Send + Sync + 'static) -> Self {
        Self::at(own_address(), serve)
    }

    pub fn at(address: SocketAddr, serve: impl Fn(usize, Peer) + Send + Sync + 'static) -> Self {
        let listener = TcpListener::bind(address).expect("an address of our own");
        let accepted: Arc<AtomicUsize> = Arc::default();
        let ended: Arc<AtomicBool> = Arc::default();
        let peers: Arc<Mutex<Vec<JoinHandle<()>>>> = Arc::default();
        let server = (accepted.clone(), ended.clone(), peers.clone());
        let serve = Arc::new(serve);
        let listener = thread::spawn(move || {
            loop {
                let (stream, _) = listener.accept().expect("a client");
                if ended.load(Ordering::SeqCst) {
                    return;
                }
                let number = accepted.fetch_add(1, Ordering::SeqCst);
                let serve = serve.clone();
                let peer = thread::spawn(move || serve(number, Peer::new(stream)));
                peers.lock().unwrap().push(peer);
            }
        });
        let (accepted, ended, peers) = server;
        Server {
            address,
            accepted,
            ended,
            listener: Some(listener),
            peers,
        }
    }

    /// How many clients have come so far.
    pub fn accepted(&self) -> usize {
        self.accepted.load(Ordering::SeqCst)
    }

    /// Ends it when all clients have gone, and returns how many came. Fails if one was not served as the test expects.
    pub fn end(mut self) -> usize {
        self.close();
        for peer in self.peers.lock().unwrap().drain(..) {
            peer.join().expect("a client that does as it should");
        }
        self.accepted()
    }

    fn close(&mut self) {
        self.ended.store(true, Ordering::SeqCst);
        if let Some(listener) = self.listener.take() {
            // It is woken by a client.
            let _ = TcpStream::connect_timeout(&self.address, PATIENCE);
            let _ = listener.join();
        }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.close();
    }
}

/// A client as the server sees it. Dropped, it is closed.
pub struct Peer(BufReader<TcpStream>);

impl Peer {
    fn new(stream: TcpStream) -> Self {
        stream.set_read_timeout(Some(PATIENCE)).expect("a socket");
        stream.set_write_timeout(Some(PATIENCE)).expect("a socket");
        stream.set_nodelay(true).expect("a socket");
        Peer(BufReader::new(stream))
    }

    /// The next request; nothing when the client has gone, in whatever way.
    pub fn request(&mut self) -> Option<String> {
        let mut line = String::new();
        let read = self.0.read_line(&mut line).unwrap_or(0);
        let request = line.strip_suffix('\n').map(str::to_string);
        assert_eq!(request.is_some(), read > 0, "a cut request: {line:?}");
        request
    }

    /// These requests come next.
    pub fn expect(&mut self, requests: &[String]) {
        for request in requests {
            assert_eq!(self.request().as_ref(), Some(request));
        }
    }

    /// Sends this, and tells whether the client is there.
    pub fn say(&mut self, bytes: impl AsRef<[u8]>) -> bool {
        self.0.get_mut().write_all(bytes.as_ref()).is_ok()
    }

    /// Sends this byte by byte.
    pub fn dribble(&mut self, bytes: impl AsRef<[u8]>) {
        for byte in bytes.as_ref() {
            self.say([*byte]);
            thread::yield_now();
        }
    }

    /// Sends a byte now and then until the client has gone.
    pub fn trickle(mut self) {
        while self.say("x") {
            thread::park_timeout(Duration::from_millis(50));
        }
    }

    /// Answers one request after the other until the client has gone.
    pub fn answer(mut self) {
        while let Some(request) = self.request() {
            self.say(answer(&request) + "\n");
        }
    }

    /// Says this without being asked, and closes so that it arrives.
    pub fn refuse(mut self, words: &str) {
        self.say(words);
        let _ = self.0.get_ref().shutdown(Shutdown::Write);
        self.stall();
    }

    /// Says nothing more until the client has gone.
    pub fn stall(mut self) {
        let mut all = Vec::new();
        match self.0.read_to_end(&mut all) {
            Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => {
                panic!("the client stays")
            }
            Ok(_) | Err(_) => {}
        }
    }

    /// Closes by a reset.
    pub fn reset(self) {
        sockopt::set_socket_linger(self.0.get_ref(), Some(Duration::ZERO)).expect("a socket");
    }
}
