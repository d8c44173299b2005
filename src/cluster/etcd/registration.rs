//! The place of this server in the roster that etcd keeps: written under a lease, which one thread keeps alive.
//!
//! If the lease is lost, the server writes itself down again, and nobody believes the roster for a while. The program that takes
//! over from this one writes the same entry under a lease of its own: that of this one no longer matters then.

use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::sync::Arc;
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, RecvTimeoutError, Sender};
use log::{info, warn};

use super::CensusService;
use super::client::Etcd;
use super::membership::{Entry, MOST_SERVERS, Membership};
use super::peers::Peers;
use super::tombstones::Tombstones;
use super::transport::EtcdTransport;
use crate::cluster::error::{ClusterError, ErrorKind};
use crate::cluster::outage::Outage;
use crate::cluster::settings::Settings;
use crate::cluster::stats::Stats;
use crate::cluster::{Member, STACK_SIZE, backoff};
use crate::dial::DnsCache;
use crate::error::Error;
use crate::sync::atomic::AtomicUsize;
use crate::thread;

/// The least time that a lease holds, in seconds: etcd grants none for less, as its elections take so long.
const LEAST_SECONDS: u64 = 2;

/// One of etcd's members may take so long to answer, before another is asked. It writes to its disk.
const PATIENCE: Duration = Duration::from_millis(500);

/// Another server at the address of this one has so long to say that it lives, and this one itself.
const ANSWER: Duration = Duration::from_millis(100);

/// This server is not to be reached at its address when it has not been for so many heartbeats, from its start on.
const UNHEARD: u32 = 4;

/// The place in the roster, and those who look after it.
pub struct Registration {
    /// Told to give the place up; dropped to leave it as it is.
    leave: Sender<()>,
    stats: Arc<Stats>,
    service: Arc<CensusService>,
    /// Disconnects when the server is registered.
    first: Receiver<()>,
    /// Disconnects when the thread has ended.
    ended: Receiver<()>,
}

impl Registration {
    /// Registers this server, and has the `service` begin. `goes_on` says whether it has clients of a process before it.
    pub fn start(
        settings: Arc<Settings>,
        member: Member,
        goes_on: bool,
        service: Arc<CensusService>,
        clients: Arc<AtomicUsize>,
        stats: Arc<Stats>,
    ) -> Result<Self, Error> {
        let address = settings.advertise.ok_or_else(|| {
            Error::Cluster("--cluster etcd:// needs --advertise (BLOCKCHAIN_TCPD_ADVERTISE)".into())
        })?;
        let names = Arc::new(DnsCache::default());
        let tombstones = Arc::new(Tombstones::new(lease_of(&settings) * 2));
        let (leave, left) = crossbeam_channel::bounded(1);
        let (registered, first) = crossbeam_channel::bounded(0);
        let (alive, ended) = crossbeam_channel::bounded(0);
        let keeper = Keeper {
            etcd: Etcd::new(EtcdTransport::new(
                settings.clone(),
                names.clone(),
                PATIENCE,
            )),
            settings: settings.clone(),
            member,
            address,
            stats: stats.clone(),
            tombstones: tombstones.clone(),
            lease: None,
            is_new: !goes_on,
            is_shared: false,
            unheard: Some(0),
            first: Some(registered),
            left,
        };
        service.start(settings, names, member, clients, stats.clone(), tombstones)?;
        let registration = Registration {
            leave,
            stats,
            service,
            first,
            ended,
        };
        thread::spawn_with("cluster", STACK_SIZE, move || {
            let _alive = alive;
            keeper.run();
        })?;
        Ok(registration)
    }

    /// Waits until it is registered, for so long at most.
    pub fn wait_for_first(&self, patience: Duration) {
        // It disconnects, or the time is over.
        let _ = self.first.recv_timeout(patience);
    }

    /// Has nobody wait for a number in vain more than once from now on.
    pub fn fail_fast(&self) {
        self.service.fail_fast();
    }

    /// Gives the place up, if that can be done within `patience`: else the others miss this server until its lease is gone.
    pub fn leave(&self, patience: Duration) {
        self.stats.withdraw();
        // It is full if it has been told so already.
        let _ = self.leave.try_send(());
        let _ = self.ended.recv_timeout(patience);
    }
}

impl Drop for Registration {
    fn drop(&mut self) {
        self.service.stop();
    }
}

/// Others can't be bound to, unless the system was told to allow it (ip(7), `ip_nonlocal_bind`).
fn is_of_this_machine(address: IpAddr) -> bool {
    UdpSocket::bind((address, 0)).is_ok()
}

/// How long a lease is to hold: whole seconds.
fn lease_of(settings: &Settings) -> Duration {
    let seconds = settings.silence().as_secs_f64().ceil() as u64;
    Duration::from_secs(seconds.max(LEAST_SECONDS))
}

/// The thread that keeps the place.
struct Keeper {
    etcd: Etcd,
    settings: Arc<Settings>,
    member: Member,
    address: SocketAddr,
    stats: Arc<Stats>,
    tombstones: Arc<Tombstones>,
    /// That under which the server is registered.
    lease: Option<i64>,
    /// Whether it has never been registered: at its address were only processes that have ended.
    is_new: bool,
    /// Whether the log says that another server answers at its address.
    is_shared: bool,
    /// How often this server was not heard at its address; nothing once it was.
    unheard: Option<u32>,
    first: Option<Sender<()>>,
    left: Receiver<()>,
}

