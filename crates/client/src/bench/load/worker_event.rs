//! Messages and shared state between the load threads and the main thread.

use std::sync::atomic::{AtomicBool, AtomicU64};
use std::time::{Duration, Instant};

use crate::bench::stats::Stats;
use crate::bench::workload::Workload;
use crate::failure::Failure;

/// State that the load threads share with the main thread.
pub struct Shared {
    pub workload: Workload,
    /// The request, as text.
    pub request: String,
    /// Number of requests that each client keeps in flight.
    pub depth: u32,
    /// Requests per second of all clients together (open loop). Without it clients send when they
    /// are answered.
    pub rate: Option<u32>,
    /// Time after which replies begin to count.
    pub warm_up: Duration,
    /// Time in nanoseconds after which the load ends.
    pub end: AtomicU64,
    /// Whether the user ended it early.
    pub interrupted: AtomicBool,
    /// Number of clients that got their first reply.
    pub served: AtomicU64,
    /// Number of right replies so far.
    pub answered: AtomicU64,
    /// Number of errors so far.
    pub errors: AtomicU64,
}

/// Message of a load thread.
pub enum WorkerEvent {
    /// All its clients got their first reply.
    Gathered,
    /// All its clients are still connected.
    Checked,
    /// The server sent this line to one of its clients, which was served before or not, because it
    /// does not have room for all.
    Full { line: String, was_served: bool },
    /// The thread can't continue.
    Failed(Failure),
    /// The thread's stats.
    Done(Box<Stats>),
}

/// Order to a load thread.
pub enum Order {
    /// Check that all clients are still connected.
    Check,
    /// Start the load at this moment.
    Start(Instant),
}
