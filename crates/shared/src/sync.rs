//! Synchronization primitives: those of std, crossbeam, threadpool and the kernel.
//!
//! Built with the feature `shuttle`, they are models (`tests/shuttle/model.rs`), so that
//! `tests/shuttle` can run the modules that import them from here in one thread schedule after the
//! other.

#[cfg(not(feature = "shuttle"))]
pub use {
    crate::sys::interrupt,
    crossbeam_channel as channel,
    rustix::thread::gettid,
    rustix::time::clock_gettime,
    std::sync::{Mutex, MutexGuard, atomic},
    std::thread::{Thread, current as current_thread, park, sleep},
    threadpool,
};

#[cfg(feature = "shuttle")]
#[path = "../../../tests/shuttle/model.rs"]
pub mod model;
#[cfg(feature = "shuttle")]
pub use model::{
    Mutex, MutexGuard, Thread, atomic, channel, clock_gettime, current_thread, gettid, interrupt,
    park, sleep, threadpool,
};

/// Returns the guard of a lock, or of a wait for a condition, even if a thread has panicked while
/// it held the lock. For data that a panic can't leave half changed.
pub fn ignore_poison<Guard>(locked: std::sync::LockResult<Guard>) -> Guard {
    locked.unwrap_or_else(std::sync::PoisonError::into_inner)
}
