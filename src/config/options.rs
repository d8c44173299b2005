//! Command-line options: each has a flag, a `BLOCKCHAIN_TCPD_*` variable, a default and a unit. A
//! flag overrides its variable.

use std::ffi::{OsStr, OsString};
use std::net::SocketAddr;
use std::path::PathBuf;
use std::str::FromStr as _;
use std::time::Duration;

use clap::builder::Styles;
use clap::error::ErrorKind;
use clap::parser::ValueSource;
use clap::{CommandFactory as _, FromArgMatches as _, Parser};
use uuid::Uuid;

use crate::config::network::{Network, socket_address};
use crate::error::Error;
use crate::handover::state;
use crate::logging;
use crate::protocol::{PROTOCOLS, Protocol};
use shared::args::{self, duration, positive_duration, unreadable, wrong_variable};
use shared::command::CommandSets;

/// Answers one-line commands on a TCP port: WHO is the number of clients connected, WHERE the id of this server, WHY 42.
#[derive(Clone, Debug, Parser)]
#[command(
    name = "blockchain-tcpd",
    version,
    max_term_width = 100,
    styles = Styles::plain(),
    after_help = "Durations have a unit: 500ms, 10s, 5m, 1h. A flag outdoes its variable; an empty variable counts as \
                  not set, but for BLOCKCHAIN_TCPD_HTTP.\nExit status: 0 stopped as told, 64 wrong usage, 71 refused by the system, 78 wrong \
                  configuration."
)]
pub struct Options {
    /// Says whether these settings can be read and the state directory used, and ends
    #[arg(long)]
    pub check: bool,

    /// Variables that look like settings of ours and are none.
    #[arg(skip)]
    pub unknown_variables: Vec<String>,

