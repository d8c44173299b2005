//! What the client can be told: options, variables, and the task.

use std::ffi::OsString;
use std::str::FromStr as _;
use std::time::Duration;

use blockchain_tcpd::command::SETS;
use blockchain_tcpd::dial::{Family, Server};
use blockchain_tcpd::options::positive_duration;
use clap::error::ErrorKind;
use clap::{
    Arg, ArgMatches, Args, Command, CommandFactory as _, FromArgMatches as _, Parser, Subcommand,
};
use clap_complete::Shell;

use crate::failure::Failure;

/// Talks to a blockchain-tcpd: one question, a conversation, the count live, or how fast it answers.
#[derive(Debug, Parser)]
#[command(
    name = "blockchain-tcp",
    version,
    max_term_width = 100,
    disable_help_subcommand = true,
    subcommand_value_name = "COMMAND",
    after_help = "What else is given as COMMAND is asked as it is, for servers that know more.\nExit status: 0 answered, \
                  1 the server said ERR, 64 wrong usage, 69 no connection or no reply, 74 output, 75 the server has no room \
                  now, 76 no server of this kind."
)]
struct Line {
    #[command(flatten)]
    options: Options,
    #[command(subcommand)]
    task: Subtask,
}

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
    /// A conversation: line by line, from a terminal with history and completion, or from a pipe
    Connect {
        /// The server, instead of --server
        #[arg(value_name = "HOST[:PORT]", value_parser = Server::from_str)]
        to: Option<Server>,
    },
    /// The number of clients, live, until ^C
    Watch {
        /// The server, instead of --server
        #[arg(value_name = "HOST[:PORT]", value_parser = Server::from_str)]
        to: Option<Server>,
        #[command(flatten)]
        watch: Watch,
    },
    /// How fast the server answers: the rate, percentiles of the latency, errors; every reply is verified
    Bench {
        /// The server, instead of --server
        #[arg(value_name = "HOST[:PORT]", value_parser = Server::from_str)]
        to: Option<Server>,
        #[command(flatten)]
        bench: Bench,
    },
    /// Prints the completions for a shell
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
    #[arg(short, long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=100_000), default_value = "50")]
    pub clients: u32,

    /// How many requests each client has on the way
    #[arg(short = 'p', long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=10_000), default_value = "1")]
    pub depth: u32,

    /// For how long
    #[arg(short, long, value_name = "DURATION", value_parser = positive_duration, default_value = "10s")]
    pub duration: Duration,

    /// What is asked
    #[arg(short, long, value_name = "REQUEST", default_value = "WHY")]
    pub request: String,
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
        match command().try_get_matches_from(arguments) {
            Ok(matches) => Options::of(&matches),
            Err(error) => match error.kind() {
                ErrorKind::DisplayHelp | ErrorKind::DisplayVersion => {
                    Ok(Asked::Print(error.to_string()))
                }
                _ => Err(usage(&error)),
            },
        }
    }

    fn of(matches: &ArgMatches) -> Result<Asked, Failure> {
        let mut options = Options::from_arg_matches(matches).map_err(|error| usage(&error))?;
        if let Some((name, asked)) = matches.subcommand()
            && !Subtask::has_subcommand(name)
        {
            let mut words = vec![OsString::from(name)];
            let id = if is_known(name) { WORDS } else { "" };
            words.extend(
                asked
                    .get_many::<OsString>(id)
                    .into_iter()
                    .flatten()
                    .cloned(),
            );
            return Ok(Asked::Do(options, Task::Ask(words)));
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

/// The command line: the tasks, and all requests that servers of this version answer.
fn command() -> Command {
    let entries = SETS.iter().flat_map(|(_, set)| set.iter());
    let requests = entries.map(|entry| {
        let words = Arg::new(WORDS)
            .value_name("ARGUMENT")
            .num_args(0..)
            .allow_negative_numbers(true)
            .value_parser(clap::value_parser!(OsString));
        Command::new(entry.name.to_lowercase())
            .about(entry.summary)
            .arg(words)
    });
    Line::command()
        .subcommands(requests)
        .allow_external_subcommands(true)
        .external_subcommand_value_parser(clap::value_parser!(OsString))
        .mut_args(without_empty_variable)
}

fn is_known(name: &str) -> bool {
    let mut entries = SETS.iter().flat_map(|(_, set)| set.iter());
    entries.any(|entry| entry.name.to_lowercase() == name)
}

/// An empty variable counts as not set.
fn without_empty_variable(argument: Arg) -> Arg {
    let variable = argument.get_env().and_then(std::env::var_os);
    match variable.is_some_and(|value| value.is_empty()) {
        true => argument.env(None::<&str>),
        false => argument,
    }
}

fn usage(error: &clap::Error) -> Failure {
    let text = error.to_string();
    let text = text.strip_prefix("error: ").unwrap_or(&text);
    Failure::Usage(text.trim_end().to_string())
}

/// What this shell reads to complete our command lines.
fn completions(shell: Shell) -> String {
    let mut text = Vec::new();
    clap_complete::generate(shell, &mut command(), "blockchain-tcp", &mut text);
    String::from_utf8_lossy(&text).into_owned()
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
        assert_eq!(words(&["WHO"]), ["WHO"]);
    }
}
