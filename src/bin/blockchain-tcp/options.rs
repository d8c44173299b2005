//! What the client can be told: options, variables, and the task.

use std::ffi::{OsStr, OsString};
use std::fmt::Write as _;
use std::str::FromStr as _;
use std::time::Duration;

use blockchain_tcpd::command::SETS;
use blockchain_tcpd::dial::{Family, Server};
use blockchain_tcpd::options::positive_duration;
use clap::error::{ContextKind, ContextValue, ErrorKind};
use clap::parser::ValueSource;
use clap::{
    Arg, ArgMatches, Args, Command, CommandFactory as _, FromArgMatches as _, Parser, Subcommand,
    ValueHint,
};
use clap_complete::Shell;

use crate::failure::Failure;

/// Asks a blockchain-tcpd one thing, converses with it, shows its clients live, measures how fast it answers.
#[derive(Debug, Parser)]
#[command(
    name = "blockchain-tcp",
    version,
    max_term_width = 100,
    disable_help_subcommand = true,
    subcommand_value_name = "REQUEST",
    override_usage = "blockchain-tcp [OPTIONS] REQUEST [ARGUMENT]...\n       blockchain-tcp [OPTIONS] TASK",
    after_help = AFTER_HELP
)]
struct Line {
    #[command(flatten)]
    options: Options,
    #[command(subcommand)]
    task: Subtask,
}

/// What `--help` ends with.
const AFTER_HELP: &str = "\
Exit status:
  0   answered
  1   the server said ERR: its sentence is on standard error
  64  wrong usage
  69  no connection, or no reply
  71  the system refused something
  74  standard input or output failed
  75  the server has no room now: ERR BUSY
  76  that is no server of this kind

Examples:
  blockchain-tcp who
  blockchain-tcp --server ledger.example.org --json who
  blockchain-tcp connect";

/// What all tasks take.
#[derive(Args, Clone, Debug)]
pub struct Options {
    /// Name or address of the server, and its port; all addresses of a name are tried
    #[arg(
        short,
        long,
        global = true,
        env = "BLOCKCHAIN_TCP_SERVER",
        value_name = "HOST[:PORT]",
        value_hint = ValueHint::Hostname,
        value_parser = Server::from_str,
        default_value = "localhost:4242",
        hide_env_values = true
    )]
    pub server: Server,

    /// A connection, and then each reply, may take so long
    #[arg(
        short,
        long,
        global = true,
        env = "BLOCKCHAIN_TCP_TIMEOUT",
        value_name = "DURATION",
        value_parser = positive_duration,
        default_value = "10s",
        hide_env_values = true
    )]
    pub timeout: Duration,

    /// Only over IPv4
    #[arg(short = '4', long, global = true, conflicts_with = "use_ipv6")]
    pub use_ipv4: bool,

    /// Only over IPv6
    #[arg(short = '6', long, global = true)]
    pub use_ipv6: bool,

    /// Prints JSON, one object a line
    #[arg(long, global = true)]
    pub json: bool,
}

#[derive(Debug, Subcommand)]
enum Subtask {
    /// Converses line by line: a prompt with history and completion, or a pipe
    #[command(
        after_help = "The history is in $BLOCKCHAIN_TCP_HISTORY, else in $XDG_STATE_HOME/blockchain-tcp/history, else in \
                            ~/.local/state/blockchain-tcp/history; BLOCKCHAIN_TCP_HISTORY= keeps none."
    )]
    Connect {
        /// The server, instead of --server
        #[arg(value_name = "HOST[:PORT]", value_hint = ValueHint::Hostname, value_parser = Server::from_str)]
        to: Option<Server>,
    },
    /// Shows the number of clients, live, until ^C
    Watch {
        /// The server, instead of --server
        #[arg(value_name = "HOST[:PORT]", value_hint = ValueHint::Hostname, value_parser = Server::from_str)]
        to: Option<Server>,
        #[command(flatten)]
        watch: Watch,
    },
    /// Measures how fast the server answers, and verifies every reply
    Bench {
        /// The server, instead of --server
        #[arg(value_name = "HOST[:PORT]", value_hint = ValueHint::Hostname, value_parser = Server::from_str)]
        to: Option<Server>,
        #[command(flatten)]
        bench: Bench,
    },
    /// Prints what a shell completes these command lines with
    Completions {
        /// Which shell
        shell: Shell,
    },
}

