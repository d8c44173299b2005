//! Evaluates valid answers against the thresholds: status, message and performance data.

use crate::options::Options;
use crate::probe::Answers;
use crate::range::Range;
use crate::report::{Report, Status};

/// Returns the report on these answers.
pub fn on(options: &Options, answers: &Answers) -> Report {
    let time = answers.time.as_secs_f64();
    // Counts beyond the precision of f64 compare the same with any threshold.
    let clients = answers.clients as f64;
    let slow = ThresholdResult::on(time, &options.warning, &options.critical);
    let crowd = ThresholdResult::on(clients, &options.warning_clients, &options.critical_clients);
    let other = options.id.filter(|id| *id != answers.id);
    let identity = other.map_or(Status::Ok, |_| Status::Critical);
    let plural = if answers.clients == 1 { "" } else { "s" };
    let expected = other.map_or(String::new(), |id| format!(" (critical: not {id})"));
    let text = format!(
        "{} client{plural}{}, {time:.3} s{}, id {}{expected}",
        answers.clients,
        crowd.reason(),
        slow.reason(),
        answers.id,
    );
    let status = identity.max(slow.status).max(crowd.status);
    let figures = format!(
        "time={time:.6}s;{};{};0;{} clients={};{};{};1",
        shown(&options.warning),
        shown(&options.critical),
        options.timeout.as_secs_f64(),
        answers.clients,
        shown(&options.warning_clients),
        shown(&options.critical_clients),
    );
    let report = Report::new(status, text).with_figures(figures);
    report.answered_by(answers.address)
}

/// Formats a threshold for the performance data: empty if there is none.
fn shown(range: &Option<Range>) -> String {
    range.as_ref().map(Range::to_string).unwrap_or_default()
}

/// Result of comparing a value with its two thresholds.
struct ThresholdResult<'a> {
    status: Status,
    by: Option<&'a Range>,
}

impl<'a> ThresholdResult<'a> {
    fn on(value: f64, warning: &'a Option<Range>, critical: &'a Option<Range>) -> Self {
        let passed =
            |range: &'a Option<Range>| range.as_ref().filter(|range| range.alerts_at(value));
        if let Some(by) = passed(critical) {
            ThresholdResult {
                status: Status::Critical,
                by: Some(by),
            }
        } else if let Some(by) = passed(warning) {
            ThresholdResult {
                status: Status::Warning,
                by: Some(by),
            }
        } else {
            ThresholdResult {
                status: Status::Ok,
                by: None,
            }
        }
    }

    /// Returns the reason for the message: the threshold, if one is violated.
    fn reason(&self) -> String {
        let status = self.status.to_string().to_lowercase();
        self.by
            .map_or(String::new(), |range| format!(" ({status}: {range})"))
    }
}
