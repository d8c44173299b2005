//! Request counters of one read: how many requests named which command with which outcome.

use super::{CommandClass, CommandError};

/// The most commands that a table may hold.
pub const MAX_COMMANDS: usize = 15;

/// Outcomes of a request: a value, or an error word that may follow `ERR` in a reply to a request.
pub const OUTCOMES: [&str; 7] = [
    "ok",
    "unknown",
    "usage",
    "badinput",
    "toolong",
    "unavailable",
    "internal",
];

/// Columns of one outcome: one for each command, and one for requests that name no known command.
const WIDTH: usize = MAX_COMMANDS + 1;

/// The number of different [`Outcome`]s.
pub const SLOTS: usize = WIDTH * OUTCOMES.len();

/// Size of the counter array: all slots and the two uncounted outcomes. A power of two: every
/// masked `u8` is a valid index.
const ROOM: usize = 128;
const _: () = assert!(SLOTS + 1 < ROOM);

/// Flag of an [`Outcome`] whose command computes.
const COMPUTES: u8 = ROOM as u8;

/// The command that a request named and its outcome, as an index below [`SLOTS`], and a flag for
/// commands that compute.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Outcome(u8);

impl Outcome {
    /// A blank line, or a question of another kind than commands, such as a health check: it is not
    /// counted.
    pub const BLANK: Outcome = Outcome(SLOTS as u8);

    /// A request that the next server of the client will answer and count.
    pub const DEFERRED: Outcome = Outcome(SLOTS as u8 + 1);

    /// A value, from the command at `index` of the table.
    #[inline]
    pub fn value(index: usize) -> Self {
        Outcome(index as u8)
    }

    /// An error, from the command at `index` of the table, or from no command.
    pub fn refused(index: Option<usize>, refusal: &CommandError<'_>) -> Self {
        let word = refusal.word();
        let outcome = OUTCOMES.iter().position(|o| o.eq_ignore_ascii_case(word));
        Outcome::at(index, outcome.unwrap_or(OUTCOMES.len() - 1))
    }

    /// The outcome `OUTCOMES[outcome]`, of the command at `index` of the table or of no command.
    pub fn at(index: Option<usize>, outcome: usize) -> Self {
        Outcome((outcome * WIDTH + index.unwrap_or(MAX_COMMANDS)) as u8)
    }

    /// Returns the same outcome, marked as one of a command of this class.
    #[inline]
    pub fn of(self, class: CommandClass) -> Self {
        match class {
            CommandClass::Compute => Outcome(self.0 | COMPUTES),
            CommandClass::Query | CommandClass::Quit => self,
        }
    }

    /// Returns the slot index.
    #[inline]
    pub fn index(self) -> usize {
        usize::from(self.0 & !COMPUTES)
    }
}

/// Counters of one read by command and outcome. One read holds fewer than 65,536 requests.
pub struct BatchCounters {
    counts: [u16; ROOM],
    /// All outcomes ORed together. Without [`COMPUTES`] it is below [`WIDTH`] if every request got
    /// a value.
    seen: u8,
}

impl BatchCounters {
    /// Returns counters that are all zero.
    #[inline]
    pub fn new() -> Self {
        BatchCounters {
            counts: [0; ROOM],
            seen: 0,
        }
    }

    /// Counts one request.
    #[inline]
    pub fn note(&mut self, outcome: Outcome) {
        self.counts[outcome.index()] += 1;
        self.seen |= outcome.0;
    }

    /// Returns the index and the count of each counter that is not zero.
    #[inline]
    pub fn counts(&self) -> impl Iterator<Item = (usize, u16)> {
        let any_refused = usize::from(self.seen & !COMPUTES) >= WIDTH;
        let end = if any_refused { SLOTS } else { WIDTH };
        let counts = self.counts[..end].iter().copied().enumerate();
        counts.filter(|(_, count)| *count > 0)
    }

    /// Returns whether nothing was noted, not even what is not counted.
    #[inline]
    pub fn is_empty(&self) -> bool {
        self.counts.iter().all(|count| *count == 0)
    }

    /// Returns whether any of the requests computed.
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
        assert!(tally.is_empty());
        tally.note(Outcome::BLANK);
        assert!(!tally.is_empty());
        tally.note(Outcome::value(2));
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
            for command in (0..MAX_COMMANDS).map(Some).chain([None]) {
                assert!(seen.insert(Outcome::at(command, outcome).index()));
            }
        }
        assert_eq!(seen.last(), Some(&(SLOTS - 1)));
        assert_eq!(Outcome::BLANK.index(), SLOTS);
    }
}
