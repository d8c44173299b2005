//! Census in the consistent mode: etcd holds the list of members, and a census asks each of them.
//!
//! An answer is correct in this sense: each of its addends was the number of clients of its server
//! at some moment between the question and the answer, and these servers are all that were
//! registered at one moment between the two. Without such an answer in time, the census is
//! unavailable.
//!
//! One thread polls the cluster on behalf of all questions: each question waits for the next poll
//! that begins. A poll reads the membership, which etcd answers only with a quorum, and then asks
//! all other servers at once.

mod client;
mod connector;
mod membership;
mod peer_request;
mod peers;
mod registration;
mod tombstones;
mod transport;

use std::collections::HashSet;
use std::net::SocketAddr;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::Ordering;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use log::{debug, warn};

use self::client::Etcd;
use self::membership::{Entry, Membership};
pub use self::peer_request::answer;
use self::peers::{ParsedArgs, Peers};
pub use self::registration::Registration;
use self::tombstones::Tombstones;
use self::transport::EtcdTransport;
use super::{Member, STACK_SIZE, Settings, Stats, Unavailable};
use crate::error::Error;
use crate::log_throttle::Incident;
use crate::thread;
use shared::clock::Nanos;
use shared::dial::DnsCache;
use shared::sync::atomic::AtomicUsize;

/// Longest duration of a poll.
const DEADLINE: Duration = Duration::from_millis(750);

/// Longest wait of a question, counted from when it was read, however many were read with it. A
/// waiting worker does not report that it is healthy, and counts as stuck after a second.
const LONGEST: Duration = Duration::from_millis(900);

/// Time that one etcd member may take to answer before the next is asked.
const PATIENCE: Duration = Duration::from_millis(250);

/// Interval of polls without a question, for the metrics and the log.
const IDLE: Duration = Duration::from_secs(5);

/// Pause after a panic, which the panic hook logs.
const PAUSE: Duration = Duration::from_millis(100);

/// Shared by the questions and the thread that polls.
#[derive(Default)]
pub struct CensusService {
    state: Mutex<State>,
    /// Notified of a question, or of the end.
    asked: Condvar,
    /// Notified of the end of a poll, or of all polls.
    over: Condvar,
}

#[derive(Default)]
struct State {
    /// When the last question was read.
    asked: Option<Nanos>,
    /// Last completed poll.
    last: Option<Poll>,
    /// Since when a question need not wait for another poll after a failed one.
    fail_fast_since: Option<Nanos>,
    /// Whether the thread is polling.
    is_open: bool,
    /// Whether the thread is to end.
    is_stopped: bool,
}

#[derive(Clone, Copy)]
struct Poll {
    begun: Nanos,
    ended: Nanos,
    result: Result<u64, Unavailable>,
}

impl State {
    /// Returns whether a question was read after the last poll began.
    fn is_asked(&self) -> bool {
        let begun = self.last.map(|last| last.begun);
        self.asked.is_some() && self.asked > begun
    }
}

impl CensusService {
    /// Starts to poll. `clients` is this server's own number of clients.
    pub fn start(
        self: &Arc<Self>,
        settings: Arc<Settings>,
        names: Arc<DnsCache>,
        member: Member,
        clients: Arc<AtomicUsize>,
        stats: Arc<Stats>,
        tombstones: Arc<Tombstones>,
    ) -> Result<(), Error> {
        let rounds = Poller {
            service: self.clone(),
            etcd: Etcd::new(EtcdTransport::new(settings.clone(), names, PATIENCE)),
            settings,
            member,
            clients,
            stats,
            tombstones,
            peers: Peers::default(),
            silence: Incident::new("WHO is unavailable: a server of the cluster does not answer"),
            silent: HashSet::new(),
        };
        self.lock().is_open = true;
        let spawned = thread::spawn_with("census", STACK_SIZE, move || rounds.run());
        self.lock().is_open = spawned.is_ok();
        spawned.map(|_| ())
    }

    /// From now on, no question waits for another poll after a failed one: the clients are about to
    /// be released in a handover.
    pub fn fail_fast(&self) {
        self.lock().fail_fast_since = Some(Nanos::now());
    }

    /// Stops polling. Questions that wait are answered at once.
    pub fn stop(&self) {
        self.lock().is_stopped = true;
        self.asked.notify_all();
    }

