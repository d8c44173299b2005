//! The thread that publishes: beats, hears what all have, and begins anew when it is cut off.

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
use crate::clock::Millis;
use crate::cluster::backoff;
use crate::cluster::error::{ClusterError, ErrorKind};
use crate::cluster::outage::Outage;
use crate::cluster::settings::{Backend, Settings};
use crate::cluster::stats::Stats;
use crate::waker::poll_until;

/// Redis counts the sum that it keeps once in so many heartbeats, for the case that somebody has changed it.
const CHECK: u32 = 120;

/// Changes that come together within this time are published together.
const GATHER: Duration = Duration::from_millis(5);

/// With more servers each publishes its changes less often: for each so much later.
const GATHER_EACH: Duration = Duration::from_micros(50);

const SCRIPT: &str = include_str!("heartbeat.lua");

/// Why a heartbeat beats.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Act {
    /// The first on a connection: it takes over the place of a process before.
    Join,
    Publish,
    /// The last.
    Leave,
}

/// What the thread knows.
pub struct Heartbeat {
    settings: Arc<Settings>,
    resolver: MasterResolver,
    source: Source,
    others: Arc<Others>,
    stats: Arc<Stats>,
    /// Dropped with the first reply.
    first: Option<Sender<()>>,
    script: Script,
    /// The number of the last heartbeat.
    sequence: u64,
    /// What the clock of Redis said, in milliseconds, and when that was heard.
    clock: (u64, Instant),
    /// The state that Redis had last, and its version.
    seen: Option<(Vec<u8>, u64)>,
    /// What the others had before, and until when that counts, if the state is another or an older one since.
    kept: Option<(u64, Instant)>,
    /// When another server of the same id was seen last.
    duplicate_id: Option<Instant>,
}

/// What holds for one connection.
struct Connected {
    link: RedisConnection,
    last: Snapshot,
    /// When `last` came.
    at: Instant,
    /// When to beat next at the latest.
    next: Instant,
    /// When to have the others told of what they don't know yet, unless somebody else does.
    tell: Option<Instant>,
}

