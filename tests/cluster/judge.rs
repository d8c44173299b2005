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

use crate::clients::Answer;
use crate::stalls::Stalls;
use crate::truth::{Moment, Truth};

const HEARTBEAT: Duration = Duration::from_millis(500);

/// The time to live of a lease.
const LEASE: Duration = Duration::from_secs(2);

/// What is looked at to say how old an answer is, in milliseconds.
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
    /// What the servers meet at is away, or not in order.
    Backend,
}

impl Harm {
    fn silences(self, server: usize) -> bool {
        self == Harm::Silent(server) || self == Harm::Stopped(server)
    }

    fn starts(self, server: usize) -> bool {
        self == Harm::Killed(server) || self == Harm::Restarted(server)
    }

    /// Whether this server does not run for a time.
    pub fn halts(self, server: usize) -> bool {
        self == Harm::Stopped(server) || self.starts(server)
    }

    fn is_some(self) -> bool {
        !matches!(self, Harm::Nothing(_))
    }
}

/// Something that was done.
#[derive(Clone, Debug)]
pub struct Fault {
    /// In words, for the report.
    pub what: String,
    pub harm: Harm,
    pub from: Moment,
    /// Nothing as long as it goes on.
    pub to: Option<Moment>,
}

impl Fault {
    /// Whether it was being done between these moments.
    pub fn overlaps(&self, from: Moment, to: Moment) -> bool {
        self.from <= to && self.to.is_none_or(|end| end >= from)
    }

