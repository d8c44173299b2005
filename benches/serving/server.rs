//! A started server: ready when it is handed out, gone when it is dropped.

use std::collections::{HashMap, VecDeque};
use std::env;
use std::fmt::Display;
use std::io::{self, BufRead, BufReader, PipeReader};
use std::net::{Ipv4Addr, SocketAddrV4};
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{self, RecvTimeoutError, Sender};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use rustix::process::Pid;

use crate::contestant::{Contestant, Start};
use crate::target::Target;
use crate::{Result, launch};

/// How long a server may take until it is ready.
const START: Duration = Duration::from_secs(20);

/// How many of its last lines are kept, to be shown when it fails.
const LAST_LINES: usize = 12;

/// Variables that would change what a server does.
const FOREIGN_VARIABLES: [&str; 6] = [
    "BLOCKCHAIN_TCPD_",
    "LISTEN_",
    "NOTIFY_",
    "WATCHDOG_",
    "STATE_DIRECTORY",
    "RUST_",
];

/// The processes that run now, so that ^C can end them.
#[derive(Default)]
pub struct Keeper {
    /// By process id.
    children: Mutex<HashMap<u32, Child>>,
}

impl Keeper {
    /// Ends all servers, and lets nobody start or end one as long as what it returns is held.
    pub fn end_all(&self) -> impl Sized {
        let mut children = self.children();
        for (_, child) in children.drain() {
            end(child);
        }
        children
    }

    /// Starts a process and keeps it; under the lock, so that ^C finds either no process or a kept one.
    fn spawn(&self, mut command: Command) -> Result<Pid> {
        let mut children = self.children();
        let child = command.spawn()?;
        let pid = Pid::from_child(&child);
        children.insert(child.id(), child);
        Ok(pid)
    }

    /// Ends one server, if it isn't yet; under the lock, so that ^C doesn't miss it.
    fn end(&self, pid: Pid) {
        let mut children = self.children();
        if let Some(child) = children.remove(&pid.as_raw_nonzero().get().cast_unsigned()) {
            end(child);
        }
    }

    /// The processes, also after a panic elsewhere.
    fn children(&self) -> MutexGuard<'_, HashMap<u32, Child>> {
        self.children.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Kills a process and waits until it is gone.
fn end(mut child: Child) {
    // Both fail only when it has ended already.
    let _ = child.kill();
    let _ = child.wait();
}

/// A server that answers.
pub struct Server<'a> {
    /// Where and in which words to ask it.
    pub target: Target,
    /// Its process.
    pub pid: Pid,
    /// Ends it.
    keeper: &'a Keeper,
    /// The end of what it has printed.
    log: Arc<Mutex<VecDeque<String>>>,
    /// Reads what it prints.
    reader: Option<JoinHandle<()>>,
}

impl<'a> Server<'a> {
    /// Starts the contestant on a core, sized for a number of clients, and waits until it is ready.
    pub fn start(
        keeper: &'a Keeper,
        contestant: Contestant,
        clients: usize,
        core: usize,
    ) -> Result<Server<'a>> {
        let start = contestant.start(clients)?;
        let mut command = launch::command(core, &start.program, &start.arguments)?;
        let (output, input) = io::pipe()?;
        command
            .stdin(Stdio::null())
            .stdout(input.try_clone()?)
            .stderr(input);
        for (name, _) in env::vars_os() {
            let name_is = |prefix: &&str| name.as_encoded_bytes().starts_with(prefix.as_bytes());
            if FOREIGN_VARIABLES.iter().any(name_is) {
                command.env_remove(&name);
            }
        }
        // A ^C at the terminal is for the benches, which then end the server.
        command.process_group(0);
        // The command goes with the call, and the writing ends of the pipe with it.
        let pid = keeper.spawn(command)?;

        let log = Arc::new(Mutex::new(VecDeque::new()));
        let (ready, became_ready) = mpsc::channel();
        let mut server = Server {
            target: Target {
                address: SocketAddrV4::new(Ipv4Addr::LOCALHOST, 0),
                dialect: contestant.dialect(),
            },
            pid,
            keeper,
            log: Arc::clone(&log),
            reader: None,
        };
        server.reader = Some(
            thread::Builder::new()
                .name("server-log".to_string())
                .spawn(move || follow(output, &log, &start, ready))?,
        );
        server.target.address = became_ready.recv_timeout(START).map_err(|error| {
            server.with_log(match error {
                RecvTimeoutError::Timeout => "it isn't ready after 20 s",
                RecvTimeoutError::Disconnected => "it ended before it was ready",
            })
        })?;
        Ok(server)
    }

    /// An error with the last lines of the server's log.
    pub fn with_log(&self, error: impl Display) -> String {
        let log = self.log.lock().unwrap_or_else(PoisonError::into_inner);
        let mut text = error.to_string();
        text.push_str(if log.is_empty() {
            "\n  (it has logged nothing)"
        } else {
            "\n  the end of its log:"
        });
        for line in log.iter() {
            text.push_str("\n  ");
            text.push_str(line);
        }
        text
    }
}

impl Drop for Server<'_> {
    fn drop(&mut self) {
        self.keeper.end(self.pid);
        if let Some(reader) = self.reader.take() {
            // It ends with the pipe; its panic has been reported already.
            let _ = reader.join();
        }
    }
}

/// Reads what the server prints until it ends, so that the pipe never fills up; tells when it is ready.
fn follow(
    output: PipeReader,
    log: &Mutex<VecDeque<String>>,
    start: &Start,
    ready: Sender<SocketAddrV4>,
) {
    let mut ready = Some(ready);
    for line in BufReader::new(output)
        .split(b'\n')
        .map_while(io::Result::ok)
    {
        let line = String::from_utf8_lossy(&line).into_owned();
        let address = start.ready(&line);
        keep(log, line);
        if let Some(address) = address
            && let Some(ready) = ready.take()
        {
            // Nobody waits any more after the deadline.
            let _ = ready.send(address);
        }
    }
}

/// Keeps a line of the log, and only the last ones.
fn keep(log: &Mutex<VecDeque<String>>, line: String) {
    let mut log = log.lock().unwrap_or_else(PoisonError::into_inner);
    if log.len() == LAST_LINES {
        log.pop_front();
    }
    log.push_back(line);
}
