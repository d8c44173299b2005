//! What the system says to a conversation at a terminal: ^C ends a wait, and what ends the process leaves the terminal as it was.

use std::io;
use std::net::{Shutdown, TcpStream};
use std::sync::mpsc::Sender;
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;

use blockchain_tcpd::dial::{Connection, Failure, Reply};
use blockchain_tcpd::stdio;
use rustix::process::getpgrp;
use rustix::termios::{OptionalActions, tcgetattr, tcgetpgrp, tcsetattr};
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};
use signal_hook::iterator::Signals;
use signal_hook::low_level::emulate_default_handler;

/// Makes a terminal stop marking what is pasted: the line editor makes it begin.
const UNMARKED_PASTE: &str = "\x1b[?2004l\r\n";

/// A new connection, and what was answered on it if something was asked at once; or why there is none.
pub type Opened = Result<(Connection, Vec<Reply>), Failure>;

/// What is waited for.
pub enum Wait {
    /// Nothing that could be ended.
    Nothing,
    /// A connection, from another thread; nothing in its place ends it.
    Connection(Sender<Option<Opened>>),
    /// A reply, over this socket, whose end ends it.
    Reply(TcpStream),
    /// A line from a terminal, which drops what was typed of it itself, behind this prompt, which is shown again.
    Line(String),
}

/// ^C while the terminal is not being edited in. Without [`Interrupts::handle`] there is none.
#[derive(Clone)]
pub struct Interrupts(Arc<Mutex<Waiting>>);

struct Waiting {
    wait: Wait,
    abandoned: bool,
}

impl Interrupts {
    /// None so far.
    pub fn new() -> Self {
        Interrupts(Arc::new(Mutex::new(Waiting {
            wait: Wait::Nothing,
            abandoned: false,
        })))
    }

    /// Takes ^C from now on, and what ends the process. The terminal must be as it is to be left.
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
                // In the background the terminal is somebody else's, and touching it would stop us.
                if tcgetpgrp(terminal).is_ok_and(|group| group == getpgrp()) {
                    // What can't be put right, because the terminal is gone, needs no more care.
                    let _ = tcsetattr(terminal, OptionalActions::Now, &modes);
                    let _ = stdio::print(UNMARKED_PASTE);
                }
                let _ = emulate_default_handler(signal);
            }
        };
        let thread = thread::Builder::new().name("signals".to_string());
        thread.spawn(handle).map(|_| ())
    }

    /// Does what waits for this. Nothing if it was ended.
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

    /// Whether the last wait was ended.
    fn set(&self, wait: Wait) -> bool {
        let mut state = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        state.wait = wait;
        std::mem::take(&mut state.abandoned)
    }

    fn interrupt(&self) {
        let mut state = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        // Once is enough: a second ^C finds what the first has ended.
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
