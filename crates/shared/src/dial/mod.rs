//! Client library: resolves a name, connects to one of its addresses, sends requests and reads
//! replies, each within a deadline and with a bound on what is read. The daemon also uses it to
//! reach its cluster: [`DnsCache`] resolves and connects, [`socket`] makes connections.
//!
//! [`Server`] names a server and its protocol; [`Connection`] sends requests and reads replies,
//! which its [`Translator`] makes of other protocols than that of lines; [`Reply`] is a line that our
//! protocol allows, [`HttpResponse`] a response with its fields; [`Route`] fails over to the next
//! address; [`Failure`] describes all errors; [`Deadline`] bounds every wait.

mod connection;
mod deadline;
pub mod dns;
mod failure;
pub mod http;
mod lookup;
mod reply;
mod route;
mod server;
pub mod socket;
mod translation;

pub use self::connection::{Attempt, Connection, LONGEST_REPLY};
pub use self::deadline::Deadline;
pub use self::dns::DnsCache;
pub use self::failure::{Failure, FailureKind};
pub use self::http::HttpResponse;
pub use self::lookup::{AddressFamily, addresses};
pub use self::reply::{Refusal, Reply, clients, id, is_fatal, is_printable, was_not_processed};
pub use self::route::{Route, ask_in_turn};
pub use self::server::{PORT, Scheme, Server};
pub use self::translation::Translator;
