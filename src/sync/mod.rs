//! Synchronization primitives: those of std, crossbeam, threadpool and the kernel.
//!
//! Built with `--cfg shuttle`, they are models (`model.rs`), so that `tests/shuttle.rs` can run the
//! modules that import them from here in one thread schedule after the other.

use std::sync::PoisonError;

#[cfg(not(shuttle))]
pub use {
    crate::sys::interrupt,
    crossbeam_channel as channel,
    rustix::thread::gettid,
    rustix::time::clock_gettime,
    std::sync::{Mutex, MutexGuard, atomic},
    std::thread::{Thread, current as current_thread, park, sleep},
    threadpool,
};

#[cfg(shuttle)]
pub mod model;
#[cfg(shuttle)]
pub use model::{
    Mutex, MutexGuard, Thread, atomic, channel, clock_gettime, current_thread, gettid, interrupt,
    park, sleep, threadpool,
};

/// Locks a mutex of std, also after a panic: for data that no code leaves half changed when it
/// panics.
pub fn lock<T: ?Sized>(mutex: &std::sync::Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