impl Keeper {
    fn run(mut self) {
        let stats = self.stats.clone();
        let mut outage = Outage::new(&stats, "WHO is unavailable on this server");
        loop {
            let pause = match self.publish() {
                Ok(()) => {
                    outage.well();
                    self.first = None;
                    self.settings.heartbeat
                }
                Err(trouble) => {
                    outage.record(&trouble);
                    backoff::pause(outage.attempts(), self.settings.heartbeat / 2)
                }
            };
            match self.left.recv_timeout(pause) {
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => return,
                Ok(()) => return self.leave(),
            }
        }
    }

    /// Keeps the lease alive and sees to it that the server is registered under it.
    fn publish(&mut self) -> Result<(), ClusterError> {
        let by = Instant::now() + PATIENCE * self.settings.hosts.len() as u32;
        if let Some(lease) = self.lease
            && !self.etcd.keep_alive(lease, by)?
        {
            self.lease = None;
        }
        let membership = Membership::read(&mut self.etcd, &self.settings.name, by)?;
        self.tombstones.compare(&membership);
        let own = membership.find(self.member);
        let is_there = own.is_some_and(|own| {
            Some(own.lease) == self.lease && own.address == self.address && membership.begun
        });
        if !is_there {
            self.register(&membership, by)?;
        }
        self.stats.publish();
        let others = membership.entries.iter();
        let mut others = others.filter(|entry| entry.member != self.member);
        self.stats.seen(others.clone().count() as u64 + 1);
        let is_twin = |entry: &Entry| entry.member.id == self.member.id;
        let shares = others.any(|entry| is_twin(entry) && !self.is_past(entry));
        self.stats.shares_id(shares, &self.member.id);
        if !self.is_new {
            self.listen_for_itself();
        }
        self.is_new = false;
        Ok(())
    }

    /// Whether this is what a process has left that ended: only one can be at an address, if it is not that of another by mistake.
    fn is_past(&self, entry: &Entry) -> bool {
        self.is_new && entry.address == self.address && entry.member != self.member
    }

    /// Whether others can reach this server, as far as it can find out: a wrong address makes WHO unavailable on all others, and
    /// nothing else would be said here.
    fn listen_for_itself(&mut self) {
        let Some(times) = &mut self.unheard else {
            return;
        };
        let own = Entry {
            member: self.member,
            address: self.address,
            lease: 0,
        };
        let alive = Peers::default().alive(&[own], Instant::now() + ANSWER);
        if alive.is_empty() {
            *times += 1;
            if *times == UNHEARD {
                warn!(
                    address:% = self.address;
                    "this server does not hear itself at the address that it is to have (--advertise): if the others do not either, WHO is unavailable there"
                );
            }
            return;
        }
        if *times >= UNHEARD {
            info!(address:% = self.address; "over: this server does not hear itself at the address that it is to have");
        }
        self.unheard = None;
    }

    /// Those of the roster that have ended, as far as this server is to see to it. Who answers has not.
    fn past(&mut self, membership: &Membership) -> Vec<Member> {
        let past = membership.entries.iter().copied();
        let past: Vec<Entry> = past.filter(|entry| self.is_past(entry)).collect();
        let alive = Peers::default().alive(&past, Instant::now() + ANSWER);
        if let Some(other) = alive.first()
            && !self.is_shared
        {
            self.is_shared = true;
            warn!(
                other:% = other.id, address:% = self.address;
                "another server of the cluster answers at the address that this one is to have (--advertise): nobody can ask this one"
            );
        }
        if !is_of_this_machine(self.address.ip()) {
            // Another server that hangs may be there, if the address is wrong.
            return Vec::new();
        }
        let past = past.into_iter().map(|entry| entry.member);
        past.filter(|member| !alive.contains(member)).collect()
    }

    fn register(&mut self, membership: &Membership, by: Instant) -> Result<(), ClusterError> {
        let past = self.past(membership);
        let is_known = membership.find(self.member).is_some();
        if !is_known && membership.entries.len() >= MOST_SERVERS + past.len() {
            let what = format!("the cluster has {MOST_SERVERS} servers, and takes no more");
            return Err(ClusterError::new(ErrorKind::Refused, what));
        }
        let seconds = lease_of(&self.settings).as_secs();
        let lease = match self.lease {
            Some(lease) => lease,
            None => self.etcd.grant(seconds, by)?.0,
        };
        self.lease = Some(lease);
        let is_lost = !self.is_new && !is_known;
        let youth = match !membership.begun || is_lost {
            true => Some(self.etcd.grant(seconds, by)?.0),
            false => None,
        };
        let own = Entry {
            member: self.member,
            address: self.address,
            lease,
        };
        let name = self.settings.name.clone();
        membership.write(&mut self.etcd, &name, &own, &past, youth, by)
    }

    fn leave(&mut self) {
        if let Some(lease) = self.lease {
            let by = Instant::now() + PATIENCE;
            if let Err(trouble) = self.etcd.revoke(lease, by) {
                warn!(reason:% = trouble; "the other servers miss this one until its lease is gone");
            }
        }
    }
}
