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
pub mod postgres;
pub mod registry;
pub mod tables;
pub mod terminal;
pub mod trickle;
pub mod watch;
pub mod way;

use std::borrow::Cow;
use std::ffi::{OsStr, OsString};
use std::fs::OpenOptions;
use std::io::{self, BufRead as _, BufReader, Read as _, Write as _};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::path::Path;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::{Arc, Condvar, LazyLock, Mutex, MutexGuard};
use std::time::{Duration, Instant};

/// Far more than anything here takes on a slow and busy machine.
pub const PATIENCE: Duration = Duration::from_secs(30);

/// The client's program.
pub static CLIENT: LazyLock<String> = LazyLock::new(|| beside_the_daemon("blockchain-tcp"));

/// The monitoring plugin's program.
pub static PLUGIN: LazyLock<String> = LazyLock::new(|| beside_the_daemon("check_blockchain_tcp"));

/// The path of a program of another package, which `cargo test` builds together with the daemon.
fn beside_the_daemon(name: &str) -> String {
    let program = Path::new(env!("CARGO_BIN_EXE_blockchain-tcpd")).with_file_name(name);
    assert!(
        program.exists(),
        "run cargo test without -p: it builds {}",
        program.display()
    );
    program.to_str().expect("a path in UTF-8").to_string()
}

/// The daemon's program in a [`clean`] environment.
pub fn program() -> Command {
    clean(env!("CARGO_BIN_EXE_blockchain-tcpd"))
}

/// The programs of others that a variable may name: `REDIS_SERVER` for redis-server, and so on. CONTRIBUTING.md lists them.
const NAMED: [&str; 11] = [
    "redis-server",
    "redis-sentinel",
    "redis-cli",
    "etcd",
    "etcdctl",
    "haproxy",
    "openssl",
    "pgbouncer",
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
    for variable in ["STATE_DIRECTORY", "JOURNAL_STREAM", "NOTIFY_SOCKET"] {
        command.env_remove(variable);
    }
    let names = std::env::vars_os().map(|(name, _)| name);
    let is_ours = |name: &OsString| name.to_string_lossy().starts_with("BLOCKCHAIN_TCPD_");
    names.filter(is_ours).for_each(|name| {
        command.env_remove(name);
    });
    // Each would want the same port; a test of it says which.
    command.env("BLOCKCHAIN_TCPD_HTTP", "");
    command.stdin(Stdio::null());
    command
}

/// A running daemon. Dropped, it is killed.
pub struct Daemon {
    process: Process,
    /// The first address of its ready line.
    pub address: SocketAddr,
}

impl Daemon {
    /// Starts the daemon on a free port of 127.0.0.1, with these arguments besides, and waits until it is ready.
    pub fn start<A: AsRef<OsStr>>(arguments: impl IntoIterator<Item = A>) -> Self {
        Self::start_with(arguments, |_| ())
    }

    /// The same, with this change to the command.
    pub fn start_with<A: AsRef<OsStr>>(
        arguments: impl IntoIterator<Item = A>,
        change: impl FnOnce(&mut Command),
    ) -> Self {
        let mut command = program();
        command.args(["--listen", "127.0.0.1:0"]).args(arguments);
        change(&mut command);
        Self::run(command)
    }

    /// Runs this command, which must end in the daemon itself (not in a child of it), and waits until it is ready.
    pub fn run(command: Command) -> Self {
        let process = Process::start(command);
        let listen = field(&process.log.wait_for("ready listen="), "listen");
        let first = listen.split(',').next().expect("a part");
        let address = first
            .split_once("://")
            .map_or(first, |(_, address)| address);
        let address = address.parse().expect("an address");
        Daemon { process, address }
    }

    /// Starts it with all commands, and a second address for this protocol. Returns that, too.
    pub fn speaking(scheme: &str, arguments: &[&str]) -> (Self, SocketAddr) {
        let listen = format!("127.0.0.1:0,{scheme}://127.0.0.1:0");
        let own = ["--listen", &listen, "--commands", "server,calc"];
        let daemon = Daemon::start([&own, arguments].concat());
        let listen = daemon.ready("listen");
        let (_, address) = listen.split_once("://").expect("two addresses");
        let address = address.parse().expect("an address");
        (daemon, address)
    }

    /// The address of its HTTP server, which its arguments must switch on.
    pub fn http(&self) -> SocketAddr {
        let http = field(&self.process.log.wait_for("ready listen="), "http");
        http.parse().expect("HTTP is on")
    }

    /// Connects a client.
    pub fn connect(&self) -> Client {
        Client::connect(self.address).expect("the daemon accepts")
    }

