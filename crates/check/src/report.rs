//! Report for the monitoring system: a status line with performance data after `|`, further lines
//! on request, and the exit status.

use std::fmt;
use std::io::ErrorKind;
use std::process::ExitCode;

use shared::stdio;
use shared::text::escape;

/// Status, ordered from good to bad. UNKNOWN is never compared, as it means that nothing was
/// learned.
#[derive(Clone, Copy, Debug, Eq, Ord, PartialEq, PartialOrd)]
pub enum Status {
    /// All answers are valid, and within the thresholds.
    Ok,
    /// A warning threshold is violated.
    Warning,
    /// A critical threshold is violated, or the answers are missing or invalid.
    Critical,
    /// The plugin could not check, or could not report the result.
    Unknown,
}

impl Status {
    fn exit_status(self) -> u8 {
        match self {
            Status::Ok => 0,
            Status::Warning => 1,
            Status::Critical => 2,
            Status::Unknown => 3,
        }
    }
}

impl fmt::Display for Status {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Status::Ok => "OK",
            Status::Warning => "WARNING",
            Status::Critical => "CRITICAL",
            Status::Unknown => "UNKNOWN",
        })
    }
}

/// All that is printed.
pub struct Report {
    /// The status.
    pub status: Status,
    /// The message.
    pub text: String,
    /// Performance data, in the format of the guidelines.
    pub performance: Option<String>,
    /// Further lines.
    pub trace: Vec<String>,
}

impl Report {
    /// Returns a report without performance data.
    pub fn new(status: Status, text: String) -> Self {
        Report {
            status,
            text,
            performance: None,
            trace: Vec::new(),
        }
    }

    /// Prints the report and returns its exit status: UNKNOWN if the output can't be written.
    pub fn print(&self) -> ExitCode {
        print(&self.to_string(), self.status)
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "BLOCKCHAIN-TCP {} - {}",
            self.status,
            one_line(&self.text)
        )?;
        if let Some(performance) = &self.performance {
            write!(f, " | {performance}")?;
        }
        let mut trace = self.trace.iter();
        trace.try_for_each(|line| write!(f, "\n{}", one_line(line)))
    }
}

/// Prints a line and returns the exit status. The guidelines demand the line: if it is lost, as it
/// is where standard output is closed, the status is UNKNOWN. A reader that closes the pipe early
/// wants no line.
pub fn print(text: &str, status: Status) -> ExitCode {
    let status = match stdio::print(&format!("{text}\n")) {
        // A broken pipe is not an error: the reader has closed it early.
        Err(error) if error.kind() != ErrorKind::BrokenPipe => Status::Unknown,
        _ => status,
    };
    ExitCode::from(status.exit_status())
}

/// Escapes control characters and bars, which would split the text into lines and performance data.
fn one_line(text: &str) -> String {
    escape(text, |c| c == '|' || c.is_control())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_performance_data_are_behind_a_bar() {
        let report = Report {
            performance: Some("time=1s".to_string()),
            trace: vec!["note|x=1\nline".to_string()],
            ..Report::new(Status::Warning, "a|b=1\nc\u{1b}".to_string())
        };
        assert_eq!(
            report.to_string(),
            "BLOCKCHAIN-TCP WARNING - a\\x7cb=1\\x0ac\\x1b | time=1s\nnote\\x7cx=1\\x0aline"
        );
    }
}
