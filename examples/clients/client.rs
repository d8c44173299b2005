//! A client of blockchain-tcpd in Rust 1.63 or later, with nothing but std.
//!
//!     rustc --edition 2021 -O client.rs
//!     ./client [--repeat SECONDS] HOST PORT REQUEST [REQUEST ...]
//!
//! [`Client`] is to be copied, the program below it shows its use. README.md, beside this file, says what both do.

use std::io::{self, BufRead, BufReader, ErrorKind, Write};
use std::net::{TcpStream, ToSocketAddrs};
use std::process::exit;
use std::time::{Duration, Instant};
use std::{env, fmt, thread};

const LONGEST_REQUEST: usize = 1023; // bytes, without the line end
const LONGEST_REPLY: usize = 4096; // bytes: a server that sends longer lines speaks something else
const BATCH: usize = 4096; // bytes of requests sent at once: the system takes them even when the server reads none
const ATTEMPTS: u32 = 5; // in a row without a reply, before it gives up
const PAUSE: Duration = Duration::from_millis(100); // before the second attempt, and twice as long before each further one
const MOMENT: Duration = Duration::from_millis(1); // which is as good as none, where none would mean forever

/// What the server answers: a value; or a word for programs and a sentence for people.
pub type Reply = Result<String, ServerError>;

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

fn lost(why: impl ToString) -> io::Error {
    io::Error::new(ErrorKind::NotConnected, why.to_string())
}

/// A connection that is made when it is needed, and made again when it is lost.
pub struct Client {
    host: String,
    port: u16,
    timeout: Duration,
    stream: Option<BufReader<TcpStream>>,
}

impl Client {
    pub fn new(host: &str, port: u16, timeout: Duration) -> Self {
        Client {
            host: host.to_string(),
            port,
            timeout,
            stream: None,
        }
    }

