//! The launcher: a server's process before it becomes the server.
//!
//! It goes to its core before the first thread exists, asks the kernel to be killed when the benches die, however they
//! die, and then turns into the server. Doing this in a program of its own needs no code between fork and exec.

use std::env;
use std::ffi::{OsStr, OsString};
use std::os::unix::process::CommandExt;
use std::process::{self, Command};

use rustix::process::{Signal, getppid, set_parent_process_death_signal};

use crate::{Result, cores};

/// The first argument of this role.
pub const ROLE: &str = "launch";

/// A command that starts `program` through the launcher on `core`.
///
/// The kernel watches the thread that starts it, not only its process: start it from the main thread.
pub fn command(core: usize, program: &OsStr, arguments: &[OsString]) -> Result<Command> {
    let mut command = Command::new(env::current_exe()?);
    command
        .arg(ROLE)
        .arg(core.to_string())
        .arg(process::id().to_string())
        .arg(program)
        .args(arguments);
    Ok(command)
}

/// Prepares this process and becomes the server; returns only to say why it couldn't.
pub fn run(mut arguments: impl Iterator<Item = OsString>) -> Result<()> {
    let mut number = || -> Option<usize> { arguments.next()?.to_str()?.parse().ok() };
    let (Some(core), Some(parent)) = (number(), number()) else {
        return Err("the launcher was started without a core and a parent".into());
    };
    let program = arguments
        .next()
        .ok_or("the launcher has nothing to start")?;

    set_parent_process_death_signal(Some(Signal::KILL))?;
    // The benches may have died before the line above.
    if getppid().map(|pid| pid.as_raw_nonzero().get() as usize) != Some(parent) {
        return Err("the benches are gone".into());
    }
    cores::pin(core)?;
    let error = Command::new(&program).args(arguments).exec();
    Err(format!("{} can't be started: {error}", program.display()).into())
}
