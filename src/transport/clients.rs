//! Connection limits: counts the clients, in total and per address, and admits or refuses new ones.

use std::collections::HashMap;
use std::net::{IpAddr, Ipv6Addr};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::waker::Waker;
use shared::command::NoRoom;
use shared::sync::atomic::{AtomicUsize, Ordering};

/// Maximum number of uncounted connections: enough for the health checks of some load balancers.
pub const MAX_UNCOUNTED: usize = 8;

/// The limits on clients, and the numbers of connected ones.
pub struct Clients {
    count: Arc<AtomicUsize>,
    /// Number of connections that have a place of a client and do not count yet.
    silent: Arc<AtomicUsize>,
    /// Number of uncounted connections, which are served but are not clients.
    uncounted: Arc<AtomicUsize>,
    limit: usize,
    per_address: Option<PerAddress>,
    waker: Option<Arc<Waker>>,
}

/// Number of clients for each address that has some.
type Counts = Arc<Mutex<HashMap<IpAddr, usize>>>;

/// Limit on clients per address, and their current numbers.
struct PerAddress {
    limit: usize,
    counts: Counts,
}

impl Clients {
    /// Returns limits for `limit` clients, at most `per_address` of them from one address (0: any
    /// number).
    pub fn new(limit: usize, per_address: usize) -> Self {
        Clients {
            count: Arc::default(),
            silent: Arc::default(),
            uncounted: Arc::default(),
            limit,
            per_address: (per_address > 0).then(|| PerAddress {
                limit: per_address,
                counts: Arc::default(),
            }),
            waker: None,
        }
    }

    /// Wakes `waker` whenever the number of clients changes.
    pub fn with_waker(self, waker: Option<Arc<Waker>>) -> Self {
        Clients { waker, ..self }
    }

    /// Returns the number of clients, which is the answer to `WHO`.
    pub fn count(&self) -> Arc<AtomicUsize> {
        self.count.clone()
    }

    /// Returns the number of all connections that are served or wait: clients and uncounted ones.
    pub fn all(&self) -> usize {
        // In this order: places move from the first to the second.
        let all = [&self.silent, &self.count, &self.uncounted];
        all.map(|count| count.load(Ordering::SeqCst)).iter().sum()
    }

    /// Admits an uncounted connection, if there is room: a load balancer's own, for a health check.
    pub fn admit_uncounted(&self) -> Result<ConnectionGuard, NoRoom> {
        take(&self.uncounted, MAX_UNCOUNTED).map_err(|limit| NoRoom::Uncounted { limit })
    }

    /// Gives a client from `address` a place, if there is room. It counts at once, or with
    /// [`ConnectionGuard::count`]. Only one thread admits clients.
    pub fn admit(&self, address: IpAddr, counts_at_once: bool) -> Result<ConnectionGuard, NoRoom> {
        let Some(PerAddress { limit, counts }) = &self.per_address else {
            return self.admit_one(counts_at_once, None);
        };
        let address = network(address);
        let mut of_address = lock(counts);
        let here = of_address.get(&address).copied().unwrap_or(0);
        if here >= *limit {
            return Err(NoRoom::ForAddress { limit: *limit });
        }
        let guard = self.admit_one(counts_at_once, Some((address, counts.clone())))?;
        of_address.insert(address, here + 1);
        Ok(guard)
    }

    fn admit_one(
        &self,
        counts_at_once: bool,
        at: Option<(IpAddr, Counts)>,
    ) -> Result<ConnectionGuard, NoRoom> {
        // In this order: places move from the first to the second. No other thread takes one.
        let silent = self.silent.load(Ordering::SeqCst);
        let clients = silent + self.count.load(Ordering::SeqCst);
        if clients >= self.limit {
            return Err(NoRoom::Here { clients });
        }
        let own = if counts_at_once {
            &self.count
        } else {
            &self.silent
        };
        let taken = take(own, self.limit);
        let mut guard = taken.map_err(|clients| NoRoom::Here { clients })?;
        guard.waker = self.waker.clone();
        let becomes = (!counts_at_once).then(|| self.count.clone());
        if becomes.is_none() {
            guard.wake();
        }
        if becomes.is_some() || at.is_some() {
            guard.more = Some(Box::new(More { becomes, at }));
        }
        Ok(guard)
    }
}

/// Takes one of `limit` places in `count`; fails with the current count if all are taken.
fn take(count: &Arc<AtomicUsize>, limit: usize) -> Result<ConnectionGuard, usize> {
    count.fetch_update(Ordering::SeqCst, Ordering::SeqCst, |count| {
        (count < limit).then_some(count + 1)
    })?;
    Ok(ConnectionGuard {
        count: count.clone(),
        more: None,
        waker: None,
    })
}

/// A connection's place in its count. Dropping it frees the place.
pub struct ConnectionGuard {
    count: Arc<AtomicUsize>,
    /// In a box, because few connections have it.
    more: Option<Box<More>>,
    /// Woken when the count changes.
    waker: Option<Arc<Waker>>,
}

struct More {
    /// Where it is to count, if it does not count yet.
    becomes: Option<Arc<AtomicUsize>>,
    /// Where the client counts for its address.
    at: Option<(IpAddr, Counts)>,
}

impl ConnectionGuard {
    /// Counts the connection as a client from now on.
    #[inline]
    pub fn count(&mut self) {
        if let Some(more) = &mut self.more
            && let Some(clients) = more.becomes.take()
        {
            self.count_in(clients);
        }
    }

