//! Command-line client of the server, for people and for scripts.
//!
//! [`options`] parses the command line and selects the task: one request ([`ask`]), an interactive
//! shell or a pipe ([`shell`]), a live display ([`watch`]), a load generator ([`mod@bench`]), users
//! from a file ([`mod@pull`]), or shell completions. [`output`] prints replies and failures; [`failure`] defines the exit
//! statuses; [`interrupt`] handles ^C; [`terminal`] tells what the terminal can display.

mod ask;
mod bench;
mod failure;
mod interrupt;
mod link;
mod options;
mod output;
mod pull;
mod shell;
mod terminal;
mod watch;

use std::process::ExitCode;

use failure::Failure;
use options::{Options, Task, completions};
use shared::args::ParsedArgs;

fn main() -> ExitCode {
    match run() {
        Ok(status) => status,
        Err(failure) => failure.report(),
    }
}

fn run() -> Result<ExitCode, Failure> {
    let (options, task) = match Options::parse_from(std::env::args_os())? {
        ParsedArgs::Print(text) => return output::print(&text).map(|()| ExitCode::SUCCESS),
        ParsedArgs::Run(run) => run,
    };
    match task {
        Task::Ask(words) => ask::run(&options, &words),
        Task::Connect(_) => shell::run(&options),
        Task::Watch(watch) => watch::run(&options, &watch),
        Task::Bench(bench) => bench::run(&options, &bench),
        // A thread of the store may still wait for the database.
        Task::Pull(pull) => store::exit(match pull::run(&options, &pull) {
            Ok(()) => 0,
            Err(failure) => {
                failure.report();
                failure.exit_status()
            }
        }),
        Task::Completions { shell } => {
            output::print(&completions::script(shell)).map(|()| ExitCode::SUCCESS)
        }
    }
}
