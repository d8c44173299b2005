//! Census in the consistent mode: etcd holds the membership, and a census asks each server of it.
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
mod http_response;
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
use std::sync::{Arc, Condvar, Mutex};
use std::time::{Duration, Instant};

use log::{debug, warn};

use self::membership::{Entry, Membership};
pub use self::peer_request::answer;
use self::peers::Peers;
pub use self::registration::Registration;
use self::tombstones::Tombstones;
use self::transport::Etcd;
use super::{Node, STACK_SIZE, Unavailable};
use crate::error::Error;
use crate::log_throttle::Incident;
use crate::thread;
use shared::clock::Nanos;
use shared::dial::DnsCache;
use shared::sync::ignore_poison;

/// Longest duration of a poll.
const POLL_TIMEOUT: Duration = Duration::from_millis(750);

/// Longest wait of a question, counted from when it was read, however many were read with it. A
/// waiting worker does not report that it is healthy, and counts as stuck after a second.
const ANSWER_TIMEOUT: Duration = Duration::from_millis(900);

/// Time that one etcd member may take to answer before the next is asked.
const HOST_TIMEOUT: Duration = Duration::from_millis(250);

/// Time that a server that has disappeared from the membership has to answer whether it is alive:
/// if less of the poll is left, its silence says nothing.
const MIN_CHECK_TIME: Duration = Duration::from_millis(500);

/// Interval of polls without a question, for the metrics and the log.
const IDLE_POLL_INTERVAL: Duration = Duration::from_secs(5);

/// Pause after a panic, which the panic hook logs.
const PANIC_PAUSE: Duration = Duration::from_millis(100);

/// Shared by the questions and the thread that polls.
#[derive(Default)]
pub struct CensusService {
    state: Mutex<State>,
    /// Notified of a question.
    asked: Condvar,
    /// Notified of the end of a poll.
    completed: Condvar,
}

#[derive(Default)]
struct State {
    /// When the last question was read.
    asked: Option<Nanos>,
    /// Last completed poll.
    last: Option<Poll>,
    /// Since when a question need not wait for another poll after a failed one.
    fail_fast_since: Option<Nanos>,
}

#[derive(Clone, Copy)]
struct Poll {
    start: Nanos,
    end: Nanos,
    result: Result<u64, Unavailable>,
}

impl State {
    /// Returns the answer to a question that was read when it was `asked`, if there is one.
    fn answer(&self, asked: Nanos) -> Option<Result<u64, Unavailable>> {
        let last = self.last?;
        // A failure that ended after the question was read is a valid answer to it: servers that
        // can't be reached now were not asked too early, and an error is not a wrong number.
        let failed_since = self.fail_fast_since.map_or(asked, |since| since.min(asked));
        let is_valid = last.start >= asked || last.result.is_err() && last.end >= failed_since;
        is_valid.then_some(last.result)
    }

    /// Returns whether a question was read after the last poll began.
    fn is_asked(&self) -> bool {
        self.asked.is_some() && self.asked > self.last.map(|last| last.start)
    }
}

impl CensusService {
    /// Starts to poll.
    fn start(
        self: &Arc<Self>,
        node: Arc<Node>,
        dns: Arc<DnsCache>,
        tombstones: Arc<Tombstones>,
    ) -> Result<(), Error> {
        let poller = Poller {
            service: self.clone(),
            reader: MembershipReader {
                etcd: Etcd::new(node.settings.clone(), dns, HOST_TIMEOUT),
                node,
                tombstones,
                removed: Vec::new(),
            },
            peers: Peers::default(),
            incident: Incident::new("WHO is unavailable: a server of the cluster does not answer"),
            silent: HashSet::new(),
        };
        thread::spawn_with("census", STACK_SIZE, move || poller.run()).map(|_| ())
    }

    /// From now on, no question waits for another poll after a failed one: the clients are about to
    /// be released in a handover.
    pub fn fail_fast(&self) {
        ignore_poison(self.state.lock()).fail_fast_since = Some(Nanos::now());
    }

