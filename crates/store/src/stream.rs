//! Streams of all users: each has a thread and a connection of its own for as long as its client
//! takes, within a limit.
//!
//! The database sends rows as the client takes them, from one snapshot. A client that is slow holds
//! the snapshot, and with it what PostgreSQL would clean up or SQLite would write back: hence the
//! limit.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::thread;
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, RecvTimeoutError, Sender, TrySendError, bounded, never};
use diesel::connection::DefaultLoadingMode;
use diesel::pg::PgRowByRowLoadingMode;
use diesel::sql_types::Text;
use diesel::{RunQueryDsl as _, sql_query};
use libpq::Handle;
use log::debug;

use crate::connection::Backend;
use crate::error::StoreError;
use crate::pool::Shared;
use crate::users::{COLUMNS, Row};
use shared::command::Unavailable;
use shared::command::user::{Encode, Failure, Part, User, UserStream};

/// Number of bytes that are sent to the client together.
const PART: usize = 32 * 1024;

/// Number of parts that wait for the client.
const PARTS: usize = 4;

/// Time after the end of a stream's time in which the database has to end it.
const GRACE: Duration = Duration::from_secs(1);

/// The client's end of a stream.
struct Stream {
    parts: Receiver<Part>,
    /// The handle of the stream's connection.
    handle: Handle,
    /// When the client must have taken all.
    until: Instant,
}

impl UserStream for Stream {
    fn next(&mut self, wait: Duration) -> Part {
        match self.parts.recv_timeout(wait) {
            Ok(part) => part,
            Err(RecvTimeoutError::Timeout) => {
                if Instant::now() >= self.until + GRACE {
                    self.handle.shut_down();
                }
                Part::Pending
            }
            // It could not say more: no room became free in time.
            Err(RecvTimeoutError::Disconnected) => Part::Failed(Failure::Slow),
        }
    }
}

impl Drop for Stream {
    fn drop(&mut self) {
        // The other end is to find this one gone when what it waits for fails.
        self.parts = never();
        self.handle.shut_down();
    }
}

/// Opens a stream. Fails if there are too many.
pub fn open(
    shared: &Arc<Shared>,
    after: String,
    encode: Encode,
) -> Result<Box<dyn UserStream>, Unavailable> {
    shared.health.check().map_err(|_| Unavailable::Store)?;
    let streams = &shared.health.stats.streams;
    let slot = Slot(shared.clone());
    if streams.fetch_add(1, Ordering::Relaxed) >= shared.streams {
        return Err(Unavailable::Streams);
    }
    let (sender, parts) = bounded(PARTS);
    let (handle, until) = (Handle::default(), Instant::now() + shared.stream_timeout);
    let producer = Producer {
        encode,
        handle: handle.clone(),
        until,
        parts: sender,
        part: Vec::with_capacity(PART),
    };
    let thread = thread::Builder::new().name("stream".to_string());
    let thread = thread.spawn(move || producer.run(&slot.0, &after));
    thread.map_err(|_| Unavailable::Store)?;
    Ok(Box::new(Stream {
        parts,
        handle,
        until,
    }))
}

/// A place among the streams.
struct Slot(Arc<Shared>);

impl Drop for Slot {
    fn drop(&mut self) {
        self.0.health.stats.streams.fetch_sub(1, Ordering::Relaxed);
    }
}

/// The database's end of a stream.
struct Producer {
    encode: Encode,
    handle: Handle,
    /// When the client must have taken all.
    until: Instant,
    parts: Sender<Part>,
    part: Vec<u8>,
}

/// How a stream ends early.
enum Stop {
    /// The client takes no more, or has not in time.
    Client,
    Database(StoreError),
}

impl Producer {
    fn run(mut self, shared: &Shared, after: &str) {
        self.handle.adopt();
        let stats = &shared.health.stats;
        let outcome = match self.send_all(shared, after) {
            Ok(()) => 0,
            Err(Stop::Client) => 1,
            // The database ends a statement at about the same time. A client that is gone has shut
            // the connection down.
            Err(Stop::Database(_)) if Instant::now() >= self.until || self.is_left() => 1,
            Err(Stop::Database(error)) => {
                debug!(reason:% = error; "a stream of users ends early");
                shared.health.failed(&error);
                self.send(Part::Failed(Failure::Unavailable));
                2
            }
        };
        stats.streamed[outcome].fetch_add(1, Ordering::Relaxed);
    }

    fn send_all(&mut self, shared: &Shared, after: &str) -> Result<(), Stop> {
        let mut connection = shared.connect().map_err(Stop::Database)?;
        let limit = self.until.saturating_duration_since(Instant::now());
        let mut taken = true;
        let read = connection.read(limit, |backend| {
            let query = format!("SELECT {COLUMNS} FROM users WHERE id > $1 ORDER BY id");
            let query = sql_query(query).bind::<Text, _>(after);
            macro_rules! take_all {
                ($connection:expr, $mode:ty) => {{
                    let mut rows = query.load_iter::<Row, $mode>($connection)?;
                    taken = self.take(&mut rows)?;
                    if !taken {
                        // Otherwise all that the database still has to say would be read.
                        self.handle.shut_down();
                    }
                }};
            }
            match backend {
                Backend::Postgres(connection) => take_all!(connection, PgRowByRowLoadingMode),
                Backend::Sqlite(connection) => take_all!(connection, DefaultLoadingMode),
            }
            Ok(())
        });
        match (taken, read) {
            (false, _) => Err(Stop::Client),
            (true, Err(error)) => Err(Stop::Database(error)),
            (true, Ok(())) if self.flush() && self.send(Part::End) => Ok(()),
            (true, Ok(())) => Err(Stop::Client),
        }
    }

    /// Sends all rows. Returns whether the client takes them in time.
    fn take(
        &mut self,
        rows: &mut impl Iterator<Item = Result<Row, diesel::result::Error>>,
    ) -> Result<bool, StoreError> {
        for row in rows {
            (self.encode)(&User::from(row?), &mut self.part);
            if self.part.len() >= PART && !self.flush() {
                return Ok(false);
            }
        }
        Ok(true)
    }

    fn flush(&mut self) -> bool {
        let part = std::mem::replace(&mut self.part, Vec::with_capacity(PART + PART / 4));
        part.is_empty() || (Instant::now() < self.until && self.send(Part::Users(part)))
    }

    /// Returns whether nobody takes the users any more.
    fn is_left(&self) -> bool {
        let sent = self.parts.try_send(Part::Pending);
        matches!(sent, Err(TrySendError::Disconnected(_)))
    }

    fn send(&self, part: Part) -> bool {
        self.parts.send_deadline(part, self.until).is_ok()
    }
}
