//! State of the cluster, for the metrics.

use std::mem;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};

use log::{info, warn};
use uuid::Uuid;

use super::error::ErrorKind;
use super::settings::{Backend, Settings};
use shared::clock::Millis;
use shared::sync::ignore_poison;

/// State of the cluster, shared by its threads.
#[derive(Debug, Default)]
pub struct Stats {
    /// `None` without a cluster.
    state: Mutex<Option<StatsSnapshot>>,
    is_deregistered: AtomicBool,
}

/// Snapshot of [`Stats`].
#[derive(Clone, Debug, Default)]
pub struct StatsSnapshot {
    /// `available` or `consistent`.
    pub mode: &'static str,
    /// Name of the cluster.
    pub name: String,
    /// Whether this server is connected to its cluster.
    pub connected: bool,
    /// Number of servers, as last reported.
    pub servers: u64,
    /// Number of clients of all servers, as last reported.
    pub clients: u64,
    /// When that was reported; `None` if it has not been.
    pub updated: Option<Millis>,
    /// Whether another server has the same id.
    pub shares_id: bool,
    /// Number of heartbeats that were answered.
    pub heartbeats: u64,
    /// Number of censuses with an answer, and without one.
    pub censuses: [u64; 2],
    /// Number of errors, indexed by [`ErrorKind`].
    pub errors: [u64; ErrorKind::NAMES.len()],
}

impl StatsSnapshot {
    /// Returns the age of the number of clients, in seconds.
    pub fn age(&self) -> Option<f64> {
        let updated = self.updated?;
        Some(Millis::now().since(updated).as_secs_f64())
    }
}

impl Stats {
    /// Creates the state before anything has happened.
    pub fn new(settings: Option<&Settings>) -> Self {
        let state = settings.map(|settings| StatsSnapshot {
            mode: match settings.backend {
                Backend::Redis => "available",
                Backend::Etcd => "consistent",
            },
            name: settings.name.clone(),
            ..StatsSnapshot::default()
        });
        Stats {
            state: Mutex::new(state),
            is_deregistered: AtomicBool::new(false),
        }
    }

    /// Returns a snapshot; `None` without a cluster.
    pub fn snapshot(&self) -> Option<StatsSnapshot> {
        ignore_poison(self.state.lock()).clone()
    }

    /// Changes the snapshot, if there is a cluster.
    pub fn update(&self, change: impl FnOnce(&mut StatsSnapshot)) {
        ignore_poison(self.state.lock()).as_mut().map(change);
    }

    /// Records that the cluster has `servers` servers, with `clients` clients in total.
    pub fn set_total(&self, servers: u64, clients: u64) {
        self.update(|state| {
            state.servers = servers;
            state.clients = clients;
            state.updated = Some(Millis::now());
        });
    }

    /// Records that this server no longer reports its clients: they are gone, or the next process
    /// has taken them over.
    pub fn deregister(&self) {
        self.is_deregistered.store(true, Ordering::SeqCst);
    }

    /// Returns whether this server no longer reports its clients.
    pub fn is_deregistered(&self) -> bool {
        self.is_deregistered.load(Ordering::SeqCst)
    }

    /// Records whether another server has the same id. Logs when that begins and when it ends.
    pub fn set_shares_id(&self, shares: bool, id: &Uuid) {
        self.update(|state| match (mem::replace(&mut state.shares_id, shares), shares) {
            (false, true) => warn!(id:%; "another server of the cluster has the same id: WHERE is not unique, give each its own --server-id or state directory"),
            (true, false) => info!(id:%; "over: another server of the cluster has the same id"),
            _ => {}
        });
    }
}
