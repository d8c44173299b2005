//! One measurement: a fresh server, a load, the figures.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use rustix::net::{SendFlags, send};
use rustix::process::Pid;

use crate::common::cores::Cores;
use crate::common::load::{Expected, Generator, Stats, Workload};
use crate::common::machine::{cpu_time, resident_kib};
use crate::common::server::Server;
use crate::common::{self, Result, connect};
use crate::contestant::Contestant;
use crate::modes::Load;
use crate::results::{Figures, Measure};

/// The part of a measurement's time that goes before it.
const WARM_UP: f64 = 0.2;

/// How long a client waits for a connection or a reply: no server needs so long, but a machine that
/// does much else may.
const TIMEOUT: Duration = Duration::from_secs(60);

/// Number of loopback addresses that clients connect from. Each has about 28,000 ports, and a port
/// stays taken for a minute after a client has closed: one address would be used up within a
/// second.
const SOURCES: u8 = 50;

/// Starts the contestant, loads it and returns what was found.
pub fn run(
    cores: &Cores,
    seconds: Duration,
    contestant: Contestant,
    load: &Load,
) -> Result<Figures> {
    let start = |clients| cores.at_server(|| contestant.start(clients));
    let baseline = match load {
        // Its workers' memory is there before the clients are, so idle clients are counted from a
        // server without.
        Load::Idle { .. } => resident_kib(start(1)?.pid())?,
        _ => 0.0,
    };
    let begun = Instant::now();
    let server = start(load.workers())?;
    let pid = server.pid();
    let workload = |clients: usize, depth: u32| {
        let mut workload = workload(&server, pid, contestant, seconds);
        (workload.clients, workload.depth) = (clients as u64, depth);
        // A generator with a core of its own never sleeps there: to wake it would take an interrupt
        // from the server's core, for which the server would be charged, and on a virtual machine
        // that costs several times the request.
        workload.spins = cores.are_apart();
        workload
    };
    match *load {
        Load::SameCore => {
            let mut workload = workload(1, 1);
            workload.spins = false;
            let measure = || common::run(&mut connect(workload)?);
            Ok(rate(&cores.at_server(measure)?, seconds))
        }
        Load::Ask { clients, depth } => {
            let mut generator = connect(workload(clients, depth))?;
            let mut figures = rate_and_use(&common::run(&mut generator)?, seconds);
            figures.push((Measure::Fairness, generator.fairness()));
            Ok(figures)
        }
        Load::Arrivals { at_once } => {
            let mut workload = workload(at_once, 1);
            workload.reconnects = true;
            let stats = common::run(&mut connect(workload)?)?;
            Ok(rate_and_use(&stats, seconds))
        }
        Load::Start { .. } => {
            connect(workload(1, 1))?;
            Ok(vec![(Measure::Millis, begun.elapsed().as_secs_f64() * 1e3)])
        }
        Load::Idle { clients } => {
            let mut crowd = connect(workload(clients, 1))?;
            let resident = resident_kib(pid)?;
            crowd.check()?;
            Ok(vec![
                (Measure::ClientKib, (resident - baseline) / clients as f64),
                (Measure::BaselineMib, baseline / 1024.0),
            ])
        }
        Load::Burst { clients } => {
            let begun = Instant::now();
            let workload = Arc::new(workload(clients, 1));
            let mut crowd = Generator::connect(workload, 0..clients as u64, clients)?;
            let time = begun.elapsed();
            crowd.check()?;
            Ok(vec![(Measure::Millis, time.as_secs_f64() * 1e3)])
        }
        Load::AmongIdle { active, idle } => {
            let mut active = connect(workload(active, 1))?;
            let alone = common::run(&mut active)?;
            let mut crowd = connect(workload(idle, 1))?;
            let among = common::run(&mut active)?;
            crowd.check()?;
            Ok(latencies(&alone, &among))
        }
        Load::AmongTrickling { active, trickling } => {
            let mut active = connect(workload(active, 1))?;
            let alone = common::run(&mut active)?;
            let mut crowd = connect(workload(trickling, 1))?;
            let among = among_trickling(&mut active, &crowd, trickling)?;
            crowd.check()?;
            Ok(latencies(&alone, &among))
        }
    }
}

/// Returns a workload of one client of this server.
fn workload(server: &Server, pid: Pid, contestant: Contestant, seconds: Duration) -> Workload {
    let (request, reply) = contestant.request_and_reply();
    let expected = match contestant.is_raw() {
        true => Expected::raw(reply),
        false => Expected::same_as(reply),
    };
    let mut workload = Workload::new(server.address, request, expected);
    workload.is_raw = contestant.is_raw();
    workload.warm_up = seconds.mul_f64(WARM_UP);
    workload.duration = seconds;
    workload.timeout = TIMEOUT;
    workload.sources = SOURCES;
    workload.cpu_clock = Box::new(move || cpu_time(pid).unwrap_or_default());
    workload
}

/// Runs the load of these clients while each of a crowd sends a byte a second, and never a whole
/// line.
fn among_trickling(active: &mut Generator, crowd: &Generator, number: usize) -> Result<Stats> {
    let ended = AtomicBool::new(false);
    let sockets: Vec<_> = crowd.sockets().collect();
    let gap = Duration::from_secs(1) / u32::try_from(number)?;
    thread::scope(|scope| {
        scope.spawn(|| {
            for socket in sockets.iter().cycle() {
                if ended.load(Ordering::Relaxed) {
                    break;
                }
                // A lost connection is found by the check that follows.
                let _ = send(socket, b"W", SendFlags::NOSIGNAL);
                thread::sleep(gap);
            }
        });
        let stats = common::run(active);
        ended.store(true, Ordering::Relaxed);
        stats
    })
}

/// CPU time and rate.
fn rate(stats: &Stats, seconds: Duration) -> Figures {
    let replies = stats.replies as f64;
    let rate = replies / seconds.as_secs_f64();
    vec![
        (Measure::CpuMicros, stats.cpu.as_secs_f64() * 1e6 / replies),
        (Measure::RateThousands, rate / 1e3),
    ]
}

/// CPU time and rate, and how much of its core the server used.
fn rate_and_use(stats: &Stats, seconds: Duration) -> Figures {
    let mut figures = rate(stats, seconds);
    let busy = stats.cpu.as_secs_f64() / seconds.as_secs_f64();
    figures.push((Measure::Busy, busy * 100.0));
    figures
}

/// Latencies of the same clients alone and among others.
fn latencies(alone: &Stats, among: &Stats) -> Figures {
    let micros = |stats: &Stats, part| stats.latencies.value_at_quantile(part) as f64 / 1e3;
    let [alone50, alone99] = [0.5, 0.99].map(|part| micros(alone, part));
    let [among50, among99] = [0.5, 0.99].map(|part| micros(among, part));
    vec![
        (Measure::P50Ratio, among50 / alone50),
        (Measure::P99Ratio, among99 / alone99),
        (Measure::P50Alone, alone50),
        (Measure::P50Among, among50),
        (Measure::P99Alone, alone99),
        (Measure::P99Among, among99),
    ]
}
