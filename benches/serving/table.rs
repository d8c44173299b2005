//! The table: a row for each mode and measure, the ratios first, then the contestants side by side.

use std::fmt::Write as _;

use crate::common::figures::median;
use crate::contestant::Contestant;
use crate::modes::Mode;
use crate::results::{MEASURES, Measure, Results, summary};

/// A rate isn't the server's limit when it used less of its core than this, in percent.
const BUSY: f64 = 90.0;

/// What is always said below the table.
const BELOW: [&str; 3] = [
    "Medians of all rounds; ± is half the distance between the quartiles.",
    "Ratios are the first contestant's figure in parts of the other's, taken round by round.",
    "Memory of a client: a server with all of them idle, less a fresh server for 1 client, for each; \
     without the kernel's own memory.",
];

/// What is said if a rate has a mark.
const MARKED: &str = "\\* The server used less than nine tenths of its core, so this rate isn't its \
     limit: the generator or other processes set it. Compare the CPU.";

/// What stands where nothing was measured.
const NOTHING: &str = "–";

/// Returns a table in Markdown, with what its reader has to know below it.
pub fn render(
    contestants: &[Contestant],
    modes: &[Mode],
    results: &Results,
    notes: &[String],
) -> String {
    let (subject, references) = (contestants[0], &contestants[1..]);
    let mut header = vec![String::new()];
    header.extend(references.iter().map(|reference| format!("÷ {reference}")));
    header.extend(contestants.iter().map(ToString::to_string));
    let mut rows = vec![header];
    for (measure, title, _) in MEASURES
        .iter()
        .filter(|(measure, ..)| measure.has_section())
    {
        let mut section = vec![vec![format!("**{title}**")]];
        for mode in modes {
            let values = |contestant| results.values(mode, contestant, *measure);
            if contestants.iter().all(|one| values(*one).is_none()) {
                continue;
            }
            // Round by round, since the two met the same machine in the same round.
            let ratio = |reference: &Contestant| {
                let pairs = values(subject)?.iter().zip(values(*reference)?);
                let ratios: Vec<f64> = pairs.map(|(a, b)| a / b).collect();
                measure.compares().then(|| summary(&ratios, ""))
            };
            let figure = |contestant: &Contestant| {
                let busy = results.values(mode, *contestant, Measure::Busy);
                let is_idle = *measure == Measure::RateThousands
                    && busy.is_some_and(|busy| median(busy) < BUSY);
                Some(summary(
                    values(*contestant)?,
                    if is_idle { "*" } else { "" },
                ))
            };
            let cells = references.iter().map(ratio);
            let cells = cells.chain(contestants.iter().map(figure));
            let cells = cells.map(|cell| cell.unwrap_or_else(|| NOTHING.to_string()));
            section.push(std::iter::once(mode.title.clone()).chain(cells).collect());
        }
        if section.len() > 1 {
            rows.append(&mut section);
        }
    }
    let mut text = lay_out(&rows);
    let marked = text.contains("* ±").then_some(MARKED);
    let below = BELOW.into_iter().chain(marked);
    for line in below.chain(notes.iter().map(String::as_str)) {
        // Writing into a String can't fail.
        let _ = writeln!(text, "- {line}");
    }
    text
}

/// Aligns the columns: the first to the left, figures to the right.
fn lay_out(rows: &[Vec<String>]) -> String {
    let cell = |row: &[String], column: usize| row.get(column).cloned().unwrap_or_default();
    let width = |column| {
        rows.iter()
            .map(|row| cell(row, column).chars().count())
            .max()
    };
    let widths: Vec<usize> = (0..rows[0].len()).filter_map(width).collect();
    let mut lines: Vec<String> = Vec::new();
    for row in rows {
        let cells = widths
            .iter()
            .enumerate()
            .map(|(column, width)| match column {
                0 => format!("| {:<width$} |", cell(row, column)),
                _ => format!(" {:>width$} |", cell(row, column)),
            });
        lines.push(cells.collect());
    }
    let rule = widths
        .iter()
        .enumerate()
        .map(|(column, width)| match column {
            0 => format!("|-{:-<width$}-|", ""),
            _ => format!("-{:->width$}:|", ""),
        });
    lines.insert(1, rule.collect());
    lines.join("\n") + "\n\n"
}
