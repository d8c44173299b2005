//! What each worker is doing, and since when: written by the worker, read by the reaper, who may give it an order.
//!
//! A worker writes its own line only, a plain store each time that it has answered something; a line is a single word,
//! so that an order and the activity that it is about can't be taken apart: whoever is told to end an idle client
//! does so only if that client is idle still.

use rustix::thread::Pid;

use crate::clock::Millis;
use crate::sync::atomic::{AtomicI32, AtomicU8, AtomicU32, AtomicU64, Ordering};
use crate::sync::channel::{self, Receiver, Sender};
use crate::sync::{gettid, interrupt};

/// What all workers are to do with their clients.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Phase {
    /// Serve them.
    Serve,
    /// Answer what has arrived, then close.
    Drain,
    /// Let go of them as they are: open, and with what they sent unread.
    Detach,
    /// Answer what has arrived, then let go.
    DrainThenDetach,
    /// Cut them off, in the middle of a reply even.
    Abort,
}

/// What a worker is doing for its client.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Activity {
    /// It has none.
    Vacant,
    /// It waits for the next request, or is at it.
    Reading,
    /// It waits for the client to take its replies.
    Writing,
}

/// One line of the scoreboard, a worker's own. A cache line each, so that workers don't slow each other.
#[derive(Default)]
#[repr(align(64))]
pub struct WorkerSlot {
    /// Milliseconds, then [`CLOSE_REQUESTED`], then the activity.
    state: AtomicU64,
    /// The worker's thread id, 0 until it runs.
    thread: AtomicI32,
    /// How many interrupts have reached it.
    heard: AtomicU32,
    /// Which line it is.
    id: u32,
}

const ACTIVITY: u64 = 0b011;
const CLOSE_REQUESTED: u64 = 0b100;
const SHIFT: u32 = 3;

/// What a [`WorkerSlot`] said at one moment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct State(u64);

impl State {
    fn new(activity: Activity, since: Millis) -> Self {
        State(since.0 << SHIFT | activity as u64)
    }

    /// What the worker is doing.
    pub fn activity(self) -> Activity {
        match self.0 & ACTIVITY {
            1 => Activity::Reading,
            2 => Activity::Writing,
            _ => Activity::Vacant,
        }
    }

    /// Since when: reading, since the client's last complete request; writing, since the write began.
    pub fn since(self) -> Millis {
        Millis(self.0 >> SHIFT)
    }

    /// Whether the worker has been told to end this client, and hasn't yet.
    pub fn close_requested(self) -> bool {
        self.0 & CLOSE_REQUESTED != 0
    }
}

impl WorkerSlot {
    /// Which line it is, from 0.
    #[inline]
    pub fn id(&self) -> usize {
        self.id as usize
    }

    /// The calling thread is the worker of this line.
    pub fn register(&self) {
        self.thread
            .store(gettid().as_raw_nonzero().get(), Ordering::Relaxed);
    }

    /// The worker does this from now on. An order that was about the time before is void.
    #[inline]
    pub fn set(&self, activity: Activity) {
        self.set_since(activity, Millis::now());
    }

    /// The worker does what another did `since` then.
    #[inline]
    pub fn set_since(&self, activity: Activity, since: Millis) {
        // Whoever sees it sees what was done before.
        self.state
            .store(State::new(activity, since).0, Ordering::Release);
    }

    /// The state now.
    #[inline]
    pub fn state(&self) -> State {
        State(self.state.load(Ordering::Acquire))
    }

    /// Tells the worker to end its client, unless its state has changed from `seen`. Returns whether it is told.
    pub fn request_close(&self, seen: State) -> bool {
        let told = self.state.compare_exchange(
            seen.0,
            seen.0 | CLOSE_REQUESTED,
            Ordering::Relaxed,
            Ordering::Relaxed,
        );
        told.is_ok()
    }

    /// An interrupt has reached the worker.
    pub fn ack(&self) {
        let heard = self.heard.load(Ordering::Relaxed);
        self.heard.store(heard.wrapping_add(1), Ordering::Relaxed);
    }

    /// How many interrupts have reached the worker.
    pub fn heard(&self) -> u32 {
        self.heard.load(Ordering::Relaxed)
    }

    /// Interrupts what the worker is blocked in, so that it looks at its orders. May miss it: try again.
    pub fn interrupt(&self) {
        if let Some(thread) = Pid::from_raw(self.thread.load(Ordering::Relaxed)) {
            interrupt(thread);
        }
    }
}

/// The lines of all workers, and what they all are to do.
pub struct Scoreboard {
    lines: Box<[WorkerSlot]>,
    phase: AtomicU8,
}

impl Scoreboard {
    /// A line for each of `workers`, all vacant.
    pub fn new(workers: usize) -> Self {
        Scoreboard {
            lines: (0..workers as u32)
                .map(|id| WorkerSlot {
                    id,
                    ..WorkerSlot::default()
                })
                .collect(),
            phase: AtomicU8::new(Phase::Serve as u8),
        }
    }

    /// Whether no worker has a client.
    pub fn is_vacant(&self) -> bool {
        let mut lines = self.lines.iter();
        lines.all(|slot| slot.state().activity() == Activity::Vacant)
    }

    /// All lines.
    pub fn slots(&self) -> &[WorkerSlot] {
        &self.lines
    }

    /// What the workers are to do with their clients.
    #[inline]
    pub fn phase(&self) -> Phase {
        match self.phase.load(Ordering::Relaxed) {
            0 => Phase::Serve,
            1 => Phase::Drain,
            2 => Phase::Detach,
            3 => Phase::DrainThenDetach,
            _ => Phase::Abort,
        }
    }

    /// From now on the workers are to do this. Who is blocked learns of it from the reaper's interrupts.
    pub fn set_phase(&self, phase: Phase) {
        self.phase.store(phase as u8, Ordering::Relaxed);
    }
}

/// Wakes the reaper, because something began that has an end.
#[derive(Clone)]
pub struct ReaperWaker(Sender<()>);

impl ReaperWaker {
    /// An alarm, and what the reaper hears it by. The reaper ends when all clones of the alarm are dropped.
    pub fn new() -> (Self, Receiver<()>) {
        let (sender, receiver) = channel::bounded(1);
        (ReaperWaker(sender), receiver)
    }

    /// Whether the reaper has heard the last ring.
    pub fn acknowledged(&self) -> bool {
        self.0.is_empty()
    }

    /// Wakes the reaper, if it is not awake.
    pub fn wake(&self) {
        // If it is full, the reaper has an alarm to hear already.
        let _ = self.0.try_send(());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_order_reaches_only_the_client_that_it_is_about() {
        let slot = WorkerSlot::default();
        slot.set(Activity::Reading);
        let seen = slot.state();
        assert!(slot.request_close(seen));
        assert!(slot.state().close_requested());
        assert_eq!(slot.state().since(), seen.since());
        assert!(!slot.request_close(seen), "told already");
        slot.set(Activity::Writing);
        assert!(!slot.state().close_requested(), "activity voids the order");
        assert!(
            !slot.request_close(seen),
            "the client is another, or not idle"
        );
        assert_eq!(slot.state().activity(), Activity::Writing);
    }
}
