//! The census of a cluster that is always available: each server publishes its count in Redis and hears what all have
//! together. One thread does that; who asks for the census never waits for it.
//!
//! The heartbeat is a script (`heartbeat.lua`). Each has a number, so that one that was held up can't undo a later one. What the
//! others have is what all have without what this server had then, as Redis knew it: both come from the same reply, and the
//! messages of others are in order with it.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, Sender};
use redis::{Cmd, Script, Value};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use uuid::Uuid;

use super::figures::{Figures, Kind, Outage, Trouble};
use super::resp::Link;
use super::settings::{Host, Place, Settings};
use super::{Member, tls};
use crate::bell::Bell;
use crate::clock::Millis;
use crate::error::Error;
use crate::pack;
use crate::sync::atomic::AtomicUsize;
use crate::thread;

/// After so many heartbeats without a word a server is taken for gone.
const SILENCE: u32 = 4;

/// A cluster that has begun anew is taken for whole after so many heartbeats: by then everybody has beaten.
const YOUTH: u32 = 2;

/// Changes that come together within this time are published together.
const GATHER: Duration = Duration::from_millis(5);

/// With more servers each publishes its changes less often: for each so much later.
const GATHER_EACH: Duration = Duration::from_micros(50);

/// The first pause after a failure; it doubles with each, up to half a heartbeat.
const FIRST_PAUSE: Duration = Duration::from_millis(20);

/// TLS and the system's search for addresses need more than other threads do.
const STACK_SIZE: usize = 512 * 1024;

const SCRIPT: &str = include_str!("heartbeat.lua");

/// What the other servers have, as far as it is known.
#[derive(Debug, Default)]
pub struct Others {
    clients: AtomicU64,
    /// Until when that holds, in [`Millis`].
    until: AtomicU64,
}

impl Others {
    /// What is known from before.
    pub fn new(known: Option<pack::Census>) -> Self {
        let (clients, until) = known.map_or((0, 0), |known| (known.others, known.until.0));
        Others {
            clients: clients.into(),
            until: until.into(),
        }
    }

    /// How many clients they have; none once that is too old to be believed.
    #[inline]
    pub fn now(&self) -> u64 {
        // The two are not read together: either number was right a moment ago.
        let clients = self.clients.load(Ordering::Acquire);
        if Millis::now().0 < self.until.load(Ordering::Acquire) {
            clients
        } else {
            0
        }
    }

    /// How many they had, and until when that holds.
    pub fn known(&self) -> (u64, Millis) {
        let clients = self.clients.load(Ordering::Acquire);
        (clients, Millis(self.until.load(Ordering::Acquire)))
    }

    fn set(&self, clients: u64, until: Millis) {
        self.clients.store(clients, Ordering::Release);
        self.until.store(until.0, Ordering::Release);
    }
}

/// What the thread is to do.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Order {
    Publish,
    /// Say nothing more.
    Pause,
    /// Say goodbye.
    Leave,
}

/// The thread that publishes.
pub struct Publisher {
    order: Arc<Mutex<Order>>,
    bell: Arc<Bell>,
    /// Disconnects with the first reply.
    first: Receiver<()>,
    /// Disconnects when the thread has ended.
    ended: Receiver<()>,
}

impl Publisher {
    /// Publishes the number of `clients` from now on, and hears the `others`.
    pub fn start(
        settings: Arc<Settings>,
        member: Member,
        clients: Arc<AtomicUsize>,
        others: Arc<Others>,
        bell: Arc<Bell>,
        figures: Arc<Figures>,
    ) -> Result<Self, Error> {
        let order = Arc::new(Mutex::new(Order::Publish));
        let (answered, first) = crossbeam_channel::bounded(0);
        let (alive, ended) = crossbeam_channel::bounded(0);
        let heart = Heart {
            order: order.clone(),
            settings,
            member,
            clients,
            others,
            bell: bell.clone(),
            figures: figures.clone(),
            first: Some(answered),
            script: Script::new(SCRIPT),
            // Whoever goes on with a place that a process had before goes on with larger numbers than that one had: there are
            // far fewer heartbeats than milliseconds.
            sequence: Millis::now().0,
            epoch: Vec::new(),
            kept: 0,
            turn: 0,
        };
        thread::spawn_with("cluster", STACK_SIZE, move || {
            let _alive = alive;
            heart.run(&figures);
        })?;
        Ok(Publisher {
            order,
            bell,
            first,
            ended,
        })
    }