/// How to watch.
#[derive(Args, Clone, Debug)]
#[group(skip)]
pub struct Watch {
    /// How often to ask
    #[arg(short, long, value_name = "DURATION", value_parser = positive_duration, default_value = "1s")]
    pub every: Duration,
}

/// How to measure.
#[derive(Args, Clone, Debug)]
#[group(skip)]
pub struct Bench {
    /// How many clients ask at the same time
    #[arg(short, long, value_name = "N", value_parser = |text: &str| number_up_to(100_000, text), default_value = "50")]
    pub clients: u32,

    /// How many requests each client has on the way
    #[arg(short = 'p', long, value_name = "N", value_parser = |text: &str| number_up_to(10_000, text), default_value = "1")]
    pub depth: u32,

    /// For how long
    #[arg(short, long, value_name = "DURATION", value_parser = positive_duration, default_value = "10s")]
    pub duration: Duration,

    /// What is asked
    #[arg(short, long, value_name = "REQUEST", default_value = "WHY")]
    pub request: String,
}

fn number_up_to(most: u32, text: &str) -> Result<u32, String> {
    match text.parse() {
        Ok(number) if (1..=most).contains(&number) => Ok(number),
        _ => Err(format!("not a whole number from 1 to {most}")),
    }
}

/// What is to be done.
#[derive(Debug)]
pub enum Task {
    /// To ask this, in so many words.
    Ask(Vec<OsString>),
    /// To converse.
    Connect,
    /// To show the count.
    Watch(Watch),
    /// To measure.
    Bench(Bench),
}

/// What the command line asks for.
pub enum Asked {
    /// To do this.
    Do(Options, Task),
    /// To print this text: `--help`, `--version`, completions.
    Print(String),
}

impl Options {
    /// Which addresses of a name are wanted.
    pub fn family(&self) -> Family {
        match (self.use_ipv4, self.use_ipv6) {
            (true, _) => Family::V4,
            (_, true) => Family::V6,
            _ => Family::Any,
        }
    }

    /// The options in `arguments`, of which the first is the program's name, and in the environment.
    pub fn parse_from(arguments: impl IntoIterator<Item = OsString>) -> Result<Asked, Failure> {
        let arguments: Vec<OsString> = arguments.into_iter().collect();
        match command().try_get_matches_from(&arguments) {
            Ok(matches) => Options::of(&matches),
            Err(error) => match error.kind() {
                ErrorKind::DisplayHelp | ErrorKind::DisplayVersion => {
                    Ok(Asked::Print(error.to_string()))
                }
                _ => Options::of(&without_overruled_variables(&arguments)?),
            },
        }
    }

    fn of(matches: &ArgMatches) -> Result<Asked, Failure> {
        let mut options = Options::from_arg_matches(matches).map_err(|error| usage(&error))?;
        if let Some((name, asked)) = matches.subcommand() {
            // Also one that is named like a task, behind `--`.
            let is_unknown = asked.ids().any(|id| id.as_str() == UNKNOWN_WORDS);
            if is_unknown || !Subtask::has_subcommand(name) {
                let id = if is_unknown { UNKNOWN_WORDS } else { WORDS };
                let arguments = asked.get_many::<OsString>(id).into_iter().flatten();
                let name = OsString::from(name);
                let words = std::iter::once(name).chain(arguments.cloned());
                return Ok(Asked::Do(options, Task::Ask(words.collect())));
            }
        }
        let subtask = Subtask::from_arg_matches(matches).map_err(|error| usage(&error))?;
        let (to, task) = match subtask {
            Subtask::Connect { to } => (to, Task::Connect),
            Subtask::Watch { to, watch } => (to, Task::Watch(watch)),
            Subtask::Bench { to, bench } => (to, Task::Bench(bench)),
            Subtask::Completions { shell } => return Ok(Asked::Print(completions(shell))),
        };
        if let Some(to) = to {
            options.server = to;
        }
        Ok(Asked::Do(options, task))
    }
}

