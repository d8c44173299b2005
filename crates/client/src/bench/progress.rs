//! Progress bar on standard error, if that is a terminal with cursor control.

use std::io;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use console::Term;
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle, TermLike};
use shared::stdio;

use super::numbers::{counted, grouped};
use crate::terminal;

/// Approximate interval over which the rate is measured.
const SPAN: Duration = Duration::from_millis(500);

/// The progress bar, which is removed when it is dropped.
pub struct Progress {
    bar: ProgressBar,
    duration: Duration,
    /// When the measurement of the rate began, and the number of replies then.
    since: (Instant, u64),
    rate: f64,
}

impl Progress {
    /// Returns a bar for a benchmark of this duration.
    pub fn new(duration: Duration) -> Self {
        let steps = u64::try_from(duration.as_millis()).unwrap_or(u64::MAX);
        let terminal = Term::stderr();
        let target = match terminal.is_term() && terminal::can_be_drawn_on() {
            true => ProgressDrawTarget::term_like(Box::new(Narrower::new(terminal))),
            false => ProgressDrawTarget::hidden(),
        };
        let bar = ProgressBar::with_draw_target(Some(steps), target);
        let style = ProgressStyle::with_template("{wide_bar} {msg}");
        // The template is a constant, and a test draws it.
        bar.set_style(style.expect("a template").progress_chars("=> "));
        Progress {
            bar,
            duration,
            since: (Instant::now(), 0),
            rate: 0.0,
        }
    }

    /// Shows the time that has passed and the numbers of replies and errors.
    pub fn show(&mut self, elapsed: Duration, answered: u64, errors: u64) {
        let (since, before) = self.since;
        let span = since.elapsed();
        if span >= SPAN {
            self.rate = answered.saturating_sub(before) as f64 / span.as_secs_f64();
            self.since = (Instant::now(), answered);
        }
        let position = elapsed.min(self.duration).as_millis();
        self.bar
            .set_position(u64::try_from(position).unwrap_or(u64::MAX));
        let over = match elapsed > self.duration {
            true => ", waiting for the last replies",
            false => "",
        };
        let failed = match errors {
            0 => String::new(),
            errors => format!(", {}", counted(errors, "error", "errors")),
        };
        self.bar.set_message(format!(
            "{:.1} of {} s  {}/s{failed}{over}",
            elapsed.min(self.duration).as_secs_f64(),
            self.duration.as_secs_f64(),
            grouped(self.rate as u64)
        ));
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        self.bar.finish_and_clear();
    }
}

/// Terminal whose last columns are left free: it echoes `^C` there, which would wrap otherwise. All
/// output is buffered until it is flushed.
#[derive(Debug)]
struct Narrower {
    terminal: Term,
    drawn: Mutex<String>,
}

impl Narrower {
    fn new(terminal: Term) -> Self {
        Narrower {
            terminal,
            drawn: Mutex::default(),
        }
    }

    fn draw(&self, text: &str) -> io::Result<()> {
        let mut drawn = self.drawn.lock().unwrap_or_else(PoisonError::into_inner);
        drawn.push_str(text);
        Ok(())
    }

    /// Moves the cursor by this many steps in the direction of this letter (ANSI).
    fn go(&self, steps: usize, direction: char) -> io::Result<()> {
        match steps {
            0 => Ok(()),
            steps => self.draw(&format!("\x1b[{steps}{direction}")),
        }
    }
}

impl TermLike for Narrower {
    fn width(&self) -> u16 {
        self.terminal.size().1.saturating_sub(4).max(1)
    }

    fn move_cursor_up(&self, rows: usize) -> io::Result<()> {
        self.go(rows, 'A')
    }

    fn move_cursor_down(&self, rows: usize) -> io::Result<()> {
        self.go(rows, 'B')
    }

    fn move_cursor_right(&self, columns: usize) -> io::Result<()> {
        self.go(columns, 'C')
    }

    fn move_cursor_left(&self, columns: usize) -> io::Result<()> {
        self.go(columns, 'D')
    }

    fn write_line(&self, text: &str) -> io::Result<()> {
        self.draw(&format!("{text}\n"))
    }

    fn write_str(&self, text: &str) -> io::Result<()> {
        self.draw(text)
    }

    fn clear_line(&self) -> io::Result<()> {
        self.draw("\r\x1b[2K")
    }

    fn flush(&self) -> io::Result<()> {
        let mut drawn = self.drawn.lock().unwrap_or_else(PoisonError::into_inner);
        stdio::print_error(&std::mem::take(&mut *drawn));
        Ok(())
    }
}
