//! A Redis of the bench's own, and what it says of itself.

use std::io::{BufRead as _, BufReader, Write as _};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use crate::Result;

/// A running Redis. Dropped, it is killed.
pub struct Redis {
    child: Child,
    address: SocketAddr,
}

/// What it has done so far.
#[derive(Clone, Copy)]
pub struct Done {
    /// Commands, those of scripts included.
    pub commands: f64,
    /// Processor time, in seconds.
    pub cpu: f64,
    /// Bytes sent.
    pub sent: f64,
}

/// Whether there is one.
pub fn is_installed() -> bool {
    let version = Command::new("redis-server").arg("--version").output();
    version.is_ok_and(|output| output.status.success())
}

impl Redis {
    /// Starts one, which keeps nothing.
    pub fn start() -> Result<Self> {
        let address = TcpListener::bind("127.0.0.1:0")?.local_addr()?;
        let mut child = Command::new("redis-server")
            .args(["--bind", "127.0.0.1", "--port", &address.port().to_string()])
            .args(["--save", "", "--appendonly", "no", "--maxclients", "5000"])
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .spawn()?;
        let log = BufReader::new(child.stdout.take().ok_or("it has no stdout")?);
        let mut redis = Redis { child, address };
        for line in log.lines() {
            if line?.contains("Ready to accept connections") {
                return Ok(redis);
            }
        }
        Err(format!("redis-server ended: {}", redis.child.wait()?).into())
    }

    /// Its address as the daemon takes it.
    pub fn url(&self) -> String {
        format!("redis://{}", self.address)
    }

    /// What it has done so far.
    pub fn done(&self) -> Result<Done> {
        let mut stream = TcpStream::connect(self.address)?;
        stream.set_read_timeout(Some(Duration::from_secs(10)))?;
        stream.write_all(b"INFO everything\r\nQUIT\r\n")?;
        let mut done = Done {
            commands: 0.0,
            cpu: 0.0,
            sent: 0.0,
        };
        for line in BufReader::new(stream).lines() {
            let line = line?;
            let Some((name, value)) = line.split_once(':') else {
                continue;
            };
            let number = || value.trim().parse::<f64>();
            match name {
                "total_commands_processed" => done.commands = number()?,
                "used_cpu_sys" | "used_cpu_user" => done.cpu += number()?,
                "total_net_output_bytes" => done.sent = number()?,
                _ => {}
            }
        }
        Ok(done)
    }
}

impl Drop for Redis {
    fn drop(&mut self) {
        // It may have ended.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
