//! One round of the event loop: clients with socket events read, and then send.

use std::time::{Duration, Instant};

use rustix::buffer::spare_capacity;
use rustix::event::epoll::{self, EventData, EventFlags};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;

use super::{Ask, Load, no_epoll};
use crate::bench::client::Disconnect;
use crate::failure::Failure;

/// Pause before a client reconnects.
const PACE: Duration = Duration::from_millis(100);

impl Load {
    pub(super) fn begin(&mut self, key: usize, now: Instant) -> Result<(), Disconnect> {
        let socket = self.clients[key].begin(&self.shared.workload, now)?;
        // Edge-triggered, so that no re-arming system call is needed.
        let flags = EventFlags::IN | EventFlags::OUT | EventFlags::RDHUP | EventFlags::ET;
        epoll::add(&self.epoll, socket, EventData::new_u64(key as u64), flags)
            .map_err(|error| Disconnect::NotConnected(error.into()))
    }

    /// Records that a client lost its connection, and schedules its reconnection.
    pub(super) fn lost(&mut self, key: usize, lost: Disconnect) -> Result<(), Failure> {
        self.clients[key].give_up(self.window, &mut self.stats);
        let first = self.clients[key].drop_connection(Some(Instant::now() + PACE));
        self.stats.losers += u64::from(first);
        self.stats.errors.note_lost(lost);
        Ok(())
    }

    /// Waits for events, receives what has arrived, and lets each client with an event send. Calls
    /// `lost` for clients that have lost their connection.
    pub(super) fn poll_once(
        &mut self,
        pause: Duration,
        ask: Ask,
        mut lost: impl FnMut(&mut Self, usize, Disconnect) -> Result<(), Failure>,
    ) -> Result<(), Failure> {
        let limit = Timespec {
            tv_sec: pause.as_secs() as i64,
            tv_nsec: i64::from(pause.subsec_nanos()),
        };
        // epoll_wait(2) counts in milliseconds, which is too coarse for requests that are due.
        if self.window.schedule.is_some() {
            let mut polled = [PollFd::new(&self.epoll, PollFlags::IN)];
            match poll(&mut polled, Some(&limit)) {
                Ok(0) | Err(Errno::INTR) => return Ok(()),
                Ok(_) => {}
                Err(error) => return Err(no_epoll(error)),
            }
        }
        let mut events = std::mem::take(&mut self.events);
        events.clear();
        match epoll::wait(&self.epoll, spare_capacity(&mut events), Some(&limit)) {
            Ok(_) | Err(Errno::INTR) => {}
            Err(error) => return Err(no_epoll(error)),
        }
        for event in &events {
            // Copied, because the struct is packed.
            let (key, flags) = (event.data.u64() as usize, event.flags);
            if let Err(why) = self.proceed(key, flags, ask) {
                lost(self, key, why)?;
            }
        }
        self.events = events;
        Ok(())
    }

    fn proceed(&mut self, key: usize, flags: EventFlags, ask: Ask) -> Result<(), Disconnect> {
        let client = &mut self.clients[key];
        if !client.has_socket() || !client.has_connected()? {
            return Ok(());
        }
        let ends = flags.intersects(EventFlags::RDHUP | EventFlags::HUP | EventFlags::ERR);
        let (workload, stats) = (&self.shared.workload, &mut self.stats);
        client.receive(workload, &mut self.scratch, self.window, ends, stats)?;
        match ask {
            Ask::Once if !client.has_asked() => client.fill(workload, 1, self.window, stats),
            Ask::Keep(depth) => client.fill(workload, depth, self.window, stats),
            Ask::Once | Ask::Nothing => {}
        }
        Ok(())
    }
}
