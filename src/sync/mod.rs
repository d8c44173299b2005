//! What threads share, wait for and wake each other by: std's, crossbeam's, threadpool's and the kernel's.
//!
//! Compiled with `--cfg shuttle` these are models (`model.rs`), so that `tests/shuttle.rs` runs the modules that take
//! them from here in one order of threads after the other.

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
