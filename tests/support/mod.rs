//! What the tests share: the real daemon as a child process, its log, and a client that waits for what should come.
//!
//! Every wait is bounded by [`PATIENCE`] and fails with what was seen instead.

#[allow(dead_code)] // some of it is for tests/cluster alone
pub mod backends;
pub mod certificates;
pub mod http;
pub mod kernel;
pub mod manager;
pub mod names;
pub mod terminal;
pub mod trickle;
pub mod watch;
pub mod way;

use std::borrow::Cow;
use std::ffi::OsStr;
use std::io::{self, BufRead as _, BufReader, Read as _, Write as _};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::{Arc, Condvar, Mutex};
use std::time::{Duration, Instant};

/// Far more than anything here takes on a slow and busy machine.
pub const PATIENCE: Duration = Duration::from_secs(30);

/// The daemon's program in a [`clean`] environment.
pub fn program() -> Command {
    clean(env!("CARGO_BIN_EXE_blockchain-tcpd"))
}

/// The programs of others that a variable may name: `REDIS_SERVER` for redis-server, and so on. CONTRIBUTING.md lists them.
const NAMED: [&str; 10] = [
    "redis-server",
    "redis-sentinel",
    "redis-cli",
    "etcd",
    "etcdctl",
    "haproxy",
    "openssl",
    "prometheus",
    "promtool",
    "prometheus-blackbox-exporter",
];

/// The variable that names a program.
fn variable_for(program: &str) -> String {
    program.to_uppercase().replace('-', "_")
}

/// Where a program is: the path or name in its variable, otherwise its own name.
pub fn located(program: &OsStr) -> Cow<'_, OsStr> {
    let named = NAMED.iter().find(|&&named| program == named);
    let value = named.and_then(|named| std::env::var_os(variable_for(named)));
    match value.filter(|value| !value.is_empty()) {
        // A path that is relative is so to the root of the project, wherever the program is started.
        Some(value) if value.to_string_lossy().contains('/') => {
            let path = std::path::absolute(value).expect("not empty");
            Cow::Owned(path.into_os_string())
        }
        Some(value) => Cow::Owned(value),
        None => Cow::Borrowed(program),
    }
}

/// The same for a shell's commands: functions that call the programs from where they are.
pub fn located_in_shell() -> String {
    let function = |program: &&str| {
        let path = located(OsStr::new(program));
        format!("{program}() {{ command '{}' \"$@\"; }}\n", path.display())
    };
    NAMED.iter().map(function).collect()
}

/// This program, [`located`], without input and without any variable that the daemon knows, but the one that
/// switches HTTP off.
pub fn clean(program: impl AsRef<OsStr>) -> Command {
    let mut command = Command::new(located(program.as_ref()));
    for (variable, _) in std::env::vars_os() {
        let name = variable.to_string_lossy().into_owned();
        if name.starts_with("BLOCKCHAIN_TCPD_")
            || ["STATE_DIRECTORY", "JOURNAL_STREAM", "NOTIFY_SOCKET"].contains(&name.as_str())
        {
            command.env_remove(variable);
        }
    }
    // Each would want the same port; a test of it says which.
    command.env("BLOCKCHAIN_TCPD_HTTP", "");
    command.stdin(Stdio::null());
    command
}

/// A running daemon. Dropped, it is killed.
pub struct Daemon {
    child: Child,
    log: Log,
    /// The first address of its ready line.
    pub address: SocketAddr,
}

impl Daemon {
    /// Starts the daemon on a free port of 127.0.0.1, with these arguments besides, and waits until it is ready.
    pub fn start<A: AsRef<OsStr>>(arguments: impl IntoIterator<Item = A>) -> Self {
        let mut command = program();
        command.args(["--listen", "127.0.0.1:0"]).args(arguments);
        Self::run(command)
    }

