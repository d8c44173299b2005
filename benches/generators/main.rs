//! Whether `blockchain-tcp bench` reports what is: beside it a load generator that shares nothing with it (`independent.c`), and
//! what the server itself has counted meanwhile.
//!
//! `make bench-generators`. The daemon has one core, and whoever asks it the other. In each round both generators put the same
//! load on the same server in turn; the ratios are medians of those of the rounds. A generator that says another number of
//! requests than the server has counted ends the run. No load generator in Debian 12 speaks a line protocol in a closed loop
//! at such rates: hence one of our own, in C.

#[path = "../common/mod.rs"]
mod common;
#[allow(dead_code, reason = "only the numbers of the cores are needed")]
#[path = "../serving/cores.rs"]
mod cores;
#[path = "../serving/launch.rs"]
mod launch;
mod server;
mod witnesses;

use std::env;
use std::process::ExitCode;
use std::time::Duration;

use clap::Parser;

use common::{Length, Result};
use cores::Cores;
use server::Server;
use witnesses::{Load, Measured, Witness};

/// Compares what `blockchain-tcp bench` reports with what others see.
#[derive(Parser)]
#[command(name = "generators")]
struct Options {
    /// How often each load is measured by each generator.
    #[arg(long, value_name = "N", default_value_t = 9)]
    rounds: usize,

    /// How long each measurement takes.
    #[arg(long, value_name = "S", default_value_t = 2.0)]
    seconds: f64,

    #[command(flatten)]
    length: Length,
}

/// The loads: clients, and requests that each has on the way.
const LOADS: [Load; 4] = [
    Load::new(1, 1),
    Load::new(16, 1),
    Load::new(64, 1),
    Load::new(16, 16),
];

fn main() -> ExitCode {
    // This program is also the launcher of what it starts.
    let mut arguments = env::args_os().skip(1);
    let outcome = match arguments.next() {
        Some(role) if role == launch::ROLE => launch::run(arguments),
        _ => compare(&Options::parse()),
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("generators: {error}");
            ExitCode::FAILURE
        }
    }
}

fn compare(options: &Options) -> Result<()> {
    let (rounds, seconds) = match options.length.is_quick() {
        true => (1, 0.5),
        false => (options.rounds.max(1), options.seconds),
    };
    let Some(independent) = witnesses::compile()? else {
        println!("Left out: there is no C compiler (cc) in PATH.");
        return Ok(());
    };
    let cores = Cores::choose()?;
    println!("{cores}; rounds: {rounds}, seconds for a measurement: {seconds}");
    println!("{}", HEADER.join("\n"));
    let witnesses = [Witness::Bench, Witness::Independent(independent)];
    for load in LOADS {
        let server = Server::start(cores.server)?;
        let mut found: [Vec<Measured>; 2] = Default::default();
        for round in 0..rounds {
            // Another one first in each round.
            for turn in [round % 2, (round + 1) % 2] {
                let time = Duration::from_secs_f64(seconds);
                let measured = witnesses[turn].measure(&server, cores.generator, load, time)?;
                eprintln!(
                    "round {}/{rounds} {load}: {:<14} {measured}",
                    round + 1,
                    witnesses[turn].name()
                );
                found[turn].push(measured);
            }
        }
        println!("{load}{}", columns(&found));
    }
    if let Some(note) = cores.note() {
        println!("{note}");
    }
    Ok(())
}

const HEADER: [&str; 2] = [
    "               |        replies a second         bench to   |    p50, µs               |    p99, µs",
    "clients  depth |     bench  independent  server  ind.   srv |  bench     ind.    ratio |  bench     ind.    ratio",
];

/// The medians, and those of the ratios in each round.
fn columns([bench, independent]: &[Vec<Measured>; 2]) -> String {
    let middle = |of: &[Measured], what: fn(&Measured) -> f64| median(of.iter().map(what));
    let ratio = |what: fn(&Measured) -> f64| {
        median(
            bench
                .iter()
                .zip(independent)
                .map(|(a, b)| what(a) / what(b)),
        )
    };
    let mut text = format!(
        " | {:>9.0} {:>12.0} {:>7.0}  {:.3} {:.3}",
        middle(bench, |one| one.rate),
        middle(independent, |one| one.rate),
        middle(bench, |one| one.served),
        ratio(|one| one.rate),
        median(bench.iter().map(|one| one.rate / one.served)),
    );
    let latencies: [fn(&Measured) -> f64; 2] = [|one| one.p50, |one| one.p99];
    for what in latencies {
        let (ours, theirs) = (middle(bench, what), middle(independent, what));
        text += &format!(" | {ours:>7.1} {theirs:>7.1} {:>8.3}", ratio(what));
    }
    text
}

fn median(values: impl Iterator<Item = f64>) -> f64 {
    let mut values: Vec<f64> = values.collect();
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied().unwrap_or(f64::NAN)
}
