//! What a request costs `blockchain-tcpd`, beside others who answer the same in the same run.
//!
//! Every measurement starts a fresh server on one core and loads it from another with the generator
//! of `blockchain-tcp bench`, on one thread, which compares every reply byte for byte. All
//! contestants take their turn at each mode, in each round, in an order that rotates. What is
//! printed is one table of medians: first what the daemon needs for each unit of what the reference
//! needs, and CPU time before rates, because CPU time depends least on what else the machine does.
//!
//! [`modes`] lists what is measured, in which sizes, and [`measure`] does it; [`contestant`] starts
//! a server, and [`minimal`] is one; [`results`] and [`table`] are what comes out.

#[path = "../common/mod.rs"]
mod common;
mod contestant;
mod measure;
mod minimal;
mod modes;
mod results;
mod table;

use std::env;
use std::process::ExitCode;
use std::time::Duration;

use clap::Parser;

use common::cores::Cores;
use common::load::Generator;
use common::machine::Ticks;
use common::{Length, Result};
use contestant::Contestant;
use results::Results;

/// The part of the machine that others may take before the table warns of it.
const QUIET: f64 = 0.05;

/// Measures blockchain-tcpd beside a minimal server of its architecture and Redis.
///
/// Prints one table to standard output, and each measurement to standard error while it runs.
/// Without --bench, which cargo bench adds, the run is a quick one: that is how cargo test starts
/// benches.
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
    only: Vec<String>,

    /// Who takes part, the one that the ratios are about first.
    #[arg(
        long,
        value_enum,
        value_name = "NAMES",
        value_delimiter = ',',
        default_value = "blockchain-tcpd,minimal,spawning,redis"
    )]
    contestants: Vec<Contestant>,

    /// Let server and generator use all cores: for rates as users meet them.
    #[arg(long)]
    unpinned: bool,

    #[command(flatten)]
    length: Length,
}

/// Parses the length of a measurement.
fn seconds(text: &str) -> std::result::Result<Duration, String> {
    match text.parse::<f64>() {
        Ok(seconds) if (0.05..=60.0).contains(&seconds) => Ok(Duration::from_secs_f64(seconds)),
        _ => Err("not a number from 0.05 to 60".to_string()),
    }
}

fn main() -> ExitCode {
    // This program is also two of the servers.
    let mut arguments = env::args().skip(1);
    let outcome = match arguments.next().as_deref() {
        Some(minimal::POOL_ROLE) => minimal::run_pool(arguments.next()),
        Some(minimal::SPAWNING_ROLE) => minimal::run_spawning(),
        _ => bench(Options::parse()),
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("serving: {error}");
            ExitCode::FAILURE
        }
    }
}

/// Runs all rounds and prints the table.
fn bench(mut options: Options) -> Result<()> {
    if options.length.is_quick() {
        (options.rounds, options.seconds) = (1, Duration::from_millis(300));
    }
    let cores = match options.unpinned {
        true => Cores::All,
        false => Cores::choose()?,
    };
    let modes = modes::chosen(&options)?;
    // Also that of the servers, which inherit it.
    Generator::raise_descriptor_limit();
    let (contestants, absent) = contestant::present(&options.contestants)?;
    let mut notes: Vec<String> = absent.into_iter().chain(cores.note()).collect();
    let ticks = Ticks::now()?;
    let mut results = Results::default();
    for round in 0..options.rounds {
        for mode in &modes {
            let suits = |one: &Contestant| mode.load.suits(*one);
            let mut turn: Vec<_> = contestants.iter().copied().filter(suits).collect();
            // Another one first in each round, so that none always finds the machine as the same
            // other left it.
            let first = usize::from(round) % turn.len().max(1);
            turn.rotate_left(first);
            for contestant in turn {
                let found = measure::run(&cores, options.seconds, contestant, &mode.load)
                    .map_err(|error| format!("{contestant} at {}: {error}", mode.name))?;
                eprintln!(
                    "round {}/{}  {:<16} {contestant:<16} {}",
                    round + 1,
                    options.rounds,
                    mode.name,
                    results::line(&found)
                );
                results.add(mode, contestant, found);
            }
        }
    }
    let (_, others) = ticks.taken_since()?;
    if others > QUIET {
        let percent = others * 100.0;
        notes.push(format!(
            "Others took {percent:.0} % of this machine during this run: rates and latencies can't be trusted."
        ));
    }
    println!(
        "{}; {cores}; rounds: {}, seconds for a measurement: {}\n",
        contestant::versions(&contestants),
        options.rounds,
        options.seconds.as_secs_f64()
    );
    print!("{}", table::render(&contestants, &modes, &results, &notes));
    Ok(())
}
