//! Tab completion of the names of commands that the server offers.

use rustyline::completion::{Completer, Pair};
use rustyline::highlight::Highlighter;
use rustyline::hint::Hinter;
use rustyline::validate::Validator;
use rustyline::{Context, Helper};

/// The names to complete, in capital letters.
pub struct Names(Vec<String>);

impl Names {
    /// Returns the names that the server listed.
    pub fn new(listed: &[&str]) -> Self {
        Names(
            listed
                .iter()
                .map(|name| name.to_ascii_uppercase())
                .collect(),
        )
    }

    /// Returns where the last word of `text` begins, and the names that complete it, in its case.
    /// Completes the command, and the argument of HELP.
    fn complete(&self, text: &str) -> (usize, Vec<String>) {
        let start = text.rfind([' ', '\t']).map_or(0, |blank| blank + 1);
        let (before, word) = text.split_at(start);
        let before = before.trim();
        if !before.is_empty() && !before.eq_ignore_ascii_case("help") {
            return (start, Vec::new());
        }
        let in_capitals = word.contains(|letter: char| letter.is_ascii_uppercase())
            && !word.contains(|letter: char| letter.is_ascii_lowercase());
        let beginning = word.to_ascii_uppercase();
        let names = self.0.iter().filter(|name| name.starts_with(&beginning));
        let names = names.map(|name| match in_capitals {
            true => name.clone(),
            false => name.to_ascii_lowercase(),
        });
        (start, names.collect())
    }
}

impl Completer for Names {
    type Candidate = Pair;

    fn complete(
        &self,
        line: &str,
        position: usize,
        _: &Context<'_>,
    ) -> rustyline::Result<(usize, Vec<Pair>)> {
        let (start, names) = Names::complete(self, line.get(..position).unwrap_or_default());
        // A blank follows a complete name.
        let end = if names.len() == 1 { " " } else { "" };
        let pair = |name: String| Pair {
            replacement: format!("{name}{end}"),
            display: name,
        };
        Ok((start, names.into_iter().map(pair).collect()))
    }
}

impl Highlighter for Names {}

impl Hinter for Names {
    type Hint = String;
}

impl Validator for Names {}

impl Helper for Names {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_completed_in_the_case_of_their_beginning() {
        let names = Names::new(&["WHO", "WHERE", "WHY", "PING", "HELP", "QUIT", "EXIT"]);
        let complete = |text: &str| {
            let (start, names) = names.complete(text);
            (start, names.join(" "))
        };
        for (text, start, completed) in [
            ("w", 0, "who where why"),
            ("WH", 0, "WHO WHERE WHY"),
            ("Whe", 0, "where"),
            ("", 0, "who where why ping help quit exit"),
            ("  pi", 2, "ping"),
            ("HELP wh", 5, "who where why"),
            ("help who w", 9, ""),
        ] {
            assert_eq!(complete(text), (start, completed.to_string()));
        }
    }
}
