//! Heartbeat: the thread that publishes this server's count, receives the totals, and reconnects
//! after an error.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::time::{Duration, Instant};

use crossbeam_channel::Sender;
use redis::Script;
use rustix::event::{PollFd, PollFlags};
use uuid::Uuid;

use super::connection::RedisConnection;
use super::master_resolver::MasterResolver;
use super::snapshot::{Message, Reply, Snapshot};
use super::{Order, Others, Source};
use crate::cluster::backoff;
use crate::cluster::error::{ClusterError, ErrorKind};
use crate::cluster::outage::Outage;
use crate::cluster::settings::{Backend, Settings};
use crate::cluster::stats::Stats;
use crate::waker::poll_until;
use shared::clock::Millis;

/// Number of heartbeat intervals after which the script recounts the stored sum, in case somebody
/// has changed it.
const CHECK: u32 = 120;

/// Shortest time in which changes are collected before they are published together.
const GATHER: Duration = Duration::from_millis(5);

/// Collection time for each server of the cluster: the more servers, the less often each publishes
/// its changes.
const GATHER_EACH: Duration = Duration::from_micros(50);

const SCRIPT: &str = include_str!("heartbeat.lua");

/// Kind of a heartbeat.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Act {
    /// First heartbeat on a connection; replaces the entry of a previous process with the same id.
    Join,
    Publish,
    /// Last heartbeat.
    Leave,
}

/// State of the heartbeat thread.
pub struct Heartbeat {
    settings: Arc<Settings>,
    resolver: MasterResolver,
    source: Source,
    others: Arc<Others>,
    stats: Arc<Stats>,
    /// Dropped after the first reply.
    first: Option<Sender<()>>,
    script: Script,
    /// Sequence number of the last heartbeat.
    sequence: u64,
    /// Time of the Redis server in milliseconds, and when it was received.
    clock: (u64, Instant),
    /// Epoch and version of the last known state in Redis.
    seen: Option<(Vec<u8>, u64)>,
    /// Count of the other servers before Redis lost state, and until when it is used as a minimum.
    kept: Option<(u64, Instant)>,
    /// When another server with the same id was last seen.
    duplicate_id: Option<Instant>,
}

/// State of one connection.
struct Connected {
    link: RedisConnection,
    last: Snapshot,
    /// When `last` was received.
    at: Instant,
    /// When to send the next heartbeat at the latest.
    next: Instant,
    /// When to announce changes that the script withheld, unless another server does so first.
    tell: Option<Instant>,
}

impl Connected {
    fn new(link: RedisConnection, snapshot: Snapshot, heartbeat: Duration) -> Self {
        let at = Instant::now();
        // The first of the servers whose changes were withheld announces all of them.
        let pause = snapshot.untold;
        Connected {
            link,
            at,
            next: at + heartbeat,
            tell: (!pause.is_zero()).then(|| at + pause + backoff::random(pause)),
            last: snapshot,
        }
    }

    fn due(&self) -> Instant {
        self.tell.map_or(self.next, |tell| self.next.min(tell))
    }

    /// Moves the next heartbeat to `moment` if it is due later.
    fn schedule(&mut self, moment: Instant) {
        self.next = self.next.min(moment);
    }
}

impl Heartbeat {
    /// Creates the heartbeat of `source`. Drops `first` when the first reply has arrived.
    pub fn new(
        settings: Arc<Settings>,
        source: Source,
        others: Arc<Others>,
        stats: Arc<Stats>,
        first: Sender<()>,
    ) -> Self {
        Heartbeat {
            resolver: MasterResolver::new(settings.clone()),
            settings,
            source,
            others,
            stats,
            first: Some(first),
            script: Script::new(SCRIPT),
            // The next process must use larger sequence numbers than this one. There are far fewer
            // heartbeats than milliseconds, so the time will do.
            sequence: Millis::now().0,
            // Wrong for every Redis; the first reply says the right time.
            clock: (0, Instant::now()),
            seen: None,
            kept: None,
            duplicate_id: None,
        }
    }

    /// Publishes until told to stop.
    pub fn run(mut self) {
        let stats = self.stats.clone();
        let mut outage = Outage::new(
            &stats,
            "WHO answers what the others had, and after a while the clients of this server",
        );
        loop {
            // The panic hook logs a panic; it costs the connection.
            let lived = catch_unwind(AssertUnwindSafe(|| self.live(&mut outage)));
            match lived {
                Ok(Ok(())) => return,
                Ok(Err(trouble)) => outage.record(&trouble),
                Err(_) => {
                    outage.record(&ClusterError::new(ErrorKind::Refused, "this server failed"))
                }
            }
            self.resolver.failed();
            if !self.pause(outage.attempts()) {
                return;
            }
        }
    }

