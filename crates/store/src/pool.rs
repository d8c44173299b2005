//! Pool: a few threads, each with a connection, do what others wait for.
//!
//! No caller waits longer than it says. A thread whose database is stopped is interrupted, and a
//! database that is away is tried again after a pause, by one thread, while everybody else is told so
//! at once.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, RecvTimeoutError, Sender, after, bounded, never, select};
use libpq::Handle;
use log::warn;

use crate::connection::{Connection, SqliteFile};
use crate::error::{ErrorKind, StoreError};
use crate::health::Health;
use crate::location::{Location, Secrets};
use crate::puller::PullStats;
use crate::ticket::Ticket;
use shared::sync::ignore_poison;

/// How long an attempt may take to see whether the store answers.
const PROBE_TIMEOUT: Duration = Duration::from_secs(3);

/// Time after which a database that says nothing is taken for stopped: it has ended a statement by then.
const SLOW: Duration = Duration::from_secs(2);

/// Interval of the attempts if the store is watched.
const WATCH_INTERVAL: Duration = Duration::from_secs(1);

/// The users in a database.
#[derive(Clone)]
pub struct Store {
    pub(crate) shared: Arc<Shared>,
    jobs: Sender<Job>,
    /// The pulls that keep the users as a feed has them.
    pub(crate) pulls: Option<Arc<PullStats>>,
    /// Disconnects when the store is dropped.
    _alive: Sender<()>,
}

/// Settings of a store.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Settings {
    /// Where it is.
    pub location: Location,
    /// The files with what is secret.
    pub secrets: Secrets,
    /// Largest number of connections.
    pub connections: usize,
    /// Largest number of streams, which have a connection each.
    pub streams: usize,
    /// The longest time of a stream.
    pub stream_timeout: Duration,
    /// Whether an outage is to be noticed although nobody asks: the store is asked each second.
    pub is_watched: bool,
}

/// What the threads share.
pub(crate) struct Shared {
    pub location: Location,
    pub secrets: Secrets,
    pub streams: usize,
    pub stream_timeout: Duration,
    pub health: Health,
    /// The file of SQLite that was opened last.
    file: Mutex<Option<SqliteFile>>,
}

impl Shared {
    /// Opens a connection, and applies the migrations that are missing.
    pub fn connect(&self) -> Result<Connection, StoreError> {
        let mut connection = Connection::open(&self.location, &self.secrets)?;
        connection.migrate()?;
        let last = std::mem::replace(
            &mut *ignore_poison(self.file.lock()),
            connection.file.clone(),
        );
        if last.is_some() && last != connection.file {
            warn!(store = self.location.name(); "the file of the store was removed or replaced: the new one is used");
        }
        Ok(connection)
    }
}

/// Does something by a connection, or takes note of why there is none.
type Work = dyn FnMut(Result<&mut Connection, StoreError>) -> Result<(), StoreError> + Send;

/// What a thread is to do.
struct Job {
    ticket: Arc<Ticket>,
    /// Does it, or takes note of why it can't be done.
    work: Box<Work>,
}

impl Store {
    /// Opens the store. Each connection is made, and the schema migrated, when it is needed.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::Failed`] if there is no thread for it.
    pub fn open(settings: Settings) -> Result<Self, StoreError> {
        let (connections, is_watched) = (settings.connections, settings.is_watched);
        // Whoever waits longer than this queue is better off with an error.
        let (jobs, waiting) = bounded(connections * 16);
        let (begins, outages) = bounded(1);
        let shared = Arc::new(Shared {
            location: settings.location,
            secrets: settings.secrets,
            streams: settings.streams,
            stream_timeout: settings.stream_timeout,
            health: Health::new(begins),
            file: Mutex::default(),
        });
        for _ in 0..connections {
            let thread = Thread {
                shared: shared.clone(),
                jobs: waiting.clone(),
                connection: None,
                handle: Handle::default(),
            };
            spawn("store", move || thread.run())?;
        }
        let (alive, dropped) = bounded(0);
        let store = Store {
            shared,
            jobs,
            pulls: None,
            _alive: alive,
        };
        let (shared, jobs) = (store.shared.clone(), store.jobs.clone());
        spawn("store-probe", move || {
            probe(&shared, &jobs, is_watched, &outages, &dropped)
        })?;
        Ok(store)
    }

