//! Which answers to WHO are right, given what the clients know and what was done to the servers.
//!
//! An answer is a sum: what the server that answers had between question and answer, and what each other server had at some
//! moment. Which moments are allowed is what `docs/cluster.md` promises; here it is said exactly. A heartbeat is 500 ms.
//!
//! **Available.** While nothing is done to the server that answers, to another and to Redis, and two heartbeats after that,
//! what that other had at most [`Judge::bound`] before the question. Where a machine stood still (see `stalls`), that time comes
//! on top. Besides:
//!
//! - Who is silent (cut off, stopped, on a bad line) or killed keeps what it had last for 5 heartbeats. Who can't hear believes
//!   in what it heard last for 4. While Redis is away its clock stands still, and that time comes on top.
//! - Who was silent or could not hear for 2½ heartbeats (it says something every one, is removed after 4, and one may get lost) may
//!   also be left out, or leave out others; who was only stopped, so that nothing got lost, after almost 3. Shorter troubles leave
//!   out nobody, and a Redis that comes back empty is no exception, but for a server that has just been started and knows
//!   nothing from before.
//! - A new program that takes over and a clean restart are no reason for anything.
//!
//! **Consistent.** What each had at some moment between question and answer. Left out is at most who could not keep its lease:
//! who was silent or ended for that long, or was started while etcd was away. `ERR UNAVAILABLE` is allowed while anything is
//! done to anybody, and for a lease and two heartbeats after that.

use std::sync::Arc;
use std::time::Duration;

use crate::clients::{Answer, Said};
use crate::stalls::Stalls;
use crate::truth::{Moment, Truth};

const HEARTBEAT: Duration = Duration::from_millis(500);

/// The time to live of a lease.
const LEASE: Duration = Duration::from_secs(2);

/// What is looked at to say how old an answer is.
const AGES: [u64; 16] = [
    0, 1, 2, 5, 10, 20, 50, 100, 150, 250, 500, 1000, 2000, 3000, 5000, 10000,
];

/// What something that is done means to the cluster.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Harm {
    /// Nobody may notice what is done to this server.
    Nothing(usize),
    /// This server neither hears nor is heard, or not well.
    Silent(usize),
    /// This one does not even run.
    Stopped(usize),
    /// This one was killed, and is started again at the end.
    Killed(usize),
    /// This one ends and is started again.
    Restarted(usize),
    /// The place where the servers meet is away, or not in order.
    Registry,
}

impl Harm {
    fn silences(self, server: usize) -> bool {
        self == Harm::Silent(server) || self == Harm::Stopped(server)
    }

    fn starts(self, server: usize) -> bool {
        self == Harm::Killed(server) || self == Harm::Restarted(server)
    }
}

/// Something that was done.
#[derive(Clone, Debug)]
pub struct Fault {
    /// In words, for the account.
    pub what: String,
    pub harm: Harm,
    pub from: Moment,
    /// Nothing as long as it goes on.
    pub to: Option<Moment>,
}

impl Fault {
    fn overlaps(&self, from: Moment, to: Moment) -> bool {
        self.from <= to && self.to.is_none_or(|end| end >= from)
    }

    fn within(&self, from: Moment, to: Moment) -> Duration {
        self.to
            .map_or(to, |end| end.min(to))
            .saturating_sub(self.from.max(from))
    }
}

/// What the cluster promises.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Promise {
    Available,
    Consistent,
}

/// Knows what is true, and what was done.
pub struct Judge {
    pub promise: Promise,
    /// How old what others had may be when nothing is done to anybody.
    pub bound: Duration,
    pub truths: Vec<Arc<Truth>>,
    pub faults: Vec<Fault>,
    pub stalls: Arc<Stalls>,
}

/// What is to be said of an answer.
pub struct Verdict {
    /// What is wrong with it.
    pub wrong: Option<String>,
    /// How old what it says of others is, at least; nothing if it was never true.
    pub age: Option<Duration>,
    /// Whether nothing has been done to anybody for long enough, and the machine ran.
    pub is_calm: bool,
}

impl Judge {
    /// What may go by until something that has changed is known: [`Judge::bound`], and the time in which the machine stood still.
    fn bound_at(&self, asked: Moment, answered: Moment) -> Duration {
        self.bound
            + self
                .stalls
                .between(asked.saturating_sub(self.bound * 2), answered)
    }

    fn settling(&self, asked: Moment, answered: Moment) -> Duration {
        HEARTBEAT * 2 + self.bound_at(asked, answered)
    }

    /// Whether something that is meant was done between these moments.
    pub fn any(&self, from: Moment, to: Moment, meant: impl Fn(Harm) -> bool) -> bool {
        self.faults
            .iter()
            .any(|fault| meant(fault.harm) && fault.overlaps(from, to))
    }

