//! Job queue of the worker pool: a bounded channel of jobs, and a stack of the idle workers.
//!
//! The channel only carries jobs. Workers wait here, which costs less than the channel's own
//! `recv`: see `docs/adr/0007-where-workers-wait.md`. Senders wake workers outside of the lock, one
//! at a time, the last that went idle first. A woken worker that finds more than one job wakes the
//! next.

use std::sync::{Arc, PoisonError};

use shared::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use shared::sync::channel::{self, Receiver, Sender, TryRecvError, TrySendError};
use shared::sync::{Mutex, MutexGuard, Thread, current_thread, park};

/// A job for a worker.
pub enum Job<T> {
    /// Serve this.
    Serve(T),
    /// Answer, as a proof of life.
    Answer(crossbeam_channel::Sender<()>),
}

/// Number of threads that request answers, each one at a time: the watchdog and the health checks.
const CHECKERS: usize = 2;

/// Returns both ends of a queue with room for `capacity` jobs to serve and for the requests of the
/// health checks.
pub fn bounded<T>(capacity: usize) -> (Queue<T>, Jobs<T>) {
    let (sender, receiver) = channel::bounded(capacity + CHECKERS);
    let waiting = Arc::new(Waiting {
        waiting: Mutex::new(Vec::new()),
        looking: AtomicUsize::new(0),
        answers: AtomicUsize::new(0),
    });
    let queue = Queue {
        sender: Some(sender),
        waiting: waiting.clone(),
    };
    (queue, Jobs { receiver, waiting })
}

/// Sending end of the queue. When all clones are dropped, the workers learn that no more jobs will
/// come.
pub struct Queue<T> {
    /// `None` only while it is dropped.
    sender: Option<Sender<Job<T>>>,
    waiting: Arc<Waiting>,
}

/// Receiving end of the queue.
pub struct Jobs<T> {
    receiver: Receiver<Job<T>>,
    waiting: Arc<Waiting>,
}

/// A worker's access to the jobs.
pub struct Worker<T> {
    jobs: Jobs<T>,
    own: Arc<Waiter>,
}

/// The workers without a job.
struct Waiting {
    /// Workers that wait to be woken, the latest last.
    waiting: Mutex<Vec<Arc<Waiter>>>,
    /// Number of workers that are awake and about to look for a job: while there are some, no other
    /// needs to be woken.
    looking: AtomicUsize,
    /// Number of queued [`Job::Answer`] jobs. For monitoring only: it may lag for a moment.
    answers: AtomicUsize,
}

struct Waiter {
    thread: Thread,
    woken: AtomicBool,
}

impl<T> Queue<T> {
    /// Queues `job` for the workers, if there is room.
    pub fn put(&self, job: Job<T>) -> Result<(), TrySendError<Job<T>>> {
        let Some(sender) = &self.sender else {
            return Err(TrySendError::Disconnected(job));
        };
        let is_answer = matches!(job, Job::Answer(_));
        let answers = &self.waiting.answers;
        if is_answer {
            answers.fetch_add(1, Ordering::Relaxed);
        }
        let put = sender.try_send(job);
        match put {
            Ok(()) => self.waiting.wake_one(),
            Err(_) if is_answer => drop(answers.fetch_sub(1, Ordering::Relaxed)),
            Err(_) => {}
        }
        put
    }
}

impl<T> Jobs<T> {
    /// Returns the number of queued jobs.
    pub fn len(&self) -> usize {
        self.receiver.len()
    }

    /// Returns the number of queued jobs to serve.
    pub fn to_serve(&self) -> usize {
        let answers = || self.waiting.answers.load(Ordering::Relaxed);
        // One may be queued or taken meanwhile.
        let before = answers();
        let queued = self.len();
        queued.saturating_sub(before.max(answers()))
    }

    /// Returns whether the queue is empty.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Takes a job if one is queued.
    pub fn try_take(&self) -> Option<Job<T>> {
        self.try_recv().ok()
    }

    fn try_recv(&self) -> Result<Job<T>, TryRecvError> {
        let job = self.receiver.try_recv();
        if let Ok(Job::Answer(_)) = job {
            self.waiting.answers.fetch_sub(1, Ordering::Relaxed);
        }
        job
    }

    /// Returns the calling thread's access to the jobs.
    pub fn worker(&self) -> Worker<T> {
        Worker {
            jobs: self.clone(),
            own: Arc::new(Waiter {
                thread: current_thread(),
                woken: AtomicBool::new(false),
            }),
        }
    }
}

impl<T> Worker<T> {
    /// Waits for a job and takes it. Returns `None` when the queue is empty and closed.
    pub fn take(&self) -> Option<Job<T>> {
        let (jobs, idle) = (&self.jobs, &self.jobs.waiting);
        if let Ok(job) = jobs.try_recv() {
            return Some(job);
        }
        idle.looking.fetch_add(1, Ordering::SeqCst);
        loop {
            idle.looking.fetch_sub(1, Ordering::SeqCst);
            let mut waiting = idle.lock();
            // Under the lock: a sender that queues a job from now on finds this worker on the
            // stack.
            match jobs.try_recv() {
                Ok(job) => {
                    drop(waiting);
                    // The senders of further jobs relied on this worker to wake the next.
                    if !jobs.is_empty() {
                        idle.wake_one();
                    }
                    return Some(job);
                }
                Err(TryRecvError::Disconnected) => return None,
                Err(TryRecvError::Empty) => {}
            }
            self.own.woken.store(false, Ordering::Relaxed);
            waiting.push(self.own.clone());
            drop(waiting);
            // `park` may return without an `unpark`.
            while !self.own.woken.load(Ordering::Acquire) {
                park();
            }
        }
    }
}

impl Waiting {
    /// Wakes the worker that has waited the shortest time, unless one is already looking for a job.
    fn wake_one(&self) {
        if self.looking.load(Ordering::SeqCst) > 0 {
            return;
        }
        let next = self.lock().pop();
        if let Some(waiter) = next {
            self.wake(&waiter);
        }
    }

    fn wake(&self, waiter: &Waiter) {
        self.looking.fetch_add(1, Ordering::SeqCst);
        waiter.woken.store(true, Ordering::Release);
        waiter.thread.unpark();
    }

    /// Locks the stack. No code panics while it holds this lock.
    fn lock(&self) -> MutexGuard<'_, Vec<Arc<Waiter>>> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl<T> Clone for Queue<T> {
    fn clone(&self) -> Self {
        Queue {
            sender: self.sender.clone(),
            waiting: self.waiting.clone(),
        }
    }
}

impl<T> Clone for Jobs<T> {
    fn clone(&self) -> Self {
        Jobs {
            receiver: self.receiver.clone(),
            waiting: self.waiting.clone(),
        }
    }
}

impl<T> Drop for Queue<T> {
    fn drop(&mut self) {
        self.sender = None;
        // If this was the last sender, all workers must see the disconnection; otherwise they wait
        // again.
        let all = std::mem::take(&mut *self.waiting.lock());
        all.iter().for_each(|waiter| self.waiting.wake(waiter));
    }
}