    /// Returns the same store, whose users have the age that these pulls say.
    #[must_use]
    pub fn fed_by(self, pulls: Option<Arc<PullStats>>) -> Self {
        Store { pulls, ..self }
    }

    /// Waits for an answer of the store.
    ///
    /// # Errors
    ///
    /// If there is none by the deadline, or [`ErrorKind::Newer`].
    pub fn wait(&self, deadline: Instant) -> Result<(), StoreError> {
        self.run(deadline, |connection| connection.ping())
    }

    /// Looks whether the schema is one that this program knows, and changes nothing.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::Newer`] if it is not; others if the store does not answer within this time.
    pub fn check(settings: &Settings, patience: Duration) -> Result<(), StoreError> {
        let Settings {
            location, secrets, ..
        } = settings.clone();
        if matches!(&location, Location::Sqlite(path) if !path.exists()) {
            // It would be created.
            return Ok(());
        }
        let (reply, replied) = bounded(1);
        // Left behind if the store does not answer.
        spawn("store", move || {
            let connection = Connection::open(&location, &secrets);
            let checked = connection.and_then(|mut connection| connection.is_migrated());
            let _ = reply.send(checked.map(drop));
        })?;
        let late = |_| StoreError::new(ErrorKind::Late, "the database does not answer in time");
        replied.recv_timeout(patience).map_err(late)?
    }

    /// Has a thread of the pool do `work`, and returns what it returns. A connection that was lost
    /// is replaced, once, and the work done again: it must not matter how often it is begun.
    pub fn run<T: Send + 'static>(
        &self,
        deadline: Instant,
        work: impl FnMut(&mut Connection) -> Result<T, StoreError> + Send + 'static,
    ) -> Result<T, StoreError> {
        self.shared.health.check()?;
        submit(&self.shared, &self.jobs, deadline, work)
    }

    /// Returns the counters.
    pub fn stats(&self) -> &crate::health::Stats {
        &self.shared.health.stats
    }

    /// Returns whether the store answers, as far as is known: without requests, an outage is noticed
    /// only if the store is watched.
    pub fn is_up(&self) -> bool {
        self.shared.health.is_up()
    }
}

/// Starts a thread.
fn spawn(name: &str, run: impl FnOnce() + Send + 'static) -> Result<(), StoreError> {
    let thread = thread::Builder::new().name(name.to_string()).spawn(run);
    let failed = |error| format!("no thread for the store: {error}");
    thread
        .map(drop)
        .map_err(|error: std::io::Error| StoreError::new(ErrorKind::Failed, failed(error)))
}

/// Sees from time to time whether a store that failed has come back, and each second whether one that
/// is watched answers, until the store is dropped.
fn probe(
    shared: &Shared,
    jobs: &Sender<Job>,
    is_watched: bool,
    outages: &Receiver<()>,
    dropped: &Receiver<()>,
) {
    let attempt = || {
        // Its error is recorded by the thread that does it, if one does.
        let answer = submit(shared, jobs, Instant::now() + PROBE_TIMEOUT, |connection| {
            connection.read(PROBE_TIMEOUT, crate::users::is_any)
        });
        shared.health.probed(answer.is_ok());
    };
    loop {
        let due = match is_watched {
            true => after(WATCH_INTERVAL),
            false => never(),
        };
        select! {
            recv(outages) -> _ => {}
            recv(due) -> _ => attempt(),
            recv(dropped) -> _ => return,
        }
        while let Some(pause) = shared.health.next_attempt() {
            let pause = match is_watched {
                true => pause.min(WATCH_INTERVAL),
                false => pause,
            };
            select! {
                recv(after(pause)) -> _ => {}
                recv(dropped) -> _ => return,
            }
            attempt();
        }
    }
}

