//! Waiting for sockets: epoll, edge-triggered, with an end to patience.

use std::os::fd::{AsFd, OwnedFd};
use std::time::{Duration, Instant};

use rustix::buffer::spare_capacity;
use rustix::event::Timespec;
use rustix::event::epoll::{self, CreateFlags, Event, EventData, EventFlags};
use rustix::io::Errno;

use crate::Result;

/// A server that lets everybody wait for so long has failed.
const PATIENCE: Duration = Duration::from_secs(10);

/// The most events taken at a time.
const EVENTS: usize = 1024;

/// A set of sockets, each under a key.
pub struct Watch {
    /// The kernel's list of the sockets.
    epoll: OwnedFd,
    /// Whether to wait without sleeping.
    spins: bool,
    /// When something happened last, or was first expected.
    last: Instant,
}

impl Watch {
    /// Watches nothing yet; looks again and again instead of sleeping, if it is to spin.
    pub fn new(spins: bool) -> Result<Watch> {
        Ok(Watch {
            epoll: epoll::create(CreateFlags::CLOEXEC)?,
            spins,
            last: Instant::now(),
        })
    }

    /// Room for the events of one wait.
    pub fn events() -> Vec<Event> {
        Vec::with_capacity(EVENTS)
    }

    /// Watches a socket for what it receives and, if asked, for the moment when it can send.
    pub fn add(&self, socket: impl AsFd, key: usize, send: bool) -> Result<()> {
        let mut flags = EventFlags::IN | EventFlags::ET;
        if send {
            flags |= EventFlags::OUT;
        }
        epoll::add(&self.epoll, socket, EventData::new_u64(key as u64), flags)?;
        Ok(())
    }

    /// Starts to count the patience anew, after a time in which nothing was expected.
    pub fn expect(&mut self) {
        self.last = Instant::now();
    }

    /// Waits until something happens, at most for the time if one is given; fills `events`, maybe with nothing, and
    /// says what time it is.
    pub fn wait(&mut self, events: &mut Vec<Event>, time: Option<Duration>) -> Result<Instant> {
        let time = if self.spins {
            Duration::ZERO
        } else {
            time.unwrap_or(PATIENCE)
        };
        let limit = Timespec {
            tv_sec: time.as_secs() as i64,
            tv_nsec: i64::from(time.subsec_nanos()),
        };
        events.clear();
        match epoll::wait(&self.epoll, spare_capacity(events), Some(&limit)) {
            Ok(_) | Err(Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
        let now = Instant::now();
        if !events.is_empty() {
            self.last = now;
        } else if now.duration_since(self.last) >= PATIENCE {
            return Err(format!("no reply for {} s", PATIENCE.as_secs()).into());
        }
        Ok(now)
    }
}
