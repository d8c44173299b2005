//! What clients that compute cost those who only ask: how long WHO takes while 64 clients ask for primes without pause.
//!
//! `make bench-calc`. One client asks WHO once a millisecond; beside it is nothing, or clients that ask `NP` or, to compare, `WHY`,
//! as fast as they are answered (`blockchain-tcp bench`, a process of its own). All take turns in each round, and the medians of
//! the percentiles are compared with those of nothing. A measurement during which the host of a virtual machine took its cores
//! away is made again. Before all that, how long the first NP takes, and the second.

#[path = "../common/mod.rs"]
mod common;
mod host;

use std::io::{BufRead as _, BufReader, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::path::Path;
use std::process::{Child, Command, ExitCode, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use clap::Parser;

use common::daemon::{Daemon, PROGRAM};
use common::{Length, Result};
use host::Host;

/// How long anything may take.
const PATIENCE: Duration = Duration::from_secs(30);

/// Between two questions.
const PAUSE: Duration = Duration::from_millis(1);

/// Of a measurement's time a host may take so much; with more, 99 of 100 answers tell of the host.
const STOLEN: f64 = 0.03;

/// Each measurement is made so often at most, until the host lets it be.
const TRIES: usize = 12;

/// Measures what clients that compute cost those who only ask.
#[derive(Parser)]
#[command(name = "calc")]
struct Options {
    /// How many clients compute.
    #[arg(long, value_name = "N", default_value_t = 64)]
    clients: usize,

    /// How often each is measured.
    #[arg(long, value_name = "N", default_value_t = 9)]
    rounds: usize,

    /// How often WHO is asked in each.
    #[arg(long, value_name = "N", default_value_t = 3000)]
    questions: usize,

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
    /// For each round: the 50th, the 90th and the 99th percentile.
    found: Vec<[Duration; 3]>,
    /// The host took much of the machine in one of the rounds, however often it was tried.
    disturbed: bool,
}

impl Load {
    /// The percentiles beside this load, and what the host took meanwhile.
    fn measure(
        &self,
        daemon: &Daemon,
        client: &mut Client,
        options: &Options,
    ) -> Result<([Duration; 3], f64)> {
        let others = self.request.as_deref();
        let others = others.map(|request| Others::start(daemon, request, options.clients));
        let mut others = others.transpose()?;
        if others.is_some() {
            client.wait_for(1 + options.clients)?;
        }
        let host = Host::now()?;
        let found = client.percentiles(options.questions)?;
        let stolen = host.stolen_since()?;
        if let Some(others) = &mut others {
            others.are_there_still()?;
        }
        drop(others);
        client.wait_for(1)?;
        Ok((found, stolen))
    }
}

fn measure(options: &Options) -> Result<()> {
    let daemon =
        Daemon::start(Command::new(PROGRAM).args(["--http=", "--commands", "server,calc"]))?;
    let mut client = Client::connect(daemon.address)?;
    for which in ["first", "second"] {
        let (reply, time) = client.ask("NP 10000000")?;
        if reply != "179424673" {
            return Err(format!("NP 10000000 is {reply}").into());
        }
        println!(
            "the {which} NP 10000000: {:.2} ms",
            time.as_secs_f64() * 1e3
        );
    }
    let load = |name, request: Option<&str>| Load {
        name,
        request: request.map(str::to_string),
        found: Vec::new(),
        disturbed: false,
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
                let (found, stolen) = load.measure(&daemon, &mut client, options)?;
                let [p50, p90, p99] = found.map(|time| time.as_micros());
                let percent = stolen * 100.0;
                eprintln!(
                    "round {round}/{}: beside {:<10} {p50:>6} {p90:>6} {p99:>6}, the host took {percent:.1} %",
                    options.rounds, load.name
                );
                if stolen <= STOLEN || attempt == TRIES {
                    load.disturbed |= stolen > STOLEN;
                    load.found.push(found);
                    break;
                }
                left_out += 1;
            }
        }
    }
    println!("beside WHO      p50 us  p90 us  p99 us   p99 ÷ nothing's");
    let nothing = median(&loads[0].found, 2);
    for load in &loads {
        let [p50, p90, p99] = [0, 1, 2].map(|column| median(&load.found, column) * 1e6);
        let ratio = p99 / (nothing * 1e6);
        println!(
            "{:<14} {p50:>7.0} {p90:>7.0} {p99:>7.0}   {ratio:.2}",
            load.name
        );
    }
    if left_out > 0 {
        let percent = STOLEN * 100.0;
        println!(
            "{left_out} measurements are left out: the host took more than {percent} % of them"
        );
    }
    for load in loads.iter().filter(|load| load.disturbed) {
        println!(
            "beside {}: the host never let go, so don't trust it",
            load.name
        );
    }
    Ok(())
}

/// The median of a column, in seconds.
fn median(found: &[[Duration; 3]], column: usize) -> f64 {
    let mut values: Vec<f64> = found.iter().map(|row| row[column].as_secs_f64()).collect();
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

/// The client that only asks.
struct Client(BufReader<TcpStream>);

impl Client {
    fn connect(address: SocketAddr) -> Result<Self> {
        let stream = TcpStream::connect_timeout(&address, PATIENCE)?;
        stream.set_nodelay(true)?;
        stream.set_read_timeout(Some(PATIENCE))?;
        Ok(Client(BufReader::new(stream)))
    }

    fn ask(&mut self, request: &str) -> Result<(String, Duration)> {
        let request = format!("{request}\n");
        let begun = Instant::now();
        self.0.get_mut().write_all(request.as_bytes())?;
        let mut reply = String::new();
        self.0.read_line(&mut reply)?;
        Ok((reply.trim_end().to_string(), begun.elapsed()))
    }

    /// Waits until so many clients are connected.
    fn wait_for(&mut self, clients: usize) -> Result<()> {
        let deadline = Instant::now() + PATIENCE;
        while self.ask("WHO")?.0 != clients.to_string() {
            if Instant::now() > deadline {
                return Err(format!("{clients} clients: in vain").into());
            }
            thread::sleep(PAUSE);
        }
        Ok(())
    }

    fn percentiles(&mut self, questions: usize) -> Result<[Duration; 3]> {
        let mut times = Vec::with_capacity(questions);
        for _ in 0..questions {
            thread::sleep(PAUSE);
            let (reply, time) = self.ask("WHO")?;
            reply.parse::<usize>().map_err(|_| reply)?;
            times.push(time);
        }
        times.sort();
        Ok([50, 90, 99].map(|percent| times[questions * percent / 100]))
    }
}

/// The clients that ask without pause; ended when dropped.
struct Others(Child);

impl Others {
    fn start(daemon: &Daemon, request: &str, clients: usize) -> Result<Self> {
        let others = Command::new(
            Path::new(env!("CARGO_BIN_EXE_blockchain-tcpd")).with_file_name("blockchain-tcp"),
        )
        .args([
            "bench",
            "--duration",
            "1h",
            "--clients",
            &clients.to_string(),
        ])
        .args([
            "--request",
            request,
            "--server",
            &daemon.address.to_string(),
        ])
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()?;
        Ok(Others(others))
    }

    fn are_there_still(&mut self) -> Result<()> {
        match self.0.try_wait()? {
            None => Ok(()),
            Some(status) => Err(format!("the clients that compute ended: {status}").into()),
        }
    }
}

impl Drop for Others {
    fn drop(&mut self) {
        // They may have ended.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}
