//! One load thread: its share of the clients on one epoll instance, so that requests cost the
//! generator less than the server.
//!
//! The clients connect ([`connect_all`]), and then keep requests in flight until the end
//! ([`mod@ask`]), both with [`poll_once`].

mod ask;
mod connect_all;
mod poll_once;
mod worker_event;

use std::ops::Range;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, Sender};
use std::time::{Duration, Instant};

use rustix::event::epoll::{self, CreateFlags, Event};
use rustix::io::Errno;

pub use self::worker_event::{Order, Shared, WorkerEvent};
use super::client::Client;
use super::replies::CHUNK;
use super::stats::Stats;
use super::workload::Window;
use crate::failure::Failure;

/// The most events per call of epoll_wait(2).
const EVENTS: usize = 1024;

/// Interval between checks for timeouts and due reconnections, and between progress reports.
const ROUND: Duration = Duration::from_millis(20);

/// What a client sends after an event.
#[derive(Clone, Copy)]
enum Ask {
    /// One request per connection.
    Once,
    /// This number of requests is kept in flight, as far as they are due.
    Keep(u32),
    /// Nothing.
    Nothing,
}

/// State of a load thread.
struct Load {
    shared: Arc<Shared>,
    clients: Vec<Client>,
    epoll: OwnedFd,
    events: Vec<Event>,
    scratch: Box<[u8]>,
    stats: Stats,
    window: Window,
    /// Index of its first client among all clients.
    first: u64,
    /// Number of requests of these clients' schedule that were checked.
    looked_at: u64,
    /// Counters of replies and errors that were already reported.
    told: (u64, u64),
}

/// Thread: connects these clients and runs the load when ordered. Ends early if the other end of a
/// channel is gone.
pub fn run(
    shared: Arc<Shared>,
    clients: Range<u64>,
    worker_event: &Sender<WorkerEvent>,
    orders: &Receiver<Order>,
) {
    let mut load = match Load::new(shared, clients) {
        Ok(load) => load,
        Err(failure) => {
            let _ = worker_event.send(WorkerEvent::Failed(failure));
            return;
        }
    };
    match load.work(worker_event, orders) {
        Ok(false) => {}
        Ok(true) => {
            let _ = worker_event.send(WorkerEvent::Done(Box::new(load.stats)));
        }
        Err(said) => {
            let _ = worker_event.send(said);
            // The clients stay connected until all threads have reported, so that no other client
            // takes their places.
            let _ = orders.recv();
        }
    }
}

impl Load {
    fn new(shared: Arc<Shared>, clients: Range<u64>) -> Result<Self, Failure> {
        let depth = shared.depth;
        let now = Instant::now();
        Ok(Load {
            first: clients.start,
            clients: clients.map(|number| Client::new(number, depth)).collect(),
            shared,
            epoll: epoll::create(CreateFlags::CLOEXEC).map_err(no_epoll)?,
            events: Vec::with_capacity(EVENTS),
            scratch: vec![0; CHUNK].into_boxed_slice(),
            stats: Stats::new(),
            window: Window {
                from: now,
                to: now,
                schedule: None,
            },
            looked_at: 0,
            told: (0, 0),
        })
    }

    /// Runs all steps. Returns whether it ran to the end; it stops early if the receiver or the
    /// sender of a channel is gone.
    fn work(
        &mut self,
        worker_event: &Sender<WorkerEvent>,
        orders: &Receiver<Order>,
    ) -> Result<bool, WorkerEvent> {
        self.connect_all()?;
        let _ = worker_event.send(WorkerEvent::Gathered);
        let Ok(Order::Check) = orders.recv() else {
            return Ok(false);
        };
        self.look()?;
        let _ = worker_event.send(WorkerEvent::Checked);
        let Ok(Order::Start(begin)) = orders.recv() else {
            return Ok(false);
        };
        self.ask(begin).map_err(WorkerEvent::Failed)?;
        Ok(true)
    }
}

fn no_epoll(error: Errno) -> Failure {
    Failure::System {
        action: "wait for sockets",
        source: error.into(),
    }
}
