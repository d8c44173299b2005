//! Turns for commands that compute, so that they never take a machine from those that only ask: half of the cores compute
//! at a time, and each of them half of the time, in small pieces.
//!
//! The rest after a turn is longer than its last piece by what surrounds it: a client that asks without pause keeps the kernel
//! and itself busy for longer than a small computation lasts. Who comes too early waits, in its own worker, which is its own
//! client's; a worker that waited for long would be taken for ill, so that the wait has an end.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use crossbeam_channel::{Sender, bounded};

use super::{Kind, Refusal, Request};
use crate::clock::Nanos;

/// The rest after a turn is so much longer: for reading the request, for writing its reply, for what the client does for both, and
/// for those who have waited while all that was done. And with less a virtual machine's cores, which fall asleep and wake with each
/// turn, lose their place on the host's: see docs/adr/0017.
const SURROUNDINGS: Duration = Duration::from_micros(500);

/// A computation that lasts longer pauses after each such piece of it: nobody waits for the core for longer than that.
const PIECE: Duration = Duration::from_micros(100);

/// No rest is longer: what seems to have taken so long has been waiting for a core itself.
const LONGEST_REST: Duration = Duration::from_millis(1);

/// Where turns are taken, first come, first served.
#[derive(Clone)]
pub struct Turns(Arc<Mutex<State>>);

struct State {
    /// For each turn that nobody has: when the rest after the one before it is over, the earliest first.
    free: VecDeque<Instant>,
    /// Who waits for one, while none is free; given directly, or whoever has just had one would have the next as well.
    waiting: VecDeque<Sender<Given>>,
    /// Whether no more are given.
    closed: bool,
}

/// When the rest before a turn is over, or why there is none.
type Given = Result<Instant, Refusal<'static>>;

/// The right to compute, until it is dropped.
pub struct Turn {
    turns: Turns,
    /// When it began, or went on after a pause.
    since: Instant,
}

impl Turns {
    /// Who has got no turn so long after his request was read is refused, together with all requests that came with it: a worker that
    /// is not done with them after a second is missed.
    pub const PATIENCE: Duration = Duration::from_millis(500);

    /// As many turns at a time as half of the cores, and at least one.
    pub fn for_this_machine() -> Self {
        let cores = thread::available_parallelism().map_or(1, usize::from);
        Turns::of((cores / 2).max(1))
    }

    fn of(turns: usize) -> Self {
        Turns(Arc::new(Mutex::new(State {
            free: vec![Instant::now(); turns].into(),
            waiting: VecDeque::new(),
            closed: false,
        })))
    }

    /// None, for whoever serves many clients at once and may wait for no one.
    pub fn none() -> Self {
        let turns = Turns::of(0);
        turns.close();
        turns
    }

    /// Gives no more: what asks for one, or waits, is left to whoever serves its client next.
    pub fn close(&self) {
        let mut state = self.lock();
        state.closed = true;
        for waiting in state.waiting.drain(..) {
            // It has room for one.
            let _ = waiting.try_send(Err(Refusal::Deferred));
        }
    }

    /// Whether turns are given at all.
    pub fn look<'a>(&self) -> Result<(), Refusal<'a>> {
        match self.lock().closed {
            true => Err(Refusal::Deferred),
            false => Ok(()),
        }
    }

