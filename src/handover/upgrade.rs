//! Upgrade: finds the program that replaces this one, checks that it would start (the preflight),
//! and executes it.

use std::io::{self, Read as _};
use std::os::fd::{AsRawFd as _, OwnedFd};
use std::os::unix::fs::MetadataExt as _;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdout, Command, Stdio};
use std::time::{Duration, Instant};

use log::{info, warn};
use rustix::fs::OFlags;
use rustix::io::FdFlags;
use rustix::process::{Pid, Signal, kill_process_group};

use crate::error::Error;
use crate::handover::state;
use crate::signals;
use shared::sys;
use shared::text::without_errno;

/// Longest duration of the preflight.
const PREFLIGHT_TIMEOUT: Duration = Duration::from_secs(10);

/// Interval between checks whether the preflight has ended.
const POLL_INTERVAL: Duration = Duration::from_millis(5);

/// Link of the kernel to this program.
const THIS_PROGRAM: &str = "/proc/self/exe";

/// Environment variable that tells the new program, during the preflight, which version of the
/// handover state it would have to read.
const VERSION_VARIABLE: &str = "BLOCKCHAIN_TCPD_HANDOVER_VERSION";

/// Returns the line by which a program in a preflight identifies itself; `None` when an operator
/// runs the check.
pub fn version_banner() -> Option<String> {
    std::env::var_os(VERSION_VARIABLE).map(|_| own_version_banner())
}

fn own_version_banner() -> String {
    let version = state::VERSION;
    format!("blockchain-tcpd reads version {version} of the handover state")
}

/// Fails if this program can't read the handover state of the program that checks it.
pub fn check_version() -> Result<(), Error> {
    match std::env::var(VERSION_VARIABLE) {
        Ok(version) if version != state::VERSION.to_string() => Err(Error::Configuration(format!(
            "the running program uses version {version} of the handover state, and this one reads another; \
                 restart the service instead, which closes the clients"
        ))),
        _ => Ok(()),
    }
}

/// Logs the path and the version of this program.
pub fn log_program() {
    let program = std::env::current_exe().unwrap_or_default();
    info!(program:% = program.display(), version = env!("CARGO_PKG_VERSION"); "takes over");
}

/// Upgrade to the program that replaces this one, with the same arguments.
#[derive(Default)]
pub struct Upgrade {
    /// The path by which this program was started, made absolute, with its symbolic links
    /// unresolved.
    path: PathBuf,
    /// The working directory that a relative path needs.
    directory: Option<PathBuf>,
    /// The same from the real path of the working directory, without its `..`: a path that may
    /// outlive that directory.
    without_directory: Option<PathBuf>,
}

impl Upgrade {
    /// Finds the program under the path by which this one was started: the next release, if a
    /// symbolic link in the path was switched. Call it early, because the working directory may
    /// disappear.
    pub fn of_this_program() -> Self {
        Upgrade::as_given().unwrap_or_else(|| {
            let executed = std::env::current_exe();
            Upgrade::to(executed.unwrap_or_else(|_| THIS_PROGRAM.into()))
        })
    }

    fn to(path: PathBuf) -> Self {
        Upgrade {
            path,
            ..Upgrade::default()
        }
    }

    /// Returns the path by which this program was started, if it is known.
    fn as_given() -> Option<Self> {
        let is_path = |path: &PathBuf| {
            let is_descriptor = path.starts_with("/dev/fd") || path.starts_with("/proc");
            !path.as_os_str().is_empty() && !is_descriptor
        };
        // For a program executed by its descriptor (fexecve(3)), argv[0] may be the path.
        let name = || {
            let name = std::env::args_os().next().map(PathBuf::from);
            name.filter(|name| name.is_absolute() && is_same_file(name, THIS_PROGRAM))
        };
        let given = Some(sys::executed_path()).filter(is_path);
        let given = given.or_else(|| name().filter(is_path))?;
        if given.is_absolute() {
            return Some(Upgrade::to(given));
        }
        // The shell's PWD keeps the symbolic links by which the directory was reached.
        let shell = std::env::var_os("PWD").map(PathBuf::from);
        let shell = shell.filter(|shell| shell.is_absolute() && is_same_file(shell, "."));
        let real = std::env::current_dir().ok();
        let directory = shell.or_else(|| real.clone()).unwrap_or_default();
        Some(Upgrade {
            path: std::path::absolute(directory.join(&given)).ok()?,
            directory: Some(directory),
            without_directory: real.map(|real| join_real(real, &given)),
        })
    }

