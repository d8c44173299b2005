//! Bar chart of counts, scaled from 0 to the greatest count shown.

use std::collections::VecDeque;

/// Fill levels of a row of a bar, from empty to full.
const BLOCKS: [char; 9] = [' ', '▁', '▂', '▃', '▄', '▅', '▆', '▇', '█'];

/// Steps of a row.
const STEPS: usize = BLOCKS.len() - 1;

/// Returns the newest counts that fit, the newest at the right edge, as `rows` lines of at most
/// `columns` characters.
pub fn lines(counts: &VecDeque<Option<u64>>, rows: usize, columns: usize) -> Vec<String> {
    let greatest = counts.iter().flatten().max().copied().unwrap_or(0).max(1);
    let label = greatest.to_string().len();
    // The label, a blank and the axis take the rest.
    let width = columns.saturating_sub(label + 2);
    let shown = counts.iter().skip(counts.len().saturating_sub(width));
    let top = shown.clone().flatten().max().copied().unwrap_or(0).max(1);
    let blank = " ".repeat(width - shown.len());
    let line = |row: usize| {
        let (text, axis) = match row {
            0 => (top.to_string(), '┤'),
            row if row == rows - 1 => ("0".to_string(), '┤'),
            _ => (String::new(), '│'),
        };
        let below = (rows - 1 - row) * STEPS;
        let bars = shown.clone().map(|count| {
            let height = height(count.unwrap_or(0), top, rows * STEPS);
            BLOCKS[height.saturating_sub(below).min(STEPS)]
        });
        let bars: String = bars.collect();
        format!("{text:>label$} {axis}{blank}{bars}")
    };
    (0..rows).map(line).collect()
}

/// Returns the height of a bar in steps, rounded up: a count above 0 is always visible.
fn height(count: u64, top: u64, steps: usize) -> usize {
    let height = (u128::from(count) * steps as u128).div_ceil(u128::from(top));
    usize::try_from(height).unwrap_or(steps).min(steps)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bars_grow_with_the_counts_and_leave_gaps() {
        let counts = VecDeque::from([Some(1), Some(8), None, Some(16)]);
        assert_eq!(lines(&counts, 2, 9), ["16 ┤    █", " 0 ┤ ▁█ █"]);
        let counts = VecDeque::from([Some(1), Some(8)]);
        assert_eq!(lines(&counts, 1, 20), ["8 ┤               ▁█"]);
    }
}
