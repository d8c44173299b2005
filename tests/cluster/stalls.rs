//! When the machine stood still: a test on it can't tell that from a server that is late, and must not blame the server.
//!
//! Threads that want to run every few milliseconds note when they could not. Servers and Redis get their time with them (see
//! `Place::command`): a Redis that gets none for a heartbeat is away, and no more is promised then than docs/cluster.md says.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use crate::truth::{Clock, Moment};

/// How often each wants to run.
const BEAT: Duration = Duration::from_millis(3);

/// Whatever is shorter is of no account.
const SHORTEST: Duration = Duration::from_millis(10);

/// What was noted: the end of each time, and how long it was.
#[derive(Default)]
pub struct Stalls {
    noted: Mutex<Vec<(Moment, Duration)>>,
    over: AtomicBool,
}

impl Stalls {
    /// Takes note from now on, until [`Stalls::end`].
    pub fn watch(clock: Clock) -> Arc<Self> {
        let stalls = Arc::new(Stalls::default());
        let processors = std::thread::available_parallelism().map_or(1, |number| number.get());
        for _ in 0..processors {
            let stalls = stalls.clone();
            std::thread::spawn(move || {
                let mut last = clock.now();
                while !stalls.over.load(Ordering::Relaxed) {
                    std::thread::sleep(BEAT);
                    let now = clock.now();
                    let late = (now - last).saturating_sub(BEAT);
                    if late >= SHORTEST {
                        let mut noted = stalls.noted.lock().unwrap();
                        noted.push((now, late));
                    }
                    last = now;
                }
            });
        }
        stalls
    }

    /// Takes no more notes.
    pub fn end(&self) {
        self.over.store(true, Ordering::Relaxed);
    }

    /// For how long the machine stood still between these moments.
    pub fn between(&self, from: Moment, to: Moment) -> Duration {
        let noted = self.noted.lock().unwrap();
        let first = noted.partition_point(|(end, _)| *end < from);
        let overlaps = noted[first..]
            .iter()
            .filter(|(end, late)| end.saturating_sub(*late) <= to);
        overlaps.map(|(_, late)| *late).sum()
    }

    /// How often, and for how long at most.
    pub fn all(&self) -> (usize, Duration) {
        let noted = self.noted.lock().unwrap();
        let longest = noted.iter().map(|(_, late)| *late).max();
        (noted.len(), longest.unwrap_or_default())
    }
}