    /// Waits for the first reply, for so long at most.
    pub fn wait_for_first(&self, patience: Duration) {
        // It disconnects, or the time is over.
        let _ = self.first.recv_timeout(patience);
    }

    /// Publishes nothing from now on, whatever becomes of the clients. Those who have heard of them believe in them for some time.
    pub fn pause(&self) {
        self.order(Order::Pause);
    }

    /// Tells the others that all clients are gone, if that can be done within `patience`.
    pub fn leave(&self, patience: Duration) {
        self.order(Order::Leave);
        // It disconnects, or the time is over.
        let _ = self.ended.recv_timeout(patience);
    }

    fn order(&self, order: Order) {
        *lock(&self.order) = order;
        self.bell.ring();
    }
}

impl Drop for Publisher {
    fn drop(&mut self) {
        let mut order = lock(&self.order);
        if *order == Order::Publish {
            *order = Order::Pause;
        }
        drop(order);
        self.bell.ring();
    }
}

/// No code panics while it holds this lock.
fn lock(order: &Mutex<Order>) -> MutexGuard<'_, Order> {
    order.lock().unwrap_or_else(PoisonError::into_inner)
}

/// What the thread knows.
struct Heart {
    order: Arc<Mutex<Order>>,
    settings: Arc<Settings>,
    member: Member,
    clients: Arc<AtomicUsize>,
    others: Arc<Others>,
    bell: Arc<Bell>,
    figures: Arc<Figures>,
    first: Option<Sender<()>>,
    script: Script,
    /// The number of the last heartbeat.
    sequence: u64,
    /// The state that Redis has.
    epoch: Vec<u8>,
    /// What the others had before that state began, as long as it may not be whole.
    kept: u64,
    /// Which of several hosts is tried first.
    turn: usize,
}

impl Connected {
    /// Whoever is first of those whose changes could not be told at once tells all of them.
    fn tell_later(&mut self) {
        let pause = self.last.untold;
        self.tell = (!pause.is_zero()).then(|| self.at + pause + random(pause));
    }
}

/// A random part of `time`.
fn random(time: Duration) -> Duration {
    // Its last 32 bits are all random.
    time.mul_f64(f64::from(Uuid::new_v4().as_u128() as u32) / f64::from(u32::MAX))
}

/// What Redis says to a heartbeat.
struct Pulse {
    epoch: Vec<u8>,
    version: u64,
    total: u64,
    members: u64,
    own: u64,
    age: Duration,
    shares_id: bool,
    untold: Duration,
}

/// What the servers tell each other when the sum has changed.
struct Message {
    epoch: Vec<u8>,
    version: u64,
    total: u64,
    members: u64,
}

/// What holds for one connection.
struct Connected {
    link: Link,
    last: Pulse,
    /// When `last` came.
    at: Instant,
    /// When to publish next at the latest.
    next: Instant,
    /// When to have the others told of what they don't know yet, unless somebody else does.
    tell: Option<Instant>,
}

impl Heart {
    fn run(mut self, figures: &Figures) {
        let mut outage = Outage::new(
            figures,
            "WHO answers what the others had, and after a while the clients of this server",
        );
        while let Err(trouble) = self.live(&mut outage) {
            outage.happened(&trouble);
            if !self.pause(outage.times()) {
                return;
            }
        }
    }

    fn ordered(&self) -> Order {
        *lock(&self.order)
    }

