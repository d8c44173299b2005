//! The daemon that is asked, and what it has counted.

use std::ffi::{OsStr, OsString};
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::process::{Child, Stdio};
use std::time::Duration;

use crate::{Result, launch};

/// What it counts requests in.
const COUNTER: &str = "blockchain_tcpd_requests_total{";

/// How long it may take to tell.
const PATIENCE: Duration = Duration::from_secs(10);

/// The daemon, on a core of its own. Dropped, it is killed.
pub struct Daemon {
    child: Child,
    /// Where it is asked.
    pub address: SocketAddr,
    http: SocketAddr,
}

impl Daemon {
    /// Starts it, and waits until it is ready.
    pub fn start(core: usize) -> Result<Daemon> {
        let arguments = ["--listen", "127.0.0.1:0", "--http", "127.0.0.1:0"].map(OsString::from);
        let program = OsStr::new(env!("CARGO_BIN_EXE_blockchain-tcpd"));
        let mut child = launch::command(core, program, &arguments)?
            // No settings of whoever runs this.
            .env_clear()
            .stdin(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()?;
        let log = child.stderr.take().ok_or("no log")?;
        let nowhere = SocketAddr::from(([0; 4], 0));
        // From here on it is killed if something goes wrong.
        let mut daemon = Daemon {
            child,
            address: nowhere,
            http: nowhere,
        };
        for line in BufReader::new(log).lines() {
            let line = line?;
            if line.contains("ready listen=") {
                daemon.address = field(&line, "listen")?.parse()?;
                daemon.http = field(&line, "http")?.parse()?;
                return Ok(daemon);
            }
        }
        Err("the daemon ended".into())
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

/// The value of a key in a line of the log.
fn field<'a>(line: &'a str, key: &str) -> Result<&'a str> {
    let value = line.split_once(&format!(" {key}=")).map(|(_, rest)| rest);
    let value = value.and_then(|rest| rest.split(' ').next());
    value.ok_or_else(|| format!("no {key}= in {line}").into())
}

impl Drop for Daemon {
    fn drop(&mut self) {
        // Both fail only when it has ended already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