    /// Waits before the next attempt, with exponential backoff and jitter. Returns whether to go
    /// on.
    fn pause(&self, failed: u64) -> bool {
        let pause = backoff::pause(failed, self.settings.heartbeat / 2);
        let deadline = Instant::now() + pause;
        while Instant::now() < deadline {
            // The waker also wakes for clients that come and go.
            self.source.waker.clear();
            if self.source.order() != Order::Publish {
                return false;
            }
            let mut polled = [PollFd::new(&*self.source.waker, PollFlags::IN)];
            // A failed poll is repeated.
            let _ = poll_until(&mut polled, deadline);
        }
        true
    }

    /// Connects, and publishes until an error occurs or the thread is told to stop.
    fn live(&mut self, outage: &mut Outage<'_>) -> Result<(), ClusterError> {
        let heartbeat = self.settings.heartbeat;
        let deadline = Instant::now() + heartbeat;
        let mut link = self.resolver.connect(deadline)?;
        link.subscribe(&self.channel(), deadline)?;
        let Some(first) = self.publish(&mut link, Act::Join)? else {
            return Ok(());
        };
        let mut connected = Connected::new(link, first, heartbeat);
        outage.well();
        self.first = None;
        let mut checked = Instant::now();
        loop {
            self.hear(&mut connected)?;
            let mut polled = vec![
                PollFd::new(&connected.link, PollFlags::IN),
                PollFd::new(&*self.source.waker, PollFlags::IN),
            ];
            let sentinel = self.resolver.sentinel();
            polled.extend(sentinel.map(|link| PollFd::new(link, PollFlags::IN)));
            // A failed poll is repeated.
            let _ = poll_until(&mut polled, connected.due());
            let is_set = !polled[1].revents().is_empty();
            drop(polled);
            // Also handles data that arrived with a reply, which poll does not report.
            if self.resolver.hear() {
                self.resolver.check(Instant::now() + heartbeat / 4)?;
            }
            if is_set {
                self.source.waker.clear();
                match self.source.order() {
                    Order::Publish => self.look(&mut connected),
                    Order::Pause => return Ok(()),
                    // If this fails, the others notice it when the entry expires.
                    Order::Leave => {
                        return self.publish(&mut connected.link, Act::Leave).map(|_| ());
                    }
                }
            }
            // Publish before reading messages: after a suspension this server's entry may have been
            // removed.
            if Instant::now() >= connected.due() {
                let Some(snapshot) = self.publish(&mut connected.link, Act::Publish)? else {
                    return Ok(());
                };
                connected = Connected::new(connected.link, snapshot, heartbeat);
                outage.well();
                if checked.elapsed() >= heartbeat {
                    self.resolver.check(Instant::now() + heartbeat / 4)?;
                    checked = Instant::now();
                }
            }
        }
    }

    /// Schedules a heartbeat if the number of clients has changed.
    fn look(&self, connected: &mut Connected) {
        if self.source.clients() == Some(connected.last.own as usize) {
            return;
        }
        let members = u32::try_from(connected.last.members).unwrap_or(u32::MAX);
        let gather = GATHER.max(GATHER_EACH.saturating_mul(members));
        connected.schedule((connected.at + gather).max(Instant::now() + GATHER));
    }

    /// Reads messages until there are none, a heartbeat is due, or the thread is told to stop.
    fn hear(&mut self, connected: &mut Connected) -> Result<(), ClusterError> {
        loop {
            let message = connected.link.message();
            if let Some(message) = message.and_then(|text| Message::read(&text)) {
                let last = &mut connected.last;
                // This server's entry may have expired meanwhile.
                let is_late = connected.at.elapsed() > self.settings.heartbeat * 2;
                if message.epoch != last.epoch || is_late {
                    connected.schedule(Instant::now());
                } else if message.version >= last.version {
                    connected.tell = None;
                    last.version = message.version;
                    last.members = message.members;
                    last.total = message.total;
                    self.apply(last);
                    self.seen = Some((message.epoch, message.version));
                }
            }
            // Messages may come without end. The waker stays set until the caller clears it, so no
            // order is lost.
            let is_due = Instant::now() >= connected.due();
            if is_due || self.source.order() != Order::Publish || !connected.link.hear()? {
                return Ok(());
            }
            self.look(connected);
        }
    }

    /// Publishes the number of clients and applies the reply. Returns `None` if publishing is
    /// paused.
    fn publish(
        &mut self,
        link: &mut RedisConnection,
        act: Act,
    ) -> Result<Option<Snapshot>, ClusterError> {
        let heartbeat = self.settings.heartbeat;
        let deadline = Instant::now() + heartbeat;
        let Some(clients) = self.source.clients() else {
            return Ok(None);
        };
        let mut snapshot = self.send(link, act, clients, deadline)?;
        if snapshot.is_none() {
            // The clock of Redis was set, or this is another Redis. The reply has told the right
            // time.
            snapshot = self.send(link, act, clients, deadline)?;
        }
        let late = || link.late("does heartbeats much later than they were sent");
        let snapshot = snapshot.ok_or_else(late)?;
        self.stats.publish();
        self.check_duplicate(&snapshot);
        self.keep(&snapshot);
        if act != Act::Leave {
            self.apply(&snapshot);
        }
        Ok(Some(snapshot))
    }

