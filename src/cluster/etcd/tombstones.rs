//! Tombstones: members that have recently disappeared. They have ended or are unreachable, or etcd
//! has expired the leases of live servers, as a stalled leader does before it learns that it was
//! replaced. Such servers have clients, and register again with their next heartbeat.

use std::collections::HashMap;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use super::membership::{Entry, Membership};
use crate::cluster::Member;

/// Members and tombstones: the entries seen, and since when they have disappeared.
pub struct Tombstones {
    seen: Mutex<HashMap<Member, (Entry, Option<Instant>)>>,
    /// Time after which a tombstone is dropped.
    holds: Duration,
}

impl Tombstones {
    /// Creates an empty list, whose tombstones hold for this time.
    pub fn new(holds: Duration) -> Self {
        Tombstones {
            seen: Mutex::default(),
            holds,
        }
    }

    /// Records the current members, and returns those that have disappeared.
    pub fn compare(&self, membership: &Membership) -> Vec<Entry> {
        let mut seen = self.lock();
        let now = Instant::now();
        for (entry, since) in seen.values_mut() {
            if membership.find(entry.member).is_none() {
                since.get_or_insert(now);
            }
        }
        seen.retain(|_, (_, since)| since.is_none_or(|since| now < since + self.holds));
        for entry in &membership.entries {
            seen.insert(entry.member, (*entry, None));
        }
        let tombstones = seen.values().filter(|(_, since)| since.is_some());
        tombstones.map(|(entry, _)| *entry).collect()
    }

    /// Drops the tombstone of a member that has ended or is unreachable.
    pub fn forget(&self, member: Member) {
        self.lock().remove(&member);
    }

    /// Locks the list. No code panics while it holds this lock.
    fn lock(&self) -> MutexGuard<'_, HashMap<Member, (Entry, Option<Instant>)>> {
        self.seen.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
