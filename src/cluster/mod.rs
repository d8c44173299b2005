//! The census: how many clients all servers of a cluster have together.
//!
//! A server alone counts its own. In a cluster that is always [`available`], each publishes its count in Redis, and a census is
//! the own count and what the others had a moment ago. In one that is [`consistent`], etcd knows who belongs to it, and a
//! census asks everybody. `docs/cluster.md` says which one to take when.

mod backoff;
mod credentials;
mod error;
pub mod etcd;
mod outage;
pub mod redis;
mod settings;
mod stats;
mod tls;

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use uuid::Uuid;

pub use self::error::ClusterError;
pub use self::etcd::answer;
use self::etcd::{CensusService, Registration};
use self::redis::{Others, Publisher};
pub use self::settings::{Backend, ClusterArgs, Host, Settings};
pub use self::stats::{Stats, StatsSnapshot};
use crate::clock::{Millis, Nanos};
use crate::error::Error;
use crate::handover_state;
use crate::sync::atomic::AtomicUsize;
use crate::waker::Waker;

/// A server that starts waits so long for its first word with the others, before it lets in clients without.
const FIRST: Duration = Duration::from_secs(1);

/// A server that stops has so long to say so to the others.
const LAST: Duration = Duration::from_millis(500);

/// TLS and the system's search for addresses need more than other threads do.
const STACK_SIZE: usize = 512 * 1024;

/// Answers how many clients there are.
#[derive(Clone)]
pub enum Census {
    /// There is no cluster: those of this server.
    Alone,
    /// Those of this server and those that the others had a moment ago.
    Available(Arc<Others>),
    /// Those whom each server says that it has.
    Consistent(Arc<CensusService>),
}

impl Census {
    /// How many clients there are, of whom so many are `here`, for somebody who `asked` at this moment.
    #[inline]
    pub fn clients(&self, here: u64, asked: Nanos) -> Result<u64, Unavailable> {
        match self {
            Census::Alone => Ok(here),
            Census::Available(others) => Ok(here.saturating_add(others.now())),
            Census::Consistent(service) => ask(service, asked),
        }
    }
}

/// What that needs is on no worker's stack that doesn't need it: there, every idle client would cost it.
#[cold]
#[inline(never)]
fn ask(service: &CensusService, asked: Nanos) -> Result<u64, Unavailable> {
    service.clients(asked)
}

/// Why nobody knows how many clients there are. Small, because every worker has room for it on its stack.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unavailable {
    /// Some servers did not answer in time.
    Silent {
        /// So many answered.
        answered: u16,
        /// Of so many.
        members: u16,
    },
    /// The registry of the servers did not answer.
    Registry,
    /// This server is not in the registry.
    Outside,
    /// The registry has begun anew, or lost a server that lives: others may be missing.
    Unstable,
}

impl fmt::Display for Unavailable {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Unavailable::Silent { answered, members } => {
                write!(f, "{answered} of {members} servers answered, try again")
            }
            Unavailable::Registry => write!(
                f,
                "0 of an unknown number of servers answered: their registry did not, try again"
            ),
            Unavailable::Outside => write!(
                f,
                "0 of an unknown number of servers answered: this one is not registered now, try again"
            ),
            Unavailable::Unstable => write!(
                f,
                "0 of an unknown number of servers answered: their registry may lack some for a moment, try again"
            ),
        }
    }
}

/// Who a server is in its cluster.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Member {
    /// Its id.
    pub id: Uuid,
    /// Tells the process that began to serve, and those that go on with its clients, from all others, also of the same id.
    pub incarnation: Uuid,
}

/// The place of this server in its cluster.
pub struct Cluster {
    settings: Option<Arc<Settings>>,
    member: Member,
    /// What the process before this one knew.
    known: Option<handover_state::Census>,
    census: Census,
    stats: Arc<Stats>,
    waker: Option<Arc<Waker>>,
    running: Running,
}

enum Running {
    Nothing,
    Available(Publisher),
    Consistent(Registration),
}

