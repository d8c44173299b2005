//! Tombstones: members that have recently disappeared. They have ended or are unreachable, or etcd
//! has expired the leases of live servers, as a stalled leader does before it learns that it was
//! replaced. Such servers have clients, and register again with their next heartbeat.

use std::collections::HashMap;
use std::sync::Mutex;
use std::time::{Duration, Instant};

use super::membership::{Entry, Membership};
use crate::cluster::Member;
use shared::sync::ignore_poison;

/// Members and tombstones.
pub struct Tombstones {
    /// Entries seen, and since when they have disappeared.
    seen: Mutex<HashMap<Member, (Entry, Option<Instant>)>>,
    /// Time after which a tombstone is dropped.
    lifetime: Duration,
}

impl Tombstones {
    /// Creates an empty list, whose tombstones are kept for this time.
    pub fn new(lifetime: Duration) -> Self {
        let seen = Mutex::default();
        Tombstones { seen, lifetime }
    }

    /// Records the current members, and returns those that have disappeared.
    pub fn update(&self, membership: &Membership) -> Vec<Entry> {
        let mut seen = ignore_poison(self.seen.lock());
        let now = Instant::now();
        for (entry, since) in seen.values_mut() {
            if membership.find(entry.member).is_none() {
                since.get_or_insert(now);
            }
        }
        seen.retain(|_, (_, since)| since.is_none_or(|since| now < since + self.lifetime));
        let current = membership.entries.iter();
        seen.extend(current.map(|entry| (entry.member, (*entry, None))));
        let tombstones = seen.values().filter(|(_, since)| since.is_some());
        tombstones.map(|(entry, _)| *entry).collect()
    }

    /// Drops the tombstone of a member that has ended or is unreachable.
    pub fn remove(&self, member: Member) {
        ignore_poison(self.seen.lock()).remove(&member);
    }
}
