//! Requests as subcommands: all commands that servers of this version know, and any other word as
//! an external subcommand.

use std::ffi::OsString;
use std::fmt::Write as _;

use clap::{Arg, ArgMatches, Command};
use shared::command::{CommandSpec, SETS, sets};

/// Id of the arguments of a request.
pub const WORDS: &str = "words";

/// Clap's id for the arguments of an unknown request.
const UNKNOWN_WORDS: &str = "";

/// Adds all requests to `tasks`, the command line that has the tasks.
pub fn added_to(tasks: Command) -> Command {
    let help = help_template(&tasks);
    tasks
        .subcommands(sets::all().map(request))
        .help_template(help)
        .arg_required_else_help(false)
        .allow_external_subcommands(true)
        .external_subcommand_value_parser(clap::value_parser!(OsString))
}

fn request(entry: &CommandSpec) -> Command {
    // Any number of arguments is sent: the server checks it.
    let words = Arg::new(WORDS)
        .num_args(0..)
        .allow_negative_numbers(true)
        .value_parser(clap::value_parser!(OsString))
        .hide(true);
    let name = entry.name.to_lowercase();
    let usage = format!("blockchain-tcp [OPTIONS] {}", with_arguments(entry));
    Command::new(name)
        // The documents write commands in capital letters.
        .alias(entry.name)
        .about(entry.summary)
        .override_usage(usage)
        .arg(words)
}

/// Returns the usage of a request.
fn with_arguments(entry: &CommandSpec) -> String {
    let text = [entry.name.to_lowercase(), entry.arguments()].join(" ");
    text.trim_end().to_string()
}

/// Returns the words of the request, or `None` if the command line runs a task, as `is_task`
/// decides.
pub fn words(matches: &ArgMatches, is_task: impl Fn(&str) -> bool) -> Option<Vec<OsString>> {
    let (name, request) = matches.subcommand()?;
    // A request after `--` is an external subcommand, even if it is named like a task.
    let is_unknown = request.ids().any(|id| id.as_str() == UNKNOWN_WORDS);
    if is_task(name) && !is_unknown {
        return None;
    }
    let id = if is_unknown { UNKNOWN_WORDS } else { WORDS };
    let arguments = request.get_many::<OsString>(id).into_iter().flatten();
    let name = OsString::from(name);
    Some(std::iter::once(name).chain(arguments.cloned()).collect())
}

/// Returns the template of `--help`, with separate lists for tasks and requests, which clap would
/// merge. `tasks` is the command line that has the tasks.
fn help_template(tasks: &Command) -> String {
    let mut text = "{about}\n\n{usage-heading} {usage}\n\nTasks:\n".to_string();
    let mut row = |name: &str, summary: &str| {
        // Writing into a String can't fail.
        let _ = writeln!(text, "  {name:<14}  {summary}");
    };
    for task in tasks.get_subcommands() {
        let about = task.get_about().map(ToString::to_string);
        row(task.get_name(), &about.unwrap_or_default());
    }
    // The set that every server offers comes first.
    let (server, others): (Vec<_>, Vec<_>) = SETS
        .iter()
        .copied()
        .partition(|(name, _)| *name == "server");
    for (name, set) in server.into_iter().chain(others) {
        text += &match name {
            "server" => "\nRequests:\n".to_string(),
            _ => format!("\nRequests to a server with --commands server,{name}:\n"),
        };
        for entry in set {
            let _ = writeln!(text, "  {:<14}  {}", with_arguments(entry), entry.summary);
        }
    }
    text += "\nAny other REQUEST is asked as it is, with all words after it, of servers that know more.\n";
    text + "\nOptions:\n{options}{after-help}"
}
