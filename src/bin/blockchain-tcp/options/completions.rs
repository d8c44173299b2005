//! What the shells complete the command lines with.

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
    text.replace(&format!(" {name}\n"), " blockchain-tcp\n")
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
