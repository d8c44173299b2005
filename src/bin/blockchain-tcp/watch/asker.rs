//! Asks how many clients there are, again and again, on one connection as long as that is possible.

use std::net::SocketAddr;
use std::thread;
use std::time::{Duration, Instant};

use blockchain_tcpd::dial::{
    self, Connection, Deadline, Reply, Route, clients, is_fatal, is_printable, was_not_processed,
};
use jiff::Timestamp;

use crate::failure::Failure;
use crate::options::Options;

/// What came of asking once.
pub struct Sample {
    /// How many intervals after the first one.
    pub tick: u64,
    /// When the reply came.
    pub time: Timestamp,
    /// The number of clients, or why there is none.
    pub seen: Result<u64, Failure>,
    /// Who was asked, if there was a connection.
    pub origin: Option<Origin>,
}

/// A server that was reached.
#[derive(Clone)]
pub struct Origin {
    pub address: SocketAddr,
    /// Its id, if it says one.
    pub id: Option<String>,
}

/// A connection, and whom it is with.
struct Line {
    connection: Connection,
    origin: Origin,
}

/// Asks in this interval, until nobody wants to hear it any more.
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
        // What has been missed meanwhile is left out.
        let (passed, every) = (begun.elapsed().as_nanos(), every.as_nanos().max(1));
        tick = u64::try_from(passed / every)
            .unwrap_or(u64::MAX)
            .saturating_add(1);
        let left = u64::try_from(every - passed % every).unwrap_or(u64::MAX);
        thread::sleep(Duration::from_nanos(left));
    }
}

/// The count; asked once more if the server has ended the connection since it was asked last, as it does when it is tired of
/// waiting.
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
        // The next question goes to another address, if there is one.
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
            // A line at least, and no more; WHO tells whether it is a server of ours.
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
