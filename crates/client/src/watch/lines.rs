//! Output of `watch` as text lines or JSON objects, for a file or a pipe.

use std::io::{self, ErrorKind};
use std::process::ExitCode;
use std::sync::mpsc::{Receiver, SyncSender};

use rustix::event::{PollFd, PollFlags, poll};
use rustix::io::Errno;
use serde_json::json;

use super::{Event, history, hopeless};
use crate::failure::{Failure, eprintln_line};
use crate::output::Output;

/// Waits until the reader of standard output is gone, and reports that at once, even between lines.
/// For a file it never happens.
pub fn hear_the_end(tell: &SyncSender<Event>) {
    let output = io::stdout();
    let mut output = [PollFd::new(&output, PollFlags::empty())];
    // Other errors are found when the next line is printed.
    while poll(&mut output, None) == Err(Errno::INTR) {}
    let closed = PollFlags::ERR | PollFlags::HUP;
    if output[0].revents().intersects(closed) {
        let _ = tell.send(Event::Unread);
    }
}

/// Prints each count.
pub fn print(output: Output, events: &Receiver<Event>) -> Result<ExitCode, Failure> {
    let mut is_first = true;
    // Kind of the failure that was printed last, until a count follows.
    let mut said: Option<String> = None;
    for event in events {
        let sample = match event {
            Event::Asked(sample) => sample,
            Event::Resized | Event::Suspended => continue,
            Event::End => break,
            Event::Unread => return Err(Failure::Print(ErrorKind::BrokenPipe.into())),
        };
        let time = format!("{:.3}", sample.time);
        if output.is_json() {
            let object = match &sample.seen {
                Ok(clients) => json!({ "time": time, "clients": clients }),
                Err(failure) => json!({ "time": time, "error": Output::error(failure) }),
            };
            Output::object(&object)?;
            if let Err(failure) = hopeless(sample, is_first) {
                return Ok(ExitCode::from(failure.exit_status()));
            }
        } else {
            match hopeless(sample, is_first)?.seen {
                Ok(clients) => {
                    if said.take().is_some() {
                        eprintln_line(format_args!("blockchain-tcp: {time} back"));
                    }
                    Output::print(&format!("{time} {clients}"))?;
                }
                Err(failure) => {
                    let kind = history::kind(&failure);
                    if said.as_ref() != Some(&kind) {
                        let trouble = history::trouble(&failure);
                        eprintln_line(format_args!("blockchain-tcp: {time} {trouble}"));
                        said = Some(kind);
                    }
                }
            }
        }
        is_first = false;
    }
    Ok(ExitCode::SUCCESS)
}
