//! Command-line options: each has a flag, a `BLOCKCHAIN_TCPD_*` variable, a default and a unit. A
//! flag overrides its variable.

use std::ffi::OsString;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::str::FromStr as _;
use std::time::Duration;

use clap::builder::Styles;
use clap::parser::ValueSource;
use clap::{Arg, CommandFactory as _, FromArgMatches as _, Parser};
use uuid::Uuid;

use crate::config::network::{Network, socket_address};
use crate::error::Error;
use crate::handover::state;
use crate::logging;
use crate::protocol::{PROTOCOLS, Protocol};
pub use shared::args::ParsedArgs;
use shared::args::{self, duration, positive_duration, unreadable, wrong_variable};
use shared::command::CommandSets;

/// Answers one-line commands on a TCP port: WHO is the number of connected clients, WHERE the id of
/// this server, WHY 42.
#[derive(Clone, Debug, Parser)]
#[command(
    name = "blockchain-tcpd",
    version,
    max_term_width = 100,
    styles = Styles::plain(),
    after_help = "Durations have a unit: 500ms, 10s, 5m, 1h. A flag overrides its variable; an empty variable counts as \
                  unset, except BLOCKCHAIN_TCPD_HTTP.\nExit status: 0 stopped by a signal, 64 wrong usage, 71 system error, \
                  78 wrong configuration."
)]
pub struct Options {
    /// Check the settings and the state directory, then exit
    #[arg(long)]
    pub check: bool,

    /// Environment variables that begin like ours but set nothing.
    #[arg(skip)]
    pub unknown_variables: Vec<String>,

    /// URL to listen on, such as tcp://0.0.0.0:4242 (tcp:// may be left out); port 0 picks a free
    /// port. May be given several times (the variable: separated by commas)
    #[arg(long, value_name = "URL", value_delimiter = ',', value_parser = listen)]
    #[arg(default_values = ["127.0.0.1:4242", "[::1]:4242"])]
    pub listen: Vec<Listen>,

    /// Whether the addresses in `listen` are the default.
    #[arg(skip)]
    pub listen_by_default: bool,

    /// Offered commands. The help names all sets.
    #[arg(long, help = CommandSets::help(), value_name = "SETS")]
    #[arg(value_parser = CommandSets::from_str, default_value = "server")]
    pub commands: CommandSets,

    /// Largest number of clients served at the same time, each that stays by its own thread
    #[arg(long, value_name = "N", value_parser = positive, default_value = "1024")]
    pub max_clients: usize,

    /// Largest number of clients that wait to be served; further ones are answered ERR BUSY
    #[arg(long, value_name = "N", value_parser = number, default_value = "128")]
    pub queue: usize,

    /// Largest number of clients of one address (of IPv6: of one /64 network); 0 is unlimited
    #[arg(long, value_name = "N", value_parser = number, default_value = "0")]
    pub max_clients_per_address: usize,

    /// Networks of load balancers: a connection from there must begin with a PROXY header, version
    /// 1 or 2, which names the client. May be given several times (the variable: separated by
    /// commas) [default: none]
    #[arg(long, value_name = "CIDR", value_delimiter = ',')]
    pub proxy_from: Vec<Network>,

    /// Time without a complete request after which a client is closed; 0s disables it
    #[arg(long, value_name = "DURATION", value_parser = duration, default_value = "5m")]
    pub idle_timeout: Duration,

    /// Time after which a client that does not read its replies is cut off
    #[arg(long, value_name = "DURATION", value_parser = positive_duration, default_value = "10s")]
    pub write_timeout: Duration,

    /// At SIGTERM, time for the clients to receive their last replies, at least 100ms
    #[arg(long, value_name = "DURATION", value_parser = duration, default_value = "30s")]
    pub drain_timeout: Duration,

    /// At SIGTERM and SIGINT, time for which /readyz announces the drain before the server stops
    /// accepting
    #[arg(long, value_name = "DURATION", value_parser = duration, default_value = "0s")]
    pub drain_notice: Duration,

    /// Address and port for HTTP: /metrics, /livez, /readyz and a status page; empty disables it.
    /// Port 0 picks a free one
    #[arg(long, value_name = "ADDR:PORT", value_parser = address_or_none, default_value = "127.0.0.1:4280")]
    pub http: MaybeAddress,

    /// Whether the address in `http` is the default.
    #[arg(skip)]
    pub http_by_default: bool,

