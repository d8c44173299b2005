//! A started server: the daemon, Redis, or a program that says as the daemon does when it is ready.

use std::env;
use std::io::{self, BufRead as _, BufReader, Lines, PipeReader};
use std::net::{SocketAddr, TcpListener};
use std::process::{Child, Command, Stdio};

use rustix::process::Pid;

use super::Result;

/// The daemon's program.
pub const PROGRAM: &str = env!("CARGO_BIN_EXE_blockchain-tcpd");

/// Returns the program that the variable RIVAL names: another build of the daemon, such as the last
/// version.
pub fn rival() -> Option<String> {
    env::var("RIVAL").ok()
}

/// A running server. Dropped, it is killed.
pub struct Server {
    child: Child,
    /// Where it is asked.
    pub address: SocketAddr,
    /// Open, also when nobody reads it: servers say little, which the pipe has room for.
    log: Lines<BufReader<PipeReader>>,
}

impl Server {
    /// Starts a build of the daemon on a free port.
    pub fn daemon(program: &str, arguments: &[&str]) -> Result<Server> {
        Server::daemon_at(program, "127.0.0.1:0", arguments)
    }

    /// Starts a build of the daemon that listens there.
    pub fn daemon_at(program: &str, listen: &str, arguments: &[&str]) -> Result<Server> {
        let mut command = Command::new(program);
        command.args(["--listen", listen]).args(arguments);
        Server::start(command, None)
    }

    /// Starts a Redis that keeps nothing.
    pub fn redis() -> Result<Server> {
        // It can't choose its own port.
        let address = TcpListener::bind("127.0.0.1:0")?.local_addr()?;
        let port = address.port().to_string();
        let mut command = Command::new("redis-server");
        command.args(["--bind", "127.0.0.1", "--port", &port, "--save", ""]);
        command.args(["--appendonly", "no", "--maxclients", "20000"]);
        // Its protected mode takes only 127.0.0.1 for this machine, of all loopback addresses.
        command.args(["--tcp-backlog", "4096", "--protected-mode", "no"]);
        Server::start(command, Some(address))
    }

    /// Starts a server, whose address may be known before, and waits until it is ready.
    pub fn start(mut command: Command, address: Option<SocketAddr>) -> Result<Server> {
        let (log, output) = io::pipe()?;
        let child = command
            // The user's own settings must not reach the server.
            .env_clear()
            .stdin(Stdio::null())
            .stdout(output.try_clone()?)
            .stderr(output)
            .spawn()?;
        // The writing ends of the pipe.
        drop(command);
        let mut server = Server {
            child,
            address: address.unwrap_or_else(|| SocketAddr::from(([0; 4], 0))),
            log: BufReader::new(log).lines(),
        };
        let ready = server.wait_for_ready()?;
        if address.is_none() {
            let listen = ready.split_once(" listen=").map(|(_, rest)| rest);
            let listen = listen.and_then(|rest| rest.split([' ', ',']).next());
            let listen = listen.ok_or("no address")?;
            let (_, address) = listen.split_once("://").unwrap_or(("", listen));
            server.address = address.parse()?;
        }
        Ok(server)
    }

    /// Waits until it says that it is ready, and returns the line; any warning before that is an
    /// error.
    pub fn wait_for_ready(&mut self) -> Result<String> {
        for line in self.log.by_ref() {
            let line = line?;
            let signs = [
                " ready listen=",
                "Ready to accept connections",
                "start worker process ",
            ];
            if signs.iter().any(|sign| line.contains(sign)) {
                return Ok(line);
            }
            if line.contains(" WARN ") || line.contains(" ERROR ") {
                return Err(line.into());
            }
        }
        Err(format!("the server ended: {}", self.child.wait()?).into())
    }

    /// Returns its process.
    pub fn pid(&self) -> Pid {
        Pid::from_child(&self.child)
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // Both fail only when it has ended already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Returns the version of the installed Redis, if there is one: `redis-server --version` says
/// `v=7.0.15` among other things.
pub fn redis_version() -> Option<String> {
    let mut command = Command::new("redis-server");
    let output = command.arg("--version").output().ok()?;
    let text = String::from_utf8_lossy(&output.stdout);
    let mut words = text.split_whitespace();
    let version = words.find_map(|word| word.strip_prefix("v="));
    version.map(str::to_string)
}
