//! Line editor at a terminal, with history and completion.

use std::ffi::OsString;
use std::fs::{self, DirBuilder};
use std::io::{self, ErrorKind};
use std::os::unix::fs::DirBuilderExt as _;
use std::path::{Path, PathBuf};

use rustyline::config::{BellStyle, CompletionType, Config};
use rustyline::error::ReadlineError;
use rustyline::history::FileHistory;
use rustyline::{Editor as Rustyline, ExternalPrinter};

use super::completion::Names;
use super::prompt::Prompt;
use crate::failure::{Failure, eprintln_line};

/// The most lines that are kept.
const MAX_LINES: usize = 1000;

/// Result of reading a line.
pub enum Input {
    /// Input, typed or pasted, of one or more lines.
    Lines(String),
    /// The line was abandoned (^C).
    Abandoned,
    /// End of the input.
    End,
}

/// The editor.
pub struct Editor {
    lines: Rustyline<Names, FileHistory>,
    /// The history file; `None` if there is none, or after an error.
    history: Option<PathBuf>,
}

impl Editor {
    /// Returns an editor with the history of earlier sessions.
    pub fn new() -> Result<Self, Failure> {
        let config = Config::builder()
            .completion_type(CompletionType::List)
            .completion_show_all_if_ambiguous(true)
            .bell_style(BellStyle::None)
            .history_ignore_space(true)
            .max_history_size(MAX_LINES);
        let lines = config.and_then(|config| Rustyline::with_config(config.build()));
        let mut editor = Editor {
            lines: lines.map_err(|error| Failure::system("edit lines", &io_error(error)))?,
            history: history_path(|name| std::env::var_os(name)),
        };
        if let Some(path) = editor.history.clone()
            && path.exists()
        {
            let loaded = repair(&path).map_err(ReadlineError::Io);
            let loaded = loaded.and_then(|()| editor.lines.load_history(&path));
            editor.check_history(loaded);
        }
        Ok(editor)
    }

    /// Returns a printer above the line that is being edited, or `None` if the terminal has no such
    /// capability.
    pub fn printer(&mut self) -> Option<impl ExternalPrinter + Send + use<>> {
        self.lines.create_external_printer().ok()
    }

    /// Sets the names to complete.
    pub fn complete(&mut self, names: Names) {
        self.lines.set_helper(Some(names));
    }

    /// Reads a line.
    pub fn read(&mut self, prompt: &Prompt) -> Result<Input, Failure> {
        match self.lines.readline(prompt) {
            Ok(line) => {
                // Saved before the request is sent, so that it is not lost if there is no reply.
                if self.lines.add_history_entry(&line).is_ok_and(|added| added) {
                    self.save_history();
                }
                Ok(Input::Lines(line))
            }
            Err(ReadlineError::Interrupted) => Ok(Input::Abandoned),
            Err(ReadlineError::Eof) => Ok(Input::End),
            Err(error) => match io_error(error) {
                error if error.kind() == ErrorKind::InvalidData => {
                    eprintln_line("the line is abandoned: not UTF-8");
                    Ok(Input::Abandoned)
                }
                error => Err(Failure::read(error)),
            },
        }
    }

    fn save_history(&mut self) {
        let Some(path) = self.history.clone() else {
            return;
        };
        let mut folders = DirBuilder::new();
        let folders = folders.recursive(true).mode(0o700);
        let created = path
            .parent()
            .map_or(Ok(()), |folder| folders.create(folder));
        let saved = match created {
            Ok(()) => self.lines.append_history(&path),
            Err(error) => Err(error.into()),
        };
        self.check_history(saved);
    }

    /// Reports an error of the history, and disables the history.
    fn check_history(&mut self, result: rustyline::Result<()>) {
        if let Err(error) = result
            && let Some(path) = self.history.take()
        {
            let reason = shared::text::without_errno(&io_error(error));
            eprintln_line(format_args!("no history: {}: {reason}", path.display()));
        }
    }
}

/// Removes the lines that are not UTF-8 from a history file, with which the editor would load none
/// of the others.
fn repair(path: &Path) -> io::Result<()> {
    let text = fs::read(path)?;
    if str::from_utf8(&text).is_err() {
        let lines = text.split_inclusive(|byte| *byte == b'\n');
        let kept: Vec<&[u8]> = lines.filter(|line| str::from_utf8(line).is_ok()).collect();
        // Replaced as a whole, so that a crash loses nothing; the copy has the same permissions.
        let repaired = path.with_extension("repaired");
        fs::copy(path, &repaired)?;
        fs::write(&repaired, kept.concat())?;
        fs::rename(repaired, path)?;
    }
    Ok(())
}

/// Converts an error of rustyline to the system's error.
fn io_error(error: ReadlineError) -> io::Error {
    match error {
        ReadlineError::Io(error) => error,
        ReadlineError::Errno(number) => number.into(),
        other => io::Error::other(other),
    }
}

/// Returns the history file that the environment names, or the user's default.
fn history_path(variable: impl Fn(&str) -> Option<OsString>) -> Option<PathBuf> {
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
    fn the_environment_names_the_history_file() {
        let path = |set: &[(&str, &str)]| {
            let find = |name: &str| set.iter().find(|(set, _)| *set == name);
            let path = history_path(|name| find(name).map(|(_, value)| OsString::from(value)));
            path.map(|path| path.to_string_lossy().into_owned())
        };
        let (home, own) = (("HOME", "/h"), "BLOCKCHAIN_TCP_HISTORY");
        let usual = Some("/h/.local/state/blockchain-tcp/history".to_string());
        for state in ["", "s"] {
            assert_eq!(path(&[home, ("XDG_STATE_HOME", state)]), usual);
        }
        let state = Some("/s/blockchain-tcp/history".to_string());
        assert_eq!(path(&[home, ("XDG_STATE_HOME", "/s")]), state);
        assert_eq!(path(&[home, (own, "f")]), Some("f".to_string()));
        assert_eq!((path(&[home, (own, "")]), path(&[])), (None, None));
    }
}