    #[cold]
    fn count_in(&mut self, clients: Arc<AtomicUsize>) {
        // In this order: meanwhile it takes two places, and not none.
        clients.fetch_add(1, Ordering::SeqCst);
        self.count.fetch_sub(1, Ordering::SeqCst);
        self.count = clients;
        self.wake();
    }

    fn wake(&self) {
        if let Some(waker) = &self.waker {
            waker.wake();
        }
    }
}

impl Drop for ConnectionGuard {
    fn drop(&mut self) {
        let more = self.more.as_deref();
        if let Some((address, counts)) = more.and_then(|more| more.at.as_ref()) {
            let mut counts = lock(counts);
            if let Some(here) = counts.get_mut(address) {
                *here -= 1;
                if *here == 0 {
                    counts.remove(address);
                }
            }
        }
        self.count.fetch_sub(1, Ordering::SeqCst);
        if more.is_none_or(|more| more.becomes.is_none()) {
            self.wake();
        }
    }
}

/// Returns what counts as one address. An IPv4 address counts itself, on a dual-stack socket too.
/// An IPv6 address counts as its /64 network, in which its client may choose any address (RFC 4291,
/// section 2.5.4), unless unrelated clients share that network.
fn network(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V6(address) if !is_of_many(address) => {
            Ipv6Addr::from_bits(address.to_bits() & !u128::from(u64::MAX)).into()
        }
        address => address,
    }
}

/// Returns whether unrelated clients share the /64 network of an address: all on a link, or all of
/// IPv4 behind a translator.
fn is_of_many(address: Ipv6Addr) -> bool {
    match address.segments() {
        // Addresses with an IPv4 address inside, and `::1`: RFC 7915, and RFC 4291, section
        // 2.5.5.1.
        [0, 0, 0, 0, ..] => true,
        // The prefixes of translators: RFC 6052 and RFC 8215.
        [0x64, 0xff9b, 0, 0, ..] | [0x64, 0xff9b, 1, ..] => true,
        // Teredo: the 64 bits are those of its server (RFC 4380, section 4).
        [0x2001, 0, ..] => true,
        _ => address.is_unicast_link_local(),
    }
}

/// Locks `mutex`. No code panics while it holds this lock, and the map is consistent between any
/// two of its calls.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn admit(clients: &Clients, address: &str) -> Result<ConnectionGuard, NoRoom> {
        clients.admit(address.parse().unwrap(), true)
    }

    #[test]
    fn a_place_is_counted_until_it_is_dropped() {
        let clients = Clients::new(2, 0);
        let count = clients.count();
        let first = admit(&clients, "192.0.2.1").unwrap();
        let second = admit(&clients, "192.0.2.1").unwrap();
        assert!(matches!(
            admit(&clients, "192.0.2.1"),
            Err(NoRoom::Here { clients: 2 })
        ));
        assert_eq!(count.load(Ordering::SeqCst), 2);
        drop(first);
        assert_eq!(count.load(Ordering::SeqCst), 1);
        drop(second);
        assert_eq!(count.load(Ordering::SeqCst), 0);
    }

    #[test]
    fn who_is_apart_counts_for_nothing_but_its_own_limit() {
        let clients = Clients::new(1, 1);
        let client = admit(&clients, "192.0.2.1").unwrap();
        let uncounted: Vec<_> = (0..MAX_UNCOUNTED)
            .map(|_| clients.admit_uncounted())
            .collect();
        assert!(uncounted.iter().all(Result::is_ok));
        assert!(matches!(
            clients.admit_uncounted(),
            Err(NoRoom::Uncounted {
                limit: MAX_UNCOUNTED
            })
        ));
        assert_eq!(clients.count().load(Ordering::SeqCst), 1);
        assert_eq!(clients.all(), 1 + MAX_UNCOUNTED);
        drop((client, uncounted));
        assert_eq!(clients.all(), 0);
    }

    #[test]
    fn an_address_has_its_own_limit_and_leaves_nothing_behind() {
        let clients = Clients::new(10, 1);
        let first = admit(&clients, "192.0.2.1").unwrap();
        assert!(matches!(
            admit(&clients, "::ffff:192.0.2.1"),
            Err(NoRoom::ForAddress { limit: 1 })
        ));
        assert_eq!(clients.count().load(Ordering::SeqCst), 1);
        let other = admit(&clients, "2001:db8::1").unwrap();
        assert!(admit(&clients, "2001:db8::2").is_err());
        let third = admit(&clients, "2001:db8:0:1::1").unwrap();
        for (one, other) in [
            ("fe80::1", "fe80::2"),
            ("64:ff9b::192.0.2.1", "64:ff9b::192.0.2.2"),
            ("64:ff9b:1::192.0.2.1", "64:ff9b:1::192.0.2.2"),
            ("::ffff:0:192.0.2.1", "::ffff:0:192.0.2.2"),
            ("2001::1", "2001::2"),
        ] {
            let _place = admit(&clients, one).unwrap();
            assert!(admit(&clients, one).is_err(), "{one}");
            assert!(admit(&clients, other).is_ok(), "{other}");
        }
        drop((first, other, third));
        assert!(admit(&clients, "192.0.2.1").is_ok());
        assert!(lock(&clients.per_address.as_ref().unwrap().counts).is_empty());
    }
}
