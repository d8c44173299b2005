//! The limit of the architecture: the least that a server with a thread for each connection can do and still answer.
//!
//! It reads a whole stack buffer at a time, finds the lines, compares each with `WHY`, and answers all that it has read
//! with one write. It knows no other command, no limits, no time-outs, no count and no end; what the daemon costs
//! beyond this is the price of those.

use std::io::{self, Write};
use std::net::{Ipv4Addr, SocketAddrV4, TcpListener, TcpStream};
use std::thread;

use rustix::net::sockopt::set_tcp_nodelay;
use rustix::net::{
    AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType, bind, listen, recv, send,
    socket_with,
};

use crate::common::Result;

/// The first argument of the server with a ready pool; the number of workers follows.
pub const POOL_ROLE: &str = "serve-minimal";

/// The first argument of the server that spawns a thread for each connection.
pub const SPAWNING_ROLE: &str = "serve-spawning";

/// How many connections may wait to be accepted.
const BACKLOG: i32 = 4096;

/// The stack of a thread that serves.
const STACK: usize = 64 << 10;

/// The bytes read at a time.
const READ: usize = 1024;

/// The only request that is known.
const WHY: &[u8] = b"WHY";

/// Its reply.
const FORTY_TWO: &[u8] = b"42\n";

/// The room for the replies to one read.
const REPLIES: usize = READ / (WHY.len() + 1) * FORTY_TWO.len();

/// Serves with a fixed pool of threads that wait at a channel.
pub fn run_pool(workers: Option<String>) -> Result<()> {
    let workers: usize = workers.ok_or("no number of workers")?.parse()?;
    let (queue, accepted) = crossbeam_channel::bounded::<TcpStream>(workers);
    for _ in 0..workers {
        let accepted = accepted.clone();
        spawn(move || accepted.iter().for_each(serve))?;
    }
    accept(|client| Ok(queue.send(client)?))
}

/// Serves with a new thread for each connection.
pub fn run_spawning() -> Result<()> {
    accept(|client| spawn(move || serve(client)))
}

/// Starts a thread that serves; it ends with the process.
fn spawn(work: impl FnOnce() + Send + 'static) -> Result<()> {
    thread::Builder::new().stack_size(STACK).spawn(work)?;
    Ok(())
}

/// Listens, says where, and passes on every connection.
fn accept(pass_on: impl Fn(TcpStream) -> Result<()>) -> Result<()> {
    let socket = socket_with(
        AddressFamily::INET,
        SocketType::STREAM,
        SocketFlags::CLOEXEC,
        None,
    )?;
    // Accepted sockets inherit it, which saves a call for each.
    set_tcp_nodelay(&socket, true)?;
    bind(&socket, &SocketAddrV4::new(Ipv4Addr::LOCALHOST, 0))?;
    listen(&socket, BACKLOG)?;
    let listener = TcpListener::from(socket);
    println!("minimal ready listen={}", listener.local_addr()?);
    io::stdout().flush()?;
    loop {
        pass_on(listener.accept()?.0)?;
    }
}

/// Answers one client until it leaves, with calls that go straight to the kernel: read and write through libc, as std
/// does them, cost a few percent more.
fn serve(client: TcpStream) {
    let mut bytes = [0; READ];
    let mut replies = [0; REPLIES];
    // How many bytes of a line that isn't complete stand at the start of `bytes`.
    let mut kept = 0;
    loop {
        let end = match recv(&client, &mut bytes[kept..], RecvFlags::empty()) {
            // Left, vanished, or sent a line that doesn't fit: the slice is empty then.
            Ok((0, _)) | Err(_) => return,
            Ok((count, _)) => kept + count,
        };
        let mut start = 0;
        let mut replied = 0;
        while let Some(length) = bytes[start..end].iter().position(|byte| *byte == b'\n') {
            if &bytes[start..start + length] != WHY {
                return;
            }
            replies[replied..replied + FORTY_TWO.len()].copy_from_slice(FORTY_TWO);
            replied += FORTY_TWO.len();
            start += length + 1;
        }
        if replied > 0 {
            match send(&client, &replies[..replied], SendFlags::NOSIGNAL) {
                // A client that doesn't read is none that this server is made for.
                Ok(sent) if sent == replied => {}
                _ => return,
            }
        }
        bytes.copy_within(start..end, 0);
        kept = end - start;
    }
}
