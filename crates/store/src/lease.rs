//! Lease: one server of all pulls the users, for as long as it renews its row in the database.
//!
//! Time is the database's, so that servers' clocks don't matter. A holder that was taken for dead
//! and lives is stopped by its term: each batch renews the lease last, in its own transaction.

use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use diesel::sql_types::{BigInt, Bool, Double, Nullable, Text};
use diesel::{OptionalExtension as _, QueryableByName, RunQueryDsl as _, sql_query};

use crate::connection::{Backend, Connection};
use crate::error::{ErrorKind, StoreError};
use shared::sync::ignore_poison;

/// The name of the only lease.
const NAME: &str = "users";

/// How long a lease lasts that is not renewed.
pub const TTL: Duration = Duration::from_secs(3);

/// How long a statement about it may take, which is less than anybody waits for it.
pub const STATEMENT_TIMEOUT: Duration = Duration::from_millis(1500);

/// What the database says of the lease and of the last pull.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Status {
    /// The holder's term, if the lease is this server's.
    pub term: Option<i64>,
    /// Time since the last complete pull; `None` if there was none.
    pub age: Option<Duration>,
    /// The validators of the feed at that time.
    pub validators: Validators,
    /// Which one it is of the states between which others than the puller have written users.
    pub generation: i64,
}

/// What a feed said of its version (RFC 9110, section 8.8), and which feed it was.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Validators {
    /// The URL of the feed.
    pub feed: Option<String>,
    /// Its `ETag`.
    pub etag: Option<String>,
    /// Its `Last-Modified`.
    pub last_modified: Option<String>,
}

/// A row of leases.
#[derive(QueryableByName)]
struct Row {
    #[diesel(sql_type = BigInt)]
    term: i64,
    #[diesel(sql_type = Bool)]
    is_mine: bool,
    #[diesel(sql_type = Bool)]
    is_free: bool,
    #[diesel(sql_type = Double)]
    age: f64,
    #[diesel(sql_type = BigInt)]
    generation: i64,
    #[diesel(sql_type = Nullable<Text>)]
    feed: Option<String>,
    #[diesel(sql_type = Nullable<Text>)]
    etag: Option<String>,
    #[diesel(sql_type = Nullable<Text>)]
    last_modified: Option<String>,
}

/// Calls one of Diesel's functions for whichever backend it is.
macro_rules! with_backend {
    ($backend:expr, |$connection:ident| $call:expr) => {
        match $backend {
            Backend::Postgres($connection) => $call,
            Backend::Sqlite($connection) => $call,
        }
    };
}
pub(crate) use with_backend;

/// The clock of the database, in seconds since 1970. Not `now()`: that is the transaction's begin.
fn clock(backend: &Backend) -> &'static str {
    match backend {
        Backend::Postgres(_) => "CAST(extract(epoch FROM clock_timestamp()) AS double precision)",
        Backend::Sqlite(_) => "unixepoch('now', 'subsec')",
    }
}

/// Reads the lease, and takes or renews it for `holder` if it is free or its own.
pub fn renew(connection: &mut Connection, holder: &str) -> Result<Status, StoreError> {
    connection.write(STATEMENT_TIMEOUT, |backend| {
        let Some(row) = read(backend, holder)? else {
            take(backend, holder)?;
            return status(backend, holder);
        };
        // Others only read: each attempt to take it would write.
        if !row.is_mine && !row.is_free {
            return Ok(row.into());
        }
        take(backend, holder)?;
        status(backend, holder)
    })
}

impl From<Row> for Status {
    fn from(row: Row) -> Self {
        Status {
            term: row.is_mine.then_some(row.term),
            age: (row.age < f64::from(u32::MAX)).then(|| Duration::from_secs_f64(row.age.max(0.0))),
            validators: Validators {
                feed: row.feed,
                etag: row.etag,
                last_modified: row.last_modified,
            },
            generation: row.generation,
        }
    }
}

/// Reads the lease.
pub fn status(backend: &mut Backend, holder: &str) -> Result<Status, StoreError> {
    Ok(read(backend, holder)?.map_or_else(Status::default, Status::from))
}

fn read(backend: &mut Backend, holder: &str) -> Result<Option<Row>, StoreError> {
    let now = clock(backend);
    let query = format!(
        "SELECT term, holder = $1 AND until >= {now} AS is_mine, until < {now} AS is_free, \
         CASE WHEN pulled_at > 0 THEN {now} - pulled_at ELSE 1e12 END AS age, generation, feed, etag, last_modified \
         FROM leases WHERE name = $2"
    );
    Ok(with_backend!(backend, |connection| {
        let query = sql_query(query)
            .bind::<Text, _>(holder)
            .bind::<Text, _>(NAME);
        query.get_result(connection).optional()
    })?)
}

