//! Large digits: numbers drawn three terminal rows high.

/// Height of a digit in rows.
pub const ROWS: usize = 3;

/// Digits 0 to 9 in half blocks, three columns wide.
const BLOCKS: [[&str; ROWS]; 10] = [
    ["█▀█", "█ █", "▀▀▀"],
    ["▀█ ", " █ ", "▀▀▀"],
    ["▀▀█", "█▀▀", "▀▀▀"],
    ["▀▀█", " ▀█", "▀▀▀"],
    ["█ █", "▀▀█", "  ▀"],
    ["█▀▀", "▀▀█", "▀▀▀"],
    ["█▀▀", "█▀█", "▀▀▀"],
    ["▀▀█", "  █", "  ▀"],
    ["█▀█", "█▀█", "▀▀▀"],
    ["█▀█", "▀▀█", "▀▀▀"],
];

/// Digits 0 to 9 in ASCII.
const ASCII: [[&str; ROWS]; 10] = [
    [" _ ", "| |", "|_|"],
    ["   ", "  |", "  |"],
    [" _ ", " _|", "|_ "],
    [" _ ", " _|", " _|"],
    ["   ", "|_|", "  |"],
    [" _ ", "|_ ", " _|"],
    [" _ ", "|_ ", "|_|"],
    [" _ ", "  |", "  |"],
    [" _ ", "|_|", "|_|"],
    [" _ ", "|_|", " _|"],
];

/// Returns the rows of a number, all equally wide; a dash if there is no number.
pub fn rows(number: Option<u64>, has_blocks: bool) -> [String; ROWS] {
    let shapes = if has_blocks { &BLOCKS } else { &ASCII };
    let dash = if has_blocks { "▀▀▀" } else { "---" };
    let Some(number) = number else {
        return ["   ", dash, "   "].map(str::to_string);
    };
    let digits = number.to_string();
    let digits = digits.bytes().map(|digit| usize::from(digit - b'0'));
    std::array::from_fn(|row| {
        let shapes: Vec<&str> = digits.clone().map(|digit| shapes[digit][row]).collect();
        shapes.join(" ")
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_rows_are_equally_wide() {
        for number in [Some(1234567890), Some(u64::MAX), None] {
            for has_blocks in [true, false] {
                let widths = rows(number, has_blocks).map(|row| row.chars().count());
                assert_eq!(widths, [widths[0]; ROWS]);
            }
        }
        assert_eq!(rows(Some(42), false), ["     _ ", "|_|  _|", "  | |_ "]);
    }
}
