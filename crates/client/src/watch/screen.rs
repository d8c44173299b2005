//! Terminal block that is redrawn in place.

use std::fmt::Write as _;
use std::io;

use console::Term;
use shared::stdio;

/// Size of a terminal that reports none: rows and columns.
const USUAL: (u16, u16) = (24, 80);

/// ANSI escape sequences: return to the line's start and clear the line; clear from there to the
/// screen's end; clear the screen and go to the top; hide and show the cursor.
const CLEAR_LINE: &str = "\r\x1b[2K";
const CLEAR_REST: &str = "\r\x1b[J";
const CLEAR_ALL: &str = "\x1b[2J\x1b[H";
const HIDE_CURSOR: &str = "\x1b[?25l";
const SHOW_CURSOR: &str = "\x1b[?25h";

/// Lines that are redrawn in place. The cursor is hidden until it is dropped.
pub struct Screen {
    terminal: Term,
    /// Number of lines drawn.
    drawn: usize,
    size: (u16, u16),
}

impl Screen {
    /// Returns a screen that begins on the cursor's line.
    pub fn new() -> Self {
        Screen {
            terminal: Term::stdout(),
            drawn: 0,
            size: (0, 0),
        }
    }

    /// Draws lines over the previous ones. `lines` is called with the most rows and columns that
    /// fit.
    pub fn draw(&mut self, lines: impl FnOnce(usize, usize) -> Vec<String>) -> io::Result<()> {
        let size = self.terminal.size_checked().unwrap_or(USUAL);
        let before = std::mem::replace(&mut self.size, size);
        let mut text = String::new();
        if self.drawn == 0 {
            text += HIDE_CURSOR;
        } else if size.0 < before.0 || size.1 < before.1 {
            // The terminal may have wrapped lines that became too long.
            text += CLEAR_ALL;
            self.drawn = 0;
        }
        // The cursor takes the last row. The last column stays free, because some terminals wrap
        // there.
        let rows = usize::from(size.0).saturating_sub(1).max(1);
        let columns = usize::from(size.1).saturating_sub(1).max(1);
        let lines = lines(rows, columns);
        if self.drawn > 0 {
            // Writing into a String can't fail.
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
        // Clears the `^C` that the terminal echoed; the drawn lines stay. An error means that the
        // terminal is gone.
        let _ = stdio::print(&format!("{CLEAR_LINE}{SHOW_CURSOR}"));
    }
}
