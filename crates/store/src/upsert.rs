//! Upsert: writes the users of a feed in batches. Rows that are as they should be are not touched.

use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::io::Write as _;
use std::time::{Duration, Instant, SystemTime};

use crossbeam_channel::{Receiver, RecvTimeoutError};
use diesel::connection::SimpleConnection as _;
use diesel::sql_types::{BigInt, Bool, Nullable, Text};
use diesel::sqlite::Sqlite;
use diesel::{
    ExecuteCopyFromDsl as _, PgConnection, QueryableByName, RunQueryDsl as _, SqliteConnection,
    sql_query,
};

use crate::connection::{Backend, Connection};
use crate::error::{ErrorKind, StoreError};
use crate::feed::FeedUser;
use crate::lease::{self, Fence};

/// Number of users that are written by one statement to SQLite, and handed over together.
const BLOCK: usize = 1000;

/// Number of bytes after which such a block is full, however few users it has.
const LARGEST_BLOCK: usize = 256 * 1024;

/// Number of users of a batch, which is one transaction. To compare a batch with the table,
/// PostgreSQL reads all of that.
const BATCH: usize = 100_000;

/// How long a batch waits for the next users of a slow feed.
const NEXT_BLOCK_TIMEOUT: Duration = Duration::from_secs(1);

/// How long a batch collects users at most.
const LONGEST_BATCH: Duration = Duration::from_secs(20);

/// How long each statement of a batch may take.
const STATEMENT_TIMEOUT: Duration = Duration::from_secs(60);

/// How long a batch may take in all.
pub const BATCH_TIMEOUT: Duration = Duration::from_secs(180);

/// Some users of a feed, as the database takes them.
pub enum Block {
    /// Rows of PostgreSQL's COPY, and how many.
    Copy(Vec<u8>, usize),
    /// The users, and the number of their bytes.
    Users(Vec<Owned>, usize),
}

/// A user of a feed.
pub struct Owned {
    id: String,
    name: Option<String>,
    email: Option<String>,
    members: String,
}

/// What a batch has done.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// Users that the batch had.
    pub users: u64,
    /// Those that were inserted.
    pub inserted: u64,
    /// Those that were changed.
    pub updated: u64,
}

impl Block {
    /// Returns an empty block for a backend.
    pub fn new(is_postgres: bool) -> Self {
        match is_postgres {
            true => Block::Copy(Vec::with_capacity(BLOCK * 160), 0),
            false => Block::Users(Vec::with_capacity(BLOCK), 0),
        }
    }

    /// Adds the user at this place of the feed.
    pub fn push(&mut self, place: u64, user: &FeedUser<'_>) {
        match self {
            Block::Copy(rows, count) => {
                *count += 1;
                // Writing into a Vec can't fail.
                let _ = write!(rows, "{place}\t");
                push_text(Some(&user.id), b'\t', rows);
                push_text(user.name.as_deref(), b'\t', rows);
                push_text(user.email.as_deref(), b'\t', rows);
                push_text(Some(&user.members), b'\n', rows);
            }
            Block::Users(users, bytes) => {
                let texts = [Some(&user.id), user.name.as_ref(), user.email.as_ref()];
                let lengths = texts.into_iter().flatten().map(|text| text.len());
                *bytes += lengths.sum::<usize>() + user.members.len();
                users.push(Owned {
                    id: user.id.to_string(),
                    name: user.name.as_deref().map(str::to_string),
                    email: user.email.as_deref().map(str::to_string),
                    members: user.members.clone(),
                });
            }
        }
    }

    /// Returns whether it has no users.
    pub fn is_empty(&self) -> bool {
        self.size().0 == 0
    }

    /// Returns whether it is to be written before another user is added.
    pub fn is_full(&self) -> bool {
        let (users, bytes) = self.size();
        users >= BLOCK || bytes >= LARGEST_BLOCK
    }

    /// Returns the number of its users and of their bytes.
    fn size(&self) -> (usize, usize) {
        match self {
            Block::Copy(rows, count) => (*count, rows.len()),
            Block::Users(users, bytes) => (users.len(), *bytes),
        }
    }
}

/// Appends a text in the format of COPY.
fn push_text(text: Option<&str>, end: u8, to: &mut Vec<u8>) {
    match text {
        None => to.extend_from_slice(b"\\N"),
        Some(text) => {
            let mut rest = text.as_bytes();
            while let Some(at) = rest
                .iter()
                .position(|b| matches!(b, b'\\' | b'\t' | b'\n' | b'\r'))
            {
                to.extend_from_slice(&rest[..at]);
                to.push(b'\\');
                to.push(match rest[at] {
                    b'\t' => b't',
                    b'\n' => b'n',
                    b'\r' => b'r',
                    other => other,
                });
                rest = &rest[at + 1..];
            }
            to.extend_from_slice(rest);
        }
    }
    to.push(end);
}

/// Returns the time in microseconds since 1970, later than `last`.
pub fn now(last: i64) -> i64 {
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
    let now = now.map_or(0, |now| i64::try_from(now.as_micros()).unwrap_or(i64::MAX));
    now.max(last + 1)
}

/// Writes a batch: `first`, and what follows it soon. `now` is the time of what is changed, which is
/// later than it was before, also if another server's clock was ahead.
pub fn write_batch(
    connection: &mut Connection,
    first: Block,
    blocks: &Receiver<Block>,
    now: i64,
    fence: Option<&Fence>,
) -> Result<Counts, StoreError> {
    connection.write(STATEMENT_TIMEOUT, |backend| {
        let counts = match backend {
            Backend::Postgres(connection) => copy_batch(connection, first, blocks, now)?,
            Backend::Sqlite(connection) => insert_block(connection, first, now)?,
        };
        match fence {
            Some(fence) => fence.renew(backend)?,
            None => lease::begin_generation(backend)?,
        }
        Ok(counts)
    })
}