/// The arguments of a request.
const WORDS: &str = "words";

/// Those of a request that isn't known, by clap's name for them.
const UNKNOWN_WORDS: &str = "";

/// The command line: the tasks, and all requests that servers of this version answer.
fn command() -> Command {
    let entries = SETS.iter().flat_map(|(_, set)| set.iter());
    let requests = entries.map(|entry| {
        let words = Arg::new(WORDS)
            .value_name("ARGUMENT")
            .help("What the command is given")
            .num_args(0..)
            .allow_negative_numbers(true)
            .value_parser(clap::value_parser!(OsString));
        Command::new(entry.name.to_lowercase())
            // As the documents write it.
            .alias(entry.name)
            .about(entry.summary)
            .arg(words)
    });
    let line = Line::command();
    let help = help_template(&line);
    line.subcommands(requests)
        .help_template(help)
        .arg_required_else_help(false)
        .allow_external_subcommands(true)
        .external_subcommand_value_parser(clap::value_parser!(OsString))
        .mut_args(without_empty_variable)
        .mut_args(below_its_own)
}

/// What all tasks take stands below what one takes by itself.
fn below_its_own(argument: Arg) -> Arg {
    match argument.is_global_set() {
        true => argument.help_heading("Options of all tasks"),
        false => argument,
    }
}

/// `--help`: the tasks and the requests apart, which clap would list as one. `line` has the tasks.
fn help_template(line: &Command) -> String {
    let mut text = "{about}\n\n{usage-heading} {usage}\n\nTasks:\n".to_string();
    let mut row = |name: &str, says: &str| {
        // Writing to a text succeeds.
        let _ = writeln!(text, "  {name:<14}  {says}");
    };
    for task in line.get_subcommands() {
        let about = task.get_about().map(ToString::to_string);
        row(task.get_name(), &about.unwrap_or_default());
    }
    // Those that every server answers come first.
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
            let name = [&entry.name.to_lowercase(), entry.arguments].join(" ");
            let _ = writeln!(text, "  {name:<14}  {}", entry.summary);
        }
    }
    text += "\nAny other REQUEST is asked as it is, with all words after it, of servers that know more.\n";
    text + "\nOptions:\n{options}{after-help}"
}

/// The task that is most likely meant by this, if it is nearly the name of one.
pub fn misspelt_task(word: &OsStr) -> Option<String> {
    let word = word.to_str()?.to_lowercase();
    let names = Line::command();
    let mut names = names.get_subcommands().map(Command::get_name);
    let meant = names.find(|name| strsim::osa_distance(&word, name) <= 2)?;
    Some(meant.to_string())
}

/// An empty variable counts as not set.
fn without_empty_variable(argument: Arg) -> Arg {
    let variable = argument.get_env().and_then(std::env::var_os);
    match variable.is_some_and(|value| value.is_empty()) {
        true => argument.env(None::<&str>),
        false => argument,
    }
}

/// A command line that is right, but for a variable that it doesn't need; otherwise, what is wrong with it or with a variable.
fn without_overruled_variables(arguments: &[OsString]) -> Result<ArgMatches, Failure> {
    let without_variables = command().mut_args(|argument| argument.env(None::<&str>));
    let given = without_variables.try_get_matches_from(arguments);
    let given = given.map_err(|error| usage(&error))?;
    let command =
        command().mut_args(
            |argument| match given.value_source(argument.get_id().as_str()) {
                Some(ValueSource::CommandLine) => argument.env(None::<&str>),
                _ => argument,
            },
        );
    let parsed = command.clone().try_get_matches_from(arguments);
    parsed.map_err(|error| bad_variable(&command, &error))
}

