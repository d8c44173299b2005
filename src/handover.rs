//! What comes from the last process and goes to the next: sockets that systemd passes, and a pack of live connections.

use std::net::TcpStream;
use std::os::fd::{AsFd as _, OwnedFd};
use std::os::unix::process::CommandExt as _;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use log::{error, info};
use uuid::Uuid;

use crate::error::{Error, plain};
use crate::linger::Leaving;
use crate::listener::{self, Listener};
use crate::options::Options;
use crate::pack::{self, Arrived};
use crate::sys;

/// How long the new program may take to say that it would start.
const TRIAL: Duration = Duration::from_secs(10);

/// What a process begins with.
#[derive(Default)]
pub struct Inherited {
    /// Sockets that listen already.
    pub listeners: Vec<Listener>,
    /// Whether systemd keeps an empty pack now, which it should forget.
    pub stored: bool,
    /// How many clients have been accepted.
    pub accepted: u64,
    /// Clients of the last process.
    pub clients: Vec<(pack::Client, TcpStream)>,
    /// Sockets of clients that have been told goodbye.
    pub leaving: Vec<Leaving>,
    /// The id of the server.
    pub id: Option<Uuid>,
}

impl Inherited {
    /// All that was passed to this process. Call it once, before any thread starts.
    pub fn take(options: &Options) -> Result<Self, Error> {
        let (listeners, stored) = listener::passed()?;
        if !listeners.is_empty() && !options.listen_by_default {
            return Err(Error::Passed(format!(
                "systemd passes {} sockets, and --listen (BLOCKCHAIN_TCPD_LISTEN) names others: change the addresses of \
                 the .socket unit, or do without it",
                listeners.len()
            )));
        }
        let mut inherited = Inherited {
            listeners,
            ..Inherited::default()
        };
        if let Some(pack) = stored {
            inherited.unpack(&pack);
            inherited.stored = true;
        }
        if let Some(pack) = sys::passed_descriptor(pack::VARIABLE) {
            inherited.unpack(&pack);
        }
        Ok(inherited)
    }

    /// Adds what is in a pack. What can't be read is closed, and the log says so.
    pub fn unpack(&mut self, pack: &OwnedFd) {
        let arrived = pack::receive(pack).unwrap_or_else(|error| {
            error!(
                "the clients of the last process are lost, can't take their pack: {}",
                plain(&error)
            );
            Arrived {
                contents: Ok(pack::Contents::default()),
                descriptors: Vec::new(),
            }
        });
        let mut descriptors = arrived.descriptors;
        let contents = match arrived.contents {
            Ok(contents) => contents,
            Err(damage) => {
                let clients = descriptors.len();
                error!(clients; "the clients of the last process are closed, their pack can't be read: {damage}");
                // Their sockets know themselves which of them listen.
                let listening = descriptors.extract_if(.., |socket| listener::accepts_tcp(socket));
                self.listeners
                    .extend(listening.filter_map(|socket| listener::inherit(socket, false).ok()));
                for socket in descriptors {
                    // It fails if that client has gone already.
                    let _ = rustix::net::shutdown(&socket, rustix::net::Shutdown::Write);
                }
                return;
            }
        };
        let mut descriptors = descriptors.into_iter();
        let listeners = descriptors.by_ref().take(contents.listeners as usize);
        for socket in listeners {
            match listener::inherit(socket, contents.passed) {
                Ok(listener) => self.listeners.push(listener),
                Err(error) => error!("can't go on listening: {}", plain(&error)),
            }
        }
        let sockets = descriptors.by_ref().map(TcpStream::from);
        self.clients
            .extend(contents.clients.into_iter().zip(sockets));
        let leaving = descriptors.map(TcpStream::from);
        self.leaving.extend(leaving.zip(contents.leaving));
        self.id = Some(contents.id);
        self.accepted = contents.accepted;
        info!(clients = self.clients.len(); "goes on with the clients of the last process");
    }
}

/// The program that replaces this one, with the same arguments.
pub struct Successor {
    program: PathBuf,
}

impl Successor {
    /// The program of this name that is there when it is called. Ask early: a program that is replaced on the disk is no
    /// longer found by its process.
    pub fn new() -> Result<Self, Error> {
        let program = std::env::current_exe().map_err(|source| Error::System {
            action: "find out which program this is",
            source,
        })?;
        Ok(Successor { program })
    }

    fn command(&self) -> Command {
        let mut command = Command::new(&self.program);
        command.args(std::env::args_os().skip(1));
        command
    }

    /// Whether it would start with the same settings; else why not.
    pub fn try_out(&self) -> Result<(), String> {
        let name = self.program.display();
        let mut trial = self.command();
        trial.arg("--check").env_remove("NOTIFY_SOCKET");
        let child = trial
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::inherit())
            .spawn();
        let mut child = child.map_err(|error| format!("can't run {name}: {}", plain(&error)))?;
        let deadline = Instant::now() + TRIAL;
        loop {
            match child.try_wait() {
                Ok(Some(status)) if status.success() => return Ok(()),
                Ok(Some(status)) => return Err(format!("{name} --check fails with {status}")),
                Ok(None) if Instant::now() < deadline => {
                    std::thread::sleep(Duration::from_millis(5))
                }
                Ok(None) => {
                    // It is our child, and waited for.
                    let _ = child.kill();
                    let _ = child.wait();
                    return Err(format!(
                        "{name} --check takes longer than {} s",
                        TRIAL.as_secs()
                    ));
                }
                Err(error) => return Err(format!("can't wait for {name}: {}", plain(&error))),
            }
        }
    }

    /// Becomes that program, which takes `pack`. Returns only if that fails, and says why.
    pub fn take_over(&self, pack: &OwnedFd) -> String {
        let kept = rustix::io::fcntl_setfd(pack, rustix::io::FdFlags::empty());
        if let Err(error) = kept {
            return plain(&error.into());
        }
        let number = std::os::fd::AsRawFd::as_raw_fd(&pack.as_fd());
        let error = self
            .command()
            .env(pack::VARIABLE, number.to_string())
            .exec();
        // It is still ours, and no child's.
        let _ = rustix::io::fcntl_setfd(pack, rustix::io::FdFlags::CLOEXEC);
        format!("can't run {}: {}", self.program.display(), plain(&error))
    }
}