/// Has a thread of the pool do `work`, also if the store has failed.
fn submit<T: Send + 'static>(
    shared: &Shared,
    jobs: &Sender<Job>,
    deadline: Instant,
    mut work: impl FnMut(&mut Connection) -> Result<T, StoreError> + Send + 'static,
) -> Result<T, StoreError> {
    let health = &shared.health;
    let (reply, replied) = bounded(1);
    let ticket = Arc::new(Ticket::default());
    let job = Job {
        ticket: ticket.clone(),
        work: Box::new(move |connection| {
            let result = match connection.and_then(&mut work) {
                Err(error) if error.kind == ErrorKind::Lost => return Err(error),
                result => result,
            };
            let failed = result.as_ref().err().cloned();
            // Nobody waits any more if it fails.
            let _ = reply.send(result);
            failed.map_or(Ok(()), Err)
        }),
    };
    health.stats.waiting.fetch_add(1, Ordering::Relaxed);
    let sent = jobs.send_deadline(job, deadline);
    let counted = |kind, why| {
        let error = StoreError::new(kind, why);
        health.count(&error);
        Err(error)
    };
    let result = match sent.map(|()| replied.recv_deadline(deadline)) {
        Ok(Ok(result)) => result,
        Ok(Err(RecvTimeoutError::Timeout)) => {
            ticket.give_up();
            counted(ErrorKind::Late, "the database does not answer in time")
        }
        Ok(Err(RecvTimeoutError::Disconnected)) => {
            Err(StoreError::new(ErrorKind::Failed, "this server failed"))
        }
        Err(_) => counted(ErrorKind::Busy, "all connections are in use"),
    };
    health.stats.waiting.fetch_sub(1, Ordering::Relaxed);
    result
}

/// A thread of the pool.
struct Thread {
    shared: Arc<Shared>,
    jobs: Receiver<Job>,
    connection: Option<Connection>,
    /// The handle of that connection.
    handle: Handle,
}

impl Thread {
    /// Does what comes, until the store is dropped.
    fn run(mut self) {
        self.handle.adopt();
        while let Ok(job) = self.jobs.recv() {
            self.run_job(job);
        }
    }

    fn run_job(&mut self, mut job: Job) {
        let shared = self.shared.clone();
        let stats = &shared.health.stats;
        // A connection may have been lost since it was last used, which only its next use shows. One
        // that was just made may be cut, too.
        let mut may_try_again = true;
        let begun = Instant::now();
        loop {
            // Connecting may take as long as anything else.
            if !job.ticket.begin(&self.handle) {
                return;
            }
            stats.running.fetch_add(1, Ordering::Relaxed);
            // The panic hook logs a panic.
            let done = catch_unwind(AssertUnwindSafe(|| match self.connect() {
                Ok(connection) => (job.work)(Ok(connection)),
                Err(error) => (job.work)(Err(error.clone())).and(Err(error)),
            }));
            stats.running.fetch_sub(1, Ordering::Relaxed);
            let failed = |_| Err(StoreError::new(ErrorKind::Failed, "this server failed"));
            let done = done.unwrap_or_else(failed);
            let goes_on = job.ticket.pause();
            let Err(error) = done else {
                shared.health.succeeded();
                return;
            };
            // Whatever state it is in.
            if self.connection.take().is_some() {
                stats.connections.fetch_sub(1, Ordering::Relaxed);
            }
            if error.kind == ErrorKind::Deposed {
                // The store is well: another server writes.
                shared.health.count(&error);
                return;
            }
            if error.kind == ErrorKind::Lost && may_try_again && goes_on {
                may_try_again = false;
                continue;
            }
            if error.kind == ErrorKind::Lost && !goes_on && begun.elapsed() < SLOW {
                // It was given up because it had waited for a thread.
                return;
            }
            shared.health.failed(&error);
            if error.kind == ErrorKind::Lost {
                let _ = (job.work)(Err(StoreError::new(ErrorKind::Away, error.why)));
            }
            return;
        }
    }

    /// Returns the connection, a new one if there is none.
    fn connect(&mut self) -> Result<&mut Connection, StoreError> {
        let connections = &self.shared.health.stats.connections;
        let is_current = self.connection.as_ref().map(Connection::is_current);
        if is_current == Some(false) {
            self.connection = None;
            connections.fetch_sub(1, Ordering::Relaxed);
        }
        if self.connection.is_none() {
            self.connection = Some(self.shared.connect()?);
            connections.fetch_add(1, Ordering::Relaxed);
        }
        let none = || StoreError::new(ErrorKind::Away, "there is no connection");
        self.connection.as_mut().ok_or_else(none)
    }
}