impl Connected {
    fn new(link: RedisConnection, snapshot: Snapshot, heartbeat: Duration) -> Self {
        let at = Instant::now();
        // Whoever is first of those whose changes could not be told at once tells all of them.
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

    /// Beats at this moment, if not before.
    fn schedule(&mut self, moment: Instant) {
        self.next = self.next.min(moment);
    }
}

impl Heartbeat {
    /// Publishes this, once it runs. Whoever holds the other end of `first` learns when the first reply has come.
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
            // Whoever goes on with the place of a process before goes on with larger numbers than that one had: there are far
            // fewer heartbeats than milliseconds.
            sequence: Millis::now().0,
            // Wrong for any Redis, which says what is right.
            clock: (0, Instant::now()),
            seen: None,
            kept: None,
            duplicate_id: None,
        }
    }

    /// Publishes until it is told otherwise.
    pub fn run(mut self) {
        let stats = self.stats.clone();
        let mut outage = Outage::new(
            &stats,
            "WHO answers what the others had, and after a while the clients of this server",
        );
        loop {
            // A panic is logged by the hook, and costs a connection.
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

    /// Waits before the next attempt, longer the more have failed, and not as long as others do. Returns whether to go on.
    fn pause(&self, failed: u64) -> bool {
        let pause = backoff::pause(failed, self.settings.heartbeat / 2);
        let deadline = Instant::now() + pause;
        while Instant::now() < deadline {
            // Clients come and go meanwhile.
            self.source.waker.clear();
            if self.source.order() != Order::Publish {
                return false;
            }
            let mut polled = [PollFd::new(&*self.source.waker, PollFlags::IN)];
            // If it fails, it is tried again.
            let _ = poll_until(&mut polled, deadline);
        }
        true
    }

    /// Connects, and publishes until there is trouble, or it is told otherwise.
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
            // If it fails, it is tried again.
            let _ = poll_until(&mut polled, connected.due());
            let is_set = !polled[1].revents().is_empty();
            drop(polled);
            // Also what came with a reply, of which a poll knows nothing.
            if self.resolver.hear() {
                self.resolver.check(Instant::now() + heartbeat / 4)?;
            }
            if is_set {
                self.source.waker.clear();
                match self.source.order() {
                    Order::Publish => self.look(&mut connected),
                    Order::Pause => return Ok(()),
                    // If that can't be said, the others notice after a while.
                    Order::Leave => {
                        return self.publish(&mut connected.link, Act::Leave).map(|_| ());
                    }
                }
            }
            // Before anything is heard: whoever slept may have been removed.
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

    /// Sees to it that a change is published soon, if there is one.
    fn look(&self, connected: &mut Connected) {
        if self.source.clients() == Some(connected.last.own as usize) {
            return;
        }
        let members = u32::try_from(connected.last.members).unwrap_or(u32::MAX);
        let gather = GATHER.max(GATHER_EACH.saturating_mul(members));
        connected.schedule((connected.at + gather).max(Instant::now() + GATHER));
    }

    /// Hears what has changed, as long as nothing else is to be done.
    fn hear(&mut self, connected: &mut Connected) -> Result<(), ClusterError> {
        loop {
            let message = connected.link.message();
            if let Some(message) = message.and_then(|text| Message::read(&text)) {
                let last = &mut connected.last;
                // It may be too late to be still counted.
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
            // Messages may come without end. The bell that comes with an order rings until the caller hushes it.
            let is_due = Instant::now() >= connected.due();
            if is_due || self.source.order() != Order::Publish || !connected.link.hear()? {
                return Ok(());
            }
            self.look(connected);
        }
    }

    /// Publishes how many clients there are now, and hears how many all have. Returns nothing if there is nothing to be published.
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
            // Its clock was set, or is that of another Redis: now it is known.
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

    /// Sends one heartbeat, and hears what Redis says to it; nothing if it came at another time than Redis was thought to have.
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

    /// Notes whether another server of the same id beats. Between two of its heartbeats there may be several of this one.
    fn check_duplicate(&mut self, snapshot: &Snapshot) {
        if snapshot.shares_id {
            self.duplicate_id = Some(Instant::now());
        }
        let recently = |seen: Instant| seen.elapsed() < self.settings.heartbeat * 2;
        let shares = self.duplicate_id.is_some_and(recently);
        self.stats.shares_id(shares, &self.source.member.id);
    }

    /// If Redis has begun anew, or has lost its last writes, keeps what was known before until everybody has beaten again: that
    /// takes a heartbeat, and half of one more for who had to wait before it could connect.
    fn keep(&mut self, snapshot: &Snapshot) {
        let heartbeat = self.settings.heartbeat;
        let youth = (heartbeat * 3 / 2).checked_sub(snapshot.age);
        let keeps = match &self.seen {
            Some((epoch, version)) if *epoch == snapshot.epoch => {
                (*version > snapshot.version).then_some(heartbeat)
            }
            // As it was before, most likely: restored.
            Some(_) => Some(youth.unwrap_or(heartbeat)),
            // What a process before this one knew is of the same state, if that is not new.
            None => youth,
        };
        if let Some(time) = keeps {
            self.kept = Some((self.others.now(), Instant::now() + time));
        }
        self.seen = Some((snapshot.epoch.clone(), snapshot.version));
    }

    /// From now on this is what all have.
    fn apply(&self, snapshot: &Snapshot) {
        let kept = self.kept.filter(|(_, until)| Instant::now() < *until);
        let kept = kept.map_or(0, |(clients, _)| clients);
        let others = snapshot.total.saturating_sub(snapshot.own).max(kept);
        let until = Millis::now().after(self.settings.silence());
        self.others.set(others, until);
        self.stats.heard(snapshot.members, snapshot.total);
    }

    /// What something of this cluster is called in Redis. All of it would be in the same part of a Redis Cluster.
    fn key(&self, what: &str) -> String {
        format!("blockchain-tcpd:{{{}}}:{what}", self.settings.name)
    }

    /// Where the servers are told of changes. Channels are the same in all databases.
    fn channel(&self) -> String {
        let database = match self.settings.backend {
            Backend::Redis { database, .. } => database,
            Backend::Etcd => 0,
        };
        self.key(&format!("changes:{database}"))
    }
}
