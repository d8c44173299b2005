//! Layout of the display for a terminal of a given size.

use jiff::Timestamp;
use jiff::tz::TimeZone;

use super::history::{History, TRYING_AGAIN};
use super::{chart, digits};

/// The most lines used, however high the terminal is.
const MOST: usize = 10;

/// The fewest rows and columns for large digits.
const ROOM: (usize, usize) = (9, 40);

/// Properties of the terminal that affect the layout.
pub struct View {
    /// Whether it shows block characters, not only ASCII.
    pub has_blocks: bool,
}

impl View {
    /// Returns at most `rows` lines of at most `columns` characters.
    pub fn lines(&self, history: &History, rows: usize, columns: usize) -> Vec<String> {
        let rows = rows.min(MOST);
        let mut lines = Vec::new();
        if rows >= ROOM.0 && columns >= ROOM.1 {
            lines.push(fitting(columns, who(history)));
            let large = digits::rows(history.count(), self.has_blocks);
            let beside = columns.saturating_sub(large[0].chars().count() + 4);
            let texts = [count(history), range(history), since(history)];
            let texts = texts.map(|text| fitting(beside, text));
            let rows = large.iter().zip(texts);
            lines.extend(rows.map(|(row, text)| format!(" {row}   {text}")));
            lines.push(String::new());
        } else {
            lines.push(fitting(columns, count(history)));
        }
        let chart_rows = rows.saturating_sub(lines.len() + 1);
        lines.extend(chart::lines(
            &history.counts,
            chart_rows,
            columns,
            self.has_blocks,
        ));
        lines.push(fitting(columns, status(history)));
        lines.truncate(rows);
        for line in &mut lines {
            *line = line.chars().take(columns).collect();
        }
        lines
    }
}

/// Returns the first text that fits, of texts from the longest to the shortest, or else the
/// shortest, to be truncated.
fn fitting(columns: usize, mut texts: Vec<String>) -> String {
    let fits = texts
        .iter()
        .position(|text| text.chars().count() <= columns);
    texts.truncate(fits.map_or(usize::MAX, |at| at + 1));
    texts.pop().unwrap_or_default()
}

/// Texts that name the server.
fn who(history: &History) -> Vec<String> {
    let mut texts = vec![history.server.clone()];
    if let Some(origin) = &history.origin {
        let address = origin.address.to_string();
        if address != history.server {
            texts.insert(0, format!("{} ({address})", history.server));
        }
        if let Some(id) = &origin.id {
            texts.insert(0, format!("{}  {id}", texts[0]));
        }
    }
    texts
}

fn count(history: &History) -> Vec<String> {
    match history.count() {
        Some(1) => vec!["1 client: this one".to_string(), "1 client".to_string()],
        Some(count) => vec![
            format!("{count} clients, this one included"),
            format!("{count} clients"),
        ],
        None => vec!["no count".to_string()],
    }
}

fn range(history: &History) -> Vec<String> {
    let range = history.range.into_iter();
    range
        .map(|(least, most)| format!("least {least}, most {most}"))
        .collect()
}

fn since(history: &History) -> Vec<String> {
    let Some(first) = history.since else {
        return Vec::new();
    };
    let seconds = history.span().as_secs();
    let (hours, minutes, seconds) = (seconds / 3600, seconds / 60 % 60, seconds % 60);
    let since = format!("since {}", clock(first));
    vec![
        format!("{since} ({hours}:{minutes:02}:{seconds:02})"),
        since,
    ]
}

fn status(history: &History) -> Vec<String> {
    if let Some((since, why)) = &history.trouble {
        let first = why.strip_suffix(TRYING_AGAIN).unwrap_or(why);
        let since = clock(*since);
        return vec![
            format!("{since} {why}"),
            format!("{since} {first}"),
            first.to_string(),
        ];
    }
    let asked = format!("asked every {:?}", history.every);
    let said = history
        .back
        .map_or(asked, |back| format!("{} back", clock(back)));
    vec![format!("{said}; ^C ends"), said]
}

/// Formats the time of day.
fn clock(time: Timestamp) -> String {
    time.to_zoned(TimeZone::UTC)
        .strftime("%H:%M:%S UTC")
        .to_string()
}

