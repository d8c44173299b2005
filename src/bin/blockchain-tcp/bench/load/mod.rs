//! One thread of the load: its share of the clients, on one epoll, so that asking costs less than answering.

mod gather;

use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, Sender};
use std::time::{Duration, Instant};

use rustix::buffer::spare_capacity;
use rustix::event::Timespec;
use rustix::event::epoll::{self, CreateFlags, Event, EventData, EventFlags};
use rustix::io::Errno;
use rustix::time::{ClockId, clock_gettime};

use super::client::{Client, Lost};
use super::replies::CHUNK;
use super::tally::Tally;
use super::terms::{Terms, Window};
use crate::failure::Failure;

/// The most events that are taken at a time.
const EVENTS: usize = 1024;

/// How often it is looked who is late, and who may connect again.
const ROUND: Duration = Duration::from_millis(20);

/// A client that has lost its connection waits so long before it connects again.
const PACE: Duration = Duration::from_millis(100);

/// When the user has had enough, the last replies may take so long.
const LAST_REPLIES: Duration = Duration::from_secs(1);

/// What the threads and whoever started them know of each other.
pub struct Shared {
    pub terms: Terms,
    /// What is asked, in words.
    pub request: String,
    /// How many requests each client has on the way.
    pub depth: u32,
    /// After how long replies begin to count.
    pub warm_up: Duration,
    /// After how many nanoseconds the load ends.
    pub end: AtomicU64,
    /// Whether it ends because the user wants it to.
    pub interrupted: AtomicBool,
    /// How many clients have had their first reply.
    pub served: AtomicU64,
    /// How many right replies there were so far.
    pub answered: AtomicU64,
    /// How many errors.
    pub errors: AtomicU64,
}

/// What a thread says.
pub enum News {
    /// Its clients have had their first reply.
    Gathered,
    /// They all still have their connections.
    Checked,
    /// The server has said this to some of its clients, because it has no room for all. So many were served then, if that
    /// won't change any more.
    Full { line: String, served: Option<u64> },
    /// It couldn't begin.
    Failed(Failure),
    /// What it has counted.
    Done(Box<Tally>),
}

/// What a thread is told.
pub enum Order {
    /// Look whether the clients still have their connections.
    Check,
    /// The load begins at this moment.
    Start(Instant),
}

/// How much a client asks when something has happened to it.
#[derive(Clone, Copy)]
enum Ask {
    /// One request on each connection.
    Once,
    /// So many are kept on the way.
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
    tally: Tally,
    window: Window,
    /// How much of the tally the others know of.
    told: (u64, u64),
}

/// Gathers so many clients and has them ask when told. Ends early when there is nobody to tell.
pub fn run(shared: Arc<Shared>, clients: usize, news: &Sender<News>, orders: &Receiver<Order>) {
    let mut load = match Load::new(shared, clients) {
        Ok(load) => load,
        Err(failure) => {
            let _ = news.send(News::Failed(failure));
            return;
        }
    };
    match load.work(news, orders) {
        Ok(false) => {}
        Ok(true) => {
            let _ = news.send(News::Done(Box::new(load.tally)));
        }
        Err(said) => {
            let _ = news.send(said);
            // The clients stay until all threads have said how far they have come: nobody else gets their places.
            let _ = orders.recv();
        }
    }
}

impl Load {
    fn new(shared: Arc<Shared>, clients: usize) -> Result<Self, Failure> {
        let depth = shared.depth;
        let now = Instant::now();
        Ok(Load {
            clients: (0..clients).map(|_| Client::new(depth)).collect(),
            shared,
            epoll: epoll::create(CreateFlags::CLOEXEC).map_err(no_epoll)?,
            events: Vec::with_capacity(EVENTS),
            scratch: vec![0; CHUNK].into_boxed_slice(),
            tally: Tally::new(),
            window: Window { from: now, to: now },
            told: (0, 0),
        })
    }

    /// All of it, as far as somebody wants it; whether that is to the end.
    fn work(&mut self, news: &Sender<News>, orders: &Receiver<Order>) -> Result<bool, News> {
        self.gather()?;
        let _ = news.send(News::Gathered);
        let Ok(Order::Check) = orders.recv() else {
            return Ok(false);
        };
        self.look()?;
        let _ = news.send(News::Checked);
        let Ok(Order::Start(begin)) = orders.recv() else {
            return Ok(false);
        };
        self.ask(begin).map_err(News::Failed)?;
        Ok(true)
    }

    /// Keeps requests on the way until the end, and waits for the last replies.
    fn ask(&mut self, begin: Instant) -> Result<(), Failure> {
        let depth = self.shared.depth;
        self.window.from = begin + self.shared.warm_up;
        self.window.to = self.end(begin);
        for client in &mut self.clients {
            client.fill(&self.shared.terms, depth, &mut self.tally);
        }
        let mut cpu = None;
        let mut looked = begin;
        loop {
            let now = Instant::now();
            self.window.to = self.end(begin);
            if cpu.is_none() && now >= self.window.from {
                cpu = Some(cpu_time());
            }
            if now >= self.window.to {
                break;
            }
            if now.saturating_duration_since(looked) >= ROUND {
                looked = now;
                self.look_round(now, true);
            }
            let pause = (self.window.to - now).min(ROUND);
            self.turn(pause, Ask::Keep(depth), Load::lost)?;
            self.tell();
        }
        self.tally.cpu = cpu.map_or(Duration::ZERO, |before| cpu_time().saturating_sub(before));
        self.wait_for_the_last()?;
        self.tell();
        Ok(())
    }