    /// Sends one heartbeat and returns the reply; `None` if Redis rejected it because its send time
    /// did not match the Redis clock.
    fn send(
        &mut self,
        link: &mut RedisConnection,
        act: Act,
        clients: usize,
        deadline: Instant,
    ) -> Result<Option<Snapshot>, ClusterError> {
        let heartbeat = self.settings.heartbeat;
        self.sequence += 1;
        let milliseconds = |time: Duration| time.as_millis() as u64;
        let (clock, heard) = self.clock;
        let now = clock.saturating_add(milliseconds(heard.elapsed()));
        let ask = |link: &mut RedisConnection, verb: &str, script: &str| {
            let mut command = redis::cmd(verb);
            command
                .arg(script)
                .arg(2)
                .arg(self.key("state"))
                .arg(self.key("alive"))
                .arg(self.source.member.id.to_string())
                .arg(self.source.member.incarnation.to_string())
                .arg(self.sequence)
                .arg(clients)
                .arg(milliseconds(self.settings.silence()))
                .arg(milliseconds(heartbeat * 3 / 2))
                .arg(match act {
                    Act::Join => "join",
                    Act::Publish => "beat",
                    Act::Leave => "leave",
                })
                .arg(self.channel())
                .arg(Uuid::new_v4().simple().to_string())
                .arg(milliseconds(heartbeat * CHECK))
                .arg(now)
                .arg(milliseconds(heartbeat));
            link.ask(&command, deadline)
        };
        let reply = match ask(link, "EVALSHA", self.script.get_hash()) {
            Err(trouble) if trouble.code == "NOSCRIPT" => ask(link, "EVAL", SCRIPT)?,
            reply => reply?,
        };
        let reply = Reply::read(reply).ok_or_else(|| {
            ClusterError::new(
                ErrorKind::Refused,
                "the heartbeat's script answers nonsense",
            )
        })?;
        self.clock = (reply.clock, Instant::now());
        Ok(reply.snapshot)
    }

    /// Records whether another server with the same id publishes. Several heartbeats of this server
    /// may lie between two of the other.
    fn check_duplicate(&mut self, snapshot: &Snapshot) {
        if snapshot.shares_id {
            self.duplicate_id = Some(Instant::now());
        }
        let recently = |seen: Instant| seen.elapsed() < self.settings.heartbeat * 2;
        let shares = self.duplicate_id.is_some_and(recently);
        self.stats.shares_id(shares, &self.source.member.id);
    }

    /// Keeps the previous count as a minimum if Redis has lost its state or its last writes, until
    /// all servers have published again. That takes one heartbeat interval, plus half of one for
    /// servers that had to wait before they could connect.
    fn keep(&mut self, snapshot: &Snapshot) {
        let heartbeat = self.settings.heartbeat;
        let youth = (heartbeat * 3 / 2).checked_sub(snapshot.age);
        let keeps = match &self.seen {
            Some((epoch, version)) if *epoch == snapshot.epoch => {
                (*version > snapshot.version).then_some(heartbeat)
            }
            // A state of another epoch that is not new is most likely a restored one.
            Some(_) => Some(youth.unwrap_or(heartbeat)),
            // The count of the previous process is from the same state, unless the state is new.
            None => youth,
        };
        if let Some(time) = keeps {
            self.kept = Some((self.others.now(), Instant::now() + time));
        }
        self.seen = Some((snapshot.epoch.clone(), snapshot.version));
    }

    /// Publishes the count of the other servers to this process.
    fn apply(&self, snapshot: &Snapshot) {
        let kept = self.kept.filter(|(_, until)| Instant::now() < *until);
        let kept = kept.map_or(0, |(clients, _)| clients);
        let others = snapshot.total.saturating_sub(snapshot.own).max(kept);
        let until = Millis::now().after(self.settings.silence());
        self.others.set(others, until);
        self.stats.heard(snapshot.members, snapshot.total);
    }

    /// Returns the name of a Redis key of this cluster. The hash tag puts all keys of a cluster
    /// into one slot of a Redis Cluster.
    fn key(&self, what: &str) -> String {
        format!("blockchain-tcpd:{{{}}}:{what}", self.settings.name)
    }

    /// Returns the name of the channel for changes. Channels are shared by all databases, so the
    /// name contains the database.
    fn channel(&self) -> String {
        let database = match self.settings.backend {
            Backend::Redis { database, .. } => database,
            Backend::Etcd => 0,
        };
        self.key(&format!("changes:{database}"))
    }
}
