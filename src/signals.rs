//! What the system says to us by signals, passed on to the daemon's channel. The only place that knows them.

use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use crossbeam_channel::Receiver;
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};
use signal_hook::iterator::Signals;

use crate::error::Error;
use crate::thread;

/// What we are told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Told {
    /// SIGTERM or SIGINT, by its name: drain and leave.
    Stop(&'static str),
    /// SIGHUP, which other daemons take for "read your settings again": ours come from the command line alone.
    Hangup,
}

/// Listens to signals from now on. The second of SIGTERM and SIGINT ends the process at once, whatever it is doing.
/// Call it before any thread starts.
pub fn listen() -> Result<Receiver<Told>, Error> {
    let failed = |source| Error::System {
        action: "listen to signals",
        source,
    };
    let stopping = Arc::new(AtomicBool::new(false));
    for signal in [SIGTERM, SIGINT] {
        // In this order: at the first signal the default is off, and then switched on for the second.
        signal_hook::flag::register_conditional_default(signal, stopping.clone())
            .map_err(failed)?;
        signal_hook::flag::register(signal, stopping.clone()).map_err(failed)?;
    }
    let mut signals = Signals::new([SIGTERM, SIGINT, SIGHUP]).map_err(failed)?;
    let (sender, receiver) = crossbeam_channel::unbounded();
    thread::spawn("signals", move || {
        for signal in signals.forever() {
            let told = match signal {
                SIGTERM => Told::Stop("SIGTERM"),
                SIGINT => Told::Stop("SIGINT"),
                _ => Told::Hangup,
            };
            if sender.send(told).is_err() {
                return;
            }
        }
    })?;
    Ok(receiver)
}