/// The command line is right by itself: the value comes from a variable.
fn bad_variable(command: &Command, error: &clap::Error) -> Failure {
    let variables = command.get_arguments().filter_map(Arg::get_env);
    for variable in variables {
        let value = std::env::var_os(variable).unwrap_or_default();
        let is_text = |text: &str| !text.contains(char::is_control);
        if !value.to_str().is_some_and(is_text) {
            return Failure::Usage(format!(
                "the variable {} holds something that is not text: {value:?}",
                variable.display()
            ));
        }
    }
    let text = wrong(error);
    let option = match error.get(ContextKind::InvalidArg) {
        Some(ContextValue::String(option)) => option.as_str(),
        _ => "",
    };
    let of = |argument: &&Arg| {
        let long = argument.get_long().unwrap_or_default();
        option.split(' ').next() == Some(&format!("--{long}"))
    };
    let variable = command.get_arguments().find(of).and_then(Arg::get_env);
    Failure::Usage(format!(
        "{}, which comes from the variable {}",
        text.lines().next().unwrap_or_default(),
        variable.unwrap_or_default().display()
    ))
}

/// What clap finds wrong.
fn usage(error: &clap::Error) -> Failure {
    if error.kind() == ErrorKind::MissingSubcommand {
        let text = "what is to be asked? For example: blockchain-tcp who";
        return Failure::Usage(format!("{text}\n\nFor more information, try '--help'."));
    }
    Failure::Usage(wrong(error))
}

fn wrong(error: &clap::Error) -> String {
    let text = error.to_string();
    let text = text.strip_prefix("error: ").unwrap_or(&text);
    text.trim_end().to_string()
}

/// What this shell reads to complete our command lines.
fn completions(shell: Shell) -> String {
    // A colon in the name of a value would be one of zsh's own.
    let plain = |argument: Arg| match argument.get_value_hint() {
        ValueHint::Hostname => argument.value_name("HOST"),
        _ => argument,
    };
    let command = command().mut_args(plain);
    let mut command = command.mut_subcommands(|task| task.mut_args(plain));
    // What is written for bash finds no task of a program with a hyphen in its name: it is written for another.
    let name = match shell {
        Shell::Bash => "blockchain_tcp",
        _ => "blockchain-tcp",
    };
    let mut text = Vec::new();
    clap_complete::generate(shell, &mut command, name, &mut text);
    let text = String::from_utf8_lossy(&text);
    text.replace(&format!(" {name}\n"), " blockchain-tcp\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_declaration_is_sound() {
        command().debug_assert();
    }

    fn words(arguments: &[&str]) -> Vec<OsString> {
        let arguments = arguments.iter().map(OsString::from);
        match Options::parse_from(std::iter::once("blockchain-tcp".into()).chain(arguments)) {
            Ok(Asked::Do(_, Task::Ask(words))) => words,
            Ok(Asked::Do(_, task)) => panic!("{task:?}"),
            Ok(Asked::Print(text)) => panic!("{text}"),
            Err(failure) => panic!("{failure}"),
        }
    }

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

    #[test]
    fn a_request_may_have_numbers_below_zero_and_options_after_it() {
        assert_eq!(words(&["add", "-2", "5"]), ["add", "-2", "5"]);
        assert_eq!(words(&["who", "--json"]), ["who"]);
        assert_eq!(
            words(&["--json", "-s", "x:1", "max", "-2", "-3"]),
            ["max", "-2", "-3"]
        );
        assert_eq!(words(&["help", "who"]), ["help", "who"]);
        assert_eq!(
            words(&["future", "-x", "--json"]),
            ["future", "-x", "--json"]
        );
        assert_eq!(words(&["WHO", "--json"]), ["who"]);
        assert_eq!(words(&["add 2 5"]), ["add 2 5"]);
        assert_eq!(words(&["--", "who", "x"]), ["who", "x"]);
        assert_eq!(words(&["--", "watch", "--every"]), ["watch", "--every"]);
    }
}
