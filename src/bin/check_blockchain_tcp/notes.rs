//! What `-v` shows besides the line: bounded by what the plugin does, whatever the server does.

use std::time::Instant;

/// The notes so far, each a line.
pub struct Notes {
    level: u8,
    begun: Instant,
    lines: Vec<String>,
}

impl Notes {
    /// None yet; `level` is how many `-v` there are.
    pub fn new(level: u8) -> Self {
        Notes {
            level,
            begun: Instant::now(),
            lines: Vec::new(),
        }
    }

    /// Whether the line itself says more.
    pub fn longer_line(&self) -> bool {
        self.level > 0
    }

    /// From `-vv` on, each step; from `-vvv` on, with its time.
    pub fn add(&mut self, text: impl FnOnce() -> String) {
        match self.level {
            0 | 1 => {}
            2 => self.lines.push(text()),
            _ => {
                let passed = self.begun.elapsed().as_secs_f64();
                self.lines.push(format!("{passed:.6} s: {}", text()));
            }
        }
    }

    /// All of them.
    pub fn into_lines(self) -> Vec<String> {
        self.lines
    }
}