    /// Connects so many clients, each of which has been answered.
    pub fn served(&self, clients: usize) -> Vec<Client> {
        let mut clients: Vec<Client> = (0..clients).map(|_| self.connect()).collect();
        are_answered(&mut clients);
        clients
    }

    /// Connects a client, which must be answered `ERR BUSY` and nothing else.
    pub fn is_full(&self) {
        let reply = self.connect().rest();
        assert!(reply.starts_with("ERR BUSY "), "{reply:?}");
        assert_eq!(reply.lines().count(), 1, "{reply:?}");
    }

    /// The value of `key=` in its ready line.
    pub fn ready(&self, key: &str) -> String {
        field(&self.log().wait_for("ready listen="), key)
    }

    /// Sends all of `input` in a connection of its own, shuts down its sending side, and returns all that comes back.
    pub fn ask(&self, input: impl AsRef<[u8]>) -> String {
        let mut client = self.connect();
        client.send(input);
        client.shutdown();
        client.rest()
    }

    /// Waits until this number of clients are connected, the asking one not counted.
    pub fn wait_for_others(&self, clients: usize) {
        let who = format!("{}\n", clients + 1);
        wait_until(&format!("{clients} clients are connected"), || {
            self.ask("WHO\n") == who
        });
    }

    /// The process id.
    pub fn pid(&self) -> u32 {
        self.process.child.id()
    }

    /// The log so far.
    pub fn log(&self) -> &Log {
        &self.process.log
    }

    /// Sends a signal by its name, such as TERM.
    pub fn signal(&self, name: &str) {
        assert!(kill(name, self.pid()), "kill -s {name}");
    }

    /// The same if it has not ended yet.
    pub fn signal_if_there(&mut self, name: &str) {
        // It is our child and not waited for, so that no other process has its id.
        if self.ended().is_none() {
            kill(name, self.pid());
        }
    }

    /// How the process ended, if it has.
    pub fn ended(&mut self) -> Option<ExitStatus> {
        self.process.child.try_wait().expect("it is our child")
    }

    /// Waits until the process ends.
    pub fn wait(&mut self) -> ExitStatus {
        wait_for_end(&mut self.process.child)
            .unwrap_or_else(|| panic!("it runs on: {:?}", self.process.log.lines()))
    }

    /// SIGTERM, the end, the whole log. It must have ended with status 0.
    pub fn stop(mut self) -> String {
        self.signal("TERM");
        let status = self.wait();
        let log = self.process.log.whole();
        assert!(status.success(), "{status}: {log}");
        log
    }

    /// A number in /proc/PID/status, such as `Threads` or `VmRSS` (in KiB).
    pub fn status_number(&self, name: &str) -> u64 {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.pid()));
        let status = status.expect("the daemon lives");
        let line = |line: &str| {
            line.strip_prefix(name)?
                .strip_prefix(':')
                .map(str::to_string)
        };
        let value = status.lines().find_map(line).expect(name);
        let number = value.split_whitespace().next().expect("a value");
        number.parse().expect("a number")
    }

    /// How many descriptors it has open.
    pub fn descriptors(&self) -> usize {
        let listed = std::fs::read_dir(format!("/proc/{}/fd", self.pid()));
        listed.expect("the daemon lives").count()
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
        let add = move |line: io::Result<Vec<u8>>| {
            let (state, changed) = &*writer.0;
            let mut state = state.lock().unwrap();
            match line {
                Ok(line) => state
                    .lines
                    .push(String::from_utf8_lossy(&line).trim_end().to_string()),
                Err(_) => state.ended = true,
            }
            changed.notify_all();
        };
        std::thread::spawn(move || {
            let end = Err(io::ErrorKind::UnexpectedEof.into());
            let lines = BufReader::new(stream).split(b'\n');
            lines.take_while(Result::is_ok).chain([end]).for_each(add);
        });
        log
    }

    /// The lines so far.
    pub fn lines(&self) -> Vec<String> {
        self.0.0.lock().unwrap().lines.clone()
    }

    /// Waits for a line that contains `text`, and returns the first such.
    pub fn wait_for(&self, text: &str) -> String {
        let found = |state: &LogState| {
            let mut lines = state.lines.iter();
            lines.find(|line| line.contains(text)).cloned()
        };
        let state = self.wait_while(|state| !state.ended && found(state).is_none());
        let (line, lines) = (found(&state), state.lines.join("\n"));
        // Or printing the log of the failed test would panic, too.
        drop(state);
        line.unwrap_or_else(|| panic!("no {text:?} in the log:\n{lines}"))
    }

    /// Waits for the end of the stream and returns all of it.
    pub fn whole(&self) -> String {
        self.wait_while(|state| !state.ended).lines.join("\n")
    }

    fn wait_while(&self, condition: impl Fn(&LogState) -> bool) -> MutexGuard<'_, LogState> {
        let (state, changed) = &*self.0;
        let waits = |state: &mut LogState| condition(state);
        let state = changed.wait_timeout_while(state.lock().unwrap(), PATIENCE, waits);
        state.unwrap().0
    }
}

