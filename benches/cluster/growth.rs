//! Redis and the servers of a cluster, from few to many: commands, processor time, and how soon a change is known.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use blockchain_tcpd::cluster::{Census, Cluster, Settings};
use blockchain_tcpd::config::options::{Options, ParsedArgs};
use blockchain_tcpd::waker::Waker;
use rustix::time::{ClockId, clock_gettime};
use shared::clock::Nanos;
use shared::command::Census as _;
use uuid::Uuid;

use crate::Result;
use crate::redis::{Done, Redis};

/// How often it is measured how soon a change is known.
const CHANGES: usize = 40;

/// Of so many servers at most it is looked when they know.
const LOOKED_AT: usize = 50;

/// One server, as far as its cluster is concerned.
struct Server {
    cluster: Cluster,
    clients: Arc<AtomicUsize>,
    waker: Arc<Waker>,
    census: Census,
}

impl Server {
    fn start(settings: &Arc<Settings>) -> Result<Self> {
        let mut cluster = Cluster::new(Some(settings.clone()), Uuid::new_v4(), None)
            .map_err(|error| error.to_string())?;
        let clients = Arc::new(AtomicUsize::new(0));
        let waker = cluster.waker.clone().ok_or("no bell")?;
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

/// Processor time of this process without this thread, which only looks on: in seconds.
fn own_cpu() -> f64 {
    let seconds = |clock| {
        let time = clock_gettime(clock);
        time.tv_sec as f64 + time.tv_nsec as f64 / 1e9
    };
    seconds(ClockId::ProcessCPUTime) - seconds(ClockId::ThreadCPUTime)
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
    redis: &Redis,
    servers: usize,
    time: Duration,
    mut busy: impl FnMut(Duration),
) -> Result<Cost> {
    let (before, own, begun): (Done, f64, _) = (redis.done()?, own_cpu(), Instant::now());
    while begun.elapsed() < time {
        busy(begun.elapsed());
    }
    let (after, seconds) = (redis.done()?, begun.elapsed().as_secs_f64());
    let each = seconds * servers as f64;
    Ok(Cost {
        commands: (after.commands - before.commands) / each,
        redis_cpu: (after.cpu - before.cpu) / each * 1e6,
        own_cpu: (own_cpu() - own) / each * 1e6,
        sent: (after.sent - before.sent) / each,
        redis_share: (after.cpu - before.cpu) / seconds * 100.0,
    })
}

/// How long it takes until all that are looked at know of one more client of one of them.
fn news(servers: &[Server], turn: usize) -> Result<Duration> {
    let step = servers.len().div_ceil(LOOKED_AT);
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

/// Prints the costs and delays of so many servers.
pub fn measure(counts: &[usize], time: Duration) -> Result<()> {
    println!(
        "Redis with so many servers; commands (those of scripts included), CPU (µs) and bytes are for each server and second:\n"
    );
    println!(
        "| servers | quiet: commands | Redis's CPU | own CPU | bytes | busy: commands | Redis's CPU | own CPU | bytes | Redis in all, quiet, busy | known after, median (worst) |"
    );
    println!("|---|---|---|---|---|---|---|---|---|---|---|");
    for &count in counts {
        let redis = Redis::start()?;
        let arguments = [
            "bench",
            "--cluster",
            &redis.url(),
            "--cluster-name",
            "bench",
        ];
        let settings = match Options::parse_from(arguments) {
            Ok(ParsedArgs::Serve(options)) => Settings::new(&options),
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
        let mut news_took = Vec::new();
        for turn in 0..CHANGES {
            news_took.push(news(&servers, turn)?);
        }
        news_took.sort();
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
            news_took[CHANGES / 2].as_secs_f64() * 1e3,
            news_took[CHANGES - 1].as_secs_f64() * 1e3,
        );
        for server in &servers {
            server.cluster.pause();
        }
    }
    Ok(())
}
