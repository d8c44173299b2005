//! A client of blockchain-tcpd in Rust 1.63 or later, with nothing but std.
//!
//!     rustc --edition 2021 -O client.rs
//!     ./client [--repeat SECONDS] HOST PORT REQUEST [REQUEST ...]
//!
//! [`Client`] connects to any address of a name, within a time-out; sends many requests at once and matches their replies,
//! however these are cut into packets; gives an ERR as an error of its own; keeps the connection alive with PING; and, when it
//! is lost, makes a new one and asks again what was not answered. README.md, beside this file, says what is printed and when.
//! What std can't do: it knows no signals, so that SIGINT and SIGTERM end the program in the system's way, which closes the
//! connection, too. A program that does more at its end takes the crate signal-hook.

use std::io::{self, ErrorKind, Read, Write};
use std::net::{TcpStream, ToSocketAddrs};
use std::process::exit;
use std::time::{Duration, Instant};
use std::{env, fmt, thread};

/// In bytes: a server that sends longer lines speaks something else.
const LONGEST_REPLY: usize = 4096;
/// In bytes of requests sent at once: the system takes them even when the server reads none.
const BATCH: usize = 4096;
/// In a row without a reply, before it gives up.
const ATTEMPTS: u32 = 5;
/// Before the second attempt, and twice as long before each further one.
const PAUSE: Duration = Duration::from_millis(100);

/// What the server answers in the place of a value: a word for programs and a sentence for people.
#[derive(Debug)]
pub struct ServerError {
    pub word: String,
    pub sentence: String,
}

impl fmt::Display for ServerError {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        write!(f, "{}: {}", self.word, self.sentence)
    }
}

impl std::error::Error for ServerError {}

/// Why there is no connection.
#[derive(Debug)]
pub enum Lost {
    /// The server has no room now.
    Busy(String),
    Closed(String),
    Nonsense,
    Io(io::Error),
}

impl fmt::Display for Lost {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        match self {
            Lost::Busy(sentence) => write!(f, "the server is busy: {sentence}"),
            Lost::Closed(sentence) => write!(f, "the server closed the connection{sentence}"),
            Lost::Nonsense => write!(f, "the server sent something that is no reply"),
            Lost::Io(error) => write!(f, "{error}"),
        }
    }
}

impl std::error::Error for Lost {}

impl From<io::Error> for Lost {
    fn from(error: io::Error) -> Self {
        match error.kind() {
            // What the system calls a read that had its time.
            ErrorKind::WouldBlock | ErrorKind::TimedOut => {
                Lost::Io(io::Error::new(ErrorKind::TimedOut, "no reply in time"))
            }
            _ => Lost::Io(error),
        }
    }
}

/// A connection that is made when it is needed, and made again when it is lost.
pub struct Client {
    host: String,
    port: u16,
    timeout: Duration,
    connection: Option<Connection>,
}

impl Client {
    pub fn new(host: String, port: u16, timeout: Duration) -> Self {
        Client {
            host,
            port,
            timeout,
            connection: None,
        }
    }

    /// Hands the reply to each request to `take`, in order. Fails when there is no connection.
    pub fn ask(
        &mut self,
        requests: &[String],
        mut take: impl FnMut(&str, Result<&str, ServerError>),
    ) -> Result<(), Lost> {
        let (mut answered, mut failures) = (0, 0);
        while answered < requests.len() {
            let result = self.exchange(&requests[answered..], |request, reply| {
                (answered, failures) = (answered + 1, 0);
                take(request, reply);
            });
            if let Err(error) = result {
                self.connection = None;
                failures += 1;
                if failures == ATTEMPTS {
                    return Err(error);
                }
                thread::sleep(PAUSE * (1 << (failures - 1)));
            }
        }
        Ok(())
    }

    /// To be called when nothing has been asked for a while, or the server closes the connection.
    pub fn keep_alive(&mut self) -> Result<(), Lost> {
        let mut is_pong = false;
        self.ask(&["PING".to_string()], |_, reply| {
            is_pong = matches!(reply, Ok("PONG"))
        })?;
        if !is_pong {
            self.connection = None;
        }
        Ok(())
    }

