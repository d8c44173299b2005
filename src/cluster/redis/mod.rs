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
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use crossbeam_channel::Receiver;

use self::heartbeat::Heartbeat;
use super::settings::Settings;
use super::stats::Stats;
use super::{Member, STACK_SIZE};
use crate::error::Error;
use crate::handover::state;
use crate::thread;
use crate::waker::Waker;
use shared::clock::Millis;
use shared::sync::atomic::AtomicUsize;

/// Count of the clients of all other servers, as last known.
#[derive(Debug, Default)]
pub struct Others {
    clients: AtomicU64,
    /// Time until which that count is valid, in [`Millis`].
    until: AtomicU64,
}

impl Others {
    /// Starts with the count that the previous process handed over, if any.
    pub fn new(known: Option<state::Census>) -> Self {
        let (clients, until) = known.map_or((0, 0), |known| (known.others, known.until.0));
        Others {
            clients: clients.into(),
            until: until.into(),
        }
    }

    /// Returns the number of their clients; 0 once it has expired.
    #[inline]
    pub fn now(&self) -> u64 {
        self.known().0
    }

    /// Returns the number of their clients and until when it is valid; zeros once it has expired.
    #[inline]
    pub fn known(&self) -> (u64, Millis) {
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

/// Order to the thread.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Order {
    Publish,
    /// Publish nothing more.
    Pause,
    /// Remove this server from the cluster and stop.
    Leave,
}

/// Data to publish.
struct Source {
    /// Identity of this server.
    member: Member,
    /// Number of its clients.
    clients: Arc<AtomicUsize>,
    /// Current order.
    order: Arc<Mutex<Order>>,
    /// Wakes when the number of clients or the order changes.
    waker: Arc<Waker>,
}

impl Source {
    fn order(&self) -> Order {
        *lock(&self.order)
    }

    /// Returns the number of clients to publish; `None` while publishing is paused.
    fn clients(&self) -> Option<usize> {
        // Holds the lock while the number is read, so that nobody pauses the publishing in between.
        let order = lock(&self.order);
        (*order != Order::Pause).then(|| self.clients.load(Ordering::SeqCst))
    }
}

/// Handle of the thread that publishes.
pub struct Publisher {
    order: Arc<Mutex<Order>>,
    waker: Arc<Waker>,
    /// Disconnects on the first reply.
    first: Receiver<()>,
    /// Disconnects when the thread ends.
    ended: Receiver<()>,
}

impl Publisher {
    /// Starts the thread: it publishes the number of `clients` and updates `others`.
    pub fn start(
        settings: Arc<Settings>,
        member: Member,
        clients: Arc<AtomicUsize>,
        others: Arc<Others>,
        waker: Arc<Waker>,
        stats: Arc<Stats>,
    ) -> Result<Self, Error> {
        let order = Arc::new(Mutex::new(Order::Publish));
        let (answered, first) = crossbeam_channel::bounded(0);
        let (alive, ended) = crossbeam_channel::bounded(0);
        let source = Source {
            member,
            clients,
            order: order.clone(),
            waker: waker.clone(),
        };
        let heartbeat = Heartbeat::new(settings, source, others, stats, answered);
        thread::spawn_with("cluster", STACK_SIZE, move || {
            let _alive = alive;
            heartbeat.run();
        })?;
        Ok(Publisher {
            order,
            waker,
            first,
            ended,
        })
    }

    /// Waits for the first reply, `patience` at most.
    pub fn wait_for_first(&self, patience: Duration) {
        // Disconnected or timed out: both end the wait.
        let _ = self.first.recv_timeout(patience);
    }

    /// Publishes nothing more, whatever becomes of the clients. The other servers count the
    /// published clients until they expire.
    pub fn pause(&self) {
        self.order(Order::Pause);
    }

    /// Tells the other servers that all clients are gone; waits for that, `patience` at most.
    pub fn leave(&self, patience: Duration) {
        self.order(Order::Leave);
        // Disconnected or timed out: both end the wait.
        let _ = self.ended.recv_timeout(patience);
    }

    fn order(&self, order: Order) {
        *lock(&self.order) = order;
        self.waker.wake();
    }
}

impl Drop for Publisher {
    fn drop(&mut self) {
        let mut order = lock(&self.order);
        if *order == Order::Publish {
            *order = Order::Pause;
        }
        drop(order);
        self.waker.wake();
    }
}

/// Locks the order. No code panics while it holds this lock.
fn lock(order: &Mutex<Order>) -> MutexGuard<'_, Order> {
    order.lock().unwrap_or_else(PoisonError::into_inner)
}
