//! A bell: rung by any thread, at next to no cost while it is ringing already, and heard by one that polls its descriptor. And
//! how that one polls.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

use rustix::event::{EventfdFlags, PollFd, Timespec, eventfd, poll};
use rustix::io::Errno;

use crate::error::Error;

/// Something has changed: look.
pub struct Waker {
    is_set: AtomicBool,
    event: OwnedFd,
}

impl Waker {
    /// A bell that does not ring.
    pub fn new() -> Result<Self, Error> {
        let event = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK);
        let event = event.map_err(|error| Error::System {
            action: "make an event descriptor",
            source: error.into(),
        })?;
        let is_set = AtomicBool::new(false);
        Ok(Waker { is_set, event })
    }

    /// Makes the descriptor readable until it is [hushed](Bell::hush). Call it after the change.
    pub fn wake(&self) {
        if !self.is_set.swap(true, Ordering::SeqCst) {
            // If it is full, it is readable.
            let _ = rustix::io::write(&self.event, &1u64.to_ne_bytes());
        }
    }

    /// Makes it quiet. Call it before looking for what has changed: a change after that rings again.
    pub fn clear(&self) {
        // If it has not been rung, there is nothing to read.
        let _ = rustix::io::read(&self.event, &mut [0; 8]);
        self.is_set.store(false, Ordering::SeqCst);
    }
}

impl AsFd for Waker {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.event.as_fd()
    }
}

/// Waits until something is ready, or for the deadline. Fails when a signal has come: then nothing is known to be ready.
pub fn poll_until(polled: &mut [PollFd<'_>], deadline: Instant) -> Result<(), Errno> {
    let left = deadline.saturating_duration_since(Instant::now());
    // One too long for the system is none.
    poll(polled, Timespec::try_from(left).ok().as_ref()).map(|_| ())
}
