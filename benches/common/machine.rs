//! Processor time and memory of processes, and what else the machine does.

#![allow(unsafe_code, reason = "the clock of another process")]

use std::fs;
use std::io;
use std::mem::MaybeUninit;
use std::time::Duration;

use rustix::process::Pid;

use super::Result;

/// Returns the processor time of all threads of a process so far, those that have ended included.
pub fn cpu_time(pid: Pid) -> io::Result<Duration> {
    /// Marks a clock of the nanoseconds that the scheduler gave to a process.
    const CPUCLOCK_SCHED: libc::clockid_t = 2;
    let clock = (!pid.as_raw_nonzero().get() << 3) | CPUCLOCK_SCHED;
    let mut time = MaybeUninit::<libc::timespec>::uninit();
    // SAFETY: the pointer is good for writing one timespec.
    if unsafe { libc::clock_gettime(clock, time.as_mut_ptr()) } != 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the call above succeeded and so has filled it in.
    let time = unsafe { time.assume_init() };
    Ok(Duration::new(time.tv_sec as u64, time.tv_nsec as u32))
}

/// Returns the resident memory of a process in KiB.
pub fn resident_kib(pid: Pid) -> Result<f64> {
    let status = fs::read_to_string(format!("/proc/{}/status", pid.as_raw_nonzero()))?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    let kib = line.and_then(|line| line.split_whitespace().next());
    Ok(kib.ok_or("no VmRSS in /proc")?.parse()?)
}

/// The kernel's counts of ticks at a moment; see proc_stat(5).
pub struct Ticks {
    /// Of all cores.
    all: f64,
    /// In which a process ran, or the host of a virtual machine had the core.
    busy: f64,
    /// Those of the host.
    stolen: f64,
    /// Of this process and of its children that have ended.
    own: f64,
}

impl Ticks {
    /// Returns the counts since the machine was started.
    pub fn now() -> Result<Self> {
        let stat = fs::read_to_string("/proc/stat")?;
        let words = stat.split_whitespace().skip(1);
        let ticks: Vec<f64> = words.map_while(|word| word.parse().ok()).take(8).collect();
        let &[user, nice, system, .., stolen] = ticks.as_slice() else {
            return Err("the kernel's /proc/stat has an unknown form".into());
        };
        let own = fs::read_to_string("/proc/self/stat")?;
        // The name in parentheses may hold blanks; the times are the 12th to 15th word after it.
        let (_, words) = own.rsplit_once(')').unwrap_or_default();
        let times = words.split_whitespace().skip(11).take(4);
        Ok(Ticks {
            all: ticks.iter().sum(),
            busy: user + nice + system + stolen,
            stolen,
            own: times.filter_map(|word| word.parse::<f64>().ok()).sum(),
        })
    }

    /// Returns the parts of all cores' time since this moment that the host took, and that all
    /// others but this process took.
    pub fn taken_since(&self) -> Result<(f64, f64)> {
        let now = Ticks::now()?;
        let all = (now.all - self.all).max(1.0);
        let others = now.busy - self.busy - (now.own - self.own);
        Ok(((now.stolen - self.stolen) / all, others / all))
    }
}