    /// Runs this command, which must end in the daemon itself (not in a child of it), and waits until it is ready.
    pub fn run(mut command: Command) -> Self {
        let mut child = command
            .stderr(Stdio::piped())
            .spawn()
            .expect("the daemon starts");
        let log = Log::follow(child.stderr.take().expect("stderr is piped"));
        // From here on it is killed if something goes wrong.
        let mut daemon = Daemon {
            child,
            log,
            address: SocketAddr::from(([0; 4], 0)),
        };
        let ready = daemon.log.wait_for("ready listen=");
        daemon.address = field(&ready, "listen")
            .split(',')
            .next()
            .and_then(|address| address.parse().ok())
            .unwrap_or_else(|| panic!("no address in {ready:?}"));
        daemon
    }

    /// The address of its HTTP server, which it must have been told to start.
    pub fn http(&self) -> SocketAddr {
        let ready = self.log.wait_for("ready listen=");
        let address = field(&ready, "http").parse();
        address.unwrap_or_else(|_| panic!("no HTTP in {ready:?}"))
    }

    /// Connects a client.
    pub fn connect(&self) -> Client {
        Client::connect(self.address).expect("the daemon accepts")
    }

    /// Sends all of `input` in a connection of its own, shuts down its sending side, and returns all that comes back.
    pub fn ask(&self, input: impl AsRef<[u8]>) -> String {
        let mut client = self.connect();
        client.send(input);
        client.shutdown();
        client.rest()
    }

    /// Waits until so many clients are connected, the asking one not counted.
    pub fn wait_for_others(&self, clients: usize) {
        let who = format!("{}\n", clients + 1);
        wait_until(&format!("{clients} clients are connected"), || {
            self.ask("WHO\n") == who
        });
    }

    /// The process id.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// The log so far.
    pub fn log(&self) -> &Log {
        &self.log
    }

    /// Sends a signal by its name, such as TERM.
    pub fn signal(&self, name: &str) {
        assert!(kill(name, self.pid()), "kill -s {name}");
    }

    /// The same if it has not ended yet.
    pub fn signal_if_there(&mut self, name: &str) {
        // It is our child and not waited for, so that its id is nobody else's.
        if self.ended().is_none() {
            kill(name, self.pid());
        }
    }

    /// How the process ended, if it has.
    pub fn ended(&mut self) -> Option<ExitStatus> {
        self.child.try_wait().expect("it is our child")
    }

    /// Waits until the process ends.
    pub fn wait(&mut self) -> ExitStatus {
        let mut status = None;
        wait_until("the daemon ends", || {
            status = self.ended();
            status.is_some()
        });
        status.expect("waited for")
    }

    /// SIGTERM, the end, the whole log. It must have ended with status 0.
    pub fn stop(mut self) -> String {
        self.signal("TERM");
        let status = self.wait();
        let log = self.log.whole();
        assert!(status.success(), "{status}: {log}");
        log
    }

    /// A number in /proc/PID/status, such as `Threads` or `VmRSS` (in KiB).
    pub fn status_number(&self, name: &str) -> u64 {
        let file = format!("/proc/{}/status", self.pid());
        let status = std::fs::read_to_string(file).expect("the daemon lives");
        status
            .lines()
            .find_map(|line| line.strip_prefix(name)?.strip_prefix(':'))
            .and_then(|rest| rest.split_whitespace().next()?.parse().ok())
            .unwrap_or_else(|| panic!("no {name} in {status}"))
    }

    /// How many descriptors it has open.
    pub fn descriptors(&self) -> usize {
        std::fs::read_dir(format!("/proc/{}/fd", self.pid()))
            .expect("the daemon lives")
            .count()
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        // It may have ended.
        let _ = self.child.kill();
        let _ = self.child.wait();
        if std::thread::panicking() {
            eprintln!("--- the daemon's log:\n{}", self.log.whole());
        }
    }
}

/// What a process wrote to stderr so far, line by line.
#[derive(Clone)]
pub struct Log(Arc<(Mutex<LogState>, Condvar)>);

#[derive(Default)]
struct LogState {
    lines: Vec<String>,
    ended: bool,
}

impl Log {
    /// Reads `stream` to its end, in a thread.
    pub fn follow(stream: impl io::Read + Send + 'static) -> Self {
        let log = Log(Arc::default());
        let writer = log.clone();
        std::thread::spawn(move || {
            let mut stream = BufReader::new(stream);
            loop {
                let mut line = Vec::new();
                let read = stream.read_until(b'\n', &mut line).unwrap_or(0);
                let mut state = writer.0.0.lock().unwrap();
                if read == 0 {
                    state.ended = true;
                } else {
                    let line = String::from_utf8_lossy(&line).trim_end().to_string();
                    state.lines.push(line);
                }
                writer.0.1.notify_all();
                if read == 0 {
                    return;
                }
            }
        });
        log
    }

