//! Runs the load threads, and merges their stats.

use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::process;
use std::sync::atomic::Ordering;
use std::sync::mpsc::{self, Receiver, RecvTimeoutError, Sender};
use std::sync::{Arc, OnceLock};
use std::thread;
use std::time::{Duration, Instant};

use super::load::{self, Order, Shared, WorkerEvent};
use super::numbers::{counted, grouped};
use super::progress::Progress;
use super::stats::Stats;
use crate::failure::Failure;
use crate::interrupt::on_interrupt;

/// Interval between updates of the progress bar.
const TICK: Duration = Duration::from_millis(100);

/// Starts the threads, and returns the sum of their stats after `end`.
pub fn load(shared: &Arc<Shared>, threads: usize, end: Duration) -> Result<Stats, Failure> {
    let begin = Arc::new(OnceLock::new());
    let (ending, begun) = (shared.clone(), begin.clone());
    on_interrupt(move || match begun.get() {
        None => process::exit(i32::from(Failure::Interrupted.exit_status())),
        Some(begin) => {
            let begin: &Instant = begin;
            let now = u64::try_from(begin.elapsed().as_nanos()).unwrap_or(u64::MAX);
            ending.end.fetch_min(now, Ordering::Relaxed);
            ending.interrupted.store(true, Ordering::Relaxed);
        }
    })?;

    let clients = shared.workload.clients as usize;
    let (worker_event, heard) = mpsc::channel();
    let mut orders = Vec::new();
    let mut first = 0;
    for number in 0..threads {
        // The remainder is spread over the first threads.
        let share = clients / threads + usize::from(number < clients % threads);
        let share = first..first + share as u64;
        first = share.end;
        let (order, ordered) = mpsc::channel();
        let shared = shared.clone();
        start(worker_event.clone(), move |worker_event| {
            load::run(shared, share, worker_event, &ordered);
        })?;
        orders.push(order);
    }
    drop(worker_event);
    gathered(shared, &heard, threads)?;
    tell(&orders, || Order::Check);
    gathered(shared, &heard, threads)?;
    let now = *begin.get_or_init(Instant::now);
    tell(&orders, || Order::Start(now));

    let warm_up = shared.warm_up;
    let mut progress = Progress::new(end.saturating_sub(warm_up));
    let mut stats = Stats::new();
    let mut waiting = threads;
    while waiting > 0 {
        match heard.recv_timeout(TICK) {
            Ok(WorkerEvent::Done(counted)) => {
                stats.add(*counted);
                waiting -= 1;
            }
            Ok(WorkerEvent::Failed(failure)) => return Err(failure),
            Ok(WorkerEvent::Gathered | WorkerEvent::Checked | WorkerEvent::Full { .. })
            | Err(RecvTimeoutError::Timeout) => {}
            Err(RecvTimeoutError::Disconnected) => return Err(lost()),
        }
        let answered = shared.answered.load(Ordering::Relaxed);
        progress.show(
            now.elapsed().saturating_sub(warm_up),
            answered,
            shared.errors.load(Ordering::Relaxed),
        );
    }
    Ok(stats)
}

/// Starts a thread. A panic is reported as an event: the other threads wait for orders meanwhile,
/// so the channel would stay open.
fn start(
    worker_event: Sender<WorkerEvent>,
    work: impl FnOnce(&Sender<WorkerEvent>) + Send + 'static,
) -> Result<(), Failure> {
    let thread = thread::Builder::new().name("load".to_string());
    let spawned = thread.spawn(move || {
        if catch_unwind(AssertUnwindSafe(|| work(&worker_event))).is_err() {
            let _ = worker_event.send(WorkerEvent::Failed(lost()));
        }
    });
    spawned.map(|_| ()).map_err(|source| Failure::System {
        action: "start a thread",
        source,
    })
}

/// Waits until each thread has reached the next step or failed.
fn gathered(shared: &Shared, heard: &Receiver<WorkerEvent>, threads: usize) -> Result<(), Failure> {
    let (mut failed, mut full) = (None, None);
    for _ in 0..threads {
        match heard.recv() {
            Ok(WorkerEvent::Failed(failure)) => failed = failed.or(Some(failure)),
            Ok(WorkerEvent::Full { line, was_served }) => full = full.or(Some((line, was_served))),
            Ok(_) => {}
            Err(_) => failed = failed.or(Some(lost())),
        }
    }
    let Some((line, was_served)) = full else {
        return failed.map_or(Ok(()), Err);
    };
    let all = counted(shared.workload.clients, "client", "clients");
    let to_whom = match was_served {
        true => "to one that it had served".to_string(),
        false => {
            let served = shared.served.load(Ordering::Relaxed);
            format!("it served {}, and to another", grouped(served))
        }
    };
    Err(Failure::Full(format!(
        "the server has no room for {all} at the same time: {to_whom} it said {line}"
    )))
}

fn tell(orders: &[Sender<Order>], order: impl Fn() -> Order) {
    for thread in orders {
        // A thread that has ended has reported why.
        let _ = thread.send(order());
    }
}

/// The failure if a thread has panicked.
fn lost() -> Failure {
    Failure::System {
        action: "measure",
        source: io::Error::other("a thread of the load has panicked"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_thread_that_panics_is_not_waited_for() {
        let (worker_event, heard) = mpsc::channel();
        let (order, orders) = mpsc::channel::<Order>();
        start(worker_event.clone(), move |worker_event| {
            let _ = worker_event.send(WorkerEvent::Gathered);
            let _ = orders.recv();
        })
        .expect("a thread");
        start(worker_event, |_| panic!("as a test wants it")).expect("a thread");
        let mut failed = Vec::new();
        for _ in 0..2 {
            let said = heard.recv_timeout(Duration::from_secs(30));
            if let WorkerEvent::Failed(failure) = said.expect("both say something") {
                failed.push(failure.to_string());
            }
        }
        assert_eq!(failed, ["can't measure: a thread of the load has panicked"]);
        drop(order);
    }
}
