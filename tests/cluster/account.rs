//! What came of it: how many answers were right and how old, how long it took until all was right again, and what was wrong.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::path::PathBuf;
use std::time::Duration;

use crate::clients::{Answer, Said};
use crate::judge::{Harm, Judge, Promise};
use crate::plot::Plot;
use crate::truth::Moment;

/// What the issue of it all asks for in calm times.
const FRESH: Duration = Duration::from_millis(50);

/// An answer that comes later is wrong: no server waits so long for another.
const SLOWEST: Duration = Duration::from_secs(2);

/// The figures of a run.
#[derive(Default)]
pub struct Account {
    answers: usize,
    /// Those in times when nothing had been done to anybody for long enough.
    calm: usize,
    /// Those of them that say what was true [`FRESH`].
    fresh: usize,
    oldest: Duration,
    unavailable: usize,
    /// How long each took whose server ran all the time.
    took: Vec<Duration>,
    /// By the end of what was done last before: how long after that something was not right yet.
    healing: BTreeMap<Moment, Duration>,
    said: Vec<(usize, Moment, i64)>,
    unsaid: Vec<(usize, Moment)>,
    pub wrongs: Vec<(Moment, String)>,
}

impl Account {
    /// Takes note of an answer.
    pub fn hear(&mut self, judge: &Judge, answer: &Answer) {
        let verdict = judge.hear(answer);
        let Answer {
            server,
            asked,
            answered,
            said,
        } = *answer;
        self.answers += 1;
        match said {
            Said::Clients(clients) => self.said.push((server, answered, clients)),
            Said::Unavailable => {
                self.unavailable += 1;
                self.unsaid.push((server, answered));
            }
        }
        let old = |bound| verdict.age.is_none_or(|age| age > bound);
        if verdict.is_calm {
            self.calm += 1;
            self.fresh += usize::from(!old(FRESH));
            self.oldest = self.oldest.max(verdict.age.unwrap_or_default());
        }
        let harms = |harm: Harm| !matches!(harm, Harm::Nothing(_));
        let mut done = judge
            .faults
            .iter()
            .filter(|fault| harms(fault.harm) && fault.from <= answered);
        // The last end before, if nothing is being done.
        let end = done.try_fold(Moment::ZERO, |last, fault| {
            fault
                .to
                .filter(|end| *end <= asked)
                .map(|end| end.max(last))
        });
        let is_bad = match judge.promise {
            Promise::Available => old(judge.bound),
            Promise::Consistent => said == Said::Unavailable,
        };
        if let Some(end) = end.filter(|end| *end > Moment::ZERO) {
            let healing = self.healing.entry(end).or_default();
            if is_bad {
                *healing = (*healing).max(asked - end);
            }
        }
        let stops = |harm| {
            harm == Harm::Stopped(server)
                || harm == Harm::Killed(server)
                || harm == Harm::Restarted(server)
        };
        if !judge.any(asked, answered, stops) {
            let took = answered - asked;
            self.took.push(took);
            if took > SLOWEST {
                let what = format!("server {} takes {took:?} to answer", server + 1);
                self.wrongs.push((answered, what));
            }
        }
        if let Some(wrong) = verdict.wrong {
            self.wrongs.push((answered, wrong));
        }
    }

    /// Sees to it that what was heard says something: that nobody was wrong would also be true of a cluster that was silent.
    pub fn is_evidence(&self, judge: &Judge, now: Moment) {
        let seconds = now.as_secs() as usize * judge.truths.len();
        let (answers, calm, fresh) = (self.answers, self.calm, self.fresh);
        assert!(answers > seconds * 5, "only {answers} answers");
        assert!(
            calm > answers / 20,
            "only {calm} of {answers} in calm times"
        );
        let numbers = answers - self.unavailable;
        assert!(
            numbers > answers / 2,
            "only {numbers} numbers in {answers} answers"
        );
        if judge.promise == Promise::Available {
            assert!(
                fresh > calm - calm / 20,
                "only {fresh} of {calm} are {FRESH:?} old"
            );
        }
    }

    /// A line on the way.
    pub fn progress(&self, judge: &Judge, now: Moment) -> String {
        let current: Vec<&str> = judge
            .faults
            .iter()
            .filter(|fault| fault.to.is_none())
            .map(|fault| fault.what.as_str())
            .collect();
        format!(
            "{:6.0} s  {:4} faults  {:7} answers  {:3} wrong  {}",
            now.as_secs_f64(),
            judge.faults.len(),
            self.answers,
            self.wrongs.len(),
            current.join(", ")
        )
    }

