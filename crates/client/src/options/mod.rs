//! Command line of the client: options, environment variables, and a task or one of the
//! [`requests`]. [`completions`] generates shell completions.

pub mod completions;
mod requests;

use std::env;
use std::ffi::OsString;
use std::path::PathBuf;
use std::str::FromStr as _;
use std::time::Duration;

use clap::builder::Styles;
use clap::error::ErrorKind;
use clap::parser::ValueSource;
use clap::{
    Arg, ArgMatches, Args, Command, CommandFactory as _, FromArgMatches as _, Parser, Subcommand,
    ValueHint,
};
use clap_complete::Shell;
use shared::args::{ParsedArgs, message, positive_duration};
use shared::dial::{AddressFamily, Route, Server};
use shared::text::escape;

use crate::failure::Failure;

/// Asks a blockchain-tcpd one thing, converses with it, shows its clients live, measures how fast
/// it answers.
#[derive(Debug, Parser)]
#[command(
    name = "blockchain-tcp",
    version,
    max_term_width = 100,
    styles = Styles::plain(),
    disable_help_subcommand = true,
    subcommand_value_name = "REQUEST",
    override_usage = "blockchain-tcp [OPTIONS] REQUEST [ARGUMENT]...\n       blockchain-tcp [OPTIONS] TASK",
    after_help = AFTER_HELP
)]
struct Cli {
    #[command(flatten)]
    options: Options,
    #[command(subcommand)]
    task: Task,
}

/// The end of `--help`.
const AFTER_HELP: &str = "\
Exit status:
  0   answered
  1   the server said ERR: its sentence is on standard error
  64  wrong usage
  65  the feed is not JSON, or breaks off
  66  the feed can't be read
  69  no connection, or no reply
  71  the system refused something
  74  standard input or output failed
  75  the server has no room now: ERR BUSY
  76  not a blockchain-tcpd
  130 ended by ^C

Examples:
  blockchain-tcp who
  blockchain-tcp --server ledger.example.org --json who
  blockchain-tcp connect";

/// What all tasks take.
#[derive(Args, Clone, Debug)]
pub struct Options {
    /// Name or address of the server, and its port; all addresses of a name are tried. protobuf://,
    /// http:// or grpc:// before it asks in that protocol [env: BLOCKCHAIN_TCP_SERVER]
    #[arg(
        short,
        long,
        global = true,
        value_name = "HOST[:PORT]",
        value_hint = ValueHint::Hostname,
        value_parser = Server::from_str,
        default_value = "localhost:4242"
    )]
    pub server: Server,

    /// The longest wait for a connection, and then for each reply [env: BLOCKCHAIN_TCP_TIMEOUT]
    #[arg(
        short,
        long,
        global = true,
        value_name = "DURATION",
        value_parser = positive_duration,
        default_value = "10s"
    )]
    pub timeout: Duration,

    #[command(flatten)]
    family: AddressFamily,

    /// Prints JSON, one object a line
    #[arg(long, global = true)]
    pub json: bool,
}

/// The server of a task.
#[derive(Args, Clone, Debug)]
pub struct To {
    /// The server, instead of --server
    #[arg(value_name = "HOST[:PORT]", value_hint = ValueHint::Hostname, value_parser = Server::from_str)]
    to: Option<Server>,
}

/// The task to run.
#[derive(Debug, Subcommand)]
pub enum Task {
    /// Sends this request, word by word.
    #[command(skip)]
    Ask(Vec<OsString>),
    /// Converses line by line: a prompt with history and completion, or a pipe
    #[command(
        after_help = "The history is in $BLOCKCHAIN_TCP_HISTORY, else in $XDG_STATE_HOME/blockchain-tcp/history, else in \
                            ~/.local/state/blockchain-tcp/history; BLOCKCHAIN_TCP_HISTORY= keeps none."
    )]
    Connect(To),
    /// Shows the number of clients, live, until ^C
    Watch(Watch),
    /// Measures how fast the server answers, and verifies every reply
    Bench(Bench),
    /// Loads the users of a feed into a database, once
    Pull(Pull),
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
    #[command(flatten)]
    to: To,

    /// How often to ask
    #[arg(short, long, value_name = "DURATION", value_parser = positive_duration, default_value = "1s")]
    pub every: Duration,
}

/// How to measure.
#[derive(Args, Clone, Debug)]
#[group(skip)]
pub struct Bench {
    #[command(flatten)]
    to: To,

    /// How many clients ask at the same time
    #[arg(short, long, value_name = "N", value_parser = |text: &str| number_up_to(100_000, text), default_value = "50")]
    pub clients: u32,

    /// How many requests each client has on the way, at most
    #[arg(short = 'p', long, value_name = "N", value_parser = |text: &str| number_up_to(10_000, text), default_value = "1")]
    pub depth: u32,

