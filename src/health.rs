//! Whether clients are being served: a proof from those who do it, each of whom has to move for it.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, TryRecvError};

use crate::acceptor::{Acceptor, Admission};
use crate::connection::Connection;
use crate::queue::{Job, Jobs};
use crate::scoreboard::{Activity, Scoreboard, WorkerSlot};
use crate::sync;
use crate::thread::Wake;

/// How often it is looked whether a proof has come.
const LOOK: Duration = Duration::from_millis(1);

/// How full a server is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Load {
    /// How many clients there are, those that wait included.
    pub clients: usize,
    /// How many may be served at the same time.
    pub workers: usize,
    /// How many wait for a worker.
    pub waiting: usize,
    /// How many may wait.
    pub queue: usize,
}

impl Load {
    /// How many more clients would be let in; if none, whoever comes is refused.
    pub fn room(self) -> usize {
        (self.workers + self.queue).saturating_sub(self.clients)
    }
}

/// Asks for the proof.
pub struct Health {
    /// Gone when the server drains.
    admission: Weak<Admission>,
    clients: Arc<sync::atomic::AtomicUsize>,
    /// Each with how often it has gone round.
    acceptors: Vec<(Wake, Arc<AtomicU64>)>,
    scoreboard: Arc<Scoreboard>,
    waiting: Jobs<Connection>,
    /// How many may wait.
    queue: usize,
    /// An answer that has been asked for and did not come in time: no other is asked for until it does, so that there is room
    /// in the queue for one from each who checks.
    owed: Mutex<Option<Receiver<()>>>,
    /// Which busy worker is asked next.
    turn: AtomicU64,
}

impl Health {
    /// Of these acceptors and the workers on this scoreboard.
    pub fn new(
        admission: &Arc<Admission>,
        acceptors: &[Acceptor],
        scoreboard: Arc<Scoreboard>,
        waiting: Jobs<Connection>,
        queue: usize,
    ) -> Self {
        let acceptors = acceptors.iter();
        Health {
            admission: Arc::downgrade(admission),
            clients: admission.clients.count(),
            acceptors: acceptors
                .map(|acceptor| (acceptor.thread.wake(), acceptor.rounds.clone()))
                .collect(),
            scoreboard,
            waiting,
            queue,
            owed: Mutex::default(),
            turn: AtomicU64::new(0),
        }
    }

    /// How many clients there are.
    pub fn clients(&self) -> usize {
        self.clients.load(Ordering::SeqCst)
    }

    /// How full it is.
    pub fn load(&self) -> Load {
        Load {
            clients: self.clients(),
            workers: self.scoreboard.slots().len(),
            waiting: self.waiting.to_serve(),
            queue: self.queue,
        }
    }

    /// Has each acceptor go round its loop, a free worker take a job, a busy one hear an interrupt, and the reaper an
    /// alarm. Says who has not done so within `patience`. A server that drains is well.
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
                std::thread::park_timeout(LOOK);
            }
            Ok(())
        };

        admission.alarm.wake();
        for (wake, rounds) in &self.acceptors {
            let before = rounds.load(Ordering::Relaxed);
            in_time(
                &mut || {
                    wake.interrupt();
                    rounds.load(Ordering::Relaxed) != before
                },
                "nobody accepts clients",
            )?;
        }
        let lines = self.scoreboard.slots();
        let is_free = |slot: &&WorkerSlot| slot.state().activity() == Activity::Vacant;
        let free = lines.iter().filter(is_free).count();
        // The last free worker is not asked, if others can be: a client that comes at this moment would have to wait.
        let mut owed = self.owed.lock().unwrap_or_else(PoisonError::into_inner);
        if owed.is_none() && (free > 1 || free == lines.len()) {
            let (answer, answered) = crossbeam_channel::bounded(1);
            // It fails only when the server ends.
            *owed = admission
                .queue
                .put(Job::Answer(answer))
                .ok()
                .map(|()| answered);
        }
        if let Some(answered) = &*owed {
            // If clients take the last free workers meanwhile, it waits like a client, and that is no illness.
            let is_served = || lines.iter().all(|slot| !is_free(&slot));
            in_time(
                &mut || answered.try_recv() != Err(TryRecvError::Empty) || is_served(),
                "no worker takes clients",
            )?;
            if answered.try_recv() != Err(TryRecvError::Empty) {
                *owed = None;
            }
        }
        let turn = self.turn.fetch_add(1, Ordering::Relaxed) as usize % lines.len().max(1);
        let (before, after) = lines.split_at(turn);
        if let Some(busy) = after.iter().chain(before).find(|slot| !is_free(slot)) {
            let (state, heard) = (busy.state(), busy.heard());
            in_time(
                &mut || {
                    busy.interrupt();
                    busy.heard() != heard || busy.state() != state
                },
                "a worker does not answer",
            )?;
        }
        in_time(
            &mut || admission.alarm.acknowledged(),
            "the reaper does not answer",
        )
    }
}
