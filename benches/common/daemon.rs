//! The daemon that is asked.

use std::io::{BufRead as _, BufReader, Lines};
use std::net::SocketAddr;
use std::process::{Child, ChildStderr, Command, Stdio};

use super::Result;

/// The program.
pub const PROGRAM: &str = env!("CARGO_BIN_EXE_blockchain-tcpd");

/// A running daemon. Dropped, it is killed.
pub struct Daemon {
    /// Its process.
    pub child: Child,
    /// Where it is asked.
    pub address: SocketAddr,
    /// Where it shows its metrics, if it does.
    pub http: Option<SocketAddr>,
    /// Open, also when nobody reads it: the daemon says little, which the pipe has room for.
    log: Lines<BufReader<ChildStderr>>,
}

impl Daemon {
    /// Starts it by a command that is [`PROGRAM`] or becomes it, on a free port, and waits until it is ready.
    pub fn start(command: &mut Command) -> Result<Daemon> {
        let mut child = command
            .args(["--listen", "127.0.0.1:0"])
            // No settings of whoever runs this.
            .env_clear()
            .stdin(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()?;
        let log = child.stderr.take().ok_or("no log")?;
        // From here on it is killed if something goes wrong.
        let mut daemon = Daemon {
            child,
            address: SocketAddr::from(([0; 4], 0)),
            http: None,
            log: BufReader::new(log).lines(),
        };
        let ready = daemon.wait_for_ready()?;
        daemon.address = field(&ready, "listen").ok_or("no address")?.parse()?;
        daemon.http = field(&ready, "http").and_then(|http| http.parse().ok());
        Ok(daemon)
    }

    /// Waits until it says that it is ready, and returns the line; any warning before that is an error.
    pub fn wait_for_ready(&mut self) -> Result<String> {
        for line in self.log.by_ref() {
            let line = line?;
            if line.contains(" ready listen=") {
                return Ok(line);
            }
            if line.contains(" WARN ") || line.contains(" ERROR ") {
                return Err(line.into());
            }
        }
        Err(format!("the daemon ended: {}", self.child.wait()?).into())
    }
}

/// The value of a key in a line of the log.
fn field<'a>(line: &'a str, key: &str) -> Option<&'a str> {
    let (_, rest) = line.split_once(&format!(" {key}="))?;
    rest.split(' ').next()
}

impl Drop for Daemon {
    fn drop(&mut self) {
        // Both fail only when it has ended already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
