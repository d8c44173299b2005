//! Receiving side of a client: replies are verified, timed and counted.

use std::collections::VecDeque;
use std::os::fd::AsFd as _;
use std::time::Instant;

use rustix::io::Errno;
use rustix::net::{RecvFlags, recv};

use super::{Client, Disconnect, Sent};
use crate::bench::replies::{Found, Verdict};
use crate::bench::stats::Stats;
use crate::bench::workload::{Window, Workload};

impl Client {
    /// Reads all that has arrived; `ends` says that the server has closed its side.
    pub fn receive(
        &mut self,
        workload: &Workload,
        scratch: &mut [u8],
        window: Window,
        ends: bool,
        stats: &mut Stats,
    ) -> Result<(), Disconnect> {
        loop {
            let Some(socket) = self.socket.as_ref() else {
                return Ok(());
            };
            let read = match recv(socket.as_fd(), &mut *scratch, RecvFlags::empty()) {
                Ok((0, _)) => return Err(Disconnect::Closed),
                Ok((read, _)) => read,
                Err(Errno::AGAIN) => return Ok(()),
                Err(Errno::INTR) => continue,
                Err(error) => return Err(Disconnect::Broken(error.into())),
            };
            let now = Instant::now();
            let mut rest = &scratch[..read];
            while !rest.is_empty() {
                if let Some(found) = self.reading.next(&workload.expected, &mut rest) {
                    self.verify(found, workload, window, now, stats)?;
                }
            }
            // Edge-triggered: a short read has emptied the buffer, and further data is a new event.
            if read < scratch.len() && !ends {
                return Ok(());
            }
        }
    }

    fn verify(
        &mut self,
        found: Found,
        workload: &Workload,
        window: Window,
        now: Instant,
        stats: &mut Stats,
    ) -> Result<(), Disconnect> {
        let Found { count, verdict } = found;
        if let Verdict::Refused {
            word,
            line,
            ends: true,
        } = verdict
        {
            // It is the reply to the oldest request, if one is in flight.
            if self.is_waiting() {
                take(&mut self.sent, 1, |_| {});
            }
            return Err(Disconnect::Refused { word, line });
        }
        if count > self.on_the_way {
            let text = "more is answered than was asked";
            return Err(Disconnect::Wrong(text.to_string()));
        }
        let counts = window.holds(now);
        let mut is_low = false;
        let is_right = match verdict {
            Verdict::Right => true,
            Verdict::Number(number) => {
                is_low = counts && number < workload.clients;
                if is_low {
                    stats.low.note(number);
                }
                true
            }
            Verdict::Refused { word, .. } => {
                stats.errors.note_reply(word);
                false
            }
            Verdict::Wrong(quoted) => {
                stats.errors.note_wrong(quoted);
                false
            }
        };
        if is_right {
            stats.answered += u64::from(count);
            stats.replies += u64::from(if counts { count } else { 0 });
        }
        self.on_the_way -= count;
        let number = self.number;
        take(&mut self.sent, count, |sent| match window.schedule {
            _ if !is_right => {}
            // Late replies count too: otherwise a stall at the end would not show.
            None if window.overlaps(sent.at, now) => {
                stats.time(now.saturating_duration_since(sent.at), sent.count, is_low);
            }
            None => {}
            Some(schedule) => {
                let requests = sent.first..sent.first + u64::from(sent.count);
                let due = requests.map(|request| schedule.due(number, request));
                for due in due.filter(|due| window.holds(*due)) {
                    stats.time(now.saturating_duration_since(due), 1, is_low);
                }
            }
        });
        Ok(())
    }
}

/// Takes this number of requests, the oldest first, in groups that were sent at the same time.
fn take(sent: &mut VecDeque<Sent>, count: u32, mut each: impl FnMut(Sent)) {
    let mut left = count;
    while left > 0
        && let Some(oldest) = sent.front_mut()
    {
        let these = left.min(oldest.count);
        each(Sent {
            count: these,
            ..*oldest
        });
        left -= these;
        oldest.first += u64::from(these);
        oldest.count -= these;
        if oldest.count == 0 {
            sent.pop_front();
        }
    }
}
