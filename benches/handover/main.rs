//! How long clients wait while a new program takes over: the longest wait of any of them, median and worst over many times.
//!
//! Beside it is the longest wait when nothing happens: what this machine's noise makes of it. Every reply is matched with
//! its request, and the count is asked for all the while; a mistake in either ends the run.
//!
//! `tests/package` uses the same clients for `systemctl restart` and `systemctl reload` in a booted Debian.

mod clients;
#[path = "../common/mod.rs"]
mod common;
#[path = "../serving/limits.rs"]
mod limits;
#[path = "../serving/watch.rs"]
mod watch;

use std::env;
use std::io::{BufRead, BufReader, Lines, Write};
use std::process::{Child, ChildStdin, ChildStdout, Command, ExitCode, Stdio};
use std::time::Duration;

use clap::Parser;
use rustix::process::{Pid, Signal, kill_process};

use common::daemon::{Daemon, PROGRAM};
use common::{Length, Result};

/// The first argument of the role of the clients; then an address, how many, and the milliseconds between two requests.
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
    clients: Vec<usize>,

    /// How often the program is replaced.
    #[arg(long, value_name = "N", default_value_t = 30)]
    rounds: usize,

    /// How many requests there are a second.
    #[arg(long, value_name = "N", default_value_t = 10_000)]
    rate: usize,

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

/// Plays the clients.
fn ask(arguments: &[String]) -> Result<()> {
    let [address, clients, pause] = arguments else {
        return Err("clients ADDRESS NUMBER MILLISECONDS".into());
    };
    limits::raise_descriptors()?;
    let pause = Duration::from_millis(pause.parse()?);
    let tally = clients::run(address.parse()?, clients.parse()?, pause)?;
    println!("{tally}");
    if tally.is_clean() {
        Ok(())
    } else {
        Err("clients noticed something".into())
    }
}

fn measure(options: &Options) -> Result<()> {
    limits::raise_descriptors()?;
    let (clients, rounds): (&[usize], usize) = if options.length.is_quick() {
        (&[50], 2)
    } else {
        (&options.clients, options.rounds)
    };
    println!("clients  longest wait, ms: nothing happens (worst)  SIGUSR2 (worst)");
    for &clients in clients {
        let room = (clients + 8).to_string();
        let mut daemon = Daemon::start(Command::new(PROGRAM).args([
            "--http",
            "127.0.0.1:0",
            "--max-clients",
            &room,
        ]))?;
        let mut load = Load::start(&daemon.address.to_string(), clients, options.rate)?;
        let (mut calm, mut replaced) = (Vec::new(), Vec::new());
        for _ in 0..rounds {
            load.next_lap()?;
            calm.push(load.longest()?);
            kill_process(Pid::from_child(&daemon.child), Signal::USR2)?;
            daemon.wait_for_ready()?;
            load.next_lap()?;
            replaced.push(load.longest()?);
        }
        let tally = load.end()?;
        let [calm, replaced] = [calm, replaced].map(median_and_worst);
        println!(
            "{clients:>7}  {:>33.1} {:>7}  {:>7.1} {:>7}",
            calm.0,
            format!("({:.1})", calm.1),
            replaced.0,
            format!("({:.1})", replaced.1)
        );
        eprintln!("         {tally}");
    }
    Ok(())
}

fn median_and_worst(mut waits: Vec<f64>) -> (f64, f64) {
    waits.sort_by(f64::total_cmp);
    (
        waits.get(waits.len() / 2).copied().unwrap_or_default(),
        waits.last().copied().unwrap_or_default(),
    )
}

/// The clients, in a process of their own.
struct Load {
    child: Child,
    input: Option<ChildStdin>,
    output: Lines<BufReader<ChildStdout>>,
}

impl Load {
    fn start(address: &str, clients: usize, rate: usize) -> Result<Load> {
        let pause = clients * 1000 / rate.max(1);
        let mut child = Command::new(env::current_exe()?)
            .args([CLIENTS, address, &clients.to_string(), &pause.to_string()])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()?;
        let output = child.stdout.take().ok_or("no output")?;
        let mut load = Load {
            input: child.stdin.take(),
            output: BufReader::new(output).lines(),
            child,
        };
        // All are connected and have been answered.
        load.longest()?;
        Ok(load)
    }

    fn next_lap(&mut self) -> Result<()> {
        self.input.as_mut().ok_or("it ended")?.write_all(b"\n")?;
        Ok(())
    }

    fn line(&mut self) -> Result<String> {
        Ok(self.output.next().ok_or("the clients ended")??)
    }

    /// The longest wait since this was asked last, in milliseconds.
    fn longest(&mut self) -> Result<f64> {
        let line = self.line()?;
        let longest = line
            .strip_prefix("longest_ms=")
            .ok_or_else(|| line.clone())?;
        Ok(longest.parse()?)
    }

    /// Has everybody leave, and returns what became of them. It is an error if they noticed anything.
    fn end(mut self) -> Result<String> {
        drop(self.input.take());
        let tally = self.line()?;
        if self.child.wait()?.success() {
            Ok(tally)
        } else {
            Err(format!("clients noticed something: {tally}").into())
        }
    }
}

impl Drop for Load {
    fn drop(&mut self) {
        // Both fail only when it has ended already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
