//! Values and errors of command lines and variables, for all programs.

use std::time::Duration;

use clap::error::{ContextKind, ContextValue, ErrorKind};
use jiff::SignedDuration;
use uuid::Uuid;

use crate::text::escape;

/// The longest duration that can be set: a year.
const LONGEST_DURATION: Duration = Duration::from_hours(8760);

/// The shortest duration that can be set, except zero.
const SHORTEST_DURATION: Duration = Duration::from_millis(1);

/// Result of parsing a command line.
pub enum ParsedArgs<T> {
    /// The program runs with these options.
    Run(T),
    /// It prints this text: `--help` or `--version`.
    Print(String),
}

impl<T> ParsedArgs<T> {
    /// Returns the text that an error of clap stands for, or what `explain` makes of the error.
    pub fn requested<E>(
        error: clap::Error,
        explain: impl FnOnce(clap::Error) -> E,
    ) -> Result<Self, E> {
        match error.kind() {
            ErrorKind::DisplayHelp | ErrorKind::DisplayVersion => {
                Ok(ParsedArgs::Print(error.to_string()))
            }
            _ => Err(explain(error)),
        }
    }
}

/// Returns the message of an error of clap, with the arguments in it escaped, so that a line end in
/// an argument does not begin a line of the message. The command must have plain styles.
pub fn message(error: &clap::Error) -> String {
    // Without `ansi`, clap removes some control characters, and the arguments would not be found.
    let mut text = error.render().ansi().to_string();
    for (_, value) in error.context() {
        if let ContextValue::String(value) = value {
            text = text.replace(value, &escape(value, char::is_control));
        }
    }
    let text = text.strip_prefix("error: ").unwrap_or(&text);
    text.trim_end().to_string()
}

/// Returns an error message if the variable of this argument holds something that no message could
/// quote.
pub fn unreadable(argument: &clap::Arg) -> Option<String> {
    let variable = argument.get_env()?;
    let value = std::env::var_os(variable)?;
    let is_text = |text: &str| !text.contains(char::is_control);
    (!value.to_str().is_some_and(is_text)).then(|| {
        format!(
            "the variable {} holds a control character, or something that is not text: {value:?}",
            variable.display()
        )
    })
}

/// Returns the error message for a wrong value that comes from a variable, which it does if its
/// flag is not on the command line.
pub fn wrong_variable(command: &clap::Command, error: &clap::Error) -> Option<String> {
    let Some(ContextValue::String(argument)) = error.get(ContextKind::InvalidArg) else {
        return None;
    };
    // The flag without its value.
    let flag = |written: &str| written.split([' ', '=', '[']).next().map(str::to_string);
    let long = flag(argument)?;
    if std::env::args_os().any(|given| flag(&given.to_string_lossy()).as_ref() == Some(&long)) {
        return None;
    }
    let mut arguments = command.get_arguments();
    let argument_of = |known: &&clap::Arg| known.get_long() == long.strip_prefix("--");
    let variable = arguments.find(argument_of)?.get_env()?;
    std::env::var_os(variable)?;
    let text = message(error).lines().next()?.to_string();
    Some(text.replace(&format!("'{argument}'"), &variable.to_string_lossy()))
}

/// Parses a duration with its unit.
pub fn duration(text: &str) -> Result<Duration, &'static str> {
    let duration = text
        .parse::<SignedDuration>()
        .ok()
        .and_then(|duration| Duration::try_from(duration).ok());
    match duration {
        Some(duration) if duration > LONGEST_DURATION => Err("longer than a year, 8760h"),
        Some(duration) if !duration.is_zero() && duration < SHORTEST_DURATION => {
            Err("shorter than a millisecond, 1ms")
        }
        Some(duration) => Ok(duration),
        None => Err("not a duration with its unit, such as 500ms, 10s, 5m or 1h"),
    }
}

/// Parses a duration with its unit that is more than zero.
pub fn positive_duration(text: &str) -> Result<Duration, &'static str> {
    match duration(text)? {
        Duration::ZERO => Err("must be more than zero, such as 10s"),
        duration => Ok(duration),
    }
}

/// Parses a UUID in its usual form of 36 characters (RFC 9562, section 4). Returns the problem if
/// `text` is not one.
pub fn server_id(text: &[u8]) -> Result<Uuid, &'static str> {
    match Uuid::try_parse_ascii(text) {
        Ok(id) if id.is_nil() => Err("the nil UUID is not an id"),
        // The uuid crate accepts other forms, too.
        Ok(id) if text.len() == uuid::fmt::Hyphenated::LENGTH => Ok(id),
        _ if text.is_empty() => Err("it is empty"),
        _ => Err("not a UUID, such as 6f0c2a52-5f0e-4b7e-9a35-0c5f7f5a3c1e (uuidgen makes one)"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_need_a_unit() {
        assert_eq!(duration("5m"), Ok(Duration::from_secs(300)));
        assert_eq!(duration("1h 30m"), Ok(Duration::from_secs(5400)));
        assert_eq!(duration("500ms"), Ok(Duration::from_millis(500)));
        assert_eq!(duration("0s"), Ok(Duration::ZERO));
        for bad in ["", "5", "-5s", "5 parsecs", "five", "8761h", "999us"] {
            assert!(duration(bad).is_err(), "{bad}");
        }
        assert!(positive_duration("0s").is_err());
    }
}