    /// Address and port to listen on, and before it the protocol, such as tcp://; port 0 is any free one. May be given
    /// several times (the variable: separated by commas)
    #[arg(
        long,
        env = "BLOCKCHAIN_TCPD_LISTEN",
        value_name = "URL",
        value_delimiter = ',',
        value_parser = listen,
        default_values = ["127.0.0.1:4242", "[::1]:4242"],
        hide_env_values = true
    )]
    pub listen: Vec<Listen>,

    /// Whether nobody asked for the addresses in `listen`.
    #[arg(skip)]
    pub listen_by_default: bool,

    /// What may be asked. The help names all sets.
    #[arg(
        long,
        help = CommandSets::help(),
        env = "BLOCKCHAIN_TCPD_COMMANDS",
        value_name = "SETS",
        value_parser = CommandSets::from_str,
        default_value = "server",
        hide_env_values = true
    )]
    pub commands: CommandSets,

    /// How many clients are served at the same time, each by a thread of its own
    #[arg(
        long,
        env = "BLOCKCHAIN_TCPD_MAX_CLIENTS",
        value_name = "N",
        value_parser = positive,
        default_value = "1024",
        hide_env_values = true
    )]
    pub max_clients: usize,

    /// How many more may wait to be served; whoever comes then is answered ERR BUSY
    #[arg(
        long,
        env = "BLOCKCHAIN_TCPD_QUEUE",
        value_name = "N",
        value_parser = number,
        default_value = "128",
        hide_env_values = true
    )]
    pub queue: usize,

    /// How many clients of one address (of IPv6: one network of 64 bits) are let in; 0 is any number
    #[arg(
        long,
        env = "BLOCKCHAIN_TCPD_MAX_CLIENTS_PER_ADDRESS",
        value_name = "N",
        value_parser = number,
        default_value = "0",
        hide_env_values = true
    )]
    pub max_clients_per_address: usize,

    /// Networks of load balancers: a connection from there must begin with a PROXY header, version 1 or 2, which says whose
    /// it is. May be given several times (the variable: separated by commas) [default: none]
    #[arg(
        long,
        env = "BLOCKCHAIN_TCPD_PROXY_FROM",
        value_name = "CIDR",
        value_delimiter = ',',
        hide_env_values = true
    )]
    pub proxy_from: Vec<Network>,

    /// A client that completes no request for so long is closed; 0s is never
    #[arg(
        long,
        env = "BLOCKCHAIN_TCPD_IDLE_TIMEOUT",
        value_name = "DURATION",
        value_parser = duration,
        default_value = "5m",
        hide_env_values = true
    )]
    pub idle_timeout: Duration,

    /// A client that doesn't take its replies for so long is cut off
    #[arg(
        long,
        env = "BLOCKCHAIN_TCPD_WRITE_TIMEOUT",
        value_name = "DURATION",
        value_parser = positive_duration,
        default_value = "10s",
        hide_env_values = true
    )]
    pub write_timeout: Duration,

    /// At SIGTERM, clients have so long to take their last replies, 100ms at least
    #[arg(
        long,
        env = "BLOCKCHAIN_TCPD_DRAIN_TIMEOUT",
        value_name = "DURATION",
        value_parser = duration,
        default_value = "30s",
        hide_env_values = true
    )]
    pub drain_timeout: Duration,

    /// At SIGTERM and SIGINT, /readyz says for so long that the server drains, before it lets in nobody any more
    #[arg(
        long,
        env = "BLOCKCHAIN_TCPD_DRAIN_NOTICE",
        value_name = "DURATION",
        value_parser = duration,
        default_value = "0s",
        hide_env_values = true
    )]
    pub drain_notice: Duration,

    /// Address and port for HTTP: /metrics, /livez, /readyz and a page for people; empty to switch it off. Port 0 is any
    /// free one
    #[arg(
        long,
        env = "BLOCKCHAIN_TCPD_HTTP",
        value_name = "ADDR:PORT",
        value_parser = address_or_none,
        default_value = "127.0.0.1:4280",
        hide_env_values = true
    )]
    pub http: MaybeAddress,

    /// Whether nobody asked for the address in `http`.
    #[arg(skip)]
    pub http_by_default: bool,

    /// Where the servers of a cluster meet, so that WHO counts the clients of all: redis://HOST:PORT/DATABASE,
    /// redis-sentinel://HOST,HOST/MASTER (always available), etcd://HOST,HOST,HOST (always consistent); with TLS rediss,
    /// rediss-sentinel, etcds, and if only one of the two speaks it, redis-sentinel+rediss or rediss-sentinel+redis [default: none, this server is alone]
    #[arg(
        long,
        env = "BLOCKCHAIN_TCPD_CLUSTER",
        value_name = "URL",
        hide_env_values = true
    )]
    pub cluster: Option<String>,

    /// The name of the cluster, which tells it from others that meet in the same place
    #[arg(
        long,
        env = "BLOCKCHAIN_TCPD_CLUSTER_NAME",
        value_name = "NAME",
        default_value = "default",
        hide_env_values = true
    )]
    pub cluster_name: String,

    /// How often a server says that it is there, 50ms to 1m; after four times
    /// that without a word it is taken for gone. The same on all servers
    #[arg(
        long,
        env = "BLOCKCHAIN_TCPD_CLUSTER_HEARTBEAT",
        value_name = "DURATION",
        value_parser = heartbeat,
        default_value = "500ms",
        hide_env_values = true
    )]
    pub cluster_heartbeat: Duration,

    /// File with the user's name for Redis or etcd [default: systemd's credential cluster-user, else none]
    #[arg(
        long,
        env = "BLOCKCHAIN_TCPD_CLUSTER_USER_FILE",
        value_name = "FILE",
        hide_env_values = true
    )]
    pub cluster_user_file: Option<PathBuf>,

    /// File with the password for Redis or etcd [default: systemd's credential cluster-password, else none]
    #[arg(
        long,
        env = "BLOCKCHAIN_TCPD_CLUSTER_PASSWORD_FILE",
        value_name = "FILE",
        hide_env_values = true
    )]
    pub cluster_password_file: Option<PathBuf>,

    /// File with the certificates (PEM) to believe when TLS is spoken with Redis or etcd [default: systemd's credential
    /// cluster-ca, else those of the system]
    #[arg(
        long,
        env = "BLOCKCHAIN_TCPD_CLUSTER_CA_FILE",
        value_name = "FILE",
        hide_env_values = true
    )]
    pub cluster_ca_file: Option<PathBuf>,

    /// File with the certificate (PEM, its chain after it) that this server shows to Redis or etcd when TLS is spoken [default:
    /// systemd's credential cluster-certificate, else none]
    #[arg(
        long,
        env = "BLOCKCHAIN_TCPD_CLUSTER_CERTIFICATE_FILE",
        value_name = "FILE",
        hide_env_values = true
    )]
    pub cluster_certificate_file: Option<PathBuf>,

    /// File with the private key (PEM) of that certificate [default: systemd's credential cluster-key, else none]
    #[arg(
        long,
        env = "BLOCKCHAIN_TCPD_CLUSTER_KEY_FILE",
        value_name = "FILE",
        hide_env_values = true
    )]
    pub cluster_key_file: Option<PathBuf>,

    /// File with the user's name for the Sentinels, if they have a password of their own [default: systemd's credential
    /// cluster-sentinel-user, else none]
    #[arg(
        long,
        env = "BLOCKCHAIN_TCPD_CLUSTER_SENTINEL_USER_FILE",
        value_name = "FILE",
        hide_env_values = true
    )]
    pub cluster_sentinel_user_file: Option<PathBuf>,

    /// File with the password for the Sentinels [default: systemd's credential cluster-sentinel-password, else user and password
    /// are those for Redis]
    #[arg(
        long,
        env = "BLOCKCHAIN_TCPD_CLUSTER_SENTINEL_PASSWORD_FILE",
        value_name = "FILE",
        hide_env_values = true
    )]
    pub cluster_sentinel_password_file: Option<PathBuf>,

    /// Address and port at which the other servers of a cluster over etcd reach the HTTP of this one [default: none, and
    /// such a cluster needs it]
    #[arg(
        long,
        env = "BLOCKCHAIN_TCPD_ADVERTISE",
        value_name = "ADDR:PORT",
        value_parser = address_for_others,
        hide_env_values = true
    )]
    pub advertise: Option<SocketAddr>,

    /// Directory in which the id of this server is kept [default: systemd's $STATE_DIRECTORY, else none: a new id at
    /// each start]
    #[arg(
        long,
        env = "BLOCKCHAIN_TCPD_STATE_DIRECTORY",
        value_name = "DIR",
        hide_env_values = true
    )]
    pub state_directory: Option<PathBuf>,

    /// The id of this server [default: the one in the state directory]
    #[arg(
        long,
        env = "BLOCKCHAIN_TCPD_SERVER_ID",
        value_name = "UUID",
        value_parser = server_id,
        hide_env_values = true
    )]
    pub server_id: Option<Uuid>,

    /// What is logged: off, error, warn, info, debug or trace; and of parts of the program, each after a comma, such as
    /// info,blockchain_tcpd::session=debug
    #[arg(
        long,
        env = "BLOCKCHAIN_TCPD_LOG",
        value_name = "FILTER",
        value_parser = logging::check_filter,
        default_value = "info",
        hide_env_values = true
    )]
    pub log: String,
}