    fn within(&self, from: Moment, to: Moment) -> Duration {
        let end = self.to.map_or(to, |end| end.min(to));
        end.saturating_sub(self.from.max(from))
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
    fn bound_at(&self, answer: &Answer) -> Duration {
        let since = answer.asked.saturating_sub(self.bound * 2);
        self.bound + self.stalls.between(since, answer.answered)
    }

    fn settling(&self, answer: &Answer) -> Duration {
        HEARTBEAT * 2 + self.bound_at(answer)
    }

    /// Whether something that is meant was done between these moments.
    pub fn any(&self, from: Moment, to: Moment, meant: impl Fn(Harm) -> bool) -> bool {
        let mut faults = self.faults.iter();
        faults.any(|fault| meant(fault.harm) && fault.overlaps(from, to))
    }

    /// For how long something that is meant was done between these moments; one thing after the other.
    fn time(&self, from: Moment, to: Moment, meant: impl Fn(&Fault) -> bool) -> Duration {
        let faults = self.faults.iter().filter(|fault| meant(fault));
        faults.map(|fault| fault.within(from, to)).sum()
    }

    /// The servers that don't give this answer.
    fn others(&self, answer: &Answer) -> impl Iterator<Item = (usize, &Truth)> {
        let all = self.truths.iter().map(|truth| &**truth).enumerate();
        let server = answer.server;
        all.filter(move |(other, _)| *other != server)
    }

    /// What can be said of `answer` when all that happened until then is known.
    pub fn hear(&self, answer: &Answer) -> Verdict {
        let (asked, answered) = (answer.asked, answer.answered);
        let before = match self.promise {
            Promise::Available => self.settling(answer),
            Promise::Consistent => self.settling(answer) + LEASE,
        };
        let is_calm = !self.any(asked.saturating_sub(before), answered, Harm::is_some);
        let since = asked.saturating_sub(self.bound);
        let ran = self.stalls.between(since, answered).is_zero();
        let (wrong, age) = match answer.said {
            None if self.promise == Promise::Available => (Some("unavailable".to_string()), None),
            None => {
                let wrong = is_calm.then(|| "unavailable without a reason".to_string());
                (wrong, None)
            }
            Some(clients) => {
                let (least, most) = self.allowed(answer);
                let is_right = (least..=most).contains(&clients);
                let wrong = || format!("{clients} clients, and {least} to {most} would be right");
                ((!is_right).then(wrong), self.age(answer, clients))
            }
        };
        let (server, took) = (answer.server + 1, answered - asked);
        Verdict {
            wrong: wrong.map(|what| format!("server {server} says, after {took:?}: {what}")),
            age,
            is_calm: is_calm && ran,
        }
    }

    /// The least and the most that may be said.
    fn allowed(&self, answer: &Answer) -> (i64, i64) {
        let mut sum = self.truths[answer.server].between(answer.asked, answer.answered);
        for (other, truth) in self.others(answer) {
            let (since, may_lack) = match self.promise {
                Promise::Available => self.available(other, answer),
                Promise::Consistent => (answer.asked, self.may_lack(other, answer)),
            };
            let (least, most) = truth.between(since, answer.answered);
            sum.0 += if may_lack { 0 } else { least };
            sum.1 += most;
        }
        sum
    }

    /// Since when what `other` had counts for the server that answers, and whether it may be left out.
    fn available(&self, other: usize, answer: &Answer) -> (Moment, bool) {
        let (server, answered) = (answer.server, answer.answered);
        let recently = answer.asked.saturating_sub(self.settling(answer));
        let before = recently.saturating_sub(HEARTBEAT * 4);
        let is_away = |harm| harm == Harm::Backend;
        let is_heard_badly = |harm: Harm| harm.silences(other) || harm == Harm::Killed(other);
        let hears_badly = |harm: Harm| harm.silences(server) || is_away(harm);
        let (mut since, mut age) = (recently, self.bound_at(answer));
        if self.any(recently, answered, hears_badly) {
            since = before;
            age += HEARTBEAT * 4;
        }
        if self.any(since, answered, |harm| {
            is_heard_badly(harm) || is_away(harm)
        }) {
            age += HEARTBEAT * 5;
        }
        let mut oldest = answer.asked.saturating_sub(age);
        let mut counted = answered;
        // The latest first: each that is reached makes the time longer, and may have others be reached.
        for fault in self.faults.iter().rev().filter(|fault| is_away(fault.harm)) {
            let away = fault.within(oldest, counted);
            counted = counted.min(fault.from);
            oldest = oldest.saturating_sub(away);
        }
        let matters = |harm: Harm| harm.silences(server) || is_heard_badly(harm) || is_away(harm);
        let trouble = self.time(before, answered, |fault| matters(fault.harm));
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
    fn may_lack(&self, other: usize, answer: &Answer) -> bool {
        let answered = answer.answered;
        let before = answer.asked.saturating_sub(LEASE + self.settling(answer));
        let starts = |harm: Harm| harm.starts(other);
        let trouble = self.time(Moment::ZERO, answered, |fault| {
            let matters = fault.harm.silences(other) || starts(fault.harm);
            matters && fault.overlaps(before, answered)
        });
        let is_away = |harm| harm == Harm::Backend;
        let starts_in_vain =
            self.any(before, answered, starts) && self.any(before, answered, is_away);
        trouble >= LEASE - HEARTBEAT || starts_in_vain
    }

    /// How far back one must go for what the answer says of others.
    fn age(&self, answer: &Answer, clients: i64) -> Option<Duration> {
        let own = self.truths[answer.server].between(answer.asked, answer.answered);
        let fits = |age: &Duration| {
            let since = answer.asked.saturating_sub(*age);
            let (least, most) = self.others(answer).fold(own, |(least, most), (_, truth)| {
                let (lowest, highest) = truth.between(since, answer.answered);
                (least + lowest, most + highest)
            });
            (least..=most).contains(&clients)
        };
        AGES.map(Duration::from_millis).into_iter().find(fits)
    }
}

#[cfg(test)]
mod tests {
    use super::Promise::{Available, Consistent};
    use super::*;
    use crate::truth::Clock;

    /// In the place of a number: ERR UNAVAILABLE.
    const NONE: i64 = -1;

    /// The first of two servers answers. The second has a client from 1 s to 20 s.
    #[test]
    fn what_is_right_depends_on_what_was_true_and_what_was_done() {
        type Answers<'a> = &'a [(u64, i64)];
        type Row<'a> = (Promise, &'a [(Harm, u64, u64)], Answers<'a>, Answers<'a>);
        let lease = [
            (Harm::Silent(1), 2000, 6000),
            (Harm::Silent(1), 15_000, 15_200),
        ];
        let rows: [Row; 8] = [
            // In calm times only what was true a moment ago is right.
            (
                Available,
                &[],
                &[(990, 0), (1050, 0), (20_050, 1)],
                &[(1150, 0), (990, 1), (20_150, 1), (3000, 2), (3000, NONE)],
            ),
            // A server that is cut off may be left out only after some time,
            (
                Available,
                &[(Harm::Silent(1), 8000, 11_000)],
                &[(9300, 0), (11_500, 0)],
                &[(9000, 0), (15_000, 0)],
            ),
            // and not if that was short,
            (
                Available,
                &[(Harm::Silent(1), 8000, 9000)],
                &[(8500, 1), (9500, 1), (10_500, 1), (11_500, 1)],
                &[(8500, 0), (9500, 0), (10_500, 0), (11_500, 0)],
            ),
            // and one that was only stopped, later than one that may have lost something.
            (
                Available,
                &[(Harm::Silent(1), 8000, 9350)],
                &[(9400, 0)],
                &[],
            ),
            (
                Available,
                &[(Harm::Stopped(1), 8000, 9350)],
                &[],
                &[(9400, 0)],
            ),
            // A killed server is gone in time.
            (
                Available,
                &[(Harm::Killed(1), 20_000, 30_000)],
                &[(22_500, 1)],
                &[(22_700, 1)],
            ),
            // Nothing old is consistent.
            (
                Consistent,
                &[(Harm::Backend, 1500, 1600)],
                &[(1550, NONE), (4000, NONE)],
                &[(1050, 0), (5500, NONE), (1550, 0)],
            ),
            // A server that could not keep its lease may be left out, and no other.
            (
                Consistent,
                &lease,
                &[(4000, 0), (4000, 1), (6500, 0), (6500, 1)],
                &[(3000, 0), (11_000, 0), (15_300, 0)],
            ),
        ];
        let at = Duration::from_millis;
        for (promise, faults, right, wrong) in rows {
            let second = [(at(1000), 1, 1), (at(20_000), 0, 0)];
            let truths = [&[][..], &second].map(|steps| Truth::at(Clock::new(), steps));
            let faults = faults.iter().map(|(harm, from, to)| Fault {
                what: String::new(),
                harm: *harm,
                from: at(*from),
                to: Some(at(*to)),
            });
            let judge = Judge {
                promise,
                bound: at(100),
                truths: truths.into(),
                faults: faults.collect(),
                stalls: Arc::default(),
            };
            for (answers, is_right) in [(right, true), (wrong, false)] {
                for (asked, clients) in answers {
                    let verdict = judge.hear(&Answer {
                        server: 0,
                        asked: at(*asked),
                        answered: at(asked + 1),
                        said: (*clients != NONE).then_some(*clients),
                    });
                    let judged = verdict.wrong.is_none();
                    assert_eq!(judged, is_right, "{clients} at {asked}: {:?}", judge.faults);
                }
            }
        }
    }
}
