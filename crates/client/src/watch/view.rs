//! Layout of the display for a terminal of a given size.

use indicatif::FormattedDuration;
use jiff::Timestamp;
use jiff::tz::TimeZone;

use super::history::History;
use super::{chart, digits};

/// The most lines used, however high the terminal is.
const MAX_ROWS: usize = 10;

/// The fewest rows and columns for large digits.
const DIGITS_ROOM: (usize, usize) = (9, 40);

/// Returns at most `rows` lines of at most `columns` characters. `server` names the server, and
/// `status` is shown while there are counts.
pub fn lines(
    history: &History,
    server: &str,
    status: &str,
    rows: usize,
    columns: usize,
) -> Vec<String> {
    let rows = rows.min(MAX_ROWS);
    let mut lines = Vec::new();
    if rows >= DIGITS_ROOM.0 && columns >= DIGITS_ROOM.1 {
        lines.push(server.to_string());
        let large = digits::rows(history.count());
        let texts = [count(history), range(history), since(history)];
        let rows = large.iter().zip(texts);
        lines.extend(rows.map(|(row, text)| format!(" {row}   {text}")));
        lines.push(String::new());
    } else {
        lines.push(count(history));
    }
    let chart_rows = rows.saturating_sub(lines.len() + 1);
    lines.extend(chart::lines(&history.counts, chart_rows, columns));
    lines.push(match (&history.outage, history.back) {
        (Some((since, why)), _) => format!("{} {why}", clock(*since)),
        (None, Some(back)) => format!("{} back; ^C ends", clock(back)),
        (None, None) => status.to_string(),
    });
    lines.truncate(rows);
    for line in &mut lines {
        *line = line.chars().take(columns).collect();
    }
    lines
}

fn count(history: &History) -> String {
    match history.count() {
        Some(1) => "1 client: this one".to_string(),
        Some(count) => format!("{count} clients, this one included"),
        None => "no count".to_string(),
    }
}

fn range(history: &History) -> String {
    let text = |(least, most)| format!("least {least}, most {most}");
    history.range.map(text).unwrap_or_default()
}

fn since(history: &History) -> String {
    history.since.map_or(String::new(), |since| {
        let span = Timestamp::now().duration_since(since).unsigned_abs();
        format!("since {} ({})", clock(since), FormattedDuration(span))
    })
}

/// Formats the time of day.
fn clock(time: Timestamp) -> String {
    let time = time.to_zoned(TimeZone::UTC);
    time.strftime("%H:%M:%S UTC").to_string()
}

#[cfg(test)]
mod tests {
    use super::super::poller::Sample;
    use super::*;
    use crate::failure::Failure;

    #[test]
    fn all_is_shown_and_no_size_is_too_small() {
        let mut history = History::default();
        let failure = || Failure::Other(1, "no".to_string());
        for count in [Ok(3), Ok(5), Ok(12), Err(failure())] {
            let expected = match &count {
                Ok(_) => "asked every 1s",
                Err(_) => "01:00:00 UTC lost: no; trying again",
            };
            let time = Timestamp::from_second(3600).unwrap();
            history.add(Sample { time, count });
            let lines = lines(&history, "localhost", "asked every 1s", 23, 50);
            assert_eq!((lines.len(), lines[9].as_str()), (10, expected));
        }
        assert_eq!(history.counts, [Some(3), Some(5), Some(12), None]);
        for rows in 0..12 {
            for columns in [0, 1, 2, 5, 20, 39, 40, 300] {
                let lines = lines(&history, "localhost", "asked", rows, columns);
                assert!(lines.len() <= rows, "{rows}x{columns}: {lines:?}");
                assert!(lines.iter().all(|line| line.chars().count() <= columns));
            }
        }
        history.add(Sample {
            time: Timestamp::from_second(3605).unwrap(),
            count: Ok(112),
        });
        let lines = lines(&history, "localhost", "asked", 23, 50);
        let expected = [
            "localhost",
            " ▀█  ▀█  ▀▀█   112 clients, this one included",
            "  █   █  █▀▀   least 3, most 112",
        ];
        assert_eq!(lines[..3], expected);
        assert!(lines[3].starts_with(" ▀▀▀ ▀▀▀ ▀▀▀   since 01:00:00 UTC ("));
        assert_eq!(lines[9], "01:00:05 UTC back; ^C ends");
    }
}
