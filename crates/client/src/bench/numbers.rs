//! Formats numbers for people.

use indicatif::HumanCount;

/// Formats a number with commas between its thousands.
pub fn grouped(number: u64) -> String {
    HumanCount(number).to_string()
}

/// Formats a number with the noun that it counts.
pub fn counted(number: u64, one: &str, many: &str) -> String {
    let name = if number == 1 { one } else { many };
    format!("{} {name}", grouped(number))
}

/// Formats nanoseconds in the unit that is easiest to read.
pub fn time(nanoseconds: f64) -> String {
    let (value, unit) = match nanoseconds {
        less if less < 1e6 => (less / 1e3, "µs"),
        less if less < 1e9 => (less / 1e6, "ms"),
        more => (more / 1e9, "s"),
    };
    match value {
        small if small < 9.995 => format!("{small:.2} {unit}"),
        middle if middle < 99.95 => format!("{middle:.1} {unit}"),
        great => format!("{great:.0} {unit}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_easy_to_read() {
        for (number, shown) in [
            (0, "0"),
            (999, "999"),
            (1000, "1,000"),
            (1234567, "1,234,567"),
        ] {
            assert_eq!(grouped(number), shown);
        }
        assert_eq!(counted(1, "reply", "replies"), "1 reply");
        assert_eq!(counted(2000, "reply", "replies"), "2,000 replies");
        for (nanoseconds, shown) in [
            (1.0, "0.00 µs"),
            (9_994.0, "9.99 µs"),
            (9_996.0, "10.0 µs"),
            (123_456.0, "123 µs"),
            (1_500_000.0, "1.50 ms"),
            (2_000_000_000.0, "2.00 s"),
        ] {
            assert_eq!(time(nanoseconds), shown);
        }
    }
}
