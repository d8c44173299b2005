//! What is shown, as lines for a terminal of a certain size.

use jiff::Timestamp;
use jiff::tz::TimeZone;

use super::history::History;
use super::{chart, digits};

/// The most lines that are taken of a terminal, however high it is.
const MOST: usize = 10;

/// Narrower, or less high, there is no room for large digits.
const ROOM: (usize, usize) = (9, 40);

/// How things are shown.
pub struct View {
    /// Whether the terminal shows more than ASCII.
    pub has_blocks: bool,
}

impl View {
    /// At most `rows` lines of at most `columns` characters.
    pub fn lines(&self, history: &History, rows: usize, columns: usize) -> Vec<String> {
        let rows = rows.min(MOST);
        let count = match history.count() {
            Some(1) => "1 client: this one".to_string(),
            Some(count) => format!("{count} clients, this one included"),
            None => "no count".to_string(),
        };
        let mut lines = Vec::new();
        if rows >= ROOM.0 && columns >= ROOM.1 {
            lines.push(who(history));
            let texts = [count, range(history), since(history)];
            let large = digits::rows(history.count(), self.has_blocks);
            lines.extend(
                large
                    .iter()
                    .zip(texts)
                    .map(|(row, text)| format!(" {row}   {text}")),
            );
            lines.push(String::new());
        } else {
            lines.push(count);
        }
        let chart_rows = rows.saturating_sub(lines.len() + 1);
        lines.extend(chart::lines(
            &history.counts,
            chart_rows,
            columns,
            self.has_blocks,
        ));
        lines.push(status(history));
        lines.truncate(rows);
        for line in &mut lines {
            *line = line.chars().take(columns).collect();
        }
        lines
    }
}

/// Whom the count is from.
fn who(history: &History) -> String {
    let mut text = history.server.clone();
    if let Some(origin) = &history.origin {
        let address = origin.address.to_string();
        if address != text {
            text += &format!(" ({address})");
        }
        if let Some(id) = &origin.id {
            text += &format!("  {id}");
        }
    }
    text
}

fn range(history: &History) -> String {
    match history.range {
        Some((least, most)) => format!("least {least}, most {most}"),
        None => String::new(),
    }
}

fn since(history: &History) -> String {
    match history.since {
        Some((first, last)) => {
            let seconds = last.as_second() - first.as_second();
            let (hours, minutes, seconds) = (seconds / 3600, seconds / 60 % 60, seconds % 60);
            format!("since {} ({hours}:{minutes:02}:{seconds:02})", clock(first))
        }
        None => String::new(),
    }
}

fn status(history: &History) -> String {
    if let Some((since, why)) = &history.trouble {
        return format!("{} {why}", clock(*since));
    }
    match history.back {
        Some(back) => format!("{} back; ^C ends", clock(back)),
        None => format!("asked every {:?}; ^C ends", history.every),
    }
}

/// The time of day.
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
                "localhost:4242 (127.0.0.1:4242)  6f0c2a52-5f0e-4b7",
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
