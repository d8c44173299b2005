//! What the clients know: how many of them a server had at every moment, as exactly as one can know from outside.
//!
//! A client that connects may count from the moment at which it begins to, and surely counts when it has been answered. One that
//! leaves may be gone from the moment at which it says so, and is surely gone when the server has closed, too. So there is a least
//! and a most at every moment, and they differ only while something happens.

use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{Duration, Instant};

/// A moment: the time since the test began.
pub type Moment = Duration;

/// The clock of a test.
#[derive(Clone, Copy)]
pub struct Clock(Instant);

impl Clock {
    /// Begins now.
    pub fn new() -> Self {
        Clock(Instant::now())
    }

    /// The moment that it is.
    pub fn now(self) -> Moment {
        self.0.elapsed()
    }
}

/// The number of clients of one server.
pub struct Truth {
    clock: Clock,
    state: Mutex<State>,
}

struct State {
    /// Each moment at which the least and the most have changed.
    steps: Vec<(Moment, i64, i64)>,
    /// The process that serves.
    incarnation: u64,
    /// Whether it lets clients in, and keeps them.
    is_open: bool,
    /// How many connect or leave just now.
    busy: usize,
}

impl State {
    fn goes_on(&self, incarnation: u64) -> bool {
        self.incarnation == incarnation && self.is_open
    }

    fn add(&mut self, now: Moment, least: i64, most: i64) {
        let (_, before, before_most) = *self.steps.last().expect("never empty");
        self.steps
            .push((now, (before + least).max(0), before_most + most));
    }
}

impl Truth {
    /// Of a server that does not run yet.
    pub fn new(clock: Clock) -> Arc<Self> {
        Arc::new(Truth {
            clock,
            state: Mutex::new(State {
                steps: vec![(Moment::ZERO, 0, 0)],
                incarnation: 0,
                is_open: false,
                busy: 0,
            }),
        })
    }

    /// Of a server that had these numbers.
    pub fn at(clock: Clock, steps: &[(Moment, i64, i64)]) -> Arc<Self> {
        let truth = Truth::new(clock);
        truth.lock().steps.extend(steps);
        truth
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap()
    }

    /// A client is about to connect. Returns to which process, if there is one.
    pub fn connects(&self) -> Option<u64> {
        let mut state = self.lock();
        state.is_open.then(|| {
            state.add(self.clock.now(), 0, 1);
            state.busy += 1;
            state.incarnation
        })
    }

    /// It was answered.
    pub fn connected(&self, incarnation: u64) {
        let mut state = self.lock();
        state.busy -= 1;
        if state.goes_on(incarnation) {
            state.add(self.clock.now(), 1, 0);
        }
    }

    /// A client is about to leave.
    pub fn leaves(&self, incarnation: u64) {
        let mut state = self.lock();
        state.busy += 1;
        if state.goes_on(incarnation) {
            state.add(self.clock.now(), -1, 0);
        }
    }

    /// A client is gone, or never came.
    pub fn gone(&self, incarnation: u64) {
        let mut state = self.lock();
        state.busy -= 1;
        if state.incarnation == incarnation {
            state.add(self.clock.now(), 0, -1);
        }
    }

    /// Whether this process goes on serving as far as anybody knows.
    pub fn goes_on(&self, incarnation: u64) -> bool {
        self.lock().goes_on(incarnation)
    }

    /// The process is about to end.
    pub fn ends(&self) {
        let mut state = self.lock();
        state.is_open = false;
        let (_, _, most) = *state.steps.last().expect("never empty");
        let now = self.clock.now();
        state.steps.push((now, 0, most));
    }

    /// It has ended.
    pub fn ended(&self) {
        let mut state = self.lock();
        let now = self.clock.now();
        state.steps.push((now, 0, 0));
        state.incarnation += 1;
    }

    /// Another process serves.
    pub fn begins(&self) {
        self.lock().is_open = true;
    }

    /// Whether nobody connects or leaves just now.
    pub fn is_quiet(&self) -> bool {
        self.lock().busy == 0
    }

    /// The least and the most that it had between these moments.
    pub fn between(&self, from: Moment, to: Moment) -> (i64, i64) {
        let state = self.lock();
        let steps = &state.steps;
        // What held already at `from`.
        let first = steps.partition_point(|(at, ..)| *at <= from);
        let (_, mut lowest, mut highest) = steps[first.saturating_sub(1)];
        for (_, least, most) in steps[first..].iter().take_while(|(at, ..)| *at <= to) {
            (lowest, highest) = (lowest.min(*least), highest.max(*most));
        }
        (lowest, highest)
    }
}

#[test]
fn the_least_and_the_most_are_those_of_the_whole_time_asked_about() {
    let truth = Truth::new(Clock::new());
    let moments = std::cell::RefCell::new(Vec::new());
    let moment = || {
        std::thread::sleep(Duration::from_millis(2));
        moments.borrow_mut().push(truth.clock.now());
        std::thread::sleep(Duration::from_millis(2));
    };
    assert!(truth.connects().is_none(), "nobody serves");
    truth.begins();
    moment();
    let incarnation = truth.connects().expect("it serves");
    moment();
    truth.connected(incarnation);
    moment();
    truth.leaves(incarnation);
    truth.gone(incarnation);
    moment();
    let incarnation = truth.connects().expect("it serves");
    truth.connected(incarnation);
    truth.ends();
    moment();
    truth.ended();
    truth.leaves(incarnation);
    truth.gone(incarnation);
    moment();
    let moments = moments.into_inner();
    let at = moments.iter().map(|at| truth.between(*at, *at));
    let right = [(0, 0), (0, 1), (1, 1), (0, 0), (0, 1), (0, 0)];
    assert_eq!(at.collect::<Vec<_>>(), right);
    assert_eq!(truth.between(moments[2], moments[3]), (0, 1));
    assert!(truth.is_quiet());
}
