//! What the tests ask of the kernel: limits, namespaces, other addresses, and what it says of sockets and threads.

use std::collections::HashMap;
use std::ffi::OsStr;
use std::io::{self, BufRead as _, Read as _, Write as _};
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpStream};
use std::os::fd::OwnedFd;
use std::process::Command;
use std::sync::Arc;
use std::time::Duration;

use blockchain_tcpd::config::options::{Options, ParsedArgs};
use blockchain_tcpd::handover::InheritedState;
use blockchain_tcpd::protocol::PROTOCOLS;
use blockchain_tcpd::server::{Server, Setup};
use rustix::net::{AddressFamily, Protocol, SocketFlags, SocketType, sockopt};
use rustix::process::{Pid, Resource, Rlimit, getrlimit, prlimit};
use shared::command::{
    Call, CommandClass, CommandError, CommandSet, CommandSpec, Context, Value, ValueType,
};

use super::{Client, Daemon, Log, Process, clean, installed, program, skipped, wait_until};

/// Whether the tests run as root, which may do some things that are tried here.
pub fn is_root() -> bool {
    rustix::process::geteuid().is_root()
}

/// Whether this machine allows a command to be run through these words. If not, the test is to return: it is reported as
/// skipped, with the refusal; a program of them that is missing may fail it (see [`super::installed`]).
#[must_use]
#[track_caller]
pub fn can<W: AsRef<OsStr>>(wrapper: &[W]) -> bool {
    if !super::installed(&wrapper[0].as_ref().to_string_lossy()) {
        return false;
    }
    let output = through(wrapper).arg("--version").output();
    let words: Vec<_> = wrapper
        .iter()
        .map(|word| word.as_ref().to_string_lossy())
        .collect();
    let output = output.unwrap_or_else(|error| panic!("{words:?}: {error}"));
    let refusal = String::from_utf8_lossy(&output.stderr);
    // What executes other programs has this status for one that it can't find.
    let missing = output.status.code() == Some(127);
    assert!(!missing || !super::must_test_all(), "{words:?}: {refusal}");
    output.status.success() || {
        let refusal = refusal.lines().last().unwrap_or("no reason given");
        skipped(&format!("{}: {refusal}", words.join(" ").escape_debug()))
    }
}

/// A number from the environment, such as how often something is tried.
pub fn asked_for(variable: &str, default: usize) -> usize {
    let value = std::env::var(variable).ok();
    value.map_or(default, |text| text.parse().expect(variable))
}

/// The daemon's program with these words before it, which must end in executing it.
pub fn through<W: AsRef<OsStr>>(wrapper: &[W]) -> Command {
    let mut command = clean(&wrapper[0]);
    command.args(&wrapper[1..]).arg(program().get_program());
    command
}

/// The daemon on a free port of 127.0.0.1, with these words before it and these arguments.
pub fn wrapped<A: AsRef<OsStr>>(
    wrapper: &[impl AsRef<OsStr>],
    arguments: impl IntoIterator<Item = A>,
) -> Command {
    let mut command = through(wrapper);
    command.args(["--listen", "127.0.0.1:0"]).args(arguments);
    command
}

/// Words for [`through`] that run a shell's `commands` and then the daemon.
pub fn shell(commands: &str) -> [String; 3] {
    ["sh", "-c", &format!("{commands}\nexec \"$0\" \"$@\"")].map(str::to_string)
}

/// Words for [`through`] that have a system call fail, as `fsync:error=EIO:when=2` says (strace(1)); nothing where that
/// can't be done.
pub fn strace(inject: &str) -> Option<Vec<String>> {
    let call = inject.split(':').next().unwrap_or_default();
    let words = format!("strace -D -f -qq -o /dev/null -e trace={call} -e inject={inject}");
    let words: Vec<String> = words.split(' ').map(str::to_string).collect();
    (installed("strace") && can(&words)).then_some(words)
}

/// Words for [`through`] that run a shell's `commands` in a mount namespace; nothing where that can't be done.
pub fn in_a_mount_namespace(commands: &str) -> Option<Vec<String>> {
    let words = ["unshare", "--mount"].map(str::to_string);
    let words = [&words[..], &shell(commands)].concat();
    can(&words).then_some(words)
}

