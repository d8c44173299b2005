//! Heartbeat: the thread that publishes this server's count, receives the sums, and reconnects
//! after an error.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use redis::Script;
use rustix::event::{PollFd, PollFlags};
use uuid::Uuid;

use super::Others;
use super::connection::RedisConnection;
use super::master_resolver::MasterResolver;
use super::snapshot::{Snapshot, parse_message, parse_reply};
use crate::cluster::error::{ClusterError, ErrorKind, Result};
use crate::cluster::outage::{self, Outage};
use crate::cluster::{Mode, Node};
use crate::waker::poll_until;
use shared::clock::{Millis, milliseconds};
use shared::sync::ignore_poison;

/// Number of heartbeat intervals after which the script recounts the stored sum, in case somebody
/// has changed it.
const RECOUNT_HEARTBEATS: u32 = 120;

/// Shortest time in which changes are collected before they are published together.
const MIN_COLLECT_TIME: Duration = Duration::from_millis(5);

/// Collection time for each server of the cluster: the more servers, the less often each publishes
/// its changes.
const COLLECT_TIME_PER_SERVER: Duration = Duration::from_micros(50);

const SCRIPT: &str = include_str!("heartbeat.lua");

/// First heartbeat on a connection; replaces the entry of a previous process with the same id.
const JOIN: &str = "join";
/// Heartbeat, as the script knows it.
const BEAT: &str = "beat";
/// Last heartbeat, which removes this server.
const LEAVE: &str = "leave";

/// State of the heartbeat thread.
pub struct Heartbeat {
    node: Arc<Node>,
    others: Arc<Others>,
    resolver: MasterResolver,
    script: Script,
    /// Interval between heartbeats.
    interval: Duration,
    /// Sequence number of the last heartbeat.
    sequence: u64,
    /// Time of the Redis server in milliseconds, and when it was received.
    clock: (u64, Instant),
    /// Epoch and version of the last known state in Redis.
    known: Option<(Vec<u8>, u64)>,
    /// Count of the other servers before Redis lost state, and until when it is used as a minimum.
    minimum: Option<(u64, Instant)>,
    /// When another server with the same id was last seen.
    duplicate_id: Option<Instant>,
}

/// State of one connection.
struct Session {
    connection: RedisConnection,
    last: Snapshot,
    /// When `last` was received.
    received: Instant,
    /// When to send the next heartbeat at the latest.
    next: Instant,
    /// When to announce changes that the script withheld, unless another server does so first.
    announce: Option<Instant>,
}

impl Session {
    /// Creates the state after the reply `last` to a heartbeat.
    fn new(connection: RedisConnection, last: Snapshot, interval: Duration) -> Self {
        let received = Instant::now();
        // The first of the servers whose changes were withheld announces all of them.
        let pause = last.unannounced;
        Session {
            connection,
            received,
            next: received + interval,
            announce: (!pause.is_zero()).then(|| received + pause + outage::random(pause)),
            last,
        }
    }

    fn due(&self) -> Instant {
        self.announce.map_or(self.next, |time| time.min(self.next))
    }

    /// Moves the next heartbeat to `moment` if it is due later.
    fn schedule(&mut self, moment: Instant) {
        self.next = self.next.min(moment);
    }
}

impl Heartbeat {
    /// Creates the heartbeat of `node`, which updates `others`. Sends nothing yet.
    pub fn new(node: Arc<Node>, others: Arc<Others>) -> Self {
        Heartbeat {
            resolver: MasterResolver::new(node.settings.clone()),
            interval: node.settings.heartbeat,
            node,
            others,
            script: Script::new(SCRIPT),
            // The next process must use larger sequence numbers than this one. There are far fewer
            // heartbeats than milliseconds, so the time will do.
            sequence: Millis::now().0,
            // Wrong for every Redis; the first reply says the right time.
            clock: (0, Instant::now()),
            known: None,
            minimum: None,
            duplicate_id: None,
        }
    }

    /// Publishes until told to stop.
    pub fn run(mut self, mut outage: Outage) {
        let meaning =
            "WHO answers what the others had, and after a while the clients of this server";
        outage.run(meaning, |outage| {
            let result = self.run_connection(outage);
            result.inspect_err(|_| self.resolver.failed())
        });
    }

