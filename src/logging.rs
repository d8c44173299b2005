//! Logging: one line per event on stderr, with `key=value` pairs, and with priorities for the
//! journal.

use std::fmt::Write as _;
use std::io::{self, Write as _};
use std::os::unix::fs::MetadataExt as _;

use env_logger::Target;
use env_logger::fmt::Formatter;
use jiff::Timestamp;
use log::kv::{Key, Value, VisitSource};
use log::{Level, LevelFilter, Record, error};
use rustix::event::{PollFd, PollFlags, Timespec, poll};

use crate::error::Error;

/// Checks the value of `--log`: `LEVEL` and `MODULE=LEVEL`, separated by commas.
pub fn check_filter(filter: &str) -> Result<String, String> {
    for directive in filter.split(',') {
        let level = match directive.split_once('=') {
            Some((module, level)) if is_module(module.trim()) => level,
            Some((module, _)) => {
                return Err(format!(
                    "{module:?} is not a module of this program, such as blockchain_tcpd::session"
                ));
            }
            None => directive,
        };
        if level.trim().parse::<LevelFilter>().is_err() {
            return Err(format!(
                "{level:?} is not one of off, error, warn, info, debug, trace"
            ));
        }
    }
    Ok(filter.to_string())
}

/// Returns whether `name` may be the name of a module of this program.
fn is_module(name: &str) -> bool {
    let is_allowed = |c: char| c.is_ascii_lowercase() || c == '_';
    let is_part = |part: &str| !part.is_empty() && part.chars().all(is_allowed);
    let mut parts = name.split("::");
    parts.next() == Some("blockchain_tcpd") && parts.all(is_part)
}

/// Starts the log, and logs panics.
pub fn start(filter: &str) {
    let journal = stderr_is_the_journal();
    let started = env_logger::Builder::new()
        .parse_filters(filter)
        .target(Target::Pipe(Box::new(Stderr { journal, lost: 0 })))
        .format(move |output, record| write_line(output, record, journal))
        .try_init();
    // Fails only if a logger is set already, as in a test.
    if started.is_ok() {
        std::panic::set_hook(Box::new(|panic| {
            let at = panic
                .location()
                .map_or_else(String::new, ToString::to_string);
            let why = panic.payload_as_str().unwrap_or("");
            error!(at:%, why:%; "panic");
        }));
    }
}

/// Prints a fatal error to stderr, whether or not the log has been started.
pub fn print_fatal(error: &Error) {
    let prefix = if stderr_is_the_journal() {
        format!("<{}>", priority(Level::Error))
    } else {
        String::new()
    };
    let mut text = String::new();
    for (index, line) in error.to_string().lines().enumerate() {
        // The journal makes an entry of each line.
        text.push_str(&prefix);
        text.push_str(if index == 0 { "blockchain-tcpd: " } else { "" });
        push_escaped(&mut text, line);
        text.push('\n');
    }
    // A failure can't be reported anywhere else.
    let _ = Stderr::default().write(text.as_bytes());
}

/// Non-blocking writer to stderr. When the reader is too slow, lines are dropped and counted.
#[derive(Default)]
struct Stderr {
    journal: bool,
    lost: u64,
}

impl Stderr {
    /// Returns whether a line can be written without blocking: a pipe that is ready accepts at
    /// least 4,096 bytes (pipe(7)).
    fn is_ready() -> bool {
        let stderr = rustix::stdio::stderr();
        let mut events = [PollFd::new(&stderr, PollFlags::OUT)];
        // If poll fails, the write reports the problem.
        poll(&mut events, Some(&Timespec::default())).is_err() || !events[0].revents().is_empty()
    }
}

impl io::Write for Stderr {
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        if !Self::is_ready() {
            self.lost += 1;
            return Ok(line.len());
        }
        if self.lost > 0 {
            let prefix = prefix(Level::Warn, self.journal);
            let notice = format!("{prefix}lost: nobody read the log lines={}\n", self.lost);
            rustix::io::write(rustix::stdio::stderr(), notice.as_bytes())?;
            self.lost = 0;
            // The notice has used some of the room.
            return self.write(line);
        }
        Ok(rustix::io::write(rustix::stdio::stderr(), line)?)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Returns whether stderr is the stream that systemd names in JOURNAL_STREAM as device:inode
/// (systemd.exec(5)).
fn stderr_is_the_journal() -> bool {
    let Ok(stream) = std::env::var("JOURNAL_STREAM") else {
        return false;
    };
    // /proc may be hidden; then only the priorities are missing.
    std::fs::metadata("/proc/self/fd/2")
        .is_ok_and(|stderr| stream == format!("{}:{}", stderr.dev(), stderr.ino()))
}

fn write_line(output: &mut Formatter, record: &Record<'_>, journal: bool) -> io::Result<()> {
    let mut line = prefix(record.level(), journal);
    push_escaped(&mut line, &record.args().to_string());
    // The visitor never fails.
    let _ = record.key_values().visit(&mut Pairs(&mut line));
    line.push('\n');
    output.write_all(line.as_bytes())
}

/// Returns the beginning of a line: a priority for the journal, which adds the time; otherwise the
/// time and the level.
fn prefix(level: Level, journal: bool) -> String {
    if journal {
        format!("<{}>", priority(level))
    } else {
        format!("{:.3} {level:5} ", Timestamp::now())
    }
}

/// Returns the syslog priority, as in sd-daemon(3).
fn priority(level: Level) -> u8 {
    match level {
        Level::Error => 3,
        Level::Warn => 4,
        Level::Info => 6,
        Level::Debug | Level::Trace => 7,
    }
}

struct Pairs<'a>(&'a mut String);

impl<'kvs> VisitSource<'kvs> for Pairs<'_> {
    fn visit_pair(&mut self, key: Key<'kvs>, value: Value<'kvs>) -> Result<(), log::kv::Error> {
        // Writing to a String can't fail.
        let _ = write!(self.0, " {key}=");
        push_value(self.0, &value.to_string());
        Ok(())
    }
}

/// Appends a value, in quotes if it is empty or contains blanks, quotes or `=`, so that the pairs
/// can be separated.
fn push_value(line: &mut String, value: &str) {
    if value.is_empty() || value.contains([' ', '"', '=']) {
        line.push_str(&format!("{value:?}"));
    } else {
        push_escaped(line, value);
    }
}

/// Appends `text`, escaping characters that would break the line or a terminal.
fn push_escaped(line: &mut String, text: &str) {
    for character in text.chars() {
        if character.is_control() {
            line.extend(character.escape_default());
        } else {
            line.push(character);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_filter_is_levels_alone_or_by_module() {
        for good in ["info", "WARN", "off", "info,blockchain_tcpd::server=debug"] {
            assert!(check_filter(good).is_ok(), "{good}");
        }
        for bad in [
            "",
            "inof",
            "blockchain_tcpd",
            "a=b",
            "a=b=debug",
            "a b=debug",
            "blockchain_tcpd::=debug",
            "info,",
        ] {
            assert!(check_filter(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn a_line_stays_a_line_and_pairs_can_be_told_apart() {
        let mut line = String::new();
        push_escaped(&mut line, "a\nb\u{1b}[31m");
        assert_eq!(line, "a\\nb\\u{1b}[31m");
        for (value, shown) in [
            ("plain", "plain"),
            ("a\u{1b}[31m", "a\\u{1b}[31m"),
            ("two \"words\"\n\u{9b}", r#""two \"words\"\n\u{9b}""#),
            ("", "\"\""),
        ] {
            let mut line = String::new();
            push_value(&mut line, value);
            assert_eq!(line, shown);
        }
    }
}