    /// Returns the number of clients of all servers, for a question that was read when it was
    /// `asked`.
    pub fn clients(&self, asked: Nanos) -> Result<u64, Unavailable> {
        let mut state = ignore_poison(self.state.lock());
        loop {
            if let Some(answer) = state.answer(asked) {
                return answer;
            }
            let waited = Duration::from_nanos(asked.until(Nanos::now()));
            let left = ANSWER_TIMEOUT.saturating_sub(waited);
            if left.is_zero() {
                let failed = state.last.and_then(|last| last.result.err());
                return Err(failed.unwrap_or(Unavailable::Membership));
            }
            if state.asked < Some(asked) {
                state.asked = Some(asked);
                self.asked.notify_all();
            }
            state = ignore_poison(self.completed.wait_timeout(state, left)).0;
        }
    }

    /// Waits until a poll is due. Returns whether a question asks for it.
    fn wait(&self) -> bool {
        let state = ignore_poison(self.state.lock());
        let is_idle = |state: &mut State| !state.is_asked();
        let waited = self
            .asked
            .wait_timeout_while(state, IDLE_POLL_INTERVAL, is_idle);
        ignore_poison(waited).0.is_asked()
    }

    fn complete(&self, start: Nanos, result: Result<u64, Unavailable>) {
        let end = Nanos::now();
        ignore_poison(self.state.lock()).last = Some(Poll { start, end, result });
        self.completed.notify_all();
    }
}

/// The thread that polls the cluster.
struct Poller {
    service: Arc<CensusService>,
    reader: MembershipReader,
    peers: Peers,
    incident: Incident,
    /// Servers that have not answered during the current incident.
    silent: HashSet<SocketAddr>,
}

impl Poller {
    fn run(mut self) {
        loop {
            while catch_unwind(AssertUnwindSafe(|| self.serve())).is_ok() {}
            self.peers = Peers::default();
            std::thread::park_timeout(PANIC_PAUSE);
        }
    }

    /// Waits until a poll is due, polls, and answers the questions.
    fn serve(&mut self) {
        let is_asked = self.service.wait();
        let start = Nanos::now();
        let result = self.poll();
        if !self.incident.resolve(false) {
            self.silent.clear();
        }
        if is_asked {
            let outcome = usize::from(result.is_err());
            let stats = &self.reader.node.stats;
            stats.update(|stats| stats.censuses[outcome] += 1);
        }
        self.service.complete(start, result);
    }

    fn poll(&mut self) -> Result<u64, Unavailable> {
        let deadline = Instant::now() + POLL_TIMEOUT;
        let reader = &mut self.reader;
        reader.etcd.set_deadline(deadline);
        let others = reader.others()?;
        let answers = self
            .peers
            .poll(&others, deadline, &mut || reader.others())?;
        if !answers.errors.is_empty() {
            for (index, (address, error)) in answers.errors.iter().enumerate() {
                let begins = index == 0 && self.incident.record(error);
                if self.silent.insert(*address) && !begins {
                    warn!(reason:% = error; "another server of the cluster does not answer");
                }
            }
            let answered = answers.servers + 1;
            // There are at most `MAX_SERVERS`.
            let members = answered + answers.errors.len() as u16;
            return Err(Unavailable::Silent { answered, members });
        }
        self.check_removed(deadline)?;
        let node = &self.reader.node;
        let own = node.clients.load(Ordering::SeqCst) as u64;
        // Checked after the count is read: after the deregistration the count is no longer known
        // here.
        if node.stats.is_deregistered() {
            return Err(Unavailable::Outside);
        }
        let clients = answers.clients.saturating_add(own);
        let servers = u64::from(answers.servers) + 1;
        node.stats.set_total(servers, clients);
        Ok(clients)
    }

