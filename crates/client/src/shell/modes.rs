//! Modes of the terminal, which are restored when a signal ends the process while a line is edited.

use std::io;
use std::thread;

use rustix::process::getpgrp;
use rustix::termios::{OptionalActions, tcgetattr, tcgetpgrp, tcsetattr};
use shared::stdio;
use signal_hook::consts::{SIGHUP, SIGTERM};
use signal_hook::iterator::Signals;
use signal_hook::low_level::emulate_default_handler;

/// Turns off bracketed paste, which the line editor turns on.
const UNMARKED_PASTE: &str = "\x1b[?2004l\r\n";

/// Saves the modes, and restores them at SIGTERM and SIGHUP.
pub fn restore_at_signals() -> io::Result<()> {
    let terminal = rustix::stdio::stdin();
    let modes = tcgetattr(terminal)?;
    let mut signals = Signals::new([SIGTERM, SIGHUP])?;
    let handle = move || {
        for signal in signals.forever() {
            // In the background another process group owns the terminal, and changing it would stop
            // this process.
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
