//! Census in the available mode: each server publishes its count in Redis and receives the total.
//! One thread does that; a worker that answers a census never waits for it.
//!
//! The heartbeat is a script (`heartbeat.lua`). Each heartbeat has a sequence number, so that a
//! delayed one can't undo a later one. The count of the other servers is the total minus this
//! server's own count at that time, as Redis knew it: both come from the same reply, and messages
//! from other servers arrive in order with replies.

mod connection;
pub mod framing;
mod heartbeat;
mod master_resolver;
mod snapshot;

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use crossbeam_channel::{Receiver, Sender};

use self::heartbeat::Heartbeat;
use super::{Node, STACK_SIZE};
use crate::error::Error;
use crate::handover::state;
use crate::thread;
use crate::waker::Waker;
use shared::clock::Millis;
use shared::sync::ignore_poison;

/// Count of the clients of all other servers, as last known.
#[derive(Debug, Default)]
pub struct Others {
    clients: AtomicU64,
    /// Time until which that count is valid, in [`Millis`].
    until: AtomicU64,
}

impl Others {
    /// Starts with the count that the previous process handed over, if any.
    pub fn new(inherited: Option<state::Census>) -> Self {
        let others = Others::default();
        if let Some(census) = inherited {
            others.set(census.others, census.until);
        }
        others
    }

    /// Returns the number of their clients and until when it is valid; zeros once it has expired.
    #[inline]
    pub fn get(&self) -> (u64, Millis) {
        // Loads in this order, so that the count is at least as new as its expiry.
        let until = Millis(self.until.load(Ordering::Acquire));
        let clients = self.clients.load(Ordering::Acquire);
        if Millis::now() < until {
            (clients, until)
        } else {
            Default::default()
        }
    }

    fn set(&self, clients: u64, until: Millis) {
        self.clients.store(clients, Ordering::Release);
        self.until.store(until.0, Ordering::Release);
    }
}

/// What the thread is to do.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Mode {
    Publish,
    /// Publish nothing more.
    Pause,
    /// Remove this server from the cluster and stop.
    Leave,
}

/// Shared by the thread and its handle.
struct Control {
    mode: Mutex<Mode>,
    /// Wakes the thread when the mode or the number of clients changes.
    waker: Arc<Waker>,
}

impl Control {
    fn mode(&self) -> Mode {
        *ignore_poison(self.mode.lock())
    }

    fn set_mode(&self, mode: Mode) {
        *ignore_poison(self.mode.lock()) = mode;
        self.waker.wake();
    }
}

/// Handle of the thread that publishes.
pub struct Publisher {
    control: Arc<Control>,
    /// Disconnects when the thread ends.
    ended: Receiver<()>,
}

impl Publisher {
    /// Starts the thread: it publishes the number of clients of this server, also whenever `waker`
    /// wakes, and updates `others`. Drops `replied` after the first reply.
    pub(super) fn start(
        node: Arc<Node>,
        others: Arc<Others>,
        waker: Arc<Waker>,
        replied: Sender<()>,
    ) -> Result<Self, Error> {
        let mode = Mutex::new(Mode::Publish);
        let control = Arc::new(Control { mode, waker });
        let (alive, ended) = crossbeam_channel::bounded::<()>(0);
        let heartbeat = Heartbeat::new(node, control.clone(), others, replied);
        thread::spawn_with("cluster", STACK_SIZE, move || {
            let _alive = alive;
            heartbeat.run();
        })?;
        Ok(Publisher { control, ended })
    }

    /// Publishes nothing more, whatever becomes of the clients. The other servers count the
    /// published clients until they expire.
    pub fn pause(&self) {
        self.control.set_mode(Mode::Pause);
    }

    /// Tells the other servers that all clients are gone; waits for that, `patience` at most.
    pub fn leave(&self, patience: Duration) {
        self.control.set_mode(Mode::Leave);
        // Disconnected or timed out: both end the wait.
        let _ = self.ended.recv_timeout(patience);
    }
}

impl Drop for Publisher {
    fn drop(&mut self) {
        if self.control.mode() == Mode::Publish {
            self.pause();
        }
    }
}
