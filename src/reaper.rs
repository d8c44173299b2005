//! Ends the service of clients whose time is over: the idle ones, those that don't take their replies, the longest
//! idle one when another waits; and, when the workers are to let go, wakes those that are blocked.
//!
//! It looks at the scoreboard, orders, and interrupts until the order is obeyed or void. With no client it
//! looks once in an idle time-out.

use std::sync::Arc;
use std::time::Duration;

use crate::clock::Millis;
use crate::error::Error;
use crate::log_throttle::Incidents;
use crate::queue::Jobs;
use crate::scoreboard::{Activity, Phase, Scoreboard, State};
use crate::sync::channel::{Receiver, RecvTimeoutError};
use crate::sync::sleep;
use crate::thread::{self, Thread};

/// A client that has been idle for less never makes room for another.
pub const MINIMUM_IDLE: Duration = Duration::from_millis(500);

/// Between two rounds there is at least this time, so that a flood of alarms doesn't keep it busy.
const SPACING: Duration = Duration::from_millis(2);

/// After this time it interrupts again who has not obeyed, for an interrupt may come a moment too early.
const AGAIN: Duration = Duration::from_millis(5);

/// While there is trouble, it looks this often whether it is over.
const SETTLE: Duration = Duration::from_secs(1);

/// What the reaper goes by.
pub struct Reaper<T> {
    /// Who does what.
    pub scoreboard: Arc<Scoreboard>,
    /// Who waits. The reaper only counts them.
    pub waiting: Jobs<T>,
    /// A client may complete no request for so long; zero: for ever.
    pub idle_timeout: Duration,
    /// A client may not take its replies for so long.
    pub write_timeout: Duration,
    /// What has been said in the log.
    pub incidents: Arc<Incidents>,
}

impl<T: Send + 'static> Reaper<T> {
    /// Starts the thread. It ends when all clones of the alarm are dropped.
    pub fn start(self, alarms: Receiver<()>) -> Result<Thread, Error> {
        thread::spawn("reaper", move || self.run(&alarms))
    }

    /// What the thread does.
    pub fn run(&self, alarms: &Receiver<()>) {
        let mut idle = Vec::new();
        loop {
            let next = self.round(Millis::now(), &mut idle);
            let alarm = match next {
                None => alarms.recv().map_err(|_| RecvTimeoutError::Disconnected),
                Some(next) => alarms.recv_timeout(next.since(Millis::now())),
            };
            match alarm {
                Err(RecvTimeoutError::Disconnected) => return,
                Ok(()) | Err(RecvTimeoutError::Timeout) => sleep(SPACING),
            }
        }
    }

    /// Ends whose time is over; returns when the next one's will be. `idle` is room to work in.
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
                // A worker that has just taken a client is vacant for an instant yet: who waits may wait for another.
                next.at(now.after(AGAIN));
            }
            if vacant > 0 && !self.idle_timeout.is_zero() {
                // Nobody tells when a vacant worker takes a client, whose idle time begins now at the earliest.
                next.at(now.after(self.idle_timeout));
            }
        } else {
            // A worker may have looked at the phase and taken a client in the same instant, unseen in this round.
            next.at(now.after(AGAIN));
        }
        if self.incidents.resolve(false) {
            next.at(now.after(SETTLE));
        }
        next.0
    }

    /// Ends the service of the `wanted` longest idle clients, of those that have been idle for long enough.
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

/// The earliest of several moments.
struct Next(Option<Millis>);

impl Next {
    fn at(&mut self, moment: Millis) {
        self.0 = Some(self.0.map_or(moment, |next| next.min(moment)));
    }
}