/// An address of this machine that no other test uses.
pub fn own_address() -> SocketAddr {
    let random = uuid::Uuid::new_v4().into_bytes();
    let ip = Ipv4Addr::new(127, 64 | random[0] >> 2, random[1], 1 | random[2] >> 1);
    SocketAddr::from((ip, 4242))
}

/// A socket of IPv4, of TCP or of this protocol.
pub fn tcp_socket(protocol: Option<Protocol>) -> rustix::io::Result<OwnedFd> {
    let (family, kind) = (AddressFamily::INET, SocketType::STREAM);
    rustix::net::socket_with(family, kind, SocketFlags::CLOEXEC, protocol)
}

/// How many bytes the clients of `server` have sent that have not reached its socket yet, by the client's port.
pub fn on_their_way(server: SocketAddr) -> HashMap<u16, usize> {
    let SocketAddr::V4(server) = server else {
        panic!("not over IPv4: {server}");
    };
    let ip = u32::from_ne_bytes(server.ip().octets());
    let server = format!("{ip:08X}:{:04X}", server.port());
    let number = |hex: &str| usize::from_str_radix(hex, 16).expect("proc_net_tcp");
    let established = |line: &str| {
        let fields: Vec<&str> = line.split_whitespace().collect();
        let (_, port) = fields[1].split_once(':')?;
        let (unsent, _unread) = fields[4].split_once(':')?;
        (fields[2..4] == [&*server, "01"]).then(|| (number(port) as u16, number(unsent)))
    };
    let table = std::fs::read_to_string("/proc/net/tcp").expect("/proc/net/tcp");
    table.lines().filter_map(established).collect()
}

/// A command of the tests' own.
pub const fn own_command(
    name: &'static str,
    class: CommandClass,
    execute: for<'a> fn(&'a Context, &Call<'a>) -> Result<Value<'a>, CommandError<'a>>,
) -> CommandSpec {
    CommandSpec {
        name,
        parameters: &[],
        result: ValueType::Text,
        summary: "a command of the tests",
        class,
        rpc: None,
        execute,
    }
}

/// A server in this process, on a free port, with these settings and commands.
pub fn local_server(arguments: &[&str], commands: &'static [CommandSet]) -> Server {
    let program = ["blockchain-tcpd", "--listen", "127.0.0.1:0"];
    let arguments = program.iter().chain(arguments);
    let ParsedArgs::Run(options) = Options::parse_from(arguments).expect("good settings") else {
        panic!("nothing to serve");
    };
    let setup = Setup {
        options: &options,
        id: uuid::Uuid::new_v4(),
        commands,
        protocols: PROTOCOLS,
        metrics: Arc::default(),
        reserved: 0,
        cluster: None,
        users: None,
    };
    let server = Server::start(&setup, InheritedState::default());
    let server = server.expect("it starts");
    server.begin();
    server
}

impl Daemon {
    /// Starts the daemon like [`Daemon::start`], with these words before it (see [`through`]).
    pub fn start_through<W: AsRef<OsStr>, A: AsRef<OsStr>>(
        wrapper: &[W],
        arguments: impl IntoIterator<Item = A>,
    ) -> Self {
        Self::run(wrapped(wrapper, arguments))
    }

    /// Runs this command, whose stderr is its own affair, until the daemon accepts at `address`.
    pub fn run_unheard(mut command: Command, address: SocketAddr) -> Self {
        let child = command.spawn().expect("the daemon starts");
        let log = Log::follow(io::empty());
        let process = Process { child, log };
        let daemon = Daemon { process, address };
        wait_until("it accepts", || TcpStream::connect(address).is_ok());
        daemon
    }

    /// Lets it have no descriptor more than it has, or as many as it may.
    pub fn limit_descriptors(&self, no_more: bool) {
        let in_use = |number: &u64| {
            std::fs::symlink_metadata(format!("/proc/{}/fd/{number}", self.pid())).is_ok()
        };
        let limit = no_more.then(|| (0..).find(|number| !in_use(number)).expect("a free one"));
        let pid = Pid::from_raw(self.pid().cast_signed());
        let maximum = getrlimit(Resource::Nofile).maximum;
        let current = limit.or(maximum);
        prlimit(pid, Resource::Nofile, Rlimit { current, maximum }).expect("it is our child");
    }

