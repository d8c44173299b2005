//! How it goes with the cluster: for the metrics, and in two lines for the log.

use std::fmt;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use log::{info, warn};

use super::settings::{Place, Settings};
use crate::clock::Millis;

/// The most characters of what others say that are repeated.
const LONGEST_QUOTE: usize = 200;

/// What may go wrong with the place where the servers meet, as the metrics call it; in the order of `Kind`.
pub const ERRORS: [&str; 5] = ["unreachable", "late", "denied", "read_only", "refused"];

/// What went wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// There is no connection.
    Unreachable,
    /// It did not answer in time.
    Late,
    /// It does not know this server, or lets it do nothing.
    Denied,
    /// It takes no writes.
    ReadOnly,
    /// It answered an error of another sort.
    Refused,
}

/// What went wrong with the place where the servers meet.
#[derive(Clone, Debug)]
pub struct Trouble {
    /// Its sort.
    pub kind: Kind,
    /// The rest of the story.
    pub what: String,
}

impl Trouble {
    /// This sort of trouble.
    pub fn new(kind: Kind, what: impl Into<String>) -> Self {
        let what = what.into();
        Trouble { kind, what }
    }
}

impl fmt::Display for Trouble {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.what)
    }
}

/// What others say, so that it fits into the log.
pub fn cut(text: &str) -> String {
    let printable = |c: char| if (' '..='~').contains(&c) { c } else { '?' };
    text.chars().take(LONGEST_QUOTE).map(printable).collect()
}

/// How it goes.
#[derive(Debug, Default)]
pub struct Figures {
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
    errors: [AtomicU64; ERRORS.len()],
}

/// The same at one moment.
#[derive(Clone, Debug)]
pub struct Shown {
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
    /// What went wrong how often, in the order of [`ERRORS`].
    pub errors: [u64; ERRORS.len()],
}

impl Figures {
    /// Nothing has happened yet.
    pub fn new(settings: Option<&Settings>) -> Self {
        let cluster = settings.map(|settings| {
            let mode = match settings.place {
                Place::Redis { .. } => "available",
                Place::Etcd => "consistent",
            };
            (mode, settings.name.clone())
        });
        Figures {
            cluster,
            ..Figures::default()
        }
    }

    /// How it is now; nothing without a cluster.
    pub fn show(&self) -> Option<Shown> {
        let (mode, name) = self.cluster.clone()?;
        let get = |number: &AtomicU64| number.load(Ordering::Relaxed);
        let heard = get(&self.heard);
        Some(Shown {
            mode,
            name,
            connected: self.connected.load(Ordering::Relaxed),
            servers: get(&self.servers),
            clients: get(&self.clients),
            age: (heard > 0).then(|| Millis::now().since(Millis(heard)).as_secs_f64()),
            shares_id: self.shares_id.load(Ordering::Relaxed),
            heartbeats: get(&self.heartbeats),
            censuses: [get(&self.answered), get(&self.unavailable)],
            errors: self.errors.each_ref().map(get),
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
    pub fn beat(&self) {
        self.connected.store(true, Ordering::Relaxed);
        self.heartbeats.fetch_add(1, Ordering::Relaxed);
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

/// So long must all be well until an outage is over: one that comes and goes is one.
const QUIET: Duration = Duration::from_secs(5);

struct Course {
    begun: Instant,
    times: u64,
    well: Option<Instant>,
}

/// The time during which this server is cut off from its cluster, for the log.
pub struct Outage<'a> {
    figures: &'a Figures,
    /// What it means for clients.
    meaning: &'static str,
    /// When it began, how often it went wrong since, and since when all is well again.
    since: Option<Course>,
    said: [bool; ERRORS.len()],
}

impl<'a> Outage<'a> {
    /// None yet. It would mean this.
    pub fn new(figures: &'a Figures, meaning: &'static str) -> Self {
        Outage {
            figures,
            meaning,
            since: None,
            said: Default::default(),
        }
    }

    /// How often it went wrong since it began.
    pub fn times(&self) -> u64 {
        self.since.as_ref().map_or(0, |course| course.times)
    }

    /// It goes wrong. Says so in the log if that begins, or if it goes wrong in another way than before.
    pub fn happened(&mut self, trouble: &Trouble) {
        let kind = trouble.kind as usize;
        self.figures.errors[kind].fetch_add(1, Ordering::Relaxed);
        self.figures.connected.store(false, Ordering::Relaxed);
        let course = self.since.get_or_insert_with(|| Course {
            begun: Instant::now(),
            times: 0,
            well: None,
        });
        course.times += 1;
        course.well = None;
        if !std::mem::replace(&mut self.said[kind], true) {
            warn!(reason:% = trouble; "cut off from the cluster: {}", self.meaning);
        }
    }

    /// All is well. Call it at each heartbeat: when that has lasted, the log says so.
    pub fn well(&mut self) {
        let Some(course) = &mut self.since else {
            return;
        };
        let well = *course.well.get_or_insert_with(Instant::now);
        if well.elapsed() < QUIET {
            return;
        }
        let (times, seconds) = (course.times, (well - course.begun).as_secs_f64());
        info!(times, seconds = (seconds * 10.0).round() / 10.0; "over: cut off from the cluster");
        self.since = None;
        self.said = Default::default();
    }
}
