//! Signals at a terminal: ^C ends a wait, and signals that end the process restore the terminal
//! first.

use std::io;
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::sync::mpsc::Sender;
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;

use rustix::process::getpgrp;
use rustix::termios::{OptionalActions, tcgetattr, tcgetpgrp, tcsetattr};
use shared::dial::{Connection, Failure, Reply};
use shared::stdio;
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};
use signal_hook::iterator::Signals;
use signal_hook::low_level::emulate_default_handler;

/// Turns off bracketed paste, which the line editor turns on.
const UNMARKED_PASTE: &str = "\x1b[?2004l\r\n";

/// A new connection, the addresses that were not tried, and the replies to requests that were sent
/// at once; or the failure.
pub type Opened = Result<(Connection, Vec<SocketAddr>, Vec<Reply>), Failure>;

/// What the shell waits for.
pub enum Wait {
    /// Nothing that could be interrupted.
    Nothing,
    /// A connection from another thread; sending `None` ends the wait.
    Connection(Sender<Option<Opened>>),
    /// A reply over this socket; shutting the socket down ends the wait.
    Reply(TcpStream),
    /// A line from a terminal that drops the typed text itself; only the prompt is printed again.
    Line(String),
}

/// State of ^C while the line editor is not active. It has no effect without
/// [`Interrupts::handle`].
#[derive(Clone)]
pub struct Interrupts(Arc<Mutex<Waiting>>);

struct Waiting {
    wait: Wait,
    abandoned: bool,
}

impl Interrupts {
    /// Returns the initial state.
    pub fn new() -> Self {
        Interrupts(Arc::new(Mutex::new(Waiting {
            wait: Wait::Nothing,
            abandoned: false,
        })))
    }

    /// Handles ^C and the signals that end the process from now on. Saves the modes of the terminal
    /// to restore them at the end.
    pub fn handle(&self) -> io::Result<()> {
        let terminal = rustix::stdio::stdin();
        let modes = tcgetattr(terminal)?;
        let mut signals = Signals::new([SIGINT, SIGTERM, SIGHUP])?;
        let own = self.clone();
        let handle = move || {
            for signal in signals.forever() {
                if signal == SIGINT {
                    own.interrupt();
                    continue;
                }
                // In the background another process group owns the terminal, and changing it would
                // stop this process.
                if tcgetpgrp(terminal).is_ok_and(|group| group == getpgrp()) {
                    // An error means that the terminal is gone.
                    let _ = tcsetattr(terminal, OptionalActions::Now, &modes);
                    let _ = stdio::print(UNMARKED_PASTE);
                }
                let _ = emulate_default_handler(signal);
            }
        };
        let thread = thread::Builder::new().name("signals".to_string());
        thread.spawn(handle).map(|_| ())
    }

    /// Runs `waiting`, which waits for `wait`. Returns `None` if ^C ended it.
    pub fn during<T>(&self, wait: Wait, waiting: impl FnOnce() -> T) -> Option<T> {
        self.set(wait);
        let outcome = waiting();
        let abandoned = self.set(Wait::Nothing);
        (!abandoned).then_some(outcome)
    }

    /// Reads a line behind this prompt.
    pub fn behind<T>(&self, prompt: &str, reading: impl FnOnce() -> T) -> T {
        self.set(Wait::Line(prompt.to_string()));
        let read = reading();
        self.set(Wait::Nothing);
        read
    }

    /// Sets the wait, and returns whether ^C ended the last one.
    fn set(&self, wait: Wait) -> bool {
        let mut state = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        state.wait = wait;
        std::mem::take(&mut state.abandoned)
    }

    fn interrupt(&self) {
        let mut state = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        // A second ^C has no further effect.
        state.abandoned |= match &state.wait {
            Wait::Nothing => false,
            Wait::Connection(tell) => tell.send(None).is_ok(),
            Wait::Reply(socket) => socket.shutdown(Shutdown::Both).is_ok(),
            Wait::Line(prompt) => {
                // The terminal has echoed ^C.
                let _ = stdio::print(&format!("\n{prompt}"));
                false
            }
        };
    }
}
