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

use super::{CommandClass, CommandError, Request};
use crate::clock::Nanos;

/// The rest after a turn is so much longer: for reading the request, for writing its reply, for what the client does for both, and
/// for those who have waited while all that was done. And with less a virtual machine's cores, which fall asleep and wake with each
/// turn, lose their place on the host's: see docs/adr/0017.
const REQUEST_OVERHEAD: Duration = Duration::from_micros(500);

/// A computation that lasts longer pauses after each such piece of it: nobody waits for the core for longer than that.
const QUANTUM: Duration = Duration::from_micros(100);

/// No rest is longer: what seems to have taken so long has been waiting for a core itself.
const LONGEST_REST: Duration = Duration::from_millis(1);

/// Where turns are taken, first come, first served.
#[derive(Clone)]
pub struct ComputeLimiter(Arc<Mutex<State>>);

struct State {
    /// For each turn that nobody has: when the rest after the one before it is over, the earliest first.
    free: VecDeque<Instant>,
    /// Who waits for one, while none is free; given directly, or whoever has just had one would have the next as well.
    waiting: VecDeque<Sender<Given>>,
    /// Whether no more are given.
    closed: bool,
}

/// When the rest before a turn is over, or why there is none.
type Given = Result<Instant, CommandError<'static>>;

/// The right to compute, until it is dropped.
pub struct Permit {
    limiter: ComputeLimiter,
    /// When it began, or went on after a pause.
    since: Instant,
}

impl ComputeLimiter {
    /// Who has got no turn so long after his request was read is refused, together with all requests that came with it: a worker that
    /// is not done with them after a second is missed.
    pub const PATIENCE: Duration = Duration::from_millis(500);

    /// As many turns at a time as half of the cores, and at least one.
    pub fn for_this_machine() -> Self {
        let cores = thread::available_parallelism().map_or(1, usize::from);
        ComputeLimiter::of((cores / 2).max(1))
    }

    fn of(limiter: usize) -> Self {
        ComputeLimiter(Arc::new(Mutex::new(State {
            free: vec![Instant::now(); limiter].into(),
            waiting: VecDeque::new(),
            closed: false,
        })))
    }

    /// None, for whoever serves many clients at once and may wait for no one.
    pub fn none() -> Self {
        let limiter = ComputeLimiter::of(0);
        limiter.close();
        limiter
    }

    /// Gives no more: what asks for one, or waits, is left to whoever serves its client next.
    pub fn close(&self) {
        let mut state = self.lock();
        state.closed = true;
        for waiting in state.waiting.drain(..) {
            // It has room for one.
            let _ = waiting.try_send(Err(CommandError::Deferred));
        }
    }

    /// Whether turns are given at all.
    pub fn look<'a>(&self) -> Result<(), CommandError<'a>> {
        match self.lock().closed {
            true => Err(CommandError::Deferred),
            false => Ok(()),
        }
    }

