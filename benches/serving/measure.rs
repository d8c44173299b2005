//! One measurement: a fresh server, a load, the figures.

use std::time::{Duration, Instant};

use rustix::process::Pid;

use crate::askers::Askers;
use crate::contestant::Contestant;
use crate::cores::Cores;
use crate::crowd::{self, GENTLY};
use crate::figures::{Figures, Measure, percentile};
use crate::generator::Generator;
use crate::meter::{Span, resident_kib};
use crate::modes::Load;
use crate::server::{Keeper, Server};
use crate::target::Target;
use crate::trickle::Trickle;
use crate::{Result, arrivals, single};

/// What all measurements share.
pub struct Stage<'a> {
    /// Ends the servers at ^C.
    pub keeper: &'a Keeper,
    /// Where server and generator run.
    pub cores: &'a Cores,
    /// Where the clients come from.
    pub generator: Generator,
    /// How long a measurement takes.
    pub seconds: Duration,
}

/// Starts the contestant, loads it and says what was found.
pub fn run(stage: &mut Stage<'_>, contestant: Contestant, load: &Load) -> Result<Figures> {
    let core = stage.cores.server;
    let baseline = match load {
        // Its workers' memory is there before the clients are, so idle clients are counted from a server without.
        Load::Idle { .. } => {
            let server = Server::start(stage.keeper, contestant, 1, core)?;
            Some(resident_kib(server.pid)?)
        }
        _ => None,
    };
    let server = Server::start(stage.keeper, contestant, load.workers(), core)?;
    let figures = apply(stage, &server.target, server.pid, load, baseline);
    figures.map_err(|error| server.with_log(error).into())
}

/// Loads a server that is ready.
fn apply(
    stage: &mut Stage<'_>,
    target: &Target,
    pid: Pid,
    load: &Load,
    baseline: Option<f64>,
) -> Result<Figures> {
    let seconds = stage.seconds;
    let generator = &mut stage.generator;
    match *load {
        Load::SameCore => {
            stage.cores.pin_to_server()?;
            let span = single::run(target, pid, seconds);
            stage.cores.pin_to_generator()?;
            Ok(rate(&span?))
        }
        Load::Ask { clients, depth } => {
            let span = Askers::connect(target, generator, clients, depth)?.run(pid, seconds)?;
            Ok(rate_and_use(&span))
        }
        Load::Arrivals { at_once } => {
            let span = arrivals::run(target, pid, generator, at_once, seconds)?;
            Ok(rate_and_use(&span))
        }
        Load::Idle { clients } => {
            let crowd = crowd::gather(target, generator, clients, GENTLY)?;
            let resident = resident_kib(pid)?;
            crowd::dismiss(crowd)?;
            let baseline = baseline.unwrap_or_default();
            Ok(vec![
                (Measure::ClientKib, (resident - baseline) / clients as f64),
                (Measure::BaselineMib, baseline / 1024.0),
            ])
        }
        Load::Burst { clients } => {
            let begin = Instant::now();
            let crowd = crowd::gather(target, generator, clients, clients)?;
            let time = begin.elapsed();
            crowd::dismiss(crowd)?;
            Ok(vec![(Measure::BurstMs, time.as_secs_f64() * 1e3)])
        }
        Load::AmongIdle { active, idle } => {
            let mut askers = Askers::connect(target, generator, active, 1)?;
            let alone = askers.time_each(pid, seconds, None)?;
            let crowd = crowd::gather(target, generator, idle, GENTLY)?;
            let among = askers.time_each(pid, seconds, None)?;
            crowd::dismiss(crowd)?;
            Ok(latencies(alone, among))
        }
        Load::AmongTrickling { active, trickling } => {
            let mut askers = Askers::connect(target, generator, active, 1)?;
            let alone = askers.time_each(pid, seconds, None)?;
            let crowd = crowd::gather(target, generator, trickling, GENTLY)?;
            let mut trickle = Trickle::begin(crowd)?;
            let among = askers.time_each(pid, seconds, Some(&mut trickle))?;
            crowd::dismiss(trickle.into_clients())?;
            Ok(latencies(alone, among))
        }
    }
}

/// CPU time and rate.
fn rate(span: &Span) -> Figures {
    let requests = span.requests as f64;
    vec![
        (Measure::CpuMicros, span.cpu.as_secs_f64() * 1e6 / requests),
        (
            Measure::RateThousands,
            requests / span.wall.as_secs_f64() / 1e3,
        ),
    ]
}

/// CPU time and rate, and how much of its core the server used.
fn rate_and_use(span: &Span) -> Figures {
    let mut figures = rate(span);
    let busy = span.cpu.as_secs_f64() / span.wall.as_secs_f64();
    figures.push((Measure::Busy, busy * 100.0));
    figures
}

/// Latencies of the same clients alone and among others.
fn latencies(mut alone: Vec<u32>, mut among: Vec<u32>) -> Figures {
    alone.sort_unstable();
    among.sort_unstable();
    let micros = |sorted: &[u32], part| f64::from(percentile(sorted, part)) / 1e3;
    let (alone50, alone99) = (micros(&alone, 0.50), micros(&alone, 0.99));
    let (among50, among99) = (micros(&among, 0.50), micros(&among, 0.99));
    vec![
        (Measure::P50Ratio, among50 / alone50),
        (Measure::P99Ratio, among99 / alone99),
        (Measure::P50Alone, alone50),
        (Measure::P50Among, among50),
        (Measure::P99Alone, alone99),
        (Measure::P99Among, among99),
    ]
}
