//! Handover: what a process inherits and passes on, and the replacement of the program.
//!
//! A process inherits the listening sockets that systemd passes and the handover state with the
//! live connections of the previous process. The HTTP socket is bound before the handover state is
//! taken.

pub mod state;

use std::borrow::Cow;
use std::io::{self, Read as _};
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::os::fd::{AsFd as _, AsRawFd as _, OwnedFd};
use std::os::unix::fs::MetadataExt as _;
use std::os::unix::process::CommandExt as _;
use std::path::{Component, Path, PathBuf};
use std::process::{Child, ChildStdout, Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use log::{error, info, warn};
use rustix::fs::OFlags;
use rustix::io::FdFlags;
use rustix::process::{Pid, Signal, kill_process_group};
use uuid::Uuid;

use crate::config::options::Options;
use crate::error::Error;
use crate::protocol::PROTOCOLS;
use crate::server::listener::{self, HTTP, Listener};
use crate::signals;
use crate::transport::lingering_close::LingeringSocket;
use shared::clock::Millis;
use shared::sys;
use shared::text::without_errno;

/// Longest duration of the new program's preflight check.
const TRIAL: Duration = Duration::from_secs(10);

/// Environment variable that tells the new program, during the preflight check, which version of
/// the handover state it would have to read.
const VERSION_VARIABLE: &str = "BLOCKCHAIN_TCPD_PACK_VERSION";

/// State that a process inherits and passes on to the next.
#[derive(Default)]
pub struct InheritedState {
    /// Listening sockets for clients.
    pub listeners: Vec<Arc<Listener>>,
    /// Listening sockets for HTTP.
    pub http: Vec<Arc<Listener>>,
    /// Whether systemd's descriptor store still holds the received handover state, which is now
    /// empty and should be removed.
    pub stored: bool,
    /// Number of clients accepted so far.
    pub accepted: u64,
    /// Number of handovers so far.
    pub handovers: u64,
    /// Since when no client has been accepted; `None` without a handover in progress.
    pub begun: Option<Millis>,
    /// Cluster membership.
    pub census: Option<state::Census>,
    /// Clients of the previous process.
    pub clients: Vec<(state::ConnectionState, TcpStream)>,
    /// Sockets in lingering close.
    pub leaving: Vec<LingeringSocket>,
    /// Id of the server.
    pub id: Option<Uuid>,
}

impl InheritedState {
    /// Takes everything that was passed to this process. Call it once, before any thread starts.
    pub fn take(options: &Options) -> Result<Self, Error> {
        let passed = listener::passed()?;
        for (sockets, by_default, option) in [
            (
                &passed.listeners,
                options.listen_by_default,
                "--listen (BLOCKCHAIN_TCPD_LISTEN)",
            ),
            (
                &passed.http,
                options.http_by_default,
                "--http (BLOCKCHAIN_TCPD_HTTP)",
            ),
        ] {
            if !sockets.is_empty() && !by_default {
                return Err(Error::Passed(format!(
                    "systemd passes {} sockets, and {option} names others: change the addresses of the .socket unit, or \
                     do without it",
                    sockets.len()
                )));
            }
        }
        let mut inherited = InheritedState {
            listeners: passed.listeners.into_iter().map(Arc::new).collect(),
            http: passed.http.into_iter().map(Arc::new).collect(),
            ..InheritedState::default()
        };
        // Bind before taking the clients of the previous process: if this fails, systemd keeps them
        // until the operator has fixed it.
        if inherited.http.is_empty() && !is_replacement() {
            inherited.http = listen_for_http(options, &inherited.listeners)?;
        }
        if let Some(pack) = passed.pack {
            inherited.unpack(&pack);
            inherited.stored = true;
        }
        if let Some(pack) = sys::passed_descriptor(state::VARIABLE) {
            inherited.unpack(&pack);
            if inherited.http.is_empty() {
                let http = listen_for_http(options, &inherited.listeners);
                inherited.http = http.unwrap_or_else(|error| {
                    error!("goes on without health checks and metrics (--http): {error}");
                    Vec::new()
                });
            }
        }
        Ok(inherited)
    }

    /// Adds the contents of a handover state. Closes what can't be read, and logs that.
    fn unpack(&mut self, pack: &OwnedFd) {
        let received = match state::receive(pack) {
            Ok(received) => received,
            Err(error) => {
                let why = without_errno(&error);
                return error!(
                    "the clients of the last process are lost, can't take their pack: {why}"
                );
            }
        };
        let mut descriptors = received.descriptors;
        let contents = match received.contents {
            Ok(contents) => contents,
            Err(problem) => {
                // Without the contents, the sockets themselves tell which of them listen.
                let listening = descriptors.extract_if(.., |socket| listener::accepts_tcp(socket));
                let mut listening: Vec<_> = listening.collect();
                let http = listening.split_off(listening.len().saturating_sub(received.http));
                let schemes = vec![PROTOCOLS.default().scheme().into(); listening.len()];
                self.listen(schemes, listening, http, received.passed);
                let clients = descriptors.len();
                error!(clients; "the clients of the last process are closed, their pack can't be read: {problem}");
                for socket in descriptors.into_iter().map(TcpStream::from) {
                    // Fails if the client has gone already.
                    let _ = socket.shutdown(Shutdown::Write);
                    self.leaving.push((socket, Millis::now()));
                }
                return;
            }
        };
        if let missing @ 1.. = contents.descriptors().saturating_sub(descriptors.len()) {
            error!(
                missing;
                "sockets of the last process are lost: there are more than this process may have open (ulimit -n, LimitNOFILE=)"
            );
        }
        let mut descriptors = descriptors.into_iter();
        let listening = descriptors.by_ref().take(contents.listeners.len());
        let listening = listening.collect();
        let http = descriptors.by_ref().take(contents.http.into()).collect();
        self.listen(contents.listeners, listening, http, received.passed);
        let sockets = descriptors.by_ref().map(TcpStream::from);
        self.clients
            .extend(contents.clients.into_iter().zip(sockets));
        let leaving = descriptors.map(TcpStream::from);
        self.leaving.extend(leaving.zip(contents.leaving));
        self.id = Some(contents.id);
        self.accepted = contents.accepted;
        self.handovers = contents.handovers + 1;
        self.begun = Some(contents.begun);
        self.census = contents.census;
        info!(clients = self.clients.len(); "goes on with the clients of the last process");
    }

    fn listen(
        &mut self,
        schemes: Vec<Cow<'static, str>>,
        listening: Vec<OwnedFd>,
        http: Vec<OwnedFd>,
        passed: bool,
    ) {
        let schemes = schemes.into_iter().chain(std::iter::repeat(HTTP.into()));
        let clients = listening.len();
        for (index, (socket, scheme)) in listening.into_iter().chain(http).zip(schemes).enumerate()
        {
            let listeners = match index < clients {
                true => &mut self.listeners,
                false => &mut self.http,
            };
            match listener::inherit(socket, scheme, passed) {
                Ok(listener) => listeners.push(Arc::new(listener)),
                Err(error) => error!("can't go on listening: {}", without_errno(&error)),
            }
        }
    }

    /// Encodes everything into a handover state for the next process.
    pub fn pack(&self) -> io::Result<state::Pack> {
        // More HTTP sockets than that are not passed on: the format can't count them, and the
        // receiver would take them for clients.
        let http = &self.http[..self.http.len().min(usize::from(state::MOST_HTTP))];
        let contents = state::HandoverState {
            listeners: self
                .listeners
                .iter()
                .map(|listener| listener.scheme.clone())
                .collect(),
            http: http.len() as u8,
            id: self.id.unwrap_or_default(),
            accepted: self.accepted,
            handovers: self.handovers,
            begun: self.begun.unwrap_or_else(Millis::now),
            census: self.census,
            clients: self
                .clients
                .iter()
                .map(|(client, _)| client.clone())
                .collect(),
            leaving: self.leaving.iter().map(|(_, since)| *since).collect(),
        };
        let passed = self.listeners.iter().any(|listener| listener.passed);
        let listeners = self.listeners.iter().chain(http);
        let listeners = listeners.map(|listener| listener.socket.as_fd());
        let clients = self.clients.iter().map(|(_, stream)| stream.as_fd());
        let leaving = self.leaving.iter().map(|(stream, _)| stream.as_fd());
        let descriptors: Vec<_> = listeners.chain(clients).chain(leaving).collect();
        state::send(&contents, passed, &descriptors)
    }
}

/// Binds the HTTP socket, if HTTP is enabled, beside the sockets for clients.
fn listen_for_http(
    options: &Options,
    listeners: &[Arc<Listener>],
) -> Result<Vec<Arc<Listener>>, Error> {
    let Some(address) = options.http else {
        return Ok(Vec::new());
    };
    let beside: Vec<SocketAddr> = match listeners.is_empty() {
        true => options.listen.iter().map(|listen| listen.address).collect(),
        false => listeners.iter().map(|listener| listener.address).collect(),
    };
    match listener::bind_beside(address, HTTP, &beside) {
        Ok(listener) => Ok(vec![Arc::new(listener)]),
        // The default address is optional, unless other servers are told to use it (`--advertise`).
        Err(error) if options.http_by_default && options.advertise.is_none() => {
            warn!("no health checks and no metrics (--http): {error}");
            Ok(Vec::new())
        }
        Err(error) => Err(error),
    }
}

/// Returns whether this program replaces another in the same process.
pub fn is_replacement() -> bool {
    std::env::var_os(state::VARIABLE).is_some()
}

/// Returns the line by which a program in a preflight check identifies itself; `None` when an
/// operator runs the check.
pub fn version_banner() -> Option<String> {
    std::env::var_os(VERSION_VARIABLE).map(|_| own_version_banner())
}

fn own_version_banner() -> String {
    format!("blockchain-tcpd takes packs of version {}", state::VERSION)
}

/// Reads what an ended program wrote, as much as is of interest. Does not block: a child of that
/// program may hold the other end of the pipe.
fn said(mut output: ChildStdout) -> String {
    let mut bytes = [0; 80];
    let read = rustix::fs::fcntl_setfl(&output, OFlags::NONBLOCK)
        .map_err(io::Error::from)
        .and_then(|()| output.read(&mut bytes));
    String::from_utf8_lossy(&bytes[..read.unwrap_or(0)]).into_owned()
}

/// Fails if this program can't read the handover state of the program that checks it.
pub fn check_version() -> Result<(), Error> {
    match std::env::var(VERSION_VARIABLE) {
        Ok(version) if version != state::VERSION.to_string() => Err(Error::PackVersion { version }),
        _ => Ok(()),
    }
}

/// Logs which program, of which version, this is.
pub fn say_which_program() {
    let program = std::env::current_exe().unwrap_or_default();
    info!(program:% = program.display(), version = env!("CARGO_PKG_VERSION"); "takes over");
}

/// Path by which this program was started.
struct GivenPath {
    /// The path made absolute, with its symbolic links unresolved.
    path: PathBuf,
    /// The working directory that a relative path needs.
    directory: Option<PathBuf>,
    /// The same from the real path of the working directory, without its `..`: a path that may
    /// outlive that directory.
    without_directory: Option<PathBuf>,
}

/// Returns the path by which this program was started.
fn path_as_given() -> Option<GivenPath> {
    let is_path = |path: &PathBuf| {
        let is_descriptor = path.starts_with("/dev/fd") || path.starts_with("/proc");
        !path.as_os_str().is_empty() && !is_descriptor
    };
    // For a program executed by its descriptor (fexecve(3)), argv[0] may be the path.
    let name = || {
        let name = std::env::args_os().next().map(PathBuf::from);
        name.filter(|name| name.is_absolute() && is_same_file(name, Path::new("/proc/self/exe")))
    };
    let given = Some(sys::executed_path()).filter(is_path);
    let given = given.or_else(|| name().filter(is_path))?;
    // The shell's PWD keeps the symbolic links by which the directory was reached.
    let here = std::env::var_os("PWD").map(PathBuf::from);
    let here = here.filter(|here| here.is_absolute() && is_same_file(here, Path::new(".")));
    let real = std::env::current_dir().ok().filter(|_| given.is_relative());
    let here = here.or_else(|| real.clone()).unwrap_or_default();
    Some(GivenPath {
        path: std::path::absolute(here.join(&given)).ok()?,
        directory: given.is_relative().then_some(here),
        without_directory: real.map(|real| above(real, &given)),
    })
}

/// Appends `path` to a directory without symbolic links; `..` at its beginning goes up from there.
fn above(mut directory: PathBuf, path: &Path) -> PathBuf {
    let mut parts = path.components();
    loop {
        let rest = parts.as_path();
        match parts.next() {
            Some(Component::CurDir) => {}
            Some(Component::ParentDir) => {
                directory.pop();
            }
            _ => return directory.join(rest),
        }
    }
}

fn is_same_file(one: &Path, other: &Path) -> bool {
    let number = |path| std::fs::metadata(path).map(|file| (file.dev(), file.ino()));
    matches!((number(one), number(other)), (Ok(one), Ok(other)) if one == other)
}

/// Upgrade to the program that replaces this one, with the same arguments.
pub struct Upgrade {
    /// Path of the program, or why it is unknown.
    program: Result<GivenPath, String>,
}

impl Upgrade {
    /// Finds the program under the path by which this one was started: the next release, if a
    /// symbolic link in the path was switched. Call it early, because the working directory may
    /// disappear.
    pub fn of_this_program() -> Self {
        let of_kernel = || {
            std::env::current_exe().map(|path| GivenPath {
                path,
                directory: None,
                without_directory: None,
            })
        };
        let program = path_as_given().map_or_else(of_kernel, Ok);
        let program = program.map_err(|error| {
            format!(
                "can't find out which program this is: {}",
                without_errno(&error)
            )
        });
        Upgrade { program }
    }

    /// Finds the program. If it was started by a relative path, from a directory that is gone, it
    /// may have other paths.
    fn find(&self) -> Result<PathBuf, String> {
        let given = self.program.as_ref().map_err(String::clone)?;
        let is_gone = |directory: &PathBuf| !directory.exists();
        if given.path.exists() || !given.directory.as_ref().is_some_and(is_gone) {
            return Ok(given.path.clone());
        }
        let others = [
            given.without_directory.clone(),
            std::env::current_exe().ok(),
        ];
        let other = others.into_iter().flatten().find(|path| path.exists());
        Ok(other.unwrap_or_else(|| given.path.clone()))
    }

    fn command(&self) -> Result<(Command, String), String> {
        let program = self.find()?;
        let mut command = Command::new(&program);
        let mut words = std::env::args_os();
        if let Some(name) = words.next() {
            command.arg0(name);
        }
        command.args(words);
        Ok((command, program.display().to_string()))
    }

    /// Runs the new program's `--check` with the same settings. Fails if it would not start, and
    /// gives up when `is_over` returns true.
    pub fn preflight(&self, is_over: &dyn Fn() -> bool) -> Result<(), String> {
        let (mut trial, name) = self.command()?;
        if let Ok(given) = &self.program
            && given.path != Path::new(trial.get_program())
        {
            warn!(
                started_by:% = given.path.display(), program:% = name;
                "the working directory in which the program was started is gone: takes it from another path"
            );
        }
        trial
            .arg("--check")
            .env(VERSION_VARIABLE, state::VERSION.to_string())
            .env_remove("NOTIFY_SOCKET");
        trial
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::inherit())
            // A process group of its own, so that it can be killed with all its children.
            .process_group(0);
        let child = signals::unheld(|| trial.spawn());
        let mut child =
            child.map_err(|error| format!("can't run {name}: {}", without_errno(&error)))?;
        let deadline = Instant::now() + TRIAL;
        let give_up = |mut child: Child, why: String| {
            // It can't fail: the child is ours and not yet reaped.
            let _ = kill_process_group(Pid::from_child(&child), Signal::KILL);
            let _ = child.wait();
            Err(why)
        };
        loop {
            match child.try_wait() {
                Ok(Some(status)) if status.success() => break,
                Ok(Some(status)) => return Err(format!("{name} --check fails with {status}")),
                Ok(None) if is_over() => return give_up(child, "told to stop".to_string()),
                Ok(None) if Instant::now() < deadline => {
                    std::thread::sleep(Duration::from_millis(5))
                }
                Ok(None) => {
                    let seconds = TRIAL.as_secs();
                    return give_up(
                        child,
                        format!("{name} --check takes longer than {seconds} s"),
                    );
                }
                Err(error) => {
                    return give_up(
                        child,
                        format!("can't wait for {name}: {}", without_errno(&error)),
                    );
                }
            }
        }
        match child.stdout.take().map(said) {
            Some(said) if said.trim_end() == own_version_banner() => Ok(()),
            _ => Err(format!(
                "{name} is not blockchain-tcpd, or a version that takes no clients of this one"
            )),
        }
    }

    /// Executes the new program, which takes over `pack`. Returns only on failure, with the reason.
    pub fn exec(&self, pack: &OwnedFd) -> String {
        let (mut command, name) = match self.command() {
            Ok(command) => command,
            Err(why) => return why,
        };
        if let Err(error) = rustix::io::fcntl_setfd(pack, FdFlags::empty()) {
            return without_errno(&error.into());
        }
        let error = command
            .env(state::VARIABLE, pack.as_raw_fd().to_string())
            .exec();
        // The attempt has restored the default handling of SIGPIPE, for the new program.
        sys::ignore_broken_pipes();
        format!("can't run {name}: {}", without_errno(&error))
    }
}
