//! Connection monitor: watches the connection while the user types, and reports its loss at once.

use std::io::{self, PipeReader};
use std::thread;

use rustix::event::{PollFd, PollFlags, poll};
use rustix::io::Errno;
use rustyline::ExternalPrinter;
use shared::dial::Connection;

use super::prompt::Prompt;
use crate::failure::eprintln_line;
use crate::link::{Link, loss_of};

/// Watches the connection of this link while `edit` runs behind this prompt. A loss is printed
/// above the line that is being edited, or to standard error without a printer.
pub fn with_monitor<T>(
    link: &mut Link,
    printer: &mut Option<impl ExternalPrinter + Send>,
    prompt: &Prompt,
    edit: impl FnOnce() -> T,
) -> T {
    // Without descriptors there is no monitor, and the next request finds a lost connection.
    let Ok((stopped, stop)) = io::pipe() else {
        return edit();
    };
    let Some(connection) = link.connection.take() else {
        return edit();
    };
    thread::scope(|scope| {
        let watch = move || watch(connection, &stopped, printer, prompt);
        // Without a thread the connection is dropped with the closure, and the next request
        // reconnects.
        let monitor = thread::Builder::new().name("monitor".to_string());
        let monitor = monitor.spawn_scoped(scope, watch);
        let edited = edit();
        // Closing the pipe stops the monitor, also if `edit` panics.
        drop(stop);
        let connection = monitor.ok().and_then(|monitor| monitor.join().ok());
        link.connection = connection.flatten();
        edited
    })
}

/// Watches until it is stopped. Returns the connection unless it was lost.
fn watch(
    connection: Connection,
    stopped: &PipeReader,
    printer: &mut Option<impl ExternalPrinter>,
    prompt: &Prompt,
) -> Option<Connection> {
    let mut polled = [
        PollFd::new(stopped, PollFlags::IN),
        PollFd::new(connection.socket(), PollFlags::IN),
    ];
    while poll(&mut polled, None) == Err(Errno::INTR) {}
    // If both are ready, the loss is found when the line is sent.
    if !polled[0].revents().is_empty() || polled[1].revents().is_empty() {
        return Some(connection);
    }
    let loss = loss_of(connection);
    prompt.lose();
    match printer {
        // It fails only if the terminal is gone.
        Some(printer) => drop(printer.print(format!("{loss}\n"))),
        None => eprintln_line(loss),
    }
    None
}