    /// What can be said of `answer` when all that happened until then is known.
    pub fn hear(&self, answer: &Answer) -> Verdict {
        let Answer {
            asked,
            answered,
            said,
            ..
        } = *answer;
        let before = match self.promise {
            Promise::Available => self.settling(asked, answered),
            Promise::Consistent => self.settling(asked, answered) + LEASE,
        };
        let is_calm = !self.any(asked.saturating_sub(before), answered, |harm| {
            !matches!(harm, Harm::Nothing(_))
        });
        let ran = self
            .stalls
            .between(asked.saturating_sub(self.bound), answered)
            .is_zero();
        let (wrong, age) = match said {
            Said::Unavailable if self.promise == Promise::Available => {
                (Some("unavailable".to_string()), None)
            }
            Said::Unavailable => (
                is_calm.then(|| "unavailable without a reason".to_string()),
                None,
            ),
            Said::Clients(clients) => {
                let (least, most) = self.allowed(answer);
                let is_right = (least..=most).contains(&clients);
                let wrong = || format!("{clients} clients, and {least} to {most} would be right");
                ((!is_right).then(wrong), self.age(answer, clients))
            }
        };
        let wrong = wrong.map(|what| {
            let took = (answered - asked).as_millis();
            format!("server {} says, after {took} ms: {what}", answer.server + 1)
        });
        Verdict {
            wrong,
            age,
            is_calm: is_calm && ran,
        }
    }

    /// The least and the most that may be said.
    fn allowed(&self, answer: &Answer) -> (i64, i64) {
        let Answer {
            server,
            asked,
            answered,
            ..
        } = *answer;
        let mut sum = self.truths[server].between(asked, answered);
        for (other, truth) in self
            .truths
            .iter()
            .enumerate()
            .filter(|(other, _)| *other != server)
        {
            let (since, may_lack) = match self.promise {
                Promise::Available => self.available(server, other, asked, answered),
                Promise::Consistent => (asked, self.may_lack(other, asked, answered)),
            };
            let (least, most) = truth.between(since, answered);
            sum.0 += if may_lack { 0 } else { least };
            sum.1 += most;
        }
        sum
    }

    /// Since when what `other` had counts for `server`, and whether it may be left out.
    fn available(
        &self,
        server: usize,
        other: usize,
        asked: Moment,
        answered: Moment,
    ) -> (Moment, bool) {
        let recently = asked.saturating_sub(self.settling(asked, answered));
        let before = recently.saturating_sub(HEARTBEAT * 4);
        let is_away = |harm| harm == Harm::Registry;
        let is_heard_badly = |harm: Harm| harm.silences(other) || harm == Harm::Killed(other);
        let hears_badly = self.any(recently, answered, |harm| {
            harm.silences(server) || is_away(harm)
        });
        let since = if hears_badly { before } else { recently };
        let mut age = self.bound_at(asked, answered);
        if hears_badly {
            age += HEARTBEAT * 4;
        }
        if self.any(since, answered, |harm| {
            is_heard_badly(harm) || is_away(harm)
        }) {
            age += HEARTBEAT * 5;
        }
        let mut oldest = asked.saturating_sub(age);
        let mut counted = answered;
        // The latest first: each that is reached makes the time longer, and may have others be reached.
        for fault in self.faults.iter().rev().filter(|fault| is_away(fault.harm)) {
            let away = fault.within(oldest, counted);
            counted = counted.min(fault.from);
            oldest = oldest.saturating_sub(away);
        }
        let matters = |harm: Harm| harm.silences(server) || is_heard_badly(harm) || is_away(harm);
        let troubles = self.faults.iter().filter(|fault| matters(fault.harm));
        let trouble: Duration = troubles.map(|fault| fault.within(before, answered)).sum();
        let loses = |harm: Harm| matters(harm) && !matches!(harm, Harm::Stopped(_));
        let longest = match self.any(before, answered, loses) {
            true => HEARTBEAT * 5 / 2,
            false => HEARTBEAT * 14 / 5,
        };
        let knows_nothing = self.any(before, answered, |harm| harm.starts(server))
            && self.any(recently, answered, is_away);
        (oldest, trouble >= longest || knows_nothing)
    }

    /// Whether `other` may not have had a lease: what was done to it of late went on for so long, or it was started meanwhile and
    /// could not ask for one.
    fn may_lack(&self, other: usize, asked: Moment, answered: Moment) -> bool {
        let before = asked.saturating_sub(LEASE + self.settling(asked, answered));
        let matters = |harm: Harm| harm.silences(other) || harm.starts(other);
        let late = |fault: &&Fault| matters(fault.harm) && fault.overlaps(before, answered);
        let troubles = self.faults.iter().filter(late);
        let trouble: Duration = troubles
            .map(|fault| fault.within(Moment::ZERO, answered))
            .sum();
        trouble >= LEASE - HEARTBEAT
            || self.any(before, answered, |harm| harm.starts(other))
                && self.any(before, answered, |harm| harm == Harm::Registry)
    }

