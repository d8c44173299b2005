//! Health check: tests that the front, the workers and the reaper respond.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, Weak};
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, TryRecvError};

use crate::server::admission::Admission;
use crate::server::front::{Front, Pulse};
use crate::server::queue::{Job, Jobs};
use crate::session::scoreboard::{Activity, Scoreboard, WorkerSlot};
use crate::transport::connection::Connection;
use shared::sync::{self, ignore_poison};

/// Interval at which the check polls for a response.
const POLL_INTERVAL: Duration = Duration::from_millis(1);

/// Load of the server.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Load {
    /// Number of clients, served or queued.
    pub clients: usize,
    /// Largest number of clients that are served at the same time.
    pub workers: usize,
    /// Number of clients that the front serves.
    pub front: usize,
    /// Number of clients in the queue.
    pub waiting: usize,
    /// Capacity of the queue.
    pub queue: usize,
}

impl Load {
    /// Returns the number of further clients that would be admitted; at 0, new clients are refused.
    pub fn room(self) -> usize {
        (self.workers + self.queue).saturating_sub(self.clients)
    }
}

/// Health check of a server.
pub struct Health {
    /// Dropped when the server drains.
    admission: Weak<Admission>,
    clients: Arc<sync::atomic::AtomicUsize>,
    front: Arc<Pulse>,
    scoreboard: Arc<Scoreboard>,
    waiting: Jobs<Connection>,
    /// Capacity of the queue.
    queue: usize,
    /// Outstanding response of a free worker. While there is one, no other is requested, so that
    /// the queue has room for one from each checker.
    outstanding: Mutex<Option<Receiver<()>>>,
    /// Index of the busy worker to test next.
    turn: AtomicU64,
}

impl Health {
    /// Creates a check of the front and of the workers of this scoreboard.
    pub fn new(
        admission: &Arc<Admission>,
        front: &Front,
        scoreboard: Arc<Scoreboard>,
        waiting: Jobs<Connection>,
        queue: usize,
    ) -> Self {
        Health {
            admission: Arc::downgrade(admission),
            clients: admission.clients.count(),
            front: front.pulse.clone(),
            scoreboard,
            waiting,
            queue,
            outstanding: Mutex::default(),
            turn: AtomicU64::new(0),
        }
    }

    /// Returns the number of clients.
    pub fn clients(&self) -> usize {
        self.clients.load(Ordering::SeqCst)
    }

    /// Returns the load.
    pub fn load(&self) -> Load {
        Load {
            clients: self.clients(),
            workers: self.scoreboard.slots().len(),
            front: self.front.clients.load(Ordering::Relaxed),
            waiting: self.waiting.to_serve(),
            queue: self.queue,
        }
    }

    /// Tests that the front completes a round, a free worker takes a job, a busy one
    /// responds to an interrupt, and the reaper to its waker. Returns which of them has not
    /// responded within `patience`. A draining server is healthy.
    pub fn check(&self, patience: Duration) -> Result<(), &'static str> {
        let Some(admission) = self.admission.upgrade() else {
            return Ok(());
        };
        let deadline = Instant::now() + patience;
        let in_time = |done: &mut dyn FnMut() -> bool, who| {
            while !done() && !admission.closed.load(Ordering::Relaxed) {
                if Instant::now() >= deadline {
                    return Err(who);
                }
                std::thread::park_timeout(POLL_INTERVAL);
            }
            Ok(())
        };

        admission.shared.reaper_waker.wake();
        let Pulse { waker, rounds, .. } = &*self.front;
        let before = rounds.load(Ordering::Relaxed);
        waker.wake();
        in_time(
            &mut || rounds.load(Ordering::Relaxed) != before,
            "nobody accepts clients",
        )?;
        let slots = self.scoreboard.slots();
        let is_free = |slot: &&WorkerSlot| slot.state().activity() == Activity::Vacant;
        let free = slots.iter().filter(is_free).count();
        // Spare the last free worker if busy ones can be tested: a client that arrives at this
        // moment would have to wait.
        let mut outstanding = ignore_poison(self.outstanding.lock());
        if outstanding.is_none() && (free > 1 || free == slots.len()) {
            let (answer, answered) = crossbeam_channel::bounded(1);
            // Fails only when the server ends.
            *outstanding = admission
                .queue
                .put(Job::Answer(answer))
                .ok()
                .map(|()| answered);
        }
        if let Some(answered) = &*outstanding {
            // If clients take the last free workers meanwhile, the job waits in the queue, and the
            // server is healthy.
            let is_served = || slots.iter().all(|slot| !is_free(&slot));
            in_time(
                &mut || answered.try_recv() != Err(TryRecvError::Empty) || is_served(),
                "no worker takes clients",
            )?;
            if answered.try_recv() != Err(TryRecvError::Empty) {
                *outstanding = None;
            }
        }
        let turn = self.turn.fetch_add(1, Ordering::Relaxed) as usize % slots.len().max(1);
        let (before, after) = slots.split_at(turn);
        if let Some(busy) = after.iter().chain(before).find(|slot| !is_free(slot)) {
            let (state, interrupts) = (busy.state(), busy.interrupts());
            in_time(
                &mut || {
                    busy.interrupt();
                    busy.interrupts() != interrupts || busy.state() != state
                },
                "a worker does not answer",
            )?;
        }
        in_time(
            &mut || admission.shared.reaper_waker.acknowledged(),
            "the reaper does not answer",
        )
    }
}
