//! A connection to the database, and the migration of its schema.

use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use diesel::connection::SimpleConnection as _;
use diesel::connection::{CacheSize, Connection as _};
use diesel::migration::{Migration, MigrationSource, MigrationVersion};
use diesel::sql_types::Text;
use diesel::{
    PgConnection, QueryResult, QueryableByName, RunQueryDsl as _, SqliteConnection, sql_query,
};
use diesel_migrations::{EmbeddedMigrations, MigrationHarness, embed_migrations};

use crate::error::{ErrorKind, StoreError};
use crate::location::{Location, Secrets};

const POSTGRES: EmbeddedMigrations = embed_migrations!("migrations/postgres");
const SQLITE: EmbeddedMigrations = embed_migrations!("migrations/sqlite");

/// How long a writer of SQLite waits for another one.
const SQLITE_LOCK_TIMEOUT: Duration = Duration::from_secs(2);

/// Milliseconds after which PostgreSQL ends a transaction in which this program does nothing.
const IDLE_IN_TRANSACTION: u32 = 2000;

/// The SQLSTATE of a table that there is not.
const UNDEFINED_TABLE: [u8; 5] = *b"42P01";

/// A migration that was applied.
#[derive(QueryableByName)]
struct Applied {
    #[diesel(sql_type = Text)]
    version: String,
}

/// The encoding of a database.
#[derive(QueryableByName)]
struct Encoding {
    #[diesel(sql_type = Text)]
    name: String,
}

/// Number of the lock that one server has while it migrates the schema.
const MIGRATION_LOCK: i64 = 0x626c_6f63_6b63_6861;

/// A connection.
pub struct Connection {
    /// The connection itself.
    pub backend: Backend,
    /// The file of SQLite.
    pub file: Option<SqliteFile>,
}

/// A file that is open, which may not be the one of its name any more.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SqliteFile {
    path: PathBuf,
    device: u64,
    inode: u64,
}

impl SqliteFile {
    /// Returns the file of this name, if there is one.
    fn named(path: &Path) -> Option<Self> {
        let metadata = std::fs::metadata(path).ok()?;
        Some(SqliteFile {
            path: path.to_path_buf(),
            device: metadata.dev(),
            inode: metadata.ino(),
        })
    }
}

/// A connection of Diesel.
pub enum Backend {
    /// To PostgreSQL.
    Postgres(PgConnection),
    /// To a file of SQLite.
    Sqlite(SqliteConnection),
}

impl Connection {
    /// Opens a connection. Fails within the time-outs of the URL.
    pub fn open(location: &Location, secrets: &Secrets) -> Result<Self, StoreError> {
        match location {
            Location::Postgres(url) => {
                let mut connection = PgConnection::establish(&secrets.complete(url)?)?;
                // PgBouncer before 1.21 mixes the prepared statements of its clients up.
                connection.set_prepared_statement_cache_size(CacheSize::Disabled);
                Ok(Connection {
                    backend: Backend::Postgres(connection),
                    file: None,
                })
            }
            Location::Sqlite(path) => Ok(Connection {
                backend: Backend::Sqlite(open_sqlite(path)?),
                file: SqliteFile::named(path),
            }),
        }
    }

    /// Applies the migrations that are missing. Several servers may do so at once.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::Newer`] if a migration was applied that this program does not know.
    pub fn migrate(&mut self) -> Result<(), StoreError> {
        if let Backend::Sqlite(connection) = &mut self.backend {
            // Readers and a writer don't keep each other waiting.
            connection.batch_execute("PRAGMA journal_mode = WAL")?;
        }
        // A schema that is as it should be takes neither a lock nor the right to change it.
        if self.is_migrated()? {
            return Ok(());
        }
        match &mut self.backend {
            Backend::Postgres(connection) => connection.transaction(|connection| {
                connection.batch_execute(&format!(
                    "SET LOCAL lock_timeout = '10s'; \
                     SET LOCAL idle_in_transaction_session_timeout = {IDLE_IN_TRANSACTION}; \
                     SELECT pg_advisory_xact_lock({MIGRATION_LOCK})"
                ))?;
                let encoding: Encoding =
                    sql_query("SELECT getdatabaseencoding() AS name").get_result(connection)?;
                if encoding.name != "UTF8" {
                    let why =
                        "its encoding does not have all characters: create it with ENCODING 'UTF8'";
                    return Err(StoreError::new(ErrorKind::Refused, why));
                }
                migrate(connection, POSTGRES)
            }),
            Backend::Sqlite(connection) => {
                connection.exclusive_transaction(|connection| migrate(connection, SQLITE))
            }
        }
    }

    /// Returns whether it leads to the database that is there now: a file of SQLite may have been
    /// removed or replaced.
    pub fn is_current(&self) -> bool {
        let file = self.file.as_ref();
        file.is_none_or(|file| SqliteFile::named(&file.path).as_ref() == Some(file))
    }

    /// Asks the database whether it is there.
    pub fn ping(&mut self) -> Result<(), StoreError> {
        self.execute("SELECT 1")
    }

