//! How fast a server answers: clients that ask as fast as they are answered, or at a rate of their own, and verify every reply.
//!
//! One question tells what the reply must be ([`replies`]). Then a few [`threads`], each with its share of the [`load`] (a number of
//! [`client`]s, all on the same [`workload`]), keep requests on the way and count ([`stats`]), while [`progress`] shows how far it is;
//! [`report`] says what was measured, in [`numbers`] that are easy to read.

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

use blockchain_tcpd::dial::{self, Connection, Deadline, Reply, escaped};
use blockchain_tcpd::stdio;
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

use self::load::Shared;
use self::numbers::counted;
use self::replies::{Expected, number};
use self::report::Report;
use self::workload::Workload;
use crate::failure::{Failure, REFUSED};
use crate::options::{Bench, Options};
use crate::output::{Exchange, Output};

/// Which part of the duration goes before it, uncounted; and how long that is at most.
const WARM_UP: (f64, Duration) = (0.05, Duration::from_millis(500));

/// So long the server may take to see that the one who asked first has left.
const FAREWELL: Duration = Duration::from_secs(1);

/// Descriptors that are not those of clients: what a process has, and what each thread has.
const DESCRIPTORS: u64 = 32;

/// Measures it, and reports.
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

/// Whether this can be asked again and again.
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
    // The server may have no room for one more than the clients. How it says goodbye is not what is asked here.
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
    // The first question, and its answer.
    stats.sent += 1;
    stats.answered += 1;
    stats.settle(bench.clients.into());
    let ended = Duration::from_nanos(shared.end.load(Ordering::Relaxed));
    Ok(Report {
        server: options.server.to_string(),
        address: address.to_string(),
        request: bench.request.clone(),
        reply: escaped(&line),
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

/// The first reply, as it comes; or the refusal that came in its place.
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

/// Raises the limit on open files as far as so many clients need.
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
