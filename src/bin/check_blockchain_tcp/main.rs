//! The monitoring plugin: asks a server `WHO`, `WHERE` and `WHY` in one connection, and tells Nagios and its kin how it is.
//!
//! It keeps to the Monitoring Plugins Development Guidelines: one line on standard output with figures behind `|`, exit
//! status 0 for OK, 1 for WARNING, 2 for CRITICAL and 3 for UNKNOWN. [`options`] says what it can be told; [`probe`] finds
//! the server and asks; [`evaluate`] holds the answers against the thresholds ([`range`]); [`report`] is what is printed, with
//! the [`notes`] of `-v`.

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