diesel::table! {
    /// What a batch has, until it ends.
    pulled (place) {
        place -> BigInt,
        id -> Text,
        name -> Nullable<Text>,
        email -> Nullable<Text>,
        members -> Text,
    }
}

/// Numbers of rows.
#[derive(QueryableByName)]
struct Written {
    #[diesel(sql_type = BigInt)]
    inserted: i64,
    #[diesel(sql_type = BigInt)]
    updated: i64,
}

fn copy_batch(
    connection: &mut PgConnection,
    first: Block,
    blocks: &Receiver<Block>,
    now: i64,
) -> Result<Counts, StoreError> {
    // A batch need not outlive a crash before what follows it does: the end of the pull is waited for.
    connection.batch_execute(
        "SET LOCAL synchronous_commit = off; CREATE TEMPORARY TABLE pulled (place bigint NOT NULL, id text COLLATE \"C\" NOT NULL, name text, email text, \
         members text NOT NULL) ON COMMIT DROP",
    )?;
    let (users, first, begun) = (Cell::new(0), RefCell::new(Some(first)), Instant::now());
    let rows = |to: &mut dyn std::io::Write| -> diesel::QueryResult<()> {
        let failed =
            |error: std::io::Error| diesel::result::Error::SerializationError(Box::new(error));
        while users.get() < BATCH {
            let next = match first.take() {
                Some(first) => Ok(first),
                None if begun.elapsed() >= LONGEST_BATCH => break,
                None => blocks.recv_timeout(NEXT_BLOCK_TIMEOUT),
            };
            match next {
                Ok(Block::Copy(rows, count)) => {
                    to.write_all(&rows).map_err(failed)?;
                    users.set(users.get() + count);
                }
                Ok(Block::Users(..)) => {}
                Err(RecvTimeoutError::Timeout | RecvTimeoutError::Disconnected) => break,
            }
        }
        Ok(())
    };
    diesel::copy_from(pulled::table)
        .from_raw_data(pulled::table, rows)
        .execute(connection)?;
    // The planner knows nothing of the table otherwise.
    connection.batch_execute("ANALYZE pulled")?;
    let written: Written = sql_query(
        "WITH written AS (\
         INSERT INTO users AS old (id, name, email, members, created_at, updated_at) \
         SELECT new.id, new.name, new.email, CAST(new.members AS json), $1, $1 \
         FROM (SELECT DISTINCT ON (id) * FROM pulled ORDER BY id, place DESC) new \
         LEFT JOIN users known ON known.id = new.id \
         WHERE known.id IS NULL OR known.name IS DISTINCT FROM new.name OR known.email IS DISTINCT FROM new.email \
         OR CAST(known.members AS text) <> new.members \
         ON CONFLICT (id) DO UPDATE SET name = excluded.name, email = excluded.email, members = excluded.members, \
         updated_at = greatest(excluded.updated_at, old.updated_at + 1) \
         RETURNING old.xmax = 0 AS is_new) \
         SELECT count(*) FILTER (WHERE is_new) AS inserted, count(*) FILTER (WHERE NOT is_new) AS updated FROM written",
    )
    .bind::<BigInt, _>(now)
    .get_result(connection)?;
    Ok(Counts {
        users: users.get() as u64,
        inserted: written.inserted as u64,
        updated: written.updated as u64,
    })
}

/// A row that was written.
#[derive(QueryableByName)]
struct IsNew {
    #[diesel(sql_type = Bool)]
    is_new: bool,
}

fn insert_block(
    connection: &mut SqliteConnection,
    block: Block,
    now: i64,
) -> Result<Counts, StoreError> {
    let Block::Users(all, _) = block else {
        return Err(StoreError::new(
            ErrorKind::Failed,
            "rows for another database",
        ));
    };
    let count = all.len() as u64;
    // The last of the same id counts, as in PostgreSQL.
    let last: HashMap<&str, usize> = all
        .iter()
        .enumerate()
        .map(|(at, user)| (&*user.id, at))
        .collect();
    let users: Vec<&Owned> = all
        .iter()
        .enumerate()
        .filter(|(at, user)| last[&*user.id] == *at)
        .map(|(_, user)| user)
        .collect();
    let rows = vec!["(?,?,?,?,?,?)"; users.len()].join(",");
    let mut statement = sql_query(format!(
        "INSERT INTO users (id, name, email, members, created_at, updated_at) VALUES {rows} \
         ON CONFLICT (id) DO UPDATE SET name = excluded.name, email = excluded.email, members = excluded.members, \
         updated_at = max(excluded.updated_at, users.updated_at + 1) \
         WHERE users.name IS NOT excluded.name OR users.email IS NOT excluded.email OR users.members <> excluded.members \
         RETURNING created_at = updated_at AS is_new"
    ))
    .into_boxed::<Sqlite>();
    for user in users {
        statement = statement
            .bind::<Text, _>(&user.id)
            .bind::<Nullable<Text>, _>(&user.name)
            .bind::<Nullable<Text>, _>(&user.email)
            .bind::<Text, _>(&user.members)
            .bind::<BigInt, _>(now)
            .bind::<BigInt, _>(now);
    }
    let written: Vec<IsNew> = statement.get_results(connection)?;
    let inserted = written.iter().filter(|row| row.is_new).count();
    Ok(Counts {
        users: count,
        inserted: inserted as u64,
        updated: (written.len() - inserted) as u64,
    })
}
