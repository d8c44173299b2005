//! Rate limit for commands that compute, so that they leave the CPU to commands that only query:
//! half of the cores compute at a time, each of them half of the time, in short quanta.
//!
//! A permit's cooldown is longer than its last quantum, because each request also costs I/O: a
//! client that asks without pause keeps the kernel and itself busy for longer than a small
//! computation lasts. A request that finds no permit waits in its own worker, which serves only
//! that client. The wait is bounded, because the health check takes a worker that does not respond
//! for a stuck one.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard};
use std::thread;
use std::time::{Duration, Instant};

use crossbeam_channel::{Sender, bounded};

use super::{Call, CommandClass, CommandError};
use crate::clock::Nanos;
use crate::sync::ignore_poison;

/// Part of a permit's cooldown that pays for the request's overhead: reading it, writing its reply,
/// the client's share of both, and the work that waited meanwhile. With less, a virtual machine,
/// whose cores sleep and wake with each permit, loses CPU time to its host: see docs/adr/0017.
const REQUEST_OVERHEAD: Duration = Duration::from_micros(500);

/// Quantum: a longer computation pauses after each, so no other thread waits longer for the core.
const QUANTUM: Duration = Duration::from_micros(100);

/// Upper bound of a pause: a computation that seems to have taken longer was itself waiting for a
/// core.
const MAX_PAUSE: Duration = Duration::from_millis(1);

/// A pool of permits to compute, given in the order of the requests for them (FIFO).
#[derive(Clone)]
pub struct ComputeLimiter(Arc<Mutex<State>>);

struct State {
    /// The end of the cooldown of each free permit, in the order in which they were returned.
    free: VecDeque<Instant>,
    /// Waiting requests, the oldest first, while no permit is free. A released permit is sent to
    /// the first of them; otherwise the thread that releases it could take it again at once.
    waiting: VecDeque<Sender<Given>>,
    /// Whether the limiter is closed and gives no more permits.
    closed: bool,
}

/// The end of the permit's cooldown, or why no permit is given.
type Given = Result<Instant, CommandError<'static>>;

/// A permit to compute, returned when it is dropped.
pub struct Permit {
    limiter: ComputeLimiter,
    /// When the computation began, or resumed after a pause.
    since: Instant,
}

impl ComputeLimiter {
    /// The longest time from reading a request to its permit. After it the request is refused, as
    /// are all that came in the same read: the health check reports a worker that is not done with
    /// them after a second.
    pub const MAX_WAIT: Duration = Duration::from_millis(500);

    /// Returns a limiter with a permit for every second core, and at least one.
    pub fn for_this_machine() -> Self {
        let cores = thread::available_parallelism().map_or(1, usize::from);
        ComputeLimiter::of((cores / 2).max(1))
    }

    fn of(permits: usize) -> Self {
        ComputeLimiter(Arc::new(Mutex::new(State {
            free: vec![Instant::now(); permits].into(),
            waiting: VecDeque::new(),
            closed: false,
        })))
    }

    /// Closes the limiter: requests that wait for a permit, and later ones, are left to the server
    /// that serves the client next.
    pub fn close(&self) {
        let mut state = self.lock();
        state.closed = true;
        for waiting in state.waiting.drain(..) {
            // The channel has room for one message.
            let _ = waiting.try_send(Err(CommandError::Deferred));
        }
    }

    /// Returns an error if the limiter is closed.
    pub fn check_open<'a>(&self) -> Result<(), CommandError<'a>> {
        match self.lock().closed {
            true => Err(CommandError::Deferred),
            false => Ok(()),
        }
    }

    /// Waits for a permit, for as long as the call has patience. The time of its own `preparation` does
    /// not count.
    pub fn acquire<'a>(
        &self,
        call: &Call<'_>,
        preparation: Duration,
    ) -> Result<Permit, CommandError<'a>> {
        debug_assert_eq!(call.spec.class, CommandClass::Compute, "{}", call.spec.name);
        let waited = Duration::from_nanos(call.asked.until(Nanos::now()));
        match (call.patience + preparation).checked_sub(waited) {
            Some(left) => self.acquire_within(left),
            // Also if a permit is free: the calls before this one took the time.
            None => self.check_open().and(Err(CommandError::ComputeBusy)),
        }
    }

    fn acquire_within<'a>(&self, timeout: Duration) -> Result<Permit, CommandError<'a>> {
        let cooled_at = self.wait(timeout)?;
        thread::sleep(cooled_at.saturating_duration_since(Instant::now()));
        Ok(Permit {
            limiter: self.clone(),
            since: Instant::now(),
        })
    }

    fn wait(&self, timeout: Duration) -> Given {
        let mut state = self.lock();
        if state.closed {
            return Err(CommandError::Deferred);
        }
        if let Some(cooled_at) = state.free.pop_front() {
            return Ok(cooled_at);
        }
        if timeout.is_zero() {
            return Err(CommandError::ComputeBusy);
        }
        let (give, given) = bounded(1);
        state.waiting.push_back(give.clone());
        drop(state);
        if let Ok(given) = given.recv_timeout(timeout) {
            return given;
        }
        let mut state = self.lock();
        state.waiting.retain(|waiting| !waiting.same_channel(&give));
        // A permit may have been sent at this very moment.
        given.try_recv().unwrap_or(Err(CommandError::ComputeBusy))
    }

    fn release(&self, cooled_at: Instant) {
        let mut state = self.lock();
        match state.waiting.pop_front() {
            // The channel has room for one message. A request that times out takes the message all
            // the same.
            Some(waiting) => drop(waiting.try_send(Ok(cooled_at))),
            None => state.free.push_back(cooled_at),
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // No code panics while it holds the lock.
        ignore_poison(self.0.lock())
    }
}

