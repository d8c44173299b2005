//! What clients that compute cost those who only ask: how long WHO takes while 64 clients ask for
//! primes without pause.
//!
//! `make bench-calc`. One client asks WHO once a millisecond; beside it is nothing, or clients that
//! ask `NP` or, to compare, `WHY`, as fast as they are answered. All take turns in each round, and
//! the medians of the percentiles are compared with those of nothing. Latency counts from when a
//! request was due. A measurement during which the host of a virtual machine took its cores away is
//! made again. Before all that, how long the first NP takes, and the second.

#[path = "../common/mod.rs"]
mod common;

use std::process::ExitCode;
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use clap::Parser;
use shared::dial::{AddressFamily, Reply, Route};

use common::figures::median;
use common::load::{AT_ONCE, Expected, Generator, Workload};
use common::machine::Ticks;
use common::server::{PROGRAM, Server};
use common::{Length, Result};

/// How long anything may take.
const TIMEOUT: Duration = Duration::from_secs(30);

/// How often WHO is asked, per second.
const RATE: u32 = 1000;

/// The part of a measurement's time that a host may take; with more, 99 of 100 answers tell of the
/// host.
const STOLEN: f64 = 0.03;

/// How often a measurement is made, at most, until the host lets it be.
const TRIES: usize = 12;

/// Measures what clients that compute cost those who only ask.
#[derive(Parser)]
#[command(name = "calc")]
struct Options {
    /// How many clients compute.
    #[arg(long, value_name = "N", default_value_t = 64)]
    clients: u64,

    /// How often each is measured.
    #[arg(long, value_name = "N", default_value_t = 9)]
    rounds: usize,

    /// How often WHO is asked in each.
    #[arg(long, value_name = "N", default_value_t = 3000)]
    questions: u32,

    #[command(flatten)]
    length: Length,
}

fn main() -> ExitCode {
    let mut options = Options::parse();
    if options.length.is_quick() {
        (options.rounds, options.questions) = (1, 300);
    }
    match measure(&options) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("calc: {error}");
            ExitCode::FAILURE
        }
    }
}

/// What is asked beside WHO.
struct Load {
    name: &'static str,
    request: Option<String>,
    /// The 50th, the 90th and the 99th percentile in microseconds, round by round.
    found: [Vec<f64>; 3],
    /// Whether the host took much of the machine in one of the rounds, however often it was tried.
    is_disturbed: bool,
}

fn measure(options: &Options) -> Result<()> {
    let daemon = Server::daemon(PROGRAM, &["--http=", "--commands", "server,calc"])?;
    for which in ["first", "second"] {
        let begun = Instant::now();
        let reply = ask(&daemon, "NP 10000000")?;
        if reply != "179424673" {
            return Err(format!("NP 10000000 is {reply}").into());
        }
        let time = begun.elapsed().as_secs_f64() * 1e3;
        println!("the {which} NP 10000000: {time:.2} ms");
    }
    let load = |name, request: Option<&str>| Load {
        name,
        request: request.map(str::to_string),
        found: Default::default(),
        is_disturbed: false,
    };
    let hundred = format!("NP{}", " 9999999".repeat(100));
    let mut loads = [
        load("nothing", None),
        load("NP of one", Some("NP 10000000")),
        load("NP of 100", Some(&hundred)),
        load("WHY", Some("WHY")),
    ];
    let mut left_out = 0;
    for round in 1..=options.rounds {
        for load in &mut loads {
            for attempt in 1..=TRIES {
                let ticks = Ticks::now()?;
                let found = beside(&daemon, load.request.as_deref(), options)?;
                let (stolen, _) = ticks.taken_since()?;
                let [p50, p90, p99] = found;
                eprintln!(
                    "round {round}/{}: beside {:<10} {p50:>6.0} {p90:>6.0} {p99:>6.0}, the host took {:.1} %",
                    options.rounds,
                    load.name,
                    stolen * 100.0
                );
                if stolen <= STOLEN || attempt == TRIES {
                    load.is_disturbed |= stolen > STOLEN;
                    let columns = load.found.iter_mut().zip(found);
                    columns.for_each(|(column, value)| column.push(value));
                    break;
                }
                left_out += 1;
            }
        }
    }
    println!("beside WHO      p50 us  p90 us  p99 us   p99 ÷ nothing's");
    let nothing = median(&loads[0].found[2]);
    for load in &loads {
        let [p50, p90, p99] = load.found.each_ref().map(|column| median(column));
        let (name, ratio) = (load.name, p99 / nothing);
        println!("{name:<14} {p50:>7.0} {p90:>7.0} {p99:>7.0}   {ratio:.2}");
    }
    if left_out > 0 {
        println!("{left_out} measurements are left out: the host took too much of them");
    }
    for load in loads.iter().filter(|load| load.is_disturbed) {
        println!(
            "beside {}: the host never let go, so don't trust it",
            load.name
        );
    }
    Ok(())
}

/// Returns the percentiles of WHO beside clients that send this request.
fn beside(daemon: &Server, request: Option<&str>, options: &Options) -> Result<[f64; 3]> {
    let others = request.map(|request| -> Result<_> {
        let expected = Expected::same_as(ask(daemon, request)?.as_bytes());
        let mut workload = Workload::new(daemon.address, request.as_bytes(), expected);
        workload.clients = options.clients;
        workload.timeout = TIMEOUT;
        let workload = Arc::new(workload);
        let mut others = Generator::connect(workload.clone(), 0..options.clients, AT_ONCE)?;
        Ok((workload, thread::spawn(move || common::run(&mut others))))
    });
    let others = others.transpose()?;
    let mut workload = Workload::new(daemon.address, b"WHO", Expected::Count);
    workload.rate = Some(RATE);
    workload.duration = Duration::from_secs(1) * options.questions / RATE;
    workload.timeout = TIMEOUT;
    let stats = common::run(&mut common::connect(workload)?)?;
    if let Some((workload, others)) = others {
        workload.interrupt();
        others.join().map_err(|_| "a thread has panicked")??;
    }
    let latencies = stats.latencies;
    Ok([0.5, 0.9, 0.99].map(|part| latencies.value_at_quantile(part) as f64 / 1e3))
}

/// Asks one thing on a connection of its own.
fn ask(daemon: &Server, request: &str) -> Result<String> {
    let route = Route::new(
        daemon.address.to_string().parse()?,
        AddressFamily::default(),
    );
    let reply = route.ask(TIMEOUT, |mut connection, deadline| {
        connection.ask(request.as_bytes(), deadline)
    });
    match reply.map_err(|failure| failure.to_string())? {
        Reply::Value(value) => Ok(value),
        refused => Err(refused.to_string().into()),
    }
}