    /// Redis or etcd by which the servers of a cluster exchange their counts, so that WHO counts
    /// the clients of all: redis://HOST:PORT/DATABASE, redis-sentinel://HOST,HOST/MASTER (always
    /// available), etcd://HOST,HOST,HOST (always consistent); with TLS rediss, rediss-sentinel,
    /// etcds, and if only one of the two uses it, redis-sentinel+rediss or rediss-sentinel+redis
    /// [default: none, this server is alone]
    #[arg(long, value_name = "URL")]
    pub cluster: Option<String>,

    /// Name of the cluster; several clusters can share a Redis or an etcd
    #[arg(long, value_name = "NAME", default_value = "default")]
    pub cluster_name: String,

    /// Interval of the heartbeats, 50ms to 1m; after four intervals without one, a server counts as
    /// gone. Must be the same on all servers
    #[arg(long, value_name = "DURATION", value_parser = heartbeat, default_value = "500ms")]
    pub cluster_heartbeat: Duration,

    /// Credential files for the cluster.
    #[command(flatten)]
    pub credentials: Credentials,

    /// Address and port at which the other servers of a cluster over etcd reach the HTTP of this
    /// one; required there [default: none]
    #[arg(long, value_name = "ADDR:PORT", value_parser = reachable_address)]
    pub advertise: Option<SocketAddr>,

    /// Database with the users, for the set of commands `users`: postgres://USER@HOST/DATABASE or
    /// sqlite:///PATH [default: none]
    #[arg(long, value_name = "URL")]
    pub store: Option<String>,

    /// Credential files for the store.
    #[command(flatten)]
    pub store_files: StoreFiles,

    /// Time within which a client must take a stream of all users
    #[arg(long, value_name = "DURATION", value_parser = positive_duration, default_value = "1m")]
    pub store_stream_timeout: Duration,

    /// Largest number of connections to the store, 1 to 64, and of streams of all users, which take
    /// one each
    #[arg(long, value_name = "N", value_parser = connections, default_value = "4")]
    pub store_connections: usize,

    /// Whether /readyz answers 503 while the store does not answer: yes, which is also the flag without
    /// a value, or no
    #[arg(long, value_name = "BOOL", value_parser = yes_or_no, default_value = "no")]
    #[arg(num_args = 0..=1, require_equals = true, default_missing_value = "yes")]
    pub ready_needs_store: bool,

    /// Feed of the users: a URL of HTTP with a JSON array or JSON lines. The servers of a database
    /// pull it in turn, one at a time [default: none]
    #[arg(long, value_name = "URL")]
    pub users_feed: Option<String>,

    /// Time between two pulls of the feed, at least 1s
    #[arg(long, value_name = "DURATION", value_parser = interval, default_value = "1m")]
    pub users_feed_interval: Duration,

    /// Time after which a server of the feed that sends nothing is given up
    #[arg(long, value_name = "DURATION", value_parser = positive_duration, default_value = "30s")]
    pub users_feed_idle_timeout: Duration,

    /// Directory that stores the id of this server [default: systemd's $STATE_DIRECTORY, else none:
    /// a new id at each start]
    #[arg(long, value_name = "DIR")]
    pub state_directory: Option<PathBuf>,

    /// Id of this server [default: the one in the state directory]
    #[arg(long, value_name = "UUID", value_parser = |text: &str| args::server_id(text.as_bytes()))]
    pub server_id: Option<Uuid>,

    /// Log filter: off, error, warn, info, debug or trace, also for parts of the program, separated
    /// by commas, such as info,blockchain_tcpd::session=debug
    #[arg(long, value_name = "FILTER", value_parser = logging::check_filter, default_value = "info")]
    pub log: String,
}

/// Paths of the credential files, as options. They are read for each connection, so that their
/// contents may change.
#[derive(Clone, Debug, Default, PartialEq, Eq, clap::Args)]
#[group(skip)]
pub struct Credentials {
    /// File with the user name for Redis or etcd [default: systemd's credential cluster-user, else
    /// none]
    #[arg(long, value_name = "FILE")]
    pub cluster_user_file: Option<PathBuf>,

    /// File with the password for Redis or etcd [default: systemd's credential cluster-password,
    /// else none]
    #[arg(long, value_name = "FILE")]
    pub cluster_password_file: Option<PathBuf>,

    /// File with the trusted certificates (PEM) for TLS with Redis or etcd [default: systemd's
    /// credential cluster-ca, else those of the system]
    #[arg(long, value_name = "FILE")]
    pub cluster_ca_file: Option<PathBuf>,

    /// File with the certificate (PEM, followed by its chain) that this server presents to Redis or
    /// etcd over TLS [default: systemd's credential cluster-certificate, else none]
    #[arg(long, value_name = "FILE")]
    pub cluster_certificate_file: Option<PathBuf>,

