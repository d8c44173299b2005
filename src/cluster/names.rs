//! The addresses of names, as they were a while ago: whoever must connect again can't wait for a name server, which may take its
//! time. A thread looks up one name after the other, is there while there is something to look up, and nobody waits for it but
//! who needs a name that has never been looked up.

use std::collections::HashMap;
use std::io;
use std::net::{IpAddr, SocketAddr, ToSocketAddrs as _};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use super::STACK_SIZE;
use crate::error::plain;
use crate::thread;

/// The addresses of a name are looked up again after this time.
const NAME_HOLDS: Duration = Duration::from_secs(5);

/// What getaddrinfo(3) says of a name that does not exist, or has no address: of glibc, and of musl. It says nothing in another
/// language, as nobody here calls setlocale(3). All else may be otherwise in a moment.
const MISSING: [&str; 5] = [
    "Name or service not known",
    "No address associated with hostname",
    "Address family for hostname not supported",
    "Name does not resolve",
    "Name has no usable address",
];

/// A name and a port.
type Question = (String, u16);

/// What looks one up, for as long as it takes.
pub type Lookup = fn(&str, u16) -> io::Result<Vec<SocketAddr>>;

/// What is known of the addresses of names.
#[derive(Clone, Debug)]
pub struct Names(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    state: Mutex<State>,
    /// Something has been found, or not.
    found: Condvar,
    lookup: Lookup,
}

#[derive(Debug, Default)]
struct State {
    known: HashMap<Question, Known>,
    /// What is to be looked up; the first is being so.
    wanted: Vec<Question>,
}

#[derive(Debug)]
struct Known {
    /// The last addresses that were found, or why there have never been any.
    addresses: io::Result<Vec<SocketAddr>>,
    /// When they were looked up last, whatever came of it.
    at: Instant,
}

impl Default for Names {
    fn default() -> Self {
        Names::by(|name, port| Ok((name, port).to_socket_addrs()?.collect()))
    }
}

impl Names {
    /// Those that are looked up by this.
    pub fn by(lookup: Lookup) -> Self {
        Names(Arc::new(Shared {
            state: Mutex::default(),
            found: Condvar::new(),
            lookup,
        }))
    }

    /// The last that are known of this name, or address, with this port. If it has not been looked up before, that is waited
    /// for until `by`; whoever comes later has what it brings.
    pub fn addresses(&self, name: &str, port: u16, by: Instant) -> io::Result<Vec<SocketAddr>> {
        if let Ok(address) = name.parse::<IpAddr>() {
            return Ok(vec![(address, port).into()]);
        }
        let question = (name.to_string(), port);
        let mut state = self.0.lock();
        let is_due = match state.known.get(&question) {
            Some(known) => known.addresses.is_err() || known.at.elapsed() >= NAME_HOLDS,
            None => true,
        };
        if is_due && !state.wanted.contains(&question) {
            state.wanted.push(question.clone());
            // Whoever looks up something now goes on with this.
            if state.wanted.len() == 1 {
                drop(state);
                self.begin();
                state = self.0.lock();
            }
        }
        loop {
            if let Some(known) = state.known.get(&question) {
                return match &known.addresses {
                    Ok(addresses) => Ok(addresses.clone()),
                    Err(error) => Err(copy(error)),
                };
            }
            let left = by.saturating_duration_since(Instant::now());
            if left.is_zero() {
                let what = "its address is still being looked up";
                return Err(io::Error::new(io::ErrorKind::TimedOut, what));
            }
            let waited = self.0.found.wait_timeout(state, left);
            state = waited.unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    /// Has looked up what is wanted.
    fn begin(&self) {
        let shared = self.0.clone();
        if thread::spawn_with("names", STACK_SIZE, move || shared.look_up()).is_err() {
            // It takes as long as it takes, but without it nothing would ever be found.
            self.0.look_up();
        }
    }
}

impl Shared {
    /// Looks up what is wanted until nothing is.
    fn look_up(&self) {
        let mut state = self.lock();
        while let Some((name, port)) = state.wanted.first().cloned() {
            drop(state);
            let found = (self.lookup)(&name, port);
            state = self.lock();
            let question = state.wanted.remove(0);
            let addresses = match (found, state.known.remove(&question)) {
                (Ok(found), _) => Ok(found),
                // As long as nobody knows better.
                (Err(_), Some(known)) if known.addresses.is_ok() => known.addresses,
                (Err(error), _) => Err(error),
            };
            let at = Instant::now();
            state.known.insert(question, Known { addresses, at });
            self.found.notify_all();
        }
    }

    /// No code panics while it holds this lock.
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The same once more.
fn copy(error: &io::Error) -> io::Error {
    io::Error::new(error.kind(), plain(error))
}

/// Why there are no addresses, in the words of getaddrinfo(3), which are behind std's.
pub fn reason(error: &io::Error) -> String {
    let text = plain(error);
    text.rsplit(": ").next().unwrap_or_default().to_string()
}

/// Whether there is no such name, rather than nobody who knows now.
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

    /// Makes what is known of this name as old as that.
    fn age(names: &Names, name: &str, age: Duration) {
        let mut state = names.0.lock();
        let known = state.known.get_mut(&(name.to_string(), 1)).unwrap();
        known.at = Instant::now().checked_sub(age).unwrap();
    }

    #[test]
    fn nobody_waits_longer_than_they_have_time_and_what_was_begun_is_not_lost() {
        static LOOKUPS: AtomicUsize = AtomicUsize::new(0);
        let names = Names::by(|_, port| {
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
        // And later nobody waits at all.
        age(&names, "slow.example", NAME_HOLDS);
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

    #[test]
    fn one_after_the_other_is_looked_up() {
        let names = Names::by(|name, port| {
            std::thread::sleep(Duration::from_millis(10));
            match name {
                "none.example" => Err(io::Error::other("no")),
                _ => Ok(here(port)),
            }
        });
        for port in 1..9 {
            let error = names.addresses("some.example", port, Instant::now());
            assert_eq!(error.unwrap_err().kind(), io::ErrorKind::TimedOut);
        }
        let error = names.addresses("none.example", 9, late()).unwrap_err();
        assert_eq!(error.to_string(), "no");
        for port in 1..9 {
            let found = names.addresses("some.example", port, Instant::now());
            assert_eq!(found.unwrap(), here(port));
        }
    }

    #[test]
    fn what_was_known_stays_until_something_else_is_and_what_was_not_is_looked_up_again() {
        static IS_THERE: AtomicUsize = AtomicUsize::new(0);
        let names = Names::by(|_, _| match IS_THERE.load(Ordering::SeqCst) {
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
        until(&|| ask(soon()).is_ok());
        IS_THERE.store(2, Ordering::SeqCst);
        age(&names, "some.example", NAME_HOLDS);
        assert_eq!(ask(soon()).unwrap(), here(1));
        until(&|| names.0.lock().wanted.is_empty());
        assert_eq!(ask(soon()).unwrap(), here(1));
    }

    #[test]
    fn an_address_is_not_looked_up() {
        let names = Names::by(|_, _| unreachable!("it is one"));
        let ask = |name| names.addresses(name, 1, Instant::now()).unwrap();
        assert_eq!(ask("127.0.0.1"), here(1));
        assert_eq!(ask("::1"), ["[::1]:1".parse().unwrap()]);
    }

    #[test]
    fn who_is_away_is_told_from_what_does_not_exist() {
        let error = Names::default().addresses("nowhere.invalid", 1, late());
        let error = error.unwrap_err();
        assert!(is_missing(&error), "{error}");
        assert!(is_missing(&copy(&error)), "{error}");
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
