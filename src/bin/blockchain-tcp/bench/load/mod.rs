//! One thread of the load: its share of the clients, on one epoll, so that asking costs less than answering.
//!
//! The clients come together ([`connect_all`]), and then keep requests on the way until the end ([`mod@ask`]), both in [`poll_once`]s.

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

/// The most events that are taken at a time.
const EVENTS: usize = 1024;

/// How often it is looked who is late and who may connect again, and told how far it is.
const ROUND: Duration = Duration::from_millis(20);

/// How much a client asks when something has happened to it.
#[derive(Clone, Copy)]
enum Ask {
    /// One request on each connection.
    Once,
    /// This number is kept on the way, as far as requests are due.
    Keep(u32),
    /// Nothing more.
    Nothing,
}

/// A thread's share.
struct Load {
    shared: Arc<Shared>,
    clients: Vec<Client>,
    epoll: OwnedFd,
    events: Vec<Event>,
    scratch: Box<[u8]>,
    stats: Stats,
    window: Window,
    /// Which of all clients the first of these is.
    first: u64,
    /// How many requests of the schedule of these clients were looked at.
    looked_at: u64,
    /// How much of the tally the others know of.
    told: (u64, u64),
}

/// Gathers these clients and has them ask when told. Ends early when the other end of a channel is gone.
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
            // The clients stay until all threads have said how far they have come: nobody else gets their places.
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

    /// All of it, as far as somebody wants it; whether that is to the end.
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