    /// When the load ends.
    fn end(&self, begin: Instant) -> Instant {
        begin + Duration::from_nanos(self.shared.end.load(Ordering::Relaxed))
    }

    /// Sends nothing any more, and waits for all replies that are due.
    fn wait_for_the_last(&mut self) -> Result<(), Failure> {
        let begun = Instant::now();
        let mut looked = begun;
        while self.clients.iter().any(Client::is_waiting) {
            let now = Instant::now();
            if self.shared.interrupted.load(Ordering::Relaxed)
                && now.saturating_duration_since(begun) > LAST_REPLIES
            {
                break;
            }
            if now.saturating_duration_since(looked) >= ROUND {
                looked = now;
                self.look_round(now, false);
            }
            self.turn(ROUND, Ask::Nothing, Load::lost)?;
        }
        Ok(())
    }

    /// Ends who is late, and connects who may.
    fn look_round(&mut self, now: Instant, again: bool) {
        let timeout = self.shared.terms.timeout;
        for key in 0..self.clients.len() {
            let client = &self.clients[key];
            let outcome = if client.is_late(now, timeout) {
                Err(Lost::Late)
            } else if again && client.is_due(now) {
                self.begin(key, now)
            } else {
                Ok(())
            };
            if let Err(lost) = outcome {
                // It is noted, and that is all.
                let _ = self.lost(key, lost);
            }
        }
    }

    fn begin(&mut self, key: usize, now: Instant) -> Result<(), Lost> {
        let socket = self.clients[key].begin(&self.shared.terms, now)?;
        // Each change is told once, so that nothing has to be asked of the kernel again.
        let flags = EventFlags::IN | EventFlags::OUT | EventFlags::RDHUP | EventFlags::ET;
        epoll::add(&self.epoll, socket, EventData::new_u64(key as u64), flags)
            .map_err(|error| Lost::NotConnected(error.into()))
    }

    /// A client without a connection.
    fn lost(&mut self, key: usize, lost: Lost) -> Result<(), Failure> {
        let first = self.clients[key].drop_connection(Some(Instant::now() + PACE));
        self.tally.losers += u64::from(first);
        self.tally.errors.note_lost(lost);
        Ok(())
    }

    /// Waits for something to happen, takes what has arrived, and has each client to which it happened ask. `lost` hears who
    /// has lost its connection.
    fn turn(
        &mut self,
        pause: Duration,
        ask: Ask,
        mut lost: impl FnMut(&mut Self, usize, Lost) -> Result<(), Failure>,
    ) -> Result<(), Failure> {
        let limit = Timespec {
            tv_sec: pause.as_secs() as i64,
            tv_nsec: i64::from(pause.subsec_nanos()),
        };
        let mut events = std::mem::take(&mut self.events);
        events.clear();
        match epoll::wait(&self.epoll, spare_capacity(&mut events), Some(&limit)) {
            Ok(_) | Err(Errno::INTR) => {}
            Err(error) => return Err(no_epoll(error)),
        }
        for event in &events {
            // Copied, because it is packed.
            let (key, flags) = (event.data.u64() as usize, event.flags);
            if let Err(why) = self.proceed(key, flags, ask) {
                lost(self, key, why)?;
            }
        }
        self.events = events;
        Ok(())
    }

    fn proceed(&mut self, key: usize, flags: EventFlags, ask: Ask) -> Result<(), Lost> {
        let client = &mut self.clients[key];
        if !client.has_socket() || !client.has_connected()? {
            return Ok(());
        }
        let ends = flags.intersects(EventFlags::RDHUP | EventFlags::HUP | EventFlags::ERR);
        let (terms, tally) = (&self.shared.terms, &mut self.tally);
        client.receive(terms, &mut self.scratch, self.window, ends, tally)?;
        match ask {
            Ask::Once if !client.has_asked() => client.fill(terms, 1, tally),
            Ask::Keep(depth) => client.fill(terms, depth, tally),
            Ask::Once | Ask::Nothing => {}
        }
        Ok(())
    }

    /// Tells the others how far it is.
    fn tell(&mut self) {
        let now = (self.tally.answered, self.tally.errors.total());
        let answered = now.0 - self.told.0;
        if answered > 0 {
            self.shared.answered.fetch_add(answered, Ordering::Relaxed);
        }
        if now.1 > self.told.1 {
            self.shared
                .errors
                .fetch_add(now.1 - self.told.1, Ordering::Relaxed);
        }
        self.told = now;
    }
}

fn cpu_time() -> Duration {
    let time = clock_gettime(ClockId::ThreadCPUTime);
    Duration::new(time.tv_sec as u64, time.tv_nsec as u32)
}

fn no_epoll(error: Errno) -> Failure {
    Failure::System {
        action: "wait for sockets",
        source: error.into(),
    }
}