    /// How many requests a second are sent by all clients, whether the server keeps up or not
    #[arg(short = 'R', long, value_name = "N", value_parser = |text: &str| number_up_to(10_000_000, text))]
    pub rate: Option<u32>,

    /// For how long
    #[arg(short, long, value_name = "DURATION", value_parser = positive_duration, default_value = "10s")]
    pub duration: Duration,

    /// What is asked
    #[arg(short, long, value_name = "REQUEST", default_value = "WHY")]
    pub request: String,
}

/// What to pull.
#[derive(Args, Clone, Debug)]
#[group(skip)]
pub struct Pull {
    /// File with the users: a JSON array or JSON lines, also compressed by gzip; - is standard input
    #[arg(short, long, value_name = "FILE", value_hint = ValueHint::FilePath)]
    pub feed: PathBuf,

    /// The database: postgres://USER@HOST/DATABASE or sqlite:///PATH
    #[arg(short = 'S', long, value_name = "URL")]
    pub store: String,

    /// File with the password for PostgreSQL
    #[arg(short = 'P', long, value_name = "FILE", value_hint = ValueHint::FilePath)]
    pub store_password_file: Option<PathBuf>,

    /// File with the trusted certificates (PEM) for TLS with PostgreSQL
    #[arg(short = 'C', long, value_name = "FILE", value_hint = ValueHint::FilePath)]
    pub store_ca_file: Option<PathBuf>,
}

fn number_up_to(most: u32, text: &str) -> Result<u32, String> {
    match text.parse() {
        Ok(number) if (1..=most).contains(&number) => Ok(number),
        _ => Err(format!("not a whole number from 1 to {most}")),
    }
}

impl Options {
    /// Returns the route to the server.
    pub fn route(&self) -> Route {
        Route::new(self.server.clone(), self.family)
    }

    /// Parses the options in `arguments`, whose first is the program's name, and in the
    /// environment.
    pub fn parse_from(
        arguments: impl IntoIterator<Item = OsString>,
    ) -> Result<ParsedArgs<(Options, Task)>, Failure> {
        match command().try_get_matches_from(arguments) {
            Ok(matches) => Options::from_matches(&matches).map(ParsedArgs::Run),
            Err(error) => ParsedArgs::requested(error, usage),
        }
    }

    fn from_matches(matches: &ArgMatches) -> Result<(Options, Task), Failure> {
        let mut options = Options::from_arg_matches(matches).map_err(usage)?;
        let task = match requests::words(matches, Task::has_subcommand) {
            Some(words) => Task::Ask(words),
            None => Task::from_arg_matches(matches).map_err(usage)?,
        };
        let to = match &task {
            Task::Ask(_) => &None,
            Task::Connect(to) | Task::Watch(Watch { to, .. }) | Task::Bench(Bench { to, .. }) => {
                &to.to
            }
            Task::Pull(_) | Task::Completions { .. } => return Ok((options, task)),
        };
        // Only a variable that is needed has to be right, so clap doesn't read them.
        let is_default = |id| matches.value_source(id) == Some(ValueSource::DefaultValue);
        if let Some(to) = to {
            options.server = to.clone();
        } else if is_default("server") {
            let server = &mut options.server;
            set_from("BLOCKCHAIN_TCP_SERVER", Server::from_str, server)?;
        }
        if is_default("timeout") {
            let timeout = &mut options.timeout;
            set_from("BLOCKCHAIN_TCP_TIMEOUT", positive_duration, timeout)?;
        }
        Ok((options, task))
    }
}

/// Sets an option from an environment variable, unless that is not set or empty.
fn set_from<T>(
    variable: &str,
    parse: impl Fn(&str) -> Result<T, &'static str>,
    option: &mut T,
) -> Result<(), Failure> {
    let value = env::var_os(variable).unwrap_or_default();
    if value.is_empty() {
        return Ok(());
    }
    let parsed = value.to_str().ok_or("not UTF-8").and_then(parse);
    *option = parsed.map_err(|error| {
        let text = escape(&value.to_string_lossy(), char::is_control);
        Failure::usage(format!("invalid value '{text}' for {variable}: {error}"))
    })?;
    Ok(())
}

/// Returns the whole command line, which lists options of all tasks below those of a single task.
fn command() -> Command {
    let headed = |argument: Arg| match argument.is_global_set() {
        true => argument.help_heading("Options of all tasks"),
        false => argument,
    };
    requests::added_to(Cli::command()).mut_args(headed)
}

/// Converts an error of clap.
fn usage(error: clap::Error) -> Failure {
    if error.kind() == ErrorKind::MissingSubcommand {
        let text = "what is to be asked? For example: blockchain-tcp who";
        return Failure::usage(format!("{text}\n\nFor more information, try '--help'."));
    }
    Failure::usage(message(&error))
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
            Ok(ParsedArgs::Run((_, Task::Ask(words)))) => words,
            _ => panic!("not a request"),
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