    /// File with the private key (PEM) of that certificate [default: systemd's credential
    /// cluster-key, else none]
    #[arg(long, value_name = "FILE")]
    pub cluster_key_file: Option<PathBuf>,

    /// File with the user name for the Sentinels, if they have a password of their own [default:
    /// systemd's credential cluster-sentinel-user, else none]
    #[arg(long, value_name = "FILE")]
    pub cluster_sentinel_user_file: Option<PathBuf>,

    /// File with the password for the Sentinels [default: systemd's credential
    /// cluster-sentinel-password, else user and password are those for Redis]
    #[arg(long, value_name = "FILE")]
    pub cluster_sentinel_password_file: Option<PathBuf>,
}

/// Paths of the credential files for the store, as options. They are read for each connection.
#[derive(Clone, Debug, Default, PartialEq, Eq, clap::Args)]
#[group(skip)]
pub struct StoreFiles {
    /// File with the password for PostgreSQL [default: systemd's credential store-password, else
    /// none]
    #[arg(long, value_name = "FILE")]
    pub store_password_file: Option<PathBuf>,

    /// File with the trusted certificates (PEM) for TLS with PostgreSQL [default: systemd's
    /// credential store-ca, else what libpq takes]
    #[arg(long, value_name = "FILE")]
    pub store_ca_file: Option<PathBuf>,
}

/// An address to listen on, and the protocol that is spoken there.
#[derive(Clone, Copy, Debug)]
pub struct Listen {
    /// The protocol.
    pub protocol: &'static dyn Protocol,
    /// The address.
    pub address: SocketAddr,
}

impl Options {
    /// Returns the settings in `arguments`, of which the first is the program's name, and in the
    /// environment.
    pub fn parse_from<A: Into<OsString> + Clone>(
        arguments: impl IntoIterator<Item = A>,
    ) -> Result<ParsedArgs<Options>, Error> {
        let command = Options::command().mut_args(with_variable);
        let mut matches = match command.clone().try_get_matches_from(arguments) {
            Ok(matches) => matches,
            Err(error) => return ParsedArgs::requested(error, |error| explain(&command, &error)),
        };
        let source = |name: &str| matches.value_source(name);
        let from_variable =
            |argument: &&Arg| source(argument.get_id().as_str()) == Some(ValueSource::EnvVariable);
        if let Some(problem) = command
            .get_arguments()
            .filter(from_variable)
            .find_map(unreadable)
        {
            return Err(Error::Configuration(problem));
        }
        let is_default = |name| source(name) == Some(ValueSource::DefaultValue);
        let (listen_by_default, http_by_default) = (is_default("listen"), is_default("http"));
        let mut options = Options::from_arg_matches_mut(&mut matches)
            .map_err(|error| Error::Usage(error.to_string()))?;
        options.listen_by_default = listen_by_default;
        options.http_by_default = http_by_default;
        options.unknown_variables = unknown_variables(&command);
        options.state_directory = options.state_directory.or_else(systemd_state_directory);
        Ok(ParsedArgs::Run(options))
    }
}

/// Prefix of our environment variables.
const PREFIX: &str = "BLOCKCHAIN_TCPD_";

/// Returns the name of the variable of this option: `--max-clients` and
/// `BLOCKCHAIN_TCPD_MAX_CLIENTS`.
fn variable_of(argument: &Arg) -> String {
    format!("{PREFIX}{}", argument.get_id().as_str().to_uppercase())
}

/// Gives an option its variable. An empty one counts as unset, except that of `--http`, where it
/// disables HTTP.
fn with_variable(argument: Arg) -> Arg {
    let variable = variable_of(&argument);
    let is_empty = std::env::var_os(&variable).is_some_and(|value| value.is_empty());
    match argument.get_id().as_str() {
        "check" => argument,
        id if is_empty && id != "http" => argument,
        _ => argument.env(variable).hide_env_values(true),
    }
}

/// Returns the variables that begin like ours but set nothing: most likely misspelt.
fn unknown_variables(command: &clap::Command) -> Vec<String> {
    let arguments = command.get_arguments();
    let settable = arguments.filter(|argument| argument.get_id() != "check");
    let mut known: Vec<_> = settable.map(variable_of).collect();
    known.push(state::VARIABLE.to_string());
    let all = std::env::vars_os().map(|(name, _)| name.to_string_lossy().into_owned());
    all.filter(|name| name.starts_with(PREFIX) && !known.contains(name))
        .collect()
}

