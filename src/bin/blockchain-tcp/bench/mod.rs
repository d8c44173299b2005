//! How fast a server answers: clients that ask as fast as they are answered, and verify every reply.
//!
//! One question tells what the reply must be ([`replies`]). Then a few threads ([`load`]), each with its share of the clients
//! ([`client`], on the same [`terms`]), keep requests on the way and count ([`tally`]), while [`progress`] shows how far it is;
//! [`report`] says what was measured.

mod client;
mod load;
mod progress;
mod replies;
mod report;
mod tally;
mod terms;

use std::process::{self, ExitCode};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc::{self, Receiver, RecvTimeoutError, Sender};
use std::sync::{Arc, OnceLock};
use std::thread;
use std::time::{Duration, Instant};

use blockchain_tcpd::dial::{Connection, Deadline, Reply, quoted};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

use self::load::{News, Order, Shared};
use self::progress::Progress;
use self::replies::{Expected, number};
use self::report::Report;
use self::tally::Tally;
use self::terms::Terms;
use crate::failure::{Failure, REFUSED};
use crate::interrupt::on_interrupt;
use crate::options::{Bench, Options};
use crate::output::{Exchange, Output};

/// Which part of the duration goes before it, uncounted; and how long that is at most.
const WARM_UP: (f64, Duration) = (0.05, Duration::from_millis(500));

/// How often the progress is shown.
const TICK: Duration = Duration::from_millis(100);

/// So long the server may take to see that the one who asked first has left.
const FAREWELL: Duration = Duration::from_secs(1);

/// Descriptors that are not those of clients: what a process has, and what each thread has.
const DESCRIPTORS: u64 = 32;

/// The status of a program that was ended before there was anything to report, as shells have it for ^C: 128 and SIGINT.
const INTERRUPTED: i32 = 130;

