//! Error messages for environment variables; variables that are not needed are not validated.

use std::ffi::OsString;

use clap::parser::ValueSource;
use clap::{Arg, ArgMatches};
use shared::args::{unreadable, wrong_variable};
use shared::dial::Server;

use super::{command, usage};
use crate::failure::Failure;

/// Ignores a variable that is empty.
pub fn without_empty(argument: Arg) -> Arg {
    let variable = argument.get_env().and_then(std::env::var_os);
    match variable.is_some_and(|value| value.is_empty()) {
        true => argument.env(None::<&str>),
        false => argument,
    }
}

/// Parses a command line that is valid except for a variable that it does not need. Otherwise
/// returns the error of the command line or of a variable.
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

/// Returns whether the command line does not need the argument's variable.
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
