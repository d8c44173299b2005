//! Load generator: clients send requests as fast as they are answered (closed loop) or at a fixed
//! rate (open loop), and verify every reply.
//!
//! A first request finds out what the reply must be ([`replies`]). Then a few [`threads`], each
//! with its share of the [`load`] (a number of [`client`]s, all with the same [`workload`]), keep
//! requests in flight and collect [`stats`], while [`progress`] shows a progress bar; [`report`]
//! prints the results, in readable [`numbers`].

mod client;
mod load;
mod numbers;
mod progress;
mod replies;
mod report;
mod stats;
mod threads;
mod workload;

use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use shared::dial::{self, Connection, Deadline, Reply};
use shared::stdio;
use shared::text::excerpt;

use self::load::Shared;
use self::numbers::counted;
use self::replies::{Expected, number};
use self::report::Report;
use self::workload::Workload;
use crate::failure::{Failure, REFUSED};
use crate::options::{Bench, Options};
use crate::output::{Exchange, Output};

/// Warm-up before the measured duration: its fraction of the duration, and its upper bound.
const WARM_UP: (f64, Duration) = (0.05, Duration::from_millis(500));

/// The longest wait for the server to close the connection of the first request.
const FAREWELL: Duration = Duration::from_secs(1);

/// File descriptors besides those of clients and threads.
const DESCRIPTORS: u64 = 32;

/// Runs the benchmark and prints the report.
pub fn run(options: &Options, bench: &Bench) -> Result<ExitCode, Failure> {
    check(&bench.request)?;
    stdio::has_output().map_err(Failure::Print)?;
    let output = Output::new(options.json);
    let begun = Instant::now();
    match measure(options, bench) {
        Ok(report) => {
            if output.is_json() {
                Output::object(&report.json())?;
            } else {
                Output::print(&report.text())?;
            }
            Ok(match report.stats.errors.total() {
                0 => ExitCode::SUCCESS,
                _ => ExitCode::from(REFUSED),
            })
        }
        Err(failure @ Failure::Usage(_)) => Err(failure),
        Err(failure) => {
            let exchange = Exchange {
                request: Some(&bench.request),
                time: begun.elapsed(),
            };
            output.failure(&exchange, failure)
        }
    }
}

/// Checks that this request can be repeated on a connection.
fn check(request: &str) -> Result<(), Failure> {
    let usage = |text: &str| Err(Failure::Usage(text.to_string()));
    if request.contains('\n') {
        return usage("a request is one line");
    }
    let Some(word) = request.split_ascii_whitespace().next() else {
        return usage("an empty request gets no reply");
    };
    if ["QUIT", "EXIT"]
        .iter()
        .any(|last| word.eq_ignore_ascii_case(last))
    {
        return usage("a request that ends the connection can't be asked again and again");
    }
    Ok(())
}

fn measure(options: &Options, bench: &Bench) -> Result<Report, Failure> {
    let cores = thread::available_parallelism().map_or(1, |cores| cores.get());
    let threads = cores.min(bench.clients as usize);
    make_room(u64::from(bench.clients), threads as u64)?;

    let learnt = options
        .route()
        .ask(options.timeout, |mut connection, time| {
            let line = learn(&mut connection, &bench.request, time)?;
            Ok((connection, line))
        });
    let (connection, line) = learnt?;
    let line = line?;
    let address = connection.address();
    // Closed before the load begins, because the server may have room for no more than the clients.
    // A failure to close does not matter here.
    connection.finish();
    let _ = connection.end(Deadline::after(options.timeout.min(FAREWELL)));
    let is_number = bench.request.trim().eq_ignore_ascii_case("WHO") && number(&line).is_some();
    let expected = match is_number {
        true => Expected::Number,
        false => Expected::same_as(&line),
    };

    let warm_up = bench.duration.mul_f64(WARM_UP.0).min(WARM_UP.1);
    let end = warm_up.saturating_add(bench.duration);
    let mut workload = Workload::new(address, bench.request.as_bytes(), bench.depth, expected);
    workload.clients = bench.clients.into();
    workload.timeout = options.timeout;
    let shared = Arc::new(Shared {
        workload,
        request: bench.request.clone(),
        depth: bench.depth,
        rate: bench.rate,
        warm_up,
        end: AtomicU64::new(u64::try_from(end.as_nanos()).unwrap_or(u64::MAX)),
        interrupted: AtomicBool::new(false),
        served: AtomicU64::new(0),
        answered: AtomicU64::new(0),
        errors: AtomicU64::new(0),
    });
    let mut stats = threads::load(&shared, threads, end)?;
    // The first request and its reply.
    stats.sent += 1;
    stats.answered += 1;
    stats.settle(bench.clients.into());
    let ended = Duration::from_nanos(shared.end.load(Ordering::Relaxed));
    Ok(Report {
        server: options.server.to_string(),
        address: address.to_string(),
        request: bench.request.clone(),
        reply: excerpt(&line),
        is_number,
        clients: bench.clients,
        depth: bench.depth,
        wanted: bench.rate,
        threads,
        warm_up,
        window: ended.saturating_sub(warm_up),
        interrupted: ended < end,
        stats,
    })
}

/// Returns the first reply as received, or the error that came instead.
fn learn(
    connection: &mut Connection,
    request: &str,
    deadline: Deadline,
) -> Result<Result<Vec<u8>, Failure>, dial::Failure> {
    connection.send(format!("{request}\n").as_bytes(), deadline)?;
    let line = connection.line(request, deadline)?;
    Ok(match Reply::read(request, &line)? {
        Reply::Value(_) => Ok(line),
        Reply::Refused { word, sentence } => Err(Failure::Refused { word, sentence }),
    })
}

/// Raises the limit on open files (RLIMIT_NOFILE) as far as the clients need.
fn make_room(clients: u64, threads: u64) -> Result<(), Failure> {
    let needed = clients + threads + DESCRIPTORS;
    let Rlimit { current, maximum } = getrlimit(Resource::Nofile);
    if current.is_none_or(|current| current >= needed) {
        return Ok(());
    }
    if let Some(most) = maximum.filter(|most| *most < needed) {
        return Err(Failure::Usage(format!(
            "{} {needed} open files, of which this system allows {most} (ulimit -Hn)",
            counted(clients, "client needs", "clients need")
        )));
    }
    let limit = Rlimit {
        current: Some(needed),
        maximum,
    };
    setrlimit(Resource::Nofile, limit).map_err(|error| Failure::System {
        action: "raise the limit on open files",
        source: error.into(),
    })
}