    /// Returns a path under which the program exists. If it was started by a relative path, from a
    /// directory that is gone, it may have others.
    fn find(&self) -> PathBuf {
        let is_gone = |directory: &PathBuf| !directory.exists();
        if !self.path.exists() && self.directory.as_ref().is_some_and(is_gone) {
            let executed = std::env::current_exe().ok();
            let mut others = self.without_directory.iter().chain(&executed);
            if let Some(other) = others.find(|path| path.exists()) {
                return other.clone();
            }
        }
        self.path.clone()
    }

    fn command(&self) -> (Command, PathBuf) {
        let program = self.find();
        let mut command = Command::new(&program);
        let mut arguments = std::env::args_os();
        if let Some(name) = arguments.next() {
            command.arg0(name);
        }
        command.args(arguments);
        (command, program)
    }

    /// Runs the new program's `--check` with the same settings. Fails if it would not start, and
    /// gives up when `is_over` returns true.
    pub fn preflight(&self, is_over: &dyn Fn() -> bool) -> Result<(), String> {
        let (mut command, program) = self.command();
        if self.path != program {
            warn!(
                started_by:% = self.path.display(), program:% = program.display();
                "the working directory in which the program was started is gone: uses another path"
            );
        }
        let name = program.display();
        command
            .arg("--check")
            .env(VERSION_VARIABLE, state::VERSION.to_string())
            .env_remove("NOTIFY_SOCKET")
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::inherit())
            // A process group of its own, so that it can be killed with all its children.
            .process_group(0);
        let mut child = signals::unblocked(|| command.spawn())
            .map_err(|error| format!("can't run {name}: {}", without_errno(&error)))?;
        let deadline = Instant::now() + PREFLIGHT_TIMEOUT;
        let problem = loop {
            match child.try_wait() {
                Ok(Some(status)) if status.success() => {
                    match child.stdout.take().map(read_banner) {
                        Some(banner) if banner.trim_end() == own_version_banner() => return Ok(()),
                        _ => {
                            return Err(format!(
                                "{name} is not blockchain-tcpd, or of a version that can't take over from this one"
                            ));
                        }
                    }
                }
                Ok(Some(status)) => return Err(format!("{name} --check fails with {status}")),
                Ok(None) if is_over() => break "this server was told to stop".to_string(),
                Ok(None) if Instant::now() < deadline => std::thread::sleep(POLL_INTERVAL),
                Ok(None) => {
                    break format!(
                        "{name} --check takes longer than {} s",
                        PREFLIGHT_TIMEOUT.as_secs()
                    );
                }
                Err(error) => break format!("can't wait for {name}: {}", without_errno(&error)),
            }
        };
        kill(child);
        Err(problem)
    }

    /// Executes the new program, which takes over from the handover state in `socket`. Returns only
    /// on failure, with the reason.
    pub fn exec(&self, socket: &OwnedFd) -> String {
        let (mut command, program) = self.command();
        if let Err(error) = rustix::io::fcntl_setfd(socket, FdFlags::empty()) {
            return without_errno(&error.into());
        }
        command.env(state::VARIABLE, socket.as_raw_fd().to_string());
        let error = command.exec();
        // The attempt has restored the default handling of SIGPIPE, for the new program.
        sys::ignore_broken_pipes();
        format!("can't run {}: {}", program.display(), without_errno(&error))
    }
}

/// Kills a preflight with all its children.
fn kill(mut child: Child) {
    // It can't fail: the child is ours and not yet reaped.
    let _ = kill_process_group(Pid::from_child(&child), Signal::KILL);
    let _ = child.wait();
}

/// Reads what an ended program wrote, as far as a banner is long. Does not block: a child of that
/// program may hold the other end of the pipe.
fn read_banner(mut output: ChildStdout) -> String {
    let mut bytes = [0; 80];
    let read = rustix::fs::fcntl_setfl(&output, OFlags::NONBLOCK)
        .map_err(io::Error::from)
        .and_then(|()| output.read(&mut bytes));
    String::from_utf8_lossy(&bytes[..read.unwrap_or(0)]).into_owned()
}

/// Appends `path` to a directory without symbolic links; `..` at its beginning goes up from there.
fn join_real(mut directory: PathBuf, path: &Path) -> PathBuf {
    let mut rest = path.strip_prefix(".").unwrap_or(path);
    while let Ok(inner) = rest.strip_prefix("..") {
        directory.pop();
        rest = inner;
    }
    directory.join(rest)
}

fn is_same_file(one: &Path, other: &str) -> bool {
    let id = |path| std::fs::metadata(path).map(|file| (file.dev(), file.ino()));
    matches!((id(one), id(Path::new(other))), (Ok(one), Ok(other)) if one == other)
}
