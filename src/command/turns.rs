//! Turns for commands that compute, so that they never take a machine from those that only ask: half of the cores compute
//! at a time, and each of them half of the time.
//!
//! A turn is charged for the time that it took and for what surrounds it: a client that asks without pause keeps the kernel
//! and itself busy for longer than a small computation lasts. Who comes too early waits, in its own worker, which is its own
//! client's; a worker that waited for long would be taken for ill, so that the wait has an end.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use crossbeam_channel::{Sender, bounded};

use super::Refusal;

/// What a turn is charged on top of its time: reading a request, writing its reply, and what the client does for both.
const SURROUNDINGS: Duration = Duration::from_micros(30);

/// A turn is followed by as much time in which nobody computes, times this.
const REST: u32 = 1;

/// So much of that rest may be owed: a few computations after a while without any are not held up.
const CREDIT: Duration = Duration::from_millis(2);

/// Who has waited for so long is refused: half of the time after which a worker is missed.
const PATIENCE: Duration = Duration::from_millis(400);

/// Where turns are taken, first come, first served.
#[derive(Clone)]
pub struct Turns(Arc<Mutex<State>>);

struct State {
    /// For each turn that nobody has: when all rest after those before it is over.
    free: Vec<Instant>,
    /// Who waits for one, while none is free; given directly, or whoever has just had one would have the next as well.
    waiting: VecDeque<Sender<Instant>>,
}

/// The right to compute, until it is dropped.
pub struct Turn {
    turns: Turns,
    begun: Instant,
    /// When all rest after the turns before it is over.
    rested: Instant,
}

impl Turns {
    /// As many turns at a time as half of the cores, and at least one.
    pub fn for_this_machine() -> Self {
        let cores = thread::available_parallelism().map_or(1, usize::from);
        Turns::of((cores / 2).max(1))
    }

    fn of(turns: usize) -> Self {
        Turns(Arc::new(Mutex::new(State {
            free: vec![Instant::now(); turns],
            waiting: VecDeque::new(),
        })))
    }

    /// Waits for a turn.
    pub fn take<'a>(&self) -> Result<Turn, Refusal<'a>> {
        let rested = self.wait().ok_or(Refusal::NoTurn)?;
        let early = early(rested, Instant::now());
        if !early.is_zero() {
            thread::sleep(early);
        }
        Ok(Turn {
            turns: self.clone(),
            begun: Instant::now(),
            rested,
        })
    }

    /// When all rest before a turn is over that is ours now, if there is one in time.
    fn wait(&self) -> Option<Instant> {
        let mut state = self.lock();
        if let Some(rested) = state.free.pop() {
            return Some(rested);
        }
        let (give, given) = bounded(1);
        state.waiting.push_back(give.clone());
        drop(state);
        if let Ok(rested) = given.recv_timeout(PATIENCE) {
            return Some(rested);
        }
        let mut state = self.lock();
        state.waiting.retain(|waiting| !waiting.same_channel(&give));
        // It may have been given at this very moment.
        given.try_recv().ok()
    }

    fn give_back(&self, rested: Instant) {
        let mut state = self.lock();
        match state.waiting.pop_front() {
            // It has room for one, and whoever waits takes it or gives it back.
            Some(waiting) => drop(waiting.try_send(rested)),
            None => state.free.push(rested),
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // Nobody panics while holding it.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Turn {
    fn drop(&mut self) {
        let rested = rested_after(self.rested, self.begun, Instant::now());
        self.turns.give_back(rested);
    }
}

/// How much too early it is for a turn, when all rest is over at this moment.
fn early(rested: Instant, now: Instant) -> Duration {
    rested.saturating_duration_since(now + CREDIT)
}

/// When all rest is over after a turn from `begun` to `ended`.
fn rested_after(rested: Instant, begun: Instant, ended: Instant) -> Instant {
    let charge = ended.duration_since(begun) + SURROUNDINGS;
    rested.max(begun) + charge * (1 + REST)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn so_many_compute_at_a_time_and_the_next_is_refused_in_the_end() {
        let turns = Turns::of(2);
        let mut taken: Vec<Turn> = (0..2).map(|_| turns.take().expect("a turn")).collect();
        assert!(matches!(turns.take(), Err(Refusal::NoTurn)));
        taken.pop();
        taken.push(turns.take().expect("a turn"));
        drop(taken);
        let state = turns.lock();
        assert_eq!((state.free.len(), state.waiting.len()), (2, 0));
    }

    #[test]
    fn who_has_waited_longest_is_next() {
        let turns = Turns::of(1);
        let taken = turns.take().expect("a turn");
        let (done, order) = crossbeam_channel::unbounded();
        let waiting: Vec<_> = (0..3)
            .map(|number| {
                let (own, done) = (turns.clone(), done.clone());
                let thread = thread::spawn(move || {
                    let turn = own.take().expect("a turn");
                    done.send(number).unwrap();
                    drop(turn);
                });
                while turns.lock().waiting.len() <= number {
                    thread::yield_now();
                }
                thread
            })
            .collect();
        drop(taken);
        assert!(turns.take().is_ok(), "behind them");
        assert_eq!(order.try_iter().collect::<Vec<_>>(), [0, 1, 2]);
        for thread in waiting {
            thread.join().unwrap();
        }
    }

    #[test]
    fn computing_gets_half_of_the_time_but_for_a_credit() {
        let start = Instant::now();
        let turn = Duration::from_millis(2) - SURROUNDINGS;
        let (mut now, mut rested, mut computed) = (start, start, Duration::ZERO);
        for _ in 0..1000 {
            now += early(rested, now);
            rested = rested_after(rested, now, now + turn);
            now += turn;
            computed += turn + SURROUNDINGS;
        }
        let taken = now - start;
        assert!(
            taken + CREDIT + (turn + SURROUNDINGS) * 2 >= computed * 2,
            "{taken:?}"
        );
        assert!(taken <= computed * 2, "{taken:?}");
        // After a pause a few are not held up.
        now = rested + Duration::from_secs(1);
        rested = rested_after(rested, now, now + turn / 4);
        assert_eq!(early(rested, now + turn / 4), Duration::ZERO);
    }
}
