//! The load: keeps requests in flight, or sends them when they are due, until the end, and then
//! waits for the last replies.

use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use rustix::time::{ClockId, clock_gettime};

use super::{Ask, Load, ROUND};
use crate::bench::client::{Client, Disconnect};
use crate::bench::workload::Schedule;
use crate::failure::Failure;

/// The longest wait for the last replies after the user ended the load.
const LAST_REPLIES: Duration = Duration::from_secs(1);

impl Load {
    /// Keeps requests in flight until the end, and waits for the last replies.
    pub(super) fn ask(&mut self, begin: Instant) -> Result<(), Failure> {
        let depth = self.shared.depth;
        self.window.from = begin + self.shared.warm_up;
        self.window.to = self.end(begin);
        let schedule = |rate| Schedule::new(begin, rate, self.shared.workload.clients);
        self.window.schedule = self.shared.rate.map(schedule);
        self.fill_all();
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
            let pause = self.keep_the_schedule().unwrap_or(ROUND);
            let pause = pause.min(self.window.to - now).min(ROUND);
            self.poll_once(pause, Ask::Keep(depth), Load::lost)?;
        }
        self.stats.cpu = cpu.map_or(Duration::ZERO, |before| cpu_time().saturating_sub(before));
        self.wait_for_the_last()?;
        self.tell();
        Ok(())
    }

    /// Returns when the load ends.
    fn end(&self, begin: Instant) -> Instant {
        begin + Duration::from_nanos(self.shared.end.load(Ordering::Relaxed))
    }

    /// Lets each client send what it may.
    fn fill_all(&mut self) {
        let depth = self.shared.depth;
        for client in &mut self.clients {
            client.fill(&self.shared.workload, depth, self.window, &mut self.stats);
        }
    }

    /// Lets clients send whose requests are due. Returns the time until the next one is due, or
    /// `None` without a schedule.
    fn keep_the_schedule(&mut self) -> Option<Duration> {
        let schedule = self.window.schedule?;
        let now = Instant::now();
        let clients = self.clients.len() as u64;
        // A client sends all that is due at once, so missed rounds but the last can be skipped.
        let rounds = schedule.due_before(self.first, now).saturating_sub(1);
        self.looked_at = self.looked_at.max(rounds * clients);
        loop {
            let (round, key) = (self.looked_at / clients, self.looked_at % clients);
            let due = schedule.due(self.first + key, round);
            if due >= now {
                return Some(due - now);
            }
            let (workload, client) = (&self.shared.workload, &mut self.clients[key as usize]);
            client.fill(workload, self.shared.depth, self.window, &mut self.stats);
            self.looked_at += 1;
        }
    }

    /// Sends only what was due before the end, and waits for all replies.
    fn wait_for_the_last(&mut self) -> Result<(), Failure> {
        let begun = Instant::now();
        let mut looked = begun;
        let (window, timeout) = (self.window, self.shared.workload.timeout);
        let goes_on = window.schedule.is_some();
        let ask = match goes_on {
            true => Ask::Keep(self.shared.depth),
            false => Ask::Nothing,
        };
        if goes_on {
            self.fill_all();
        }
        loop {
            let now = Instant::now();
            let waits = |client: &Client| client.is_waiting() || client.owes(window, now, timeout);
            if !self.clients.iter().any(waits) {
                break;
            }
            if self.shared.interrupted.load(Ordering::Relaxed)
                && now.saturating_duration_since(begun) > LAST_REPLIES
            {
                break;
            }
            if now.saturating_duration_since(looked) >= ROUND {
                looked = now;
                self.look_round(now, goes_on);
            }
            self.poll_once(ROUND, ask, Load::lost)?;
        }
        let overdue = Instant::now().checked_sub(timeout);
        for client in &mut self.clients {
            if let Some(overdue) = overdue {
                self.stats.errors.unsent += client.give_up_unsent(overdue, window, &mut self.stats);
            }
            // The user has ended the wait.
            client.give_up_unsent(window.to, window, &mut self.stats);
            client.give_up(window, &mut self.stats);
        }
        Ok(())
    }

    /// Disconnects clients that have timed out, and reconnects those that are due.
    fn look_round(&mut self, now: Instant, again: bool) {
        let timeout = self.shared.workload.timeout;
        for key in 0..self.clients.len() {
            let client = &self.clients[key];
            let outcome = if client.is_late(now, timeout) {
                Err(Disconnect::Late)
            } else if again && client.is_due(now) {
                self.begin(key, now)
            } else {
                Ok(())
            };
            if let Err(lost) = outcome {
                // The loss is counted, and nothing else is needed.
                let _ = self.lost(key, lost);
            }
        }
    }

    /// Reports new replies and errors to the shared counters.
    fn tell(&mut self) {
        let (answered, errors) = (self.stats.answered, self.stats.errors.total());
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
