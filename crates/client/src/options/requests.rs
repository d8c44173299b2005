//! Requests as subcommands: all commands that servers of this version know, and any other word as
//! an external subcommand.

use std::ffi::{OsStr, OsString};
use std::fmt::Write as _;

use clap::{Arg, ArgMatches, Command, CommandFactory as _};
use shared::command::{CommandSpec, SETS};

use super::Line;

/// Id of the arguments of a request.
pub const WORDS: &str = "words";

/// Clap's id for the arguments of an unknown request.
const UNKNOWN_WORDS: &str = "";

/// Adds these requests to `tasks`, the command line that has the tasks.
pub fn added_to(tasks: Command, entries: impl Iterator<Item = &'static CommandSpec>) -> Command {
    let help = help_template(&tasks);
    tasks
        .subcommands(entries.map(request))
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
    let (name, asked) = matches.subcommand()?;
    // A request after `--` is an external subcommand, even if it is named like a task.
    let is_unknown = asked.ids().any(|id| id.as_str() == UNKNOWN_WORDS);
    if is_task(name) && !is_unknown {
        return None;
    }
    let id = if is_unknown { UNKNOWN_WORDS } else { WORDS };
    let arguments = asked.get_many::<OsString>(id).into_iter().flatten();
    let name = OsString::from(name);
    Some(std::iter::once(name).chain(arguments.cloned()).collect())
}

/// Returns the template of `--help`, with separate lists for tasks and requests, which clap would
/// merge. `line` has the tasks.
fn help_template(line: &Command) -> String {
    let mut text = "{about}\n\n{usage-heading} {usage}\n\nTasks:\n".to_string();
    let mut row = |name: &str, says: &str| {
        // Writing into a String can't fail.
        let _ = writeln!(text, "  {name:<14}  {says}");
    };
    for task in line.get_subcommands() {
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

/// Returns the task with the most similar name, if `word` is nearly its name.
pub fn misspelt_task(word: &OsStr) -> Option<String> {
    let word = word.to_str()?.to_lowercase();
    let names = Line::command();
    let mut names = names.get_subcommands().map(Command::get_name);
    let meant = names.find(|name| strsim::osa_distance(&word, name) <= 2)?;
    Some(meant.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_task_is_recognised_by_its_misspelt_name() {
        let meant = |word: &str| misspelt_task(OsStr::new(word));
        for (word, task) in [
            ("conect", "connect"),
            ("wacth", "watch"),
            ("BENCH", "bench"),
            ("completion", "completions"),
        ] {
            assert_eq!(meant(word).as_deref(), Some(task));
        }
        for word in ["who", "ping", "add", "foo", ""] {
            assert_eq!(meant(word), None, "{word}");
        }
    }
}
