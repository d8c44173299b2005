//! What else the machine did during the run: figures from a busy machine aren't worth comparing.

use std::fs;

use crate::Result;

/// More than this part of a core taken by others is worth a warning.
const QUIET: f64 = 0.05;

/// The kernel's counts of ticks at the beginning.
pub struct Noise {
    /// Ticks in which any process ran, or another machine had the core.
    busy: u64,
    /// All ticks of all cores.
    all: u64,
    /// Ticks of this process and of the servers that have ended.
    own: u64,
    /// How many cores there are.
    cores: u64,
}

impl Noise {
    /// Begins to listen; no server may run now.
    pub fn begin() -> Result<Noise> {
        let stat = fs::read_to_string("/proc/stat")?;
        let cores = stat
            .lines()
            .filter(|line| line.starts_with("cpu") && !line.starts_with("cpu "))
            .count() as u64;
        let ticks: Vec<u64> = stat
            .split_whitespace()
            .skip(1)
            .map_while(|word| word.parse().ok())
            .collect();
        let &[user, nice, system, idle, waiting, irq, softirq, steal, ..] = ticks.as_slice() else {
            return Err("the kernel's /proc/stat has an unknown form".into());
        };
        let own = fs::read_to_string("/proc/self/stat")?;
        // The name in parentheses may hold blanks; the times of this process and of the servers that have ended are
        // the 12th to 15th word after it.
        let (_, words) = own.rsplit_once(')').unwrap_or_default();
        let times = words.split_whitespace().skip(11).take(4);
        Ok(Noise {
            busy: user + nice + system + steal,
            all: user + nice + system + idle + waiting + irq + softirq + steal,
            own: times.filter_map(|word| word.parse::<u64>().ok()).sum(),
            cores: cores.max(1),
        })
    }

    /// A warning if others took a good part of the machine since the beginning; no server may run now.
    pub fn end(&self) -> Result<Option<String>> {
        let now = Noise::begin()?;
        let wall = (now.all - self.all) as f64 / self.cores as f64;
        let others = (now.busy - self.busy).saturating_sub(now.own - self.own);
        let part = others as f64 / wall.max(1.0);
        Ok((part > QUIET).then(|| {
            format!(
                "Others on this machine took {:.0} % of a core during this run: rates and latencies can't be trusted.",
                part * 100.0
            )
        }))
    }
}
