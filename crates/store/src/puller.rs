//! Puller: keeps the users as a feed has them. Of all servers of a database one pulls, the holder of
//! the lease.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, RecvTimeoutError, Sender, bounded};
use log::{info, warn};
use uuid::Uuid;

use crate::error::{ErrorKind, StoreError};
use crate::feed::Refused;
use crate::feed::http::{Answer, HttpFeed};
use crate::health::jitter;
use crate::lease::{self, Fence, STATEMENT_TIMEOUT, Status, TTL, Validators};
use crate::pool::Store;
use crate::pull::{Progress, PullError};
use shared::sync::ignore_poison;

/// Interval at which the lease is renewed, or looked at.
const RENEWAL: Duration = Duration::from_secs(1);

/// How long the database has for that.
const RENEWAL_TIMEOUT: Duration = Duration::from_secs(2);

/// Interval at which the puller looks whether a pull is due.
const LOOK: Duration = Duration::from_millis(200);

/// The first pause after a pull that failed; it doubles up to the interval.
const FIRST_PAUSE: Duration = Duration::from_secs(1);

/// How long the end of this server waits to give the lease up, which may need a new connection. It
/// expires by itself, but later.
const RELEASE_TIMEOUT: Duration = Duration::from_secs(1);

/// What is pulled, and how often.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PullerSettings {
    /// The URL of the feed.
    pub url: String,
    /// Time between two pulls.
    pub interval: Duration,
    /// Time after which a server that sends nothing is given up.
    pub idle_timeout: Duration,
}

/// Counters of the pulls of this server.
#[derive(Default)]
pub struct PullStats {
    /// Time between two pulls, as it is set.
    pub interval: Duration,
    /// Pulls by outcome: complete, not modified, failed.
    pub pulls: [AtomicU64; 3],
    /// Values that were read, and what became of them: inserted, updated, unchanged, refused.
    pub rows: [AtomicU64; 4],
    /// Milliseconds that the last complete pull took.
    pub duration: AtomicU64,
    /// Whether this server has the lease.
    pub leads: AtomicBool,
    /// What the database said last, and when.
    last: Mutex<Option<(Status, Instant)>>,
    /// When this server completed a pull.
    completed: Mutex<Option<Instant>>,
}

impl PullStats {
    /// Names of the outcomes of a pull.
    pub const OUTCOMES: [&str; 3] = ["complete", "not_modified", "failed"];

    /// Names of what becomes of a value.
    pub const ROWS: [&str; 4] = ["inserted", "updated", "unchanged", "refused"];

    /// Returns those of a puller with this interval that has not pulled yet.
    pub fn new(interval: Duration) -> Self {
        PullStats {
            interval,
            ..PullStats::default()
        }
    }

    /// Returns the time since the last complete pull of any server, if there was one.
    pub fn age(&self) -> Option<Duration> {
        let last = ignore_poison(self.last.lock());
        let of_any =
            { last.as_ref() }.and_then(|(status, read_at)| Some(status.age? + read_at.elapsed()));
        let completed = *ignore_poison(self.completed.lock());
        let own = completed.map(|completed| completed.elapsed());
        [of_any, own].into_iter().flatten().min()
    }
}

/// The puller of a server. Dropped, it stops, and gives the lease up.
pub struct Puller {
    shared: Arc<Shared>,
    /// Disconnects when the threads are to end.
    stop: Option<Sender<()>>,
    /// Disconnects when the lease is given up.
    given_up: Receiver<()>,
}

struct Shared {
    store: Store,
    settings: PullerSettings,
    /// Name of this puller among all of the database. It is new at each start, so that nobody takes
    /// what another has begun for its own.
    holder: String,
    feed: HttpFeed,
    stats: Arc<PullStats>,
    /// When a batch has last renewed the lease.
    renewed: Arc<Mutex<Option<Instant>>>,
    /// How many values the last pull refused, and the first of them.
    refused: Mutex<(u64, Vec<Refused>)>,
    /// The pull that goes on.
    current: Mutex<Option<Arc<Progress>>>,
    stopped: AtomicBool,
}

impl Puller {
    /// Starts it.
    ///
    /// # Errors
    ///
    /// If there are no threads for it.
    pub fn start(
        store: Store,
        settings: PullerSettings,
        stats: Arc<PullStats>,
    ) -> std::io::Result<Self> {
        let shared = Arc::new(Shared {
            feed: HttpFeed::new(&settings.url, settings.idle_timeout),
            holder: Uuid::new_v4().hyphenated().to_string(),
            store,
            settings,
            stats,
            renewed: Arc::default(),
            refused: Mutex::default(),
            current: Mutex::default(),
            stopped: AtomicBool::new(false),
        });
        let (stop, stopped) = bounded(0);
        let (leader, until) = (shared.clone(), stopped.clone());
        let (gives_up, given_up) = bounded(0);
        let lease = thread::Builder::new().name("lease".to_string());
        lease.spawn(move || {
            leader.hold_lease(&until);
            leader.give_lease_up();
            drop(gives_up);
        })?;
        let worker = shared.clone();
        let puller = thread::Builder::new().name("puller".to_string());
        puller.spawn(move || worker.pull_when_due(&stopped))?;
        Ok(Puller {
            shared,
            stop: Some(stop),
            given_up,
        })
    }
}