    /// Connects, joins the cluster, and publishes until an error occurs or the thread is told to
    /// stop.
    fn run_connection(&mut self, outage: &mut Outage) -> Result<()> {
        let mut connection = self.resolver.connect(Instant::now() + self.interval)?;
        connection.query(redis::cmd("SUBSCRIBE").arg(self.channel()))?;
        let Some(first) = self.publish(&mut connection, JOIN)? else {
            return Ok(());
        };
        let mut session = Session::new(connection, first, self.interval);
        outage.record_heartbeat();
        loop {
            self.read_messages(&mut session)?;
            if self.wait(&session) {
                self.node.waker.clear();
                match self.node.mode() {
                    Mode::Publish => self.schedule_changes(&mut session),
                    Mode::Pause => return Ok(()),
                    // If this fails, the others notice it when the entry expires.
                    Mode::Leave => {
                        return self.publish(&mut session.connection, LEAVE).map(|_| ());
                    }
                }
            }
            // Publish before reading messages: after a suspension this server's entry may have been
            // removed.
            if Instant::now() >= session.due() {
                let Some(snapshot) = self.publish(&mut session.connection, BEAT)? else {
                    return Ok(());
                };
                session = Session::new(session.connection, snapshot, self.interval);
                outage.record_heartbeat();
            }
            self.resolver.check()?;
        }
    }

    /// Waits until a heartbeat is due, or something has arrived. Returns whether the waker is set.
    fn wait(&self, session: &Session) -> bool {
        let mut polled = [
            PollFd::new(&*self.node.waker, PollFlags::IN),
            PollFd::new(&session.connection, PollFlags::IN),
        ];
        // A failed poll is repeated.
        let _ = poll_until(&mut polled, session.due());
        !polled[0].revents().is_empty()
    }

    /// Returns the number of clients to publish; `None` while publishing is paused.
    fn clients(&self) -> Option<usize> {
        // Holds the lock while the number is read, so that nobody pauses the publishing in between.
        let mode = ignore_poison(self.node.mode.lock());
        (*mode != Mode::Pause).then(|| self.node.clients.load(Ordering::SeqCst))
    }

    /// Schedules a heartbeat if the number of clients has changed.
    fn schedule_changes(&self, session: &mut Session) {
        if self.clients() == Some(session.last.own as usize) {
            return;
        }
        let members = u32::try_from(session.last.sum.members).unwrap_or(u32::MAX);
        let collect = MIN_COLLECT_TIME.max(COLLECT_TIME_PER_SERVER.saturating_mul(members));
        session.schedule((session.received + collect).max(Instant::now() + MIN_COLLECT_TIME));
    }

    /// Reads messages until there are none, a heartbeat is due, or the thread is told to stop.
    fn read_messages(&mut self, session: &mut Session) -> Result<()> {
        loop {
            let message = session.connection.message.take();
            if let Some(sum) = message.and_then(|text| parse_message(&text)) {
                let last = &mut session.last;
                // This server's entry may have expired meanwhile.
                let is_late = session.received.elapsed() > self.interval * 2;
                if sum.epoch != last.sum.epoch || is_late {
                    session.schedule(Instant::now());
                } else if sum.version >= last.sum.version {
                    self.known = Some((sum.epoch.clone(), sum.version));
                    last.sum = sum;
                    self.apply(last);
                    session.announce = None;
                }
            }
            // Messages may come without end. The waker stays set until the caller clears it, so no
            // change of the mode is lost.
            let is_due = Instant::now() >= session.due();
            if is_due || self.node.mode() != Mode::Publish || !session.connection.read_message()? {
                return Ok(());
            }
            self.schedule_changes(session);
        }
    }

    /// Publishes the number of clients and applies the reply. Returns `None` if publishing is
    /// paused.
    fn publish(
        &mut self,
        connection: &mut RedisConnection,
        kind: &str,
    ) -> Result<Option<Snapshot>> {
        connection.set_deadline(Instant::now() + self.interval);
        let Some(clients) = self.clients() else {
            return Ok(None);
        };
        let mut snapshot = self.send(connection, kind, clients)?;
        if snapshot.is_none() {
            // The clock of Redis was set, or this is another Redis. The reply has told the right
            // time.
            snapshot = self.send(connection, kind, clients)?;
        }
        let what = "does heartbeats much later than they were sent";
        let snapshot = snapshot.ok_or_else(|| connection.error(ErrorKind::Late, what))?;
        self.check_duplicate(&snapshot);
        self.check_lost_state(&snapshot);
        if kind != LEAVE {
            self.apply(&snapshot);
        }
        Ok(Some(snapshot))
    }