    /// Waits before the next attempt, longer the more have failed, and not as long as others do. Returns whether to go on.
    fn pause(&self, failed: u64) -> bool {
        let doubled = FIRST_PAUSE * (1 << failed.clamp(1, 10));
        let longest = doubled.min(self.settings.heartbeat / 2);
        let deadline = Instant::now() + longest / 2 + random(longest / 2);
        loop {
            if self.ordered() != Order::Publish {
                return false;
            }
            let now = Instant::now();
            if now >= deadline {
                return true;
            }
            // Clients come and go meanwhile.
            self.bell.hush();
            if self.ordered() == Order::Publish {
                wait(&mut [PollFd::new(&*self.bell, PollFlags::IN)], deadline);
            }
        }
    }

    /// Connects, and publishes until there is trouble or an order.
    fn live(&mut self, outage: &mut Outage<'_>) -> Result<(), Trouble> {
        let deadline = Instant::now() + self.settings.heartbeat;
        let mut link = self.connect(deadline)?;
        link.subscribe(&self.channel(), deadline)?;
        let Some(last) = self.beat(&mut link, "join")? else {
            return Ok(());
        };
        outage.over();
        self.first = None;
        let now = Instant::now();
        let mut connected = Connected {
            link,
            last,
            at: now,
            next: now + self.settings.heartbeat,
            tell: None,
        };
        connected.tell_later();
        loop {
            connected.next = connected.next.min(self.hear(&mut connected)?);
            let Connected { link, .. } = &connected;
            let next = connected
                .tell
                .map_or(connected.next, |tell| connected.next.min(tell));
            let mut polled = [
                PollFd::new(link, PollFlags::IN),
                PollFd::new(&*self.bell, PollFlags::IN),
            ];
            wait(&mut polled, next);
            if !polled[1].revents().is_empty() {
                self.bell.hush();
                let members = u32::try_from(connected.last.members).unwrap_or(u32::MAX);
                let gather = GATHER.max(GATHER_EACH.saturating_mul(members));
                let soon = (connected.at + gather).max(Instant::now() + GATHER);
                if self.clients.load(Ordering::SeqCst) as u64 != connected.last.own {
                    connected.next = connected.next.min(soon);
                }
                match self.ordered() {
                    Order::Publish => {}
                    Order::Pause => return Ok(()),
                    Order::Leave => {
                        // If it can't, the others miss it after a while.
                        let _ = self.beat(&mut connected.link, "leave")?;
                        return Ok(());
                    }
                }
            }
            if Instant::now() >= connected.next.min(next) {
                let Some(last) = self.beat(&mut connected.link, "beat")? else {
                    return Ok(());
                };
                connected.at = Instant::now();
                connected.next = connected.at + self.settings.heartbeat;
                connected.last = last;
                connected.tell_later();
            }
        }
    }

    /// Hears what has changed. Returns when to beat next at the latest.
    fn hear(&self, connected: &mut Connected) -> Result<Instant, Trouble> {
        let mut next = connected.next;
        while let Some(message) = connected.link.message()? {
            let Some(message) = Message::read(&message) else {
                continue;
            };
            let last = &mut connected.last;
            // Whoever was silent for long may have been removed: what the others have is told by a heartbeat then.
            let is_late = connected.at.elapsed() > self.settings.heartbeat * 2;
            if message.epoch != last.epoch || is_late {
                next = Instant::now();
            } else if message.version >= last.version {
                connected.tell = None;
                last.version = message.version;
                last.members = message.members;
                last.total = message.total;
                self.believe(last);
            }
        }
        Ok(next)
    }

