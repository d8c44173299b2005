//! Log throttle: logs a repeated incident once when it begins and once when it is over.

use std::sync::Mutex;
use std::time::Duration;

use log::warn;

use shared::clock::Millis;
use shared::sync::ignore_poison;

/// Quiet time after which an incident is over.
const QUIET_TIME: Duration = Duration::from_secs(10);

/// One kind of incident.
pub struct Incident {
    what: &'static str,
    state: Mutex<Option<State>>,
}

struct State {
    started: Millis,
    last: Millis,
    count: u64,
}

impl Incident {
    /// Returns an incident that the log calls `what`.
    pub const fn new(what: &'static str) -> Self {
        Incident {
            what,
            state: Mutex::new(None),
        }
    }

    /// Records an occurrence, and logs it with `detail` if the incident begins. Returns whether it
    /// begins.
    pub fn record(&self, detail: &dyn std::fmt::Display) -> bool {
        let now = Millis::now();
        let begins = {
            let mut state = ignore_poison(self.state.lock());
            let begins = state.is_none();
            let current = state.get_or_insert(State {
                started: now,
                last: now,
                count: 0,
            });
            current.last = now;
            current.count += 1;
            begins
        };
        if begins {
            warn!(reason:% = detail; "{}", self.what);
        }
        begins
    }

    /// Logs the end of the incident after enough quiet time, or at once with `now_over`. Returns
    /// whether the incident continues.
    pub fn resolve(&self, now_over: bool) -> bool {
        let over = {
            let mut state = ignore_poison(self.state.lock());
            let is_quiet = |last| Millis::now().since(last) >= QUIET_TIME;
            match state.take_if(|current| now_over || is_quiet(current.last)) {
                Some(over) => over,
                None => return state.is_some(),
            }
        };
        if over.count > 1 {
            let seconds = over.last.since(over.started).as_secs_f64();
            warn!(times = over.count, seconds = (seconds * 10.0).round() / 10.0; "over: {}", self.what);
        }
        false
    }
}

/// All incidents that clients or a lack of system resources can cause.
pub struct Incidents {
    /// Clients were answered `ERR BUSY`.
    pub refused: Incident,
    /// Clients were closed to make room for others.
    pub made_room: Incident,
    /// Connections had no valid PROXY header.
    pub bad_header: Incident,
    /// Clients could not be accepted.
    pub accept: Incident,
    /// Clients sent too much that asks nothing, or took no answers.
    pub flooded: Incident,
    /// A worker panicked.
    pub panicked: Incident,
}

impl Default for Incidents {
    /// Returns the incidents, none of which has begun.
    fn default() -> Self {
        Incidents {
            refused: Incident::new("clients are refused"),
            made_room: Incident::new("idle clients are closed to make room"),
            bad_header: Incident::new("connections without a right PROXY header are closed"),
            accept: Incident::new("clients can't be accepted"),
            flooded: Incident::new(
                "clients that send floods, or take no answers, are told to calm down",
            ),
            panicked: Incident::new("requests fail, please report this"),
        }
    }
}

impl Incidents {
    /// Logs the incidents that are over (with `now_over`, all); returns whether one continues.
    pub fn resolve(&self, now_over: bool) -> bool {
        let all = [
            &self.refused,
            &self.made_room,
            &self.bad_header,
            &self.accept,
            &self.flooded,
            &self.panicked,
        ];
        // Resolves each one, whatever the others return.
        let ongoing = all.iter().filter(|incident| incident.resolve(now_over));
        ongoing.count() > 0
    }
}
