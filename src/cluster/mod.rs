//! Cluster census: the number of clients that all servers of a cluster have together.
//!
//! Without a cluster, the census is the server's own client count. In the *available* mode
//! ([`redis`]), each server publishes its count in Redis, and a census is the own count plus the
//! last published count of the others. In the *consistent* mode ([`etcd`]), etcd holds the
//! membership, and a census asks each server of it. `docs/cluster.md` compares the two modes.

mod credentials;
mod error;
pub mod etcd;
mod outage;
pub mod redis;
mod settings;
mod stats;
mod stream;

use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use crossbeam_channel::Receiver;
use rustix::event::{PollFd, PollFlags};
use uuid::Uuid;

pub use self::error::{ClusterError, ErrorKind};
pub use self::etcd::answer;
use self::etcd::{CensusService, Registration};
use self::outage::Outage;
use self::redis::{Heartbeat, Others};
pub use self::settings::{Backend, Settings};
pub use self::stats::{Stats, StatsSnapshot};
use crate::error::Error;
use crate::handover::state;
use crate::thread;
use crate::waker::{Waker, poll_until};
use shared::clock::{Millis, Nanos};
use shared::command::Unavailable;
use shared::sync::atomic::AtomicUsize;
use shared::sync::ignore_poison;

/// Time that a starting server waits for the first reply of its cluster before it admits clients
/// without one.
const FIRST_REPLY_TIMEOUT: Duration = Duration::from_secs(1);

/// Longest time that a stopping server spends on leaving its cluster.
const LEAVE_TIMEOUT: Duration = Duration::from_millis(500);

/// Stack size of the cluster's threads, of which they use little: the redis crate needs half of it,
/// in a debug build, for the deepest value that it takes.
const STACK_SIZE: usize = 4 << 20;

/// Source of the number of clients.
#[derive(Clone)]
pub enum CensusSource {
    /// No cluster: the clients of this server.
    Alone,
    /// Redis: the clients of this server plus the last known count of the others.
    Available(Arc<Others>),
    /// etcd: the sum of what each server answers when it is asked.
    Consistent(Arc<CensusService>),
}

impl shared::command::Census for CensusSource {
    fn clients(&self, here: u64, asked: Nanos) -> Result<u64, Unavailable> {
        match self {
            CensusSource::Alone => Ok(here),
            CensusSource::Available(others) => Ok(here.saturating_add(others.get().0)),
            CensusSource::Consistent(service) => service.clients(asked),
        }
    }

    fn waits(&self) -> bool {
        matches!(self, CensusSource::Consistent(_))
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

/// What the thread of a cluster is to do.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Mode {
    /// Publish the number of clients in Redis, or keep the server registered in etcd.
    Publish,
    /// Publish nothing more.
    Pause,
    /// Remove this server from the cluster and stop.
    Leave,
}

/// What the threads of a cluster share.
struct Node {
    settings: Arc<Settings>,
    member: Member,
    /// Number of clients of this server.
    clients: Arc<AtomicUsize>,
    stats: Arc<Stats>,
    mode: Mutex<Mode>,
    /// Wakes the thread when the mode changes, in the available mode also when the number of
    /// clients does.
    waker: Arc<Waker>,
}

impl Node {
    fn mode(&self) -> Mode {
        *ignore_poison(self.mode.lock())
    }

    fn set_mode(&self, mode: Mode) {
        *ignore_poison(self.mode.lock()) = mode;
        self.waker.wake();
    }

    /// Waits until `deadline`, or until there is something else to do than to publish.
    fn wait(&self, deadline: Instant) {
        while Instant::now() < deadline {
            self.waker.clear();
            if self.mode() != Mode::Publish {
                return;
            }
            // A failed poll is repeated.
            let _ = poll_until(&mut [PollFd::new(&*self.waker, PollFlags::IN)], deadline);
        }
    }
}

/// Membership of this server in its cluster.
pub struct Cluster {
    /// Source of the number of clients.
    pub census: CensusSource,
    /// Identity of this server in its cluster.
    pub member: Member,
    /// State of the cluster, for the metrics.
    pub stats: Arc<Stats>,
    /// Waker to wake when the number of clients changes.
    pub waker: Option<Arc<Waker>>,
    settings: Option<Arc<Settings>>,
    /// Census that the previous process handed over.
    inherited: Option<state::InheritedCensus>,
    /// The node of the thread, and a channel that disconnects when the thread ends.
    joined: Option<(Arc<Node>, Receiver<()>)>,
}

impl Cluster {
    /// Creates the membership of the server `id` in the cluster of these settings, if there are
    /// any. `inherited` is the census that the previous process handed over. Sends nothing yet.
    pub fn new(
        settings: Option<Arc<Settings>>,
        id: Uuid,
        inherited: Option<state::InheritedCensus>,
    ) -> Result<Self, Error> {
        let incarnation = inherited.map_or_else(Uuid::new_v4, |census| census.incarnation);
        let (census, waker) = match settings.as_ref().map(|settings| &settings.backend) {
            None => (CensusSource::Alone, None),
            Some(Backend::Redis) => (
                CensusSource::Available(Arc::new(Others::new(inherited))),
                Some(Arc::new(Waker::new()?)),
            ),
            Some(Backend::Etcd) => (CensusSource::Consistent(Arc::default()), None),
        };
        Ok(Cluster {
            stats: Arc::new(Stats::new(settings.as_deref())),
            settings,
            member: Member { id, incarnation },
            inherited,
            census,
            waker,
            joined: None,
        })
    }

