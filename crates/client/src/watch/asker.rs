//! Poller: asks repeatedly for the number of clients, on one connection as long as it stays open.

use std::net::SocketAddr;
use std::thread;
use std::time::{Duration, Instant};

use jiff::Timestamp;
use shared::dial::{
    self, Connection, Deadline, Reply, Route, clients, is_fatal, is_printable, was_not_processed,
};

use crate::failure::Failure;
use crate::options::Options;

/// Result of one request.
pub struct Sample {
    /// Number of intervals since the first request.
    pub tick: u64,
    /// When the reply arrived.
    pub time: Timestamp,
    /// The number of clients, or the failure.
    pub seen: Result<u64, Failure>,
    /// The server that was asked, if it was reached.
    pub origin: Option<Origin>,
}

/// A server that was reached.
#[derive(Clone)]
pub struct Origin {
    pub address: SocketAddr,
    /// Its id, if it reports one.
    pub id: Option<String>,
}

/// A connection and its server.
struct Line {
    connection: Connection,
    origin: Origin,
}

/// Sends a request per interval, until `hear` returns false.
pub fn run(options: &Options, every: Duration, mut hear: impl FnMut(Sample) -> bool) {
    let begun = Instant::now();
    let route = options.route();
    let mut line = None;
    let mut tick = 0;
    loop {
        let seen = count(&mut line, &route, options.timeout);
        let origin = line.as_ref().map(|line| line.origin.clone());
        let time = Timestamp::now();
        if !hear(Sample {
            tick,
            time,
            seen,
            origin,
        }) {
            return;
        }
        // Intervals that were missed meanwhile are skipped.
        let (passed, every) = (begun.elapsed().as_nanos(), every.as_nanos().max(1));
        tick = u64::try_from(passed / every)
            .unwrap_or(u64::MAX)
            .saturating_add(1);
        let left = u64::try_from(every - passed % every).unwrap_or(u64::MAX);
        thread::sleep(Duration::from_nanos(left));
    }
}

/// Returns the number of clients. Reconnects and asks again if the server has closed a kept
/// connection meanwhile, as it does on an idle timeout.
fn count(kept: &mut Option<Line>, route: &Route, timeout: Duration) -> Result<u64, Failure> {
    let was_kept = kept.is_some();
    let mut line = match kept.take() {
        Some(line) => line,
        None => connect(route, timeout)?,
    };
    let mut asked = line.connection.ask(b"WHO", Deadline::after(timeout));
    if was_kept && was_not_processed(asked.as_ref()) {
        line = connect(route, timeout)?;
        asked = line.connection.ask(b"WHO", Deadline::after(timeout));
    }
    if asked.is_err() {
        // The next request goes to another address, if there is one.
        route.failed(line.origin.address);
    }
    let reply = asked?;
    if !reply.closes() {
        *kept = Some(line);
    }
    match reply {
        Reply::Value(value) => Ok(clients(&value)?),
        Reply::Refused { word, sentence } => Err(Failure::Refused { word, sentence }),
    }
}

fn connect(route: &Route, timeout: Duration) -> Result<Line, Failure> {
    let connected = route.ask(timeout, |mut connection, time| {
        let id = match connection.ask(b"WHERE", time) {
            Ok(Reply::Refused { word, sentence }) if is_fatal(&word) => {
                return Ok(Err(Failure::Refused { word, sentence }));
            }
            Ok(Reply::Value(id)) => Some(id),
            Ok(Reply::Refused { .. }) => None,
            // A printable line that is not an id: the reply to WHO shows whether it is our server.
            Err(dial::Failure::Wrong { said, .. })
                if is_printable(&said) && !connection.is_readable() =>
            {
                None
            }
            Err(failure) => return Err(failure),
        };
        let address = connection.address();
        Ok(Ok(Line {
            connection,
            origin: Origin { address, id },
        }))
    });
    connected?
}
