//! Users: what the commands ask of the database.

use std::time::{Duration, Instant};

use diesel::sql_types::{BigInt, Nullable, Text};
use diesel::{QueryableByName, RunQueryDsl as _, sql_query};
use log::debug;

use crate::connection::Backend;
use crate::error::StoreError;
use crate::lease::with_backend;
use crate::pool::Store;
use crate::stream;
use shared::command::Unavailable;
use shared::command::user::{Encode, LARGEST_PAGE, User, UserStore, UserStream, ascii};

/// How long the database has for the answer to a command.
const STATEMENT_TIMEOUT: Duration = Duration::from_secs(2);

/// How long a command waits for a connection and the answer: a database that stops a statement says
/// so first.
const COMMAND_TIMEOUT: Duration = Duration::from_millis(2500);

/// The columns of a user. PostgreSQL's JSON is asked for as text.
pub const COLUMNS: &str =
    "id, name, email, CAST(members AS text) AS members, created_at, updated_at";

/// A row of users.
#[derive(QueryableByName)]
pub struct Row {
    #[diesel(sql_type = Text)]
    id: String,
    #[diesel(sql_type = Nullable<Text>)]
    name: Option<String>,
    #[diesel(sql_type = Nullable<Text>)]
    email: Option<String>,
    #[diesel(sql_type = Text)]
    members: String,
    #[diesel(sql_type = BigInt)]
    created_at: i64,
    #[diesel(sql_type = BigInt)]
    updated_at: i64,
}

impl From<Row> for User {
    fn from(row: Row) -> Self {
        User {
            id: row.id,
            name: row.name,
            email: row.email,
            members: row.members,
            created_at: row.created_at,
            updated_at: row.updated_at,
        }
    }
}

/// A number.
#[derive(QueryableByName)]
struct Number {
    #[diesel(sql_type = BigInt)]
    number: i64,
}

/// Returns the number of users.
pub fn count(backend: &mut Backend) -> Result<u64, StoreError> {
    let query = sql_query("SELECT count(*) AS number FROM users");
    let row: Number = with_backend!(backend, |connection| query.get_result(connection))?;
    Ok(u64::try_from(row.number).unwrap_or_default())
}

/// Returns whether there are users.
pub fn is_any(backend: &mut Backend) -> Result<bool, StoreError> {
    let query = sql_query(
        "SELECT CAST(count(*) AS bigint) AS number FROM (SELECT id FROM users LIMIT 1) one",
    );
    let row: Number = with_backend!(backend, |connection| query.get_result(connection))?;
    Ok(row.number > 0)
}

/// Returns the user of this id.
fn user(backend: &mut Backend, id: &str) -> Result<Option<User>, StoreError> {
    let query = format!("SELECT {COLUMNS} FROM users WHERE id = $1");
    let rows: Vec<Row> = with_backend!(backend, |connection| {
        sql_query(query).bind::<Text, _>(id).get_results(connection)
    })?;
    Ok(rows.into_iter().next().map(User::from))
}

/// Returns users after this id, up to `limit` and [`LARGEST_PAGE`].
fn page(backend: &mut Backend, after: &str, limit: usize) -> Result<Vec<User>, StoreError> {
    // Rows may be large, all of them together too large: few are read at a time.
    const AT_ONCE: usize = 100;
    let query = format!("SELECT {COLUMNS} FROM users WHERE id > $1 ORDER BY id LIMIT $2");
    let (mut users, mut size) = (Vec::<User>::new(), 0);
    while users.len() < limit {
        let after = users.last().map_or(after, |user| &user.id);
        let next = AT_ONCE.min(limit - users.len());
        let rows: Vec<Row> = with_backend!(backend, |connection| {
            sql_query(&query)
                .bind::<Text, _>(after)
                .bind::<BigInt, _>(next as i64)
                .get_results(connection)
        })?;
        let is_last = rows.len() < next;
        for user in rows.into_iter().map(User::from) {
            size += ascii(&user.to_json()).len() + 1;
            if size > LARGEST_PAGE && !users.is_empty() {
                return Ok(users);
            }
            users.push(user);
        }
        if is_last {
            break;
        }
    }
    Ok(users)
}

impl Store {
    /// Reads for a command, within its time.
    fn read<T: Send + 'static>(
        &self,
        work: impl Fn(&mut Backend) -> Result<T, StoreError> + Send + 'static,
    ) -> Result<T, Unavailable> {
        let deadline = Instant::now() + COMMAND_TIMEOUT;
        let result = self.run(deadline, move |connection| {
            connection.read(STATEMENT_TIMEOUT, &work)
        });
        result.map_err(|error| {
            debug!(reason:% = error; "a command is not answered");
            Unavailable::Store
        })
    }
}

impl UserStore for Store {
    fn count(&self) -> Result<u64, Unavailable> {
        self.read(count)
    }

    fn user(&self, id: &str) -> Result<Option<User>, Unavailable> {
        let id = id.to_string();
        self.read(move |backend| user(backend, &id))
    }

    fn page(&self, after: &str, limit: usize) -> Result<Vec<User>, Unavailable> {
        let after = after.to_string();
        self.read(move |backend| page(backend, &after, limit))
    }

    fn stream(&self, after: &str, encode: Encode) -> Result<Box<dyn UserStream>, Unavailable> {
        stream::open(&self.shared, after.to_string(), encode)
    }

    fn age(&self) -> Option<Duration> {
        self.pulls.as_ref()?.age()
    }
}
