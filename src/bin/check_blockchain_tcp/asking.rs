//! The check itself: where the server is, the way there, and what it has to answer; within one deadline for all of it.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use blockchain_tcpd::dial::{
    self, Connection, Deadline, Failure, Family, Reply, Server, clients, id, quoted,
};
use uuid::Uuid;

use crate::notes::Notes;
use crate::options::Options;
use crate::report::{Report, Status};

/// What the server answered, all of it valid.
#[derive(Debug)]
pub struct Answers {
    /// The number of clients, the plugin included.
    pub clients: u64,
    /// The id of the server.
    pub id: Uuid,
    /// From the first attempt to connect until the last answer.
    pub time: Duration,
    /// The address that answered.
    pub address: SocketAddr,
}

/// All requests at once, as the protocol allows.
const REQUESTS: &[u8] = b"WHO\nWHERE\nWHY\n";

/// Asks the server everything. If it doesn't answer as it must, that is the report.
pub fn ask(options: &Options, notes: &mut Notes) -> Result<Answers, Report> {
    let deadline = Deadline::after(options.timeout);
    let server = Server {
        host: options.host.clone(),
        port: options.port,
    };
    let family = match (options.use_ipv4, options.use_ipv6) {
        (true, _) => Family::V4,
        (_, true) => Family::V6,
        _ => Family::Any,
    };
    let addresses = dial::addresses(&server, family, deadline)?;
    notes.add(|| format!("addresses: {addresses:?}"));
    let begun = Instant::now();
    let connection = Connection::open_one_of(&addresses, deadline, |attempt| {
        notes.add(|| match attempt {
            (address, Ok(())) => format!("connected to {address}"),
            (address, Err(error)) => format!("not connected to {address}: {error}"),
        });
    });
    let mut asked = Asked {
        connection: connection?,
        deadline,
    };
    asked.connection.send(REQUESTS, deadline)?;
    asked.connection.finish();
    let address = asked.connection.address();
    let clients = clients(&asked.value("WHO", notes)?)?;
    let id = id(&asked.value("WHERE", notes)?)?;
    asked.value("WHY", notes)?;
    let time = begun.elapsed();
    asked.connection.end(deadline)?;
    notes.add(|| "closed by the server".to_string());
    Ok(Answers {
        clients,
        id,
        time,
        address,
    })
}

/// A connection on which everything has been asked.
struct Asked {
    connection: Connection,
    deadline: Deadline,
}

impl Asked {
    /// The value that this request is answered.
    fn value(&mut self, request: &str, notes: &mut Notes) -> Result<String, Report> {
        let line = self.connection.line(request, self.deadline)?;
        notes.add(|| format!("{request}: {}", quoted(&line)));
        match Reply::read(request, &line)? {
            Reply::Value(value) => Ok(value),
            Reply::Refused { .. } => {
                let text = format!("the server says {}", quoted(&line));
                Err(Report::new(Status::Critical, text))
            }
        }
    }
}

impl From<Failure> for Report {
    /// UNKNOWN if it is this machine that lacks something; all else says that the service can't be used, a name without
    /// address and a time-out included, as the guidelines have it.
    fn from(failure: Failure) -> Self {
        let status = match failure.is_our_own() {
            true => Status::Unknown,
            false => Status::Critical,
        };
        Report::new(status, failure.to_string())
    }
}
