//! What a cluster over Redis costs: WHO with it and without, and Redis with 3 to 1,000 servers.
//!
//! `make bench-cluster`. The servers of the second part are the daemon's own code, each its thread with its connection, all in
//! this process; Redis is a real one. Everything is compared within one run.

#[path = "../common/mod.rs"]
mod common;
mod growth;
mod who;

use std::process::ExitCode;
use std::time::Duration;

use clap::Parser;

use common::{Length, Result};

/// Measures what a cluster over Redis costs.
#[derive(Parser)]
#[command(name = "cluster")]
struct Options {
    /// How many servers there are, separated by commas.
    #[arg(long, value_delimiter = ',', default_value = "3,30,300,1000")]
    servers: Vec<usize>,

    /// How long each number of servers is watched, in seconds, quiet and busy.
    #[arg(long, default_value_t = 10)]
    seconds: u64,

    /// How often WHO is measured with a cluster and without; medians are reported.
    #[arg(long, default_value_t = 21)]
    rounds: usize,

    #[command(flatten)]
    length: Length,
}

fn main() -> ExitCode {
    let mut options = Options::parse();
    if options.length.is_quick() {
        options.servers = vec![3, 30];
        options.seconds = 1;
        options.rounds = 1;
    }
    match run(&options) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("cluster: {error}");
            ExitCode::FAILURE
        }
    }
}

fn run(options: &Options) -> Result<()> {
    if common::server::redis_version().is_none() {
        println!("Left out: there is no redis-server in PATH.");
        return Ok(());
    }
    who::measure(options.rounds)?;
    growth::measure(&options.servers, Duration::from_secs(options.seconds))
}
