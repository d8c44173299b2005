//! The check itself: where the server is, the way there, and what it has to answer; within one deadline for all of it.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use blockchain_tcpd::dial::{Connection, Deadline, Family, Server, quoted};
use blockchain_tcpd::{dial, identity};
use uuid::Uuid;

use crate::failure::Failure;
use crate::notes::Notes;
use crate::options::Options;

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

/// Asks the server everything.
pub fn ask(options: &Options, notes: &mut Notes) -> Result<Answers, Failure> {
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
    let clients = asked.reply("WHO", "a number from 1 on", notes, clients)?;
    let id = asked.reply("WHERE", "a UUID", notes, id)?;
    asked.reply("WHY", "42", notes, |reply| (reply == "42").then_some(()))?;
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
    /// The reply to this request, as `read` makes it out; `right` says in words what it makes out.
    fn reply<T>(
        &mut self,
        request: &'static str,
        right: &'static str,
        notes: &mut Notes,
        read: impl FnOnce(&str) -> Option<T>,
    ) -> Result<T, Failure> {
        let line = self.connection.line(request, self.deadline)?;
        notes.add(|| format!("{request}: {}", quoted(&line)));
        if line.starts_with(b"ERR ") {
            return Err(Failure::Refused { line });
        }
        let reply = std::str::from_utf8(&line).ok().and_then(read);
        reply.ok_or(Failure::Wrong {
            request,
            line,
            right,
        })
    }
}

/// Decimal digits, and at least the one who asks.
fn clients(reply: &str) -> Option<u64> {
    let digits = reply.bytes().all(|byte| byte.is_ascii_digit());
    digits
        .then(|| reply.parse().ok())?
        .filter(|clients| *clients > 0)
}

/// In the usual 36 characters, small letters.
fn id(reply: &str) -> Option<Uuid> {
    let id = identity::parse(reply.as_bytes()).ok()?;
    (id.hyphenated().to_string() == reply).then_some(id)
}
