//! What the system says to us by signals, passed on to the daemon's channel. The only place that knows them.

use std::sync::Arc;
use std::time::{Duration, Instant};

use crossbeam_channel::Receiver;
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM, SIGUSR2, SIGXFSZ};
use signal_hook::iterator::Signals;
use signal_hook::low_level::{emulate_default_handler, signal_name};

use crate::error::Error;
use crate::{sys, thread};

/// What we are told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Told {
    /// SIGTERM or SIGINT, by its name: drain and leave.
    Stop(&'static str),
    /// SIGUSR2: let a new program take over.
    Replace,
    /// SIGHUP, which other daemons take for "read your settings again": ours come from the command line alone.
    Hangup,
}

/// A stop that is repeated within this time is the same: GNU timeout(1) and `kill 0` reach a process twice, once by itself
/// and once by its group.
const SAME: Duration = Duration::from_millis(250);

/// Listens to signals from now on. Who says stop a second time ends the process at once, whatever it is doing.
/// Call it before any thread starts.
pub fn listen() -> Result<Receiver<Told>, Error> {
    let failed = |source| Error::System {
        action: "listen to signals",
        source,
    };
    sys::allow_interrupts().map_err(failed)?;
    sys::unblock(&[SIGTERM, SIGINT, SIGHUP, SIGUSR2]).map_err(failed)?;
    // A log or an id that may grow no more (RLIMIT_FSIZE) is an error of write(2), not the end of the process.
    signal_hook::flag::register(SIGXFSZ, Arc::default()).map_err(failed)?;
    let mut signals = Signals::new([SIGTERM, SIGINT, SIGHUP, SIGUSR2]).map_err(failed)?;
    let (sender, receiver) = crossbeam_channel::unbounded();
    thread::spawn("signals", move || {
        let mut stopping: Option<Instant> = None;
        for signal in signals.forever() {
            let told = match (signal, stopping) {
                (SIGHUP, _) => Told::Hangup,
                (SIGUSR2, None) => Told::Replace,
                (SIGUSR2, Some(_)) => continue,
                (_, Some(first)) if first.elapsed() < SAME => continue,
                (_, Some(_)) => {
                    // It ends the process; if it should not, there is nothing better to do.
                    let _ = emulate_default_handler(signal);
                    continue;
                }
                (signal, None) => {
                    stopping = Some(Instant::now());
                    Told::Stop(signal_name(signal).unwrap_or("a signal"))
                }
            };
            if sender.send(told).is_err() {
                return;
            }
        }
    })?;
    Ok(receiver)
}
