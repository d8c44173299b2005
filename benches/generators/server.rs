//! The daemon that is asked, on a core of its own, and what it has counted.

use std::ffi::{OsStr, OsString};
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

use crate::common::daemon::{Daemon, PROGRAM};
use crate::{Result, launch};

/// What it counts requests in.
const COUNTER: &str = "blockchain_tcpd_requests_total{";

/// How long it may take to tell.
const PATIENCE: Duration = Duration::from_secs(10);

/// The daemon, on a core of its own.
pub struct Server {
    daemon: Daemon,
    http: SocketAddr,
}

impl Server {
    /// Starts it, and waits until it is ready.
    pub fn start(core: usize) -> Result<Server> {
        let arguments = ["--http", "127.0.0.1:0"].map(OsString::from);
        let mut command = launch::command(core, OsStr::new(PROGRAM), &arguments)?;
        let daemon = Daemon::start(&mut command)?;
        let http = daemon.http.ok_or("it shows no metrics")?;
        Ok(Server { daemon, http })
    }

    /// Where it is asked.
    pub fn address(&self) -> SocketAddr {
        self.daemon.address
    }

    /// How many requests it has answered.
    pub fn answered(&self) -> Result<u64> {
        let mut stream = TcpStream::connect_timeout(&self.http, PATIENCE)?;
        stream.set_read_timeout(Some(PATIENCE))?;
        stream
            .write_all(b"GET /metrics HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")?;
        let mut text = String::new();
        stream.read_to_string(&mut text)?;
        let mut sum = 0;
        for line in text.lines().filter(|line| line.starts_with(COUNTER)) {
            sum += line.rsplit(' ').next().unwrap_or_default().parse::<u64>()?;
        }
        Ok(sum)
    }
}
