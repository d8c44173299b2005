//! Live display of the number of clients: a block that is redrawn on a terminal, lines elsewhere.
//!
//! [`poller`] sends the requests; [`history`] keeps the samples; [`view`] lays them out, with a
//! [`chart`] and [`digits`], for a terminal of any size.

mod chart;
mod digits;
mod history;
mod poller;
mod view;

use std::fmt::Write as _;
use std::io::IsTerminal as _;
use std::process::{self, ExitCode};
use std::thread;
use std::time::{Duration, Instant};

use console::Term;
use serde_json::json;
use shared::stdio;

use self::history::History;
use self::poller::{Poller, Sample};
use crate::failure::{BUSY, Failure, eprintln_line};
use crate::interrupt::on_interrupt;
use crate::options::{Options, Watch};
use crate::output;
use crate::terminal;

/// ANSI escape sequences: return to the line's start and clear the line; clear from there to the
/// screen's end; clear the screen and go to the top.
const CLEAR_LINE: &str = "\r\x1b[2K";
const CLEAR_REST: &str = "\r\x1b[J";
const CLEAR_ALL: &str = "\x1b[2J\x1b[H";

/// Shows the number of clients until ^C.
pub fn run(options: &Options, watch: &Watch) -> Result<ExitCode, Failure> {
    stdio::has_output().map_err(Failure::Print)?;
    let is_drawn = !options.json && std::io::stdout().is_terminal() && terminal::can_be_drawn_on();
    on_interrupt(move || {
        // A drawing ends first, and no other begins.
        let _drawing = std::io::stdout().lock();
        if is_drawn {
            // The terminal has echoed ^C.
            let _ = stdio::print(CLEAR_LINE);
        }
        process::exit(0);
    })?;
    let mut poller = Poller::new(options);
    let mut screen = Screen::default();
    let mut lines = Lines::default();
    let mut is_first = true;
    let begun = Instant::now();
    loop {
        let sample = poller.ask();
        // After a failure of the first request there is nothing to show.
        let is_useless = match &sample.count {
            Err(Failure::Refused(refusal)) => is_first && refusal.word == BUSY,
            count => is_first && count.is_err(),
        };
        is_first = false;
        if options.json {
            print_json(&sample)?;
        }
        match sample.count {
            Err(failure) if is_useless && options.json => {
                return Ok(ExitCode::from(failure.exit_status()));
            }
            Err(failure) if is_useless => return Err(failure),
            _ if options.json => {}
            _ if is_drawn => screen.draw(sample, options, watch.every, &poller)?,
            _ => lines.print(sample)?,
        }
        thread::sleep(until_next(begun.elapsed(), watch.every));
    }
}

/// Returns the time until the next multiple of the interval; missed ones are skipped.
fn until_next(elapsed: Duration, every: Duration) -> Duration {
    let passed = elapsed.as_nanos() % every.as_nanos().max(1);
    every - Duration::from_nanos(u64::try_from(passed).unwrap_or(u64::MAX)).min(every)
}

/// Terminal block that is redrawn in place.
#[derive(Default)]
struct Screen {
    history: History,
    /// Number of lines drawn.
    drawn: usize,
    size: (u16, u16),
}

impl Screen {
    /// Draws the history with this sample over the previous lines.
    fn draw(
        &mut self,
        sample: Sample,
        options: &Options,
        every: Duration,
        poller: &Poller,
    ) -> Result<(), Failure> {
        self.history.add(sample);
        let size = Term::stdout().size();
        let before = std::mem::replace(&mut self.size, size);
        let mut text = String::new();
        if size.0 < before.0 || size.1 < before.1 {
            // The terminal may have wrapped lines that became too long.
            text += CLEAR_ALL;
        } else if self.drawn > 0 {
            // Writing into a String can't fail.
            let _ = write!(text, "\x1b[{}A", self.drawn);
        }
        // The cursor takes the last row. The last column stays free, because some terminals wrap
        // there.
        let [rows, columns] = [size.0, size.1].map(|size| usize::from(size.max(2)) - 1);
        let mut server = options.server.to_string();
        if let Some(address) = poller.address.map(|address| address.to_string())
            && address != server
        {
            let _ = write!(server, " ({address})");
        }
        if let Some(id) = &poller.id {
            let _ = write!(server, "  {id}");
        }
        let status = format!("asked every {every:?}; ^C ends");
        let lines = view::lines(&self.history, &server, &status, rows, columns);
        for line in &lines {
            let _ = writeln!(text, "{CLEAR_LINE}{line}");
        }
        self.drawn = lines.len();
        let _drawing = std::io::stdout().lock();
        stdio::print(&(text + CLEAR_REST)).map_err(Failure::Print)
    }
}

/// Output as text lines, for a file or a pipe.
#[derive(Default)]
struct Lines {
    /// Whether a failure was printed after the last count.
    is_lost: bool,
}

impl Lines {
    fn print(&mut self, sample: Sample) -> Result<(), Failure> {
        let time = format!("{:.3}", sample.time);
        let was_lost = std::mem::replace(&mut self.is_lost, sample.count.is_err());
        match sample.count {
            Ok(clients) => {
                if was_lost {
                    eprintln_line(format_args!("blockchain-tcp: {time} back"));
                }
                output::print(&format!("{time} {clients}"))
            }
            Err(failure) => {
                if !was_lost {
                    let message = history::message(&failure);
                    eprintln_line(format_args!("blockchain-tcp: {time} {message}"));
                }
                Ok(())
            }
        }
    }
}

fn print_json(sample: &Sample) -> Result<(), Failure> {
    let time = format!("{:.3}", sample.time);
    output::print_object(&match &sample.count {
        Ok(clients) => json!({ "time": time, "clients": clients }),
        Err(failure) => json!({ "time": time, "error": output::error(failure) }),
    })
}
