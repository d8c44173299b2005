//! Registration: this server's entry in the membership, under a lease that one thread keeps
//! alive.
//!
//! If the lease is lost, the server registers again, and the membership counts as unstable for a
//! while. After a handover, the next process writes the same entry under its own lease, and the
//! lease of this process no longer matters.

use std::net::{IpAddr, Ipv4Addr, UdpSocket};
use std::sync::Arc;
use std::time::{Duration, Instant};

use log::{info, warn};

use super::CensusService;
use super::membership::{Entry, MAX_SERVERS, Membership};
use super::peers::Peers;
use super::tombstones::Tombstones;
use super::transport::Etcd;
use crate::cluster::error::{ClusterError, Result};
use crate::cluster::outage::Outage;
use crate::cluster::{Member, Node, Settings};
use crate::error::Error;
use shared::dial::DnsCache;

/// Shortest time to live of a lease, in seconds: etcd grants no shorter one, because its elections
/// take that long.
const MIN_LEASE: u64 = 2;

/// Time that one etcd member may take to answer before the next is asked. It includes a write to
/// its disk.
const HOST_TIMEOUT: Duration = Duration::from_millis(500);

/// Time that this server, or another one at its address, has to answer a test request.
const TEST_TIMEOUT: Duration = Duration::from_millis(100);

/// Number of failed tests of this server's own address, one per heartbeat and counted from the
/// start, after which the log says that the server does not reach itself.
const MAX_FAILED_TESTS: u32 = 4;

/// Returns whether the address belongs to this machine. Other addresses can't be bound, unless the
/// system allows it (ip(7), `ip_nonlocal_bind`).
fn is_of_this_machine(address: IpAddr) -> bool {
    UdpSocket::bind((address, 0)).is_ok()
}

/// Returns the time to live of a lease, in whole seconds.
fn lease_time(settings: &Settings) -> Duration {
    let seconds = settings.expiry().as_secs_f64().ceil() as u64;
    Duration::from_secs(seconds.max(MIN_LEASE))
}

/// Returns the peers that answer a test request.
fn responding(peers: &[Entry]) -> Vec<Member> {
    let (alive, _) = Peers::default().alive(peers, Instant::now() + TEST_TIMEOUT);
    alive
}

/// The thread that keeps the server registered.
pub struct Registration {
    node: Arc<Node>,
    etcd: Etcd,
    tombstones: Arc<Tombstones>,
    /// Entry of this server; its lease is 0 before it has one.
    own: Entry,
    /// Whether this server has not been registered yet: earlier processes at its address have
    /// ended.
    is_new: bool,
    /// Whether the log says that another server answers at this server's address.
    is_shared: bool,
    /// Number of failed tests of this server's address; `None` after a success.
    failed_tests: Option<u32>,
}

impl Registration {
    /// Creates the registration of `node` and starts the census `service`. `is_resumed` says
    /// whether the server took over clients from a previous process.
    pub(in crate::cluster) fn new(
        node: Arc<Node>,
        service: &Arc<CensusService>,
        is_resumed: bool,
    ) -> Result<Self, Error> {
        let settings = node.settings.clone();
        // Unusable settings may lack it, and never reach etcd.
        let nowhere = (Ipv4Addr::UNSPECIFIED, 0).into();
        let address = settings.advertise.unwrap_or(nowhere);
        let dns = Arc::new(DnsCache::default());
        let tombstones = Arc::new(Tombstones::new(lease_time(&settings) * 2));
        service.start(node.clone(), dns.clone(), tombstones.clone())?;
        Ok(Registration {
            own: Entry {
                member: node.member,
                address,
                lease: 0,
            },
            node,
            etcd: Etcd::new(settings, dns, HOST_TIMEOUT),
            tombstones,
            is_new: !is_resumed,
            is_shared: false,
            failed_tests: Some(0),
        })
    }

    /// Keeps the server registered until it leaves the cluster; then revokes the lease. Without
    /// success, the other servers miss this one until the lease expires.
    pub(in crate::cluster) fn run(mut self, mut outage: Outage) {
        outage.run("WHO is unavailable on this server", |outage| {
            self.refresh()?;
            outage.record_heartbeat();
            Ok(())
        });
        if self.own.lease == 0 {
            return;
        }
        self.etcd.set_deadline(Instant::now() + HOST_TIMEOUT);
        if let Err(error) = self.etcd.revoke(self.own.lease) {
            warn!(reason:% = error; "can't revoke the lease: WHO is unavailable on the other servers until it expires");
        }
    }

