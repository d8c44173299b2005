//! Connection monitor: watches the connection while the user types, and reports its loss at once.

use std::io::{self, PipeReader};
use std::sync::mpsc::{self, Sender};
use std::thread;

use rustix::event::{PollFd, PollFlags, poll};
use rustix::io::Errno;
use rustyline::ExternalPrinter;
use shared::dial::Connection;

use super::link::{Link, read_final_message, say};
use super::prompt::Prompt;

/// Prints messages above the line that is being edited.
#[derive(Clone)]
pub struct AsyncPrinter(Sender<String>);

impl AsyncPrinter {
    /// Returns a printer that uses this external printer, or standard error without one. It prints
    /// in a thread of its own, because an external printer blocks when its text arrives after the
    /// end of a line, until the next line.
    pub fn new(printer: Option<impl ExternalPrinter + Send + 'static>) -> io::Result<Self> {
        let (crier, cries) = mpsc::channel::<String>();
        let print = move || {
            let mut printer = printer;
            for text in cries {
                match &mut printer {
                    // It fails only if the terminal is gone.
                    Some(printer) => drop(printer.print(text + "\n")),
                    None => say("", &text),
                }
            }
        };
        let thread = thread::Builder::new().name("printer".to_string());
        thread.spawn(print)?;
        Ok(AsyncPrinter(crier))
    }

    fn print(&self, text: String) {
        // The thread lives as long as a sender does.
        let _ = self.0.send(text);
    }
}

/// Watches the connection of this link while `edit` runs behind this prompt.
pub fn with_monitor<T>(
    link: &mut Link<'_>,
    crier: &AsyncPrinter,
    prompt: &Prompt,
    edit: impl FnOnce() -> T,
) -> T {
    let Some(connection) = link.take_connection() else {
        return edit();
    };
    // Without descriptors there is no monitor, and the next request finds a lost connection.
    let Ok((dismissed, dismiss)) = io::pipe() else {
        link.take_back(Some(connection));
        return edit();
    };
    thread::scope(|scope| {
        let watch = move || watch(connection, &dismissed, crier, prompt);
        let connection_monitor = thread::Builder::new().name("monitor".to_string());
        // Without a thread the connection is dropped with the closure, and the next request
        // reconnects.
        let connection_monitor = connection_monitor.spawn_scoped(scope, watch);
        let edited = edit();
        // Closing the pipe stops the monitor, also if `edit` panics.
        drop(dismiss);
        let with_monitor = connection_monitor
            .ok()
            .and_then(|connection_monitor| connection_monitor.join().ok());
        link.take_back(with_monitor.flatten());
        edited
    })
}

/// Watches until it is dismissed. Returns the connection unless it was lost.
fn watch(
    connection: Connection,
    dismissed: &PipeReader,
    crier: &AsyncPrinter,
    prompt: &Prompt,
) -> Option<Connection> {
    let is_dismissed = loop {
        let mut polled = [
            PollFd::new(dismissed, PollFlags::IN),
            PollFd::new(connection.socket(), PollFlags::IN),
        ];
        match poll(&mut polled, None) {
            Err(Errno::INTR) => {}
            Err(_) => break true,
            // If both are ready, the loss is found when the line is sent.
            Ok(_) => break !polled[0].revents().is_empty(),
        }
    };
    if is_dismissed {
        return Some(connection);
    }
    let loss = read_final_message(connection);
    prompt.lose();
    crier.print(loss.to_string());
    None
}
