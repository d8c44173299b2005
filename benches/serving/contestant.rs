//! The contestants: how each is started, when it is ready, what it is asked.

use std::env;
use std::ffi::OsString;
use std::fmt;
use std::net::{Ipv4Addr, SocketAddrV4, TcpListener};
use std::process::Command;

use clap::ValueEnum;

use crate::target::Dialect;
use crate::{Result, minimal};

/// Who is measured.
#[derive(Clone, Copy, PartialEq, Eq, Hash, ValueEnum)]
pub enum Contestant {
    /// The daemon, as it is released.
    #[value(name = "blockchain-tcpd")]
    Daemon,
    /// The least that can be done with a thread for each connection from a ready pool: the limit of the architecture.
    Minimal,
    /// The same with a new thread for each connection.
    Spawning,
    /// Another build of the daemon, such as the last version: the program that the variable RIVAL names.
    Rival,
    /// A well-known server with one thread and an event loop.
    Redis,
}

/// The variable that names the program of [`Contestant::Rival`].
const RIVAL: &str = "RIVAL";

/// How to start a server and know that it is ready.
pub struct Start {
    /// The program, by path or by name.
    pub program: OsString,
    /// Its arguments.
    pub arguments: Vec<OsString>,
    /// How it tells that it is ready.
    ready: Ready,
}

/// What a server prints when it is ready.
enum Ready {
    /// Its addresses, as `listen=127.0.0.1:4242`, several separated by commas.
    Listen,
    /// A sentence; the address is known before.
    Sentence(&'static str, SocketAddrV4),
}

impl Contestant {
    /// How to start it for so many clients.
    pub fn start(self, clients: usize) -> Result<Start> {
        let clients = clients.to_string();
        let own = || env::current_exe().map(OsString::from);
        Ok(match self {
            Contestant::Daemon => daemon(
                env!("CARGO_BIN_EXE_blockchain-tcpd"),
                &clients,
                &["--http", "127.0.0.1:0"],
            ),
            Contestant::Rival => {
                let program = env::var_os(RIVAL).ok_or("RIVAL names no program")?;
                daemon(program, &clients, &[])
            }
            Contestant::Minimal => {
                Start::new(own()?, &[minimal::POOL_ROLE, &clients], Ready::Listen)
            }
            Contestant::Spawning => Start::new(own()?, &[minimal::SPAWNING_ROLE], Ready::Listen),
            Contestant::Redis => {
                let address = free_address()?;
                Start::new(
                    "redis-server",
                    &[
                        "--bind",
                        &address.ip().to_string(),
                        "--port",
                        &address.port().to_string(),
                        "--save",
                        "",
                        "--appendonly",
                        "no",
                        "--protected-mode",
                        "no",
                        "--maxclients",
                        "20000",
                        "--tcp-backlog",
                        &minimal::BACKLOG.to_string(),
                    ],
                    Ready::Sentence("Ready to accept connections", address),
                )
            }
        })
    }

    /// What it is asked and what it has to answer.
    pub fn dialect(self) -> Dialect {
        match self {
            Contestant::Redis => Dialect {
                request: b"PING\r\n",
                reply: b"+PONG\r\n",
            },
            _ => Dialect {
                request: b"WHY\n",
                reply: b"42\n",
            },
        }
    }
}

/// A build of the daemon.
fn daemon(program: impl Into<OsString>, clients: &str, more: &[&str]) -> Start {
    let arguments = [
        "--listen",
        "127.0.0.1:0",
        "--max-clients",
        clients,
        "--queue",
        "128",
    ];
    let others = ["--idle-timeout", "1h", "--log", "info"];
    let arguments = [&arguments[..], &others, more].concat();
    Start::new(program, &arguments, Ready::Listen)
}

impl fmt::Display for Contestant {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.pad(match self {
            Contestant::Daemon => "blockchain-tcpd",
            Contestant::Minimal => "minimal",
            Contestant::Spawning => "spawning",
            Contestant::Rival => "rival",
            Contestant::Redis => "Redis",
        })
    }
}

impl Start {
    /// Puts a start together.
    fn new(program: impl Into<OsString>, arguments: &[&str], ready: Ready) -> Start {
        Start {
            program: program.into(),
            arguments: arguments.iter().map(OsString::from).collect(),
            ready,
        }
    }

    /// The address of the server, when this line of its log says that it is ready.
    pub fn ready(&self, line: &str) -> Option<SocketAddrV4> {
        match self.ready {
            Ready::Listen => line
                .split_once("listen=")?
                .1
                .split([' ', ',', '"'])
                .find_map(|address| address.parse().ok()),
            Ready::Sentence(sentence, address) => line.contains(sentence).then_some(address),
        }
    }
}

/// Those of the chosen that this machine has, each once, and a note on each that it hasn't.
pub fn present(chosen: &[Contestant]) -> Result<(Vec<Contestant>, Vec<String>)> {
    let mut contestants = Vec::new();
    let mut notes = Vec::new();
    for &contestant in chosen {
        if contestants.contains(&contestant) {
            continue;
        }
        if contestant == Contestant::Redis && redis_version().is_none() {
            notes.push("Left out: Redis. There is no redis-server in PATH.".to_string());
        } else {
            contestants.push(contestant);
        }
    }
    if contestants.is_empty() {
        return Err("nobody is left to be measured".into());
    }
    Ok((contestants, notes))
}

/// The contestants with their versions.
pub fn versions(contestants: &[Contestant]) -> String {
    let names: Vec<_> = contestants
        .iter()
        .map(|contestant| match contestant {
            Contestant::Daemon => format!("{contestant} {}", env!("CARGO_PKG_VERSION")),
            Contestant::Redis => {
                format!("{contestant} {}", redis_version().unwrap_or_default())
            }
            _ => contestant.to_string(),
        })
        .collect();
    names.join(", ")
}

/// The version of the installed Redis, if there is one: `redis-server --version` says `v=7.0.15` among other things.
fn redis_version() -> Option<String> {
    let output = Command::new("redis-server")
        .arg("--version")
        .output()
        .ok()?;
    let text = String::from_utf8_lossy(&output.stdout);
    let version = text
        .split_whitespace()
        .find_map(|word| word.strip_prefix("v="))
        .unwrap_or("of unknown version");
    output.status.success().then(|| version.to_string())
}

/// An address that is free now, for a server that can't choose its own port.
fn free_address() -> Result<SocketAddrV4> {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
    let port = listener.local_addr()?.port();
    Ok(SocketAddrV4::new(Ipv4Addr::LOCALHOST, port))
}
