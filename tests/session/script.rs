//! A server that follows a script: what it says, and what it does to its clients.
//!
//! A line of the script is a rule. `CONNECTION: ACTION ; ACTION` is followed from the beginning of a connection, which ends with the last
//! action; `CONNECTION REQUEST: ACTION ; ACTION` at a request. The first rule that fits counts. CONNECTION is a number from 0 on,
//! `2-4`, `2-` or `*`; a REQUEST of `*` is any but WHERE, which is answered with [`ID`] unless a rule names it. The actions:
//!
//! - `say TEXT`, `dribble TEXT`: in one piece, byte by byte; `%c` is the connection's number, `%r` the request, `\n` a line end
//! - `pour TEXT`, `trickle TEXT`: over and over until the client has gone; as fast as it reads, or every 20 ms
//! - `read`, `read A`, `read A1..3`, `read 4096 bytes`: any request, that one, those, all that are sent at once
//! - `read end`, `read check`: the client asks no more; it asks what the plugin asks, and no more
//! - `reply`, `reply 7`: the answers to all that was read, in pieces of 7 bytes; `answer`: to all requests until the client has gone
//! - `stall`, `keep`: says nothing until the client has gone; or until the server ends, even if the client asks no more
//! - `refuse TEXT`: says it and closes so that it arrives; `reset`, `close`

use std::io::{BufRead as _, BufReader, ErrorKind, Read as _, Write as _};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::ops::RangeInclusive;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use rustix::net::sockopt;

use crate::support::PATIENCE;

/// The id that the servers of scripts have, and many daemons of the tests.
pub const ID: &str = "6f0c2a52-5f0e-4b7e-9a35-0c5f7f5a3c1e";

/// Such a server, with a thread for each client.
pub struct ScriptedServer {
    pub address: SocketAddr,
    state: Arc<State>,
    listener: Option<JoinHandle<()>>,
}

#[derive(Default)]
struct State {
    rules: Vec<Rule>,
    ended: AtomicBool,
    connections: AtomicUsize,
    requests: Mutex<Vec<String>>,
    threads: Mutex<Vec<JoinHandle<()>>>,
    kept: Mutex<Vec<TcpStream>>,
}

struct Rule {
    connections: RangeInclusive<usize>,
    request: Option<String>,
    actions: Vec<String>,
}

impl Rule {
    fn parse(line: &str) -> Self {
        let (key, actions) = line.split_once(':').expect("CONNECTION: ACTIONS");
        let (connections, request) = match key.split_once(' ') {
            Some((connections, request)) => (connections, Some(request.to_string())),
            None => (key, None),
        };
        let (first, last) = match connections.split_once('-') {
            Some((first, last)) => (first, last),
            None if connections == "*" => ("0", ""),
            None => (connections, connections),
        };
        let last = last.parse().unwrap_or(usize::MAX);
        Rule {
            connections: first.parse().expect("a number")..=last,
            request,
            actions: actions
                .split(" ; ")
                .map(|a| a.trim_start().to_string())
                .collect(),
        }
    }
}

impl ScriptedServer {
    /// Starts it at this address.
    pub fn at(address: SocketAddr, script: &[String]) -> Self {
        let listener = TcpListener::bind(address).expect("a free port");
        let address = listener.local_addr().expect("it is bound");
        let rules = script.iter().map(|line| Rule::parse(line)).collect();
        let state = Arc::new(State {
            rules,
            ..State::default()
        });
        let shared = state.clone();
        let listener = thread::spawn(move || {
            for stream in listener.incoming() {
                if shared.ended.load(Ordering::SeqCst) {
                    return;
                }
                let connection = shared.connections.fetch_add(1, Ordering::SeqCst);
                let peer = Peer::new(stream.expect("a client"), connection, shared.clone());
                shared
                    .threads
                    .lock()
                    .unwrap()
                    .push(thread::spawn(move || peer.serve()));
            }
        });
        ScriptedServer {
            address,
            state,
            listener: Some(listener),
        }
    }