    /// Returns whether all migrations were applied. Changes nothing.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::Newer`] if a migration was applied that this program does not know.
    pub fn is_migrated(&mut self) -> Result<bool, StoreError> {
        let query = sql_query("SELECT version FROM __diesel_schema_migrations");
        let applied: QueryResult<Vec<Applied>> = match &mut self.backend {
            Backend::Postgres(connection) => query.load(connection),
            Backend::Sqlite(connection) => query.load(connection),
        };
        let is_missing = |error: &StoreError| match self.backend {
            Backend::Postgres(_) => error.code == Some(UNDEFINED_TABLE),
            Backend::Sqlite(_) => error.why.starts_with("no such table"),
        };
        let applied: Vec<_> = match applied {
            Ok(applied) => applied.into_iter().map(|row| row.version.into()).collect(),
            Err(error) => {
                let error = StoreError::from(error);
                return match is_missing(&error) {
                    true => Ok(false),
                    false => Err(error),
                };
            }
        };
        match self.backend {
            Backend::Postgres(_) => is_complete::<diesel::pg::Pg>(&applied, &POSTGRES),
            Backend::Sqlite(_) => is_complete::<diesel::sqlite::Sqlite>(&applied, &SQLITE),
        }
    }

    /// Calls `work` in a transaction that only reads, and each of whose statements PostgreSQL ends
    /// after `limit`. SQLite, which is in this process, has no such limit.
    pub fn read<T>(
        &mut self,
        limit: Duration,
        work: impl FnOnce(&mut Backend) -> Result<T, StoreError>,
    ) -> Result<T, StoreError> {
        // Not for the connection: PgBouncer gives it to others between two transactions.
        self.execute_in_postgres(&format!(
            "BEGIN READ ONLY; SET LOCAL statement_timeout = {}",
            limit.as_millis().max(1)
        ))?;
        let value = work(&mut self.backend)?;
        self.execute_in_postgres("COMMIT")?;
        Ok(value)
    }

    /// Calls `work` in a transaction that writes, and each of whose statements PostgreSQL ends after
    /// `limit`. SQLite has no such limit.
    pub fn write<T>(
        &mut self,
        limit: Duration,
        work: impl FnOnce(&mut Backend) -> Result<T, StoreError>,
    ) -> Result<T, StoreError> {
        let limit = limit.as_millis().max(1);
        self.execute(&match self.backend {
            // A transaction that waits for this program keeps the lease from others.
            Backend::Postgres(_) => format!(
                "BEGIN; SET LOCAL statement_timeout = {limit}; SET LOCAL lock_timeout = {limit}; \
                 SET LOCAL idle_in_transaction_session_timeout = {IDLE_IN_TRANSACTION}"
            ),
            // A transaction that begins to write later fails at once if another writes.
            Backend::Sqlite(_) => "BEGIN IMMEDIATE".to_string(),
        })?;
        let value = work(&mut self.backend)?;
        self.execute("COMMIT")?;
        Ok(value)
    }

    fn execute(&mut self, statements: &str) -> Result<(), StoreError> {
        match &mut self.backend {
            Backend::Postgres(connection) => connection.batch_execute(statements)?,
            Backend::Sqlite(connection) => connection.batch_execute(statements)?,
        }
        Ok(())
    }

    fn execute_in_postgres(&mut self, statements: &str) -> Result<(), StoreError> {
        match self.backend {
            Backend::Postgres(_) => self.execute(statements),
            Backend::Sqlite(_) => Ok(()),
        }
    }
}

fn open_sqlite(path: &Path) -> Result<SqliteConnection, StoreError> {
    let failed = |why: String| {
        let why = format!("{}: {why}", path.display());
        StoreError::new(ErrorKind::Away, why)
    };
    let Some(text) = path.to_str() else {
        return Err(failed("the path is not UTF-8".to_string()));
    };
    let connection = SqliteConnection::establish(text);
    let mut connection = connection.map_err(|error| failed(error.to_string()))?;
    // The time-out first: the others write. A reader that stays long must not leave a long log behind.
    let settings = format!(
        "PRAGMA busy_timeout = {}; PRAGMA synchronous = NORMAL; \
         PRAGMA journal_size_limit = 16777216",
        SQLITE_LOCK_TIMEOUT.as_millis()
    );
    let set = connection.batch_execute(&settings);
    set.map_err(|error| failed(error.to_string()))?;
    Ok(connection)
}

/// Applies the migrations of `source` that are missing. The caller has locked the schema.
fn migrate<DB, C>(connection: &mut C, source: EmbeddedMigrations) -> Result<(), StoreError>
where
    DB: diesel::backend::Backend,
    C: MigrationHarness<DB>,
    EmbeddedMigrations: MigrationSource<DB>,
{
    let applied = connection.applied_migrations().map_err(failed)?;
    // Another server may have applied them meanwhile.
    if !is_complete::<DB>(&applied, &source)? {
        connection.run_pending_migrations(source).map_err(failed)?;
    }
    Ok(())
}

/// Returns whether all migrations of `source` are among those that were applied, which it must know.
fn is_complete<DB>(
    applied: &[MigrationVersion<'_>],
    source: &EmbeddedMigrations,
) -> Result<bool, StoreError>
where
    DB: diesel::backend::Backend,
    EmbeddedMigrations: MigrationSource<DB>,
{
    let known: Vec<Box<dyn Migration<DB>>> = source.migrations().map_err(failed)?;
    let is_known = |version: &&MigrationVersion<'_>| {
        let mut known = known.iter();
        known.any(|one| one.name().version() == **version)
    };
    if let Some(newer) = applied.iter().find(|version| !is_known(version)) {
        return Err(StoreError::new(
            ErrorKind::Newer,
            format!(
                "the schema has the change {newer}, which this version does not know: it is too old for this database"
            ),
        ));
    }
    let mut known = known.iter();
    Ok(known.all(|one| applied.contains(&one.name().version())))
}

fn failed(error: Box<dyn std::error::Error + Send + Sync>) -> StoreError {
    StoreError::new(ErrorKind::Refused, error.to_string())
}
