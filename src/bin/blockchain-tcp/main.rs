//! The client: talks to a server for people and for scripts.
//!
//! [`options`] says what it can be told and which task that is: one question ([`ask`]), a conversation ([`shell`]), the count live
//! ([`watch`]), how fast the server answers ([`mod@bench`]), or the completions of a shell. Replies and failures go out by [`output`];
//! [`failure`] knows the exit status of each; [`interrupt`] hears ^C; [`terminal`] knows what is worth drawing.

mod ask;
mod bench;
mod failure;
mod interrupt;
mod options;
mod output;
mod shell;
mod terminal;
mod watch;

use std::process::ExitCode;

use failure::Failure;
use options::{Asked, Options, Task};
use output::Output;

fn main() -> ExitCode {
    match run() {
        Ok(status) => status,
        Err(failure) => failure.report(),
    }
}

fn run() -> Result<ExitCode, Failure> {
    let (options, task) = match Options::parse_from(std::env::args_os())? {
        Asked::Print(text) => return Output::print(&text).map(|()| ExitCode::SUCCESS),
        Asked::Do(options, task) => (options, task),
    };
    match task {
        Task::Ask(words) => ask::run(&options, &words),
        Task::Connect => shell::run(&options),
        Task::Watch(watch) => watch::run(&options, &watch),
        Task::Bench(bench) => bench::run(&options, &bench),
    }
}