    /// Publishes how many clients there are now, and hears how many all have. Returns nothing if it is to say nothing more.
    fn beat(&mut self, link: &mut Link, act: &str) -> Result<Option<Pulse>, Trouble> {
        let heartbeat = self.settings.heartbeat;
        let deadline = Instant::now() + heartbeat;
        self.sequence += 1;
        let clients = {
            // Until this is read, nobody says that it no longer counts.
            let order = lock(&self.order);
            if *order == Order::Pause {
                return Ok(None);
            }
            self.clients.load(Ordering::SeqCst)
        };
        let milliseconds = |time: Duration| time.as_millis() as u64;
        let arguments = |command: &mut Cmd| {
            command
                .arg(2)
                .arg(self.key("state"))
                .arg(self.key("alive"))
                .arg(self.member.id.to_string())
                .arg(self.member.incarnation.to_string())
                .arg(self.sequence)
                .arg(clients)
                .arg(milliseconds(heartbeat * SILENCE))
                .arg(milliseconds(heartbeat * 3 / 2))
                .arg(act)
                .arg(self.channel())
                .arg(Uuid::new_v4().simple().to_string());
        };
        let mut command = redis::cmd("EVALSHA");
        command.arg(self.script.get_hash());
        arguments(&mut command);
        let reply = match link.ask(&command, deadline) {
            Err(trouble) if trouble.what.contains("NOSCRIPT") => {
                let mut command = redis::cmd("EVAL");
                command.arg(SCRIPT);
                arguments(&mut command);
                link.ask(&command, deadline)?
            }
            reply => reply?,
        };
        let pulse = Pulse::read(reply).ok_or_else(|| {
            Trouble::new(Kind::Refused, "the heartbeat's script answers nonsense")
        })?;
        self.figures.beat();
        self.figures.shares_id(pulse.shares_id, &self.member.id);
        if pulse.age >= heartbeat * YOUTH {
            self.kept = 0;
        } else if self.epoch != pulse.epoch {
            self.kept = self.others.now();
        }
        self.epoch.clone_from(&pulse.epoch);
        if act != "leave" {
            self.believe(&pulse);
        }
        Ok(Some(pulse))
    }

    /// From now on this is what all have.
    fn believe(&self, pulse: &Pulse) {
        // If Redis began anew, not everybody may have come yet.
        let others = pulse.total.saturating_sub(pulse.own).max(self.kept);
        let until = Millis::now().after(self.settings.heartbeat * SILENCE);
        self.others.set(others, until);
        self.figures.heard(pulse.members, pulse.total);
    }

    /// What something of this cluster is called in Redis. All of it would be in the same part of a Redis Cluster.
    fn key(&self, what: &str) -> String {
        format!("blockchain-tcpd:{{{}}}:{what}", self.settings.name)
    }

    /// Where the servers are told of changes. Channels are the same in all databases.
    fn channel(&self) -> String {
        match self.settings.place {
            Place::Redis { database, .. } => self.key(&format!("changes:{database}")),
            Place::Etcd => String::new(),
        }
    }

    /// A connection to the Redis that takes writes, as far as its Sentinels know, ready for use.
    fn connect(&mut self, deadline: Instant) -> Result<Link, Trouble> {
        let settings = self.settings.clone();
        let Place::Redis { database, master } = &settings.place else {
            return Err(Trouble::new(Kind::Refused, "this is no Redis"));
        };
        let tls = match settings.tls {
            true => Some(tls::client(&settings.credentials)?),
            false => None,
        };
        let host = match master {
            None => settings.hosts[0].clone(),
            Some(master) => self.ask_sentinels(master, tls.clone(), deadline)?,
        };
        let mut link = Link::connect(&host, tls, deadline)?;
        self.hello(&mut link, deadline)?;
        if *database != 0 {
            link.ask(redis::cmd("SELECT").arg(*database), deadline)?;
        }
        Ok(link)
    }

