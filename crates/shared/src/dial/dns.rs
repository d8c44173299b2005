//! DNS cache. getaddrinfo(3) has no timeout, so each name is resolved in a thread of its own: a
//! name server that never answers for one name delays no other, and no caller waits beyond its
//! deadline.
//!
//! A caller that must reconnect can't wait for a name server at all: the last known addresses stay
//! valid until newer ones are found.

use std::collections::HashMap;
use std::io;
use std::net::{IpAddr, SocketAddr, TcpStream, ToSocketAddrs as _};
use std::panic::catch_unwind;
use std::sync::{Arc, Condvar, Mutex, MutexGuard};
use std::thread;
use std::time::{Duration, Instant};

use super::route::Failed;
use super::socket::connect_first;
use crate::sync::ignore_poison;
use crate::text::without_errno;

/// Age at which a name is resolved again, whether it has addresses or an error.
const LIFETIME: Duration = Duration::from_secs(5);

/// Messages of getaddrinfo(3) for a name that does not exist or has no address: glibc's, and
/// musl's. They are never translated, as this program doesn't call setlocale(3). All other errors
/// may be temporary.
const MISSING: [&str; 5] = [
    "Name or service not known",
    "No address associated with hostname",
    "Address family for hostname not supported",
    "Name does not resolve",
    "Name has no usable address",
];

/// A name and a port.
type Key = (String, u16);

type Names = HashMap<Key, Name>;

/// Resolver of one name; it may block for any time.
pub type Lookup = fn(&str, u16) -> io::Result<Vec<SocketAddr>>;

/// Cache of the addresses of names.
#[derive(Clone, Debug)]
pub struct DnsCache(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    names: Mutex<Names>,
    /// Signals that a lookup has ended.
    found: Condvar,
    lookup: Lookup,
    /// Addresses that failed, which are tried last.
    failed: Failed,
}

#[derive(Debug, Default)]
struct Name {
    /// The last addresses found, or the error if none were ever found; `None` during the first
    /// lookup.
    addresses: Option<io::Result<Vec<SocketAddr>>>,
    /// When the last lookup ended, whatever its result.
    at: Option<Instant>,
    /// Whether a thread is resolving it.
    is_running: bool,
}

impl Default for DnsCache {
    fn default() -> Self {
        DnsCache::with_resolver(|name, port| Ok((name, port).to_socket_addrs()?.collect()))
    }
}

impl DnsCache {
    /// Returns a cache that uses this resolver.
    pub fn with_resolver(lookup: Lookup) -> Self {
        DnsCache(Arc::new(Shared {
            names: Mutex::default(),
            found: Condvar::new(),
            lookup,
            failed: Failed::default(),
        }))
    }

    /// Returns the last known addresses of this name or literal address, with this port; those that
    /// failed come last. Waits until `by` if none are known yet; a lookup that takes longer goes on
    /// for later callers.
    pub fn addresses(&self, name: &str, port: u16, by: Instant) -> io::Result<Vec<SocketAddr>> {
        if let Some(address) = literal(name, port) {
            return Ok(vec![address]);
        }
        let key = (name.to_string(), port);
        let mut names = self.0.lock();
        self.schedule(&mut names, &key);
        let names = self
            .0
            .wait_while(names, by, |names| names[&key].addresses.is_none());
        match &names[&key].addresses {
            Some(Ok(addresses)) => {
                let mut addresses = addresses.clone();
                self.0.failed.sort(&mut addresses);
                Ok(addresses)
            }
            Some(Err(error)) => Err(clone_error(error)),
            None => {
                let what = "its address is still being looked up";
                Err(io::Error::new(io::ErrorKind::TimedOut, what))
            }
        }
    }

    /// Resolves all these names in parallel, and waits until `by`, at most, for the first that has
    /// addresses. Returns for each whether it has addresses by then.
    pub fn wait_for_one(&self, hosts: &[(&str, u16)], by: Instant) -> Vec<bool> {
        let result_of = |names: &Names, (name, port): &(&str, u16)| match literal(name, *port) {
            Some(_) => Some(true),
            None => names.get(&(name.to_string(), *port))?.has_some(),
        };
        let mut names = self.0.lock();
        for host in hosts {
            if result_of(&names, host) != Some(true) {
                self.schedule(&mut names, &(host.0.to_string(), host.1));
            }
        }
        let names = self.0.wait_while(names, by, |names| {
            let results = || hosts.iter().map(|host| result_of(names, host));
            results().all(|result| result != Some(true)) && results().any(|result| result.is_none())
        });
        let found = hosts.iter().map(|host| result_of(&names, host));
        found.map(|result| result == Some(true)).collect()
    }

