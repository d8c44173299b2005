//! The bounded channel on which jobs come to the workers, and the stack of the workers that wait at it.
//!
//! The channel carries; the waiting is done here, for less than the channel's own `recv` would cost: see
//! `docs/adr/0007-where-workers-wait.md`. Workers are woken outside of the lock, the one that has waited the shortest
//! first, and one at a time: who has been woken and finds more than one job wakes the next.

use std::sync::{Arc, PoisonError};

use crate::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use crate::sync::channel::{self, Receiver, Sender, TryRecvError, TrySendError};
use crate::sync::{Mutex, MutexGuard, Thread, current_thread, park};

/// What a worker is given.
pub enum Job<T> {
    /// To serve this.
    Serve(T),
    /// To show that it is there.
    Answer(crossbeam_channel::Sender<()>),
}

/// How many ask for answers, each for one at a time: the watchdog and the health checks.
const CHECKERS: usize = 2;

/// A queue for at most `capacity` to be served, and for those who ask whether anybody is there: where jobs are put, and where
/// they are taken.
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

/// Where jobs are put. When all clones are dropped, the workers learn that no more will come.
pub struct Queue<T> {
    /// There until it is dropped.
    sender: Option<Sender<Job<T>>>,
    waiting: Arc<Waiting>,
}

/// Where jobs are taken.
pub struct Jobs<T> {
    receiver: Receiver<Job<T>>,
    waiting: Arc<Waiting>,
}

/// One worker's access to the jobs.
pub struct Worker<T> {
    jobs: Jobs<T>,
    own: Arc<Waiter>,
}

/// The workers that have nothing to do.
struct Waiting {
    /// Those that wait to be woken, the last come at the end.
    waiting: Mutex<Vec<Arc<Waiter>>>,
    /// How many are up and about to look for a job: nobody needs to be woken while there are some.
    looking: AtomicUsize,
    /// How many of the jobs are to be answered only. For whoever watches: it may be a moment late.
    answers: AtomicUsize,
}

struct Waiter {
    thread: Thread,
    woken: AtomicBool,
}

impl<T> Queue<T> {
    /// Puts `job` where the workers take it, if there is room.
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
    /// How many jobs wait.
    pub fn len(&self) -> usize {
        self.receiver.len()
    }

    /// How many of them wait to be served.
    pub fn to_serve(&self) -> usize {
        let answers = self.waiting.answers.load(Ordering::Relaxed);
        self.len().saturating_sub(answers)
    }

    /// Whether none waits.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Takes a job if one waits.
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

    /// The calling thread's access to the jobs.
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
    /// Waits for a job and takes it; nothing when the queue is empty and no more will come.
    pub fn take(&self) -> Option<Job<T>> {
        let (jobs, idle) = (&self.jobs, &self.jobs.waiting);
        if let Ok(job) = jobs.try_recv() {
            return Some(job);
        }
        idle.looking.fetch_add(1, Ordering::SeqCst);
        loop {
            idle.looking.fetch_sub(1, Ordering::SeqCst);
            let mut waiting = idle.lock();
            // Under the lock: who puts a job from now on finds this worker waiting.
            match jobs.try_recv() {
                Ok(job) => {
                    drop(waiting);
                    // Whoever put more counted on this worker.
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
            // A thread may come out of `park` although nobody woke it.
            while !self.own.woken.load(Ordering::Acquire) {
                park();
            }
        }
    }
}

impl Waiting {
    /// Wakes the worker that has waited the shortest, unless one is looking for a job already.
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

    /// Nobody panics while he holds this lock.
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
        // If it was the last, all have to see it; if not, they wait again.
        let all = std::mem::take(&mut *self.waiting.lock());
        all.iter().for_each(|waiter| self.waiting.wake(waiter));
    }
}
