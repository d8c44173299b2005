//! Ticket: the two who are concerned with a job, the thread that does it and the one that
//! waits for it, agree on whether it goes on.

use std::sync::Mutex;

use libpq::Handle;
use shared::sync::ignore_poison;

/// The state of a job.
#[derive(Default)]
pub struct Ticket(Mutex<State>);

#[derive(Default)]
enum State {
    /// Nobody has begun it.
    #[default]
    Waiting,
    /// A thread does it, by the connection of this handle.
    Running(Handle),
    /// It is done, or is not to be done any more.
    Over,
}

impl Ticket {
    /// Begins it, by the connection of this handle, which may not be open yet. Returns whether
    /// somebody still waits for it.
    pub fn begin(&self, handle: &Handle) -> bool {
        let mut state = ignore_poison(self.0.lock());
        if matches!(*state, State::Over) {
            return false;
        }
        handle.begin();
        *state = State::Running(handle.clone());
        true
    }

    /// Ends the thread's part: from here on the connection may be another's. Returns whether somebody
    /// still waits for it.
    pub fn pause(&self) -> bool {
        let mut state = ignore_poison(self.0.lock());
        match *state {
            State::Over => false,
            _ => {
                *state = State::Waiting;
                true
            }
        }
    }

    /// Gives it up: a thread that is at it is interrupted, by the end of its connection. Only this
    /// ends a call that waits for a server that is stopped.
    pub fn give_up(&self) {
        let mut state = ignore_poison(self.0.lock());
        if let State::Running(handle) = &*state {
            // The thread is at this work as long as this is its state, because of the lock.
            handle.shut_down();
        }
        *state = State::Over;
    }
}