    /// Connects to the first address of this host that accepts by `by`. Returns the connection and
    /// the address.
    pub fn connect(
        &self,
        name: &str,
        port: u16,
        by: Instant,
    ) -> io::Result<(TcpStream, SocketAddr)> {
        let addresses = self.addresses(name, port, by)?;
        let mut last = io::Error::new(io::ErrorKind::NotFound, "it has no address");
        let connected = connect_first(&addresses, by, |address, error| {
            self.failed(address);
            last = error;
        });
        connected.ok_or(last)
    }

    /// Records that the service failed at this address: from now on it comes after the other
    /// addresses of its name.
    pub fn failed(&self, address: SocketAddr) {
        self.0.failed.note(address);
    }

    /// Starts a lookup of this name, unless its last result still holds, or a lookup is running.
    fn schedule(&self, names: &mut Names, key: &Key) {
        let name = names.entry(key.clone()).or_default();
        if name.is_running || name.at.is_some_and(|at| at.elapsed() < LIFETIME) {
            return;
        }
        name.is_running = true;
        let (shared, key) = (self.0.clone(), key.clone());
        // With the default stack size: the resolver may load NSS modules.
        let thread = thread::Builder::new().name("names".to_string());
        if let Err(error) = thread.spawn(move || shared.resolve(key)) {
            name.record(Err(error));
        }
    }
}

impl Name {
    /// Returns whether it has addresses; `None` if that is not known yet.
    fn has_some(&self) -> Option<bool> {
        let addresses = self.addresses.as_ref()?;
        Some(addresses.as_ref().is_ok_and(|all| !all.is_empty()))
    }

    /// Records the result of a lookup.
    fn record(&mut self, found: io::Result<Vec<SocketAddr>>) {
        // A failed lookup does not replace addresses that are known.
        if found.is_ok() || !matches!(self.addresses, Some(Ok(_))) {
            self.addresses = Some(found);
        }
        self.at = Some(Instant::now());
        self.is_running = false;
    }
}

impl Shared {
    /// Thread: resolves a name.
    fn resolve(&self, key: Key) {
        let found = catch_unwind(|| (self.lookup)(&key.0, key.1));
        let found = found.unwrap_or_else(|_| Err(io::Error::other("the lookup has panicked")));
        self.lock().entry(key).or_default().record(found);
        self.found.notify_all();
    }

    /// Waits while this is the case, at most until `by`.
    fn wait_while<'a>(
        &self,
        names: MutexGuard<'a, Names>,
        by: Instant,
        is_so: impl Fn(&Names) -> bool,
    ) -> MutexGuard<'a, Names> {
        let left = by.saturating_duration_since(Instant::now());
        let waited = self
            .found
            .wait_timeout_while(names, left, |names| is_so(names));
        ignore_poison(waited).0
    }

    /// Locks the names. No code panics while it holds this lock.
    fn lock(&self) -> MutexGuard<'_, Names> {
        ignore_poison(self.names.lock())
    }
}

/// Parses a literal address, which needs no lookup.
fn literal(name: &str, port: u16) -> Option<SocketAddr> {
    let address: IpAddr = name.parse().ok()?;
    Some((address, port).into())
}

/// Copies an error, as `io::Error` is not `Clone`.
fn clone_error(error: &io::Error) -> io::Error {
    io::Error::new(error.kind(), without_errno(error))
}

/// Returns why there are no addresses, in the words of getaddrinfo(3), without std's prefix.
pub fn reason(error: &io::Error) -> String {
    let text = without_errno(error);
    text.rsplit(": ").next().unwrap_or_default().to_string()
}