    /// How many of its threads are blocked in this system call.
    pub fn blocked_in(&self, call: libc::c_long) -> usize {
        let is_in = |thread: &io::Result<std::fs::DirEntry>| {
            let file = thread.as_ref().expect("a thread").path().join("syscall");
            let doing = std::fs::read_to_string(file).unwrap_or_default();
            doing.starts_with(&format!("{call} "))
        };
        let threads = std::fs::read_dir(format!("/proc/{}/task", self.pid())).expect("it lives");
        threads.filter(is_in).count()
    }

    /// The time on the processor that it has had so far.
    pub fn cpu_time(&self) -> Duration {
        let stat = std::fs::read_to_string(format!("/proc/{}/stat", self.pid())).expect("it lives");
        let (_, after_name) = stat.rsplit_once(')').expect("proc(5)");
        let times = after_name.split_whitespace().skip(11).take(2);
        let ticks: u64 = times
            .map(|ticks| ticks.parse::<u64>().expect("proc(5)"))
            .sum();
        // The kernel tells programs hundredths, however long its own ticks are (time(7)).
        Duration::from_millis(ticks * 10)
    }
}

impl Client {
    /// Sends short requests with long replies and reads nothing, until nothing more can be sent and this number of threads of
    /// the daemon wait for their clients to read. Returns how many requests that were.
    pub fn flood(&mut self, daemon: &Daemon, stuck: usize) -> usize {
        self.socket().set_nonblocking(true).expect("a socket");
        let block = b"a\n".repeat(32 * 1024);
        let mut bytes = 0;
        wait_until("the flood is stuck", || {
            // The kernel may take an odd number of bytes.
            match self.stream.get_mut().write(&block[bytes % 2..]) {
                Ok(more) => bytes += more,
                Err(error) => {
                    assert_eq!(error.kind(), io::ErrorKind::WouldBlock, "{error}");
                    return daemon.blocked_in(libc::SYS_sendto) >= stuck;
                }
            }
            false
        });
        self.socket().set_nonblocking(false).expect("a socket");
        bytes.div_ceil(2)
    }

    /// Sends requests and takes no reply, until the daemon cuts it off.
    pub fn ask_until_cut_off(&mut self) {
        let requests = b"HELP\n".repeat(2_000_000);
        let sent = self.stream.get_mut().write_all(&requests);
        let error = sent.expect_err("a reset");
        assert_eq!(error.kind(), io::ErrorKind::ConnectionReset, "{error}");
    }

    /// Connects from this address of the machine.
    pub fn connect_from(source: impl Into<IpAddr>, address: SocketAddr) -> io::Result<Self> {
        let socket = tcp_socket(None)?;
        rustix::net::bind(&socket, &SocketAddr::new(source.into(), 0))?;
        rustix::net::connect(&socket, &address)?;
        Self::over(TcpStream::from(socket))
    }

    /// A client with room for few bytes that it has not read.
    pub fn connect_narrow(address: SocketAddr) -> Self {
        let socket = tcp_socket(None).expect("a socket");
        sockopt::set_socket_recv_buffer_size(&socket, 4096).expect("a small buffer");
        rustix::net::connect(&socket, &address).expect("the daemon accepts");
        Self::over(TcpStream::from(socket)).expect("it is connected")
    }

    /// Leaves by a reset.
    pub fn reset(self) {
        sockopt::set_socket_linger(self.socket(), Some(Duration::ZERO)).expect("a socket");
    }

    /// Waits for the end, however it comes, and returns what came before.
    pub fn whatever_comes(&mut self) -> String {
        let mut bytes = Vec::new();
        let end = self.stream.read_to_end(&mut bytes);
        let text = String::from_utf8_lossy(&bytes).into_owned();
        let late = end.is_err_and(|error| error.kind() == io::ErrorKind::WouldBlock);
        assert!(!late, "no end after {text:?}");
        text
    }

    /// Waits for a line or the end, however that comes, and returns what came.
    pub fn whatever_line(&mut self) -> String {
        let mut line = String::new();
        let end = self.stream.read_line(&mut line);
        let late = end.is_err_and(|error| error.kind() == io::ErrorKind::WouldBlock);
        assert!(!late, "nothing came");
        line
    }
}