    /// Waits for a turn.
    pub fn take<'a>(&self, request: &Request<'_>) -> Result<Turn, Refusal<'a>> {
        debug_assert_eq!(request.entry.kind, Kind::Computes, "{}", request.entry.name);
        let waited = Duration::from_nanos(request.asked.until(Nanos::now()));
        self.take_within(Turns::PATIENCE.saturating_sub(waited))
    }

    fn take_within<'a>(&self, patience: Duration) -> Result<Turn, Refusal<'a>> {
        let rested = self.wait(patience)?;
        let early = rested.saturating_duration_since(Instant::now());
        if !early.is_zero() {
            thread::sleep(early);
        }
        Ok(Turn {
            turns: self.clone(),
            since: Instant::now(),
        })
    }

    fn wait(&self, patience: Duration) -> Given {
        let mut state = self.lock();
        if state.closed {
            return Err(Refusal::Deferred);
        }
        if let Some(rested) = state.free.pop_front() {
            return Ok(rested);
        }
        if patience.is_zero() {
            return Err(Refusal::NoTurn);
        }
        let (give, given) = bounded(1);
        state.waiting.push_back(give.clone());
        drop(state);
        if let Ok(given) = given.recv_timeout(patience) {
            return given;
        }
        let mut state = self.lock();
        state.waiting.retain(|waiting| !waiting.same_channel(&give));
        // It may have been given at this very moment.
        given.try_recv().unwrap_or(Err(Refusal::NoTurn))
    }

    fn give_back(&self, rested: Instant) {
        let mut state = self.lock();
        match state.waiting.pop_front() {
            // It has room for one, and whoever waits takes it or gives it back.
            Some(waiting) => drop(waiting.try_send(Ok(rested))),
            None => state.free.push_back(rested),
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // Nobody panics while holding it.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Turn {
    /// To be called between the parts of a computation, each some microseconds long: rests, if it is time to.
    pub fn pause(&mut self) {
        let computed = self.since.elapsed();
        if computed >= PIECE {
            thread::sleep(computed.min(LONGEST_REST));
            self.since = Instant::now();
        }
    }
}

impl Drop for Turn {
    fn drop(&mut self) {
        let now = Instant::now();
        let computed = now.duration_since(self.since);
        let rest = computed.min(LONGEST_REST) + SURROUNDINGS;
        self.turns.give_back(now + rest);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LONG: Duration = Duration::from_secs(60);

    #[test]
    fn so_many_compute_at_a_time_and_the_next_is_refused_in_the_end() {
        let turns = Turns::of(2);
        let mut taken: Vec<Turn> = (0..2)
            .map(|_| turns.take_within(LONG).expect("a turn"))
            .collect();
        let late = turns.take_within(Duration::ZERO);
        assert!(matches!(late, Err(Refusal::NoTurn)));
        taken.pop();
        taken.push(turns.take_within(LONG).expect("a turn"));
        drop(taken);
        let state = turns.lock();
        assert_eq!((state.free.len(), state.waiting.len()), (2, 0));
    }

    #[test]
    fn the_turn_that_has_rested_longest_is_given() {
        let turns = Turns::of(2);
        drop(turns.take_within(LONG).expect("a turn"));
        let rested = turns.wait(LONG).expect("the other");
        assert!(rested <= Instant::now());
    }

    #[test]
    fn who_has_waited_longest_is_next() {
        let turns = Turns::of(1);
        let taken = turns.take_within(LONG).expect("a turn");
        let (done, order) = crossbeam_channel::unbounded();
        let waiting: Vec<_> = (0..3)
            .map(|number| {
                let (own, done) = (turns.clone(), done.clone());
                let thread = thread::spawn(move || {
                    let turn = own.take_within(LONG).expect("a turn");
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
        assert!(turns.take_within(LONG).is_ok(), "behind them");
        assert_eq!(order.try_iter().collect::<Vec<_>>(), [0, 1, 2]);
        for thread in waiting {
            thread.join().unwrap();
        }
    }

    #[test]
    fn who_waits_when_no_more_are_given_is_left_to_others_at_once() {
        let turns = Turns::of(1);
        let taken = turns.take_within(LONG).expect("a turn");
        let own = turns.clone();
        let waiting = thread::spawn(move || own.take_within(LONG).map(drop));
        while turns.lock().waiting.is_empty() {
            thread::yield_now();
        }
        turns.close();
        assert!(matches!(waiting.join().unwrap(), Err(Refusal::Deferred)));
        drop(taken);
        assert!(matches!(turns.take_within(LONG), Err(Refusal::Deferred)));
        assert!(matches!(turns.look(), Err(Refusal::Deferred)));
    }

    #[test]
    fn half_of_the_time_is_rest_within_a_turn_and_after_it() {
        let turns = Turns::of(1);
        let compute = |turn: &Turn| while turn.since.elapsed() < PIECE {};
        let begun = Instant::now();
        let mut turn = turns.take_within(LONG).expect("a turn");
        for _ in 0..10 {
            compute(&turn);
            turn.pause();
        }
        assert!(begun.elapsed() >= PIECE * 20);
        compute(&turn);
        let computed = Instant::now();
        drop(turn);
        let next = turns.take_within(LONG).expect("a turn");
        assert!(next.since - computed >= PIECE + SURROUNDINGS);
    }
}