/// An address to listen on, and the protocol that is spoken there.
#[derive(Clone, Copy, Debug)]
pub struct Listen {
    /// The protocol.
    pub protocol: &'static dyn Protocol,
    /// The address.
    pub address: SocketAddr,
}

/// What the command line asks for.
pub enum ParsedArgs {
    /// To serve.
    Serve(Box<Options>),
    /// To print this text: `--help`, `--version`.
    Print(String),
}

impl Options {
    /// The settings in `arguments`, of which the first is the program's name, and in the environment.
    pub fn parse_from<A: Into<OsString> + Clone>(
        arguments: impl IntoIterator<Item = A>,
    ) -> Result<ParsedArgs, Error> {
        let command = Options::command().mut_args(without_empty_variable);
        let parsed = command.clone().try_get_matches_from(arguments);
        let mut matches = match parsed {
            Ok(matches) => matches,
            Err(error) => return complaint(&command, &error),
        };
        let used = |argument: &&clap::Arg| {
            matches.value_source(argument.get_id().as_str()) == Some(ValueSource::EnvVariable)
        };
        if let Some(said) = command.get_arguments().filter(used).find_map(unreadable) {
            return Err(Error::Variable(said));
        }
        let is_default = |name| matches.value_source(name) == Some(ValueSource::DefaultValue);
        let (listen_by_default, http_by_default) = (is_default("listen"), is_default("http"));
        let mut options = Options::from_arg_matches_mut(&mut matches)
            .map_err(|error| Error::Usage(error.to_string()))?;
        options.listen_by_default = listen_by_default;
        options.http_by_default = http_by_default;
        options.unknown_variables = unknown_variables();
        if options.state_directory.is_none() {
            options.state_directory = systemd_state_directory();
        }
        Ok(ParsedArgs::Serve(Box::new(options)))
    }
}

