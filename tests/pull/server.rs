//! A server of feeds: what it does to each request, a test says.

use std::collections::HashMap;
use std::io::{self, BufRead as _, BufReader, Write as _};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use crate::support::PATIENCE;

/// What came.
#[derive(Clone, Debug)]
pub struct Request {
    /// The path with its query.
    pub path: String,
    /// Its fields, whose names are in small letters.
    fields: HashMap<String, String>,
    /// When it came.
    pub at: Instant,
}

impl Request {
    /// Reads one.
    fn read(stream: &TcpStream) -> Option<Self> {
        let mut lines = BufReader::new(stream).lines().map_while(Result::ok);
        let first = lines.next()?;
        let fields = lines.take_while(|line| !line.is_empty());
        let fields = fields.filter_map(|line| {
            let (name, value) = line.split_once(':')?;
            Some((name.to_ascii_lowercase(), value.trim().to_string()))
        });
        Some(Request {
            path: first.split(' ').nth(1)?.to_string(),
            fields: fields.collect(),
            at: Instant::now(),
        })
    }

    /// The value of a field.
    pub fn field(&self, name: &str) -> Option<&str> {
        self.fields.get(name).map(String::as_str)
    }
}

/// What is done to a request: bytes are written, then the connection is closed.
type Script = dyn Fn(&Request, &mut TcpStream) -> io::Result<()> + Send + Sync;

struct State {
    script: Mutex<Arc<Script>>,
    requests: Mutex<Vec<Request>>,
    /// How many requests are being answered, and the most at a time.
    open: AtomicUsize,
    most: AtomicUsize,
    ended: AtomicBool,
}

/// The server. Dropped, it answers nobody any more.
pub struct FeedServer {
    pub address: SocketAddr,
    state: Arc<State>,
}

impl FeedServer {
    /// A server that does this.
    pub fn start(
        script: impl Fn(&Request, &mut TcpStream) -> io::Result<()> + Send + Sync + 'static,
    ) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
        let address = listener.local_addr().expect("bound");
        let state = Arc::new(State {
            script: Mutex::new(Arc::new(script)),
            requests: Mutex::default(),
            open: AtomicUsize::new(0),
            most: AtomicUsize::new(0),
            ended: AtomicBool::new(false),
        });
        let server = state.clone();
        thread::spawn(move || {
            for stream in listener.incoming().map_while(Result::ok) {
                if server.ended.load(Ordering::SeqCst) {
                    return;
                }
                let server = server.clone();
                thread::spawn(move || server.answer(stream));
            }
        });
        FeedServer { address, state }
    }

    /// A server that always answers with this body.
    pub fn of(body: impl AsRef<[u8]>) -> Self {
        let body = body.as_ref().to_vec();
        FeedServer::start(move |_, to| to.write_all(&ok(&body)))
    }

    /// Does this from now on.
    pub fn serve(
        &self,
        script: impl Fn(&Request, &mut TcpStream) -> io::Result<()> + Send + Sync + 'static,
    ) {
        *self.state.script.lock().unwrap() = Arc::new(script);
    }

    /// Answers with this body from now on.
    pub fn give(&self, body: impl AsRef<[u8]>) {
        let body = body.as_ref().to_vec();
        self.serve(move |_, to| to.write_all(&ok(&body)));
    }

    /// The URL of this path.
    pub fn url(&self, path: &str) -> String {
        format!("http://{}{path}", self.address)
    }

    /// All requests so far.
    pub fn requests(&self) -> Vec<Request> {
        self.state.requests.lock().unwrap().clone()
    }

    /// How many requests there were.
    pub fn count(&self) -> usize {
        self.state.requests.lock().unwrap().len()
    }

    /// How many requests are being answered.
    pub fn open(&self) -> usize {
        self.state.open.load(Ordering::SeqCst)
    }

    /// The largest number of requests that were answered at the same time.
    pub fn most(&self) -> usize {
        self.state.most.load(Ordering::SeqCst)
    }
}

impl State {
    fn answer(&self, mut stream: TcpStream) {
        let timeouts = stream.set_read_timeout(Some(PATIENCE));
        timeouts
            .and(stream.set_write_timeout(Some(PATIENCE)))
            .expect("a socket");
        stream.set_nodelay(true).expect("a socket");
        let Some(request) = Request::read(&stream) else {
            return;
        };
        let open = self.open.fetch_add(1, Ordering::SeqCst) + 1;
        self.most.fetch_max(open, Ordering::SeqCst);
        let script = self.script.lock().unwrap().clone();
        self.requests.lock().unwrap().push(request.clone());
        // Whoever asked may be gone.
        let _ = script(&request, &mut stream);
        self.open.fetch_sub(1, Ordering::SeqCst);
    }
}

impl Drop for FeedServer {
    fn drop(&mut self) {
        self.state.ended.store(true, Ordering::SeqCst);
        // It waits for a connection.
        let _ = TcpStream::connect(self.address);
    }
}

/// A response with these fields, each with its line end, and no word of its length.
pub fn head(status: &str, fields: &str) -> String {
    format!("HTTP/1.1 {status}\r\nConnection: close\r\n{fields}\r\n")
}

/// A whole response with these fields.
pub fn response(status: &str, fields: &str, body: &[u8]) -> Vec<u8> {
    let fields = format!("{fields}Content-Length: {}\r\n", body.len());
    let mut all = head(status, &fields).into_bytes();
    all.extend_from_slice(body);
    all
}

/// A whole response of success.
pub fn ok(body: &[u8]) -> Vec<u8> {
    response("200 OK", "Content-Type: application/json\r\n", body)
}

/// A body in chunks of this size. Without `end` the last one is missing.
pub fn chunked(body: &[u8], size: usize, end: bool) -> Vec<u8> {
    let mut all = head("200 OK", "Transfer-Encoding: chunked\r\n").into_bytes();
    for chunk in body.chunks(size) {
        all.extend_from_slice(format!("{:x}\r\n", chunk.len()).as_bytes());
        all.extend_from_slice(chunk);
        all.extend_from_slice(b"\r\n");
    }
    if end {
        all.extend_from_slice(b"0\r\n\r\n");
    }
    all
}

/// What holds a response back until a test opens it.
#[derive(Clone, Default)]
pub struct Gate(Arc<(Mutex<bool>, Condvar)>);

impl Gate {
    /// Lets everybody pass.
    pub fn open(&self) {
        *self.0.0.lock().unwrap() = true;
        self.0.1.notify_all();
    }

    /// Waits until it is open.
    pub fn pass(&self) {
        self.wait(PATIENCE);
    }

    /// Waits until it is open, or has been waited for so long. Returns whether it is open.
    pub fn wait(&self, longest: Duration) -> bool {
        let (is_open, opened) = &*self.0;
        let is_open = is_open.lock().unwrap();
        let waited = opened.wait_timeout_while(is_open, longest, |is_open| !*is_open);
        *waited.unwrap().0
    }
}