    /// Waits for a turn.
    pub fn take<'a>(&self, request: &Request<'_>) -> Result<Permit, CommandError<'a>> {
        debug_assert_eq!(
            request.entry.kind,
            CommandClass::Compute,
            "{}",
            request.entry.name
        );
        let waited = Duration::from_nanos(request.asked.until(Nanos::now()));
        self.take_within(ComputeLimiter::PATIENCE.saturating_sub(waited))
    }

    fn take_within<'a>(&self, patience: Duration) -> Result<Permit, CommandError<'a>> {
        let rested = self.wait(patience)?;
        let early = rested.saturating_duration_since(Instant::now());
        if !early.is_zero() {
            thread::sleep(early);
        }
        Ok(Permit {
            limiter: self.clone(),
            since: Instant::now(),
        })
    }

    fn wait(&self, patience: Duration) -> Given {
        let mut state = self.lock();
        if state.closed {
            return Err(CommandError::Deferred);
        }
        if let Some(rested) = state.free.pop_front() {
            return Ok(rested);
        }
        if patience.is_zero() {
            return Err(CommandError::ComputeBusy);
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
        given.try_recv().unwrap_or(Err(CommandError::ComputeBusy))
    }

    fn take_all(&self, rested: Instant) {
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

impl Permit {
    /// To be called between the parts of a computation, each some microseconds long: rests, if it is time to.
    pub fn pause(&mut self) {
        let computed = self.since.elapsed();
        if computed >= QUANTUM {
            thread::sleep(computed.min(LONGEST_REST));
            self.since = Instant::now();
        }
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        let now = Instant::now();
        let computed = now.duration_since(self.since);
        let rest = computed.min(LONGEST_REST) + REQUEST_OVERHEAD;
        self.limiter.take_all(now + rest);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LONG: Duration = Duration::from_secs(60);

    #[test]
    fn so_many_compute_at_a_time_and_the_next_is_refused_in_the_end() {
        let limiter = ComputeLimiter::of(2);
        let mut taken: Vec<Permit> = (0..2)
            .map(|_| limiter.take_within(LONG).expect("a turn"))
            .collect();
        let late = limiter.take_within(Duration::ZERO);
        assert!(matches!(late, Err(CommandError::ComputeBusy)));
        taken.pop();
        taken.push(limiter.take_within(LONG).expect("a turn"));
        drop(taken);
        let state = limiter.lock();
        assert_eq!((state.free.len(), state.waiting.len()), (2, 0));
    }

    #[test]
    fn the_turn_that_has_rested_longest_is_given() {
        let limiter = ComputeLimiter::of(2);
        drop(limiter.take_within(LONG).expect("a turn"));
        let rested = limiter.wait(LONG).expect("the other");
        assert!(rested <= Instant::now());
    }

    #[test]
    fn who_has_waited_longest_is_next() {
        let limiter = ComputeLimiter::of(1);
        let taken = limiter.take_within(LONG).expect("a turn");
        let (done, order) = crossbeam_channel::unbounded();
        let waiting: Vec<_> = (0..3)
            .map(|number| {
                let (own, done) = (limiter.clone(), done.clone());
                let thread = thread::spawn(move || {
                    let turn = own.take_within(LONG).expect("a turn");
                    done.send(number).unwrap();
                    drop(turn);
                });
                while limiter.lock().waiting.len() <= number {
                    thread::yield_now();
                }
                thread
            })
            .collect();
        drop(taken);
        assert!(limiter.take_within(LONG).is_ok(), "behind them");
        assert_eq!(order.try_iter().collect::<Vec<_>>(), [0, 1, 2]);
        for thread in waiting {
            thread.join().unwrap();
        }
    }

    #[test]
    fn who_waits_when_no_more_are_given_is_left_to_others_at_once() {
        let limiter = ComputeLimiter::of(1);
        let taken = limiter.take_within(LONG).expect("a turn");
        let own = limiter.clone();
        let waiting = thread::spawn(move || own.take_within(LONG).map(drop));
        while limiter.lock().waiting.is_empty() {
            thread::yield_now();
        }
        limiter.close();
        assert!(matches!(
            waiting.join().unwrap(),
            Err(CommandError::Deferred)
        ));
        drop(taken);
        assert!(matches!(
            limiter.take_within(LONG),
            Err(CommandError::Deferred)
        ));
        assert!(matches!(limiter.look(), Err(CommandError::Deferred)));
    }

    #[test]
    fn half_of_the_time_is_rest_within_a_turn_and_after_it() {
        let limiter = ComputeLimiter::of(1);
        let compute = |turn: &Permit| while turn.since.elapsed() < QUANTUM {};
        let begun = Instant::now();
        let mut turn = limiter.take_within(LONG).expect("a turn");
        for _ in 0..10 {
            compute(&turn);
            turn.pause();
        }
        assert!(begun.elapsed() >= QUANTUM * 20);
        compute(&turn);
        let computed = Instant::now();
        drop(turn);
        let next = limiter.take_within(LONG).expect("a turn");
        assert!(next.since - computed >= QUANTUM + REQUEST_OVERHEAD);
    }
}