    /// Sends one heartbeat and returns the reply; `None` if Redis rejected it because its send time
    /// did not match the Redis clock.
    fn send(
        &mut self,
        connection: &mut RedisConnection,
        kind: &str,
        clients: usize,
    ) -> Result<Option<Snapshot>> {
        self.sequence += 1;
        let (clock, received) = self.clock;
        let now = clock.saturating_add(milliseconds(received.elapsed()));
        let (node, interval) = (&self.node, self.interval);
        let mut evaluate = |command: &str, script: &str| {
            let mut command = redis::cmd(command);
            command
                .arg(script)
                .arg(2)
                .arg(&[self.key("state"), self.key("alive")])
                .arg(node.member.id.to_string())
                .arg(node.member.incarnation.to_string())
                .arg(self.sequence)
                .arg(clients)
                .arg(milliseconds(node.settings.expiry()))
                .arg(milliseconds(interval * 3 / 2))
                .arg(kind)
                .arg(self.channel())
                .arg(Uuid::new_v4().simple().to_string())
                .arg(milliseconds(interval * RECOUNT_HEARTBEATS))
                .arg(now)
                .arg(milliseconds(interval));
            connection.query(&command)
        };
        let reply = match evaluate("EVALSHA", self.script.get_hash()) {
            Err(error) if error.code == "NOSCRIPT" => evaluate("EVAL", SCRIPT)?,
            reply => reply?,
        };
        let (clock, snapshot) = parse_reply(reply)
            .ok_or_else(|| ClusterError::refused("the heartbeat's script answers nonsense"))?;
        self.clock = (clock, Instant::now());
        Ok(snapshot)
    }

    /// Records whether another server with the same id publishes. Several heartbeats of this server
    /// may lie between two of the other.
    fn check_duplicate(&mut self, snapshot: &Snapshot) {
        if snapshot.shares_id {
            self.duplicate_id = Some(Instant::now());
        }
        let recently = |seen: Instant| seen.elapsed() < self.interval * 2;
        let shares = self.duplicate_id.is_some_and(recently);
        let id = &self.node.member.id;
        self.node.stats.set_shares_id(shares, id);
    }

    /// Uses the previous count as a minimum if Redis has lost its state or its last writes, until
    /// all servers have published again. That takes one heartbeat interval, plus half of one for
    /// servers that had to wait before they could connect.
    fn check_lost_state(&mut self, snapshot: &Snapshot) {
        let sum = &snapshot.sum;
        let young = (self.interval * 3 / 2).checked_sub(snapshot.age);
        let duration = match &self.known {
            Some((epoch, version)) if *epoch == sum.epoch => {
                (*version > sum.version).then_some(self.interval)
            }
            // A state of another epoch that is not new is most likely a restored one.
            Some(_) => Some(young.unwrap_or(self.interval)),
            // The count of the previous process is from the same state, unless the state is new.
            None => young,
        };
        if let Some(duration) = duration {
            self.minimum = Some((self.others.get().0, Instant::now() + duration));
        }
        self.known = Some((sum.epoch.clone(), sum.version));
    }

    /// Publishes the count of the other servers to this process.
    fn apply(&self, snapshot: &Snapshot) {
        let minimum = self.minimum.filter(|(_, until)| Instant::now() < *until);
        let minimum = minimum.map_or(0, |(clients, _)| clients);
        let sum = &snapshot.sum;
        let others = sum.clients.saturating_sub(snapshot.own).max(minimum);
        let until = Millis::now().after(self.node.settings.expiry());
        self.others.set(others, until);
        self.node.stats.set_total(sum.members, sum.clients);
    }

    /// Returns the name of a Redis key of this cluster. The hash tag puts all keys of a cluster
    /// into one slot of a Redis Cluster.
    fn key(&self, what: &str) -> String {
        format!("blockchain-tcpd:{{{}}}:{what}", self.node.settings.name)
    }

    /// Returns the name of the channel for changes. Channels are shared by all databases, so the
    /// name contains the database.
    fn channel(&self) -> String {
        self.key(&format!("changes:{}", self.node.settings.database))
    }
}