    fn exchange(
        &mut self,
        mut requests: &[String],
        mut take: impl FnMut(&str, Result<&str, ServerError>),
    ) -> Result<(), Lost> {
        let connection = match self.connection.take().filter(Connection::is_quiet) {
            Some(connection) => connection,
            None => Connection::open(&self.host, self.port, self.timeout)?,
        };
        let connection = self.connection.insert(connection);
        while !requests.is_empty() {
            let (batch, rest) = requests.split_at(batch_of(requests));
            requests = rest;
            connection
                .stream
                .write_all((batch.join("\n") + "\n").as_bytes())?;
            for request in batch {
                take(request, connection.reply()?);
            }
        }
        Ok(())
    }
}

struct Connection {
    stream: TcpStream,
    timeout: Duration,
    buffer: [u8; LONGEST_REPLY + 1],
    begin: usize,
    end: usize,
}

impl Connection {
    fn open(host: &str, port: u16, timeout: Duration) -> Result<Self, Lost> {
        let mut failure = io::Error::new(ErrorKind::NotFound, "the name has no address");
        for address in (host, port).to_socket_addrs()? {
            match TcpStream::connect_timeout(&address, timeout) {
                Ok(stream) => {
                    stream.set_write_timeout(Some(timeout))?;
                    return Ok(Connection {
                        stream,
                        timeout,
                        buffer: [0; LONGEST_REPLY + 1],
                        begin: 0,
                        end: 0,
                    });
                }
                Err(error) => failure = error,
            }
        }
        Err(Lost::Io(failure))
    }

    /// Whether nothing has come while nobody asked: that would be the end, or last words, or no reply to what is asked next.
    fn is_quiet(&self) -> bool {
        let peek = || {
            self.stream.set_nonblocking(true)?;
            let peeked = self.stream.peek(&mut [0]);
            self.stream.set_nonblocking(false)?;
            peeked
        };
        self.begin == self.end
            && matches!(peek(), Err(error) if error.kind() == ErrorKind::WouldBlock)
    }

    fn reply(&mut self) -> Result<Result<&str, ServerError>, Lost> {
        let line = self.line()?;
        let error = match line.strip_prefix("ERR ") {
            Some(error) => error,
            None => return Ok(Ok(line)),
        };
        let (word, sentence) = error.split_once(' ').unwrap_or((error, ""));
        let (word, sentence) = (word.to_string(), sentence.to_string());
        match &*word {
            // These two are about the connection, whatever was asked, and the server closes after them.
            "BUSY" => Err(Lost::Busy(sentence)),
            "TIMEOUT" => Err(Lost::Closed(format!(": {sentence}"))),
            _ => Ok(Err(ServerError { word, sentence })),
        }
    }

    /// The next line of the server, without its end.
    fn line(&mut self) -> Result<&str, Lost> {
        let deadline = Instant::now() + self.timeout;
        let mut scanned = 0;
        loop {
            let unread = &self.buffer[self.begin..self.end];
            if let Some(at) = unread[scanned..]
                .iter()
                .position(|byte| !(b' '..=b'~').contains(byte))
            {
                let (begin, end) = (self.begin, self.begin + scanned + at);
                if self.buffer[end] != b'\n' {
                    return Err(Lost::Nonsense);
                }
                self.begin = end + 1;
                return Ok(std::str::from_utf8(&self.buffer[begin..end]).expect("ASCII"));
            }
            scanned = unread.len();
            self.fill(deadline)?;
        }
    }

