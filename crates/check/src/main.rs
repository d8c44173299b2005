//! Monitoring plugin for Nagios and compatible systems: asks a server `WHO`, `WHERE` and `WHY` over
//! one connection, or for its users, and reports its status.
//!
//! It follows the Monitoring Plugins Development Guidelines: one line on standard output, with
//! performance data after `|`, and exit status 0 for OK, 1 for WARNING, 2 for CRITICAL and 3 for
//! UNKNOWN. [`options`] parses the command line; [`probe`] connects and asks, and [`users`] asks for
//! the users; [`evaluate`] compares the answers with the thresholds ([`range`]); [`report`] prints
//! the result, with the trace ([`trace`]) of `-v`.

mod evaluate;
mod options;
mod probe;
mod range;
mod report;
mod trace;
mod users;

use std::process::ExitCode;

use options::Options;
use report::{Report, Status};
use shared::args::ParsedArgs;
use trace::Trace;

fn main() -> ExitCode {
    match Options::parse_from(std::env::args_os()) {
        Ok(ParsedArgs::Run(options)) => check(&options).print(),
        // Not a check: the exit status is that of UNKNOWN, as the guidelines say.
        Ok(ParsedArgs::Print(text)) => report::print(text.trim_end(), Status::Unknown),
        Err(message) => Report::new(Status::Unknown, message).print(),
    }
}

fn check(options: &Options) -> Report {
    let mut trace = Trace::new(options.verbose);
    let report = match options.users {
        true => {
            users::ask(options, &mut trace).map(|answers| evaluate::users_report(options, &answers))
        }
        false => probe::ask(options, &mut trace).map(|answers| evaluate::report(options, &answers)),
    };
    let mut report = report.unwrap_or_else(|report| report);
    report.trace = trace.into_lines();
    report
}
