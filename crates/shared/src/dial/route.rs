//! Failover between the addresses of a server: addresses that failed are tried last, and if one
//! accepts the connection but does not reply, the next is tried.

use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use super::connection::Attempt;
use super::lookup::addresses;
use super::{AddressFamily, Connection, Deadline, Failure, Server};

/// The most addresses that are remembered.
const MOST: usize = 64;

/// Addresses that failed, the latest last. Clones share them.
#[derive(Clone, Debug, Default)]
pub struct Failed(Arc<Mutex<Vec<SocketAddr>>>);

impl Failed {
    /// Records that this address failed.
    pub fn note(&self, address: SocketAddr) {
        let mut failed = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        failed.retain(|other| *other != address);
        if failed.len() == MOST {
            failed.remove(0);
        }
        failed.push(address);
    }

    /// Moves the addresses that failed behind all others, the latest failure to the end.
    pub fn sort(&self, addresses: &mut [SocketAddr]) {
        let failed = self.0.lock().unwrap_or_else(PoisonError::into_inner);
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

    /// Connects to the first address that accepts. Returns the connection and the addresses that
    /// were not tried.
    pub fn open(&self, deadline: Deadline) -> Result<(Connection, Vec<SocketAddr>), Failure> {
        let mut addresses = self.addresses(deadline)?;
        let connection =
            Connection::open_one_of(&mut addresses, deadline, |attempt| self.note(attempt))?;
        Ok((connection, addresses))
    }

    /// Records that the server did not reply at this address, which is tried last from now on.
    pub fn failed(&self, address: SocketAddr) {
        self.failed.note(address);
    }

    /// Calls `ask` with a connection to one address after another until one replies. Connecting may
    /// take `timeout`, and each reply `timeout` again; the addresses after the first that accepts
    /// but does not reply share one more `timeout`.
    pub fn ask<T>(
        &self,
        timeout: Duration,
        ask: impl FnMut(Connection, Deadline) -> Result<T, Failure>,
    ) -> Result<T, Failure> {
        let deadline = Deadline::after(timeout);
        self.in_turn(
            self.addresses(deadline)?,
            deadline,
            Some(timeout),
            None,
            ask,
        )
    }

    /// Calls `ask` as [`Route::ask`] does, for `addresses`: those that [`Route::open`] did not try,
    /// after the one that accepted did not reply. They share `timeout`. If none replies, the result
    /// is `failure`.
    pub fn ask_elsewhere<T>(
        &self,
        addresses: Vec<SocketAddr>,
        failure: Failure,
        timeout: Duration,
        ask: impl FnMut(Connection, Deadline) -> Result<T, Failure>,
    ) -> Result<T, Failure> {
        let deadline = Deadline::after(timeout);
        self.in_turn(addresses, deadline, None, Some(failure), ask)
    }

    fn in_turn<T>(
        &self,
        addresses: Vec<SocketAddr>,
        deadline: Deadline,
        reply: Option<Duration>,
        silence: Option<Failure>,
        mut ask: impl FnMut(Connection, Deadline) -> Result<T, Failure>,
    ) -> Result<T, Failure> {
        let tried = |attempt: Attempt<'_>| self.note(attempt);
        let ask = |connection: Connection, time| {
            let address = connection.address();
            let answer = ask(connection, time);
            if answer.as_ref().is_err_and(Failure::is_silence) {
                self.failed(address);
            }
            answer
        };
        in_turn(addresses, deadline, reply, silence, tried, ask)
    }

    fn addresses(&self, deadline: Deadline) -> Result<Vec<SocketAddr>, Failure> {
        let mut addresses = addresses(&self.server, self.family, deadline)?;
        self.failed.sort(&mut addresses);
        Ok(addresses)
    }

    fn note(&self, (address, outcome): Attempt<'_>) {
        if outcome.is_err() {
            self.failed(address);
        }
    }
}

/// Calls `ask` with a connection to one address after another until one replies. Each may take an
/// equal share of the time that is left. `tried` is called with the result of each attempt to
/// connect.
pub fn ask_in_turn<T>(
    addresses: Vec<SocketAddr>,
    deadline: Deadline,
    tried: impl FnMut(Attempt<'_>),
    ask: impl FnMut(Connection, Deadline) -> Result<T, Failure>,
) -> Result<T, Failure> {
    in_turn(addresses, deadline, None, None, tried, ask)
}

/// Calls `ask` as [`ask_in_turn`] does. If `reply` is given, the first address that accepts may
/// take that time, and those after it share as long again. If none replies, the error is the first
/// silence: `silence`, or that of the first address that accepted.
fn in_turn<T>(
    mut addresses: Vec<SocketAddr>,
    mut deadline: Deadline,
    mut reply: Option<Duration>,
    mut silence: Option<Failure>,
    mut tried: impl FnMut(Attempt<'_>),
    mut ask: impl FnMut(Connection, Deadline) -> Result<T, Failure>,
) -> Result<T, Failure> {
    loop {
        let connection = match Connection::open_one_of(&mut addresses, deadline, &mut tried) {
            Ok(connection) => connection,
            Err(failure) => return Err(silence.unwrap_or(failure)),
        };
        let time = match reply {
            Some(reply) => Deadline::after(reply),
            None => deadline.share(addresses.len() + 1),
        };
        match ask(connection, time) {
            Err(failure) if failure.is_silence() => silence = silence.or(Some(failure)),
            answer => return answer,
        }
        if let Some(reply) = reply.take() {
            deadline = Deadline::after(reply);
        }
    }
}