/// Measures it, and reports.
pub fn run(options: &Options, bench: &Bench) -> Result<ExitCode, Failure> {
    check(&bench.request)?;
    let output = Output::new(options.json);
    let begun = Instant::now();
    match measure(options, bench) {
        Ok(report) => {
            if output.is_json() {
                Output::object(&report.json())?;
            } else {
                Output::print(&report.text())?;
            }
            Ok(match report.tally.errors.total() {
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

    let mut connection = Connection::open(
        &options.server,
        options.family(),
        Deadline::after(options.timeout),
    )?;
    let address = connection.address();
    let line = learn(
        &mut connection,
        &bench.request,
        Deadline::after(options.timeout),
    )?;
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
    let mut terms = Terms::new(address, bench.request.as_bytes(), bench.depth, expected);
    terms.clients = bench.clients.into();
    terms.timeout = options.timeout;
    let shared = Arc::new(Shared {
        terms,
        request: bench.request.clone(),
        depth: bench.depth,
        warm_up,
        end: AtomicU64::new(u64::try_from(end.as_nanos()).unwrap_or(u64::MAX)),
        interrupted: AtomicBool::new(false),
        served: AtomicU64::new(0),
        answered: AtomicU64::new(0),
        errors: AtomicU64::new(0),
    });
    let mut tally = load_with(&shared, threads, end)?;
    // The first question, and its answer.
    tally.sent += 1;
    tally.answered += 1;
    tally.settle(bench.clients.into());
    let ended = Duration::from_nanos(shared.end.load(Ordering::Relaxed));
    Ok(Report {
        server: options.server.to_string(),
        address: address.to_string(),
        request: bench.request.clone(),
        reply: quoted(&line).trim_matches('"').to_string(),
        is_number,
        clients: bench.clients,
        depth: bench.depth,
        threads,
        warm_up,
        window: ended.saturating_sub(warm_up),
        interrupted: ended < end,
        tally,
    })
}

/// The first reply, as it comes.
fn learn(
    connection: &mut Connection,
    request: &str,
    deadline: Deadline,
) -> Result<Vec<u8>, Failure> {
    connection.send(format!("{request}\n").as_bytes(), deadline)?;
    let line = connection.line(request, deadline)?;
    match Reply::read(request, &line)? {
        Reply::Value(_) => Ok(line),
        Reply::Refused { word, sentence } => Err(Failure::Refused { word, sentence }),
    }
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
            "{clients} clients need {needed} open files, of which this system allows {most} (ulimit -Hn)"
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

/// Starts the threads, and waits for what they have counted.
fn load_with(shared: &Arc<Shared>, threads: usize, end: Duration) -> Result<Tally, Failure> {
    let begin = Arc::new(OnceLock::new());
    let (ending, begun) = (shared.clone(), begin.clone());
    on_interrupt(move || match begun.get() {
        None => process::exit(INTERRUPTED),
        Some(begin) => {
            let begin: &Instant = begin;
            let now = u64::try_from(begin.elapsed().as_nanos()).unwrap_or(u64::MAX);
            ending.end.fetch_min(now, Ordering::Relaxed);
            ending.interrupted.store(true, Ordering::Relaxed);
        }
    })?;

    let clients = shared.terms.clients as usize;
    let (news, heard) = mpsc::channel();
    let mut orders = Vec::new();
    for number in 0..threads {
        // The first ones have one client more if it doesn't come out even.
        let share = clients / threads + usize::from(number < clients % threads);
        orders.push(start(shared.clone(), share, news.clone())?);
    }
    drop(news);
    gathered(shared, &heard, threads)?;
    tell(&orders, || Order::Check);
    gathered(shared, &heard, threads)?;
    let now = *begin.get_or_init(Instant::now);
    tell(&orders, || Order::Start(now));

    let warm_up = shared.warm_up;
    let mut progress = Progress::new(end.saturating_sub(warm_up));
    let mut tally = Tally::new();
    let mut waiting = threads;
    while waiting > 0 {
        match heard.recv_timeout(TICK) {
            Ok(News::Done(counted)) => {
                tally.add(*counted);
                waiting -= 1;
            }
            Ok(News::Failed(failure)) => return Err(failure),
            Ok(News::Gathered | News::Checked | News::Full { .. })
            | Err(RecvTimeoutError::Timeout) => {}
            Err(RecvTimeoutError::Disconnected) => return Err(thread_is_gone()),
        }
        let answered = shared.answered.load(Ordering::Relaxed);
        progress.show(
            now.elapsed().saturating_sub(warm_up),
            answered,
            shared.errors.load(Ordering::Relaxed),
        );
    }
    Ok(tally)
}

fn start(
    shared: Arc<Shared>,
    clients: usize,
    news: Sender<News>,
) -> Result<Sender<Order>, Failure> {
    let (order, orders) = mpsc::channel();
    let thread = thread::Builder::new().name("load".to_string());
    let spawned = thread.spawn(move || load::run(shared, clients, &news, &orders));
    spawned.map(|_| order).map_err(|source| Failure::System {
        action: "start a thread",
        source,
    })
}

/// Waits until all threads are as far, or as far as they come.
fn gathered(shared: &Shared, heard: &Receiver<News>, threads: usize) -> Result<(), Failure> {
    let (mut failed, mut full, mut most) = (None, None, u64::MAX);
    for _ in 0..threads {
        match heard.recv() {
            Ok(News::Failed(failure)) => failed = failed.or(Some(failure)),
            Ok(News::Full { line, served }) => {
                full = full.or(Some(line));
                most = most.min(served.unwrap_or(u64::MAX));
            }
            Ok(_) => {}
            Err(_) => failed = failed.or(Some(thread_is_gone())),
        }
    }
    if let Some(line) = full {
        let (all, served) = (
            shared.terms.clients,
            shared.served.load(Ordering::Relaxed).min(most),
        );
        return Err(Failure::Full(format!(
            "the server has no room for {all} clients at the same time; when {served} were served, it said {line}"
        )));
    }
    failed.map_or(Ok(()), Err)
}

fn tell(orders: &[Sender<Order>], order: impl Fn() -> Order) {
    for thread in orders {
        // One that has ended has said why.
        let _ = thread.send(order());
    }
}

fn thread_is_gone() -> Failure {
    Failure::System {
        action: "go on without a thread",
        source: std::io::Error::other("it has failed"),
    }
}
