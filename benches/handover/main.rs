//! How long clients wait while a new program takes over: the longest wait of any of them, median
//! and worst over many times.
//!
//! Beside it is the longest wait when nothing happens: what this machine's noise makes of it. All
//! clients ask for the count, which must be right all the while; a mistake in any reply, or a lost
//! connection, ends the run.
//!
//! `tests/package` uses the same clients for `systemctl restart` and `systemctl reload` in a booted
//! Debian.

#[path = "../common/mod.rs"]
mod common;

use std::env;
use std::io;
use std::net::SocketAddr;
use std::process::ExitCode;
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use clap::Parser;
use rustix::process::{Signal, kill_process};

use common::figures::{median, quantile};
use common::load::{AT_ONCE, Expected, Generator, Stats, Workload};
use common::server::{PROGRAM, Server};
use common::{Length, Result};

/// The first argument of the role of the clients; then an address, how many, and the milliseconds
/// between two requests.
const CLIENTS: &str = "clients";

/// Measures the waits of clients while a new program takes over at SIGUSR2.
#[derive(Parser)]
#[command(name = "handover")]
struct Options {
    /// How many clients there are.
    #[arg(
        long,
        value_name = "N,N",
        value_delimiter = ',',
        default_value = "1000,10000"
    )]
    clients: Vec<u64>,

    /// How often the program is replaced.
    #[arg(long, value_name = "N", default_value_t = 30)]
    rounds: usize,

    /// How many requests there are a second.
    #[arg(long, value_name = "N", default_value_t = 10_000)]
    rate: u64,

    #[command(flatten)]
    length: Length,
}

fn main() -> ExitCode {
    let arguments: Vec<String> = env::args().skip(1).collect();
    let outcome = match arguments.first() {
        Some(role) if role == CLIENTS => ask(&arguments[1..]),
        _ => measure(&Options::parse()),
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("handover: {error}");
            ExitCode::FAILURE
        }
    }
}

/// Plays the clients. Says when they are connected, and after each line of the standard input how
/// long the longest wait since the last one was; at its end, what became of all requests.
fn ask(arguments: &[String]) -> Result<()> {
    let [address, clients, pause] = arguments else {
        return Err("clients ADDRESS NUMBER MILLISECONDS".into());
    };
    let pause = Duration::from_millis(pause.parse()?);
    let mut clients = Clients::connect(address.parse()?, clients.parse()?, pause)?;
    println!("longest_ms=0.0");
    loop {
        let mut line = String::new();
        let longest = clients.lap(|| Ok(io::stdin().read_line(&mut line).map(|_| ())?))?;
        if line.is_empty() {
            break;
        }
        println!("longest_ms={longest:.1}");
    }
    println!("{}", clients.outcome()?);
    Ok(())
}

fn measure(options: &Options) -> Result<()> {
    let (clients, rounds): (&[u64], usize) = match options.length.is_quick() {
        true => (&[50], 2),
        false => (&options.clients, options.rounds),
    };
    println!("clients  longest wait, ms: nothing happens (worst)  SIGUSR2 (worst)");
    for &number in clients {
        Generator::raise_descriptor_limit(number as usize + 64);
        let room = (number + 8).to_string();
        let mut daemon = Server::daemon(PROGRAM, &["--http=", "--max-clients", &room])?;
        let pause = Duration::from_millis(number * 1000 / options.rate.max(1));
        let mut clients = Clients::connect(daemon.address, number, pause)?;
        let (mut calm, mut replaced) = (Vec::new(), Vec::new());
        for _ in 0..rounds {
            calm.push(clients.lap(|| Ok(()))?);
            replaced.push(clients.lap(|| {
                kill_process(daemon.pid(), Signal::USR2)?;
                daemon.wait_for_ready().map(drop)
            })?);
        }
        let outcome = clients.outcome()?;
        let worst = |waits: &[f64]| format!("({:.1})", quantile(waits, 1.0));
        println!(
            "{number:>7}  {:>33.1} {:>7}  {:>7.1} {:>7}",
            median(&calm),
            worst(&calm),
            median(&replaced),
            worst(&replaced)
        );
        eprintln!("         {outcome}");
    }
    Ok(())
}

/// Clients that ask all the while.
struct Clients {
    generator: Generator,
    workload: Arc<Workload>,
    pause: Duration,
    sum: Stats,
}

impl Clients {
    /// Connects clients, each of which asks again after `pause`, or at once if it is zero.
    fn connect(address: SocketAddr, clients: u64, pause: Duration) -> Result<Self> {
        let mut workload = Workload::new(address, b"WHO", Expected::Count);
        workload.clients = clients;
        workload.is_alone = true;
        // More than a restart by systemd takes.
        workload.timeout = Duration::from_secs(60);
        workload.last_replies = workload.timeout;
        let rate = clients as f64 / pause.as_secs_f64();
        workload.rate = (!pause.is_zero()).then_some(rate.max(1.0) as u32);
        let workload = Arc::new(workload);
        Ok(Clients {
            generator: Generator::connect(workload.clone(), 0..clients, AT_ONCE)?,
            workload,
            pause,
            sum: Stats::default(),
        })
    }

    /// Lets the clients ask while something happens, and each once more after it. Returns the
    /// longest wait in milliseconds.
    fn lap(&mut self, happens: impl FnOnce() -> Result<()> + Send) -> Result<f64> {
        let (workload, pause) = (&self.workload, self.pause);
        let generator = &mut self.generator;
        let (happened, stats) = thread::scope(|scope| {
            let thread = scope.spawn(move || {
                thread::sleep(pause.max(Duration::from_millis(50)));
                let happened = happens();
                thread::sleep(pause.max(Duration::from_millis(50)));
                workload.interrupt();
                happened
            });
            let stats = common::run(generator);
            (thread.join(), stats)
        });
        workload.resume();
        let stats = stats?;
        happened.map_err(|_| "a thread has panicked")??;
        let longest = stats.latencies.max() as f64 / 1e6;
        self.sum.add(stats);
        Ok(longest)
    }

    /// Returns what became of all requests. It is an error if one has no reply.
    fn outcome(mut self) -> Result<String> {
        self.generator.check()?;
        let (clients, sum) = (self.workload.clients, self.sum);
        match sum.given_up {
            0 => Ok(format!("clients={clients} answered={}", sum.answered)),
            lost => Err(format!("{lost} requests have no reply").into()),
        }
    }
}
