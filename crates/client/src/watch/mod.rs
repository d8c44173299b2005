//! Live display of the number of clients: a block that is redrawn on a terminal, lines elsewhere.
//!
//! [`asker`] sends the requests in a thread of its own, so that ^C never waits for a reply.
//! [`history`] keeps the samples; [`view`] lays them out, with a [`chart`] and [`digits`], for a
//! [`screen`] of any size. [`lines`] prints them where the output is not a terminal.

mod asker;
mod chart;
mod digits;
mod history;
mod lines;
mod screen;
mod view;

use std::io::{self, IsTerminal as _};
use std::process::{self, ExitCode};
use std::sync::mpsc::{self, Receiver, SyncSender};
use std::thread;

use shared::stdio;
use signal_hook::consts::{SIGTSTP, SIGWINCH};
use signal_hook::iterator::Signals;

use self::asker::Sample;
use self::history::History;
use self::screen::Screen;
use self::view::View;
use crate::failure::{BUSY, Failure};
use crate::interrupt::on_interrupt;
use crate::options::{Options, Watch};
use crate::output::Output;
use crate::terminal;

/// Capacity of the event channel. When standard output is read slowly, senders block on a full
/// channel.
const BACKLOG: usize = 16;

/// An event of the display.
enum Event {
    /// The server was asked.
    Asked(Sample),
    /// The terminal was resized.
    Resized,
    /// The user suspends the program (^Z).
    Suspended,
    /// The user ends the program.
    End,
    /// The reader of standard output is gone.
    Unread,
}

/// Shows the number of clients until ^C.
pub fn run(options: &Options, watch: &Watch) -> Result<ExitCode, Failure> {
    stdio::has_output().map_err(Failure::Print)?;
    let (tell, events) = mpsc::sync_channel(BACKLOG);
    let end = tell.clone();
    let is_drawn = !options.json && io::stdout().is_terminal() && terminal::can_be_drawn_on();
    on_interrupt(move || {
        if !is_drawn {
            // There is no terminal to restore, and a thread that blocks on output could not react.
            process::exit(0);
        }
        // It fails only if the receiver has ended already.
        let _ = end.send(Event::End);
    })?;
    let (asking, every, asked) = (options.clone(), watch.every, tell.clone());
    start("asker", move || {
        asker::run(&asking, every, |sample| {
            asked.send(Event::Asked(sample)).is_ok()
        })
    })?;
    if is_drawn {
        hear_the_terminal(tell)?;
        return in_a_terminal(options, watch, &events);
    }
    start("output", move || lines::hear_the_end(&tell))?;
    lines::print(Output::new(options.json), &events)
}

fn start(name: &str, work: impl FnOnce() + Send + 'static) -> Result<(), Failure> {
    let thread = thread::Builder::new().name(name.to_string());
    thread
        .spawn(work)
        .map(|_| ())
        .map_err(|source| Failure::System {
            action: "start a thread",
            source,
        })
}

/// Reports resizes and ^Z.
fn hear_the_terminal(tell: SyncSender<Event>) -> Result<(), Failure> {
    let signals = Signals::new([SIGWINCH, SIGTSTP]).map_err(|source| Failure::System {
        action: "handle signals",
        source,
    });
    let mut signals = signals?;
    start("terminal", move || {
        for signal in signals.forever() {
            let event = if signal == SIGTSTP {
                Event::Suspended
            } else {
                Event::Resized
            };
            if tell.send(event).is_err() {
                return;
            }
        }
    })
}

/// Returns the failure of the first request, after which there is nothing to show; all other
/// samples are returned unchanged.
fn hopeless(sample: Sample, is_first: bool) -> Result<Sample, Failure> {
    match sample.seen {
        Err(failure)
            if is_first && !matches!(&failure, Failure::Refused { word, .. } if word != BUSY) =>
        {
            Err(failure)
        }
        _ => Ok(sample),
    }
}

fn in_a_terminal(
    options: &Options,
    watch: &Watch,
    events: &Receiver<Event>,
) -> Result<ExitCode, Failure> {
    let mut history = History::new(options.server.to_string(), watch.every);
    let view = View {
        has_blocks: terminal::is_utf8(),
    };
    let mut screen = None;
    for event in events {
        match event {
            Event::Asked(sample) => history.add(hopeless(sample, history.is_empty())?),
            Event::Resized => {}
            Event::Suspended => {
                // Release the screen before the suspension: another program uses the terminal
                // meanwhile.
                screen = None;
                let _ = signal_hook::low_level::emulate_default_handler(SIGTSTP);
            }
            Event::End | Event::Unread => break,
        }
        if !history.is_empty() {
            let screen = screen.get_or_insert_with(Screen::new);
            screen
                .draw(|rows, columns| view.lines(&history, rows, columns))
                .map_err(Failure::Print)?;
        }
    }
    Ok(ExitCode::SUCCESS)
}