impl Cluster {
    /// The place of the server of this `id` in the cluster of these settings, if any. It goes on from where the process before
    /// it was. Nothing is asked or told yet.
    pub fn new(
        settings: Option<Arc<Settings>>,
        id: Uuid,
        known: Option<handover_state::Census>,
    ) -> Result<Self, Error> {
        let incarnation = known.map_or_else(Uuid::new_v4, |known| known.incarnation);
        let member = Member { id, incarnation };
        let stats = Arc::new(Stats::new(settings.as_deref()));
        let mut waker = None;
        let census = match &settings {
            None => Census::Alone,
            Some(settings) => match settings.backend {
                Backend::Redis { .. } => {
                    waker = Some(Arc::new(Waker::new()?));
                    Census::Available(Arc::new(Others::new(known)))
                }
                Backend::Etcd => Census::Consistent(Arc::default()),
            },
        };
        Ok(Cluster {
            settings,
            member,
            known,
            census,
            stats,
            waker,
            running: Running::Nothing,
        })
    }

    /// What answers how many clients there are.
    pub fn census(&self) -> Census {
        self.census.clone()
    }

    /// Who this server is in its cluster.
    pub fn member(&self) -> Member {
        self.member
    }

    /// What to ring when the number of clients changes.
    pub fn waker(&self) -> Option<Arc<Waker>> {
        self.waker.clone()
    }

    /// How it goes, for the metrics.
    pub fn stats(&self) -> Arc<Stats> {
        self.stats.clone()
    }

    /// Takes part from now on: tells the others the number of `clients`. A server that has just started waits a moment for
    /// them, so that its first answer is right.
    pub fn join(&mut self, clients: Arc<AtomicUsize>) -> Result<(), Error> {
        let Some(settings) = self.settings.clone() else {
            return Ok(());
        };
        // The process before knew what the others have, and that holds; or it did not know either, and the clients don't wait.
        let holds =
            |known: handover_state::Census| known.until == Millis(0) || Millis::now() < known.until;
        let patience = match self.known.is_some_and(holds) {
            true => Duration::ZERO,
            false => FIRST,
        };
        let (member, stats) = (self.member, self.stats.clone());
        self.running = match (&self.census, &self.waker) {
            (Census::Available(others), Some(waker)) => {
                let (others, waker) = (others.clone(), waker.clone());
                let publisher = Publisher::start(settings, member, clients, others, waker, stats)?;
                publisher.wait_for_first(patience);
                Running::Available(publisher)
            }
            (Census::Consistent(service), _) => {
                let (goes_on, service) = (self.known.is_some(), service.clone());
                let registration =
                    Registration::start(settings, member, goes_on, service, clients, stats)?;
                registration.wait_for_first(patience);
                Running::Consistent(registration)
            }
            _ => Running::Nothing,
        };
        Ok(())
    }

    /// The clients are about to let go: no question of theirs may take long from now on, however many they have sent.
    pub fn fail_fast(&self) {
        if let Running::Consistent(registration) = &self.running {
            registration.fail_fast();
        }
    }

    /// Says nothing about the number of clients from now on, so that whoever goes on with them does. Returns what that one needs
    /// to know.
    pub fn pause(&self) -> Option<handover_state::Census> {
        self.stats.withdraw();
        let (others, until) = match (&self.running, &self.census) {
            (Running::Available(publisher), Census::Available(others)) => {
                publisher.pause();
                others.known()
            }
            // Its lease is kept alive as long as this program is there, and the next has its own.
            (Running::Consistent(_), _) => Default::default(),
            _ => return None,
        };
        Some(handover_state::Census {
            incarnation: self.member.incarnation,
            others,
            until,
        })
    }

    /// Tells the others that this server, with all its clients, is gone.
    pub fn leave(&self) {
        match &self.running {
            Running::Nothing => {}
            Running::Available(publisher) => publisher.leave(LAST),
            Running::Consistent(registration) => registration.leave(LAST),
        }
    }
}

impl fmt::Display for Cluster {
    /// For the log.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.settings {
            None => f.write_str("none"),
            Some(settings) => write!(f, "{}", settings.name),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn more_clients_than_there_are_numbers_are_as_many_as_there_are() {
        let known = handover_state::Census {
            incarnation: Uuid::nil(),
            others: u64::MAX,
            until: Millis(u64::MAX),
        };
        let census = Census::Available(Arc::new(Others::new(Some(known))));
        assert_eq!(census.clients(5, Nanos::now()), Ok(u64::MAX));
    }
}
