//! Asks how many clients there are, again and again, on one connection as long as that is possible.

use std::net::SocketAddr;
use std::thread;
use std::time::{Duration, Instant};

use blockchain_tcpd::dial::{self, Connection, Deadline, Reply, closes_after, quoted};
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
    let mut line = None;
    let mut tick = 0;
    loop {
        let seen = count(&mut line, options);
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

/// The count; once more if the server has ended the connection since it was asked last, as it does when it is tired of waiting.
fn count(line: &mut Option<Line>, options: &Options) -> Result<u64, Failure> {
    let was_kept = line.is_some();
    match ask(line, options) {
        Err(failure) if was_kept && is_an_end(&failure) => ask(line, options),
        seen => seen,
    }
}

fn is_an_end(failure: &Failure) -> bool {
    match failure {
        Failure::Refused { word, .. } => word == "TIMEOUT",
        Failure::Dial(failure) => matches!(
            failure,
            dial::Failure::Closed { .. } | dial::Failure::Broken { .. }
        ),
        _ => false,
    }
}

fn ask(kept: &mut Option<Line>, options: &Options) -> Result<u64, Failure> {
    let mut line = match kept.take() {
        Some(line) => line,
        None => connect(options)?,
    };
    let reply = line
        .connection
        .ask(b"WHO", Deadline::after(options.timeout))?;
    match reply {
        Reply::Value(value) => {
            let count = value.parse().map_err(|_| {
                let said = quoted(value.as_bytes());
                Failure::Wrong(format!("WHO was answered by {said}, which is no number"))
            })?;
            *kept = Some(line);
            Ok(count)
        }
        Reply::Refused { word, sentence } => {
            if !closes_after(&word) {
                *kept = Some(line);
            }
            Err(Failure::Refused { word, sentence })
        }
    }
}

fn connect(options: &Options) -> Result<Line, Failure> {
    let deadline = Deadline::after(options.timeout);
    let mut connection = Connection::open(&options.server, options.family(), deadline)?;
    let address = connection.address();
    let id = match connection.ask(b"WHERE", Deadline::after(options.timeout))? {
        Reply::Value(id) => Some(id),
        Reply::Refused { word, .. } if !closes_after(&word) => None,
        Reply::Refused { word, sentence } => return Err(Failure::Refused { word, sentence }),
    };
    Ok(Line {
        connection,
        origin: Origin { address, id },
    })
}