    /// Returns an error if a server that has disappeared from the membership is alive, or may be:
    /// the membership lacks it, and the sum lacks its clients.
    fn check_removed(&mut self, deadline: Instant) -> Result<(), Unavailable> {
        let removed = &self.reader.removed;
        if removed.is_empty() {
            return Ok(());
        }
        let is_short = Instant::now() + MIN_CHECK_TIME > deadline;
        let (mut kept, silent) = self.peers.alive(removed, deadline);
        if is_short {
            kept.extend(silent);
        }
        let gone = removed.iter().map(|entry| entry.member);
        for member in gone.filter(|member| !kept.contains(member)) {
            self.reader.tombstones.remove(member);
        }
        match kept[..] {
            [] => Ok(()),
            _ => Err(Unavailable::Unstable),
        }
    }
}

/// Reads the membership for the polls.
struct MembershipReader {
    node: Arc<Node>,
    etcd: Etcd,
    tombstones: Arc<Tombstones>,
    /// Servers that have recently disappeared, as of the last reading.
    removed: Vec<Entry>,
}

impl MembershipReader {
    /// Reads all other servers from etcd. Fails unless etcd answers and lists this server.
    fn others(&mut self) -> Result<Vec<Entry>, Unavailable> {
        let node = &self.node;
        let membership = Membership::read(&mut self.etcd, &node.settings.name);
        let membership = membership.map_err(|error| {
            // The registration logs this if it lasts.
            debug!(reason:% = error; "no census: the membership can't be read");
            Unavailable::Membership
        })?;
        self.removed = self.tombstones.update(&membership);
        if membership.find(node.member).is_none() {
            return Err(Unavailable::Outside);
        }
        if !membership.is_complete() {
            return Err(Unavailable::Unstable);
        }
        let mut others = membership.entries;
        others.retain(|entry| entry.member != node.member);
        Ok(others)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Creates a service without a thread: the test completes the polls itself.
    fn open() -> Arc<CensusService> {
        Arc::default()
    }

    #[test]
    fn only_a_poll_that_begins_after_the_question_answers_it_with_a_number() {
        let (service, before) = (open(), Nanos::now());
        let asked = Nanos::now();
        service.complete(before, Ok(1));
        let waiting = service.clone();
        let answer = std::thread::spawn(move || waiting.clients(asked));
        assert!(service.wait());
        service.complete(before, Ok(2));
        service.complete(Nanos::now(), Ok(3));
        assert_eq!(answer.join().unwrap(), Ok(3));
        assert_eq!(service.clients(asked), Ok(3), "for all who asked by then");
    }

    #[test]
    fn a_failed_poll_answers_all_waiting_questions() {
        let (service, before) = (open(), Nanos::now());
        let asked = Nanos::now();
        service.complete(before, Err(Unavailable::Membership));
        assert_eq!(service.clients(asked), Err(Unavailable::Membership));
    }

    #[test]
    fn fail_fast_waits_for_one_failed_poll() {
        let service = open();
        service.complete(Nanos::now(), Err(Unavailable::Membership));
        service.fail_fast();
        let asked = Nanos::now();
        let waiting = service.clone();
        let answer = std::thread::spawn(move || waiting.clients(asked));
        assert!(service.wait(), "that was before");
        service.complete(Nanos::now(), Err(Unavailable::Unstable));
        assert_eq!(answer.join().unwrap(), Err(Unavailable::Unstable));
        let later = Nanos::now();
        assert_eq!(service.clients(later), Err(Unavailable::Unstable));
        assert!(later.until(Nanos::now()) < 100_000_000);
    }

    #[test]
    fn a_wait_is_bounded() {
        let (service, asked) = (open(), Nanos::now());
        assert_eq!(service.clients(asked), Err(Unavailable::Membership));
        let waited = Duration::from_nanos(asked.until(Nanos::now()));
        assert!(waited >= ANSWER_TIMEOUT, "{waited:?}");
        let now = Instant::now();
        assert_eq!(service.clients(asked), Err(Unavailable::Membership));
        assert!(now.elapsed() < ANSWER_TIMEOUT, "counted from the question");
    }
}
