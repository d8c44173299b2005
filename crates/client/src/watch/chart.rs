//! Bar chart of counts, scaled from 0 to the greatest count shown.

use std::collections::VecDeque;

/// Fill levels of a row of a bar, from the lowest to full.
const BLOCKS: [char; 8] = ['▁', '▂', '▃', '▄', '▅', '▆', '▇', '█'];
const ASCII: [char; 2] = ['.', '#'];

/// Returns the newest counts that fit, the newest at the right edge, as `rows` lines of at most
/// `columns` characters.
pub fn lines(
    counts: &VecDeque<Option<u64>>,
    rows: usize,
    columns: usize,
    has_blocks: bool,
) -> Vec<String> {
    let fills: &[char] = if has_blocks { &BLOCKS } else { &ASCII };
    let (axis, mark) = if has_blocks {
        ('│', '┤')
    } else {
        ('|', '+')
    };
    let ever = counts.iter().flatten().max().copied().unwrap_or(0).max(1);
    let label = ever.to_string().len();
    // The label, a blank and the axis take the rest.
    let width = columns.saturating_sub(label + 2);
    if width == 0 || rows == 0 {
        return Vec::new();
    }
    let shown: Vec<Option<u64>> = counts
        .iter()
        .skip(counts.len().saturating_sub(width))
        .copied()
        .collect();
    let top = shown.iter().flatten().max().copied().unwrap_or(0).max(1);
    let steps = rows * fills.len();
    let line = |row: usize| {
        let below = (rows - 1 - row) * fills.len();
        let (label_text, axis) = match row {
            0 => (top.to_string(), mark),
            row if row == rows - 1 => ("0".to_string(), mark),
            _ => (String::new(), axis),
        };
        let bars =
            shown.iter().map(
                |count| match height(*count, top, steps).saturating_sub(below) {
                    0 => ' ',
                    filled => fills[filled.min(fills.len()) - 1],
                },
            );
        let blank = " ".repeat(width - shown.len());
        format!(
            "{label_text:>label$} {axis}{blank}{}",
            bars.collect::<String>()
        )
    };
    (0..rows).map(line).collect()
}

/// Returns the height of a bar in steps, rounded up: a count above 0 is always visible.
fn height(count: Option<u64>, top: u64, steps: usize) -> usize {
    let Some(count) = count else {
        return 0;
    };
    let exact = u128::from(count) * steps as u128;
    let height = exact.div_ceil(u128::from(top));
    usize::try_from(height).unwrap_or(steps).min(steps)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn chart(counts: &[u64], rows: usize, columns: usize, has_blocks: bool) -> Vec<String> {
        let counts = counts
            .iter()
            .map(|count| (*count > 0).then_some(*count))
            .collect();
        lines(&counts, rows, columns, has_blocks)
    }

    #[test]
    fn bars_grow_with_the_counts_and_leave_gaps() {
        assert_eq!(
            chart(&[1, 8, 0, 16], 2, 9, true),
            ["16 ┤    █", " 0 ┤ ▁█ █"].map(|line| line.to_string())
        );
        assert_eq!(chart(&[1, 2, 3, 4], 2, 7, false), ["4 +  .#", "0 +.###"]);
        assert_eq!(chart(&[1, 8], 1, 20, true), ["8 ┤               ▁█"]);
    }

    #[test]
    fn any_size_and_any_count_will_do() {
        for (rows, columns) in [(0, 0), (1, 1), (1, 3), (3, 4), (50, 300)] {
            for line in chart(&[0, 1, u64::MAX], rows, columns, true) {
                assert!(
                    line.chars().count() <= columns.max(1),
                    "{rows} {columns} {line}"
                );
            }
        }
        assert!(chart(&[], 2, 20, true)[0].starts_with("1 ┤"));
    }
}
