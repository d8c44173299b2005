//! The contestants: how each is started, and what it is asked.

use std::env;
use std::fmt;
use std::process::Command;

use clap::ValueEnum;

use crate::common::Result;
use crate::common::server::{PROGRAM, Server, redis_version, rival};
use crate::minimal;

/// Who is measured.
#[derive(Clone, Copy, PartialEq, Eq, Hash, ValueEnum)]
pub enum Contestant {
    /// The daemon, as it is released.
    #[value(name = "blockchain-tcpd")]
    Daemon,
    /// The daemon, asked over protobuf.
    Protobuf,
    /// The least that can be done with a thread for each connection from a ready pool: the limit of
    /// the architecture.
    Minimal,
    /// The same with a new thread for each connection.
    Spawning,
    /// Another build of the daemon: see [`rival`].
    Rival,
    /// A well-known server with one thread and an event loop.
    Redis,
}

impl Contestant {
    /// Starts it for this number of clients.
    pub fn start(self, clients: usize) -> Result<Server> {
        let clients = clients.to_string();
        let own = |arguments: &[&str]| {
            let mut command = Command::new(env::current_exe()?);
            command.args(arguments);
            Server::start(command, None)
        };
        let daemon = |program: &str, listen| {
            let options = ["--max-clients", &clients, "--queue", "128"];
            let others = ["--idle-timeout", "1h", "--http", "127.0.0.1:0"];
            Server::daemon_at(program, listen, &[options, others].concat())
        };
        let rival = || rival().ok_or("RIVAL names no program");
        match self {
            Contestant::Daemon => daemon(PROGRAM, "127.0.0.1:0"),
            Contestant::Protobuf => daemon(PROGRAM, "protobuf://127.0.0.1:0"),
            Contestant::Rival => daemon(&rival()?, "127.0.0.1:0"),
            Contestant::Minimal => own(&[minimal::POOL_ROLE, &clients]),
            Contestant::Spawning => own(&[minimal::SPAWNING_ROLE]),
            Contestant::Redis => Server::redis(),
        }
    }

    /// Returns whether it is asked in other messages than lines.
    pub fn is_raw(self) -> bool {
        self == Contestant::Protobuf
    }

    /// Returns what it is asked and what it has to answer; if these are lines, without their ends.
    pub fn request_and_reply(self) -> (&'static [u8], &'static [u8]) {
        match self {
            // `Request { why {} }`, and `Response { why { value: 42 } }`.
            Contestant::Protobuf => (b"\x02\x62\x00", b"\x04\x62\x02\x08\x2a"),
            Contestant::Redis => (b"PING\r", b"+PONG\r"),
            _ => (b"WHY", b"42"),
        }
    }
}

impl fmt::Display for Contestant {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Contestant::Daemon => "blockchain-tcpd",
            Contestant::Protobuf => "protobuf",
            Contestant::Minimal => "minimal",
            Contestant::Spawning => "spawning",
            Contestant::Rival => "rival",
            Contestant::Redis => "Redis",
        })
    }
}

/// Returns those of the chosen that this machine has, and a note on Redis if it hasn't.
pub fn present(chosen: &[Contestant]) -> Result<(Vec<Contestant>, Option<String>)> {
    let mut contestants = chosen.to_vec();
    let mut note = None;
    if contestants.contains(&Contestant::Redis) && redis_version().is_none() {
        contestants.retain(|one| *one != Contestant::Redis);
        note = Some("Left out: Redis. There is no redis-server in PATH.".to_string());
    }
    match contestants.is_empty() {
        true => Err("nobody is left to be measured".into()),
        false => Ok((contestants, note)),
    }
}

/// Returns the names of the contestants with their versions.
pub fn versions(contestants: &[Contestant]) -> String {
    let version = |contestant: &Contestant| match contestant {
        Contestant::Daemon => format!("{contestant} {}", env!("CARGO_PKG_VERSION")),
        Contestant::Redis => format!("{contestant} {}", redis_version().unwrap_or_default()),
        _ => contestant.to_string(),
    };
    let versions: Vec<String> = contestants.iter().map(version).collect();
    versions.join(", ")
}
