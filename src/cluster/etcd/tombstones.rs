//! Servers that were registered a moment ago and are so no more. They have ended, or can't be reached, or etcd has taken their
//! lease although they live, as a leader that stood still does before it learns that it is none any more: then they have
//! clients, and register again with their next heartbeat.

use std::collections::HashMap;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use super::membership::{Entry, Membership};
use crate::cluster::Member;

/// Who was registered, and since when no more.
pub struct Tombstones {
    seen: Mutex<HashMap<Member, (Entry, Option<Instant>)>>,
    /// After this time nobody asks for them any more.
    holds: Duration,
}

impl Tombstones {
    /// Nobody yet. Whoever has vanished is remembered for as long as this `holds`.
    pub fn new(holds: Duration) -> Self {
        Tombstones {
            seen: Mutex::default(),
            holds,
        }
    }

    /// Remembers who is registered now, and returns who is no more.
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

    /// This one has ended, or can't be reached.
    pub fn forget(&self, member: Member) {
        self.lock().remove(&member);
    }

    /// No code panics while it holds this lock.
    fn lock(&self) -> MutexGuard<'_, HashMap<Member, (Entry, Option<Instant>)>> {
        self.seen.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
