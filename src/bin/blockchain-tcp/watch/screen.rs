//! The part of a terminal that is written over again and again.

use std::io;

use console::Term;

/// The size of a terminal that doesn't know its own.
const USUAL: (u16, u16) = (24, 80);

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
            terminal: Term::buffered_stdout(),
            drawn: 0,
            size: (0, 0),
        }
    }

    /// Draws these lines over those of before. It is told how many there may be and how wide.
    pub fn draw(&mut self, lines: impl FnOnce(usize, usize) -> Vec<String>) -> io::Result<()> {
        let size = self.terminal.size_checked().unwrap_or(USUAL);
        let before = std::mem::replace(&mut self.size, size);
        if self.drawn == 0 {
            self.terminal.hide_cursor()?;
        } else if size.0 < before.0 || size.1 < before.1 {
            // Nobody knows what has become of the lines that were too long.
            self.terminal.clear_screen()?;
            self.drawn = 0;
        }
        // The cursor is below, and the last column is free: some terminals begin a new line there.
        let rows = usize::from(size.0).saturating_sub(1).max(1);
        let columns = usize::from(size.1).saturating_sub(1).max(1);
        let lines = lines(rows, columns);
        self.terminal.move_cursor_up(self.drawn)?;
        for line in &lines {
            self.terminal.clear_line()?;
            self.terminal.write_line(line)?;
        }
        self.terminal.clear_to_end_of_screen()?;
        self.drawn = lines.len();
        self.terminal.flush()
    }
}

impl Drop for Screen {
    fn drop(&mut self) {
        // The ^C that the terminal has shown goes; what was drawn stays. A terminal that is gone needs neither.
        let _ = self.terminal.clear_line();
        let _ = self.terminal.show_cursor();
        let _ = self.terminal.flush();
    }
}
