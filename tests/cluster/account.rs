//! What came of it: how many answers were right and how old, and what was wrong.

use std::time::Duration;

use crate::clients::Answer;
use crate::judge::{Judge, Promise};
use crate::truth::Moment;

/// What the answers of calm times are to be.
const FRESH: Duration = Duration::from_millis(50);

/// An answer that comes later is wrong: no server waits so long for another.
const SLOWEST: Duration = Duration::from_secs(2);

/// The figures of a run.
#[derive(Default)]
pub struct Account {
    answers: usize,
    /// Those in times when nothing had been done to anybody for long enough, and the machine ran.
    calm: usize,
    /// Those of them that say what was true [`FRESH`].
    fresh: usize,
    oldest: Duration,
    unavailable: usize,
    /// How long the slowest took whose server ran all the time.
    slowest: Duration,
    pub wrongs: Vec<(Moment, String)>,
}

impl Account {
    /// Takes note of an answer.
    pub fn hear(&mut self, judge: &Judge, answer: &Answer) {
        let (server, asked, answered) = (answer.server, answer.asked, answer.answered);
        let verdict = judge.hear(answer);
        self.answers += 1;
        self.unavailable += usize::from(answer.said.is_none());
        if verdict.is_calm {
            self.calm += 1;
            self.fresh += usize::from(verdict.age.is_some_and(|age| age <= FRESH));
            self.oldest = self.oldest.max(verdict.age.unwrap_or_default());
        }
        let mut wrong = |what| self.wrongs.push((answered, what));
        if !judge.any(asked, answered, |harm| harm.halts(server)) {
            let took = answered - asked;
            self.slowest = self.slowest.max(took);
            if took > SLOWEST {
                wrong(format!("server {} takes {took:?} to answer", server + 1));
            }
        }
        verdict.wrong.into_iter().for_each(wrong);
    }

    /// Sees to it that what was heard says something: that nobody was wrong would also be true of a cluster that was silent.
    pub fn is_evidence(&self, judge: &Judge, now: Moment) {
        let seconds = now.as_secs() as usize * judge.truths.len();
        let (answers, calm, fresh) = (self.answers, self.calm, self.fresh);
        let numbers = answers - self.unavailable;
        assert!(answers > seconds * 5, "only {answers} answers");
        assert!(
            calm > answers / 20,
            "only {calm} of {answers} in calm times"
        );
        assert!(
            numbers > answers / 2,
            "only {numbers} numbers in {answers} answers"
        );
        let is_fresh = judge.promise != Promise::Available || fresh > calm - calm / 20;
        assert!(is_fresh, "only {fresh} of {calm} are {FRESH:?} old");
    }

    /// All of it in words.
    pub fn words(&self, judge: &Judge, now: Moment) -> String {
        let (stalls, stalled) = judge.stalls.all();
        let (faults, wrongs) = (judge.faults.len(), self.wrongs.len());
        let mut lines = vec![format!(
            "{:.0} s, {faults} faults: {} answers within {:?}, {} of them ERR UNAVAILABLE; {} in calm times, {} of them \
             {FRESH:?} old, all {:?}; the machine stood still {stalls} times, for up to {stalled:?}; {wrongs} wrong",
            now.as_secs_f64(),
            self.answers,
            self.slowest,
            self.unavailable,
            self.calm,
            self.fresh,
            self.oldest,
        )];
        // With what was being done, or had been a moment before.
        for (at, what) in self.wrongs.iter().take(40) {
            let recently = at.saturating_sub(Duration::from_secs(3));
            let faults = judge.faults.iter();
            let during = faults.filter(|fault| fault.overlaps(recently, *at));
            let during: Vec<String> = during
                .map(|fault| format!("{} from {:?} to {:?}", fault.what, fault.from, fault.to))
                .collect();
            lines.push(format!("  {at:?}: {what} [{}]", during.join("; ")));
        }
        lines.join("\n")
    }
}
