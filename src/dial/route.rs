//! The way to a server that has several addresses: those that failed are tried last, and one that lets us in and says nothing is
//! left for the next.

use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use super::connection::Attempt;
use super::lookup::addresses;
use super::{AddressFamily, Connection, Deadline, Failure, Server};

/// The most addresses that are remembered.
const MOST: usize = 64;

/// Addresses that failed, in the order in which they did. Clones share them.
#[derive(Clone, Debug, Default)]
pub struct Failed(Arc<Mutex<Vec<SocketAddr>>>);

impl Failed {
    /// This one has failed.
    pub fn note(&self, address: SocketAddr) {
        let mut failed = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        failed.retain(|other| *other != address);
        if failed.len() == MOST {
            failed.remove(0);
        }
        failed.push(address);
    }

    /// Puts those that failed behind all others, the last failure at the end: the first is the one after it.
    pub fn sort(&self, addresses: &mut [SocketAddr]) {
        let failed = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        // None is less than any position.
        addresses.sort_by_key(|address| failed.iter().position(|other| other == address));
    }
}

/// The way to a server, for a program that asks it again and again.
#[derive(Clone, Debug)]
pub struct Route {
    server: Server,
    family: AddressFamily,
    failed: Failed,
}

impl Route {
    /// Nothing is looked up yet.
    pub fn new(server: Server, family: AddressFamily) -> Self {
        let failed = Failed::default();
        Route {
            server,
            family,
            failed,
        }
    }

    /// A connection, by the first address that lets us in.
    pub fn open(&self, deadline: Deadline) -> Result<Connection, Failure> {
        let mut addresses = self.addresses(deadline)?;
        Connection::open_one_of(&mut addresses, deadline, |attempt| self.note(attempt))
    }

    /// The server has not answered at this address: it is tried last from now on.
    pub fn failed(&self, address: SocketAddr) {
        self.failed.note(address);
    }

    /// What the server answers at the first address that answers. A connection may take so long, and each reply as long again; the
    /// addresses behind one that lets us in and says nothing share as long once more.
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

    /// What the server answers at another address than this one, which has let us in and says nothing: that is the `failure`, if it
    /// answers nowhere. All others share this time.
    pub fn ask_elsewhere<T>(
        &self,
        silent: SocketAddr,
        failure: Failure,
        timeout: Duration,
        ask: impl FnMut(Connection, Deadline) -> Result<T, Failure>,
    ) -> Result<T, Failure> {
        self.failed(silent);
        let deadline = Deadline::after(timeout);
        let mut addresses = self.addresses(deadline).unwrap_or_default();
        addresses.retain(|address| *address != silent);
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

/// What is answered at the first of these addresses that answers by the deadline. Each has an equal share of what those before it
/// have left of the time. `tried` hears which let us in.
pub fn ask_in_turn<T>(
    addresses: Vec<SocketAddr>,
    deadline: Deadline,
    tried: impl FnMut(Attempt<'_>),
    ask: impl FnMut(Connection, Deadline) -> Result<T, Failure>,
) -> Result<T, Failure> {
    in_turn(addresses, deadline, None, None, tried, ask)
}

/// The same. If a `reply` has a time of its own, the first that lets us in has that, and those behind it share as long again. If
/// nobody answers, the first `silence` is why.
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
