//! One client that blocks, for the core that it shares with the server: there epoll would only cost.

use std::io::{self, ErrorKind, Read, Write};
use std::net::TcpStream;
use std::time::{Duration, Instant};

use rustix::process::Pid;

use crate::Result;
use crate::meter::{Mark, Span, WARM_UP};
use crate::target::{Target, check};

/// A server that doesn't reply for so long has failed.
const PATIENCE: Duration = Duration::from_secs(10);

/// How many requests are asked between two looks at the clock.
const UNTIMED: u64 = 16;

/// Asks one request at a time for a time.
pub fn run(target: &Target, server: Pid, time: Duration) -> Result<Span> {
    let mut client = TcpStream::connect(target.address)?;
    client.set_nodelay(true)?;
    client.set_read_timeout(Some(PATIENCE))?;
    let warm = Instant::now() + time.mul_f64(WARM_UP);
    while Instant::now() < warm {
        ask(&mut client, target)?;
    }
    let mark = Mark::now(server)?;
    let end = mark.at + time;
    let mut asked = 0;
    while Instant::now() < end {
        for _ in 0..UNTIMED {
            ask(&mut client, target)?;
        }
        asked += UNTIMED;
    }
    mark.span(asked)
}

/// Asks once and reads the whole reply.
fn ask(client: &mut TcpStream, target: &Target) -> Result<()> {
    let failed = |error: io::Error| match error.kind() {
        ErrorKind::WouldBlock => format!("no reply for {} s", PATIENCE.as_secs()),
        _ => format!("the client lost its connection: {error}"),
    };
    client.write_all(target.dialect.request).map_err(failed)?;
    let reply = target.dialect.reply;
    let mut received = 0;
    while received < reply.len() {
        let mut bytes = [0; 256];
        let count = client.read(&mut bytes).map_err(failed)?;
        received += check(&bytes[..count], &reply[received..])?;
    }
    Ok(())
}
