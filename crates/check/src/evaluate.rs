//! Evaluates valid answers against the thresholds: status, message and performance data.

use crate::options::Options;
use crate::probe::Answers;
use crate::range::Range;
use crate::report::{Report, Status};
use crate::users;

/// Returns the report on these answers.
pub fn report(options: &Options, answers: &Answers) -> Report {
    let time = answers.time.as_secs_f64();
    // Exact up to 2^53 clients.
    let clients = answers.clients as f64;
    let (time_status, time_reason) = compare(time, &options.warning, &options.critical);
    let (warning, critical) = (&options.warning_clients, &options.critical_clients);
    let (clients_status, clients_reason) = compare(clients, warning, critical);
    let other = options.id.filter(|id| *id != answers.id);
    let id_status = other.map_or(Status::Ok, |_| Status::Critical);
    let plural = if answers.clients == 1 { "" } else { "s" };
    let expected = other.map_or(String::new(), |id| format!(" (critical: not {id})"));
    let from = match options.verbose {
        0 => String::new(),
        _ => format!(", from {}", answers.address),
    };
    let text = format!(
        "{} client{plural}{clients_reason}, {time:.3} s{time_reason}, id {}{expected}{from}",
        answers.clients, answers.id,
    );
    let performance = format!(
        "time={time:.6}s;{};{};0;{} clients={};{};{};1",
        threshold(&options.warning),
        threshold(&options.critical),
        options.timeout.as_secs_f64(),
        answers.clients,
        threshold(warning),
        threshold(critical),
    );
    Report {
        status: id_status.max(time_status).max(clients_status),
        text,
        performance: Some(performance),
        trace: Vec::new(),
    }
}

/// Returns the report on these answers about the users.
pub fn users_report(options: &Options, answers: &users::Answers) -> Report {
    let time = answers.time.as_secs_f64();
    let (time_status, time_reason) = compare(time, &options.warning, &options.critical);
    // Exact up to 2^53 users.
    let users = answers.users as f64;
    let (warning, critical) = (&options.warning_users, &options.critical_users);
    let (users_status, users_reason) = compare(users, warning, critical);
    let (warning_age, critical_age) = (&options.warning_age, &options.critical_age);
    let wants_age = warning_age.is_some() || critical_age.is_some();
    let (age_status, age_text) = match answers.age {
        Some(age) => {
            let (status, reason) = compare(age as f64, warning_age, critical_age);
            (status, format!(", pulled {age} s ago{reason}"))
        }
        None if wants_age => {
            let why = "the server has no --users-feed, or no pull was complete yet";
            (
                Status::Critical,
                format!(", of unknown age (critical: {why})"),
            )
        }
        None => (Status::Ok, String::new()),
    };
    let plural = if answers.users == 1 { "" } else { "s" };
    let from = match options.verbose {
        0 => String::new(),
        _ => format!(", from {}", answers.address),
    };
    let (total, checked) = (answers.users, answers.checked);
    let text = format!(
        "{total} user{plural}{users_reason}, {checked} of them read{age_text}, {time:.3} s{time_reason}{from}"
    );
    let mut performance = format!(
        "time={time:.6}s;{};{};0;{} users={total};{};{};0",
        threshold(&options.warning),
        threshold(&options.critical),
        options.timeout.as_secs_f64(),
        threshold(warning),
        threshold(critical),
    );
    let age = answers.age.map(|age| format!("{age}s"));
    if let Some(age) = age.or(wants_age.then(|| "U".to_string())) {
        let (warning, critical) = (threshold(warning_age), threshold(critical_age));
        performance += &format!(" age={age};{warning};{critical};0");
    }
    Report {
        status: users_status.max(age_status).max(time_status),
        text,
        performance: Some(performance),
        trace: Vec::new(),
    }
}

/// Formats a threshold for the performance data: empty if there is none.
fn threshold(range: &Option<Range>) -> String {
    range.as_ref().map(Range::to_string).unwrap_or_default()
}

/// Compares a value with its two thresholds. Returns the status, and the violated threshold for the
/// message.
fn compare(value: f64, warning: &Option<Range>, critical: &Option<Range>) -> (Status, String) {
    for (range, status) in [(critical, Status::Critical), (warning, Status::Warning)] {
        if let Some(range) = range.as_ref().filter(|range| range.alerts_at(value)) {
            let name = status.to_string().to_lowercase();
            return (status, format!(" ({name}: {range})"));
        }
    }
    (Status::Ok, String::new())
}
