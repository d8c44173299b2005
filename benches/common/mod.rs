//! What the benches have in common: the load generator of `blockchain-tcp bench`, servers, and what
//! is counted.

#![allow(dead_code, unused_imports, reason = "no bench uses all of it")]

pub mod cores;
pub mod figures;
pub mod machine;
pub mod server;

use std::sync::Arc;
use std::time::Instant;

pub use blockchain_tcp::load;
use load::{AT_ONCE, Generator, Stats, Workload};

/// What can go wrong ends as a sentence for the person who runs the bench.
pub type Result<T> = std::result::Result<T, Box<dyn std::error::Error + Send + Sync>>;

/// Options of every bench.
#[derive(clap::Args)]
pub struct Length {
    /// Show that everything works, not how fast.
    #[arg(long)]
    quick: bool,

    /// Added by cargo bench.
    #[arg(long, hide = true)]
    bench: bool,
}

impl Length {
    /// Returns whether the run is a short one: also without --bench, which is how cargo test starts
    /// benches.
    pub fn is_quick(&self) -> bool {
        self.quick || !self.bench
    }
}

/// Connects the clients of this load, in this thread.
pub fn connect(workload: Workload) -> Result<Generator> {
    let clients = workload.clients;
    Ok(Generator::connect(Arc::new(workload), 0..clients, AT_ONCE)?)
}

/// Runs the load of connected clients; any error in it is an error.
pub fn run(generator: &mut Generator) -> Result<Stats> {
    let stats = generator.run(Instant::now())?;
    match stats.errors.total() {
        0 => Ok(stats),
        total => {
            let wrong = stats.errors.first_wrong.unwrap_or_default();
            Err(format!("{total} errors in the load {wrong}").into())
        }
    }
}