    /// The lines so far.
    pub fn lines(&self) -> Vec<String> {
        self.0.0.lock().unwrap().lines.clone()
    }

    /// Waits for a line that contains `text`, and returns the first such.
    pub fn wait_for(&self, text: &str) -> String {
        let deadline = Instant::now() + PATIENCE;
        let mut state = self.0.0.lock().unwrap();
        loop {
            if let Some(line) = state.lines.iter().find(|line| line.contains(text)) {
                return line.clone();
            }
            let left = deadline.saturating_duration_since(Instant::now());
            if state.ended || left.is_zero() {
                let lines = state.lines.join("\n");
                // Or whoever prints the log of the failed test would panic, too.
                drop(state);
                panic!("no {text:?} in the log:\n{lines}");
            }
            state = self.0.1.wait_timeout(state, left).unwrap().0;
        }
    }

    /// Waits for the end of the stream and returns all of it.
    pub fn whole(&self) -> String {
        let deadline = Instant::now() + PATIENCE;
        let mut state = self.0.0.lock().unwrap();
        while !state.ended && Instant::now() < deadline {
            state = self.0.1.wait_timeout(state, PATIENCE).unwrap().0;
        }
        state.lines.join("\n")
    }
}

/// The value of `key=` in a line of the log, without its quotes.
pub fn field(line: &str, key: &str) -> String {
    let start = line
        .find(&format!(" {key}="))
        .unwrap_or_else(|| panic!("no {key}= in {line:?}"));
    let value = &line[start + key.len() + 2..];
    match value.strip_prefix('"') {
        Some(quoted) => quoted.split('"').next().unwrap_or_default().to_string(),
        None => value.split(' ').next().unwrap_or_default().to_string(),
    }
}

/// A client that sends bytes and waits for lines.
pub struct Client {
    stream: BufReader<TcpStream>,
}

impl Client {
    /// Connects, with time-outs so that nothing hangs.
    pub fn connect(address: SocketAddr) -> io::Result<Self> {
        let stream = TcpStream::connect_timeout(&address, PATIENCE)?;
        stream.set_read_timeout(Some(PATIENCE))?;
        stream.set_write_timeout(Some(PATIENCE))?;
        stream.set_nodelay(true)?;
        Ok(Client {
            stream: BufReader::new(stream),
        })
    }

    /// The socket.
    pub fn socket(&self) -> &TcpStream {
        self.stream.get_ref()
    }

    /// Sends all of these bytes.
    pub fn send(&mut self, bytes: impl AsRef<[u8]>) {
        self.stream
            .get_mut()
            .write_all(bytes.as_ref())
            .expect("the daemon takes it");
    }

    /// Waits for a line and returns it without its end; nothing at the end of the stream.
    pub fn line(&mut self) -> Option<String> {
        let mut line = String::new();
        match self.stream.read_line(&mut line).expect("a reply in time") {
            0 => None,
            _ => Some(
                line.strip_suffix('\n')
                    .unwrap_or_else(|| panic!("a cut line: {line:?}"))
                    .to_string(),
            ),
        }
    }

    /// Sends a line and waits for its reply, where the server may end.
    pub fn try_ask(&mut self, request: &str) -> io::Result<String> {
        let request = format!("{request}\n");
        self.stream.get_mut().write_all(request.as_bytes())?;
        let mut line = String::new();
        self.stream.read_line(&mut line)?;
        let whole = line.strip_suffix('\n').map(str::to_string);
        whole.ok_or_else(|| io::ErrorKind::UnexpectedEof.into())
    }

    /// Sends a line and waits for its reply.
    pub fn ask(&mut self, request: &str) -> String {
        self.try_ask(request).expect("a reply in time, not the end")
    }

    /// Shuts down the sending side.
    pub fn shutdown(&self) {
        self.socket().shutdown(Shutdown::Write).expect("connected");
    }

