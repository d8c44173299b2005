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
    std::{sync::atomic, thread::sleep},
    threadpool,
};

/// Waits for what comes on a channel; nothing once it is closed and empty.
///
/// `recv` would yield the processor several times before it blocks. With many waiting workers on few cores that is a
/// third of the cost of a short connection. A select blocks at once; of one channel alone it would become a `recv`, and
/// `Select` would keep some heap for each waiting worker: hence the second channel, on which nothing ever comes.
#[cfg(not(shuttle))]
pub fn receive<T>(receiver: &channel::Receiver<T>) -> Option<T> {
    channel::select_biased! {
        recv(receiver) -> message => message.ok(),
        recv(channel::never::<()>()) -> _ => None,
    }
}

#[cfg(shuttle)]
pub mod model;
#[cfg(shuttle)]
pub use model::{atomic, channel, clock_gettime, gettid, interrupt, receive, sleep, threadpool};
