//! The part of a terminal that is written over again and again.

use std::fmt::Write as _;
use std::io;

use blockchain_tcpd::stdio;
use console::Term;

/// The size of a terminal that doesn't know its own.
const USUAL: (u16, u16) = (24, 80);

/// To the beginning of the line, and clear it; clear all from there on; clear everything, and to the top; hide and show the cursor.
const CLEAR_LINE: &str = "\r\x1b[2K";
const CLEAR_REST: &str = "\r\x1b[J";
const CLEAR_ALL: &str = "\x1b[2J\x1b[H";
const HIDE_CURSOR: &str = "\x1b[?25l";
const SHOW_CURSOR: &str = "\x1b[?25h";

/// Lines that stay where they are. The cursor is hidden as long as this lives.
pub struct Screen {
    terminal: Term,
    /// How many lines were drawn.
    drawn: usize,
    size: (u16, u16),
}

impl Screen {
    /// Begins on the line of the cursor.
    pub fn new() -> Self {
        Screen {
            terminal: Term::stdout(),
            drawn: 0,
            size: (0, 0),
        }
    }

    /// Draws these lines over those of before. It is told how many there may be and how wide.
    pub fn draw(&mut self, lines: impl FnOnce(usize, usize) -> Vec<String>) -> io::Result<()> {
        let size = self.terminal.size_checked().unwrap_or(USUAL);
        let before = std::mem::replace(&mut self.size, size);
        let mut text = String::new();
        if self.drawn == 0 {
            text += HIDE_CURSOR;
        } else if size.0 < before.0 || size.1 < before.1 {
            // Nobody knows what has become of the lines that were too long.
            text += CLEAR_ALL;
            self.drawn = 0;
        }
        // The cursor is below, and the last column is free: some terminals begin a new line there.
        let rows = usize::from(size.0).saturating_sub(1).max(1);
        let columns = usize::from(size.1).saturating_sub(1).max(1);
        let lines = lines(rows, columns);
        if self.drawn > 0 {
            // Writing to a text succeeds.
            let _ = write!(text, "\x1b[{}A", self.drawn);
        }
        for line in &lines {
            let _ = writeln!(text, "{CLEAR_LINE}{line}");
        }
        self.drawn = lines.len();
        stdio::print(&(text + CLEAR_REST))
    }
}

impl Drop for Screen {
    fn drop(&mut self) {
        // The ^C that the terminal has shown goes; what was drawn stays. A terminal that is gone needs neither.
        let _ = stdio::print(&format!("{CLEAR_LINE}{SHOW_CURSOR}"));
    }
}
