//! Reaper: closes idle clients, clients that don't take their replies, and the longest idle clients
//! when others wait for a worker. In a drain or a handover it wakes blocked workers.
//!
//! It scans the scoreboard, requests closes, and repeats its interrupts until the worker obeys or
//! the request is void. Without clients it scans once per idle time-out.

use std::sync::Arc;
use std::time::Duration;

use crate::error::Error;
use crate::log_throttle::Incidents;
use crate::server::queue::Jobs;
use crate::session::scoreboard::{Activity, Phase, Scoreboard, State};
use crate::thread;
use shared::clock::Millis;
use shared::sync::channel::{Receiver, RecvTimeoutError};
use shared::sync::sleep;

/// Minimum idle time of a client that is closed to make room for another.
pub const MINIMUM_IDLE: Duration = Duration::from_millis(500);

/// Minimum time between two scans, so that a flood of wake-ups does not keep the reaper busy.
const SPACING: Duration = Duration::from_millis(2);

/// Time after which the reaper interrupts a worker again: an interrupt may come a moment too early.
const AGAIN: Duration = Duration::from_millis(5);

/// Interval between checks whether an incident is over.
const SETTLE: Duration = Duration::from_secs(1);

/// State and settings of the reaper.
pub struct Reaper<T> {
    /// What each worker is doing.
    pub scoreboard: Arc<Scoreboard>,
    /// The waiting clients. The reaper only counts them.
    pub waiting: Jobs<T>,
    /// Maximum time between two complete requests of a client; zero: unlimited.
    pub idle_timeout: Duration,
    /// Maximum time that a client may take no replies.
    pub write_timeout: Duration,
    /// Throttled warnings.
    pub incidents: Arc<Incidents>,
}

impl<T: Send + 'static> Reaper<T> {
    /// Starts the thread. It ends when all clones of the
    /// [`ReaperWaker`](crate::session::scoreboard::ReaperWaker) are dropped.
    pub fn start(self, wakes: Receiver<()>) -> Result<(), Error> {
        thread::spawn("reaper", move || self.run(&wakes)).map(drop)
    }

    /// Runs the thread's loop.
    pub fn run(&self, wakes: &Receiver<()>) {
        let mut idle = Vec::new();
        loop {
            let next = self.round(Millis::now(), &mut idle);
            let woken = match next {
                None => wakes.recv().map_err(|_| RecvTimeoutError::Disconnected),
                Some(next) => wakes.recv_timeout(next.since(Millis::now())),
            };
            match woken {
                Err(RecvTimeoutError::Disconnected) => return,
                Ok(()) | Err(RecvTimeoutError::Timeout) => sleep(SPACING),
            }
        }
    }

    /// Scans once: requests the closes that are due, and returns the time of the next scan. `idle`
    /// is a buffer for reuse.
    fn round(&self, now: Millis, idle: &mut Vec<(State, usize)>) -> Option<Millis> {
        let phase = self.scoreboard.phase();
        let mut next = Next(None);
        let (mut vacant, mut leaving) = (0, 0);
        idle.clear();
        for (index, slot) in self.scoreboard.slots().iter().enumerate() {
            let state = slot.state();
            let limit = match state.activity() {
                Activity::Vacant => {
                    vacant += 1;
                    continue;
                }
                Activity::Reading if phase == Phase::Serve => self.idle_timeout,
                Activity::Writing if matches!(phase, Phase::Serve | Phase::Drain) => {
                    self.write_timeout
                }
                Activity::Reading | Activity::Writing => {
                    slot.interrupt();
                    next.at(now.after(AGAIN));
                    continue;
                }
            };
            let over = !limit.is_zero() && now.since(state.since()) >= limit;
            if state.close_requested() || (over && slot.request_close(state)) {
                slot.interrupt();
                next.at(now.after(AGAIN));
                leaving += 1;
                continue;
            }
            if !limit.is_zero() {
                next.at(state.since().after(limit));
            }
            idle.push((state, index));
        }
        if phase == Phase::Serve {
            let waiting = self.waiting.len();
            let room_wanted = waiting.saturating_sub(vacant + leaving);
            if room_wanted > 0 {
                self.make_room(room_wanted, now, idle, &mut next);
            }
            if waiting > 0 && vacant > 0 {
                // A worker that has just taken a client still looks vacant for an instant: the
                // waiting client may need another worker.
                next.at(now.after(AGAIN));
            }
            if vacant > 0 && !self.idle_timeout.is_zero() {
                // A vacant worker takes a client without waking the reaper. That client's idle time
                // has just begun, at the earliest.
                next.at(now.after(self.idle_timeout));
            }
        } else {
            // A worker may have read the phase and taken a client in the same instant, unseen in
            // this scan.
            next.at(now.after(AGAIN));
        }
        if self.incidents.resolve(false) {
            next.at(now.after(SETTLE));
        }
        next.0
    }

    /// Closes the `wanted` longest idle clients, as far as they have been idle for
    /// [`MINIMUM_IDLE`].
    fn make_room(&self, wanted: usize, now: Millis, idle: &mut [(State, usize)], next: &mut Next) {
        let wanted = wanted.min(idle.len());
        idle.sort_unstable_by_key(|(state, _)| state.since());
        for (state, index) in &idle[..wanted] {
            let slot = &self.scoreboard.slots()[*index];
            if now.since(state.since()) < MINIMUM_IDLE {
                next.at(state.since().after(MINIMUM_IDLE));
            } else {
                next.at(now.after(AGAIN));
                if slot.request_close(*state) {
                    slot.interrupt();
                }
            }
        }
    }
}

/// The earliest of several times.
struct Next(Option<Millis>);

impl Next {
    fn at(&mut self, moment: Millis) {
        self.0 = Some(self.0.map_or(moment, |next| next.min(moment)));
    }
}
