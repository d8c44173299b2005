//! Monitoring plugin for Nagios and compatible systems: asks a server `WHO`, `WHERE` and `WHY` over
//! one connection, and reports its status.
//!
//! It follows the Monitoring Plugins Development Guidelines: one line on standard output, with
//! performance data after `|`, and exit status 0 for OK, 1 for WARNING, 2 for CRITICAL and 3 for
//! UNKNOWN. [`options`] parses the command line; [`probe`] connects and asks; [`evaluate`] compares
//! the answers with the thresholds ([`range`]); [`report`] prints the result, with the trace
//! ([`notes`]) of `-v`.

mod evaluate;
mod notes;
mod options;
mod probe;
mod range;
mod report;

use std::process::ExitCode;

use notes::Notes;
use options::{Asked, Options};
use report::Report;

fn main() -> ExitCode {
    match Options::parse_from(std::env::args_os()) {
        Asked::Check(options) => check(&options).print(),
        Asked::Print(text) => report::print_text(&text),
        Asked::Complain(complaint) => Report::unknown(complaint).print(),
    }
}

fn check(options: &Options) -> Report {
    let mut notes = Notes::new(options.verbose);
    let report = match probe::ask(options, &mut notes) {
        Ok(answers) => evaluate::on(options, &answers),
        Err(report) => report,
    };
    report.with_notes(notes)
}