fn take(backend: &mut Backend, holder: &str) -> Result<(), StoreError> {
    let (now, term) = (clock(backend), TTL.as_secs_f64());
    let statement = format!(
        "INSERT INTO leases (name, holder, until, term) VALUES ($1, $2, {now} + {term}, 1) \
         ON CONFLICT (name) DO UPDATE SET holder = excluded.holder, until = excluded.until, \
         term = leases.term + CASE WHEN leases.holder = excluded.holder THEN 0 ELSE 1 END \
         WHERE leases.holder = excluded.holder OR leases.until < {now}"
    );
    with_backend!(backend, |connection| {
        let statement = sql_query(statement)
            .bind::<Text, _>(NAME)
            .bind::<Text, _>(holder);
        statement.execute(connection)
    })?;
    Ok(())
}

/// Gives the lease up, if it is `holder`'s: the next server takes it at once.
pub fn release(connection: &mut Connection, holder: &str) -> Result<(), StoreError> {
    connection.write(STATEMENT_TIMEOUT, |backend| {
        let statement = "UPDATE leases SET until = 0 WHERE name = $1 AND holder = $2";
        with_backend!(backend, |connection| {
            let statement = sql_query(statement)
                .bind::<Text, _>(NAME)
                .bind::<Text, _>(holder);
            statement.execute(connection)
        })?;
        Ok(())
    })
}

/// Who may write, in which term.
#[derive(Clone, Debug)]
pub struct Fence {
    /// The holder of the lease.
    pub holder: String,
    /// Its term.
    pub term: i64,
    /// When the fence has last renewed the lease.
    pub renewed: Arc<Mutex<Option<Instant>>>,
}

impl Fence {
    /// Renews the lease as the last statement of a transaction, which fails if it is not the holder's
    /// any more. Nobody takes it until the transaction has ended. One that was given up stays so.
    pub fn renew(&self, backend: &mut Backend) -> Result<(), StoreError> {
        let (now, ttl, asked) = (clock(backend), TTL.as_secs_f64(), Instant::now());
        let statement = format!(
            "UPDATE leases SET until = CASE WHEN until > 0 THEN {now} + {ttl} ELSE until END \
             WHERE name = $1 AND holder = $2 AND term = $3"
        );
        let changed = with_backend!(backend, |connection| {
            let statement = sql_query(statement)
                .bind::<Text, _>(NAME)
                .bind::<Text, _>(&self.holder)
                .bind::<BigInt, _>(self.term);
            statement.execute(connection)
        })?;
        only_one(changed)?;
        *ignore_poison(self.renewed.lock()) = Some(asked);
        Ok(())
    }

    /// Notes that a pull is complete. The validators count unless others have written since this
    /// generation.
    pub fn complete(
        &self,
        backend: &mut Backend,
        validators: &Validators,
        generation: i64,
    ) -> Result<(), StoreError> {
        let now = clock(backend);
        // In the order of the values: to SQLite, $2 is a name, and the second that comes.
        let statement = format!(
            "UPDATE leases SET pulled_at = {now}, feed = $1, \
             etag = CASE WHEN generation = $2 THEN $3 END, last_modified = CASE WHEN generation = $2 THEN $4 END \
             WHERE name = $5 AND holder = $6 AND term = $7"
        );
        let changed = with_backend!(backend, |connection| {
            let statement = sql_query(statement)
                .bind::<Nullable<Text>, _>(&validators.feed)
                .bind::<BigInt, _>(generation)
                .bind::<Nullable<Text>, _>(&validators.etag)
                .bind::<Nullable<Text>, _>(&validators.last_modified)
                .bind::<Text, _>(NAME)
                .bind::<Text, _>(&self.holder)
                .bind::<BigInt, _>(self.term);
            statement.execute(connection)
        })?;
        only_one(changed)
    }

    /// Forgets the validators of the feed.
    pub fn forget_validators(&self, backend: &mut Backend) -> Result<(), StoreError> {
        let statement = "UPDATE leases SET feed = NULL, etag = NULL, last_modified = NULL \
                         WHERE name = $1 AND holder = $2 AND term = $3";
        let changed = with_backend!(backend, |connection| {
            let statement = sql_query(statement)
                .bind::<Text, _>(NAME)
                .bind::<Text, _>(&self.holder)
                .bind::<BigInt, _>(self.term);
            statement.execute(connection)
        })?;
        only_one(changed)
    }
}

/// Raises the generation, whoever has the lease, and forgets the validators: a pull by hand writes
/// users, so the table matches no version of the feed, which must be read again.
pub fn begin_generation(backend: &mut Backend) -> Result<(), StoreError> {
    let statement = "UPDATE leases SET generation = generation + 1, feed = NULL, etag = NULL, \
                     last_modified = NULL WHERE name = $1";
    with_backend!(backend, |connection| {
        let statement = sql_query(statement).bind::<Text, _>(NAME);
        statement.execute(connection)
    })?;
    Ok(())
}

/// Checks that the lease was this server's: its row was changed.
fn only_one(changed: usize) -> Result<(), StoreError> {
    match changed {
        1 => Ok(()),
        _ => Err(deposed()),
    }
}

fn deposed() -> StoreError {
    StoreError::new(ErrorKind::Deposed, "another server has taken over")
}