impl Drop for Puller {
    fn drop(&mut self) {
        let shared = &self.shared;
        shared.stopped.store(true, Ordering::Relaxed);
        if let Some(current) = &*ignore_poison(shared.current.lock()) {
            current.stop.store(true, Ordering::Relaxed);
        }
        shared.feed.shut_down();
        self.stop = None;
        // If it takes longer, the lease expires soon.
        let _ = self.given_up.recv_timeout(RELEASE_TIMEOUT);
    }
}

impl Shared {
    /// Renews the lease, or sees whether it is free.
    fn hold_lease(&self, stopped: &Receiver<()>) {
        loop {
            // SQLite has one writer at a time, whose batches follow each other: they renew the lease.
            while self.is_just_renewed() {
                match stopped.recv_timeout(RENEWAL) {
                    Err(RecvTimeoutError::Timeout) => {}
                    _ => return,
                }
            }
            let holder = self.holder.clone();
            let asked = Instant::now();
            let status = self.store.run(asked + RENEWAL_TIMEOUT, move |connection| {
                lease::renew(connection, &holder)
            });
            // The log of the store has its errors.
            let led = self.stats.leads.load(Ordering::Relaxed);
            let leads = match status {
                Ok(status) => {
                    let leads = status.term.is_some();
                    *ignore_poison(self.stats.last.lock()) = Some((status, asked));
                    leads
                }
                Err(_) => led && self.fence().is_some(),
            };
            if leads != led && !self.stopped.load(Ordering::Relaxed) {
                self.stats.leads.store(leads, Ordering::Relaxed);
                match leads {
                    true => info!("this server pulls the users"),
                    false => info!("another server may pull the users"),
                }
            }
            match stopped.recv_timeout(RENEWAL) {
                Err(RecvTimeoutError::Timeout) => {}
                _ => return,
            }
        }
    }

    /// Gives the lease up, so that another server takes it at once. The thread that renews it does
    /// so: a renewal that is still on its way would take it again.
    fn give_lease_up(&self) {
        if self.stats.leads.swap(false, Ordering::Relaxed) {
            let holder = self.holder.clone();
            // Otherwise it expires soon.
            let _ = self
                .store
                .run(Instant::now() + RELEASE_TIMEOUT, move |connection| {
                    lease::release(connection, &holder)
                });
        }
    }

    /// Returns the fence of a pull that begins now, if the lease is this server's.
    fn fence(&self) -> Option<Fence> {
        let last = ignore_poison(self.stats.last.lock());
        let (status, asked) = last.as_ref()?;
        let term = status.term?;
        let renewed = *ignore_poison(self.renewed.lock());
        let renewed = renewed.map_or(*asked, |renewed| renewed.max(*asked));
        (renewed.elapsed() < TTL).then(|| Fence {
            holder: self.holder.clone(),
            term,
            renewed: self.renewed.clone(),
        })
    }

    fn is_just_renewed(&self) -> bool {
        let renewed = *ignore_poison(self.renewed.lock());
        renewed.is_some_and(|renewed| renewed.elapsed() < RENEWAL)
    }

    fn pull_when_due(&self, stopped: &Receiver<()>) {
        let mut failures = Failures::default();
        while let Err(RecvTimeoutError::Timeout) = stopped.recv_timeout(LOOK) {
            let Some(fence) = self.fence() else {
                continue;
            };
            // After a pull that broke off, or of another feed, only the pauses of failures count.
            let is_recent = |age| age < self.settings.interval;
            let is_early = self.is_of_this_feed() && self.stats.age().is_some_and(is_recent);
            if is_early || failures.is_early() {
                continue;
            }
            match self.pull(&fence) {
                _ if self.stopped.load(Ordering::Relaxed) => return,
                Ok(()) => failures.end(),
                Err(PullError::Store(error)) if error.kind == ErrorKind::Deposed => {}
                Err(error) => {
                    self.stats.pulls[2].fetch_add(1, Ordering::Relaxed);
                    failures.record(&error, self.settings.interval);
                }
            }
        }
    }

    /// Returns whether the last complete pull was of this feed, and nothing has changed since.
    fn is_of_this_feed(&self) -> bool {
        let last = ignore_poison(self.stats.last.lock());
        let feed = last
            .as_ref()
            .and_then(|(status, _)| status.validators.feed.as_deref());
        feed == Some(&*self.settings.url)
    }