    /// Moves what is there to the front, and reads at least a byte behind it.
    fn fill(&mut self, deadline: Instant) -> Result<(), Lost> {
        self.buffer.copy_within(self.begin..self.end, 0);
        self.end -= self.begin;
        self.begin = 0;
        if self.end == self.buffer.len() {
            return Err(Lost::Nonsense);
        }
        let left = deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Err(io::Error::from(ErrorKind::TimedOut).into());
        }
        self.stream.set_read_timeout(Some(left))?;
        match self.stream.read(&mut self.buffer[self.end..]) {
            Ok(0) => Err(Lost::Closed(String::new())),
            Ok(read) => {
                self.end += read;
                Ok(())
            }
            Err(error) if error.kind() == ErrorKind::Interrupted => Ok(()),
            Err(error) => Err(error.into()),
        }
    }
}

/// How many of the requests are sent at once.
fn batch_of(requests: &[String]) -> usize {
    let mut size = 0;
    let fits = |request: &&String| {
        size += request.len() + 1;
        size <= BATCH
    };
    requests.iter().take_while(fits).count()
}

/// Returns the exit status that this comes to.
fn ask_and_print(client: &mut Client, requests: &[String]) -> io::Result<i32> {
    let (mut status, mut printed) = (0, Ok(()));
    let mut out = io::BufWriter::new(io::stdout());
    let asked = client.ask(requests, |request, reply| match reply {
        Ok(value) => {
            let written = writeln!(out, "{request}\t{value}");
            if printed.is_ok() {
                printed = written;
            }
        }
        Err(error) => {
            eprintln!("{request}: {error}");
            status = 1;
        }
    });
    out.flush()?;
    if let Err(error) = asked {
        eprintln!("client: {}:{}: {error}", client.host, client.port);
        status = if matches!(error, Lost::Busy(_)) {
            75
        } else {
            69
        };
    }
    printed.map(|()| status)
}

/// Waits, and keeps the connection alive meanwhile.
fn wait(client: &mut Client, mut time: Duration, keepalive: Duration) {
    while time > keepalive {
        thread::sleep(keepalive);
        time -= keepalive;
        // If it fails, the next request says so, if it still is so then.
        let _ = client.keep_alive();
    }
    thread::sleep(time);
}

fn wrong(message: &str) -> ! {
    eprintln!(
        "usage: client [--repeat SECONDS] HOST PORT REQUEST [REQUEST ...]\nclient: {message}"
    );
    exit(64);
}

fn seconds(text: &str) -> Duration {
    let number = text.parse().unwrap_or(0.0);
    if !text
        .bytes()
        .all(|byte| byte.is_ascii_digit() || byte == b'.')
        || !(0.001..=1e6).contains(&number)
    {
        wrong(&format!("not a number of seconds: {text}"));
    }
    Duration::from_secs_f64(number)
}

fn setting(name: &str, otherwise: &str) -> Duration {
    seconds(&env::var(name).unwrap_or_else(|_| otherwise.to_string()))
}

/// A line without a word would get no reply; a line end, or too long a line, would be something else.
fn is_request(text: &str) -> bool {
    let word = text.bytes().any(|byte| byte.is_ascii_graphic());
    word && text.len() <= 1023 && text.bytes().all(|byte| matches!(byte, b'\t' | b' '..=b'~'))
}

fn main() -> io::Result<()> {
    let mut words: Vec<String> = env::args().skip(1).collect();
    let mut repeat = None;
    if words.len() > 1 && words[0] == "--repeat" {
        repeat = Some(seconds(&words[1]));
        words.drain(..2);
    }
    if words.len() < 3 || words[0].starts_with('-') {
        wrong("nothing to ask");
    }
    let requests = words.split_off(2);
    let port = match words[1].parse() {
        Ok(port) if port > 0 => port,
        _ => wrong(&format!("not a port: {}", words[1])),
    };
    if let Some(request) = requests.iter().find(|request| !is_request(request)) {
        wrong(&format!("not a request: {request:?}"));
    }
    let keepalive = setting("KEEPALIVE", "60");
    let mut client = Client::new(words.swap_remove(0), port, setting("TIMEOUT", "2"));
    loop {
        let status = ask_and_print(&mut client, &requests)?;
        match repeat {
            Some(time) => wait(&mut client, time, keepalive),
            None => exit(status),
        }
    }
}
