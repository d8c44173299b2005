//! The lines that were typed, kept in a file for the next time. Whatever is wrong with it is said once and harms nothing.

use std::ffi::OsString;
use std::fs::{self, DirBuilder};
use std::io::{self, ErrorKind};
use std::os::unix::fs::DirBuilderExt as _;
use std::path::{Path, PathBuf};

use blockchain_tcpd::error::plain;
use rustyline::error::ReadlineError;
use rustyline::history::{FileHistory, History as _};

/// How many lines are kept.
pub const LINES: usize = 1000;

/// The file, until there is trouble with it.
pub struct History(Option<PathBuf>);

impl History {
    /// The file that the environment names, or the usual one of this user, if there is any to be.
    pub fn from_environment() -> Self {
        History(path(|name| std::env::var_os(name)))
    }

    /// Reads what was typed before.
    pub fn load(&mut self, lines: &mut FileHistory) {
        self.attempt(|path| match lines.load(path) {
            Err(ReadlineError::Io(error)) if error.kind() == ErrorKind::NotFound => Ok(()),
            loaded => loaded,
        });
    }

    /// Keeps what was typed since, beside what others have typed.
    pub fn keep(&mut self, lines: &mut FileHistory) {
        self.attempt(|path| {
            if let Some(folder) = path.parent() {
                DirBuilder::new()
                    .recursive(true)
                    .mode(0o700)
                    .create(folder)?;
            }
            lines.append(path)
        });
    }

    fn attempt(&mut self, action: impl FnOnce(&Path) -> rustyline::Result<()>) {
        let Some(path) = &self.0 else {
            return;
        };
        // A pipe would be waited for.
        let is_file = fs::metadata(path).map_or(true, |metadata| metadata.is_file());
        let done = match is_file {
            true => action(path),
            false => Err(io::Error::other("not a file").into()),
        };
        if let Err(error) = done {
            let reason = plain(&io_error(error));
            super::link::say("", format_args!("no history: {}: {reason}", path.display()));
            self.0 = None;
        }
    }
}

/// What the system said.
pub fn io_error(error: ReadlineError) -> io::Error {
    match error {
        ReadlineError::Io(error) => error,
        ReadlineError::Errno(number) => number.into(),
        other => io::Error::other(other),
    }
}

fn path(variable: impl Fn(&str) -> Option<OsString>) -> Option<PathBuf> {
    let named = |path: OsString| (!path.is_empty()).then(|| PathBuf::from(path));
    if let Some(path) = variable("BLOCKCHAIN_TCP_HISTORY") {
        return named(path);
    }
    // A relative one is to be ignored (XDG Base Directory Specification).
    let state = variable("XDG_STATE_HOME").and_then(named);
    let state = state.filter(|state| state.is_absolute()).or_else(|| {
        let home = variable("HOME").and_then(named)?;
        Some(home.join(".local/state"))
    })?;
    Some(state.join("blockchain-tcp/history"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_environment_says_where_it_is() {
        let path = |set: &[(&str, &str)]| {
            let find = |name: &str| set.iter().find(|(set, _)| *set == name);
            let path = path(|name| find(name).map(|(_, value)| OsString::from(value)));
            path.map(|path| path.to_string_lossy().into_owned())
        };
        let home = ("HOME", "/h");
        let usual = Some("/h/.local/state/blockchain-tcp/history".to_string());
        assert_eq!(path(&[home]), usual);
        assert_eq!(path(&[home, ("XDG_STATE_HOME", "")]), usual);
        assert_eq!(path(&[home, ("XDG_STATE_HOME", "s")]), usual);
        let state = ("XDG_STATE_HOME", "/s");
        assert_eq!(
            path(&[home, state]),
            Some("/s/blockchain-tcp/history".to_string())
        );
        let own = ("BLOCKCHAIN_TCP_HISTORY", "f");
        assert_eq!(path(&[home, state, own]), Some("f".to_string()));
        assert_eq!(path(&[home, ("BLOCKCHAIN_TCP_HISTORY", "")]), None);
        assert_eq!(path(&[]), None);
    }
}
