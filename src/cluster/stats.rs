//! State of the cluster, for the metrics.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use log::{info, warn};

use super::error::ErrorKind;
use super::settings::{Backend, Settings};
use shared::clock::Millis;

/// State of the cluster, shared by its threads.
#[derive(Debug, Default)]
pub struct Stats {
    /// Mode and name of the cluster; `None` without a cluster.
    cluster: Option<(&'static str, String)>,
    connected: AtomicBool,
    servers: AtomicU64,
    clients: AtomicU64,
    /// When a total was last received, in [`Millis`]; 0 if never.
    heard: AtomicU64,
    shares_id: AtomicBool,
    withdrawn: AtomicBool,
    heartbeats: AtomicU64,
    answered: AtomicU64,
    unavailable: AtomicU64,
    /// Number of errors, indexed by [`ErrorKind`].
    errors: [AtomicU64; ErrorKind::ALL.len()],
}

/// Snapshot of [`Stats`].
#[derive(Clone, Debug)]
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
    /// Age of that report in seconds; `None` if there has been none.
    pub age: Option<f64>,
    /// Whether another server has the same id.
    pub shares_id: bool,
    /// Number of heartbeats that were answered.
    pub heartbeats: u64,
    /// Number of censuses with an answer, and without one.
    pub censuses: [u64; 2],
    /// Number of errors by name.
    pub errors: [(&'static str, u64); ErrorKind::ALL.len()],
}

impl Stats {
    /// Creates the state before anything has happened.
    pub fn new(settings: Option<&Settings>) -> Self {
        let cluster = settings.map(|settings| {
            let mode = match settings.backend {
                Backend::Redis { .. } => "available",
                Backend::Etcd => "consistent",
            };
            (mode, settings.name.clone())
        });
        Stats {
            cluster,
            ..Stats::default()
        }
    }

    /// Returns a snapshot; `None` without a cluster.
    pub fn show(&self) -> Option<StatsSnapshot> {
        let (mode, name) = self.cluster.clone()?;
        let get = |number: &AtomicU64| number.load(Ordering::Relaxed);
        let heard = get(&self.heard);
        Some(StatsSnapshot {
            mode,
            name,
            connected: self.connected.load(Ordering::Relaxed),
            servers: get(&self.servers),
            clients: get(&self.clients),
            age: (heard > 0).then(|| Millis::now().since(Millis(heard)).as_secs_f64()),
            shares_id: self.shares_id.load(Ordering::Relaxed),
            heartbeats: get(&self.heartbeats),
            censuses: [get(&self.answered), get(&self.unavailable)],
            errors: ErrorKind::ALL.map(|kind| (kind.name(), get(&self.errors[kind as usize]))),
        })
    }

    /// Records that the cluster has `servers` servers, with `clients` clients in total.
    pub fn heard(&self, servers: u64, clients: u64) {
        self.servers.store(servers, Ordering::Relaxed);
        self.clients.store(clients, Ordering::Relaxed);
        self.heard.store(Millis::now().0, Ordering::Relaxed);
    }

    /// Records that the cluster has `servers` servers.
    pub fn seen(&self, servers: u64) {
        self.servers.store(servers, Ordering::Relaxed);
    }

    /// Records that this server no longer reports its clients: they are gone, or the next process
    /// has taken them over.
    pub fn withdraw(&self) {
        self.withdrawn.store(true, Ordering::SeqCst);
    }

    /// Returns whether this server no longer reports its clients.
    pub fn is_withdrawn(&self) -> bool {
        self.withdrawn.load(Ordering::SeqCst)
    }

    /// Counts a heartbeat that was answered.
    pub fn publish(&self) {
        self.connected.store(true, Ordering::Relaxed);
        self.heartbeats.fetch_add(1, Ordering::Relaxed);
    }

    /// Counts an error of the cluster and records that this server is disconnected.
    pub fn cut_off(&self, why: ErrorKind) {
        self.errors[why as usize].fetch_add(1, Ordering::Relaxed);
        self.connected.store(false, Ordering::Relaxed);
    }

    /// Counts a census, with or without an answer.
    pub fn census(&self, answered: bool) {
        let count = if answered {
            &self.answered
        } else {
            &self.unavailable
        };
        count.fetch_add(1, Ordering::Relaxed);
    }

    /// Records whether another server has the same id. Logs when that begins and when it ends.
    pub fn shares_id(&self, shares: bool, id: &uuid::Uuid) {
        if self.shares_id.swap(shares, Ordering::Relaxed) == shares {
            return;
        }
        if shares {
            warn!(id:%; "another server of the cluster has the same id: WHERE is not unique, give each its own --server-id or state directory");
        } else {
            info!(id:%; "over: another server of the cluster has the same id");
        }
    }
}
