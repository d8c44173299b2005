//! The way to a server, for the programs that ask one: a name becomes addresses, one of them a connection, and requests get
//! their replies, each within a deadline and with a bound on what is read. The daemon takes the way to its cluster from here:
//! [`DnsCache`] looks up addresses and connects, [`socket`] makes connections.
//!
//! [`Server`] says which server; [`Connection`] is the conversation; [`Reply`] is what one of its [`LineBuffer`] says, if a server of
//! ours can have sent it; [`Route`] has the next address asked if one does not answer; [`Failure`] has words for all that may go wrong, and every wait is bounded by a [`Deadline`].

mod connection;
mod deadline;
pub mod dns;
mod failure;
mod lines;
mod lookup;
mod reply;
mod route;
mod server;
pub mod socket;

pub use self::connection::{Attempt, Connection, LONGEST_REPLY};
pub use self::deadline::Deadline;
pub use self::dns::DnsCache;
pub use self::failure::{Failure, escaped, quoted};
pub use self::lines::LineBuffer;
pub use self::lookup::{AddressFamily, addresses};
pub use self::reply::{Reply, clients, id, is_fatal, is_printable, was_not_processed};
pub use self::route::{Route, ask_in_turn};
pub use self::server::{PORT, Server};
