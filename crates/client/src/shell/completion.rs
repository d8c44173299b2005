//! Tab completion of the names of commands that the server offers.

use rustix::termios::tcgetwinsize;
use rustyline::completion::{Completer, Pair};
use rustyline::highlight::Highlighter;
use rustyline::hint::Hinter;
use rustyline::validate::Validator;
use rustyline::{Context, Helper};

/// Commands that this program handles itself.
const OWN: [&str; 3] = ["HELP", "QUIT", "EXIT"];

/// The names to complete, in capital letters.
pub struct Names(Vec<String>);

impl Names {
    /// Returns the names that the server listed, and this program's own.
    pub fn new(told: &[&str]) -> Self {
        let mut names: Vec<String> = told.iter().map(|name| name.to_ascii_uppercase()).collect();
        for own in OWN {
            if !names.iter().any(|name| name == own) {
                names.push(own.to_string());
            }
        }
        Names(names)
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
        let (start, mut names) = Names::complete(self, line.get(..position).unwrap_or_default());
        let size = tcgetwinsize(rustix::stdio::stdout());
        let (rows, columns) = size.map_or((0, 0), |size| (size.ws_row, size.ws_col));
        // A blank follows a complete name.
        let end = if names.len() == 1 { " " } else { "" };
        if !has_room(&names, rows.into(), columns.into()) {
            names = vec![common(&names)];
        }
        let pair = |name: String| Pair {
            replacement: format!("{name}{end}"),
            display: name,
        };
        Ok((start, names.into_iter().map(pair).collect()))
    }
}

/// Returns whether a screen of this size has room for a list of these names. The editor would show
/// a longer list page by page, during which ^C has no effect.
fn has_room(names: &[String], rows: usize, columns: usize) -> bool {
    let widest = names.iter().map(String::len).max().unwrap_or(0);
    let in_a_row = (columns / (widest + 2)).max(1);
    names.len() < 2 || names.len().div_ceil(in_a_row) < rows
}

/// Returns the common prefix.
fn common(names: &[String]) -> String {
    let mut names = names.iter();
    let mut common = names.next().cloned().unwrap_or_default();
    for name in names {
        let same = common.bytes().zip(name.bytes()).take_while(|(a, b)| a == b);
        common.truncate(same.count());
    }
    common
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
        let names = Names::new(&["WHO", "WHERE", "WHY", "PING", "HELP", "QUIT"]);
        let complete = |text: &str| {
            let (start, names) = names.complete(text);
            (start, names.join(" "))
        };
        assert_eq!(complete("w"), (0, "who where why".to_string()));
        assert_eq!(complete("WH"), (0, "WHO WHERE WHY".to_string()));
        assert_eq!(complete("Whe"), (0, "where".to_string()));
        assert_eq!(
            complete(""),
            (0, "who where why ping help quit exit".to_string())
        );
        assert_eq!(complete("  pi"), (2, "ping".to_string()));
        assert_eq!(complete("HELP wh"), (5, "who where why".to_string()));
        assert_eq!(complete("who w"), (4, String::new()));
        assert_eq!(complete("help who w"), (9, String::new()));
        assert_eq!(complete("x"), (0, String::new()));
    }

    #[test]
    fn only_a_list_that_the_screen_has_room_for_is_shown() {
        let names: Vec<String> = (10..52).map(|number| format!("name{number}")).collect();
        assert_eq!(common(&names), "name");
        // Five columns of eight in nine rows, below the line itself.
        assert!(has_room(&names, 10, 44));
        assert!(!has_room(&names, 9, 44));
        assert!(!has_room(&names, 10, 39));
        assert!(has_room(&names, 43, 3));
        assert!(has_room(&names[..1], 0, 0));
        assert!(has_room(&[], 0, 0));
    }
}