    /// Returns the name of the cluster, or `none`.
    pub fn name(&self) -> &str {
        let settings = self.settings.as_ref();
        settings.map_or("none", |settings| &settings.name)
    }

    /// Joins the cluster: publishes the number of `clients` from now on. A server that has just
    /// started waits up to `FIRST_REPLY_TIMEOUT` for the cluster, so that its first answer is right.
    pub fn join(&mut self, clients: Arc<AtomicUsize>) -> Result<(), Error> {
        let Some(settings) = self.settings.clone() else {
            return Ok(());
        };
        let waker = match &self.waker {
            Some(waker) => waker.clone(),
            None => Arc::new(Waker::new()?),
        };
        let node = Arc::new(Node {
            settings,
            member: self.member,
            clients,
            stats: self.stats.clone(),
            mode: Mutex::new(Mode::Publish),
            waker,
        });
        // No wait is needed if the count that the previous process handed over still holds, or if
        // that process did not know a count either.
        let holds = |census: state::InheritedCensus| {
            census.until == Millis(0) || Millis::now() < census.until
        };
        let timeout = match self.inherited.is_some_and(holds) {
            true => Duration::ZERO,
            false => FIRST_REPLY_TIMEOUT,
        };
        // Holds one message once the cluster has replied.
        let (replied, ended) = crossbeam_channel::bounded(1);
        let outage = Outage::new(node.clone(), replied);
        match &self.census {
            CensusSource::Alone => {}
            CensusSource::Available(others) => {
                let heartbeat = Heartbeat::new(node.clone(), others.clone());
                thread::spawn_with("cluster", STACK_SIZE, || heartbeat.run(outage))?;
            }
            CensusSource::Consistent(service) => {
                let is_resumed = self.inherited.is_some();
                let registration = Registration::new(node.clone(), service, is_resumed)?;
                thread::spawn_with("cluster", STACK_SIZE, || registration.run(outage))?;
            }
        }
        // Disconnected or timed out: both end the wait.
        let _ = ended.recv_timeout(timeout);
        self.joined = Some((node, ended));
        Ok(())
    }

    /// Limits how long censuses may take, however many questions the clients have sent: a handover
    /// is about to release the clients.
    pub fn fail_fast(&self) {
        if let CensusSource::Consistent(service) = &self.census {
            service.fail_fast();
        }
    }

    /// Stops publishing the number of clients, so that the next process publishes it instead.
    /// Returns the census to hand over to that process.
    pub fn pause(&self) -> Option<state::InheritedCensus> {
        self.stats.deregister();
        let (node, _) = self.joined.as_ref()?;
        let (others, until) = match &self.census {
            CensusSource::Available(others) => {
                node.set_mode(Mode::Pause);
                others.get()
            }
            // The lease is kept alive until this process ends; the next process gets its own lease.
            _ => Default::default(),
        };
        Some(state::InheritedCensus {
            incarnation: self.member.incarnation,
            others,
            until,
        })
    }

    /// Tells the others that this server and all its clients are gone; waits for that, `LEAVE_TIMEOUT` at
    /// most. Without success, the others count or miss this server until its entry expires.
    pub fn leave(&self) {
        if let Some((node, ended)) = &self.joined {
            self.stats.deregister();
            node.set_mode(Mode::Leave);
            let deadline = Instant::now() + LEAVE_TIMEOUT;
            while ended.recv_deadline(deadline).is_ok() {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use shared::command::Census as _;

    #[test]
    fn a_sum_that_is_too_large_saturates() {
        let known = state::InheritedCensus {
            incarnation: Uuid::nil(),
            others: u64::MAX,
            until: Millis(u64::MAX),
        };
        let census = CensusSource::Available(Arc::new(Others::new(Some(known))));
        assert_eq!(census.clients(5, Nanos::now()), Ok(u64::MAX));
    }
}