/// The variables that begin as ours do but set nothing: misspelt, most likely.
fn unknown_variables() -> Vec<String> {
    let known: Vec<_> = Options::command()
        .get_arguments()
        .filter_map(clap::Arg::get_env)
        .map(OsStr::to_os_string)
        .collect();
    let ours = std::env::vars_os()
        .map(|(name, _)| name)
        .filter(|name| name.to_string_lossy().starts_with("BLOCKCHAIN_TCPD_"));
    ours.filter(|name| !known.contains(name) && name != state::VARIABLE)
        .map(|name| name.to_string_lossy().into_owned())
        .collect()
}

/// An empty variable counts as not set, unless nothing is something that can be asked for.
fn without_empty_variable(argument: clap::Arg) -> clap::Arg {
    if argument.get_id() == "http" {
        return argument;
    }
    let empty = argument
        .get_env()
        .and_then(std::env::var_os)
        .is_some_and(|value| value.is_empty());
    if empty {
        argument.env(None::<&str>)
    } else {
        argument
    }
}

/// systemd's STATE_DIRECTORY may name several, separated by colons (systemd.exec(5)); the first is ours.
fn systemd_state_directory() -> Option<PathBuf> {
    let directories = std::env::var_os("STATE_DIRECTORY")?;
    let first = std::env::split_paths(&directories).next()?;
    (!first.as_os_str().is_empty()).then_some(first)
}

/// What clap has to say: a text that was asked for, or what is wrong and where it was set.
fn complaint(command: &clap::Command, error: &clap::Error) -> Result<ParsedArgs, Error> {
    if matches!(
        error.kind(),
        ErrorKind::DisplayHelp | ErrorKind::DisplayVersion
    ) {
        return Ok(ParsedArgs::Print(error.to_string()));
    }
    if let Some(said) = command.get_arguments().find_map(unreadable) {
        return Err(Error::Variable(said));
    }
    match wrong_variable(command, error) {
        Some(said) => Err(Error::Variable(said)),
        None => Err(Error::Usage(args::message(error))),
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
                return Err(format!("there is no protocol {scheme}, but: {schemes}"));
            }
        },
    };
    let address = self::address(address)?;
    Ok(Listen { protocol, address })
}

fn address(text: &str) -> Result<SocketAddr, String> {
    socket_address(text.trim()).unwrap_or_else(|| {
        Err(
            "not an IP address and a port, such as 0.0.0.0:4242, [::1]:4242 or [fe80::1%eth0]:4242"
                .to_string(),
        )
    })
}

fn address_for_others(text: &str) -> Result<SocketAddr, String> {
    match address(text)? {
        SocketAddr::V6(address) if address.ip().is_unicast_link_local() => Err(
            "a link-local address means nothing to other servers, as its interface is this machine's alone: give another \
             address, such as 192.0.2.1:4280 or [2001:db8::1]:4280"
                .to_string(),
        ),
        address => Ok(address),
    }
}

/// An address, or none at all. clap takes what it sees called `Option` for an argument that may be missing.
pub type MaybeAddress = Option<SocketAddr>;

fn address_or_none(text: &str) -> Result<MaybeAddress, String> {
    match text.trim() {
        "" => Ok(None),
        text => socket_address(text).transpose()?.map(Some).ok_or_else(|| {
            "not an IP address and a port, such as 127.0.0.1:4280 or [::1]:4280, nor empty, which switches it off".to_string()
        }),
    }
}

fn number(text: &str) -> Result<usize, String> {
    text.parse()
        .map_err(|_| "not a whole number from 0 on".to_string())
}

fn positive(text: &str) -> Result<usize, String> {
    match number(text) {
        Ok(0) | Err(_) => Err("not a whole number from 1 on".to_string()),
        Ok(number) => Ok(number),
    }
}

fn heartbeat(text: &str) -> Result<Duration, String> {
    let (shortest, longest) = (Duration::from_millis(50), Duration::from_mins(1));
    match duration(text)? {
        heartbeat if (shortest..=longest).contains(&heartbeat) => Ok(heartbeat),
        _ => Err("not between 50ms and 1m".to_string()),
    }
}

fn server_id(text: &str) -> Result<Uuid, String> {
    args::server_id(text.as_bytes()).map_err(str::to_string)
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
        assert_eq!(unknown, "there is no protocol gopher, but: tcp");
        assert!(address(" [::1]:4242").is_ok());
        assert_eq!(address_or_none(" "), Ok(None));
        assert!(address_or_none("4280").is_err());
        for bad in ["", "4242", "localhost:4242", "127.0.0.1", "::1:4242"] {
            assert!(address(bad).is_err(), "{bad}");
        }
    }
}