    /// How many clients have come.
    pub fn connections(&self) -> usize {
        self.state.connections.load(Ordering::SeqCst)
    }

    /// How often this was asked.
    pub fn asked(&self, request: &str) -> usize {
        let requests = self.state.requests.lock().unwrap();
        requests.iter().filter(|asked| *asked == request).count()
    }

    /// Lets no more clients in, and waits until all have gone. Fails if one did not do what the script expects.
    pub fn end(&mut self) {
        self.close();
        for thread in self.state.threads.lock().unwrap().drain(..) {
            thread.join().expect("a client that does as it should");
        }
    }

    fn close(&mut self) {
        self.state.ended.store(true, Ordering::SeqCst);
        if let Some(listener) = self.listener.take() {
            // It is woken by a client.
            let _ = TcpStream::connect_timeout(&self.address, PATIENCE);
            let _ = listener.join();
        }
        self.state.kept.lock().unwrap().clear();
    }
}

impl Drop for ScriptedServer {
    fn drop(&mut self) {
        self.close();
    }
}

/// A client as the server sees it.
struct Peer {
    stream: BufReader<TcpStream>,
    connection: usize,
    state: Arc<State>,
    unanswered: Vec<String>,
}

impl Peer {
    fn new(stream: TcpStream, connection: usize, state: Arc<State>) -> Self {
        stream.set_read_timeout(Some(PATIENCE)).expect("a socket");
        stream.set_write_timeout(Some(PATIENCE)).expect("a socket");
        stream.set_nodelay(true).expect("a socket");
        let (stream, unanswered) = (BufReader::new(stream), Vec::new());
        Peer {
            stream,
            connection,
            state,
            unanswered,
        }
    }

    fn serve(mut self) {
        let state = self.state.clone();
        let connection = self.connection;
        let here = |rule: &&Rule| rule.connections.contains(&connection);
        let rules: Vec<&Rule> = state.rules.iter().filter(here).collect();
        if let Some(rule) = rules.iter().find(|rule| rule.request.is_none()) {
            let _ = rule.actions.iter().all(|action| self.does(action, ""));
            return;
        }
        while let Some(request) = self.request() {
            // A name that was completed has a blank behind it.
            let request = request.trim_end().to_string();
            let at = |wanted: &str| {
                rules
                    .iter()
                    .find(|rule| rule.request.as_deref() == Some(wanted))
            };
            let goes_on = match at(&request) {
                None if request == "WHERE" => self.say(format!("{ID}\n")),
                rule => rule.or(at("*")).is_none_or(|rule| {
                    rule.actions
                        .iter()
                        .all(|action| self.does(action, &request))
                }),
            };
            if !goes_on {
                return;
            }
        }
    }

    /// The next request; nothing when the client asks no more.
    fn request(&mut self) -> Option<String> {
        let mut line = String::new();
        let read = self.stream.read_line(&mut line).unwrap_or(0);
        let request = line.strip_suffix('\n').map(str::to_string);
        assert_eq!(request.is_some(), read > 0, "a cut request: {line:?}");
        self.state.requests.lock().unwrap().extend(request.clone());
        request
    }

    /// Sends this. A client that has gone meanwhile is no failure of the server's.
    fn say(&mut self, bytes: impl AsRef<[u8]>) -> bool {
        let _ = self.stream.get_mut().write_all(bytes.as_ref());
        true
    }

