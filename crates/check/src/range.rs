//! Threshold ranges in the syntax of monitoring plugins.

use std::fmt;
use std::str::FromStr;

/// A threshold range: `10` alerts outside of 0 to 10, `10:` below 10, `~:10` above 10, `10:20`
/// outside of 10 to 20, and `@10:20` inside. Both ends belong to the named range.
#[derive(Clone, Debug, PartialEq)]
pub struct Range {
    /// The text as given, for the performance data.
    text: String,
    low: f64,
    high: f64,
    /// Whether values inside the range alert.
    inside: bool,
}

impl Range {
    /// Returns whether this value alerts.
    pub fn alerts_at(&self, value: f64) -> bool {
        (self.low..=self.high).contains(&value) == self.inside
    }
}

impl FromStr for Range {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (inside, named) = match text.strip_prefix('@') {
            Some(named) => (true, named),
            None => (false, text),
        };
        let (low, high) = match named.split_once(':') {
            Some((low, "")) => (start(low), Some(f64::INFINITY)),
            Some((low, high)) => (start(low), number(high)),
            None => (Some(0.0), number(named)),
        };
        match (low, high) {
            (Some(low), Some(high)) if low > high => Err(format!("{low} is more than {high}")),
            (Some(low), Some(high)) => Ok(Range {
                text: text.to_string(),
                low,
                high,
                inside,
            }),
            _ => Err("not a range, such as 10, 10:, ~:10, 10:20 or @10:20".to_string()),
        }
    }
}

impl fmt::Display for Range {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

fn start(text: &str) -> Option<f64> {
    match text {
        "~" => Some(f64::NEG_INFINITY),
        _ => number(text),
    }
}

/// Parses a decimal number without an exponent, the only format that performance data allows.
pub fn number(text: &str) -> Option<f64> {
    let decimal = |c: char| c.is_ascii_digit() || c == '.' || c == '-';
    let number: f64 = text.chars().all(decimal).then(|| text.parse().ok())??;
    number.is_finite().then_some(number)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Returns those of `values` that alert.
    fn alerts(text: &str, values: &[f64]) -> Vec<f64> {
        let range: Range = text
            .parse()
            .unwrap_or_else(|error| panic!("{text}: {error}"));
        assert_eq!(range.to_string(), text);
        let alert = |value: &&f64| range.alerts_at(**value);
        values.iter().filter(alert).copied().collect()
    }

    #[test]
    fn the_five_forms_mean_what_the_guidelines_say() {
        let values = [-1.0, 0.0, 9.9, 10.0, 15.0, 20.0, 20.1];
        assert_eq!(alerts("10", &values), [-1.0, 15.0, 20.0, 20.1]);
        assert_eq!(alerts("10:", &values), [-1.0, 0.0, 9.9]);
        assert_eq!(alerts("~:10", &values), [15.0, 20.0, 20.1]);
        assert_eq!(alerts("10:20", &values), [-1.0, 0.0, 9.9, 20.1]);
        assert_eq!(alerts("@10:20", &values), [10.0, 15.0, 20.0]);
    }

    #[test]
    fn they_can_be_combined_and_take_decimals_and_negative_numbers() {
        assert_eq!(alerts("@10", &[-1.0, 0.0, 10.0, 11.0]), [0.0, 10.0]);
        assert_eq!(alerts("@10:", &[9.0, 10.0, 11.0]), [10.0, 11.0]);
        assert_eq!(alerts("@~:0", &[-5.0, 0.0, 1.0]), [-5.0, 0.0]);
        assert_eq!(alerts("0.25:.5", &[0.2, 0.25, 0.5, 0.51]), [0.2, 0.51]);
        assert_eq!(alerts("-2:-1", &[-3.0, -2.0, -1.0, 0.0]), [-3.0, 0.0]);
        assert_eq!(alerts("0", &[0.0, 0.1]), [0.1]);
    }

    #[test]
    fn what_is_no_range_is_refused() {
        let long = "9".repeat(400);
        for bad in [
            "", "@", ":", "~", "10:x", "x:10", ":10", "10:20:30", "1,5", "1e3", "inf", "~:nan",
            " 10", "+1", "1-2", "@@1", "10:~", ".", "10s", &long,
        ] {
            assert!(bad.parse::<Range>().is_err(), "{bad}");
        }
        for inverted in ["20:10", "@0.5:0.25", "-1"] {
            let error = inverted.parse::<Range>().expect_err(inverted);
            assert!(error.contains(" is more than "), "{error}");
        }
    }
}
