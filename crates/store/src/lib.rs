//! The store: users in PostgreSQL or SQLite.
//!
//! A few threads have a connection each and do what others wait for, each with a deadline: a
//! database that is away, slow or stopped holds up nobody for longer ([`pool`]). Commands of the set
//! `users` ask it through [`shared::command::UserStore`].

mod connection;
mod error;
mod health;
mod location;
mod pool;
mod stream;
mod ticket;
mod users;

pub use error::{ErrorKind, StoreError};
pub use health::Stats;
pub use location::{Location, Secrets};
pub use pool::{Settings, Store};
