//! Redis and the servers of a cluster, from few to many: commands, processor time, and how soon a change is known.

use std::io::{BufRead as _, BufReader, Write as _};
use std::net::TcpStream;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use blockchain_tcpd::cluster::{CensusSource, Cluster, Settings};
use blockchain_tcpd::config::options::{Options, ParsedArgs};
use blockchain_tcpd::waker::Waker;
use rustix::time::{ClockId, clock_gettime};
use shared::clock::Nanos;
use shared::command::Census as _;
use uuid::Uuid;

use crate::common::figures::{median, quantile};
use crate::common::{Result, server};

/// Number of measurements of how soon a change is known.
const CHANGES: usize = 40;

/// The most servers whose counts are polled.
const POLLED: usize = 50;

/// One server, as far as its cluster is concerned.
struct Server {
    cluster: Cluster,
    clients: Arc<AtomicUsize>,
    waker: Arc<Waker>,
    census: CensusSource,
}

impl Server {
    fn start(settings: &Arc<Settings>) -> Result<Self> {
        let mut cluster = Cluster::new(Some(settings.clone()), Uuid::new_v4(), None)
            .map_err(|error| error.to_string())?;
        let clients = Arc::new(AtomicUsize::new(0));
        let waker = cluster.waker.clone().ok_or("no waker")?;
        let joined = cluster.join(clients.clone());
        joined.map_err(|error| error.to_string())?;
        Ok(Server {
            census: cluster.census.clone(),
            cluster,
            clients,
            waker,
        })
    }

    fn add(&self) {
        self.clients.fetch_add(1, Ordering::SeqCst);
        self.waker.wake();
    }

    fn who(&self) -> u64 {
        let here = self.clients.load(Ordering::SeqCst) as u64;
        self.census.clients(here, Nanos::now()).unwrap_or(0)
    }
}

/// Returns the CPU time in seconds of this process without this thread, which only polls.
fn own_cpu() -> f64 {
    let seconds = |clock| {
        let time = clock_gettime(clock);
        time.tv_sec as f64 + time.tv_nsec as f64 / 1e9
    };
    seconds(ClockId::ProcessCPUTime) - seconds(ClockId::ThreadCPUTime)
}

/// What a Redis has done so far.
#[derive(Default)]
struct Work {
    /// Commands, those of scripts included.
    commands: f64,
    /// Processor time, in seconds.
    cpu: f64,
    /// Bytes sent.
    sent: f64,
}

/// Returns what this Redis has done so far.
fn work(redis: &server::Server) -> Result<Work> {
    let mut stream = TcpStream::connect(redis.address)?;
    stream.set_read_timeout(Some(Duration::from_secs(10)))?;
    stream.write_all(b"INFO everything\r\nQUIT\r\n")?;
    let mut work = Work::default();
    for line in BufReader::new(stream).lines() {
        let line = line?;
        let (name, value) = line.split_once(':').unwrap_or_default();
        let number = || value.trim().parse::<f64>();
        match name {
            "total_commands_processed" => work.commands = number()?,
            "used_cpu_sys" | "used_cpu_user" => work.cpu += number()?,
            "total_net_output_bytes" => work.sent = number()?,
            _ => {}
        }
    }
    Ok(work)
}

/// What happened in some time, for each server and second.
struct Cost {
    commands: f64,
    redis_cpu: f64,
    own_cpu: f64,
    sent: f64,
    redis_share: f64,
}

fn cost(
    redis: &server::Server,
    servers: usize,
    time: Duration,
    mut busy: impl FnMut(Duration),
) -> Result<Cost> {
    let (before, own, begun): (Work, f64, _) = (work(redis)?, own_cpu(), Instant::now());
    while begun.elapsed() < time {
        busy(begun.elapsed());
    }
    let (after, seconds) = (work(redis)?, begun.elapsed().as_secs_f64());
    let each = seconds * servers as f64;
    Ok(Cost {
        commands: (after.commands - before.commands) / each,
        redis_cpu: (after.cpu - before.cpu) / each * 1e6,
        own_cpu: (own_cpu() - own) / each * 1e6,
        sent: (after.sent - before.sent) / each,
        redis_share: (after.cpu - before.cpu) / seconds * 100.0,
    })
}

/// Returns how long it takes until all polled servers count one more client of one of them.
fn delay(servers: &[Server], turn: usize) -> Result<Duration> {
    let step = servers.len().div_ceil(POLLED);
    let expected = servers[0].who() + 1;
    servers[turn * 7 % servers.len()].add();
    let begun = Instant::now();
    while !servers
        .iter()
        .step_by(step)
        .all(|server| server.who() == expected)
    {
        if begun.elapsed() > Duration::from_secs(10) {
            return Err("the servers do not agree".into());
        }
        std::thread::sleep(Duration::from_micros(200));
    }
    Ok(begun.elapsed())
}

/// Prints the costs and delays of these numbers of servers.
pub fn measure(counts: &[usize], time: Duration) -> Result<()> {
    println!(
        "Redis with these numbers of servers; commands (those of scripts included), CPU (µs) and bytes are for each server and second:\n"
    );
    println!(
        "| servers | quiet: commands | Redis's CPU | own CPU | bytes | busy: commands | Redis's CPU | own CPU | bytes | Redis in all, quiet, busy | known after, median (worst) |"
    );
    println!("|---|---|---|---|---|---|---|---|---|---|---|");
    for &count in counts {
        let redis = server::Server::redis()?;
        let arguments = [
            "bench",
            "--cluster",
            &format!("redis://{}", redis.address),
            "--cluster-name",
            "bench",
        ];
        let settings = match Options::parse_from(arguments) {
            Ok(ParsedArgs::Run(options)) => Settings::new(&options),
            Ok(ParsedArgs::Print(text)) => return Err(text.into()),
            Err(error) => Err(error),
        };
        let settings = settings.map_err(|error| error.to_string())?;
        let settings = settings.ok_or("no cluster")?;
        let settings = Arc::new(settings);
        let mut servers = Vec::new();
        for _ in 0..count {
            servers.push(Server::start(&settings)?);
        }
        eprintln!("{count} servers have joined");
        let quiet = cost(&redis, count, time, |_| {
            std::thread::sleep(Duration::from_millis(5))
        })?;
        let mut delays = Vec::new();
        for turn in 0..CHANGES {
            delays.push(delay(&servers, turn)?.as_secs_f64() * 1e3);
        }
        // Each has one client more every second, not all at once.
        let mut added = 0;
        let busy = cost(&redis, count, time, |elapsed| {
            let due = (elapsed.as_secs_f64() * count as f64) as usize;
            for turn in added..due {
                servers[turn % count].add();
            }
            added = due;
            std::thread::sleep(Duration::from_millis(1));
        })?;
        let row = |cost: &Cost| {
            format!(
                "{:.1} | {:.0} | {:.0} | {:.0}",
                cost.commands, cost.redis_cpu, cost.own_cpu, cost.sent
            )
        };
        println!(
            "| {count} | {} | {} | {:.1} %, {:.1} % | {:.1} ms ({:.1} ms) |",
            row(&quiet),
            row(&busy),
            quiet.redis_share,
            busy.redis_share,
            median(&delays),
            quantile(&delays, 1.0),
        );
        for server in &servers {
            server.cluster.pause();
        }
    }
    Ok(())
}
