//! What systemd is told (sd_notify(3)): ready, how many clients, still well, stopping. Without systemd nobody is told.

use std::io;
use std::os::fd::{AsFd as _, OwnedFd};
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, RecvTimeoutError, Sender};
use log::{error, info, warn};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use sd_notify::NotifyState;

use crate::error::{Error, plain};
use crate::health::Health;
use crate::pack;
use crate::thread;

/// How often the status is brought up to date.
const STATUS: Duration = Duration::from_secs(2);

/// How long systemd may take to store something.
const BARRIER: Timespec = Timespec {
    tv_sec: 5,
    tv_nsec: 0,
};

/// What is told regularly, in a thread that ends when this is dropped.
pub struct Herald(Option<(Sender<()>, thread::Thread)>);

impl Herald {
    /// Says that the server is ready, and from then on how many clients there are, and that it is well as long as
    /// `health` proves it.
    pub fn start(health: Health) -> Result<Self, Error> {
        if !is_heard() {
            return Ok(Herald(None));
        }
        let watchdog = sd_notify::watchdog_enabled();
        if let Some(time) = watchdog {
            info!(seconds = time.as_secs_f64(); "the watchdog is on");
        }
        let (stop, stopped) = crossbeam_channel::bounded(0);
        let thread = thread::spawn("notify", move || run(&health, watchdog, &stopped))?;
        Ok(Herald(Some((stop, thread))))
    }
}

impl Drop for Herald {
    fn drop(&mut self) {
        if let Some((stop, thread)) = self.0.take() {
            drop(stop);
            thread.end();
        }
    }
}

fn run(health: &Health, watchdog: Option<Duration>, stopped: &Receiver<()>) {
    // Twice within the time that systemd waits, as sd_watchdog_enabled(3) advises, and once more.
    let beat = watchdog.map(|time| time / 3);
    let interval = beat.map_or(STATUS, |beat| beat.min(STATUS));
    let mut said = None;
    let mut due = Instant::now();
    let mut ill = false;
    loop {
        let load = health.load();
        let load = (load.clients, load.workers);
        if said != Some(load) {
            let status = format!("{} clients, {} workers", load.0, load.1);
            let ready = said.is_none().then_some(NotifyState::Ready);
            let status = NotifyState::Status(&status);
            tell(&[status].into_iter().chain(ready).collect::<Vec<_>>());
            said = Some(load);
        }
        if let Some(beat) = beat
            && Instant::now() >= due
        {
            due = Instant::now() + beat;
            match health.check(beat) {
                Ok(()) => {
                    if std::mem::take(&mut ill) {
                        warn!("well again");
                    }
                    tell(&[NotifyState::Watchdog]);
                }
                Err(problem) => {
                    if !std::mem::replace(&mut ill, true) {
                        error!("not well, and the watchdog is not told otherwise: {problem}");
                    }
                }
            }
        }
        match stopped.recv_timeout(interval) {
            Err(RecvTimeoutError::Timeout) => {}
            Ok(()) | Err(RecvTimeoutError::Disconnected) => return,
        }
    }
}

/// The server stops, for at most so long.
pub fn stopping(clients: usize, time: Duration) {
    let status = format!("draining {clients} clients");
    let microseconds = u32::try_from(time.as_micros()).unwrap_or(u32::MAX);
    tell(&[
        NotifyState::Stopping,
        NotifyState::Status(&status),
        NotifyState::ExtendTimeoutUsec(microseconds),
    ]);
}

/// The settings are to be read again, or the program to be replaced.
pub fn reloading() {
    if let Ok(now) = NotifyState::monotonic_usec_now() {
        tell(&[NotifyState::Reloading, now]);
    }
}

/// That is done, or it goes on as before.
pub fn reloaded() {
    tell(&[NotifyState::Ready]);
}

/// Has systemd keep `pack` for the next process. Returns when it has taken it.
pub fn store(pack: &OwnedFd) -> io::Result<()> {
    // Not polled: it would take the pack's other end, which is closed, for the end of the pack.
    let states = [
        NotifyState::FdStore,
        NotifyState::FdName(pack::NAME),
        NotifyState::Custom("FDPOLL=0"),
    ];
    sd_notify::notify_with_fds(&states, &[pack.as_fd()])?;
    // systemd reads one message after the other and closes what comes with this one (sd_notify_barrier(3)).
    let (reader, writer) = rustix::pipe::pipe()?;
    sd_notify::notify_with_fds(&[NotifyState::Custom("BARRIER=1")], &[writer.as_fd()])?;
    drop(writer);
    let mut ends = [PollFd::new(&reader, PollFlags::empty())];
    match poll(&mut ends, Some(&BARRIER))? {
        0 => Err(io::ErrorKind::TimedOut.into()),
        _ => Ok(()),
    }
}

/// Has systemd forget the pack that it kept.
pub fn forget() {
    tell(&[NotifyState::FdStoreRemove, NotifyState::FdName(pack::NAME)]);
}

/// Whether there is a systemd that is told.
pub fn is_heard() -> bool {
    std::env::var_os("NOTIFY_SOCKET").is_some()
}

fn tell(states: &[NotifyState<'_>]) {
    if let Err(error) = sd_notify::notify(states) {
        warn!("can't tell systemd: {}", plain(&error));
    }
}
