//! What the shells complete the command lines with.

use std::fmt::Write as _;

use blockchain_tcpd::command::SETS;
use clap::builder::PossibleValuesParser;
use clap::{Arg, Command, ValueHint};
use clap_complete::Shell;

use super::command;
use super::requests::WORDS;

/// What this shell reads to complete our command lines.
pub fn script(shell: Shell) -> String {
    // A colon in the name of a value would be one of zsh's own.
    let plain = |argument: Arg| match argument.get_value_hint() {
        ValueHint::Hostname => argument.value_name("HOST"),
        _ => argument,
    };
    let command = command().mut_args(plain);
    let command = command.mut_subcommands(|task| task.mut_args(plain));
    let mut command = command.mut_subcommand("help", |help| help.mut_arg(WORDS, named));
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
        Shell::Fish => text + &values_for_fish(&command),
        _ => text,
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

/// The argument of `help`: the name of a command.
fn named(argument: Arg) -> Arg {
    let entries = SETS.iter().flat_map(|(_, set)| set.iter());
    let names = entries.map(|entry| entry.name.to_lowercase());
    argument
        .value_parser(PossibleValuesParser::new(names))
        .hide(false)
}

/// With the name in capital letters, too.
fn in_capitals(request: Command) -> Command {
    let aliases: Vec<String> = request.get_all_aliases().map(str::to_string).collect();
    request.alias(None::<&str>).visible_aliases(aliases)
}
