//! What may be asked of a run.

use std::time::Duration;

use clap::Parser;

use crate::contestant::Contestant;

/// Measures blockchain-tcpd beside a minimal server of its architecture and Redis.
///
/// Prints one table to standard output, and each measurement to standard error while it runs. Without --bench, which
/// cargo bench adds, the run is a quick one: that is how cargo test starts benches.
#[derive(Parser)]
#[command(name = "serving")]
pub struct Options {
    /// How often each mode is measured for each contestant; the medians are reported.
    #[arg(long, value_name = "N", default_value_t = 5, value_parser = clap::value_parser!(u16).range(1..=1000))]
    rounds: u16,

    /// How long each measurement takes, 0.05 to 60 seconds.
    #[arg(long, value_name = "S", default_value = "1", value_parser = seconds)]
    seconds: Duration,

    /// Measure only the modes with MODE in their name (repeatable); a name that is none lists them.
    #[arg(long, value_name = "MODE")]
    pub only: Vec<String>,

    /// Who takes part, the one that the ratios are about first.
    #[arg(
        long,
        value_enum,
        value_name = "NAMES",
        value_delimiter = ',',
        default_value = "blockchain-tcpd,minimal,spawning,redis"
    )]
    pub contestants: Vec<Contestant>,

    /// One round of 0.3 s with smaller counts: shows that everything works, not how fast.
    #[arg(long)]
    quick: bool,

    /// Added by cargo bench.
    #[arg(long, hide = true)]
    bench: bool,
}

impl Options {
    /// Reads the command line; explains and exits when it is wrong.
    pub fn read() -> Options {
        Options::parse()
    }

    /// Whether the counts are the small ones.
    pub fn is_quick(&self) -> bool {
        self.quick || !self.bench
    }

    /// How many rounds are run.
    pub fn rounds(&self) -> usize {
        if self.is_quick() {
            1
        } else {
            usize::from(self.rounds)
        }
    }

    /// How long a measurement takes.
    pub fn seconds(&self) -> Duration {
        if self.is_quick() {
            Duration::from_millis(300)
        } else {
            self.seconds
        }
    }
}

/// Parses the length of a measurement.
fn seconds(text: &str) -> Result<Duration, String> {
    match text.parse::<f64>() {
        Ok(seconds) if (0.05..=60.0).contains(&seconds) => Ok(Duration::from_secs_f64(seconds)),
        _ => Err("not a number from 0.05 to 60".to_string()),
    }
}