    /// Hands the reply to each request to `take`, in order. Fails with `InvalidInput` if something can't be asked, with
    /// `ConnectionRefused` if the server is busy, otherwise if there is no connection.
    pub fn ask(
        &mut self,
        mut requests: &[&str],
        mut take: impl FnMut(&str, Reply),
    ) -> io::Result<()> {
        if let Some(request) = requests.iter().find(|request| !is_request(request)) {
            let error = format!("not a request: {request}");
            return Err(io::Error::new(ErrorKind::InvalidInput, error));
        }
        let mut failures = 0;
        while !requests.is_empty() {
            let mut exchange = || -> io::Result<()> {
                for _ in 0..self.send(requests)? {
                    let reply = self.reply()?;
                    take(requests[0], reply);
                    requests = &requests[1..];
                    failures = 0;
                }
                Ok(())
            };
            if let Err(error) = exchange() {
                self.stream = None;
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
    pub fn keep_alive(&mut self) -> io::Result<()> {
        let mut is_pong = false;
        self.ask(&["PING"], |_, reply| {
            is_pong = matches!(reply, Ok(value) if value == "PONG")
        })?;
        if !is_pong {
            self.stream = None;
        }
        Ok(())
    }

    /// Sends as many of the requests as are sent at once, and returns how many.
    fn send(&mut self, requests: &[&str]) -> io::Result<usize> {
        let stream = match self.stream.take().and_then(if_quiet) {
            Some(stream) => stream,
            None => match connect(&self.host, self.port, self.timeout) {
                Ok(stream) => BufReader::new(stream),
                Err(error) => return Err(lost(format!("no connection: {error}"))),
            },
        };
        let (mut batch, mut asked) = (String::new(), 0);
        for request in requests {
            if batch.len() + request.len() >= BATCH {
                break;
            }
            batch += request;
            batch += "\n";
            asked += 1;
        }
        stream.get_ref().write_all(batch.as_bytes())?;
        self.stream = Some(stream);
        Ok(asked)
    }

    fn reply(&mut self) -> io::Result<Reply> {
        let line = self.line()?;
        let error = match line.strip_prefix("ERR ") {
            Some(error) => error,
            None => return Ok(Ok(line)),
        };
        let (word, sentence) = error.split_once(' ').unwrap_or((error, ""));
        let closed = format!("the server closed the connection: {sentence}");
        let busy = format!("the server is busy: {sentence}");
        match word {
            // These two are about the connection, whatever was asked, and the server closes after them.
            "BUSY" => Err(io::Error::new(ErrorKind::ConnectionRefused, busy)),
            "TIMEOUT" => Err(lost(closed)),
            _ => Ok(Err(ServerError {
                word: word.to_string(),
                sentence: sentence.to_string(),
            })),
        }
    }

    /// The next line of the server, without its end.
    fn line(&mut self) -> io::Result<String> {
        let deadline = Instant::now() + self.timeout;
        let stream = self.stream.as_mut().ok_or_else(|| lost("no connection"))?;
        let mut line = String::new();
        loop {
            if stream.buffer().is_empty() {
                let left = deadline.saturating_duration_since(Instant::now());
                let bound = Some(left.max(MOMENT));
                stream.get_ref().set_read_timeout(bound)?;
            }
            let byte = match stream.fill_buf() {
                Ok(bytes) => bytes.first().copied(),
                Err(error) if is_late(&error) => return Err(lost("no reply in time")),
                Err(error) => return Err(error),
            };
            stream.consume(1);
            match byte {
                None => return Err(lost("the server closed the connection")),
                Some(b'\n') => return Ok(line),
                Some(byte @ b' '..=b'~') if line.len() < LONGEST_REPLY => line.push(byte.into()),
                Some(_) => return Err(lost("the server sent something that is no reply")),
            }
        }
    }
}

fn connect(host: &str, port: u16, timeout: Duration) -> io::Result<TcpStream> {
    let mut result = Err(ErrorKind::NotFound.into());
    for address in (host, port).to_socket_addrs()? {
        result = TcpStream::connect_timeout(&address, timeout);
        if let Ok(stream) = &result {
            stream.set_write_timeout(Some(timeout))?;
            break;
        }
    }
    result
}

/// Gives back a connection on which nothing has come while nobody asked: that would be the end, or last words, or no reply to
/// what is asked next.
fn if_quiet(mut stream: BufReader<TcpStream>) -> Option<BufReader<TcpStream>> {
    stream.get_ref().set_read_timeout(Some(MOMENT)).ok()?;
    match stream.fill_buf() {
        Err(error) if is_late(&error) => Some(stream),
        _ => None,
    }
}

/// Whether a read has had its time, as the systems say it.
fn is_late(error: &io::Error) -> bool {
    matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut)
}

/// A line without a word would get no reply; a line end, or too long a line, would be something else.
fn is_request(text: &str) -> bool {
    text.len() <= LONGEST_REQUEST
        && text.bytes().any(|byte| byte.is_ascii_graphic())
        && text.bytes().all(|byte| matches!(byte, b'\t' | b' '..=b'~'))
}

// The program.

fn put(line: &str) {
    if let Err(error) = writeln!(io::stdout(), "{line}") {
        if error.kind() != ErrorKind::BrokenPipe {
            eprintln!("client: stdout: {error}");
        }
        exit(74);
    }
}

/// Returns the exit status that this comes to.
fn ask_and_print(client: &mut Client, requests: &[&str]) -> i32 {
    let mut status = 0;
    let asked = client.ask(requests, |request, reply| match reply {
        Ok(value) => put(&format!("{request}\t{value}")),
        Err(error) => {
            eprintln!("{request}: {error}");
            status = 1;
        }
    });
    if let Err(error) = asked {
        status = match error.kind() {
            ErrorKind::InvalidInput => wrong(&error.to_string()),
            ErrorKind::ConnectionRefused => 75,
            _ => 69,
        };
        eprintln!("client: {}:{}: {error}", client.host, client.port);
    }
    status
}

/// Waits, and keeps the connection alive meanwhile.
fn wait(client: &mut Client, mut left: Duration, keepalive: Duration) {
    while left > keepalive {
        thread::sleep(keepalive);
        left -= keepalive;
        // If it fails, the next request says so, if it still is so then.
        let _ = client.keep_alive();
    }
    thread::sleep(left);
}

fn wrong(message: &str) -> ! {
    eprintln!("usage: client [--repeat SECONDS] HOST PORT REQUEST [REQUEST ...]");
    eprintln!("client: {message}");
    exit(64);
}

fn seconds(text: &str) -> Duration {
    let is_decimal = text
        .bytes()
        .all(|byte| byte == b'.' || byte.is_ascii_digit())
        && !text.ends_with('.');
    match text.parse() {
        Ok(number) if is_decimal && (0.001..=1e6).contains(&number) => {
            Duration::from_secs_f64(number)
        }
        _ => wrong(&format!("not a number of seconds: {text}")),
    }
}

fn setting(name: &str, otherwise: &str) -> Duration {
    let text = env::var_os(name).unwrap_or_else(|| otherwise.into());
    seconds(&text.to_string_lossy())
}

fn main() {
    // What is not UTF-8 is shown as far as it can be, and is no request.
    let words = env::args_os().skip(1);
    let mut words: Vec<String> = words.map(|word| word.to_string_lossy().into()).collect();
    let mut repeat = None;
    if words.len() > 1 && words[0] == "--repeat" {
        repeat = Some(seconds(&words[1]));
        words.drain(..2);
    }
    if words.len() < 3 || words[0].is_empty() || words[0].starts_with('-') {
        wrong("nothing to ask");
    }
    let (host, requests) = (&words[0], words[2..].iter().map(String::as_str));
    let requests: Vec<&str> = requests.collect();
    let port = match words[1].parse() {
        Ok(port) if port > 0 && !words[1].starts_with('+') => port,
        _ => wrong(&format!("not a port: {}", words[1])),
    };
    let mut client = Client::new(host, port, setting("TIMEOUT", "2"));
    let keepalive = setting("KEEPALIVE", "60");
    loop {
        let status = ask_and_print(&mut client, &requests);
        match repeat {
            Some(time) => wait(&mut client, time, keepalive),
            None => exit(status),
        }
    }
}
