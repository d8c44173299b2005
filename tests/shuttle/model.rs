//! Models of the synchronization primitives for `tests/shuttle.rs`: only what the checked modules
//! use, and no more ordered, fair or punctual than the real ones. shuttle may switch threads at
//! each step; it treats all memory as sequentially consistent.

use std::cell::Cell;
use std::collections::HashMap;
use std::time::Duration;

use rustix::io::Errno;
use rustix::thread::Pid;
use rustix::time::{ClockId, Timespec};
use shuttle::rand::{Rng, thread_rng};
use shuttle::sync::Condvar;

pub use shuttle::sync::{Mutex, MutexGuard, atomic};
pub use shuttle::thread::{Thread, current as current_thread, park};

/// Model of the kernel: blocking calls and their interrupts.
#[derive(Default)]
struct Kernel {
    /// Threads that are blocked in a system call, and whether they have been interrupted.
    blocked: Mutex<HashMap<Pid, bool>>,
    changed: Condvar,
}

shuttle::lazy_static! {
    static ref KERNEL: Kernel = Kernel::default();
}

/// Models a system call that returns the result of `attempt` once there is one. Until then it
/// blocks and can be interrupted if it `waits`, and fails with `EAGAIN` if not. `attempt` must be a
/// single step.
pub fn call<R>(waits: bool, mut attempt: impl FnMut() -> Option<R>) -> Result<R, Errno> {
    // An interrupt that comes before the thread blocks is lost.
    dawdle();
    let mut blocked = KERNEL.blocked.lock().unwrap();
    loop {
        if let Some(result) = attempt() {
            KERNEL.changed.notify_all();
            return Ok(result);
        }
        if !waits {
            return Err(Errno::AGAIN);
        }
        blocked.insert(gettid(), false);
        blocked = KERNEL.changed.wait(blocked).unwrap();
        if blocked.remove(&gettid()) == Some(true) {
            return Err(Errno::INTR);
        }
    }
}

/// Lets other threads run for a random number of steps.
fn dawdle() {
    for _ in 0..thread_rng().gen_range(0..8) {
        shuttle::thread::yield_now();
    }
}

/// Interrupts the blocking call of `thread`. Without one it has no effect, now or later.
pub fn interrupt(thread: Pid) {
    if let Some(interrupted) = KERNEL.blocked.lock().unwrap().get_mut(&thread) {
        *interrupted = true;
        KERNEL.changed.notify_all();
    }
}

/// Returns the id of the calling thread.
pub fn gettid() -> Pid {
    let index = usize::from(shuttle::thread::current().id());
    i32::try_from(index + 1)
        .ok()
        .and_then(Pid::from_raw)
        .unwrap()
}

thread_local! {
    /// Time in milliseconds, common to all: shuttle runs all threads of a check on one system
    /// thread.
    static CLOCK: Cell<u64> = const { Cell::new(0) };
}

/// Returns the model's time, which advances only when a thread sleeps.
pub fn clock_gettime(_: ClockId) -> Timespec {
    let now = CLOCK.get();
    Timespec {
        tv_sec: (now / 1000) as i64,
        tv_nsec: (now % 1000 * 1_000_000) as i64,
    }
}

/// Advances the clock, while other threads run for any number of steps.
pub fn sleep(time: Duration) {
    shuttle::thread::yield_now();
    let time = u64::try_from(time.as_millis()).unwrap();
    CLOCK.set(CLOCK.get().saturating_add(time));
}

/// Model of the part of crossbeam-channel that is used.
pub mod channel {
    use std::collections::VecDeque;
    use std::sync::Arc;
    use std::time::Duration;

    pub use crossbeam_channel::{RecvError, RecvTimeoutError, TryRecvError, TrySendError};
    use shuttle::sync::{Condvar, Mutex};

    struct Channel<T> {
        inside: Mutex<Inside<T>>,
        changed: Condvar,
        capacity: usize,
    }

    struct Inside<T> {
        queue: VecDeque<T>,
        senders: usize,
        receivers: usize,
    }

    /// Sending end of a channel.
    pub struct Sender<T>(Arc<Channel<T>>);

    /// Receiving end of a channel.
    pub struct Receiver<T>(Arc<Channel<T>>);

