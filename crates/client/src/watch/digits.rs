//! Large digits: numbers drawn three terminal rows high.

/// Height of a digit in rows.
const ROWS: usize = 3;

/// Digits 0 to 9 in half blocks, three columns wide.
const DIGITS: [[&str; ROWS]; 10] = [
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

/// Returns the rows of a number, all equally wide; a dash if there is no number.
pub fn rows(number: Option<u64>) -> [String; ROWS] {
    let Some(number) = number else {
        return ["   ", "▀▀▀", "   "].map(str::to_string);
    };
    let digits = number.to_string();
    let digits = digits.bytes().map(|digit| usize::from(digit - b'0'));
    std::array::from_fn(|row| {
        let row: Vec<&str> = digits.clone().map(|digit| DIGITS[digit][row]).collect();
        row.join(" ")
    })
}