    /// Renews the lease and makes sure that the server is registered under it.
    fn refresh(&mut self) -> Result<()> {
        let node = self.node.clone();
        let patience = HOST_TIMEOUT * node.settings.hosts.len() as u32;
        self.etcd.set_deadline(Instant::now() + patience);
        if self.own.lease != 0 && !self.etcd.keep_alive(self.own.lease)? {
            self.own.lease = 0;
        }
        let membership = Membership::read(&mut self.etcd, &node.settings.name)?;
        self.tombstones.update(&membership);
        let is_registered = self.own.lease != 0 && membership.find(node.member) == Some(&self.own);
        if !is_registered || !membership.initialized {
            self.register(&membership)?;
        }
        let others = membership.entries.iter();
        let mut others = others.filter(|entry| entry.member != node.member);
        let servers = others.clone().count() as u64 + 1;
        node.stats.update(|stats| stats.servers = servers);
        let is_duplicate =
            |entry: &Entry| entry.member.id == node.member.id && !self.is_stale(entry);
        node.stats
            .set_shares_id(others.any(is_duplicate), &node.member.id);
        if !self.is_new {
            self.test_own_address();
        }
        self.is_new = false;
        Ok(())
    }

    /// Returns whether the entry is from an earlier process that has ended: an address has only one
    /// server, unless it is configured by mistake for two.
    fn is_stale(&self, entry: &Entry) -> bool {
        self.is_new && entry.address == self.own.address && entry.member != self.own.member
    }

    /// Tests whether this server answers at its advertised address. A wrong address makes WHO
    /// unavailable on all other servers, without any other message in this server's log.
    fn test_own_address(&mut self) {
        let Some(failed) = &mut self.failed_tests else {
            return;
        };
        let address = self.own.address;
        if responding(&[self.own]).is_empty() {
            *failed += 1;
            if *failed == MAX_FAILED_TESTS {
                warn!(address:%; "this server can't reach itself at its --advertise address: if the others can't either, WHO is unavailable on them");
            }
            return;
        }
        if *failed >= MAX_FAILED_TESTS {
            info!(address:%; "over: this server can't reach itself at its --advertise address");
        }
        self.failed_tests = None;
    }

    /// Returns the stale entries at this server's address that it may delete. A server that answers
    /// is not stale.
    fn stale(&mut self, membership: &Membership) -> Vec<Member> {
        let mut stale = membership.entries.clone();
        stale.retain(|entry| self.is_stale(entry));
        let alive = responding(&stale);
        if let Some(other) = alive.first()
            && !self.is_shared
        {
            self.is_shared = true;
            warn!(
                other:% = other.id, address:% = self.own.address;
                "another server of the cluster answers at this server's --advertise address: the others can't ask this one"
            );
        }
        if !is_of_this_machine(self.own.address.ip()) {
            // If the address is wrong, a live but hanging server may be there.
            return Vec::new();
        }
        let stale = stale.into_iter().map(|entry| entry.member);
        stale.filter(|member| !alive.contains(member)).collect()
    }

    fn register(&mut self, membership: &Membership) -> Result<()> {
        let stale = self.stale(membership);
        let is_known = membership.find(self.own.member).is_some();
        if !is_known && membership.entries.len() >= MAX_SERVERS + stale.len() {
            return Err(ClusterError::refused(format!(
                "the cluster has {MAX_SERVERS} servers, and takes no more"
            )));
        }
        let seconds = lease_time(&self.node.settings).as_secs();
        if self.own.lease == 0 {
            self.own.lease = self.etcd.grant(seconds)?;
        }
        let is_lost = !self.is_new && !is_known;
        let unstable = match !membership.initialized || is_lost {
            true => Some(self.etcd.grant(seconds)?),
            false => None,
        };
        let name = &self.node.settings.name;
        membership.write(&mut self.etcd, name, &self.own, &stale, unstable)
    }
}
