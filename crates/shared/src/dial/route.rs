//! Failover between the addresses of a server: addresses that failed are tried last, and if one
//! accepts the connection but does not reply, the next is tried.

use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use super::connection::Attempt;
use super::lookup::addresses;
use super::{AddressFamily, Connection, Deadline, Failure, FailureKind, Server};
use crate::sync::ignore_poison;

/// The most addresses that are remembered.
const MAX_FAILED: usize = 64;

/// Addresses that failed, the latest last. Clones share them.
#[derive(Clone, Debug, Default)]
pub struct Failed(Arc<Mutex<Vec<SocketAddr>>>);

impl Failed {
    /// Records that this address failed.
    pub fn note(&self, address: SocketAddr) {
        let mut failed = ignore_poison(self.0.lock());
        failed.retain(|other| *other != address);
        if failed.len() == MAX_FAILED {
            failed.remove(0);
        }
        failed.push(address);
    }

    /// Moves the addresses that failed behind all others, the latest failure to the end.
    pub fn sort(&self, addresses: &mut [SocketAddr]) {
        let failed = ignore_poison(self.0.lock());
        // `None` sorts before any position.
        addresses.sort_by_key(|address| failed.iter().position(|other| other == address));
    }
}

/// A route to a server, for a program that asks it repeatedly.
#[derive(Clone, Debug)]
pub struct Route {
    server: Server,
    family: AddressFamily,
    failed: Failed,
}

impl Route {
    /// Returns a route; it resolves nothing yet.
    pub fn new(server: Server, family: AddressFamily) -> Self {
        let failed = Failed::default();
        Route {
            server,
            family,
            failed,
        }
    }

    /// Connects to the first address that accepts.
    pub fn open(&self, timeout: Duration) -> Result<Connection, Failure> {
        let deadline = Deadline::after(timeout);
        let mut addresses = self.addresses(deadline)?;
        Connection::open_one_of(&self.server, &mut addresses, deadline, |attempt| {
            self.record(attempt)
        })
    }

    /// Records that the server did not reply at this address, which is tried last from now on.
    pub fn failed(&self, address: SocketAddr) {
        self.failed.note(address);
    }

    /// Calls `ask` with a connection to one address after another until one replies. Connecting may
    /// take `timeout`, and the first reply `timeout` again; all further addresses share one more.
    pub fn ask<T>(
        &self,
        timeout: Duration,
        mut ask: impl FnMut(Connection, Deadline) -> Result<T, Failure>,
    ) -> Result<T, Failure> {
        let deadline = Deadline::after(timeout);
        let mut addresses = self.addresses(deadline)?;
        let mut tried = |attempt: Attempt<'_>| self.record(attempt);
        let connection =
            Connection::open_one_of(&self.server, &mut addresses, deadline, &mut tried)?;
        let first = connection.address();
        let reply = ask(connection, Deadline::after(timeout));
        if !reply.as_ref().is_err_and(Failure::is_no_reply) {
            return reply;
        }
        self.failed(first);
        match ask_in_turn(
            &self.server,
            addresses,
            Deadline::after(timeout),
            tried,
            ask,
        ) {
            // If none replies, the error is that of the first.
            Err(failure) if failure.kind != FailureKind::Foreign => reply,
            other => other,
        }
    }

    fn addresses(&self, deadline: Deadline) -> Result<Vec<SocketAddr>, Failure> {
        let mut addresses = addresses(&self.server, self.family, deadline)?;
        self.failed.sort(&mut addresses);
        Ok(addresses)
    }

    fn record(&self, (address, outcome): Attempt<'_>) {
        if outcome.is_err() {
            self.failed(address);
        }
    }
}

/// Calls `ask` with a connection to one address after another until one replies, and with a
/// deadline: an equal share of the time that is left. `tried` is called with the result of each
/// attempt to connect. If none replies, the error is that of the first address that accepted.
pub fn ask_in_turn<T>(
    server: &Server,
    mut addresses: Vec<SocketAddr>,
    deadline: Deadline,
    mut tried: impl FnMut(Attempt<'_>),
    mut ask: impl FnMut(Connection, Deadline) -> Result<T, Failure>,
) -> Result<T, Failure> {
    let mut no_reply = None;
    loop {
        let connected = Connection::open_one_of(server, &mut addresses, deadline, &mut tried);
        let connection = match connected {
            Ok(connection) => connection,
            Err(failure) => return Err(no_reply.unwrap_or(failure)),
        };
        match ask(connection, deadline.share(addresses.len() + 1)) {
            Err(failure) if failure.is_no_reply() => no_reply = no_reply.or(Some(failure)),
            reply => return reply,
        }
    }
}
