//! What the threads of the load and whoever started them tell each other.

use std::sync::atomic::{AtomicBool, AtomicU64};
use std::time::{Duration, Instant};

use crate::bench::stats::Stats;
use crate::bench::workload::Workload;
use crate::failure::Failure;

/// What the threads and whoever started them know of each other.
pub struct Shared {
    pub workload: Workload,
    /// What is asked, in words.
    pub request: String,
    /// How many requests each client has on the way.
    pub depth: u32,
    /// How many requests a second are due, of all clients; without it they ask as soon as they are answered.
    pub rate: Option<u32>,
    /// After how long replies begin to count.
    pub warm_up: Duration,
    /// After how many nanoseconds the load ends.
    pub end: AtomicU64,
    /// Whether it ends because the user wants it to.
    pub interrupted: AtomicBool,
    /// How many clients have had their first reply.
    pub served: AtomicU64,
    /// How many right replies there were so far.
    pub answered: AtomicU64,
    /// How many errors.
    pub errors: AtomicU64,
}

/// What a thread says.
pub enum WorkerEvent {
    /// Its clients have had their first reply.
    Gathered,
    /// They all still have their connections.
    Checked,
    /// The server has said this to one of its clients, which was served already or not, because it has no room for all.
    Full { line: String, was_served: bool },
    /// It can't go on.
    Failed(Failure),
    /// What it has counted.
    Done(Box<Stats>),
}

/// What a thread is told.
pub enum Order {
    /// Look whether the clients still have their connections.
    Check,
    /// The load begins at this moment.
    Start(Instant),
}