/// The value of `key=` in a line of the log, without its quotes.
pub fn field(line: &str, key: &str) -> String {
    let (_, value) = line
        .split_once(&format!(" {key}="))
        .unwrap_or_else(|| panic!("no {key}= in {line:?}"));
    let (value, end) = match value.strip_prefix('"') {
        Some(quoted) => (quoted, '"'),
        None => (value, ' '),
    };
    value.split(end).next().unwrap_or_default().to_string()
}

/// A client that sends bytes and waits for lines.
pub struct Client {
    stream: BufReader<TcpStream>,
}

impl Client {
    /// Connects, with time-outs so that nothing hangs.
    pub fn connect(address: SocketAddr) -> io::Result<Self> {
        Self::over(TcpStream::connect_timeout(&address, PATIENCE)?)
    }

    /// A client over this connection.
    pub fn over(stream: TcpStream) -> io::Result<Self> {
        stream.set_read_timeout(Some(PATIENCE))?;
        stream.set_write_timeout(Some(PATIENCE))?;
        stream.set_nodelay(true)?;
        let stream = BufReader::new(stream);
        Ok(Client { stream })
    }

    /// The socket.
    pub fn socket(&self) -> &TcpStream {
        self.stream.get_ref()
    }

    /// Sends all of these bytes.
    pub fn send(&mut self, bytes: impl AsRef<[u8]>) {
        let sent = self.stream.get_mut().write_all(bytes.as_ref());
        sent.expect("the daemon takes it");
    }

