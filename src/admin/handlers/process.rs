//! Resource usage of this process (proc_pid_stat(5)).

use std::fs;

use rustix::param::{clock_ticks_per_second, page_size};
use rustix::process::{Resource, getrlimit};
use rustix::time::{ClockId, Timespec, clock_gettime};

/// Resource usage: seconds of processor time, bytes, threads and file descriptors.
#[derive(Debug)]
pub struct Process {
    pub cpu_seconds: f64,
    /// Start time, in seconds since 1970.
    pub start_seconds: f64,
    pub resident_bytes: u64,
    pub virtual_bytes: u64,
    pub threads: u64,
    /// `None` if /proc/self/fd is not readable.
    pub open_fds: Option<u64>,
    /// `None` if there is no limit.
    pub max_fds: Option<u64>,
}

impl Process {
    /// Reads the usage now; returns `None` if /proc is not readable.
    pub fn now() -> Option<Self> {
        let stat = fs::read_to_string("/proc/self/stat").ok()?;
        // The second field, the name, may hold any character; it ends with the last parenthesis.
        let (_, rest) = stat.rsplit_once(") ")?;
        let fields: Vec<&str> = rest.split_whitespace().collect();
        // The manual counts from 1, and two fields are cut off.
        let field = |number: usize| fields.get(number - 3)?.parse::<u64>().ok();
        let ticks = clock_ticks_per_second() as f64;
        let since_boot = field(22)? as f64 / ticks;
        let open = fs::read_dir("/proc/self/fd").ok();
        Some(Process {
            cpu_seconds: (field(14)? + field(15)?) as f64 / ticks,
            start_seconds: boot_seconds() + since_boot,
            resident_bytes: field(24)? * page_size() as u64,
            virtual_bytes: field(23)?,
            threads: field(20)?,
            // Reading the directory needs a descriptor itself.
            open_fds: open.map(|open| (open.count() as u64).saturating_sub(1)),
            max_fds: getrlimit(Resource::Nofile).current,
        })
    }
}

/// Returns when the machine booted, in seconds since 1970. The result must not vary: a process is
/// recognized by its start time.
fn boot_seconds() -> f64 {
    let stat = fs::read_to_string("/proc/stat").unwrap_or_default();
    let booted = stat
        .lines()
        .find_map(|line| line.strip_prefix("btime ")?.parse().ok());
    // A sandbox may hide it (ProcSubset= in systemd.exec(5)). The two clocks are not read at the
    // same moment, so the difference is rounded.
    booted.unwrap_or_else(|| (seconds(ClockId::Realtime) - seconds(ClockId::Boottime)).round())
}

fn seconds(clock: ClockId) -> f64 {
    let Timespec { tv_sec, tv_nsec } = clock_gettime(clock);
    tv_sec as f64 + tv_nsec as f64 / 1e9
}
