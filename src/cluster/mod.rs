//! Cluster census: the number of clients that all servers of a cluster have together.
//!
//! Without a cluster, the census is the server's own client count. In the *available* mode
//! ([`redis`]), each server publishes its count in Redis, and a census is the own count plus the
//! last published count of the others. In the *consistent* mode ([`etcd`]), etcd holds the list of
//! members, and a census asks each of them. `docs/cluster.md` compares the two modes.

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
use crate::error::Error;
use crate::handover::state;
use crate::waker::Waker;
use shared::clock::{Millis, Nanos};
use shared::command::Unavailable;
use shared::sync::atomic::AtomicUsize;

/// Time that a starting server waits for the first reply of its cluster before it admits clients
/// without one.
const FIRST: Duration = Duration::from_secs(1);

/// Longest time that a stopping server spends on leaving its cluster.
const LAST: Duration = Duration::from_millis(500);

/// Stack size of the cluster's threads. TLS and the system's address lookup need more stack than
/// other threads do.
const STACK_SIZE: usize = 512 * 1024;

/// Source of the number of clients.
#[derive(Clone)]
pub enum Census {
    /// No cluster: the clients of this server.
    Alone,
    /// Redis: the clients of this server plus the last known count of the others.
    Available(Arc<Others>),
    /// etcd: the sum of what each server answers when it is asked.
    Consistent(Arc<CensusService>),
}

impl shared::command::Census for Census {
    fn clients(&self, here: u64, asked: Nanos) -> Result<u64, Unavailable> {
        match self {
            Census::Alone => Ok(here),
            Census::Available(others) => Ok(here.saturating_add(others.now())),
            Census::Consistent(service) => service.clients(asked),
        }
    }
}

/// Identity of a server in its cluster.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Member {
    /// Id of the server.
    pub id: Uuid,
    /// Identifies one run of the server: the process that began to serve and those that took over
    /// its clients. Differs between servers that share an id.
    pub incarnation: Uuid,
}

/// Membership of this server in its cluster.
pub struct Cluster {
    settings: Option<Arc<Settings>>,
    member: Member,
    /// Census that the previous process handed over.
    known: Option<state::Census>,
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
    /// Creates the membership of the server `id` in the cluster of these settings, if there are
    /// any. `known` is the census that the previous process handed over. Sends nothing yet.
    pub fn new(
        settings: Option<Arc<Settings>>,
        id: Uuid,
        known: Option<state::Census>,
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

    /// Returns the source of the number of clients.
    pub fn census(&self) -> Census {
        self.census.clone()
    }

    /// Returns the identity of this server in its cluster.
    pub fn member(&self) -> Member {
        self.member
    }

    /// Returns the waker to wake when the number of clients changes.
    pub fn waker(&self) -> Option<Arc<Waker>> {
        self.waker.clone()
    }

    /// Returns the state of the cluster, for the metrics.
    pub fn stats(&self) -> Arc<Stats> {
        self.stats.clone()
    }

    /// Joins the cluster: publishes the number of `clients` from now on. A server that has just
    /// started waits up to `FIRST` for the cluster, so that its first answer is right.
    pub fn join(&mut self, clients: Arc<AtomicUsize>) -> Result<(), Error> {
        let Some(settings) = self.settings.clone() else {
            return Ok(());
        };
        // No wait is needed if the count that the previous process handed over still holds, or if
        // that process did not know a count either.
        let holds = |known: state::Census| known.until == Millis(0) || Millis::now() < known.until;
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

    /// Limits how long censuses may take, however many questions the clients have sent: a handover
    /// is about to release the clients.
    pub fn fail_fast(&self) {
        if let Running::Consistent(registration) = &self.running {
            registration.fail_fast();
        }
    }

    /// Stops publishing the number of clients, so that the next process publishes it instead.
    /// Returns the census to hand over to that process.
    pub fn pause(&self) -> Option<state::Census> {
        self.stats.withdraw();
        let (others, until) = match (&self.running, &self.census) {
            (Running::Available(publisher), Census::Available(others)) => {
                publisher.pause();
                others.known()
            }
            // The lease is kept alive until this process ends; the next process gets its own lease.
            (Running::Consistent(_), _) => Default::default(),
            _ => return None,
        };
        Some(state::Census {
            incarnation: self.member.incarnation,
            others,
            until,
        })
    }

    /// Tells the others that this server and all its clients are gone.
    pub fn leave(&self) {
        match &self.running {
            Running::Nothing => {}
            Running::Available(publisher) => publisher.leave(LAST),
            Running::Consistent(registration) => registration.leave(LAST),
        }
    }
}

impl fmt::Display for Cluster {
    /// Writes the name of the cluster, or `none`, for the log.
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
    use shared::command::Census as _;

    #[test]
    fn more_clients_than_there_are_numbers_are_as_many_as_there_are() {
        let known = state::Census {
            incarnation: Uuid::nil(),
            others: u64::MAX,
            until: Millis(u64::MAX),
        };
        let census = Census::Available(Arc::new(Others::new(Some(known))));
        assert_eq!(census.clients(5, Nanos::now()), Ok(u64::MAX));
    }
}
