//! Trouble that comes a thousand times is said once when it begins and once when it is over.

use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use log::warn;

use crate::clock::Millis;

/// So long must it be quiet until an episode is over.
const QUIET: Duration = Duration::from_secs(10);

/// One kind of trouble, for the log.
pub struct Incident {
    what: &'static str,
    state: Mutex<Option<State>>,
}

#[derive(Clone, Copy)]
struct State {
    begun: Millis,
    last: Millis,
    count: u64,
}

impl Incident {
    /// Trouble that the log calls `what`.
    pub const fn new(what: &'static str) -> Self {
        Incident {
            what,
            state: Mutex::new(None),
        }
    }

    /// It happened; `detail` is logged if that is the beginning of an episode. Returns whether it is.
    pub fn record(&self, detail: &dyn std::fmt::Display) -> bool {
        let now = Millis::now();
        let begins = {
            let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
            match &mut *state {
                Some(state) => {
                    state.last = now;
                    state.count += 1;
                    false
                }
                None => {
                    *state = Some(State {
                        begun: now,
                        last: now,
                        count: 1,
                    });
                    true
                }
            }
        };
        if begins {
            warn!(reason:% = detail; "{}", self.what);
        }
        begins
    }

    /// Logs the end of an episode once it has been quiet for long enough, or at once with `now_over`. Returns whether
    /// one is still going on.
    pub fn resolve(&self, now_over: bool) -> bool {
        let over = {
            let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
            match *state {
                Some(ended) if now_over || Millis::now().since(ended.last) >= QUIET => {
                    *state = None;
                    ended
                }
                Some(_) => return true,
                None => return false,
            }
        };
        if over.count > 1 {
            let seconds = over.last.since(over.begun).as_secs_f64();
            warn!(times = over.count, seconds = (seconds * 10.0).round() / 10.0; "over: {}", self.what);
        }
        false
    }
}

/// All trouble that clients or a scarce system can cause.
pub struct Incidents {
    /// Clients were answered `ERR BUSY`.
    pub refused: Incident,
    /// Clients were closed to make room for others.
    pub made_room: Incident,
    /// Connections had no right PROXY header.
    pub bad_header: Incident,
    /// A client could not be accepted.
    pub accept: Incident,
    /// A worker panicked.
    pub panicked: Incident,
}

impl Incidents {
    /// No trouble yet.
    pub const fn new() -> Self {
        Incidents {
            refused: Incident::new("clients are refused"),
            made_room: Incident::new("idle clients are closed to make room"),
            bad_header: Incident::new("connections without a right PROXY header are closed"),
            accept: Incident::new("clients can't be accepted"),
            panicked: Incident::new("requests fail, please report this"),
        }
    }

    /// Logs what is over (with `now_over`, everything); returns whether something is still going on.
    pub fn resolve(&self, now_over: bool) -> bool {
        let all = [
            &self.refused,
            &self.made_room,
            &self.bad_header,
            &self.accept,
            &self.panicked,
        ];
        // Each is asked, whatever the others say.
        let going_on = all.iter().filter(|episode| episode.resolve(now_over));
        going_on.count() > 0
    }
}

impl Default for Incidents {
    fn default() -> Self {
        Self::new()
    }
}
