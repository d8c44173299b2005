//! Signal handling: one thread receives the signals and passes them to the daemon's channel. Other
//! modules see only these events.

use std::sync::{Arc, OnceLock};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, Sender};
use log::warn;
use signal_hook::consts::{SIGCHLD, SIGHUP, SIGINT, SIGTERM, SIGUSR1, SIGUSR2, SIGXCPU, SIGXFSZ};
use signal_hook::iterator::{self, Handle};
use signal_hook::low_level::{emulate_default_handler, exit, signal_name};

use crate::error::Error;
use crate::thread;
use shared::sys;

/// Signals that are received.
const SIGNALS: [i32; 7] = [SIGTERM, SIGINT, SIGHUP, SIGUSR1, SIGUSR2, SIGXCPU, SIGCHLD];

/// Event that a signal announces.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SignalEvent {
    /// SIGTERM, SIGINT or SIGXCPU (limit on processor time), by name: drain and exit.
    Stop(&'static str),
    /// SIGUSR2: hand over to a new program.
    Replace,
    /// SIGHUP. For other daemons it means "reload the settings"; this one has its settings from the
    /// command line and the environment.
    Hangup,
    /// SIGUSR1. For other daemons it means "reopen the log"; this one's log is not a file.
    Reopen,
    /// SIGCHLD: a child process has ended.
    Child,
}

/// Time within which a repeated stop signal counts as the same: GNU timeout(1) and `kill 0` signal
/// a process twice, directly and through its process group.
const REPEAT_TIME: Duration = Duration::from_millis(250);

/// Blocks the signals until a thread listens, and undoes harmful inherited settings. Call it before
/// anything is written, and before any thread starts.
pub fn block_all() -> Result<(), Error> {
    sys::block_signals(&SIGNALS).map_err(failed)?;
    // Writing to a log or an id file beyond RLIMIT_FSIZE becomes an error of write(2) instead of
    // ending the process.
    signal_hook::flag::register(SIGXFSZ, Arc::default()).map_err(failed)?;
    // If a parent ignores SIGCHLD, so do its children, which then can't wait for their own
    // (wait(2)).
    sys::reset_signal(SIGCHLD).map_err(failed)?;
    if sys::cancel_timers() {
        warn!("cancelled an inherited timer (alarm, setitimer): it would have ended this process");
    }
    Ok(())
}

/// Runs `act` with the signals unblocked in the calling thread, so that a child that it starts has
/// none of them blocked.
pub fn unblocked<T>(act: impl FnOnce() -> T) -> T {
    // Can't fail with valid signals (pthread_sigmask(3)).
    let _ = sys::unblock_signals(&SIGNALS);
    let result = act();
    let _ = sys::block_signals(&SIGNALS);
    result
}

/// Signal listener: one thread receives all signals, so that none is in flight while it is paused.
pub struct Signals {
    events: Receiver<SignalEvent>,
    sender: Sender<SignalEvent>,
    /// When the first stop signal came.
    stopping: Arc<OnceLock<Instant>>,
    listening: Option<(Handle, JoinHandle<()>)>,
}

impl Signals {
    /// Starts to listen. A second stop signal ends the process at once, whatever it is doing. Call
    /// it after [`block_all`], and before any other thread starts.
    pub fn listen() -> Result<Self, Error> {
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

    /// Returns the channel of events. It never disconnects.
    pub fn events(&self) -> &Receiver<SignalEvent> {
        &self.events
    }

    /// Returns whether a stop signal has come.
    pub fn is_told_to_stop(&self) -> bool {
        self.told_to_stop().is_some()
    }

    /// Returns when the first stop signal came, if one did.
    pub fn told_to_stop(&self) -> Option<Instant> {
        self.stopping.get().copied()
    }

    /// Stops listening. Signals received so far are in the channel; later ones stay pending for
    /// [`Signals::resume`], or for the program that replaces this one.
    pub fn pause(&mut self) {
        if let Some((handle, thread)) = self.listening.take() {
            handle.close();
            let _ = thread.join();
        }
    }

    /// Listens again.
    pub fn resume(&mut self) -> Result<(), Error> {
        let mut signals = iterator::Signals::new(SIGNALS).map_err(failed)?;
        let handle = signals.handle();
        let (sender, stopping) = (self.sender.clone(), self.stopping.clone());
        let thread = thread::spawn("signals", move || {
            let send = |signal| {
                if let Some(event) = decode(signal, &stopping) {
                    // Without a receiver the process is ending.
                    let _ = sender.send(event);
                }
            };
            // Can't fail with valid signals (pthread_sigmask(3)).
            let _ = sys::unblock_signals(&SIGNALS);
            signals.forever().for_each(send);
            let _ = sys::block_signals(&SIGNALS);
            signals.pending().for_each(send);
        })?;
        self.listening = Some((handle, thread));
        Ok(())
    }
}

/// Returns the event that `signal` announces, if any.
fn decode(signal: i32, stopping: &OnceLock<Instant>) -> Option<SignalEvent> {
    match (signal, stopping.get()) {
        (SIGCHLD, _) => Some(SignalEvent::Child),
        (SIGHUP, _) => Some(SignalEvent::Hangup),
        (SIGUSR1, _) => Some(SignalEvent::Reopen),
        (SIGUSR2, None) => Some(SignalEvent::Replace),
        // SIGXCPU is repeated after each second of processor time (setrlimit(2)).
        (SIGUSR2 | SIGXCPU, Some(_)) => None,
        (_, Some(first)) if first.elapsed() < REPEAT_TIME => None,
        // For process 1, the kernel ignores signals whose default action would end it
        // (pid_namespaces(7)).
        (signal, Some(_)) if std::process::id() == 1 => exit(128 + signal),
        (signal, Some(_)) => {
            // Ends the process. If it does not, nothing better can be done.
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
    Error::system("listen to signals", &source)
}
