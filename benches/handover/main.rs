//! How long clients wait while a new program takes over: the longest wait of any of them, median
//! and worst over many times.
//!
//! Beside it is the longest wait when nothing happens: what this machine's noise makes of it. Every
//! reply is matched with its request: clients send words that the server does not know, which it
//! repeats in its replies. One client asks for the count, which must be right all the while. A
//! mistake in any reply, or a lost connection, ends the run.
//!
//! `tests/package` uses the same clients for `systemctl restart` and `systemctl reload` in a booted
//! Debian.

#[path = "../common/mod.rs"]
mod common;

use std::env;
use std::io;
use std::net::SocketAddr;
use std::ops::Range;
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::thread;
use std::time::{Duration, Instant};

use clap::Parser;
use rustix::process::{Signal, kill_process};

use common::figures::{median, quantile};
use common::load::{AT_ONCE, Expected, Generator, Stats, Workload};
use common::server::{PROGRAM, Server, rival};
use common::{Length, Result};

/// The first argument of the role of the clients; then an address, how many, and the milliseconds
/// between two requests.
const CLIENTS: &str = "clients";

/// Number of different words that the clients send in turn, each client from another one on.
const WORDS: u64 = 1000;

/// How often the count is asked for in a second.
const COUNTS: u64 = 1000;

/// Measures the waits of clients while a new program takes over at SIGUSR2.
#[derive(Parser)]
#[command(name = "handover")]
struct Options {
    /// How many clients there are.
    #[arg(
        long,
        value_name = "N,N",
        value_delimiter = ',',
        default_value = "1000,10000",
        value_parser = clap::value_parser!(u64).range(2..)
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
    let programs: Vec<String> = [PROGRAM.to_string()].into_iter().chain(rival()).collect();
    println!("clients  longest wait, ms: nothing happens (worst)  SIGUSR2 (worst)");
    for &number in clients {
        Generator::raise_descriptor_limit();
        let mut measured = Vec::new();
        for program in &programs {
            measured.push(Measured::start(program, number, options.rate)?);
        }
        for _ in 0..rounds {
            for measured in &mut measured {
                measured.round()?;
            }
        }
        for (measured, name) in measured.into_iter().zip(["", "  RIVAL"]) {
            let worst = |waits: &[f64]| format!("({:.1})", quantile(waits, 1.0));
            let Measured { calm, replaced, .. } = &measured;
            println!(
                "{number:>7}  {:>33.1} {:>7}  {:>7.1} {:>7}{name}",
                median(calm),
                worst(calm),
                median(replaced),
                worst(replaced)
            );
            eprintln!("         {}", measured.clients.outcome()?);
        }
    }
    Ok(())
}

/// A daemon with its clients, and their longest wait in each round, in milliseconds.
struct Measured {
    daemon: Server,
    clients: Clients,
    calm: Vec<f64>,
    replaced: Vec<f64>,
}

impl Measured {
    fn start(program: &str, number: u64, rate: u64) -> Result<Self> {
        let room = (number + 8).to_string();
        let daemon = Server::daemon(program, &["--http=", "--max-clients", &room])?;
        let pause = Duration::from_millis(number * 1000 / rate.max(1));
        let clients = Clients::connect(daemon.address, number, pause)?;
        let (calm, replaced) = (Vec::new(), Vec::new());
        Ok(Measured {
            daemon,
            clients,
            calm,
            replaced,
        })
    }

    /// Lets the clients ask while nothing happens, and while a new program takes over.
    fn round(&mut self) -> Result<()> {
        self.calm.push(self.clients.lap(|| Ok(()))?);
        let daemon = &mut self.daemon;
        self.replaced.push(self.clients.lap(|| {
            kill_process(daemon.pid(), Signal::USR2)?;
            daemon.wait_for_ready().map(drop)
        })?);
        Ok(())
    }
}

/// Clients that ask all the while.
struct Clients {
    number: u64,
    /// One client that asks for the count.
    counter: Load,
    /// All others.
    others: Load,
}

