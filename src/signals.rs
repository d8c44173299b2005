//! What the system says to us by signals, passed on to the daemon's channel. The only place that knows them.

use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, Sender};
use log::warn;
use signal_hook::consts::{SIGCHLD, SIGHUP, SIGINT, SIGTERM, SIGUSR1, SIGUSR2, SIGXCPU, SIGXFSZ};
use signal_hook::iterator::{self, Handle};
use signal_hook::low_level::{emulate_default_handler, exit, signal_name};

use crate::error::Error;
use crate::sys;
use crate::thread::{self, Thread};

/// What is listened to.
const SIGNALS: [i32; 7] = [SIGTERM, SIGINT, SIGHUP, SIGUSR1, SIGUSR2, SIGXCPU, SIGCHLD];

/// What we are told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SignalEvent {
    /// SIGTERM, SIGINT, or SIGXCPU (the limit on processor time), by its name: drain and leave.
    Stop(&'static str),
    /// SIGUSR2: let a new program take over.
    Replace,
    /// SIGHUP, which other daemons take for "read your settings again": ours come from the command line alone.
    Hangup,
    /// SIGUSR1, which other daemons take for "open your log anew": ours is no file.
    Reopen,
    /// SIGCHLD: a child has ended.
    Child,
}

/// A stop that is repeated within this time is the same: GNU timeout(1) and `kill 0` reach a process twice, once by itself
/// and once by its group.
const SAME: Duration = Duration::from_millis(250);

/// From now on signals wait until somebody listens, and what the parent left behind does no harm. Call it before anything is
/// written, and before any thread starts.
pub fn block_all() -> Result<(), Error> {
    sys::block(&SIGNALS).map_err(failed)?;
    // A log or an id that may grow no more (RLIMIT_FSIZE) is an error of write(2), not the end of the process.
    signal_hook::flag::register(SIGXFSZ, Arc::default()).map_err(failed)?;
    // A parent that ignores it has its children ignore it, and then they can't wait for theirs (wait(2)).
    sys::reset(SIGCHLD).map_err(failed)?;
    if sys::cancel_timers() {
        warn!(
            "a timer of the process that started this one (alarm, setitimer) is cancelled: it would have ended it"
        );
    }
    Ok(())
}

/// Does this while signals reach the calling thread: a child that it starts has none of them blocked.
pub fn unheld<T>(act: impl FnOnce() -> T) -> T {
    // Neither fails with signals that there are (pthread_sigmask(3)).
    let _ = sys::unblock(&SIGNALS);
    let result = act();
    let _ = sys::block(&SIGNALS);
    result
}

/// Listens to signals, in a thread of its own: it alone takes them, so that none is on its way when it pauses.
pub struct Signals {
    events: Receiver<SignalEvent>,
    sender: Sender<SignalEvent>,
    /// When we were first told to stop.
    stopping: Arc<OnceLock<Instant>>,
    listening: Option<(Handle, Thread)>,
}

impl Signals {
    /// Listens from now on. Who says stop a second time ends the process at once, whatever it is doing.
    /// Call it before any thread starts.
    pub fn listen() -> Result<Self, Error> {
        block_all()?;
        sys::allow_interrupts().map_err(failed)?;
        let (sender, events) = crossbeam_channel::unbounded();
        let mut signals = Signals {
            events,
            sender,
            stopping: Arc::default(),
            listening: None,
        };
        signals.resume()?;
        Ok(signals)
    }

    /// What we are told. It never disconnects.
    pub fn events(&self) -> &Receiver<SignalEvent> {
        &self.events
    }

    /// Whether we have been told to stop.
    pub fn is_told_to_stop(&self) -> bool {
        self.told_to_stop().is_some()
    }

    /// When we were told to stop, if we were.
    pub fn told_to_stop(&self) -> Option<Instant> {
        self.stopping.get().copied()
    }

    /// Listens no more. What has come is in the channel; what comes waits for [`Signals::resume`], or for the program that
    /// replaces this one.
    pub fn pause(&mut self) {
        if let Some((handle, thread)) = self.listening.take() {
            handle.close();
            thread.end();
        }
    }

    /// Listens again.
    pub fn resume(&mut self) -> Result<(), Error> {
        let mut signals = iterator::Signals::new(SIGNALS).map_err(failed)?;
        let handle = signals.handle();
        let (sender, stopping) = (self.sender.clone(), self.stopping.clone());
        let thread = thread::spawn("signals", move || {
            let tell = |signal| {
                if let Some(events) = decode(signal, &stopping) {
                    // Nobody listens to us any more: the process ends.
                    let _ = sender.send(events);
                }
            };
            // Neither fails with signals that there are (pthread_sigmask(3)).
            let _ = sys::unblock(&SIGNALS);
            signals.forever().for_each(tell);
            let _ = sys::block(&SIGNALS);
            signals.pending().for_each(tell);
        })?;
        self.listening = Some((handle, thread));
        Ok(())
    }
}

/// What `signal` tells us, if anything.
fn decode(signal: i32, stopping: &OnceLock<Instant>) -> Option<SignalEvent> {
    match (signal, stopping.get()) {
        (SIGCHLD, _) => Some(SignalEvent::Child),
        (SIGHUP, _) => Some(SignalEvent::Hangup),
        (SIGUSR1, _) => Some(SignalEvent::Reopen),
        (SIGUSR2, None) => Some(SignalEvent::Replace),
        // SIGXCPU comes again after each second of processor time (setrlimit(2)).
        (SIGUSR2 | SIGXCPU, Some(_)) => None,
        (_, Some(first)) if first.elapsed() < SAME => None,
        // The kernel ignores what would end process 1 by default (pid_namespaces(7)).
        (signal, Some(_)) if std::process::id() == 1 => exit(128 + signal),
        (signal, Some(_)) => {
            // It ends the process; if it should not, there is nothing better to do.
            let _ = emulate_default_handler(signal);
            None
        }
        (signal, None) => {
            stopping.get_or_init(Instant::now);
            Some(SignalEvent::Stop(signal_name(signal).unwrap_or("a signal")))
        }
    }
}

fn failed(source: std::io::Error) -> Error {
    Error::System {
        action: "listen to signals",
        source,
    }
}
