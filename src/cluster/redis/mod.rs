//! The census of a cluster that is always available: each server publishes its count in Redis and hears what all have
//! together. One thread does that; who asks for the census never waits for it.
//!
//! The heartbeat is a script (`heartbeat.lua`). Each has a number, so that one that was held up can't undo a later one. What the
//! others have is what all have without what this server had then, as Redis knew it: both come from the same reply, and the
//! messages of others are in order with it.

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
use crate::clock::Millis;
use crate::error::Error;
use crate::handover_state;
use crate::sync::atomic::AtomicUsize;
use crate::thread;
use crate::waker::Waker;

/// What the other servers have, as far as it is known.
#[derive(Debug, Default)]
pub struct Others {
    clients: AtomicU64,
    /// Until when that holds, in [`Millis`].
    until: AtomicU64,
}

impl Others {
    /// What is known from before.
    pub fn new(known: Option<handover_state::Census>) -> Self {
        let (clients, until) = known.map_or((0, 0), |known| (known.others, known.until.0));
        Others {
            clients: clients.into(),
            until: until.into(),
        }
    }

    /// How many clients they have; none once that is too old to be believed.
    #[inline]
    pub fn now(&self) -> u64 {
        self.known().0
    }

    /// How many they have, and until when that holds; none, and the beginning of time, once that is too old to be believed.
    #[inline]
    pub fn known(&self) -> (u64, Millis) {
        // In this order: the number is as new as the moment until which it holds, or newer.
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
enum Order {
    Publish,
    /// Say nothing more.
    Pause,
    /// Say goodbye.
    Leave,
}

/// What is published.
struct Source {
    /// Whose clients they are.
    member: Member,
    /// How many.
    clients: Arc<AtomicUsize>,
    /// Whether they are to be published.
    order: Arc<Mutex<Order>>,
    /// Rings when any of that changes.
    waker: Arc<Waker>,
}

impl Source {
    fn order(&self) -> Order {
        *lock(&self.order)
    }

    /// How many clients there are to be published, if they are to be.
    fn clients(&self) -> Option<usize> {
        // Until this is read, nobody says that it no longer counts.
        let order = lock(&self.order);
        (*order != Order::Pause).then(|| self.clients.load(Ordering::SeqCst))
    }
}

/// The thread that publishes.
pub struct Publisher {
    order: Arc<Mutex<Order>>,
    waker: Arc<Waker>,
    /// Disconnects with the first reply.
    first: Receiver<()>,
    /// Disconnects when the thread has ended.
    ended: Receiver<()>,
}

impl Publisher {
    /// Publishes the number of `clients` from now on, and hears the `others`.
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

    /// Waits for the first reply, for so long at most.
    pub fn wait_for_first(&self, patience: Duration) {
        // It disconnects, or the time is over.
        let _ = self.first.recv_timeout(patience);
    }

    /// Publishes nothing from now on, whatever becomes of the clients. Those who have heard of them believe in them for some time.
    pub fn pause(&self) {
        self.order(Order::Pause);
    }

    /// Tells the others that all clients are gone, if that can be done within `patience`.
    pub fn leave(&self, patience: Duration) {
        self.order(Order::Leave);
        // It disconnects, or the time is over.
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

/// No code panics while it holds this lock.
fn lock(order: &Mutex<Order>) -> MutexGuard<'_, Order> {
    order.lock().unwrap_or_else(PoisonError::into_inner)
}
