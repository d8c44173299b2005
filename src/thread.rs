//! Named threads that can be interrupted in a blocking call, and joined.

use std::sync::Arc;
use std::sync::atomic::{AtomicI32, Ordering};
use std::thread::{Builder, JoinHandle};
use std::time::Duration;

use rustix::thread::Pid;

use crate::error::Error;
use shared::sys;

/// Stack size, enough for shallow calls; more would only cost address space and page tables.
pub const STACK_SIZE: usize = 64 * 1024;

/// Time after which a thread that has not ended is interrupted again.
const INTERRUPT_INTERVAL: Duration = Duration::from_millis(1);

/// A running thread.
pub struct Thread {
    wake: Wake,
    handle: JoinHandle<()>,
}

/// Interrupts a thread's blocking call.
#[derive(Clone)]
pub struct Wake(Arc<AtomicI32>);

impl Wake {
    /// Interrupts the thread. May come a moment too early: repeat it until it has an effect.
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

/// Starts a thread with a stack of `stack_size` bytes.
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
            let thread = rustix::thread::gettid().as_raw_nonzero().get();
            own.store(thread, Ordering::Relaxed);
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
    /// Returns a handle that interrupts the thread.
    pub fn wake(&self) -> Wake {
        self.wake.clone()
    }

    /// Joins the thread, and interrupts its blocking calls until it ends. The thread must have been
    /// told to end.
    pub fn join(self) {
        while !self.handle.is_finished() {
            self.wake.interrupt();
            std::thread::park_timeout(INTERRUPT_INTERVAL);
        }
        // The panic hook has logged a panic.
        let _ = self.handle.join();
    }
}