    /// Waits for a line and returns it without its end; nothing at the end of the stream.
    pub fn line(&mut self) -> Option<String> {
        let mut line = String::new();
        let read = self.stream.read_line(&mut line).expect("a reply in time");
        let whole = line.strip_suffix('\n').map(str::to_string);
        assert!(read == 0 || whole.is_some(), "a cut line: {line:?}");
        whole
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

    /// Waits for this number of bytes, or for the end of the stream.
    pub fn take(&mut self, length: u64) -> Vec<u8> {
        let mut bytes = Vec::new();
        let read = (&mut self.stream).take(length).read_to_end(&mut bytes);
        read.expect("all in time");
        bytes
    }

    /// Shuts down the sending side.
    pub fn shutdown(&self) {
        self.socket().shutdown(Shutdown::Write).expect("connected");
    }

    /// Waits for the end of the stream and returns all that came before it.
    pub fn rest(&mut self) -> String {
        let mut rest = Vec::new();
        let read = self.stream.read_to_end(&mut rest);
        let rest = String::from_utf8(rest).expect("ASCII");
        read.unwrap_or_else(|error| panic!("{error} after {rest:?}"));
        rest
    }
}

/// Each of these clients must be answered.
pub fn are_answered(clients: &mut [Client]) {
    for client in clients {
        assert_eq!(client.ask("WHY"), "42");
    }
}

/// This must be somewhere in the text.
#[track_caller]
pub fn assert_contains(text: &str, part: &str) {
    assert!(text.contains(part), "no {part:?} in {text:?}");
}

/// The reply to a word that is no command.
pub fn unknown(word: &str) -> String {
    format!("ERR UNKNOWN no such command: \"{word}\" (try HELP)")
}

/// Does this with each of these at the same time, in threads of this one's name. Fails if one of them does.
pub fn at_once<T: Sync>(all: &[T], each: impl Fn(&T) + Sync) {
    let name = std::thread::current()
        .name()
        .unwrap_or_default()
        .to_string();
    std::thread::scope(|scope| {
        for one in all {
            let thread = std::thread::Builder::new().name(name.clone());
            let begun = thread.spawn_scoped(scope, || each(one));
            begun.expect("a thread");
        }
    });
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

/// Waits until this process ends.
pub fn wait_for_end(child: &mut Child) -> Option<ExitStatus> {
    let deadline = Instant::now() + PATIENCE;
    while Instant::now() < deadline {
        if let Some(status) = child.try_wait().expect("it is our child") {
            return Some(status);
        }
        std::thread::park_timeout(Duration::from_millis(2));
    }
    None
}

/// Sends a signal by its name, such as TERM. Returns whether the process was there.
pub fn kill(signal: &str, process: u32) -> bool {
    let mut kill = Command::new("kill");
    let kill = kill.args(["-s", signal, &process.to_string()]);
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

/// A free port, of IPv6 and IPv4 where there are both.
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

/// Runs a command to its end: it must end with this status and say all this on stderr, which is returned.
#[track_caller]
pub fn fails_with(command: Command, status: i32, parts: &[&str]) -> String {
    let (ended, said) = run_to_end(command);
    assert_eq!(ended, status, "{said}");
    for part in parts {
        assert_contains(&said, part);
    }
    said
}

/// What a command prints that must succeed.
pub fn stdout_of(command: &mut Command) -> String {
    let output = command.output().expect("it runs");
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{said}");
    String::from_utf8(output.stdout).expect("text")
}

/// Runs a command to its end: its exit status and what it said on stderr.
pub fn run_to_end(mut command: Command) -> (i32, String) {
    command.stdout(Stdio::null());
    Process::start(command).wait()
}

/// A running program. Dropped, it is killed.
pub struct Process {
    pub child: Child,
    /// What it says on stderr.
    pub log: Log,
}

impl Process {
    pub fn start(mut command: Command) -> Self {
        let child = command.stderr(Stdio::piped()).spawn();
        let mut child = child.unwrap_or_else(|error| panic!("{command:?}: {error}"));
        let log = Log::follow(child.stderr.take().expect("stderr is piped"));
        Process { child, log }
    }

    /// Waits for its end: its exit status and what it said.
    pub fn wait(mut self) -> (i32, String) {
        let status = wait_for_end(&mut self.child).expect("it ends");
        (status.code().unwrap_or(-1), self.log.whole())
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // It may have ended.
        let _ = self.child.kill();
        let _ = self.child.wait();
        if std::thread::panicking() {
            eprintln!(
                "--- the log of process {}:\n{}",
                self.child.id(),
                self.log.whole()
            );
        }
    }
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
        // What is left does no harm.
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

/// Returns from a test, which then counts as skipped, unless these programs are installed; with `run`, unless this
/// machine allows a command to be run through these words (see [`kernel::can`]).
macro_rules! needs {
    (run $wrapper:expr) => {
        if !$crate::support::kernel::can($wrapper) {
            return Default::default();
        }
    };
    ($($program:expr),+) => {
        if !($($crate::support::installed($program))&+) {
            return Default::default();
        }
    };
}

/// Whether `program` is installed. If not, the test is to return: it is reported as skipped. It fails instead where
/// everything must be tested, which BLOCKCHAIN_TCPD_TEST_ALL=1 says, or where a variable names the program.
#[must_use]
#[track_caller]
pub fn installed(program: &str) -> bool {
    found(program) || skipped(&format!("needs {program}"))
}

/// The same where only a part of the test needs `program`.
#[must_use]
#[track_caller]
pub fn installed_for_part(program: &str) -> bool {
    found(program) || skipped(&format!("the part that needs {program}"))
}

fn found(program: &str) -> bool {
    let located = located(OsStr::new(program));
    let path = std::env::var_os("PATH").unwrap_or_default();
    // A path that is absolute takes the place of the directory.
    let found = std::env::split_paths(&path).any(|directory| directory.join(&located).is_file());
    if !found {
        let named = *located != *program;
        assert!(!named, "{} is not {located:?}", variable_for(program));
        assert!(!must_test_all(), "{program} is not installed");
    }
    found
}

/// Whether a missing program fails a test.
pub fn must_test_all() -> bool {
    std::env::var_os("BLOCKCHAIN_TCPD_TEST_ALL").is_some_and(|all| all == "1")
}

/// Reports the running test as skipped, because libtest can't: on stderr past its capture, and in the file that
/// BLOCKCHAIN_TCPD_TESTS_SKIPPED names, which `tests/run` prints at its end. Returns false.
#[track_caller]
pub fn skipped(why: &str) -> bool {
    let thread = std::thread::current();
    let test = match thread.name() {
        Some(test) if test != "main" => test.to_string(),
        // --test-threads=1 runs every test in the main thread.
        _ => std::panic::Location::caller().to_string(),
    };
    let line = format!("{test}: {why}\n");
    let shown = format!("skipped: {line}");
    io::stderr().write_all(shown.as_bytes()).expect("stderr");
    if let Some(list) = std::env::var_os("BLOCKCHAIN_TCPD_TESTS_SKIPPED") {
        let mut list = OpenOptions::new().append(true).open(list).expect("a file");
        list.write_all(line.as_bytes()).expect("room for a line");
    }
    false
}
