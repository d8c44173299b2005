//! What the shells complete the command lines with.

use std::fmt::Write as _;

use blockchain_tcpd::command::{CommandClass, CommandSpec, SETS};
use clap::builder::{PossibleValue, PossibleValuesParser};
use clap::{Arg, Command, ValueHint};
use clap_complete::Shell;

use super::command;
use super::requests::WORDS;

/// Where the script for bash takes the word before the one to be completed.
const PREVIOUS: &str = "    prev=\"$3\"\n";

/// For bash an equals sign and a colon are words of their own: what is before the one is the option, and behind the other is a port.
const SIGNS: &str = r#"    [[ "${prev}" == "=" ]] && prev="${COMP_WORDS[COMP_CWORD-2]}"
    [[ "${prev}" == ":" || "${COMP_WORDS[COMP_CWORD]}" == ":" ]] && return 0
"#;

/// No value can be offered.
const NOTHING: [&str; 0] = [];

/// What this shell reads to complete our command lines.
pub fn script(shell: Shell) -> String {
    let value = |argument| value(argument, shell);
    let command = command().mut_args(value);
    let command = command.mut_subcommands(|task| task.mut_args(value));
    let command = command.mut_subcommand("help", |help| {
        help.mut_arg(WORDS, |words| named(words, |_| true).hide(false))
    });
    let goes_on = |entry: &CommandSpec| entry.kind != CommandClass::Quit;
    let mut command = command.mut_subcommand("bench", |bench| {
        bench.mut_arg("request", |request| named(request, goes_on))
    });
    // What is written for bash finds no task of a program with a hyphen in its name: it is written for another. And it knows
    // names in capital letters only if it is told them.
    let name = match shell {
        Shell::Bash => {
            command = command.mut_subcommands(in_capitals);
            "blockchain_tcp"
        }
        _ => "blockchain-tcp",
    };
    let mut text = Vec::new();
    clap_complete::generate(shell, &mut command, name, &mut text);
    let text = String::from_utf8_lossy(&text);
    let text = text.replace(&format!(" {name}\n"), " blockchain-tcp\n");
    match shell {
        // Where nothing is offered, these would have bash offer the names of files.
        Shell::Bash => text
            .replace(" -o bashdefault -o default", "")
            .replace(PREVIOUS, &format!("{PREVIOUS}{SIGNS}")),
        // A line that ends in an option without its value is no error: the task is still to come.
        Shell::Fish => {
            text.replace("\n    or return\n", "\n    or return 0\n") + &values_for_fish(&command)
        }
        _ => text,
    }
}

/// With what the shells know of its value: a host, one of a list, or nothing. It is never the name of a file, which is what they offer
/// if they are told nothing.
fn value(argument: Arg, shell: Shell) -> Arg {
    let has_values = argument.get_action().takes_values();
    match (argument.get_value_hint(), shell) {
        // The generator for bash knows no hosts, but the shell expands a list.
        (ValueHint::Hostname, Shell::Bash) => one_of(argument, ["$(compgen -A hostname)"]),
        // A colon in the name of a value would be one of zsh's own.
        (ValueHint::Hostname, _) => argument.value_name("HOST"),
        (ValueHint::Unknown, Shell::Bash) if has_values && !has_list(&argument) => {
            one_of(argument, NOTHING)
        }
        (ValueHint::Unknown, _) if has_values => argument.value_hint(ValueHint::Other),
        _ => argument,
    }
}

/// What clap leaves out for fish: the values of what is no option, and that none is the name of a file.
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
        // Writing to a text succeeds.
        let _ = writeln!(
            text,
            "complete -c blockchain-tcp -n \"__fish_blockchain_tcp_using_subcommand {name}\" -f -a \"{values}\""
        );
    }
    text
}

/// An argument that begins with the name of one of these commands.
fn named(argument: Arg, is_one: impl Fn(&CommandSpec) -> bool) -> Arg {
    let entries = SETS.iter().flat_map(|(_, set)| set.iter());
    let names = entries.filter(|entry| is_one(entry));
    one_of(argument, names.map(|entry| entry.name.to_lowercase()))
}

/// An argument that has one of these values, which need not be its default.
fn one_of(argument: Arg, values: impl IntoIterator<Item = impl Into<PossibleValue>>) -> Arg {
    argument
        .default_value(None::<&str>)
        .value_parser(PossibleValuesParser::new(values))
}

fn has_list(argument: &Arg) -> bool {
    !argument.get_possible_values().is_empty()
}

/// With the name in capital letters, too.
fn in_capitals(request: Command) -> Command {
    let aliases: Vec<String> = request.get_all_aliases().map(str::to_string).collect();
    request.alias(None::<&str>).visible_aliases(aliases)
}
