//! Waker: an eventfd by which any thread wakes a thread that polls. While it is set, another wake
//! costs almost nothing. Also `poll` with a deadline.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

use rustix::event::{EventfdFlags, PollFd, Timespec, eventfd, poll};
use rustix::io::Errno;

use crate::error::Error;

/// Tells a polling thread that something has changed.
pub struct Waker {
    is_set: AtomicBool,
    event: OwnedFd,
}

impl Waker {
    /// Returns a waker that is not set.
    pub fn new() -> Result<Self, Error> {
        let event = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK);
        let event =
            event.map_err(|error| Error::system("make an event descriptor", &error.into()))?;
        let is_set = AtomicBool::new(false);
        Ok(Waker { is_set, event })
    }

    /// Makes the descriptor readable until it is [cleared](Waker::clear). Call it after the change.
    pub fn wake(&self) {
        if !self.is_set.swap(true, Ordering::SeqCst) {
            // If the counter is full, the descriptor is readable anyway.
            let _ = rustix::io::write(&self.event, &1u64.to_ne_bytes());
        }
    }

    /// Clears the waker. Call it before looking for changes: a change after that sets it again.
    pub fn clear(&self) {
        // If it is not set, there is nothing to read.
        let _ = rustix::io::read(&self.event, &mut [0; 8]);
        self.is_set.store(false, Ordering::SeqCst);
    }
}

impl AsFd for Waker {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.event.as_fd()
    }
}

/// Polls until a descriptor is ready or `deadline` has passed; returns whether one is ready. Fails
/// if a signal interrupts it: then the readiness is unknown.
pub fn poll_until(polled: &mut [PollFd<'_>], deadline: Instant) -> Result<bool, Errno> {
    let left = deadline.saturating_duration_since(Instant::now());
    // A timeout that is too long for the system counts as unlimited.
    poll(polled, Timespec::try_from(left).ok().as_ref()).map(|ready| ready > 0)
}
