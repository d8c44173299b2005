//! What a server uses: CPU time and memory.

use std::fs;
use std::time::{Duration, Instant};

use rustix::process::Pid;

use crate::{Result, sys};

/// The part of a measurement's time that goes before it, uncounted.
pub const WARM_UP: f64 = 0.2;

/// The beginning of a span.
pub struct Mark {
    /// When it is.
    pub at: Instant,
    /// Whose CPU time it is.
    server: Pid,
    /// The CPU time used until then.
    cpu: Duration,
}

/// What happened between two marks.
pub struct Span {
    /// How many requests were answered.
    pub requests: u64,
    /// How long it took.
    pub wall: Duration,
    /// The CPU time that the server used.
    pub cpu: Duration,
}

impl Mark {
    /// Reads the clocks.
    pub fn now(server: Pid) -> Result<Mark> {
        Ok(Mark {
            server,
            cpu: sys::process_cpu_time(server)?,
            at: Instant::now(),
        })
    }

    /// What the server needed since then for so many requests.
    pub fn span(&self, requests: u64) -> Result<Span> {
        let wall = self.at.elapsed();
        let cpu = sys::process_cpu_time(self.server)?.saturating_sub(self.cpu);
        if requests == 0 {
            return Err("there is nothing to measure without a request".into());
        }
        Ok(Span {
            requests,
            wall,
            cpu,
        })
    }
}

/// The memory of a process that is resident, in KiB.
pub fn resident_kib(pid: Pid) -> Result<f64> {
    let status = fs::read_to_string(format!("/proc/{}/status", pid.as_raw_nonzero()))?;
    status
        .lines()
        .find_map(|line| {
            line.strip_prefix("VmRSS:")?
                .split_whitespace()
                .next()?
                .parse()
                .ok()
        })
        .ok_or_else(|| "the kernel doesn't say how much memory the server has".into())
}
