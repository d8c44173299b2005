//! What clients that compute cost those who only ask: how long WHO takes while 64 clients ask for primes without pause.
//!
//! `make bench-calc`. One client asks WHO once a millisecond; beside it is nothing, or clients that ask `NP` or, to compare, `WHY`,
//! as fast as they are answered (`blockchain-tcp bench`, a process of its own). All take turns in each round, and the medians of
//! the percentiles are compared with those of nothing. Before that, how long the first NP takes, and the second.

use std::io::{BufRead as _, BufReader, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::process::{Child, ChildStderr, Command, ExitCode, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use clap::Parser;

/// What can go wrong ends as a sentence for the person who runs this.
type Result<T> = std::result::Result<T, Box<dyn std::error::Error + Send + Sync>>;

/// How long anything may take.
const PATIENCE: Duration = Duration::from_secs(30);

/// Between two questions.
const PAUSE: Duration = Duration::from_millis(1);

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

    /// Once, with few questions: shows that everything works, not how fast.
    #[arg(long)]
    quick: bool,

    /// Added by cargo bench.
    #[arg(long, hide = true)]
    bench: bool,
}

fn main() -> ExitCode {
    let mut options = Options::parse();
    // That is how cargo test starts benches.
    if options.quick || !options.bench {
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
}

fn measure(options: &Options) -> Result<()> {
    let server = Server::start()?;
    let mut client = Client::connect(server.address)?;
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
    };
    let hundred = format!("NP{}", " 9999999".repeat(100));
    let mut loads = [
        load("nothing", None),
        load("NP of one", Some("NP 10000000")),
        load("NP of 100", Some(&hundred)),
        load("WHY", Some("WHY")),
    ];
    for round in 1..=options.rounds {
        for load in &mut loads {
            let others = load.request.as_deref();
            let others = others.map(|request| Others::start(&server, request, options.clients));
            let mut others = others.transpose()?;
            if others.is_some() {
                client.wait_for(1 + options.clients)?;
            }
            let found = client.percentiles(options.questions)?;
            let [p50, p90, p99] = found.map(|time| time.as_micros());
            eprintln!(
                "round {round}/{}: beside {:<10} {p50:>6} {p90:>6} {p99:>6}",
                options.rounds, load.name
            );
            load.found.push(found);
            if let Some(others) = &mut others {
                others.are_there_still()?;
            }
            drop(others);
            client.wait_for(1)?;
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
    fn start(server: &Server, request: &str, clients: usize) -> Result<Self> {
        let others = Command::new(env!("CARGO_BIN_EXE_blockchain-tcp"))
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
                &server.address.to_string(),
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

/// The daemon; killed when dropped.
struct Server {
    child: Child,
    address: SocketAddr,
    /// Open, or the daemon could not log.
    _log: BufReader<ChildStderr>,
}

impl Server {
    fn start() -> Result<Self> {
        let mut child = Command::new(env!("CARGO_BIN_EXE_blockchain-tcpd"))
            .args([
                "--listen",
                "127.0.0.1:0",
                "--http",
                "",
                "--commands",
                "server,calc",
            ])
            .stdin(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()?;
        let log = child.stderr.take().ok_or("stderr is piped")?;
        let mut server = Server {
            child,
            address: SocketAddr::from(([0; 4], 0)),
            _log: BufReader::new(log),
        };
        let mut line = String::new();
        while !line.contains(" listen=") {
            line.clear();
            if server._log.read_line(&mut line)? == 0 {
                return Err("the daemon has not started".into());
            }
        }
        let (_, rest) = line.split_once(" listen=").ok_or("no address")?;
        server.address = rest.split(' ').next().unwrap_or_default().parse()?;
        Ok(server)
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // It may have ended.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