/// Some of the clients.
struct Load {
    generator: Generator,
    workload: Arc<Workload>,
    sum: Stats,
}

impl Clients {
    /// Connects clients, each of which asks again after `pause`, or at once if it is zero.
    fn connect(address: SocketAddr, number: u64, pause: Duration) -> Result<Self> {
        let words = |form: fn(u64) -> String| (0..WORDS).map(form).collect::<Vec<_>>().join("\n");
        let requests = words(|word| format!("T{word:03}"));
        let replies =
            words(|word| format!("ERR UNKNOWN no such command: \"T{word:03}\" (try HELP)"));
        let mut workload = Workload::new(
            address,
            requests.as_bytes(),
            Expected::same_as(replies.as_bytes()),
        );
        let rate = number as f64 / pause.as_secs_f64();
        workload.rate = (!pause.is_zero()).then_some(rate.max(1.0) as u32);
        let others = Load::connect(workload, number, 1..number)?;
        let mut workload = Workload::new(address, b"WHO", Expected::Count);
        workload.is_alone = true;
        // As if all clients asked so often.
        workload.rate = Some((number * COUNTS).try_into()?);
        Ok(Clients {
            number,
            counter: Load::connect(workload, number, 0..1)?,
            others,
        })
    }

    /// Lets the clients ask while something happens, and each once before and after it. Returns the
    /// longest wait in milliseconds.
    fn lap(&mut self, happens: impl FnOnce() -> Result<()> + Send) -> Result<f64> {
        let number = self.number;
        let workloads = [self.counter.workload.clone(), self.others.workload.clone()];
        let (happened, counted, answered) = thread::scope(|scope| {
            let thread = scope.spawn(|| {
                wait_for_replies(&workloads[1], number);
                let happened = happens();
                wait_for_replies(&workloads[1], number);
                workloads.iter().for_each(|workload| workload.interrupt());
                happened
            });
            let counter = scope.spawn(|| self.counter.run());
            let answered = self.others.run();
            (thread.join(), counter.join(), answered)
        });
        workloads.iter().for_each(|workload| workload.resume());
        let panicked = |_| "a thread has panicked";
        let longest = answered?.max(counted.map_err(panicked)??);
        happened.map_err(panicked)??;
        Ok(longest)
    }

    /// Returns what became of all requests. It is an error if one has no reply.
    fn outcome(mut self) -> Result<String> {
        self.counter.generator.check()?;
        self.others.generator.check()?;
        let (clients, counted) = (self.number, self.counter.sum.answered);
        let answered = counted + self.others.sum.answered;
        match self.counter.sum.given_up + self.others.sum.given_up {
            0 if counted > 0 => Ok(format!(
                "clients={clients} answered={answered} counted={counted}"
            )),
            lost => Err(format!("{lost} requests have no reply, {counted} counts").into()),
        }
    }
}

/// Waits until this number of further requests is answered, or until no more replies can come.
fn wait_for_replies(workload: &Workload, number: u64) {
    let answered = || workload.answered.load(Ordering::Relaxed);
    let (enough, begun) = (answered() + number, Instant::now());
    while answered() < enough && begun.elapsed() < workload.timeout {
        thread::park_timeout(Duration::from_millis(1));
    }
}

impl Load {
    /// Connects these of all clients.
    fn connect(mut workload: Workload, all: u64, clients: Range<u64>) -> Result<Self> {
        workload.clients = all;
        // More than a restart by systemd takes.
        workload.timeout = Duration::from_secs(60);
        workload.last_replies = workload.timeout;
        let workload = Arc::new(workload);
        Ok(Load {
            generator: Generator::connect(workload.clone(), clients, AT_ONCE)?,
            workload,
            sum: Stats::default(),
        })
    }

    /// Runs until it is interrupted, and returns the longest wait in milliseconds.
    fn run(&mut self) -> Result<f64> {
        let stats = common::run(&mut self.generator)?;
        let longest = stats.latencies.max() as f64 / 1e6;
        self.sum.add(stats);
        Ok(longest)
    }
}