    /// Returns a channel with room for `capacity` messages, at least one.
    pub fn bounded<T>(capacity: usize) -> (Sender<T>, Receiver<T>) {
        let channel = Arc::new(Channel {
            inside: Mutex::new(Inside {
                queue: VecDeque::new(),
                senders: 1,
                receivers: 1,
            }),
            changed: Condvar::new(),
            capacity,
        });
        (Sender(channel.clone()), Receiver(channel))
    }

    impl<T> Sender<T> {
        /// Sends a message if there is room.
        pub fn try_send(&self, message: T) -> Result<(), TrySendError<T>> {
            let mut inside = self.0.inside.lock().unwrap();
            if inside.receivers == 0 {
                return Err(TrySendError::Disconnected(message));
            }
            if inside.queue.len() >= self.0.capacity {
                return Err(TrySendError::Full(message));
            }
            inside.queue.push_back(message);
            self.0.changed.notify_one();
            Ok(())
        }

        /// Returns whether the channel is empty.
        pub fn is_empty(&self) -> bool {
            self.0.inside.lock().unwrap().queue.is_empty()
        }
    }

    impl<T> Receiver<T> {
        /// Waits for a message.
        pub fn recv(&self) -> Result<T, RecvError> {
            let message = self.take()?;
            super::dawdle();
            Ok(message)
        }

        fn take(&self) -> Result<T, RecvError> {
            let mut inside = self.0.inside.lock().unwrap();
            loop {
                match inside.queue.pop_front() {
                    Some(message) => return Ok(message),
                    None if inside.senders == 0 => return Err(RecvError),
                    None => inside = self.0.changed.wait(inside).unwrap(),
                }
            }
        }

        /// Takes a message if there is one.
        pub fn try_recv(&self) -> Result<T, TryRecvError> {
            let mut inside = self.0.inside.lock().unwrap();
            match inside.queue.pop_front() {
                Some(message) => Ok(message),
                None if inside.senders == 0 => Err(TryRecvError::Disconnected),
                None => Err(TryRecvError::Empty),
            }
        }

        /// Waits at most `time` for a message.
        pub fn recv_timeout(&self, time: Duration) -> Result<T, RecvTimeoutError> {
            if self.0.inside.lock().unwrap().queue.is_empty() {
                super::sleep(time);
            }
            let mut inside = self.0.inside.lock().unwrap();
            match inside.queue.pop_front() {
                Some(message) => Ok(message),
                None if inside.senders == 0 => Err(RecvTimeoutError::Disconnected),
                None => Err(RecvTimeoutError::Timeout),
            }
        }

        /// Returns the number of messages.
        pub fn len(&self) -> usize {
            self.0.inside.lock().unwrap().queue.len()
        }

        /// Returns whether the channel is empty.
        pub fn is_empty(&self) -> bool {
            self.len() == 0
        }
    }

    impl<T> Clone for Sender<T> {
        fn clone(&self) -> Self {
            self.0.inside.lock().unwrap().senders += 1;
            Sender(self.0.clone())
        }
    }

    impl<T> Clone for Receiver<T> {
        fn clone(&self) -> Self {
            self.0.inside.lock().unwrap().receivers += 1;
            Receiver(self.0.clone())
        }
    }

    impl<T> Drop for Sender<T> {
        fn drop(&mut self) {
            self.0.inside.lock().unwrap().senders -= 1;
            self.0.changed.notify_all();
        }
    }

    impl<T> Drop for Receiver<T> {
        fn drop(&mut self) {
            let forgotten = {
                let mut inside = self.0.inside.lock().unwrap();
                inside.receivers -= 1;
                match inside.receivers {
                    0 => std::mem::take(&mut inside.queue),
                    _ => VecDeque::new(),
                }
            };
            drop(forgotten);
        }
    }
}

/// Model of the part of threadpool that is used: as many jobs as threads.
pub mod threadpool {
    /// Builder of a pool.
    #[derive(Default)]
    pub struct Builder;

    /// A pool, which runs each job in a thread of its own.
    pub struct ThreadPool;

    impl Builder {
        /// Returns a builder.
        pub fn new() -> Self {
            Builder
        }

        /// Has no effect here.
        pub fn num_threads(self, _: usize) -> Self {
            self
        }

        /// Has no effect here.
        pub fn thread_stack_size(self, _: usize) -> Self {
            self
        }

        /// Returns the pool.
        pub fn build(self) -> ThreadPool {
            ThreadPool
        }
    }

    impl ThreadPool {
        /// Runs `job`.
        pub fn execute(&self, job: impl FnOnce() + Send + 'static) {
            shuttle::thread::spawn(job);
        }
    }
}
