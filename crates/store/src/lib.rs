//! The store: users in PostgreSQL or SQLite.
//!
//! A few threads have a connection each and do what others wait for, each with a deadline: a
//! database that is away, slow or stopped holds up nobody for longer (`pool`). Commands of the set
//! `users` ask it through [`shared::command::user::UserStore`].

mod connection;
mod error;
pub mod feed;
mod health;
mod lease;
mod location;
mod pool;
mod pull;
mod puller;
mod stream;
mod ticket;
mod upsert;
mod users;

/// Ends the process, whatever the store's threads do.
pub use libpq::exit;

pub use error::{ErrorKind, StoreError};
pub use health::Stats;
pub use lease::{Fence, Validators};
pub use location::{Location, Secrets};
pub use pool::{Settings, Store};
pub use pull::{Progress, PullError};
pub use puller::{PullStats, Puller, PullerSettings};