/// Returns whether the name does not exist, as opposed to a lookup that failed for now.
pub fn is_missing(error: &io::Error) -> bool {
    MISSING.contains(&reason(error).as_str())
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use super::*;

    fn soon() -> Instant {
        Instant::now() + Duration::from_millis(20)
    }

    fn late() -> Instant {
        Instant::now() + Duration::from_secs(10)
    }

    fn here(port: u16) -> Vec<SocketAddr> {
        vec![([127, 0, 0, 1], port).into()]
    }

    /// Whether no lookup is running.
    fn is_quiet(names: &DnsCache) -> bool {
        !names.0.lock().values().any(|name| name.is_running)
    }

    /// Makes the entry of this name `age` old.
    fn age(names: &DnsCache, name: &str, age: Duration) {
        let mut names = names.0.lock();
        let name = names.get_mut(&(name.to_string(), 1)).unwrap();
        name.at = Instant::now().checked_sub(age);
    }

    #[test]
    fn nobody_waits_longer_than_they_have_time_and_what_was_begun_is_not_lost() {
        static LOOKUPS: AtomicUsize = AtomicUsize::new(0);
        let names = DnsCache::with_resolver(|_, port| {
            LOOKUPS.fetch_add(1, Ordering::SeqCst);
            std::thread::sleep(Duration::from_millis(300));
            Ok(here(port))
        });
        for _ in 0..3 {
            let begun = Instant::now();
            let error = names.addresses("slow.example", 1, soon()).unwrap_err();
            assert_eq!(error.to_string(), "its address is still being looked up");
            assert!(begun.elapsed() < Duration::from_millis(200));
        }
        let found = names.addresses("slow.example", 1, late());
        assert_eq!(found.unwrap(), here(1));
        assert_eq!(LOOKUPS.load(Ordering::SeqCst), 1);
        // Once an address is known, callers no longer wait.
        age(&names, "slow.example", LIFETIME);
        for _ in 0..3 {
            let found = names.addresses("slow.example", 1, Instant::now());
            assert_eq!(found.unwrap(), here(1));
        }
        let deadline = late();
        while LOOKUPS.load(Ordering::SeqCst) < 2 && Instant::now() < deadline {
            std::thread::yield_now();
        }
        assert_eq!(LOOKUPS.load(Ordering::SeqCst), 2, "in the background");
    }

    /// A lookup that takes 5 seconds stands for a name server that never answers.
    const DEAD: Duration = Duration::from_secs(5);

    #[test]
    fn a_name_that_is_not_answered_delays_no_other() {
        let names = DnsCache::with_resolver(|name, port| match name {
            "good.example" => Ok(here(port)),
            "none.example" => Err(io::Error::other("no")),
            _ => {
                std::thread::sleep(DEAD);
                Ok(here(port))
            }
        });
        let begun = Instant::now();
        let hosts = [
            ("dead.example", 1),
            ("none.example", 1),
            ("good.example", 1),
        ];
        assert_eq!(names.wait_for_one(&hosts, late()), [false, false, true]);
        assert_eq!(names.wait_for_one(&hosts[..2], soon()), [false, false]);
        assert_eq!(names.wait_for_one(&[("::1", 1)], soon()), [true]);
        let error = names.addresses("dead.example", 1, soon()).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::TimedOut);
        let error = names.addresses("none.example", 1, late()).unwrap_err();
        assert_eq!(error.to_string(), "no");
        assert_eq!(names.addresses("good.example", 1, late()).unwrap(), here(1));
        assert!(begun.elapsed() < DEAD);
    }

    #[test]
    fn a_lookup_that_panics_is_an_error_and_is_tried_again() {
        static LOOKUPS: AtomicUsize = AtomicUsize::new(0);
        let names =
            DnsCache::with_resolver(|_, port| match LOOKUPS.fetch_add(1, Ordering::SeqCst) {
                0 => panic!("as if by a defect"),
                _ => Ok(here(port)),
            });
        let error = names.addresses("some.example", 1, late()).unwrap_err();
        assert_eq!(error.to_string(), "the lookup has panicked");
        age(&names, "some.example", LIFETIME);
        let deadline = late();
        while names.addresses("some.example", 1, late()).is_err() && Instant::now() < deadline {
            std::thread::yield_now();
        }
        let found = names.addresses("some.example", 1, late());
        assert_eq!(found.unwrap(), here(1));
    }

    #[test]
    fn the_address_that_failed_comes_last() {
        let names = DnsCache::with_resolver(|_, port| {
            let address = |last| SocketAddr::from(([127, 0, 0, last], port));
            Ok(vec![address(1), address(2), address(3)])
        });
        let order = || {
            let found = names.addresses("some.example", 1, late()).unwrap();
            let last = |address: &SocketAddr| address.to_string().as_bytes()[8];
            String::from_utf8(found.iter().map(last).collect()).unwrap()
        };
        let fail = |last| names.failed(SocketAddr::from(([127, 0, 0, last], 1)));
        assert_eq!(order(), "123");
        for (failed, then) in [(1, "231"), (1, "231"), (2, "312"), (3, "123"), (2, "132")] {
            fail(failed);
            assert_eq!(order(), then);
        }
    }

    #[test]
    fn what_was_known_stays_until_something_else_is_and_what_was_not_is_looked_up_again() {
        static IS_THERE: AtomicUsize = AtomicUsize::new(0);
        let names = DnsCache::with_resolver(|_, _| match IS_THERE.load(Ordering::SeqCst) {
            0 => Err(io::Error::other("away")),
            1 => Ok(here(1)),
            _ => Err(io::Error::other("away again")),
        });
        let ask = |by| names.addresses("some.example", 1, by);
        let until = |is: &dyn Fn() -> bool| {
            let deadline = late();
            while !is() && Instant::now() < deadline {
                std::thread::yield_now();
            }
            assert!(is());
        };
        assert_eq!(ask(late()).unwrap_err().to_string(), "away");
        IS_THERE.store(1, Ordering::SeqCst);
        age(&names, "some.example", LIFETIME);
        until(&|| ask(soon()).is_ok());
        IS_THERE.store(2, Ordering::SeqCst);
        age(&names, "some.example", LIFETIME);
        assert_eq!(ask(soon()).unwrap(), here(1));
        until(&|| is_quiet(&names));
        assert_eq!(ask(soon()).unwrap(), here(1));
    }

    #[test]
    fn a_name_that_does_not_resolve_is_not_looked_up_at_each_call() {
        static LOOKUPS: AtomicUsize = AtomicUsize::new(0);
        let names = DnsCache::with_resolver(|name, port| match name {
            "good.example" => Ok(here(port)),
            _ => {
                LOOKUPS.fetch_add(1, Ordering::SeqCst);
                Err(io::Error::other("no"))
            }
        });
        let hosts = [("good.example", 1), ("none.example", 1)];
        for round in 1..=3 {
            for _ in 0..10 {
                assert_eq!(names.wait_for_one(&hosts, late()), [true, false]);
                let error = names.addresses("none.example", 1, late()).unwrap_err();
                assert_eq!(error.to_string(), "no");
                let deadline = late();
                while !is_quiet(&names) && Instant::now() < deadline {
                    std::thread::yield_now();
                }
            }
            assert_eq!(LOOKUPS.load(Ordering::SeqCst), round);
            age(&names, "none.example", LIFETIME);
        }
    }

    #[test]
    fn an_address_is_not_looked_up() {
        let names = DnsCache::with_resolver(|_, _| unreachable!("it is one"));
        let ask = |name| names.addresses(name, 1, Instant::now()).unwrap();
        assert_eq!(ask("127.0.0.1"), here(1));
        assert_eq!(ask("::1"), ["[::1]:1".parse().unwrap()]);
    }

    #[test]
    fn who_is_away_is_told_from_what_does_not_exist() {
        let error = DnsCache::default().addresses("nowhere.invalid", 1, late());
        let error = error.unwrap_err();
        assert!(is_missing(&error), "{error}");
        assert!(is_missing(&clone_error(&error)), "{error}");
        for (text, missing) in [
            ("Name or service not known", true),
            ("No address associated with hostname", true),
            ("Temporary failure in name resolution", false),
            ("Non-recoverable failure in name resolution", false),
            ("Device or resource busy (os error 16)", false),
        ] {
            let text = format!("failed to lookup address information: {text}");
            assert_eq!(
                is_missing(&io::Error::other(text.clone())),
                missing,
                "{text}"
            );
        }
    }
}
