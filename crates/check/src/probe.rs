//! The probe: resolves, connects, sends the requests and validates the replies, within one
//! deadline.

use std::cell::RefCell;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use shared::dial::{
    self, Attempt, Connection, Deadline, Failure, FailureKind, Reply, Server, clients, id,
};
use shared::text::{quoted, without_errno};
use uuid::Uuid;

use crate::options::Options;
use crate::report::{Report, Status};
use crate::trace::Trace;

/// Answers of the server, all of them valid.
#[derive(Debug)]
pub struct Answers {
    /// Number of clients, the plugin included.
    pub clients: u64,
    /// Id of the server.
    pub id: Uuid,
    /// Time from the first attempt to connect to the last answer.
    pub time: Duration,
    /// Address that answered.
    pub address: SocketAddr,
}

/// All requests, sent at once (pipelining).
const REQUESTS: &[u8] = b"WHO\nWHERE\nWHY\n";

/// Asks the server. Returns a report if it does not answer as it must.
pub fn ask(options: &Options, trace: &mut Trace) -> Result<Answers, Report> {
    let deadline = Deadline::after(options.timeout);
    let server = Server {
        scheme: options.scheme,
        host: options.host.clone(),
        port: options.port,
    };
    let (begun, (mut connection, first)) =
        connect(&server, options, deadline, trace, |mut connection, by| {
            connection.send(REQUESTS, by)?;
            connection.finish();
            // If an address sends nothing, the next is tried.
            let first = connection.line("WHO", by)?;
            Ok((connection, first))
        })?;
    let clients = clients(&value("WHO", &first, trace)?)?;
    let mut next = |request| {
        let line = connection.line(request, deadline)?;
        value(request, &line, trace)
    };
    let id = id(&next("WHERE")?)?;
    next("WHY")?;
    let (time, address) = (begun.elapsed(), connection.address());
    connection.end(deadline)?;
    trace.add(|| "closed by the server".to_string());
    Ok(Answers {
        clients,
        id,
        time,
        address,
    })
}

/// Has `ask` get the first answer by a connection to one address after another. Returns it, and when
/// the first attempt began.
pub fn connect<T>(
    server: &Server,
    options: &Options,
    deadline: Deadline,
    trace: &mut Trace,
    mut ask: impl FnMut(Connection, Deadline) -> Result<T, Failure>,
) -> Result<(Instant, T), Report> {
    let addresses = dial::addresses(server, options.family, deadline)?;
    trace.add(|| format!("addresses: {addresses:?}"));
    let begun = Instant::now();
    let trace = RefCell::new(trace);
    let tried = |attempt: Attempt<'_>| {
        trace.borrow_mut().add(|| match attempt {
            (address, Ok(())) => format!("connected to {address}"),
            (address, Err(error)) => {
                format!("not connected to {address}: {}", without_errno(error))
            }
        });
    };
    let first = dial::ask_in_turn(
        server,
        addresses,
        deadline,
        tried,
        |connection, deadline| {
            let address = connection.address();
            ask(connection, deadline).inspect_err(|failure| {
                trace.borrow_mut().add(|| format!("{address}: {failure}"));
            })
        },
    )?;
    Ok((begun, first))
}

/// Returns the value in the reply `line` to `request`.
fn value(request: &str, line: &[u8], trace: &mut Trace) -> Result<String, Report> {
    trace.add(|| format!("{request}: {}", quoted(line)));
    Reply::read(request, line)?.value().map_err(|_| {
        let text = format!("the server says {}", quoted(line));
        Report::new(Status::Critical, text)
    })
}

impl From<Failure> for Report {
    /// UNKNOWN if this machine lacks resources. All else is CRITICAL: the service can't be used,
    /// also if the name has no address or on a timeout, as the guidelines say.
    fn from(failure: Failure) -> Self {
        let status = match failure.kind {
            FailureKind::NoResources => Status::Unknown,
            _ => Status::Critical,
        };
        Report::new(status, failure.to_string())
    }
}
