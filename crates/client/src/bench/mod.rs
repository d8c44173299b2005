//! The task `bench`: measures how fast the server answers, with the generator of
//! [`load`](blockchain_tcp::load).
//!
//! A first request finds out what the reply must be. Then a few threads, each with its share of the
//! clients, run the load, while [`progress`] shows a progress bar; [`report`] prints the results.

mod progress;
mod report;

use std::ops::Range;
use std::panic;
use std::process::{self, ExitCode};
use std::sync::{Arc, OnceLock};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use shared::dial::{Deadline, Translator};
use shared::stdio;
use shared::text::excerpt;

use self::progress::Progress;
use self::report::Report;
use crate::failure::{BUSY, FOREIGN, FULL, Failure, INTERRUPTED, NO_REPLY, REFUSED};
use crate::interrupt::on_interrupt;
use crate::options::{Bench, Options};
use crate::output::{self, Exchange};
use blockchain_tcp::load::{self, AT_ONCE, Expected, Generator, Stats, Workload};

/// Warm-up before the measured duration: its fraction of the duration, and its upper bound.
const WARM_UP: (f64, Duration) = (0.05, Duration::from_millis(500));

/// The longest wait for the server to close the connection of the first request.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(1);

/// Interval between updates of the progress bar.
const PROGRESS_INTERVAL: Duration = Duration::from_millis(100);

/// Runs the benchmark and prints the report.
pub fn run(options: &Options, bench: &Bench) -> Result<ExitCode, Failure> {
    check(&bench.request)?;
    stdio::has_output().map_err(Failure::Print)?;
    let exchange = Exchange::begin(options.json, Some(bench.request.as_bytes()));
    match measure(options, bench) {
        Ok(report) => {
            match options.json {
                true => output::print_object(&report.json())?,
                false => output::print(&report.text())?,
            }
            Ok(match report.stats.errors.total() {
                0 => ExitCode::SUCCESS,
                _ => ExitCode::from(REFUSED),
            })
        }
        Err(failure) => exchange.failure(failure),
    }
}

/// Checks that this request can be repeated on a connection.
fn check(request: &str) -> Result<(), Failure> {
    let word = request.split_ascii_whitespace().next().unwrap_or_default();
    let text = match word.to_ascii_uppercase().as_str() {
        _ if request.contains('\n') => "a request is one line",
        "" => "an empty request gets no reply",
        "QUIT" | "EXIT" => "a request that ends the connection can't be asked again and again",
        _ => return Ok(()),
    };
    Err(Failure::usage(text))
}

fn measure(options: &Options, bench: &Bench) -> Result<Report, Failure> {
    let request = bench.request.as_bytes();
    if Translator::new(&options.server).is_some_and(|mut own| own.answers(request)) {
        let text = "the client answers this request itself, in this protocol";
        return Err(Failure::usage(text));
    }
    let first = options
        .route()
        .ask(options.timeout, |mut connection, deadline| {
            let reply = connection.ask(request, deadline)?;
            Ok((connection, reply))
        });
    let (connection, reply) = first?;
    let line = reply.value()?;
    let address = connection.address();
    // Closed before the load begins, because the server may have room for no more than the clients.
    // A failure to close does not matter here.
    connection.finish();
    let _ = connection.end(Deadline::after(options.timeout.min(CLOSE_TIMEOUT)));
    let expected = Expected::like(request, line.as_bytes());

    let mut workload = Workload::new(address, request, expected);
    workload.server = options.server.clone();
    workload.clients = bench.clients.into();
    workload.depth = bench.depth;
    workload.rate = bench.rate;
    workload.warm_up = bench.duration.mul_f64(WARM_UP.0).min(WARM_UP.1);
    workload.duration = bench.duration;
    workload.timeout = options.timeout;
    let cores = thread::available_parallelism().map_or(1, |cores| cores.get());
    let threads = cores.min(bench.clients as usize);
    let workload = Arc::new(workload);
    let has_begun = Arc::new(OnceLock::new());
    let (interrupted, begun) = (workload.clone(), has_begun.clone());
    on_interrupt(move || match begun.get() {
        None => process::exit(INTERRUPTED.into()),
        Some(()) => interrupted.interrupt(),
    })?;
    let stats = run_load(&workload, threads, &has_begun);
    let mut stats = stats.map_err(|error| failure(error, &workload))?;
    // The first request and its reply.
    stats.sent += 1;
    stats.answered += 1;
    Ok(Report {
        server: options.server.to_string(),
        reply: excerpt(&line),
        threads,
        interrupted: workload.is_interrupted(),
        workload,
        stats,
    })
}

/// Runs the load in this number of threads, and returns the sum of their stats.
fn run_load(
    workload: &Arc<Workload>,
    threads: usize,
    has_begun: &OnceLock<()>,
) -> Result<Stats, load::Error> {
    let connect = |numbers: Range<u64>| {
        let workload = workload.clone();
        start(move || Generator::connect(workload, numbers, AT_ONCE))
    };
    let generators = shares(workload.clients, threads as u64).map(connect);
    let generators: Vec<_> = generators.collect::<Result<_, _>>()?;
    let generators: Vec<Generator> = generators.into_iter().map(join).collect::<Result<_, _>>()?;

    let begin = Instant::now();
    // It is set here only.
    let _ = has_begun.set(());
    let run = |mut generator: Generator| start(move || generator.run(begin));
    let running: Vec<_> = generators.into_iter().map(run).collect::<Result<_, _>>()?;
    let progress = Progress::new(workload);
    while !running.iter().all(JoinHandle::is_finished) {
        thread::sleep(PROGRESS_INTERVAL);
        progress.show(begin.elapsed(), workload);
    }
    drop(progress);
    let mut sum = Stats::default();
    for stats in running {
        sum.add(join(stats)?);
    }
    Ok(sum)
}

/// Divides the clients into equal shares; the remainder is spread over the first.
fn shares(clients: u64, threads: u64) -> impl Iterator<Item = Range<u64>> {
    (0..threads).map(move |thread| {
        let first = |thread: u64| thread * (clients / threads) + thread.min(clients % threads);
        first(thread)..first(thread + 1)
    })
}

/// Starts a thread of the load.
fn start<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, load::Error> + Send + 'static,
) -> Result<JoinHandle<Result<T, load::Error>>, load::Error> {
    let thread = thread::Builder::new().name("load".to_string());
    thread.spawn(work).map_err(load::Error::System)
}

fn join<T>(thread: JoinHandle<Result<T, load::Error>>) -> Result<T, load::Error> {
    thread
        .join()
        .unwrap_or_else(|panic| panic::resume_unwind(panic))
}

/// Converts an error of the generator.
fn failure(error: load::Error, workload: &Workload) -> Failure {
    match error {
        // The server disconnects one client to make room for another.
        load::Error::Refused { word, line } if word == BUSY || word == "TIMEOUT" => {
            let clients = report::counted(workload.clients, "client", "clients");
            let text =
                format!("the server has no room for {clients} at the same time: it said {line}");
            Failure::Other(FULL, text)
        }
        load::Error::Refused { .. } | load::Error::Wrong(_) => {
            Failure::Other(FOREIGN, error.to_string())
        }
        load::Error::System(error) => Failure::system("measure", &error),
        _ => Failure::Other(NO_REPLY, error.to_string()),
    }
}
