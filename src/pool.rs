//! The fixed workers, and the bounded channel on which they take their work.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::time::Instant;

use rustix::thread::set_name;

use crate::error::Error;
use crate::queue::{self, Job, Jobs, Queue, Worker};
use crate::scoreboard::{Activity, Line, Scoreboard};
use crate::sync::threadpool::{Builder, ThreadPool};
use crate::thread::STACK_SIZE;

/// The workers.
pub struct Pool<T> {
    queue: Queue<T>,
    jobs: Jobs<T>,
    /// Not of `sync`: no worker waits for it.
    ended: crossbeam_channel::Receiver<()>,
}

impl<T: Send + 'static> Pool<T> {
    /// Starts a worker for each line of the scoreboard, and a queue that takes `capacity` jobs, those included that a
    /// worker is about to take. Each job is given to `serve`, and then to `end` with what `serve` returned, or with
    /// nothing if it panicked.
    pub fn start<E>(
        capacity: usize,
        scoreboard: &Arc<Scoreboard>,
        serve: impl Fn(&mut T, &Line) -> E + Send + Sync + 'static,
        end: impl Fn(T, Option<E>) + Send + Sync + 'static,
    ) -> Result<Self, Error> {
        let workers = scoreboard.lines().len();
        let (queue, jobs) = queue::bounded(capacity);
        let (running, ended) = crossbeam_channel::bounded(0);
        let threads = spawn(workers)?;
        let work = Arc::new((serve, end));
        for index in 0..workers {
            let (jobs, scoreboard, work) = (jobs.clone(), scoreboard.clone(), work.clone());
            let running: crossbeam_channel::Sender<()> = running.clone();
            threads.execute(move || {
                run(&jobs.worker(), &scoreboard.lines()[index], &work.0, &work.1);
                drop(running);
            });
        }
        Ok(Pool { queue, jobs, ended })
    }

    /// Where jobs are put for the workers. They end when all clones of it are dropped and the queue is empty.
    pub fn queue(&self) -> Queue<T> {
        self.queue.clone()
    }

    /// The jobs that wait, to be counted.
    pub fn waiting(&self) -> Jobs<T> {
        self.jobs.clone()
    }

    /// Gives the workers nothing more, beyond what is queued; the returned channel disconnects when all have ended.
    pub fn close(self) -> crossbeam_channel::Receiver<()> {
        self.ended
    }
}

/// Waits until all senders of `ended` are gone, or until `deadline`; returns whether they are.
pub fn wait_for(ended: &crossbeam_channel::Receiver<()>, deadline: Instant) -> bool {
    // Nobody sends: what comes is the disconnection or the deadline.
    !matches!(
        ended.recv_deadline(deadline),
        Err(crossbeam_channel::RecvTimeoutError::Timeout)
    )
}

/// threadpool panics when the system refuses a thread, and prints nothing that helps.
fn spawn(workers: usize) -> Result<ThreadPool, Error> {
    let builder = Builder::new()
        .num_threads(workers)
        .thread_stack_size(STACK_SIZE);
    catch_unwind(|| builder.build()).map_err(|panic| {
        let reason = panic
            .downcast_ref::<String>()
            .map_or("the system refused", String::as_str);
        Error::Spawn(reason.to_string())
    })
}

/// A worker: a job at a time until there are no more. A panic ends the job, not the worker.
fn run<T, E>(
    jobs: &Worker<T>,
    line: &Line,
    serve: &impl Fn(&mut T, &Line) -> E,
    end: &impl Fn(T, Option<E>),
) {
    // For `ps -L` and debuggers alone: std would keep each thread's name three times. It fails on no Linux.
    let _ = set_name(c"worker");
    line.enlist();
    while let Some(job) = jobs.take() {
        let mut job = match job {
            Job::Serve(job) => job,
            Job::Answer(answer) => {
                // Whoever asked may wait no longer.
                let _ = answer.try_send(());
                continue;
            }
        };
        // The job is looked at after a panic only to close it, and everything shared is made of atomics and locks
        // that hold no half-done state.
        let ended = catch_unwind(AssertUnwindSafe(|| serve(&mut job, line))).ok();
        // If that panics, the job is closed by being dropped.
        let _ = catch_unwind(AssertUnwindSafe(|| end(job, ended)));
        line.set(Activity::Vacant);
    }
}