    fn pull(&self, fence: &Fence) -> Result<(), PullError> {
        let begun = Instant::now();
        let (status, has_users) = self.status().map_err(PullError::Store)?;
        let (has_validators, generation) = (
            status.validators != Validators::default(),
            status.generation,
        );
        let known = if has_users {
            status.validators
        } else {
            Validators::default()
        };
        let failed = |error: std::io::Error| PullError::Feed(error.to_string());
        let (validators, outcome) = match self.feed.get(&known).map_err(failed)? {
            Answer::NotModified => (known, 1),
            Answer::Pages(pages, validators) => {
                if has_validators {
                    self.forget_validators(fence).map_err(PullError::Store)?;
                }
                let progress = Arc::new(Progress::default());
                *ignore_poison(self.current.lock()) = Some(progress.clone());
                if self.stopped.load(Ordering::Relaxed) {
                    return Err(PullError::Stopped);
                }
                let result = self.store.pull(pages, Some(fence), &progress);
                *ignore_poison(self.current.lock()) = None;
                self.count(&progress, begun.elapsed());
                result?;
                let millis = u64::try_from(begun.elapsed().as_millis());
                self.stats
                    .duration
                    .store(millis.unwrap_or(u64::MAX), Ordering::Relaxed);
                (validators, 0)
            }
        };
        let fence = fence.clone();
        let completed = validators.clone();
        let complete = self
            .store
            .run(Instant::now() + RENEWAL_TIMEOUT, move |connection| {
                connection.write(STATEMENT_TIMEOUT, |backend| {
                    fence.complete(backend, &completed, generation)
                })
            });
        complete.map_err(PullError::Store)?;
        self.stats.pulls[outcome].fetch_add(1, Ordering::Relaxed);
        if let Some((status, _)) = &mut *ignore_poison(self.stats.last.lock()) {
            status.validators = validators;
        }
        // The lease is not read again so soon.
        *ignore_poison(self.stats.completed.lock()) = Some(Instant::now());
        Ok(())
    }

    /// Returns what the database says of the lease and the last pull, and whether it has users.
    fn status(&self) -> Result<(Status, bool), StoreError> {
        let holder = self.holder.clone();
        let deadline = Instant::now() + RENEWAL_TIMEOUT;
        self.store.run(deadline, move |connection| {
            connection.read(STATEMENT_TIMEOUT, |backend| {
                let status = lease::status(backend, &holder)?;
                Ok((status, crate::users::is_any(backend)?))
            })
        })
    }

    /// Forgets the validators before users change: if the pull breaks off, the table is as no version of
    /// the feed is.
    fn forget_validators(&self, fence: &Fence) -> Result<(), StoreError> {
        let fence = fence.clone();
        self.store
            .run(Instant::now() + RENEWAL_TIMEOUT, move |connection| {
                connection.write(STATEMENT_TIMEOUT, |backend| {
                    fence.forget_validators(backend)
                })
            })?;
        if let Some((status, _)) = &mut *ignore_poison(self.stats.last.lock()) {
            status.validators = Validators::default();
        }
        Ok(())
    }

    /// Counts what a pull has done, and logs it if that is news.
    fn count(&self, progress: &Progress, time: Duration) {
        let load = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        let rows = [
            load(&progress.inserted),
            load(&progress.updated),
            progress.unchanged(),
            load(&progress.refused),
        ];
        for (total, count) in self.stats.rows.iter().zip(rows) {
            total.fetch_add(count, Ordering::Relaxed);
        }
        let [inserted, updated, unchanged, refused] = rows;
        // The same values are refused at each pull until the feed is mended, which is said once.
        let named = ignore_poison(progress.named.lock()).clone();
        let mut known = ignore_poison(self.refused.lock());
        let is_news = *known != (refused, named.clone());
        if inserted + updated > 0 || is_news {
            let seconds = (time.as_secs_f64() * 10.0).round() / 10.0;
            info!(inserted, updated, unchanged, refused, seconds; "users were pulled");
        }
        if is_news {
            for refused in &named {
                warn!(why:% = refused; "a user of the feed is skipped");
            }
            *known = (refused, named);
        }
    }
}

/// Pulls that failed one after the other.
#[derive(Default)]
struct Failures {
    count: u32,
    since: Option<Instant>,
    until: Option<Instant>,
}

impl Failures {
    fn is_early(&self) -> bool {
        self.until.is_some_and(|until| Instant::now() < until)
    }

    /// Records a failure, which the log says if it is the first.
    fn record(&mut self, error: &PullError, interval: Duration) {
        if self.count == 0 {
            warn!(reason:% = error; "the users can't be pulled");
        }
        let now = Instant::now();
        let pause = FIRST_PAUSE * (1 << self.count.min(16));
        self.count += 1;
        self.since.get_or_insert(now);
        let pause = pause.min(interval.max(FIRST_PAUSE));
        self.until = Some(now + pause.mul_f64(0.5 + jitter() / 2.0));
    }

    fn end(&mut self) {
        let Failures { count, since, .. } = std::mem::take(self);
        if let Some(since) = since {
            let seconds = (since.elapsed().as_secs_f64() * 10.0).round() / 10.0;
            info!(times = count, seconds; "over: the users can't be pulled");
        }
    }
}
