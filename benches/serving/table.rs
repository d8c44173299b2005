//! The table: a row for each mode and measure, the ratios first, then the contestants side by side.

use std::fmt::Write;

use crate::contestant::Contestant;
use crate::figures::{Measure, Results, Summary, digits};
use crate::modes::Mode;

/// A rate isn't the server's limit when it used less of its core than this, in percent.
const BUSY: f64 = 90.0;

/// What is always said below the table.
const BELOW: [&str; 3] = [
    "Medians of all rounds; ± is half the distance between the quartiles.",
    "Ratios are the first contestant's figure in parts of the other's, taken round by round.",
    "Memory of a client: a server with all of them idle, less a fresh server for 1 client, for each; without the \
     kernel's own memory.",
];

/// What is said if a rate has a mark.
const MARKED: &str = "\\* The server used less than nine tenths of its core, so this rate isn't its limit: \
     the generator or other processes set it. Compare the CPU.";

/// One row; a section's title has one cell only.
type Row = Vec<String>;

/// Writes everything down as a table in Markdown, with what its reader has to know below it.
pub fn render(
    contestants: &[Contestant],
    modes: &[Mode],
    results: &Results,
    notes: &[String],
) -> String {
    let pairs = pairs(contestants);
    let mut marked = false;
    let mut rows = vec![header(contestants, &pairs)];
    for measure in Measure::SECTIONS {
        let mut section = Vec::new();
        for mode in modes {
            let cells: Vec<_> = contestants
                .iter()
                .map(|contestant| results.summary(mode, *contestant, measure))
                .collect();
            if cells.iter().all(Option::is_none) {
                continue;
            }
            let mut row = vec![mode.title.clone()];
            for &(subject, reference) in &pairs {
                let ratio = measure
                    .compares()
                    .then(|| results.ratio(mode, measure, subject, reference))
                    .flatten();
                row.push(ratio.map_or_else(nothing, |ratio| cell(&ratio, "")));
            }
            for (contestant, summary) in contestants.iter().zip(&cells) {
                let idle = measure == Measure::RateThousands
                    && results
                        .summary(mode, *contestant, Measure::Busy)
                        .is_some_and(|busy| busy.median < BUSY);
                marked |= idle;
                let mark = if idle { "*" } else { "" };
                row.push(
                    summary
                        .as_ref()
                        .map_or_else(nothing, |summary| cell(summary, mark)),
                );
            }
            section.push(row);
        }
        if !section.is_empty() {
            rows.push(vec![format!("**{}**", measure.title())]);
            rows.append(&mut section);
        }
    }

    let mut text = lay_out(&rows);
    let below = BELOW.iter().copied();
    let below = below.chain(marked.then_some(MARKED));
    for line in below.chain(notes.iter().map(String::as_str)) {
        let _ = writeln!(text, "- {line}");
    }
    text
}

/// The subject of the ratios, the first contestant, with each reference that takes part.
fn pairs(contestants: &[Contestant]) -> Vec<(Contestant, Contestant)> {
    let Some((&subject, others)) = contestants.split_first() else {
        return Vec::new();
    };
    others
        .iter()
        .map(|&reference| (subject, reference))
        .collect()
}

/// The names of the columns.
fn header(contestants: &[Contestant], pairs: &[(Contestant, Contestant)]) -> Row {
    let mut row = vec![String::new()];
    row.extend(pairs.iter().map(|(_, reference)| format!("÷ {reference}")));
    row.extend(contestants.iter().map(ToString::to_string));
    row
}

/// A figure with its spread.
fn cell(summary: &Summary, mark: &str) -> String {
    let median = digits(summary.median);
    match summary.spread {
        Some(spread) => format!("{median}{mark} ±{:.0}%", spread * 100.0),
        None => format!("{median}{mark}"),
    }
}

/// What stands where nothing was measured.
fn nothing() -> String {
    "–".to_string()
}

/// Aligns the columns: the first to the left, figures to the right.
fn lay_out(rows: &[Row]) -> String {
    let columns = rows.iter().map(Vec::len).max().unwrap_or(0);
    let width = |column: usize| {
        let cells = rows.iter().filter_map(|row| row.get(column));
        cells
            .map(|cell| cell.chars().count())
            .max()
            .unwrap_or(0)
            .max(2)
    };
    let widths: Vec<_> = (0..columns).map(width).collect();
    let mut text = String::new();
    for (index, row) in rows.iter().enumerate() {
        for (column, &width) in widths.iter().enumerate() {
            let cell = row.get(column).map_or("", String::as_str);
            let _ = match column {
                0 => write!(text, "| {cell:<width$} |"),
                _ => write!(text, " {cell:>width$} |"),
            };
        }
        text.push('\n');
        if index == 0 {
            for (column, &width) in widths.iter().enumerate() {
                let _ = match column {
                    0 => write!(text, "|-{:-<width$}-|", ""),
                    _ => write!(text, "-{:->width$}:|", ""),
                };
            }
            text.push('\n');
        }
    }
    text.push('\n');
    text
}
