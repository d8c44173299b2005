//! Line editor at a terminal.

use std::io::ErrorKind;

use rustyline::config::{BellStyle, CompletionType, Config};
use rustyline::error::ReadlineError;
use rustyline::history::MemHistory;
use rustyline::{Editor as Rustyline, ExternalPrinter};
use shared::stdio;

use super::completion::Names;
use super::history::{History, LINES, io_error};
use super::prompt::Prompt;
use super::signals::Interrupts;
use crate::failure::Failure;

/// Result of reading a line.
pub enum Read {
    /// Input, typed or pasted, of one or more lines.
    Input(String),
    /// The line was abandoned (^C).
    Abandoned,
    /// End of the input.
    End,
}

/// Line editor with history and completion.
pub struct Editor {
    lines: Rustyline<Names, MemHistory>,
    history: History,
    interrupts: Interrupts,
    /// Whether the terminal can't be edited in.
    is_dumb: bool,
}

impl Editor {
    /// Returns an editor with the history of earlier sessions.
    pub fn new(interrupts: Interrupts) -> Result<Self, Failure> {
        let config = Config::builder()
            .completion_type(CompletionType::List)
            .completion_show_all_if_ambiguous(true)
            // Otherwise the editor would ask whether to list them, and ^C would have no effect
            // meanwhile.
            .completion_prompt_limit(usize::MAX)
            .bell_style(BellStyle::None)
            .history_ignore_space(true)
            .max_history_size(LINES);
        let lines = config.and_then(|config| {
            let config = config.build();
            let history = MemHistory::with_config(&config);
            Rustyline::with_history(config, history)
        });
        let mut lines = lines.map_err(|error| Failure::System {
            action: "edit lines",
            source: io_error(error),
        })?;
        let mut history = History::from_environment();
        history.load(lines.history_mut());
        let is_dumb = lines.create_external_printer().is_err();
        Ok(Editor {
            lines,
            history,
            interrupts,
            is_dumb,
        })
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
    pub fn read(&mut self, prompt: &Prompt) -> Result<Read, Failure> {
        let read = match self.is_dumb {
            // On such a terminal ^C is a signal.
            true => self
                .interrupts
                .behind(prompt.text(), || read_plainly(&mut self.lines, prompt)),
            false => self.lines.readline(prompt),
        };
        match read {
            Ok(line) => {
                // Saved before the request is sent, so that it is not lost if there is no reply.
                if self.lines.add_history_entry(&line).is_ok_and(|added| added) {
                    self.history.keep(&line);
                }
                Ok(Read::Input(line))
            }
            Err(ReadlineError::Interrupted) => Ok(Read::Abandoned),
            Err(ReadlineError::Eof) => Ok(Read::End),
            Err(error) => match io_error(error) {
                error if error.kind() == ErrorKind::InvalidData => {
                    super::link::say("", "the line is abandoned: not UTF-8");
                    Ok(Read::Abandoned)
                }
                error => Err(Failure::Read(error)),
            },
        }
    }
}

/// Reads a line on a terminal that can't be edited in. The editor itself can't wait on a
/// non-blocking terminal.
fn read_plainly(
    lines: &mut Rustyline<Names, MemHistory>,
    prompt: &Prompt,
) -> rustyline::Result<String> {
    stdio::print(prompt.text())?;
    stdio::wait_for_input()?;
    lines.readline("")
}
