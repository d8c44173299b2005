//! How much of this machine its host gave to others: a virtual machine whose cores are taken away answers late, whoever asks.

use std::fs;

use crate::Result;

/// The kernel's counts of ticks at a moment; see proc_stat(5).
pub struct Host {
    stolen: f64,
    all: f64,
}

impl Host {
    /// The counts since the machine was started.
    pub fn now() -> Result<Self> {
        let text = fs::read_to_string("/proc/stat")?;
        let words = text.split_whitespace().skip(1);
        let ticks: Vec<f64> = words.map_while(|word| word.parse().ok()).take(8).collect();
        let stolen = *ticks.get(7).ok_or("/proc/stat has an unknown form")?;
        let all = ticks.iter().sum();
        Ok(Host { stolen, all })
    }

    /// The part of all cores' time that the host gave to others since this moment.
    pub fn stolen_since(&self) -> Result<f64> {
        let now = Host::now()?;
        Ok((now.stolen - self.stolen) / (now.all - self.all).max(1.0))
    }
}
