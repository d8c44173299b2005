//! Registration: this server's entry in etcd's list of members, under a lease that one thread keeps
//! alive.
//!
//! If the lease is lost, the server registers again, and the membership counts as unstable for a
//! while. After a handover, the next process writes the same entry under its own lease, and the
//! lease of this process no longer matters.

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
use crate::error::Error;
use crate::thread;
use shared::dial::DnsCache;
use shared::sync::atomic::AtomicUsize;

/// Shortest time to live of a lease, in seconds: etcd grants no shorter one, because its elections
/// take that long.
const LEAST_SECONDS: u64 = 2;

/// Time that one etcd member may take to answer before the next is asked. It includes a write to
/// its disk.
const PATIENCE: Duration = Duration::from_millis(500);

/// Time that this server, or another one at its address, has to answer a test question.
const ANSWER: Duration = Duration::from_millis(100);

/// Number of failed tests of this server's own address, one per heartbeat and counted from the
/// start, after which the log says that the server does not reach itself.
const UNHEARD: u32 = 4;

/// Handle of the registration.
pub struct Registration {
    /// A message revokes the lease; dropping the sender keeps it.
    leave: Sender<()>,
    stats: Arc<Stats>,
    service: Arc<CensusService>,
    /// Disconnects when the server is registered.
    first: Receiver<()>,
    /// Disconnects when the thread ends.
    ended: Receiver<()>,
}

impl Registration {
    /// Registers this server and starts the census `service`. `goes_on` says whether it took over
    /// clients from a previous process.
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

    /// Waits until the server is registered, `patience` at most.
    pub fn wait_for_first(&self, patience: Duration) {
        // Disconnected or timed out: both end the wait.
        let _ = self.first.recv_timeout(patience);
    }

    /// Answers questions after the first failed poll from now on.
    pub fn fail_fast(&self) {
        self.service.fail_fast();
    }

    /// Revokes the lease; waits for that, `patience` at most. Without success, the other servers
    /// miss this one until the lease expires.
    pub fn leave(&self, patience: Duration) {
        self.stats.withdraw();
        // The channel is full if it was told already.
        let _ = self.leave.try_send(());
        let _ = self.ended.recv_timeout(patience);
    }
}

impl Drop for Registration {
    fn drop(&mut self) {
        self.service.stop();
    }
}

/// Returns whether the address belongs to this machine. Other addresses can't be bound, unless the
/// system allows it (ip(7), `ip_nonlocal_bind`).
fn is_of_this_machine(address: IpAddr) -> bool {
    UdpSocket::bind((address, 0)).is_ok()
}

/// Returns the time to live of a lease, in whole seconds.
fn lease_of(settings: &Settings) -> Duration {
    let seconds = settings.silence().as_secs_f64().ceil() as u64;
    Duration::from_secs(seconds.max(LEAST_SECONDS))
}

/// The thread that keeps the server registered.
struct Keeper {
    etcd: Etcd,
    settings: Arc<Settings>,
    member: Member,
    address: SocketAddr,
    stats: Arc<Stats>,
    tombstones: Arc<Tombstones>,
    /// Lease of the current entry.
    lease: Option<i64>,
    /// Whether this server has not been registered yet: earlier processes at its address have
    /// ended.
    is_new: bool,
    /// Whether the log says that another server answers at this server's address.
    is_shared: bool,
    /// Number of failed tests of this server's address; `None` after a success.
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

    /// Renews the lease and makes sure that the server is registered under it.
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

    /// Returns whether the entry is from an earlier process that has ended: an address has only one
    /// server, unless it is configured by mistake for two.
    fn is_past(&self, entry: &Entry) -> bool {
        self.is_new && entry.address == self.address && entry.member != self.member
    }

    /// Tests whether this server answers at its advertised address. A wrong address makes WHO
    /// unavailable on all other servers, without any other message in this server's log.
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

    /// Returns the stale entries at this server's address that it may delete. A server that answers
    /// is not stale.
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
            // If the address is wrong, a live but hanging server may be there.
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
