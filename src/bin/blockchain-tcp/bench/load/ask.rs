//! The load itself: requests are kept on the way until the end, and then the last replies are waited for.

use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use rustix::time::{ClockId, clock_gettime};

use super::{Ask, Load, ROUND};
use crate::bench::client::{Client, Lost};
use crate::failure::Failure;

/// When the user has had enough, the last replies may take so long.
const LAST_REPLIES: Duration = Duration::from_secs(1);

impl Load {
    /// Keeps requests on the way until the end, and waits for the last replies.
    pub(super) fn ask(&mut self, begin: Instant) -> Result<(), Failure> {
        let depth = self.shared.depth;
        self.window.from = begin + self.shared.warm_up;
        self.window.to = self.end(begin);
        for client in &mut self.clients {
            client.fill(&self.shared.terms, depth, &mut self.tally);
        }
        let mut cpu = None;
        let mut looked = begin;
        loop {
            let now = Instant::now();
            self.window.to = self.end(begin);
            if cpu.is_none() && now >= self.window.from {
                cpu = Some(cpu_time());
            }
            if now >= self.window.to {
                break;
            }
            if now.saturating_duration_since(looked) >= ROUND {
                looked = now;
                self.look_round(now, true);
                self.tell();
            }
            let pause = (self.window.to - now).min(ROUND);
            self.turn(pause, Ask::Keep(depth), Load::lost)?;
        }
        self.tally.cpu = cpu.map_or(Duration::ZERO, |before| cpu_time().saturating_sub(before));
        self.wait_for_the_last()?;
        self.tell();
        Ok(())
    }

    /// When the load ends.
    fn end(&self, begin: Instant) -> Instant {
        begin + Duration::from_nanos(self.shared.end.load(Ordering::Relaxed))
    }

    /// Sends nothing any more, and waits for all replies that are due.
    fn wait_for_the_last(&mut self) -> Result<(), Failure> {
        let begun = Instant::now();
        let mut looked = begun;
        while self.clients.iter().any(Client::is_waiting) {
            let now = Instant::now();
            if self.shared.interrupted.load(Ordering::Relaxed)
                && now.saturating_duration_since(begun) > LAST_REPLIES
            {
                break;
            }
            if now.saturating_duration_since(looked) >= ROUND {
                looked = now;
                self.look_round(now, false);
            }
            self.turn(ROUND, Ask::Nothing, Load::lost)?;
        }
        Ok(())
    }

    /// Ends who is late, and connects who may.
    fn look_round(&mut self, now: Instant, again: bool) {
        let timeout = self.shared.terms.timeout;
        for key in 0..self.clients.len() {
            let client = &self.clients[key];
            let outcome = if client.is_late(now, timeout) {
                Err(Lost::Late)
            } else if again && client.is_due(now) {
                self.begin(key, now)
            } else {
                Ok(())
            };
            if let Err(lost) = outcome {
                // It is noted, and that is all.
                let _ = self.lost(key, lost);
            }
        }
    }

    /// Tells the others how far it is.
    fn tell(&mut self) {
        let (answered, errors) = (self.tally.answered, self.tally.errors.total());
        let (before, errors_before) = std::mem::replace(&mut self.told, (answered, errors));
        let shared = &self.shared;
        shared
            .answered
            .fetch_add(answered - before, Ordering::Relaxed);
        shared
            .errors
            .fetch_add(errors - errors_before, Ordering::Relaxed);
    }
}

fn cpu_time() -> Duration {
    let time = clock_gettime(ClockId::ThreadCPUTime);
    Duration::new(time.tv_sec as u64, time.tv_nsec as u32)
}
