//! How it goes with the cluster, for the metrics.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use log::{info, warn};

use super::error::ErrorKind;
use super::settings::{Backend, Settings};
use crate::clock::Millis;

/// How it goes.
#[derive(Debug, Default)]
pub struct Stats {
    /// Nothing without a cluster.
    cluster: Option<(&'static str, String)>,
    connected: AtomicBool,
    servers: AtomicU64,
    clients: AtomicU64,
    /// When the place was heard last, in [`Millis`]; 0 is never.
    heard: AtomicU64,
    shares_id: AtomicBool,
    withdrawn: AtomicBool,
    heartbeats: AtomicU64,
    answered: AtomicU64,
    unavailable: AtomicU64,
    /// The place of each [`ErrorKind`] is its number.
    errors: [AtomicU64; ErrorKind::ALL.len()],
}

/// The same at one moment.
#[derive(Clone, Debug)]
pub struct StatsSnapshot {
    /// `available` or `consistent`.
    pub mode: &'static str,
    /// The name of the cluster.
    pub name: String,
    /// Whether this server is part of it now.
    pub connected: bool,
    /// How many servers there were when it was heard last.
    pub servers: u64,
    /// How many clients they had.
    pub clients: u64,
    /// How long ago that was, in seconds; nothing if it never was.
    pub age: Option<f64>,
    /// Whether another server has the same id.
    pub shares_id: bool,
    /// Heartbeats that were answered.
    pub heartbeats: u64,
    /// Censuses with an answer, and without.
    pub censuses: [u64; 2],
    /// What went wrong how often.
    pub errors: [(&'static str, u64); ErrorKind::ALL.len()],
}

impl Stats {
    /// Nothing has happened yet.
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

    /// How it is now; nothing without a cluster.
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

    /// So many servers had so many clients just now.
    pub fn heard(&self, servers: u64, clients: u64) {
        self.servers.store(servers, Ordering::Relaxed);
        self.clients.store(clients, Ordering::Relaxed);
        self.heard.store(Millis::now().0, Ordering::Relaxed);
    }

    /// There are so many servers.
    pub fn seen(&self, servers: u64) {
        self.servers.store(servers, Ordering::Relaxed);
    }

    /// This server speaks no more for its clients, who are gone or go on elsewhere.
    pub fn withdraw(&self) {
        self.withdrawn.store(true, Ordering::SeqCst);
    }

    /// Whether it speaks no more for its clients.
    pub fn is_withdrawn(&self) -> bool {
        self.withdrawn.load(Ordering::SeqCst)
    }

    /// A heartbeat was answered.
    pub fn publish(&self) {
        self.connected.store(true, Ordering::Relaxed);
        self.heartbeats.fetch_add(1, Ordering::Relaxed);
    }

    /// This server is cut off from the others.
    pub fn cut_off(&self, why: ErrorKind) {
        self.errors[why as usize].fetch_add(1, Ordering::Relaxed);
        self.connected.store(false, Ordering::Relaxed);
    }

    /// A census had an answer, or none.
    pub fn census(&self, answered: bool) {
        let count = if answered {
            &self.answered
        } else {
            &self.unavailable
        };
        count.fetch_add(1, Ordering::Relaxed);
    }

    /// Whether another server was seen to have the same id. Says so in the log when it begins and when it ends.
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
