//! Scoreboard: what each worker is doing, and since when. A worker writes its slot, and the reaper
//! reads it and may request a close.
//!
//! A worker writes only its own slot, with one plain store for each batch of answers. A slot's
//! state is a single word, so that a close request always belongs to the activity that it was made
//! for: a worker closes an idle client only if that client is still idle.

use rustix::thread::Pid;

use shared::clock::Millis;
use shared::sync::atomic::{AtomicI32, AtomicU8, AtomicU32, AtomicU64, Ordering};
use shared::sync::channel::{self, Receiver, Sender};
use shared::sync::{gettid, interrupt};

/// What all workers do with their clients.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Phase {
    /// Serve the clients.
    Serve,
    /// Answer what has arrived, then close.
    Drain,
    /// Release the connections as they are: open, with unread input.
    Detach,
    /// Answer what has arrived, then release the connections.
    DrainThenDetach,
    /// Answer what has arrived, then give the connections back, to the front.
    ServeReady,
    /// Abort the connections, even within a reply.
    Abort,
}

/// What a worker is doing for its client.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Activity {
    /// The worker has no client.
    Vacant,
    /// The worker waits for the next request, or executes one.
    Reading,
    /// The worker waits for the client to take its replies.
    Writing,
}

/// A worker's slot on the scoreboard. Each has its own cache line, so that workers don't slow each
/// other down.
#[derive(Default)]
#[repr(align(64))]
pub struct WorkerSlot {
    /// Milliseconds, then [`CLOSE_REQUESTED`], then the activity.
    state: AtomicU64,
    /// The worker's thread id, 0 until it runs.
    thread: AtomicI32,
    /// Number of interrupts that have reached the worker.
    interrupts: AtomicU32,
    /// Index of the slot.
    id: u32,
}

const ACTIVITY: u64 = 0b011;
const CLOSE_REQUESTED: u64 = 0b100;
const SHIFT: u32 = 3;

/// State of a [`WorkerSlot`] at one moment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct State(u64);

impl State {
    fn new(activity: Activity, since: Millis) -> Self {
        State(since.0 << SHIFT | activity as u64)
    }

    /// Returns what the worker is doing.
    pub fn activity(self) -> Activity {
        match self.0 & ACTIVITY {
            1 => Activity::Reading,
            2 => Activity::Writing,
            _ => Activity::Vacant,
        }
    }

    /// Returns the start of the activity: for reading, the client's last complete request; for
    /// writing, the start of the write.
    pub fn since(self) -> Millis {
        Millis(self.0 >> SHIFT)
    }

    /// Returns whether the worker has been told to close this client, and has not done so yet.
    pub fn close_requested(self) -> bool {
        self.0 & CLOSE_REQUESTED != 0
    }
}

impl WorkerSlot {
    /// Returns the index of the slot, from 0.
    #[inline]
    pub fn id(&self) -> usize {
        self.id as usize
    }

    /// Makes the calling thread the worker of this slot.
    pub fn register(&self) {
        self.thread
            .store(gettid().as_raw_nonzero().get(), Ordering::Relaxed);
    }

    /// Sets the activity from now on. A close request for the activity before it becomes void.
    #[inline]
    pub fn set(&self, activity: Activity) {
        self.set_since(activity, Millis::now());
    }

    /// Sets an activity that began at `since`, in another worker.
    #[inline]
    pub fn set_since(&self, activity: Activity, since: Millis) {
        // Release: a thread that sees the state also sees what was done before.
        self.state
            .store(State::new(activity, since).0, Ordering::Release);
    }

    /// Returns the current state.
    #[inline]
    pub fn state(&self) -> State {
        State(self.state.load(Ordering::Acquire))
    }

    /// Tells the worker to close its client, unless the state has changed from `seen`. Returns
    /// whether the worker is told.
    pub fn request_close(&self, seen: State) -> bool {
        let told = self.state.compare_exchange(
            seen.0,
            seen.0 | CLOSE_REQUESTED,
            Ordering::Relaxed,
            Ordering::Relaxed,
        );
        told.is_ok()
    }

    /// Counts an interrupt that has reached the worker.
    pub fn ack(&self) {
        let interrupts = self.interrupts.load(Ordering::Relaxed);
        let next = interrupts.wrapping_add(1);
        self.interrupts.store(next, Ordering::Relaxed);
    }

    /// Returns the number of interrupts that have reached the worker.
    pub fn interrupts(&self) -> u32 {
        self.interrupts.load(Ordering::Relaxed)
    }

    /// Interrupts the worker's blocking call, so that it checks for close requests. May come too
    /// early: repeat it until it has an effect.
    pub fn interrupt(&self) {
        if let Some(thread) = Pid::from_raw(self.thread.load(Ordering::Relaxed)) {
            interrupt(thread);
        }
    }
}

/// The slots of all workers, and their common phase.
pub struct Scoreboard {
    slots: Box<[WorkerSlot]>,
    phase: AtomicU8,
}

impl Scoreboard {
    /// Returns a scoreboard for `workers` workers, all vacant.
    pub fn new(workers: usize) -> Self {
        Scoreboard {
            slots: (0..workers as u32)
                .map(|id| WorkerSlot {
                    id,
                    ..WorkerSlot::default()
                })
                .collect(),
            phase: AtomicU8::new(Phase::Serve as u8),
        }
    }

    /// Returns whether no worker has a client.
    pub fn is_vacant(&self) -> bool {
        let mut slots = self.slots.iter();
        slots.all(|slot| slot.state().activity() == Activity::Vacant)
    }

    /// Returns all slots.
    pub fn slots(&self) -> &[WorkerSlot] {
        &self.slots
    }

    /// Returns what the workers do with their clients.
    #[inline]
    pub fn phase(&self) -> Phase {
        match self.phase.load(Ordering::Relaxed) {
            0 => Phase::Serve,
            1 => Phase::Drain,
            2 => Phase::Detach,
            3 => Phase::DrainThenDetach,
            4 => Phase::ServeReady,
            _ => Phase::Abort,
        }
    }

    /// Sets what the workers do from now on. Blocked workers learn of it by the reaper's
    /// interrupts.
    pub fn set_phase(&self, phase: Phase) {
        self.phase.store(phase as u8, Ordering::Relaxed);
    }
}

/// Wakes the reaper after the start of something that has a time limit.
#[derive(Clone)]
pub struct ReaperWaker(Sender<()>);

impl ReaperWaker {
    /// Returns a waker and the reaper's end of it. The reaper ends when all clones of the waker are
    /// dropped.
    pub fn new() -> (Self, Receiver<()>) {
        let (sender, receiver) = channel::bounded(1);
        (ReaperWaker(sender), receiver)
    }

    /// Returns whether the reaper has received the last wake-up.
    pub fn acknowledged(&self) -> bool {
        self.0.is_empty()
    }

    /// Wakes the reaper, unless it is already awake.
    pub fn wake(&self) {
        // If the channel is full, a wake-up is already pending.
        let _ = self.0.try_send(());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_close_request_reaches_only_the_client_that_it_is_about() {
        let slot = WorkerSlot::default();
        slot.set(Activity::Reading);
        let seen = slot.state();
        assert!(slot.request_close(seen));
        assert!(slot.state().close_requested());
        assert_eq!(slot.state().since(), seen.since());
        assert!(!slot.request_close(seen), "told already");
        slot.set(Activity::Writing);
        assert!(
            !slot.state().close_requested(),
            "activity voids the request"
        );
        assert!(
            !slot.request_close(seen),
            "the client is another, or not idle"
        );
        assert_eq!(slot.state().activity(), Activity::Writing);
    }
}
