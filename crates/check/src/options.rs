//! Command line of the plugin: the options of the guidelines, and a few more.

use std::ffi::OsString;
use std::str::FromStr as _;
use std::time::Duration;

use clap::builder::{NonEmptyStringValueParser, Styles, TypedValueParser as _};
use clap::{ArgAction, Parser};
use shared::args::{self, ParsedArgs, message};
use shared::command::user::LONGEST_PAGE;
use shared::dial::{AddressFamily, Scheme};
use uuid::Uuid;

use crate::range::{self, Range};

/// The longest timeout in seconds: longer than monitoring systems wait for a plugin.
const LONGEST_TIMEOUT: f64 = 3600.0;

/// Checks a blockchain-tcpd: asks WHO, WHERE and WHY in one connection, or for the users, and takes
/// no answer but a right one.
#[derive(Clone, Debug, Parser)]
#[command(
    name = "check_blockchain_tcp",
    version,
    max_term_width = 100,
    styles = Styles::plain(),
    after_help = "A RANGE is an alert: 10 outside of 0 to 10, 10: below 10, ~:10 above 10, 10:20 outside of 10 to 20, \
                  @10:20 inside.\nExit status: 0 OK, 1 WARNING, 2 CRITICAL (no or a wrong answer, too), 3 UNKNOWN."
)]
pub struct Options {
    /// Name or address of the server; all addresses of a name are tried
    #[arg(
        short = 'H',
        long = "hostname",
        value_name = "HOST",
        default_value = "localhost",
        value_parser = NonEmptyStringValueParser::new().map(without_brackets)
    )]
    pub host: String,

    /// Its port; with --users 8080
    #[arg(
        short,
        long,
        value_name = "PORT",
        default_value = "4242",
        default_value_if("users", "true", "8080"),
        value_parser = clap::value_parser!(u16).range(1..)
    )]
    pub port: u16,

    /// Protocol to ask in; with --users http
    #[arg(long, value_name = "SCHEME", default_value = "tcp", value_parser = Scheme::from_str)]
    #[arg(default_value_if("users", "true", "http"))]
    pub scheme: Scheme,

    #[command(flatten)]
    pub family: AddressFamily,

    /// Response time, in seconds, that is a WARNING
    #[arg(short, long, value_name = "RANGE", allow_hyphen_values = true)]
    pub warning: Option<Range>,

    /// Response time, in seconds, that is CRITICAL
    #[arg(short, long, value_name = "RANGE", allow_hyphen_values = true)]
    pub critical: Option<Range>,

    /// Number of clients that is a WARNING; the plugin itself is one of them
    #[arg(short = 'W', long, value_name = "RANGE", allow_hyphen_values = true)]
    pub warning_clients: Option<Range>,

    /// Number of clients that is CRITICAL
    #[arg(short = 'C', long, value_name = "RANGE", allow_hyphen_values = true)]
    pub critical_clients: Option<Range>,

    /// The id that the server must have; another is CRITICAL
    #[arg(long, value_name = "UUID", value_parser = |text: &str| args::server_id(text.as_bytes()))]
    pub id: Option<Uuid>,

    /// Asks for the users by JSON-RPC over HTTP instead: their number, and the first ones, of which each
    /// must be right
    #[arg(long, conflicts_with_all = ["warning_clients", "critical_clients", "id"])]
    pub users: bool,

    /// How many users are read, at most 1000
    #[arg(long, value_name = "N", default_value = "100", value_parser = page, requires = "users")]
    pub users_limit: usize,

    /// Number of users that is a WARNING
    #[arg(
        long,
        value_name = "RANGE",
        allow_hyphen_values = true,
        requires = "users"
    )]
    pub warning_users: Option<Range>,

    /// Number of users that is CRITICAL
    #[arg(
        long,
        value_name = "RANGE",
        allow_hyphen_values = true,
        requires = "users"
    )]
    pub critical_users: Option<Range>,

    /// Time since the feed of the users was last pulled, in seconds, that is a WARNING
    #[arg(
        long,
        value_name = "RANGE",
        allow_hyphen_values = true,
        requires = "users"
    )]
    pub warning_age: Option<Range>,

    /// Such a time that is CRITICAL
    #[arg(
        long,
        value_name = "RANGE",
        allow_hyphen_values = true,
        requires = "users"
    )]
    pub critical_age: Option<Range>,

    /// The longest time of the whole check; after that it is CRITICAL
    #[arg(short, long, value_name = "SECONDS", default_value = "10", value_parser = seconds, allow_hyphen_values = true)]
    pub timeout: Duration,

    /// Says more: -v which address answered, -vv what was asked and answered, -vvv when
    #[arg(short, long, action = ArgAction::Count)]
    pub verbose: u8,
}

impl Options {
    /// Parses the options in `arguments`, whose first is the program's name. The error is a line.
    pub fn parse_from(
        arguments: impl IntoIterator<Item = OsString>,
    ) -> Result<ParsedArgs<Options>, String> {
        match Options::try_parse_from(arguments) {
            Ok(options) if options.users && options.scheme != Scheme::Http => Err(format!(
                "--users asks by JSON-RPC, not by {}: leave --scheme out, and give the port of http:// (see --help)",
                options.scheme
            )),
            Ok(options) => Ok(ParsedArgs::Run(options)),
            Err(error) => ParsedArgs::requested(error, one_line),
        }
    }
}

/// Formats an error in one line, as monitoring systems show only one.
fn one_line(error: clap::Error) -> String {
    let text = message(&error);
    let (message, _usage) = text.split_once("\n\n").unwrap_or((&text, ""));
    let words: Vec<&str> = message.split_whitespace().collect();
    format!("{} (see --help)", words.join(" "))
}

fn page(text: &str) -> Result<usize, String> {
    let number = text.parse().ok();
    let number = number.filter(|number| (1..=LONGEST_PAGE).contains(number));
    number.ok_or_else(|| format!("not a whole number from 1 to {LONGEST_PAGE}"))
}

fn seconds(text: &str) -> Result<Duration, String> {
    match range::number(text) {
        Some(seconds) if (0.001..=LONGEST_TIMEOUT).contains(&seconds) => {
            Ok(Duration::from_secs_f64(seconds))
        }
        _ => Err(format!(
            "not a number of seconds from 0.001 to {LONGEST_TIMEOUT}"
        )),
    }
}

/// Removes the brackets of an IPv6 address, which may be written as it is before a port.
fn without_brackets(host: String) -> String {
    let within = host
        .strip_prefix('[')
        .and_then(|host| host.strip_suffix(']'));
    within.unwrap_or(&host).to_string()
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory as _;

    use super::*;

    #[test]
    fn the_declaration_is_sound() {
        Options::command().debug_assert();
    }

    #[test]
    fn a_timeout_is_a_decimal_number_of_seconds() {
        assert_eq!(seconds("10"), Ok(Duration::from_secs(10)));
        assert_eq!(seconds("0.5"), Ok(Duration::from_millis(500)));
        for bad in ["", "0", "-1", "3601", "10s", "inf", "nan", "1e3"] {
            assert!(seconds(bad).is_err(), "{bad}");
        }
    }
}
