//! Settings of the store: where it is, and the files with what is secret.

use std::sync::Arc;
use std::time::{Duration, Instant};

use log::{info, warn};
use store::feed::http::HttpFeed;
use store::{ErrorKind, Location, PullStats, Puller, PullerSettings, Secrets, Store, StoreError};

use crate::config::credentials::from_systemd;
use crate::config::options::{Options, StoreFiles};
use crate::error::Error;

/// Time that a starting server waits for the store.
const START_TIMEOUT: Duration = Duration::from_secs(5);

/// Descriptors that a connection needs: SQLite has three files open.
const DESCRIPTORS: usize = 4;

/// Descriptors that the puller needs: its connection to the feed.
const PULLER_DESCRIPTORS: usize = 2;

/// Settings of the store, parsed from [`Options`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Settings {
    store: store::Settings,
    puller: Option<PullerSettings>,
    ready_needs_store: bool,
}

impl Settings {
    /// Parses the options, if they name a store.
    pub fn new(options: &Options) -> Result<Option<Self>, Error> {
        let wants_users = options.commands.contains("users");
        let Some(url) = &options.store else {
            return match wants_users {
                true => Err(Error::Configuration(
                    "--commands users needs a database with the users: name it with --store, such as \
                     --store sqlite:///var/lib/blockchain-tcpd/users.db"
                        .to_string(),
                )),
                // The log says what has no effect.
                false => Ok(None),
            };
        };
        let wrong = |why: String| Error::Configuration(format!("--store {why}"));
        let location = Location::parse(url).map_err(wrong)?;
        let StoreFiles {
            store_password_file: password,
            store_ca_file: ca,
        } = options.store_files.clone();
        let secrets = match location {
            Location::Postgres(_) => Secrets {
                password: password.or_else(|| from_systemd("store-password")),
                ca: ca.or_else(|| from_systemd("store-ca")),
            },
            Location::Sqlite(_) => Secrets::default(),
        };
        if !wants_users {
            warn!("without --commands users, --store has no effect");
            return Ok(None);
        }
        if let Some(url) = &options.users_feed {
            // Not by the parser of options, whose errors show the value, which may hold a password.
            let wrong = |why: &str| Error::Configuration(format!("--users-feed: {why}"));
            HttpFeed::check(url).map_err(wrong)?;
        }
        let puller = options.users_feed.as_ref().map(|url| PullerSettings {
            url: url.clone(),
            interval: options.users_feed_interval,
            idle_timeout: options.users_feed_idle_timeout,
        });
        Ok(Some(Settings {
            store: store::Settings {
                location,
                secrets,
                // One more for the puller, whose batches may have one for as long as the feed lasts.
                connections: options.store_connections + usize::from(options.users_feed.is_some()),
                streams: options.store_connections,
                stream_timeout: options.store_stream_timeout,
                is_watched: options.ready_needs_store,
            },
            puller,
            ready_needs_store: options.ready_needs_store,
        }))
    }

    /// Returns whether a feed is named.
    pub fn pulls(&self) -> bool {
        self.puller.is_some()
    }

    /// Returns whether the server is ready only while the store answers.
    pub fn ready_needs_store(&self) -> bool {
        self.ready_needs_store
    }

    /// Returns the counters of the pulls, for a server that has not pulled yet.
    pub fn pull_stats(&self) -> PullStats {
        let interval = self.puller.as_ref().map(|puller| puller.interval);
        PullStats::new(interval.unwrap_or_default())
    }

    /// Starts to pull users into the store, if a feed is named.
    pub fn start_puller(
        &self,
        store: &Store,
        stats: &Arc<PullStats>,
    ) -> Result<Option<Puller>, Error> {
        let puller = self.puller.clone();
        let puller = puller.map(|puller| Puller::start(store.clone(), puller, stats.clone()));
        let failed = |error| Error::system("start the puller of users", &error);
        puller.transpose().map_err(failed)
    }

    /// Returns the number of descriptors that the store needs.
    pub fn descriptors(&self) -> usize {
        // As many again for streams.
        (self.store.connections + self.store.streams) * DESCRIPTORS + PULLER_DESCRIPTORS
    }

    /// Checks that the files can be read, and that the schema of the store, if that answers, is not
    /// of a newer version.
    pub fn check(&self) -> Result<(), Error> {
        self.store
            .secrets
            .check()
            .map_err(|error| Error::Configuration(error.to_string()))?;
        let store = self.store.location.name();
        match Store::check(&self.store, START_TIMEOUT) {
            Err(error) if error.kind == ErrorKind::Newer => self.newer(&error),
            Err(reason) => {
                warn!(store, reason:%; "the store is unavailable");
                Ok(())
            }
            Ok(()) => Ok(()),
        }
    }

    fn newer(&self, error: &StoreError) -> Result<(), Error> {
        let store = self.store.location.name();
        Err(Error::Configuration(format!("--store {store}: {error}")))
    }

    /// Opens the store, and waits for nothing.
    pub fn open(&self) -> Result<Store, Error> {
        Store::open(self.store.clone()).map_err(|error| Error::System(error.to_string()))
    }

    /// Waits until the store has answered, or has had its time. It may come later.
    pub fn wait_for(&self, store: &Store) -> Result<(), Error> {
        let store_is = self.store.location.name();
        match store.wait(Instant::now() + START_TIMEOUT) {
            Ok(()) => info!(store = store_is; "the store answers"),
            Err(error) if error.kind == ErrorKind::Newer => return self.newer(&error),
            // The log says it.
            Err(_) => {}
        }
        Ok(())
    }
}