impl Permit {
    /// Pauses if the quantum is used up. Call it between parts of a computation of some
    /// microseconds each.
    pub fn pause(&mut self) {
        let computed = self.since.elapsed();
        if computed >= QUANTUM {
            thread::sleep(computed.min(MAX_PAUSE));
            self.since = Instant::now();
        }
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        let now = Instant::now();
        let computed = now.duration_since(self.since);
        let cooldown = computed.min(MAX_PAUSE) + REQUEST_OVERHEAD;
        self.limiter.release(now + cooldown);
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
            .map(|_| limiter.acquire_within(LONG).expect("a permit"))
            .collect();
        let late = limiter.acquire_within(Duration::ZERO);
        assert!(matches!(late, Err(CommandError::ComputeBusy)));
        taken.pop();
        taken.push(limiter.acquire_within(LONG).expect("a permit"));
        drop(taken);
        let state = limiter.lock();
        assert_eq!((state.free.len(), state.waiting.len()), (2, 0));
    }

    #[test]
    fn the_preparation_of_a_call_does_not_count() {
        let limiter = ComputeLimiter::of(1);
        let call = Call {
            spec: &crate::command::sets::calc::SET[2],
            arguments: Vec::new(),
            asked: Nanos::START,
            patience: Duration::ZERO,
        };
        let late = limiter.acquire(&call, Duration::ZERO);
        assert!(matches!(late, Err(CommandError::ComputeBusy)));
        let age = Duration::from_nanos(Nanos::START.until(Nanos::now()));
        assert!(limiter.acquire(&call, age + LONG).is_ok());
    }

    #[test]
    fn the_permit_that_was_returned_first_is_given() {
        let limiter = ComputeLimiter::of(2);
        drop(limiter.acquire_within(LONG).expect("a permit"));
        let cooled_at = limiter.wait(LONG).expect("the other");
        assert!(cooled_at <= Instant::now());
    }

    #[test]
    fn who_has_waited_longest_is_next() {
        let limiter = ComputeLimiter::of(1);
        let taken = limiter.acquire_within(LONG).expect("a permit");
        let (done, order) = crossbeam_channel::unbounded();
        let waiting: Vec<_> = (0..3)
            .map(|number| {
                let (own, done) = (limiter.clone(), done.clone());
                let thread = thread::spawn(move || {
                    let permit = own.acquire_within(LONG).expect("a permit");
                    done.send(number).unwrap();
                    drop(permit);
                });
                while limiter.lock().waiting.len() <= number {
                    thread::yield_now();
                }
                thread
            })
            .collect();
        drop(taken);
        assert!(limiter.acquire_within(LONG).is_ok(), "behind them");
        assert_eq!(order.try_iter().collect::<Vec<_>>(), [0, 1, 2]);
        for thread in waiting {
            thread.join().unwrap();
        }
    }

    #[test]
    fn who_waits_when_no_more_are_given_is_left_to_others_at_once() {
        let limiter = ComputeLimiter::of(1);
        let taken = limiter.acquire_within(LONG).expect("a permit");
        let own = limiter.clone();
        let waiting = thread::spawn(move || own.acquire_within(LONG).map(drop));
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
            limiter.acquire_within(LONG),
            Err(CommandError::Deferred)
        ));
        assert!(matches!(limiter.check_open(), Err(CommandError::Deferred)));
    }

    #[test]
    fn half_of_the_time_is_a_pause_within_a_permit_and_after_it() {
        let limiter = ComputeLimiter::of(1);
        let compute = |permit: &Permit| while permit.since.elapsed() < QUANTUM {};
        let begun = Instant::now();
        let mut permit = limiter.acquire_within(LONG).expect("a permit");
        for _ in 0..10 {
            compute(&permit);
            permit.pause();
        }
        assert!(begun.elapsed() >= QUANTUM * 20);
        compute(&permit);
        let computed = Instant::now();
        drop(permit);
        let next = limiter.acquire_within(LONG).expect("a permit");
        assert!(next.since - computed >= QUANTUM + REQUEST_OVERHEAD);
    }
}
