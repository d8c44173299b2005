//! How many requests came to what, counted while one read's worth of them is answered.

use super::{CommandClass, CommandError};

/// The most commands that a table may hold.
pub const MOST_COMMANDS: usize = 15;

/// What a request may come to: a value, or one of the words after `ERR` that answer a request.
pub const OUTCOMES: [&str; 7] = [
    "ok",
    "unknown",
    "usage",
    "badinput",
    "toolong",
    "unavailable",
    "internal",
];

/// Room for each command, and one more for requests that name none.
const WIDTH: usize = MOST_COMMANDS + 1;

/// The number of different [`Outcome`]s.
pub const SLOTS: usize = WIDTH * OUTCOMES.len();

/// Room for all of them and for those that are not counted, so many that an index needs no check.
const ROOM: usize = 128;
const _: () = assert!(SLOTS + 1 < ROOM);

/// Set in what a command came to that computes.
const COMPUTES: u8 = ROOM as u8;

/// Which command a request named, and what it came to: an index below [`SLOTS`], and whether it computes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Outcome(u8);

impl Outcome {
    /// A blank line, which asks for nothing and is not counted.
    pub const BLANK: Outcome = Outcome(SLOTS as u8);

    /// A request that whoever serves the client next will answer, and count.
    pub const DEFERRED: Outcome = Outcome(SLOTS as u8 + 1);

    /// The command at `index` of the table got its value.
    #[inline]
    pub fn value(index: usize) -> Self {
        Outcome(index as u8)
    }

    /// A request was refused: to the command at `index` of the table, or to none.
    pub fn refused(index: Option<usize>, refusal: &CommandError<'_>) -> Self {
        let word = refusal.word();
        let outcome = OUTCOMES.iter().position(|o| o.eq_ignore_ascii_case(word));
        Outcome::at(index, outcome.unwrap_or(OUTCOMES.len() - 1))
    }

    /// The command at `index` of the table, or none, and `OUTCOMES[outcome]`.
    pub fn at(index: Option<usize>, outcome: usize) -> Self {
        Outcome((outcome * WIDTH + index.unwrap_or(MOST_COMMANDS)) as u8)
    }

    /// The same, of a command of this kind.
    #[inline]
    pub fn of(self, kind: CommandClass) -> Self {
        match kind {
            CommandClass::Compute => Outcome(self.0 | COMPUTES),
            CommandClass::Query | CommandClass::Quit => self,
        }
    }

    /// Its index.
    #[inline]
    pub fn index(self) -> usize {
        usize::from(self.0 & !COMPUTES)
    }
}

/// How many requests of one read came to what. One read holds fewer than 65,536 of them.
pub struct BatchCounters {
    counts: [u16; ROOM],
    /// The bits of all of them together: below [`WIDTH`], but for [`COMPUTES`], if no request was refused.
    seen: u8,
}

impl BatchCounters {
    /// None yet.
    #[inline]
    pub fn new() -> Self {
        BatchCounters {
            counts: [0; ROOM],
            seen: 0,
        }
    }

    /// One more.
    #[inline]
    pub fn note(&mut self, outcome: Outcome) {
        self.counts[outcome.index()] += 1;
        self.seen |= outcome.0;
    }

    /// Those that happened: the index of each, and how often.
    #[inline]
    pub fn counts(&self) -> impl Iterator<Item = (usize, u16)> {
        let any_refused = usize::from(self.seen & !COMPUTES) >= WIDTH;
        let end = if any_refused { SLOTS } else { WIDTH };
        let counts = self.counts[..end].iter().copied().enumerate();
        counts.filter(|(_, count)| *count > 0)
    }

    /// Whether any of them computed.
    #[inline]
    pub fn computes(&self) -> bool {
        self.seen & COMPUTES != 0
    }
}

impl Default for BatchCounters {
    fn default() -> Self {
        BatchCounters::new()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_is_counted_but_blank_lines() {
        let mut tally = BatchCounters::new();
        tally.note(Outcome::value(2));
        tally.note(Outcome::BLANK);
        tally.note(Outcome::DEFERRED);
        assert!(!tally.computes());
        tally.note(Outcome::value(2).of(CommandClass::Compute));
        assert!(tally.computes());
        assert_eq!(tally.counts().collect::<Vec<_>>(), [(2, 2)]);
        let unknown = Outcome::refused(None, &CommandError::Unknown(b"x"));
        tally.note(unknown);
        tally.note(Outcome::refused(Some(0), &CommandError::Internal));
        let counted: Vec<_> = tally.counts().collect();
        assert_eq!(counted, [(2, 2), (unknown.index(), 1), (SLOTS - WIDTH, 1)]);
        assert_eq!(unknown, Outcome::at(None, 1));
    }

    #[test]
    fn every_outcome_has_a_slot_of_its_own() {
        let mut seen = std::collections::BTreeSet::new();
        for outcome in 0..OUTCOMES.len() {
            for command in (0..MOST_COMMANDS).map(Some).chain([None]) {
                assert!(seen.insert(Outcome::at(command, outcome).index()));
            }
        }
        assert_eq!(seen.last(), Some(&(SLOTS - 1)));
        assert_eq!(Outcome::BLANK.index(), SLOTS);
    }
}
