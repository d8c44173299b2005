//! History file of the shell. An error is reported once and disables the history.
//!
//! The format is that of rustyline: `#V2`, and then one entry per line, in which `\\` stands for a
//! backslash and `\n` for a line end. This module reads and writes the file itself, because
//! rustyline rejects a file with a byte that is not UTF-8, and truncates the file before it
//! rewrites it.

use std::ffi::OsString;
use std::fs::{self, DirBuilder, File, OpenOptions, Permissions};
use std::io::{self, ErrorKind, Read as _, Seek as _, SeekFrom, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};

use rustyline::error::ReadlineError;
use rustyline::history::{History as _, MemHistory};
use shared::text::without_errno;

/// The most lines that are kept.
pub const LINES: usize = 1000;

/// Header of the file.
const VERSION: &[u8] = b"#V2\n";

/// The history file; `None` if there is none, or after an error.
pub struct History(Option<PathBuf>);

impl History {
    /// Returns the file that the environment names, or the user's default.
    pub fn from_environment() -> Self {
        History(path(|name| std::env::var_os(name)))
    }

    /// Loads the lines. Bytes that are not UTF-8 are replaced.
    pub fn load(&mut self, lines: &mut MemHistory) {
        self.attempt(|path| {
            let mut file = match File::open(path) {
                Err(error) if error.kind() == ErrorKind::NotFound => return Ok(()),
                opened => opened?,
            };
            file.lock_shared()?;
            for line in read(&mut file)?.split(|byte| *byte == b'\n') {
                let line = unescaped(&String::from_utf8_lossy(line));
                // Blank lines and consecutive duplicates are not added.
                lines.add_owned(line).map_err(io_error)?;
            }
            Ok(())
        });
    }

    /// Appends this line to those of all sessions.
    pub fn keep(&mut self, line: &str) {
        self.attempt(|path| {
            if let Some(folder) = path.parent() {
                DirBuilder::new()
                    .recursive(true)
                    .mode(0o700)
                    .create(folder)?;
            }
            let mut options = OpenOptions::new();
            options.read(true).write(true).create(true).mode(0o600);
            let mut file = options.open(path)?;
            // Another program may have made it readable for others.
            let _ = file.set_permissions(Permissions::from_mode(0o600));
            file.lock()?;
            let before = read(&mut file)?;
            let line = escaped(line);
            let kept = before.split_inclusive(|byte| *byte == b'\n');
            if kept.clone().next_back() == Some(line.as_bytes()) {
                return Ok(());
            }
            let too_many = (kept.clone().count() + 1).saturating_sub(LINES);
            let mut text = VERSION.to_vec();
            text.extend(kept.skip(too_many).flatten());
            if !text.ends_with(b"\n") {
                text.push(b'\n');
            }
            text.extend(line.bytes());
            // The old text is overwritten before the file is truncated, so that it survives a full
            // disk.
            file.seek(SeekFrom::Start(0))?;
            file.write_all(&text)?;
            file.set_len(text.len() as u64)
        });
    }

    fn attempt(&mut self, action: impl FnOnce(&Path) -> io::Result<()>) {
        let Some(path) = &self.0 else {
            return;
        };
        // Opening a pipe would block.
        let is_file = fs::metadata(path).map_or(true, |metadata| metadata.is_file());
        let done = match is_file {
            true => action(path),
            false => Err(io::Error::other("not a file")),
        };
        if let Err(error) = done {
            let reason = without_errno(&error);
            super::link::say("", format_args!("no history: {}: {reason}", path.display()));
            self.0 = None;
        }
    }
}

/// Returns the lines of this file, escaped. Files of older versions of rustyline contain no
/// escapes.
fn read(file: &mut File) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    file.read_to_end(&mut bytes)?;
    if let Some(lines) = bytes.strip_prefix(VERSION) {
        return Ok(lines.to_vec());
    }
    let escaped = |byte: &u8| match byte {
        b'\\' => vec![b'\\', b'\\'],
        byte => vec![*byte],
    };
    Ok(bytes.iter().flat_map(escaped).collect())
}

/// Returns a line of the file, with its end.
fn escaped(line: &str) -> String {
    line.replace('\\', r"\\").replace('\n', r"\n") + "\n"
}

fn unescaped(line: &str) -> String {
    let mut text = String::new();
    let mut letters = line.chars();
    while let Some(letter) = letters.next() {
        match letter {
            '\\' if letters.as_str().starts_with('n') => {
                letters.next();
                text.push('\n');
            }
            '\\' if letters.as_str().starts_with('\\') => {
                letters.next();
                text.push('\\');
            }
            letter => text.push(letter),
        }
    }
    text
}

/// Converts an error of rustyline to the system's error.
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
    // A relative path must be ignored (XDG Base Directory Specification).
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
    fn a_line_is_the_same_when_it_is_read_again() {
        for line in ["", "who", r"\", r"\n", "a\nb", r"a\\n", "é\n\n\\"] {
            let kept = escaped(line);
            let kept = kept.strip_suffix('\n').unwrap();
            assert!(!kept.contains('\n'), "{kept:?}");
            assert_eq!(unescaped(kept), line);
        }
        // This program never writes these.
        assert_eq!(unescaped(r"a\b\"), r"a\b\");
    }

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
