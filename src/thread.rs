//! Threads with names, that can be woken from what they are blocked in and waited for.

use std::sync::Arc;
use std::sync::atomic::{AtomicI32, Ordering};
use std::thread::{Builder, JoinHandle};
use std::time::Duration;

use rustix::thread::Pid;

use crate::error::Error;
use crate::sys;

/// Enough for our shallow calls; more would only cost address space and page tables.
pub const STACK_SIZE: usize = 64 * 1024;

/// How long an interrupted thread has before it is interrupted again.
const AGAIN: Duration = Duration::from_millis(1);

/// A running thread.
pub struct Thread {
    wake: Wake,
    handle: JoinHandle<()>,
}

/// Wakes a thread from what it is blocked in.
#[derive(Clone)]
pub struct Wake(Arc<AtomicI32>);

impl Wake {
    /// Interrupts it. May come a moment too early: try again until there is an effect.
    pub fn interrupt(&self) {
        if let Some(thread) = Pid::from_raw(self.0.load(Ordering::Relaxed)) {
            sys::interrupt(thread);
        }
    }
}

/// Starts a thread of this name, which shows in the log and in `ps -L`.
pub fn spawn(name: &str, run: impl FnOnce() + Send + 'static) -> Result<Thread, Error> {
    spawn_with(name, STACK_SIZE, run)
}

/// The same with a stack of so many bytes.
pub fn spawn_with(
    name: &str,
    stack_size: usize,
    run: impl FnOnce() + Send + 'static,
) -> Result<Thread, Error> {
    let id = Arc::new(AtomicI32::new(0));
    let own = id.clone();
    let handle = Builder::new()
        .name(name.to_string())
        .stack_size(stack_size)
        .spawn(move || {
            own.store(
                rustix::thread::gettid().as_raw_nonzero().get(),
                Ordering::Relaxed,
            );
            run();
        })
        .map_err(|source| Error::System {
            action: "start a thread",
            source,
        })?;
    let wake = Wake(id);
    Ok(Thread { wake, handle })
}

impl Thread {
    /// What wakes it.
    pub fn wake(&self) -> Wake {
        self.wake.clone()
    }

    /// Waits for the thread to end, interrupting whatever it is blocked in until it does. It must have been told to.
    pub fn end(self) {
        while !self.handle.is_finished() {
            self.wake.interrupt();
            std::thread::park_timeout(AGAIN);
        }
        // A panic has been logged by the hook.
        let _ = self.handle.join();
    }
}
