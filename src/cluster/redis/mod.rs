//! Census in the available mode: each server publishes its count in Redis and receives the total.
//! One thread does that; a worker that answers a census never waits for it.
//!
//! The heartbeat is a script (`heartbeat.lua`). Each heartbeat has a sequence number, so that a
//! delayed one can't undo a later one. The count of the other servers is the total minus this
//! server's own count at that time, as Redis knew it: both come from the same reply, and messages
//! from other servers arrive in order with replies.

mod connection;
mod heartbeat;
mod master_resolver;
mod snapshot;

use std::sync::atomic::{AtomicU64, Ordering};

pub(super) use self::heartbeat::Heartbeat;
use crate::handover::state;
use shared::clock::Millis;

/// Count of the clients of all other servers, as last known.
#[derive(Debug, Default)]
pub struct Others {
    clients: AtomicU64,
    /// Time until which that count is valid, in [`Millis`].
    until: AtomicU64,
}

impl Others {
    /// Starts with the count that the previous process handed over, if any.
    pub fn new(inherited: Option<state::InheritedCensus>) -> Self {
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
