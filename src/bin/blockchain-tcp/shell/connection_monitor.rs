//! Keeps an eye on the connection while a person types, and says at once when it is lost.

use std::io::{self, PipeReader};
use std::sync::mpsc::{self, Sender};
use std::thread;

use blockchain_tcpd::dial::Connection;
use rustix::event::{PollFd, PollFlags, poll};
use rustix::io::Errno;
use rustyline::ExternalPrinter;

use super::link::{Link, read_final_message, say};
use super::prompt::Prompt;

/// Says what the lookout sees, above the line that is being edited.
#[derive(Clone)]
pub struct AsyncPrinter(Sender<String>);

impl AsyncPrinter {
    /// Cries by this printer; without one, on standard error. In a thread of its own, because the printer blocks while a text that
    /// came too late for one line waits for the next.
    pub fn new(printer: Option<impl ExternalPrinter + Send + 'static>) -> io::Result<Self> {
        let (crier, cries) = mpsc::channel::<String>();
        let print = move || {
            let mut printer = printer;
            for text in cries {
                match &mut printer {
                    // It fails only together with the terminal.
                    Some(printer) => drop(printer.print(text + "\n")),
                    None => say("", &text),
                }
            }
        };
        let thread = thread::Builder::new().name("crier".to_string());
        thread.spawn(print)?;
        Ok(AsyncPrinter(crier))
    }

    fn print(&self, text: String) {
        // It lives as long as anybody can cry.
        let _ = self.0.send(text);
    }
}

/// Watches the connection of this link until `edit` has done behind this prompt.
pub fn with_monitor<T>(
    link: &mut Link<'_>,
    crier: &AsyncPrinter,
    prompt: &Prompt,
    edit: impl FnOnce() -> T,
) -> T {
    let Some(connection) = link.take_connection() else {
        return edit();
    };
    // Without descriptors for it, the next line finds out.
    let Ok((dismissed, dismiss)) = io::pipe() else {
        link.take_back(Some(connection));
        return edit();
    };
    thread::scope(|scope| {
        let watch = move || watch(connection, &dismissed, crier, prompt);
        let connection_monitor = thread::Builder::new().name("lookout".to_string());
        // Without a thread for it, the connection is gone with the closure, and the next line makes another.
        let connection_monitor = connection_monitor.spawn_scoped(scope, watch);
        let edited = edit();
        // Closed, it wakes the lookout; if `edit` panics, that is so, too.
        drop(dismiss);
        let with_monitor = connection_monitor
            .ok()
            .and_then(|connection_monitor| connection_monitor.join().ok());
        link.take_back(with_monitor.flatten());
        edited
    })
}

/// Watches until dismissed. The connection is given back unless it was lost.
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
            // What comes together with the line is found when that is sent.
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