    /// How far back one must go for what the answer says of others.
    fn age(&self, answer: &Answer, clients: i64) -> Option<Duration> {
        let Answer {
            server,
            asked,
            answered,
            ..
        } = *answer;
        let own = self.truths[server].between(asked, answered);
        let fits = |age: &Duration| {
            let others = self
                .truths
                .iter()
                .enumerate()
                .filter(|(other, _)| *other != server);
            let (least, most) = others.fold(own, |(least, most), (_, truth)| {
                let (lowest, highest) = truth.between(asked.saturating_sub(*age), answered);
                (least + lowest, most + highest)
            });
            (least..=most).contains(&clients)
        };
        AGES.iter()
            .map(|age| Duration::from_millis(*age))
            .find(fits)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::truth::Clock;

    /// Two servers, of which the second has a client that came and went.
    fn judge(promise: Promise, faults: &[(Harm, u64, u64)]) -> Judge {
        let truths = [(); 2].map(|()| Truth::at(Clock::new(), &[]));
        let steps = [(1000, 1, 1), (20_000, 0, 0)];
        let steps = steps.map(|(at, least, most)| (Duration::from_millis(at), least, most));
        let second = Truth::at(Clock::new(), &steps);
        let faults = faults.iter().map(|(harm, from, to)| Fault {
            what: String::new(),
            harm: *harm,
            from: Duration::from_millis(*from),
            to: Some(Duration::from_millis(*to)),
        });
        Judge {
            promise,
            bound: Duration::from_millis(100),
            truths: vec![truths[0].clone(), second],
            faults: faults.collect(),
            stalls: Arc::default(),
        }
    }

    fn is_right(judge: &Judge, at: u64, said: Said) -> bool {
        let (asked, answered) = (Duration::from_millis(at), Duration::from_millis(at + 1));
        let answer = Answer {
            server: 0,
            asked,
            answered,
            said,
        };
        judge.hear(&answer).wrong.is_none()
    }

    #[test]
    fn in_calm_times_only_what_was_true_a_moment_ago_is_right() {
        let judge = judge(Promise::Available, &[]);
        assert!(is_right(&judge, 990, Said::Clients(0)));
        assert!(is_right(&judge, 1050, Said::Clients(0)));
        assert!(!is_right(&judge, 1150, Said::Clients(0)));
        assert!(!is_right(&judge, 990, Said::Clients(1)));
        assert!(is_right(&judge, 20_050, Said::Clients(1)));
        assert!(!is_right(&judge, 20_150, Said::Clients(1)));
        assert!(!is_right(&judge, 3000, Said::Clients(2)));
        assert!(!is_right(&judge, 3000, Said::Unavailable));
    }

    #[test]
    fn a_server_that_is_cut_off_may_be_left_out_only_after_some_time() {
        let judge = judge(Promise::Available, &[(Harm::Silent(1), 8000, 11_000)]);
        assert!(!is_right(&judge, 9000, Said::Clients(0)));
        assert!(is_right(&judge, 9300, Said::Clients(0)));
        assert!(is_right(&judge, 11_500, Said::Clients(0)));
        assert!(!is_right(&judge, 15_000, Said::Clients(0)));
    }

    #[test]
    fn a_short_silence_leaves_out_nobody() {
        let judge = judge(Promise::Available, &[(Harm::Silent(1), 8000, 9000)]);
        for at in [8500, 9500, 10_500, 11_500] {
            assert!(!is_right(&judge, at, Said::Clients(0)), "{at}");
            assert!(is_right(&judge, at, Said::Clients(1)), "{at}");
        }
    }

    #[test]
    fn who_was_only_stopped_is_left_out_later_than_who_may_have_lost_something() {
        for (harm, may_lack) in [(Harm::Stopped(1), false), (Harm::Silent(1), true)] {
            let judge = judge(Promise::Available, &[(harm, 8000, 9350)]);
            assert_eq!(is_right(&judge, 9400, Said::Clients(0)), may_lack);
        }
    }

    #[test]
    fn a_killed_server_is_gone_in_time() {
        let judge = judge(Promise::Available, &[(Harm::Killed(1), 20_000, 30_000)]);
        assert!(is_right(&judge, 22_500, Said::Clients(1)));
        assert!(!is_right(&judge, 22_700, Said::Clients(1)));
    }

    #[test]
    fn nothing_old_is_consistent() {
        let judge = judge(Promise::Consistent, &[(Harm::Registry, 1500, 1600)]);
        assert!(!is_right(&judge, 1050, Said::Clients(0)));
        assert!(is_right(&judge, 1550, Said::Unavailable));
        assert!(is_right(&judge, 4000, Said::Unavailable));
        assert!(!is_right(&judge, 5500, Said::Unavailable));
        assert!(!is_right(&judge, 1550, Said::Clients(0)));
    }

    #[test]
    fn who_could_not_keep_its_lease_may_be_left_out_and_nobody_else() {
        let judge = judge(
            Promise::Consistent,
            &[
                (Harm::Silent(1), 2000, 6000),
                (Harm::Silent(1), 15_000, 15_200),
            ],
        );
        assert!(!is_right(&judge, 3000, Said::Clients(0)));
        for at in [4000, 6500] {
            assert!(is_right(&judge, at, Said::Clients(0)), "{at}");
            assert!(is_right(&judge, at, Said::Clients(1)), "{at}");
        }
        for at in [11_000, 15_300] {
            assert!(!is_right(&judge, at, Said::Clients(0)), "{at}");
        }
    }
}