/// Returns the first directory in systemd's STATE_DIRECTORY, which may name several, separated by
/// colons (systemd.exec(5)).
fn systemd_state_directory() -> Option<PathBuf> {
    let directories = std::env::var_os("STATE_DIRECTORY")?;
    let first = std::env::split_paths(&directories).next()?;
    (!first.as_os_str().is_empty()).then_some(first)
}

/// Converts an error of clap. The result names the variable if the value comes from one.
fn explain(command: &clap::Command, error: &clap::Error) -> Error {
    let unreadable = command.get_arguments().find_map(unreadable);
    match unreadable.or_else(|| wrong_variable(command, error)) {
        Some(problem) => Error::Configuration(problem),
        None => Error::Usage(args::message(error)),
    }
}

fn listen(text: &str) -> Result<Listen, String> {
    let text = text.trim();
    let (protocol, address) = match text.split_once("://") {
        None => (PROTOCOLS.default(), text),
        Some((scheme, address)) => match PROTOCOLS.find(scheme) {
            Some(protocol) => (protocol, address),
            None => {
                let schemes = PROTOCOLS.schemes();
                return Err(format!("unknown protocol {scheme:?}; known: {schemes}"));
            }
        },
    };
    let address = self::address(address)?;
    Ok(Listen { protocol, address })
}

fn address(text: &str) -> Result<SocketAddr, String> {
    let expected =
        "not an IP address and a port, such as 0.0.0.0:4242, [::1]:4242 or [fe80::1%eth0]:4242";
    socket_address(text.trim()).unwrap_or_else(|| Err(expected.to_string()))
}

fn reachable_address(text: &str) -> Result<SocketAddr, String> {
    match address(text)? {
        SocketAddr::V6(address) if address.ip().is_unicast_link_local() => Err(
            "a link-local address is valid on this machine only: set another one, such as 192.0.2.1:4280 or \
             [2001:db8::1]:4280"
                .to_string(),
        ),
        address => Ok(address),
    }
}

/// An address, or none. clap would take a type named `Option` for an argument that may be missing.
pub type MaybeAddress = Option<SocketAddr>;

fn address_or_none(text: &str) -> Result<MaybeAddress, String> {
    match text.trim() {
        "" => Ok(None),
        text => socket_address(text).transpose()?.map(Some).ok_or_else(|| {
            "not an IP address and a port, such as 127.0.0.1:4280 or [::1]:4280, nor empty, which disables it".to_string()
        }),
    }
}

fn number(text: &str) -> Result<usize, &'static str> {
    text.parse().map_err(|_| "not a whole number from 0 on")
}

fn positive(text: &str) -> Result<usize, &'static str> {
    let number = number(text).ok().filter(|number| *number > 0);
    number.ok_or("not a whole number from 1 on")
}

fn interval(text: &str) -> Result<Duration, &'static str> {
    match duration(text)? {
        interval if interval >= Duration::from_secs(1) => Ok(interval),
        _ => Err("not 1s or more"),
    }
}

fn yes_or_no(text: &str) -> Result<bool, &'static str> {
    match text {
        "yes" => Ok(true),
        "no" => Ok(false),
        _ => Err("neither yes nor no"),
    }
}

fn connections(text: &str) -> Result<usize, &'static str> {
    let number = number(text).ok().filter(|number| (1..=64).contains(number));
    number.ok_or("not a whole number from 1 to 64")
}

fn heartbeat(text: &str) -> Result<Duration, &'static str> {
    let (shortest, longest) = (Duration::from_millis(50), Duration::from_mins(1));
    match duration(text)? {
        heartbeat if (shortest..=longest).contains(&heartbeat) => Ok(heartbeat),
        _ => Err("not between 50ms and 1m"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_declaration_is_sound() {
        Options::command().debug_assert();
    }

    #[test]
    fn addresses_are_numbers_with_a_port() {
        assert!(address("127.0.0.1:0").is_ok());
        let plain = listen(" 127.0.0.1:0").unwrap();
        assert_eq!(plain.address, listen("tcp://127.0.0.1:0").unwrap().address);
        assert_eq!(plain.protocol.scheme(), "tcp");
        let unknown = listen("gopher://127.0.0.1:0").unwrap_err();
        assert!(
            unknown.starts_with("unknown protocol \"gopher\"; known: tcp, "),
            "{unknown}"
        );
        assert!(address(" [::1]:4242").is_ok());
        assert_eq!(address_or_none(" "), Ok(None));
        assert!(address_or_none("4280").is_err());
        for bad in ["", "4242", "localhost:4242", "127.0.0.1", "::1:4242"] {
            assert!(address(bad).is_err(), "{bad}");
        }
    }
}
