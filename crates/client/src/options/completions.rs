//! Shell completion scripts.

use std::fmt::Write as _;

use clap::builder::{PossibleValue, PossibleValuesParser};
use clap::{Arg, Command, ValueHint};
use clap_complete::Shell;
use shared::command::sets;

use super::command;
use super::requests::WORDS;

/// An empty list: no value is offered.
const NOTHING: [&str; 0] = [];

/// Returns the completion script for this shell.
pub fn script(shell: Shell) -> String {
    let value = |argument| value(argument, shell);
    let command = command().mut_args(value);
    let command = command.mut_subcommands(|task| task.mut_args(value));
    let command = command.mut_subcommand("help", |help| {
        help.mut_arg(WORDS, |words| named(words).hide(false))
    });
    let mut command = command.mut_subcommand("bench", |bench| bench.mut_arg("request", named));
    // The generator's script for bash does not find the subcommands of a program with a hyphen in
    // its name, so it is generated for a name without one.
    let name = match shell {
        Shell::Bash => "blockchain_tcp",
        _ => "blockchain-tcp",
    };
    let mut text = Vec::new();
    clap_complete::generate(shell, &mut command, name, &mut text);
    let text = String::from_utf8_lossy(&text);
    let text = text.replace(&format!(" {name}\n"), " blockchain-tcp\n");
    match shell {
        // With these options bash would offer file names where the script offers nothing.
        Shell::Bash => text.replace(" -o bashdefault -o default", ""),
        // A line that ends in an option without its value is not an error: the subcommand may
        // follow.
        Shell::Fish => {
            text.replace("\n    or return\n", "\n    or return 0\n") + &values_for_fish(&command)
        }
        _ => text,
    }
}

/// Sets what the shell offers as the value of an argument: host names, a list, or nothing. Without
/// it, shells offer file names, which are never right.
fn value(argument: Arg, shell: Shell) -> Arg {
    let has_values = argument.get_action().takes_values();
    match (argument.get_value_hint(), shell) {
        // The generator for bash can't complete hosts, but the shell expands this list.
        (ValueHint::Hostname, Shell::Bash) => one_of(argument, ["$(compgen -A hostname)"]),
        // Zsh interprets a colon in the name of a value.
        (ValueHint::Hostname, _) => argument.value_name("HOST"),
        (ValueHint::Unknown, Shell::Bash)
            if has_values && argument.get_possible_values().is_empty() =>
        {
            one_of(argument, NOTHING)
        }
        (ValueHint::Unknown, _) if has_values => argument.value_hint(ValueHint::Other),
        _ => argument,
    }
}

/// Returns completions that clap_complete omits for fish: values of positional arguments, and `-f`
/// against file names.
fn values_for_fish(command: &Command) -> String {
    let mut text = String::new();
    for task in command.get_subcommands() {
        let mut values = Vec::new();
        for argument in task.get_positionals() {
            if argument.get_value_hint() == ValueHint::Hostname {
                values.push("(__fish_print_hostnames)".to_string());
            }
            let possible = argument.get_possible_values();
            values.extend(possible.iter().map(|value| value.get_name().to_string()));
        }
        let (name, values) = (task.get_name(), values.join(" "));
        // Writing into a String can't fail.
        let _ = writeln!(
            text,
            "complete -c blockchain-tcp -n \"__fish_blockchain_tcp_using_subcommand {name}\" -f -a \"{values}\""
        );
    }
    text
}

/// Completes an argument with the names of all commands.
fn named(argument: Arg) -> Arg {
    let entries = sets::all();
    one_of(argument, entries.map(|entry| entry.name.to_lowercase()))
}

/// Restricts an argument to these values, and removes its default, which need not be one of them.
fn one_of(argument: Arg, values: impl IntoIterator<Item = impl Into<PossibleValue>>) -> Arg {
    argument
        .default_value(None::<&str>)
        .value_parser(PossibleValuesParser::new(values))
}
