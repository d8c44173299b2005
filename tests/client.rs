//! The command-line client, run as a user runs it: its output, its exit status, its screen.

mod ask;
mod bench;
mod completions;
mod connect;
mod manual;
mod scripted;
mod watch;

use crate::support::CLIENT;
use std::ffi::OsStr;
use std::process::{Command, Output, Stdio};

/// What is said besides if nobody listens.
pub const HINT: &str =
    "blockchain-tcp: is the server running? --server or BLOCKCHAIN_TCP_SERVER names another";

/// The client, with nothing set in its environment; its history is nobody's.
pub fn client() -> Command {
    let mut command = Command::new(CLIENT.as_str());
    for (name, _) in std::env::vars_os() {
        if name.to_string_lossy().starts_with("BLOCKCHAIN_TCP") {
            command.env_remove(name);
        }
    }
    command.env("LANG", "C.UTF-8").env("HOME", "/nonexistent");
    command.env_remove("XDG_STATE_HOME");
    command.stdin(Stdio::null());
    command
}

/// Runs it to its end.
pub fn run(arguments: impl IntoIterator<Item = impl AsRef<OsStr>>) -> Ran {
    ran(client().args(arguments).output().expect("it runs"))
}

/// What came of it.
#[derive(Debug)]
pub struct Ran {
    pub status: i32,
    pub output: String,
    pub errors: String,
}

pub fn ran(output: Output) -> Ran {
    Ran {
        status: output.status.code().unwrap_or(-1),
        output: String::from_utf8(output.stdout).expect("UTF-8"),
        errors: String::from_utf8(output.stderr).expect("UTF-8"),
    }
}
