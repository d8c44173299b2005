//! The check itself: where the server is, the way there, and what it has to answer; within one deadline for all of it.

use std::io;
use std::net::{SocketAddr, TcpStream, ToSocketAddrs as _};
use std::sync::mpsc;
use std::thread;
use std::time::{Duration, Instant};

use blockchain_tcpd::identity;
use uuid::Uuid;

use crate::conversation::Conversation;
use crate::deadline::{Deadline, SHORTEST_WAIT};
use crate::failure::{Failure, quoted};
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

/// Asks the server everything.
pub fn ask(options: &Options, notes: &mut Notes) -> Result<Answers, Failure> {
    let deadline = Deadline::after(options.timeout);
    let addresses = addresses(options, deadline)?;
    notes.add(|| format!("addresses: {addresses:?}"));
    let begun = Instant::now();
    let (stream, address) = connect(&addresses, deadline, notes)?;
    let mut conversation = Conversation::begin(stream, deadline);
    let clients = conversation.reply("WHO", "a number from 1 on", notes, clients)?;
    let id = conversation.reply("WHERE", "a UUID", notes, id)?;
    conversation.reply("WHY", "42", notes, |reply| (reply == "42").then_some(()))?;
    let time = begun.elapsed();
    conversation.end()?;
    notes.add(|| "closed by the server".to_string());
    Ok(Answers {
        clients,
        id,
        time,
        address,
    })
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

/// The addresses of the server, of the kind that was asked for, in the order in which the system names them.
fn addresses(options: &Options, deadline: Deadline) -> Result<Vec<SocketAddr>, Failure> {
    let mut addresses = lookup(options, deadline)?;
    let host = || options.host.clone();
    let wanted = |address: &SocketAddr| match address {
        SocketAddr::V4(_) => !options.use_ipv6,
        SocketAddr::V6(_) => !options.use_ipv4,
    };
    addresses.retain(wanted);
    if addresses.is_empty() {
        let kind = if options.use_ipv6 { "IPv6" } else { "IPv4" };
        return Err(Failure::Kind { host: host(), kind });
    }
    Ok(addresses)
}

/// The resolver can't be told how long it may take: it is asked in a thread, which ends with the process.
fn lookup(options: &Options, deadline: Deadline) -> Result<Vec<SocketAddr>, Failure> {
    let (answer, answered) = mpsc::channel();
    let name = (options.host.clone(), options.port);
    let resolver = move || {
        // Nobody waits any more if the time is over.
        let _ = answer.send(name.to_socket_addrs().map(Vec::from_iter));
    };
    let thread = thread::Builder::new()
        .name("lookup".to_string())
        .spawn(resolver);
    thread.map_err(Failure::Thread)?;
    let doing = || format!("no address of {} is found", quoted(options.host.as_bytes()));
    match answered.recv_timeout(deadline.left(doing)?) {
        Ok(Ok(addresses)) => Ok(addresses),
        Ok(Err(error)) => Err(Failure::Lookup {
            host: options.host.clone(),
            reason: reason(&error),
        }),
        Err(_) => Err(deadline.missed(doing())),
    }
}

/// What the resolver said, without the words that std puts before it.
fn reason(error: &io::Error) -> String {
    let text = error.to_string();
    text.rsplit(": ").next().unwrap_or(&text).to_string()
}

/// The first connection that comes about. Each address has an equal share of the time that the ones before it have left.
fn connect(
    addresses: &[SocketAddr],
    deadline: Deadline,
    notes: &mut Notes,
) -> Result<(TcpStream, SocketAddr), Failure> {
    let mut refusals = Vec::new();
    for (number, address) in addresses.iter().enumerate() {
        let left = deadline.left(|| format!("no connection to {address}"))?;
        let others = u32::try_from(addresses.len() - number).unwrap_or(u32::MAX);
        match TcpStream::connect_timeout(address, (left / others).max(SHORTEST_WAIT)) {
            Ok(stream) => {
                notes.add(|| format!("connected to {address}"));
                return Ok((stream, *address));
            }
            Err(error) => {
                notes.add(|| format!("not connected to {address}: {error}"));
                refusals.push((*address, error));
            }
        }
    }
    Err(Failure::Connect(refusals))
}