    /// Returns the number of clients of all servers, for a question that was read when it was
    /// `asked`.
    pub fn clients(&self, asked: Nanos) -> Result<u64, Unavailable> {
        let mut state = self.lock();
        loop {
            let last = state.last;
            let since = state
                .fail_fast_since
                .map_or(asked, |fail_fast_since| fail_fast_since.min(asked));
            match last {
                Some(last) if last.begun >= asked => return last.result,
                // A failure that ended after the question was read is a valid answer to it: servers
                // that can't be reached now were not asked too early, and an error is not a wrong
                // number.
                Some(last) if last.ended >= since && last.result.is_err() => return last.result,
                _ => {}
            }
            let waited = Duration::from_nanos(asked.until(Nanos::now()));
            let left = LONGEST.saturating_sub(waited);
            if !state.is_open || left.is_zero() {
                let failed = last.and_then(|last| last.result.err());
                return Err(failed.unwrap_or(Unavailable::Registry));
            }
            if state.asked < Some(asked) {
                state.asked = Some(asked);
                self.asked.notify_all();
            }
            let waited = self.over.wait_timeout(state, left);
            state = waited.unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    /// Waits until a poll is due. Returns whether a question asks for it; `None` if the thread is
    /// to end.
    fn wait(&self) -> Option<bool> {
        let mut state = self.lock();
        let idle = Instant::now() + IDLE;
        loop {
            let left = idle.saturating_duration_since(Instant::now());
            match () {
                () if state.is_stopped => return None,
                () if state.is_asked() => return Some(true),
                () if left.is_zero() => return Some(false),
                () => {}
            }
            let waited = self.asked.wait_timeout(state, left);
            state = waited.unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    fn tell(&self, begun: Nanos, result: Result<u64, Unavailable>) {
        let ended = Nanos::now();
        self.lock().last = Some(Poll {
            begun,
            ended,
            result,
        });
        self.over.notify_all();
    }

    fn close(&self) {
        self.lock().is_open = false;
        self.over.notify_all();
    }

    /// Locks the state. No code panics while it holds this lock.
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The thread that polls the cluster.
struct Poller {
    service: Arc<CensusService>,
    etcd: Etcd,
    settings: Arc<Settings>,
    member: Member,
    clients: Arc<AtomicUsize>,
    stats: Arc<Stats>,
    tombstones: Arc<Tombstones>,
    peers: Peers,
    silence: Incident,
    /// Servers that have not answered during the current incident.
    silent: HashSet<SocketAddr>,
}

impl Poller {
    fn run(mut self) {
        while catch_unwind(AssertUnwindSafe(|| self.serve())).is_err() {
            self.peers = Peers::default();
            std::thread::park_timeout(PAUSE);
        }
        self.silence.resolve(true);
        self.service.close();
    }

    fn serve(&mut self) {
        while let Some(is_asked) = self.service.wait() {
            let begun = Nanos::now();
            let result = self.round();
            if !self.silence.resolve(false) {
                self.silent.clear();
            }
            if is_asked {
                self.stats.census(result.is_ok());
            }
            self.service.tell(begun, result);
        }
    }

    fn round(&mut self) -> Result<u64, Unavailable> {
        let deadline = Instant::now() + DEADLINE;
        let (etcd, name, member) = (&mut self.etcd, &self.settings.name, self.member);
        let tombstones = &self.tombstones;
        let mut missing = Vec::new();
        let mut look = || {
            let (others, tombstones) = others(etcd, name, member, tombstones, deadline)?;
            missing = tombstones;
            Ok(others)
        };
        let others = look()?;
        match self.peers.ask(&others, deadline, &mut look) {
            ParsedArgs::All(servers, clients) => {
                self.look_for(&missing, deadline)?;
                let here = self.clients.load(Ordering::SeqCst) as u64;
                // Checked after the count is read: after the withdrawal the count is no longer
                // known here.
                if self.stats.is_withdrawn() {
                    return Err(Unavailable::Outside);
                }
                let clients = clients.saturating_add(here);
                self.stats.heard(servers + 1, clients);
                Ok(clients)
            }
            ParsedArgs::Some {
                answered,
                members,
                silences,
            } => {
                for (index, silence) in silences.iter().enumerate() {
                    let begins = index == 0 && self.silence.record(silence);
                    if self.silent.insert(silence.address) && !begins {
                        warn!(reason:% = silence; "another server of the cluster does not answer");
                    }
                }
                Err(Unavailable::Silent {
                    answered: answered + 1,
                    members: members + 1,
                })
            }
            ParsedArgs::None(unavailable) => Err(unavailable),
        }
    }

    /// Returns an error if a server that has disappeared from the membership is alive: the
    /// membership lacks it, and the sum lacks its clients.
    fn look_for(&mut self, missing: &[Entry], deadline: Instant) -> Result<(), Unavailable> {
        if missing.is_empty() {
            return Ok(());
        }
        let alive = self.peers.alive(missing, deadline);
        for entry in missing {
            if !alive.contains(&entry.member) {
                self.tombstones.forget(entry.member);
            }
        }
        match alive[..] {
            [] => Ok(()),
            _ => Err(Unavailable::Unstable),
        }
    }
}

/// Returns all other servers, and those that have recently disappeared. Fails unless etcd answers
/// and lists this server.
fn others(
    etcd: &mut Etcd,
    name: &str,
    member: Member,
    tombstones: &Tombstones,
    by: Instant,
) -> Result<(Vec<Entry>, Vec<Entry>), Unavailable> {
    let membership = Membership::read(etcd, name, by).map_err(|trouble| {
        // The registration logs this if it lasts.
        debug!(reason:% = trouble; "no census: the roster can't be read");
        Unavailable::Registry
    })?;
    let missing = tombstones.compare(&membership);
    if membership.find(member).is_none() {
        return Err(Unavailable::Outside);
    }
    if !membership.is_whole() {
        return Err(Unavailable::Unstable);
    }
    let others = membership.entries.into_iter();
    let others = others.filter(|entry| entry.member != member);
    Ok((others.collect(), missing))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Creates a service without a thread: the test completes the polls itself.
    fn open() -> Arc<CensusService> {
        let service = Arc::new(CensusService::default());
        service.lock().is_open = true;
        service
    }

    #[test]
    fn only_a_round_that_begins_after_the_question_answers_it_with_a_number() {
        let (service, before) = (open(), Nanos::now());
        let asked = Nanos::now();
        service.tell(before, Ok(1));
        let waiting = service.clone();
        let answer = std::thread::spawn(move || waiting.clients(asked));
        assert_eq!(service.wait(), Some(true));
        service.tell(before, Ok(2));
        service.tell(Nanos::now(), Ok(3));
        assert_eq!(answer.join().unwrap(), Ok(3));
        assert_eq!(service.clients(asked), Ok(3), "for all who asked by then");
    }

    #[test]
    fn a_round_that_fails_answers_all_who_wait() {
        let (service, before) = (open(), Nanos::now());
        let asked = Nanos::now();
        service.tell(before, Err(Unavailable::Registry));
        assert_eq!(service.clients(asked), Err(Unavailable::Registry));
    }

    #[test]
    fn who_hurries_waits_in_vain_once() {
        let service = open();
        service.tell(Nanos::now(), Err(Unavailable::Registry));
        service.fail_fast();
        let asked = Nanos::now();
        let waiting = service.clone();
        let answer = std::thread::spawn(move || waiting.clients(asked));
        assert_eq!(service.wait(), Some(true), "that was before");
        service.tell(Nanos::now(), Err(Unavailable::Unstable));
        assert_eq!(answer.join().unwrap(), Err(Unavailable::Unstable));
        let later = Nanos::now();
        assert_eq!(service.clients(later), Err(Unavailable::Unstable));
        assert!(later.until(Nanos::now()) < 100_000_000);
    }

    #[test]
    fn nobody_waits_for_long_and_nobody_for_one_who_has_gone() {
        let (service, asked) = (open(), Nanos::now());
        assert_eq!(service.clients(asked), Err(Unavailable::Registry));
        let waited = Duration::from_nanos(asked.until(Nanos::now()));
        assert!(waited >= LONGEST, "{waited:?}");
        let now = Instant::now();
        assert_eq!(service.clients(asked), Err(Unavailable::Registry));
        assert!(now.elapsed() < LONGEST, "counted from the question");
        let waiting = service.clone();
        let answer = std::thread::spawn(move || waiting.clients(Nanos::now()));
        assert_eq!(service.wait(), Some(true));
        service.close();
        assert_eq!(answer.join().unwrap(), Err(Unavailable::Registry));
        service.stop();
        assert_eq!(service.wait(), None);
    }
}