    /// Waits for the end of the stream and returns all that came before it.
    pub fn rest(&mut self) -> String {
        let mut rest = Vec::new();
        self.stream
            .read_to_end(&mut rest)
            .unwrap_or_else(|error| panic!("{error} after {:?}", String::from_utf8_lossy(&rest)));
        String::from_utf8(rest).expect("ASCII")
    }
}

/// Waits until `condition` holds.
pub fn wait_until(what: &str, mut condition: impl FnMut() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !condition() {
        assert!(Instant::now() < deadline, "in vain: {what}");
        std::thread::yield_now();
        std::thread::park_timeout(Duration::from_millis(2));
    }
}

/// Sends a signal by its name, such as TERM. Returns whether the process was there.
pub fn kill(signal: &str, process: u32) -> bool {
    let mut kill = Command::new("kill");
    kill.args(["-s", signal, &process.to_string()]);
    kill.stderr(Stdio::null())
        .status()
        .expect("kill runs")
        .success()
}

/// The words of a command line. `""` is an empty one, and in a word `·` stands for a blank.
pub fn words(line: &str) -> Vec<String> {
    let word = |word: &str| match word {
        "\"\"" => String::new(),
        word => word.replace('·', " "),
    };
    line.split_whitespace().map(word).collect()
}

/// A port that nobody has, of IPv6 and IPv4 where there are both.
pub fn free_port() -> u16 {
    let listener = TcpListener::bind("[::]:0").or_else(|_| TcpListener::bind("127.0.0.1:0"));
    let address = listener.expect("a free port").local_addr();
    address.expect("bound").port()
}

/// Runs the daemon with these arguments to its end: its exit status and what it said.
pub fn fails<A: AsRef<OsStr>>(arguments: impl IntoIterator<Item = A>) -> (i32, String) {
    let mut command = program();
    command.args(arguments);
    run_to_end(command)
}

/// Runs a command to its end: its exit status and what it said on stderr.
#[allow(clippy::zombie_processes)] // it is waited for on every way, which clippy doesn't see in a loop
pub fn run_to_end(mut command: Command) -> (i32, String) {
    let mut child = command
        .stderr(Stdio::piped())
        .stdout(Stdio::null())
        .spawn()
        .expect("it starts");
    let log = Log::follow(child.stderr.take().expect("stderr is piped"));
    let mut status = None;
    let deadline = Instant::now() + PATIENCE;
    while status.is_none() && Instant::now() < deadline {
        status = child.try_wait().expect("it is our child");
        std::thread::park_timeout(Duration::from_millis(2));
    }
    if status.is_none() {
        child.kill().expect("it is our child");
        child.wait().expect("it is our child");
        panic!("it didn't end: {}", log.whole());
    }
    let code = status.and_then(|status| status.code()).unwrap_or(-1);
    (code, log.whole())
}

/// A directory of this test's own, removed at the end.
pub struct Scratch(std::path::PathBuf);

impl Scratch {
    /// A new empty directory.
    pub fn new() -> Self {
        let path = std::env::temp_dir().join(format!("blockchain-tcpd-{}", uuid::Uuid::new_v4()));
        std::fs::create_dir(&path).expect("a scratch directory");
        Scratch(path)
    }

    /// Its path.
    pub fn path(&self) -> &std::path::Path {
        &self.0
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        // What is left is in the way of nobody.
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

/// Whether `program` is there to test with. A test that lacks it says so and is left out; where everything must be
/// tested, which BLOCKCHAIN_TCPD_TEST_ALL=1 says, or where a variable names it, it fails.
pub fn installed(program: &str) -> bool {
    let located = located(OsStr::new(program));
    let path = std::env::var_os("PATH").unwrap_or_default();
    // A path that is absolute takes the place of the directory.
    let found = std::env::split_paths(&path).any(|directory| directory.join(&located).is_file());
    if !found {
        let told = *located != *program;
        assert!(!told, "{} is not {located:?}", variable_for(program));
        let all = std::env::var_os("BLOCKCHAIN_TCPD_TEST_ALL").is_some_and(|all| all == "1");
        assert!(!all, "{program} is not installed");
        eprintln!("left out: {program} is not installed");
    }
    found
}