    /// Carries out an action, and tells whether the connection goes on.
    fn does(&mut self, action: &str, request: &str) -> bool {
        let (word, rest) = action.split_once(' ').unwrap_or((action, ""));
        let text = rest.replace("%r", request);
        let bytes = unescape(&text.replace("%c", &self.connection.to_string()));
        match word {
            "say" => self.say(bytes),
            "dribble" => bytes.iter().all(|byte| {
                thread::yield_now();
                self.say([*byte])
            }),
            "pour" => {
                let block = bytes.repeat(65536 / bytes.len());
                let mut blocks = 0..1024;
                while self.stream.get_mut().write_all(&block).is_ok() {
                    blocks.next().expect("a client that doesn't take 64 MiB");
                }
                false
            }
            "trickle" => {
                while self.stream.get_mut().write_all(&bytes).is_ok() {
                    thread::park_timeout(Duration::from_millis(20));
                }
                false
            }
            "read" => self.reads(rest),
            "reply" => {
                let replies: Vec<String> = self.unanswered.drain(..).map(|r| answer(&r)).collect();
                let size = rest.parse().unwrap_or(usize::MAX);
                replies.concat().as_bytes().chunks(size).all(|piece| {
                    thread::yield_now();
                    self.say(piece)
                })
            }
            "answer" => {
                while let Some(request) = self.request() {
                    match rest {
                        "" => self.say(answer(&request)),
                        _ => self.does(&format!("{rest} {}", answer(&request)), ""),
                    };
                }
                false
            }
            "refuse" => {
                self.say(bytes);
                let _ = self.stream.get_ref().shutdown(Shutdown::Write);
                self.does("stall", "")
            }
            "stall" => {
                let read = self.stream.read_to_end(&mut Vec::new());
                let stays = read.is_err_and(|error| error.kind() == ErrorKind::WouldBlock);
                assert!(!stays, "the client stays");
                false
            }
            "keep" => {
                let stream = self.stream.get_ref().try_clone().expect("a descriptor");
                self.state.kept.lock().unwrap().push(stream);
                false
            }
            "reset" => {
                let stream = self.stream.get_ref();
                sockopt::set_socket_linger(stream, Some(Duration::ZERO)).expect("a socket");
                false
            }
            "close" => false,
            "" => true,
            _ => panic!("no action {action:?}"),
        }
    }

    fn reads(&mut self, what: &str) -> bool {
        if let Some(size) = what.strip_suffix(" bytes") {
            let mut room = size.parse::<usize>().expect("a number");
            // The last request of those may not fit in whole.
            while room > 9
                && let Some(request) = self.request()
            {
                room = room.saturating_sub(request.len() + 1);
                self.unanswered.push(request);
            }
            return true;
        }
        match (what, what.split_once("..")) {
            ("", _) => match self.request() {
                Some(request) => self.unanswered.push(request),
                None => return false,
            },
            ("end", _) => assert_eq!(self.request(), None),
            ("check", _) => ["WHO", "WHERE", "WHY", "end"].into_iter().for_each(|what| {
                self.reads(what);
            }),
            (_, Some((first, last))) => {
                let digit = first.find(|c: char| c.is_ascii_digit()).expect("A1..3");
                let (name, first) = first.split_at(digit);
                let number = |text: &str| text.parse::<usize>().expect("a number");
                for each in number(first)..=number(last) {
                    self.reads(&format!("{name}{each}"));
                }
            }
            _ => {
                assert_eq!(self.request().as_deref(), Some(what));
                self.unanswered.push(what.to_string());
            }
        }
        true
    }
}

/// What is answered by a server that means well.
fn answer(request: &str) -> String {
    match request {
        "PING" => "PONG\n".to_string(),
        _ => format!("to {request}\n"),
    }
}

/// The bytes that a text of a script or a session stands for: `\r`, `\n`, `\t`, `\e`, `\\` and `\xff` are as in C.
pub fn unescape(text: &str) -> Vec<u8> {
    let (mut bytes, mut rest) = (Vec::new(), text);
    while let Some((before, escaped)) = rest.split_once('\\') {
        bytes.extend(before.bytes());
        let (byte, length) = match escaped.as_bytes()[0] {
            b'n' => (b'\n', 1),
            b'r' => (b'\r', 1),
            b't' => (b'\t', 1),
            b'e' => (0x1b, 1),
            b'x' => (
                u8::from_str_radix(&escaped[1..3], 16).expect("two digits"),
                3,
            ),
            other => (other, 1),
        };
        bytes.push(byte);
        rest = &escaped[length..];
    }
    bytes.extend(rest.bytes());
    bytes
}