#[cfg(test)]
mod tests {
    use super::super::asker::{Origin, Sample};
    use super::*;
    use crate::failure::Failure;
    use std::net::SocketAddr;
    use std::time::Duration;

    fn history() -> History {
        let mut history = History::new("localhost:4242".to_string(), Duration::from_secs(1));
        for (tick, count) in [3, 5, 12].into_iter().enumerate() {
            history.add(Sample {
                tick: tick as u64,
                time: Timestamp::from_second(3600 + tick as i64).unwrap(),
                seen: Ok(count),
                origin: Some(Origin {
                    address: SocketAddr::from(([127, 0, 0, 1], 4242)),
                    id: Some("6f0c2a52-5f0e-4b7e-9a35-0c5f7f5a3c1e".to_string()),
                }),
            });
        }
        history
    }

    #[test]
    fn with_room_everything_is_shown() {
        let lines = View { has_blocks: true }.lines(&history(), 23, 50);
        assert_eq!(
            lines,
            [
                "localhost:4242 (127.0.0.1:4242)",
                " ▀█  ▀▀█   12 clients, this one included",
                "  █  █▀▀   least 3, most 12",
                " ▀▀▀ ▀▀▀   since 01:00:00 UTC (0:00:02)",
                "",
                "12 ┤                                             █",
                "   │                                             █",
                "   │                                            ▆█",
                " 0 ┤                                           ███",
                "asked every 1s; ^C ends"
            ]
        );
    }

    #[test]
    fn where_there_is_little_room_the_least_important_goes() {
        let add = |history: &mut History, seen| {
            history.add(Sample {
                tick: 3,
                time: Timestamp::from_second(3603).unwrap(),
                seen,
                origin: None,
            });
        };
        let ends = |history: &History, columns: usize, wanted: &[&str]| {
            let lines = View { has_blocks: true }.lines(history, 23, columns);
            for text in wanted {
                assert!(
                    lines.iter().any(|line| line.ends_with(text)),
                    "{text}: {lines:#?}"
                );
            }
        };
        let mut history = history();
        add(&mut history, Ok(112));
        let who = "localhost:4242 (127.0.0.1:4242)  6f0c2a52-5f0e-4b7e-9a35-0c5f7f5a3c1e";
        let count = "   112 clients, this one included";
        let since = "   since 01:00:00 UTC (0:00:03)";
        let status = "asked every 1s; ^C ends";
        ends(&history, 79, &[who, count, since, status]);
        let (who, count) = ("localhost:4242 (127.0.0.1:4242)", "   112 clients");
        ends(&history, 40, &[who, count, "   since 01:00:00 UTC", status]);
        ends(&history, 39, &["112 clients, this one included", status]);
        ends(&history, 20, &["112 clients", "asked every 1s"]);
        let why = "the server has gone away".to_string();
        add(&mut history, Err(Failure::Wrong(why)));
        let lost = "lost: the server has gone away";
        ends(
            &history,
            79,
            &[&format!("01:00:03 UTC {lost}; trying again")],
        );
        ends(&history, 50, &[&format!("01:00:03 UTC {lost}")]);
        ends(&history, 39, &[lost]);
        add(&mut history, Ok(3));
        ends(&history, 39, &["01:00:03 UTC back; ^C ends"]);
        ends(&history, 20, &["01:00:03 UTC back"]);
    }

    #[test]
    fn no_size_is_too_small() {
        let mut history = history();
        for _ in 0..2 {
            for rows in 0..12 {
                for columns in [0, 1, 2, 5, 20, 39, 40, 300] {
                    for has_blocks in [true, false] {
                        let lines = View { has_blocks }.lines(&history, rows, columns);
                        assert!(lines.len() <= rows, "{rows}x{columns}: {lines:?}");
                        assert!(lines.iter().all(|line| line.chars().count() <= columns));
                        assert!(has_blocks || lines.iter().all(|line| line.is_ascii()));
                    }
                }
            }
            history.add(Sample {
                tick: 3,
                time: Timestamp::from_second(3603).unwrap(),
                seen: Err(Failure::Wrong("no".to_string())),
                origin: None,
            });
        }
        let lines = View { has_blocks: false }.lines(&history, 4, 40);
        assert_eq!(lines[0], "no count");
        assert_eq!(lines[3], "01:00:03 UTC lost: no; trying again");
    }
}
