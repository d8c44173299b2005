//! What is said of a variable that is wrong; and that one which isn't needed may be anything.

use std::ffi::OsString;

use blockchain_tcpd::dial::Server;
use blockchain_tcpd::options::{unreadable, wrong_variable};
use clap::parser::ValueSource;
use clap::{Arg, ArgMatches};

use super::{command, usage};
use crate::failure::Failure;

/// An empty variable counts as not set.
pub fn without_empty(argument: Arg) -> Arg {
    let variable = argument.get_env().and_then(std::env::var_os);
    match variable.is_some_and(|value| value.is_empty()) {
        true => argument.env(None::<&str>),
        false => argument,
    }
}

/// A command line that is right, but for a variable that it doesn't need; otherwise, what is wrong with it or with a variable.
pub fn without_overruled(arguments: &[OsString]) -> Result<ArgMatches, Failure> {
    let without_variables = command().mut_args(|argument| argument.env(None::<&str>));
    let given = without_variables.try_get_matches_from(arguments);
    let given = given.map_err(|error| usage(&error))?;
    let command = command().mut_args(|argument| match is_overruled(&argument, &given) {
        true => argument.env(None::<&str>),
        false => argument,
    });
    let parsed = command.clone().try_get_matches_from(arguments);
    parsed.map_err(|error| {
        let unreadable = command.get_arguments().find_map(unreadable);
        let said = unreadable.or_else(|| wrong_variable(&command, &error));
        said.map_or_else(|| usage(&error), Failure::Usage)
    })
}

/// Whether the command line says it itself, or needs none.
fn is_overruled(argument: &Arg, given: &ArgMatches) -> bool {
    let id = argument.get_id().as_str();
    let task = given.subcommand();
    let names_a_server = || {
        let to = task.and_then(|(_, task)| task.try_get_one::<Server>("to").ok());
        to.flatten().is_some()
    };
    given.value_source(id) == Some(ValueSource::CommandLine)
        || task.is_some_and(|(name, _)| name == "completions")
        || id == "server" && names_a_server()
}