    /// Says who this is.
    fn hello(&self, link: &mut Link, deadline: Instant) -> Result<(), Trouble> {
        let denied = |what| Trouble::new(Kind::Denied, what);
        let credentials = &self.settings.credentials;
        let mut hello = redis::cmd("HELLO");
        hello.arg(3);
        if let Some(password) = credentials.password().map_err(denied)? {
            let user = credentials.user().map_err(denied)?;
            hello
                .arg("AUTH")
                .arg(user.as_deref().unwrap_or("default"))
                .arg(password);
        }
        hello.arg("SETNAME").arg("blockchain-tcpd");
        link.ask(&hello, deadline).map_err(|mut trouble| {
            if trouble.kind == Kind::Refused {
                trouble.what += " (Redis 6 or later is needed)";
            }
            trouble
        })?;
        Ok(())
    }

    /// Where the master of this name is, asked of one Sentinel after the other.
    fn ask_sentinels(
        &mut self,
        master: &str,
        tls: Option<Arc<rustls::ClientConfig>>,
        deadline: Instant,
    ) -> Result<Host, Trouble> {
        let hosts = self.settings.hosts.clone();
        let mut trouble = Trouble::new(Kind::Unreachable, "there is no Sentinel");
        for attempt in 0..hosts.len() {
            let sentinel = &hosts[(self.turn + attempt) % hosts.len()];
            let left = deadline.saturating_duration_since(Instant::now());
            let share = Instant::now() + left / (hosts.len() - attempt + 1) as u32;
            match self.ask_sentinel(sentinel, master, tls.clone(), share) {
                // Another is asked first next time: this one may not have heard the news.
                Ok(host) => {
                    self.turn += attempt + 1;
                    return Ok(host);
                }
                Err(other) => trouble = other,
            }
        }
        self.turn += 1;
        Err(trouble)
    }

    fn ask_sentinel(
        &self,
        sentinel: &Host,
        master: &str,
        tls: Option<Arc<rustls::ClientConfig>>,
        deadline: Instant,
    ) -> Result<Host, Trouble> {
        let mut link = Link::connect(sentinel, tls, deadline)?;
        let mut question = redis::cmd("SENTINEL");
        question.arg("GET-MASTER-ADDR-BY-NAME").arg(master);
        let answer = match link.ask(&question, deadline) {
            // It may know the same users as Redis does.
            Err(trouble) if trouble.kind == Kind::Denied => {
                self.hello(&mut link, deadline)?;
                link.ask(&question, deadline)
            }
            answer => answer,
        };
        match redis::from_redis_value::<Option<(String, u16)>>(answer?) {
            Ok(Some((name, port))) => Ok(Host { name, port }),
            _ => Err(Trouble::new(
                Kind::Refused,
                format!("the Sentinel {sentinel} knows no master {master:?}"),
            )),
        }
    }
}

impl Pulse {
    fn read(reply: Value) -> Option<Self> {
        type Reply = (Vec<u8>, u64, u64, u64, u64, u64, u64, u64);
        let (epoch, version, total, members, own, age, shares_id, untold) =
            redis::from_redis_value::<Reply>(reply).ok()?;
        Some(Pulse {
            epoch,
            version,
            total,
            members,
            own,
            age: Duration::from_millis(age),
            shares_id: shares_id != 0,
            untold: Duration::from_millis(untold),
        })
    }
}

impl Message {
    fn read(text: &[u8]) -> Option<Self> {
        let text = std::str::from_utf8(text).ok()?;
        let mut words = text.split(' ');
        let message = Message {
            epoch: words.next()?.into(),
            version: words.next()?.parse().ok()?,
            total: words.next()?.parse().ok()?,
            members: words.next()?.parse().ok()?,
        };
        words.next().is_none().then_some(message)
    }
}

/// Waits until something is ready, or for the deadline.
fn wait(polled: &mut [PollFd<'_>], deadline: Instant) {
    let left = deadline.saturating_duration_since(Instant::now());
    // A little more, or it would come back just before the deadline. If it fails, it is tried again.
    let time = Timespec::try_from(left + Duration::from_micros(100));
    let _ = poll(polled, time.ok().as_ref());
}
