//! Outages of the cluster: the loop that tries again after a failure, with exponential backoff and
//! jitter, and the log of it. The log has one message when an outage begins, one for each further
//! kind of error, and one when it is over, however often the connection fails in between.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::time::{Duration, Instant};

use crossbeam_channel::Sender;
use log::{info, warn};
use uuid::Uuid;

use super::error::{ClusterError, ErrorKind, Result};
use super::{Mode, Node};

/// Upper bound of the first pause; the bound doubles with each failure, up to half a heartbeat.
const MIN_RETRY_PAUSE: Duration = Duration::from_millis(40);

/// Time without an error after which an outage is over. A shorter recovery belongs to the same
/// outage.
const QUIET_TIME: Duration = Duration::from_secs(5);

/// Time without an error after which the count of failures starts again.
const STABLE_TIME: Duration = Duration::from_millis(500);

/// The current outage.
struct Current {
    start: Instant,
    failures: u64,
    /// Number of failures since the connection last worked for the time `STABLE_TIME`.
    attempts: u64,
    /// Since when the connection works again.
    recovered: Option<Instant>,
    /// Kinds of error that the log has reported, indexed by [`ErrorKind`].
    logged: [bool; ErrorKind::NAMES.len()],
}

/// Tracks whether this server is cut off from its cluster.
pub struct Outage {
    node: Arc<Node>,
    /// Receives a message when the cluster replies.
    replied: Sender<()>,
    current: Option<Current>,
}

impl Outage {
    /// Creates a tracker without an outage. Sends to `replied`, unless it is full, when the cluster
    /// replies; dropped, it disconnects it.
    pub fn new(node: Arc<Node>, replied: Sender<()>) -> Self {
        Outage {
            node,
            replied,
            current: None,
        }
    }

    /// Calls `attempt` once a heartbeat, and sooner after a failure, until the mode is no longer
    /// [`Mode::Publish`]. `meaning` says for the log what an outage means for clients.
    pub fn run(&mut self, meaning: &str, mut attempt: impl FnMut(&mut Self) -> Result<()>) {
        let node = self.node.clone();
        while node.mode() == Mode::Publish {
            // The panic hook logs a panic.
            let result = catch_unwind(AssertUnwindSafe(|| attempt(self)));
            let result =
                result.unwrap_or_else(|_| Err(ClusterError::refused("this server failed")));
            let pause = match result {
                Ok(()) => node.settings.heartbeat,
                Err(error) => pause(self.record(&error, meaning), node.settings.heartbeat / 2),
            };
            node.wait(Instant::now() + pause);
        }
    }

    /// Records a failure. Logs it if it begins an outage or is of a new kind in the current one.
    /// Returns the number of failures since the connection last worked for a while.
    fn record(&mut self, error: &ClusterError, meaning: &str) -> u64 {
        self.node.stats.update(|stats| {
            stats.connected = false;
            stats.errors[error.kind as usize] += 1;
        });
        let current = self.current.get_or_insert_with(|| Current {
            start: Instant::now(),
            failures: 0,
            attempts: 0,
            recovered: None,
            logged: Default::default(),
        });
        let recovered = current.recovered.take();
        if recovered.is_some_and(|since| since.elapsed() >= STABLE_TIME) {
            current.attempts = 0;
        }
        current.attempts += 1;
        current.failures += 1;
        if !std::mem::replace(&mut current.logged[error.kind as usize], true) {
            warn!(reason:% = error; "cut off from the cluster: {meaning}");
        }
        current.attempts
    }

    /// Records that a heartbeat was answered. Logs the end of an outage after `QUIET_TIME`.
    pub fn record_heartbeat(&mut self) {
        self.node.stats.update(|stats| {
            stats.connected = true;
            stats.heartbeats += 1;
        });
        // Nobody needs a second message.
        let _ = self.replied.try_send(());
        let Some(current) = &mut self.current else {
            return;
        };
        let recovered = *current.recovered.get_or_insert_with(Instant::now);
        if recovered.elapsed() >= QUIET_TIME {
            let (times, seconds) = (current.failures, (recovered - current.start).as_secs_f64());
            info!(times, seconds = (seconds * 10.0).round() / 10.0; "over: cut off from the cluster");
            self.current = None;
        }
    }
}

/// Returns the pause after `failed` failures, `longest` at most. Half of it is random, so that not
/// all servers retry at once.
fn pause(failed: u64, longest: Duration) -> Duration {
    let doubled = MIN_RETRY_PAUSE * (1 << failed.saturating_sub(1).min(10));
    let longest = doubled.min(longest);
    longest / 2 + random(longest / 2)
}

/// Returns a random part of `time`.
pub fn random(time: Duration) -> Duration {
    // The last 32 bits of a version 4 UUID are all random.
    time.mul_f64(f64::from(Uuid::new_v4().as_u128() as u32) / f64::from(u32::MAX))
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use super::*;
    use crate::cluster::{Member, Settings};
    use crate::waker::Waker;

    #[test]
    fn a_stable_connection_resets_the_attempts() {
        let (replied, _ended) = crossbeam_channel::bounded(1);
        let node = Node {
            settings: Arc::new(Settings::default()),
            member: Member {
                id: Uuid::nil(),
                incarnation: Uuid::nil(),
            },
            clients: Arc::default(),
            stats: Arc::default(),
            mode: Mutex::new(Mode::Publish),
            waker: Arc::new(Waker::new().unwrap()),
        };
        let mut outage = Outage::new(Arc::new(node), replied);
        let error = ClusterError::new(ErrorKind::Late, "late");
        let record = |outage: &mut Outage| outage.record(&error, "a trial");
        for attempts in 1..4 {
            assert_eq!(record(&mut outage), attempts);
        }
        outage.record_heartbeat();
        assert_eq!(record(&mut outage), 4, "it only flapped");
        let start = Instant::now();
        while start.elapsed() < STABLE_TIME + Duration::from_millis(1) {
            outage.record_heartbeat();
        }
        assert_eq!(record(&mut outage), 1);
    }

    #[test]
    fn pauses_grow_up_to_the_longest_and_differ() {
        let longest = Duration::from_millis(250);
        for failed in 1..100 {
            let pause = pause(failed, longest);
            assert!(
                pause >= MIN_RETRY_PAUSE / 2 && pause <= longest,
                "{pause:?}"
            );
        }
        assert!(pause(1, longest) <= MIN_RETRY_PAUSE);
        assert!(pause(u64::MAX, longest) >= longest / 2);
        assert_ne!(pause(50, longest), pause(50, longest));
    }
}
