//! Trace for `-v`: its length depends on what the plugin does, not on what the server sends.

use std::time::Instant;

/// Trace of the check, one entry per line.
pub struct Trace {
    level: u8,
    begun: Instant,
    lines: Vec<String>,
}

impl Trace {
    /// Returns an empty trace; `level` is the number of `-v` options.
    pub fn new(level: u8) -> Self {
        Trace {
            level,
            begun: Instant::now(),
            lines: Vec::new(),
        }
    }

    /// Adds a step at level 2 (`-vv`) or higher; from level 3 on with its time.
    pub fn add(&mut self, text: impl FnOnce() -> String) {
        let passed = self.begun.elapsed().as_secs_f64();
        match self.level {
            0 | 1 => {}
            2 => self.lines.push(text()),
            _ => self.lines.push(format!("{passed:.6} s: {}", text())),
        }
    }

    /// Returns all lines.
    pub fn into_lines(self) -> Vec<String> {
        self.lines
    }
}
