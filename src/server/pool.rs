//! Worker pool: a fixed number of threads, each of which serves one client at a time.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::time::Instant;

use crossbeam_channel::{Receiver, RecvTimeoutError};
use rustix::thread::set_name;

use crate::error::Error;
use crate::server::queue::{Job, Jobs, Worker};
use crate::session::scoreboard::{Activity, Scoreboard, WorkerSlot};
use crate::thread::STACK_SIZE;
use shared::sync::threadpool::{Builder, ThreadPool};

/// Starts a worker for each slot of the scoreboard.
///
/// A worker first calls `begin`, which may wait. It passes each job to `serve`, and then to `end`
/// with the result of `serve`, or with `None` after a panic. The workers end when the queue is
/// closed and empty; the returned channel disconnects when all have ended.
pub fn start<T: Send + 'static, E>(
    jobs: &Jobs<T>,
    scoreboard: &Arc<Scoreboard>,
    begin: impl Fn() + Send + Sync + 'static,
    serve: impl Fn(&mut T, &WorkerSlot) -> E + Send + Sync + 'static,
    end: impl Fn(T, Option<E>) + Send + Sync + 'static,
) -> Result<Receiver<()>, Error> {
    let workers = scoreboard.slots().len();
    // Not from `sync`: no worker waits for this channel.
    let (running, ended) = crossbeam_channel::bounded::<()>(0);
    let threads = spawn(workers)?;
    let work = Arc::new((begin, serve, end));
    for index in 0..workers {
        let (jobs, scoreboard, work) = (jobs.clone(), scoreboard.clone(), work.clone());
        let running = running.clone();
        threads.execute(move || {
            let slot = &scoreboard.slots()[index];
            // Only for `ps -L` and debuggers: std would keep each thread's name three times. It
            // does not fail on Linux.
            let _ = set_name(c"worker");
            slot.register();
            work.0();
            run(&jobs.worker(), slot, &work.1, &work.2);
            drop(running);
        });
    }
    Ok(ended)
}

/// Waits until all senders of `ended` are gone, or until `deadline`; returns whether they are gone.
pub fn wait_for(ended: &Receiver<()>, deadline: Instant) -> bool {
    // Nothing is ever sent: the result is the disconnection or the time-out.
    !matches!(
        ended.recv_deadline(deadline),
        Err(RecvTimeoutError::Timeout)
    )
}

/// Builds the thread pool. threadpool panics when the system refuses a thread, and prints nothing
/// useful.
fn spawn(workers: usize) -> Result<ThreadPool, Error> {
    let builder = Builder::new()
        .num_threads(workers)
        .thread_stack_size(STACK_SIZE);
    catch_unwind(|| builder.build()).map_err(|panic| {
        let reason = panic
            .downcast_ref::<String>()
            .map_or("the system refused", String::as_str);
        Error::System(format!(
            "can't start the worker threads: {reason}; lower --max-clients or raise the limit on threads \
             (ulimit -u, TasksMax=)"
        ))
    })
}

/// Takes and does jobs until the queue is closed. A panic ends the job, not the worker.
fn run<T, E>(
    jobs: &Worker<T>,
    slot: &WorkerSlot,
    serve: &impl Fn(&mut T, &WorkerSlot) -> E,
    end: &impl Fn(T, Option<E>),
) {
    while let Some(job) = jobs.take() {
        do_job(job, slot, serve, end);
        slot.set(Activity::Vacant);
    }
}

/// Does one job. A panic ends the job, not the caller.
pub fn do_job<T, E>(
    job: Job<T>,
    slot: &WorkerSlot,
    serve: &impl Fn(&mut T, &WorkerSlot) -> E,
    end: &impl Fn(T, Option<E>),
) {
    match job {
        Job::Serve(mut job) => {
            // After a panic the job is told and closed, and all shared state consists of atomics
            // and of locks that never guard a half-done state.
            let ended = catch_unwind(AssertUnwindSafe(|| serve(&mut job, slot))).ok();
            // If `end` panics, dropping the job closes it.
            let _ = catch_unwind(AssertUnwindSafe(|| end(job, ended)));
        }
        // The health check may have stopped waiting.
        Job::Answer(answer) => {
            let _ = answer.try_send(());
        }
    }
}