    /// All of it in words.
    pub fn words(&mut self, judge: &Judge, seed: u64, now: Moment) -> String {
        let mut words = String::new();
        let mut line = |text: String| {
            words += &text;
            words.push('\n');
        };
        let share = |part: usize, of: usize| match of {
            0 => "none".to_string(),
            of => format!("{:.3} %", 100.0 * part as f64 / of as f64),
        };
        line(format!(
            "{:?}, {} servers, seed {seed}, {:.0} s, {} faults:",
            judge.promise,
            judge.truths.len(),
            now.as_secs_f64(),
            judge.faults.len()
        ));
        let mut kinds: BTreeMap<&str, (usize, Duration)> = BTreeMap::new();
        for fault in &judge.faults {
            let kind = fault
                .what
                .split_once(": ")
                .map_or(&*fault.what, |(_, kind)| kind);
            let kind = kind.split(" (").next().unwrap_or(kind);
            let (times, longest) = kinds.entry(kind).or_default();
            *times += 1;
            *longest = (*longest).max(fault.to.unwrap_or(now) - fault.from);
        }
        for (kind, (times, longest)) in kinds {
            line(format!(
                "  {times:4} × {kind}, up to {:.1} s",
                longest.as_secs_f64()
            ));
        }
        line(format!(
            "{} answers, {} of them ERR UNAVAILABLE ({})",
            self.answers,
            self.unavailable,
            share(self.unavailable, self.answers)
        ));
        self.took.sort_unstable();
        let at = |part: f64| {
            let place = (self.took.len() as f64 * part) as usize;
            self.took
                .get(place)
                .or(self.took.last())
                .copied()
                .unwrap_or_default()
        };
        line(format!(
            "answered within {:?} (median), {:?} (99 %), {:?} (all)",
            at(0.5),
            at(0.99),
            at(1.0)
        ));
        let (stalls, longest) = judge.stalls.all();
        line(format!(
            "the machine stood still {stalls} times, for up to {} ms",
            longest.as_millis()
        ));
        line(format!(
            "calm, when nothing had been done for long enough: {} answers, {} right to {} ms, all to {} ms",
            self.calm,
            share(self.fresh, self.calm),
            FRESH.as_millis(),
            self.oldest.as_millis()
        ));
        let longest = self.healing.iter().max_by_key(|(_, time)| **time);
        if let Some((end, time)) = longest {
            line(format!(
                "after a fault the last that was not right came {} ms later, the longest (at {:.3} s); half of the times within {} ms",
                time.as_millis(),
                end.as_secs_f64(),
                {
                    let mut all: Vec<_> = self.healing.values().collect();
                    all.sort();
                    all[all.len() / 2].as_millis()
                }
            ));
        }
        line(format!("{} wrong", self.wrongs.len()));
        let mut kinds: BTreeMap<bool, usize> = BTreeMap::new();
        let shown = self.wrongs.iter().filter(|(_, what)| {
            let number = kinds.entry(what.contains("unavailable")).or_default();
            *number += 1;
            *number <= 20
        });
        for (at, what) in shown {
            let during: Vec<String> = judge
                .faults
                .iter()
                .filter(|fault| {
                    fault.from <= *at
                        && fault
                            .to
                            .is_none_or(|end| end + Duration::from_secs(3) >= *at)
                })
                .map(|fault| {
                    let ago = |moment: Moment| {
                        format!("{:.2}", (*at).saturating_sub(moment).as_secs_f64())
                    };
                    match fault.to {
                        Some(end) => format!(
                            "{} {} to {} s before",
                            fault.what,
                            ago(fault.from),
                            ago(end)
                        ),
                        None => format!("{} since {} s", fault.what, ago(fault.from)),
                    }
                })
                .collect();
            line(format!(
                "  {:.3} s: {what} [{}]",
                at.as_secs_f64(),
                during.join("; ")
            ));
        }
        words
    }

    /// Draws it. Returns where the picture is.
    pub fn draw(&self, judge: &Judge, seed: u64, now: Moment) -> PathBuf {
        let mut changes: Vec<(Moment, i64, i64)> = Vec::new();
        for truth in &judge.truths {
            let (mut least, mut most) = (0, 0);
            for (at, new_least, new_most) in truth.steps() {
                changes.push((at, new_least - least, new_most - most));
                (least, most) = (new_least, new_most);
            }
        }
        changes.sort();
        let mut sum = (0, 0);
        let truth = changes.into_iter().map(|(at, least, most)| {
            sum.0 += least;
            sum.1 += most;
            (at, sum.0, sum.1)
        });
        let mut words = String::new();
        let _ = write!(
            words,
            "{} faults, {} answers, {} wrong, {} unavailable",
            judge.faults.len(),
            self.answers,
            self.wrongs.len(),
            self.unavailable
        );
        let plot = Plot {
            title: format!(
                "{:?}: {} servers, seed {seed}",
                judge.promise,
                judge.truths.len()
            ),
            words,
            until: now,
            truth: truth.collect(),
            answers: self.said.clone(),
            unavailable: self.unsaid.clone(),
            faults: &judge.faults,
            wrongs: self.wrongs.iter().map(|(at, _)| *at).collect(),
            servers: judge.truths.len(),
        };
        let promise = format!("{:?}", judge.promise).to_lowercase();
        let folder = PathBuf::from(env!("CARGO_TARGET_TMPDIR"));
        let file = folder.join(format!("chaos-{promise}-{seed}.svg"));
        std::fs::write(&file, plot.svg()).expect("the target directory is ours");
        file
    }
}
