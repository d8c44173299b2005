//! What a request costs `blockchain-tcpd`, beside others who answer the same in the same run.
//!
//! Every measurement starts a fresh server on one core and loads it from another with a single-threaded generator that
//! compares every reply byte for byte. All contestants take their turn at each mode, in each round, in an order that
//! rotates. What is printed is one table of medians: first what the daemon needs for each unit of what the reference
//! needs, and CPU time before rates, because CPU time depends least on what else the machine does.
//!
//! | to learn | read |
//! |---|---|
//! | what may be asked of a run | `options` |
//! | what is measured, in which sizes | `modes`, then `measure` |
//! | who is measured | `contestant`, `minimal`; how they live and end: `server`, `launch` |
//! | how the load is made | `askers`, `crowd`, `arrivals`, `single`, `trickle` |
//! | what these stand on | `generator`, `visit`, `watch`, `target` |
//! | what is counted | `meter`, `noise`; what comes out: `figures`, `table` |

mod arrivals;
mod askers;
mod contestant;
mod cores;
mod crowd;
mod figures;
mod generator;
mod launch;
mod limits;
mod measure;
mod meter;
mod minimal;
mod modes;
mod noise;
mod options;
mod server;
mod single;
mod sys;
mod table;
mod target;
mod trickle;
mod visit;
mod watch;

use std::env;
use std::error::Error;
use std::process::{self, ExitCode};
use std::sync::Arc;

use contestant::Contestant;
use cores::Cores;
use figures::Results;
use generator::Generator;
use measure::Stage;
use modes::Mode;
use noise::Noise;
use options::Options;
use server::Keeper;

/// What can go wrong ends as a sentence for the person who runs the benches.
type Result<T> = std::result::Result<T, Box<dyn Error + Send + Sync>>;

/// The exit status after ^C, as shells count it: 128 and the number of SIGINT.
const INTERRUPTED: i32 = 130;

fn main() -> ExitCode {
    // This program is also the launcher of all servers and two of the servers.
    let mut arguments = env::args_os().skip(1);
    let outcome = match arguments.next().as_ref().and_then(|role| role.to_str()) {
        Some(launch::ROLE) => launch::run(arguments),
        Some(minimal::POOL_ROLE) => minimal::run_pool(arguments),
        Some(minimal::SPAWNING_ROLE) => minimal::run_spawning(),
        _ => bench(&Options::read()),
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
fn bench(options: &Options) -> Result<()> {
    let keeper = Arc::new(Keeper::default());
    let at_interrupt = Arc::clone(&keeper);
    ctrlc::set_handler(move || {
        // Held until the end: the main thread, whose server is gone, waits there instead of reporting it.
        let _held = at_interrupt.end_all();
        process::exit(INTERRUPTED);
    })?;

    let cores = Cores::choose()?;
    cores.pin_to_generator()?;
    let descriptors = limits::raise_descriptors()?;
    let (modes, mut notes) = modes::plan(options, descriptors)?;
    let (contestants, absent) = contestant::present(&options.contestants)?;
    notes.extend(absent);
    notes.extend(cores.note());

    let mut stage = Stage {
        keeper: &keeper,
        cores: &cores,
        generator: Generator::new(cores.apart()),
        seconds: options.seconds(),
    };
    let noise = Noise::begin()?;
    let mut results = Results::default();
    for round in 0..options.rounds() {
        for mode in &modes {
            for contestant in in_turn(&contestants, mode, round) {
                let found = measure::run(&mut stage, contestant, &mode.load)
                    .map_err(|error| format!("{contestant} at {}: {error}", mode.name))?;
                eprintln!(
                    "round {}/{}  {:<16} {:<16} {}",
                    round + 1,
                    options.rounds(),
                    mode.name,
                    contestant.to_string(),
                    figures::line(&found)
                );
                results.add(mode, contestant, found);
            }
        }
    }
    notes.extend(noise.end()?);

    println!(
        "{}; {}; rounds: {}, seconds for a measurement: {}",
        contestant::versions(&contestants),
        cores,
        options.rounds(),
        options.seconds().as_secs_f64()
    );
    println!();
    print!("{}", table::render(&contestants, &modes, &results, &notes));
    Ok(())
}

/// Those who take part in the mode, another one first in each round, so that none always finds the machine as the same
/// other left it.
fn in_turn(contestants: &[Contestant], mode: &Mode, round: usize) -> Vec<Contestant> {
    let mut turn: Vec<_> = contestants
        .iter()
        .copied()
        .filter(|contestant| mode.load.suits(*contestant))
        .collect();
    if !turn.is_empty() {
        let first = round % turn.len();
        turn.rotate_left(first);
    }
    turn
}
