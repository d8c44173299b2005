//! Cluster settings: address of Redis or etcd, name of the cluster, heartbeat interval and
//! credentials.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::time::{Duration, Instant};

use log::warn;

use super::credentials::Credentials;
use crate::error::Error;
use shared::dial::dns::{self, DnsCache};

/// Largest number of characters of a cluster's name.
const LONGEST_NAME: usize = 64;

/// Time that a starting server waits for the DNS lookup of its hosts.
const LOOKUP: Duration = Duration::from_secs(2);

/// Number of heartbeat intervals without a heartbeat after which a server counts as gone.
const SILENCE: u32 = 4;

/// Cluster options as given on the command line.
#[derive(Clone, Debug, Default)]
pub struct ClusterArgs {
    /// `--cluster`.
    pub cluster: String,
    /// `--cluster-name`.
    pub name: String,
    /// `--cluster-heartbeat`.
    pub heartbeat: Duration,
    /// `--cluster-user-file`.
    pub user_file: Option<PathBuf>,
    /// `--cluster-password-file`.
    pub password_file: Option<PathBuf>,
    /// `--cluster-ca-file`.
    pub ca_file: Option<PathBuf>,
    /// `--cluster-certificate-file`.
    pub certificate_file: Option<PathBuf>,
    /// `--cluster-key-file`.
    pub key_file: Option<PathBuf>,
    /// `--cluster-sentinel-user-file`.
    pub sentinel_user_file: Option<PathBuf>,
    /// `--cluster-sentinel-password-file`.
    pub sentinel_password_file: Option<PathBuf>,
    /// `--advertise`.
    pub advertise: Option<SocketAddr>,
}

/// Cluster settings, parsed from [`ClusterArgs`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Settings {
    /// Redis or etcd.
    pub backend: Backend,
    /// Hosts to try. At least one, except in [`Settings::unusable`].
    pub hosts: Vec<Host>,
    /// Whether to use TLS with Redis or etcd.
    pub tls: bool,
    /// Whether to use TLS with the Sentinels.
    pub sentinel_tls: bool,
    /// Name of the cluster. Several clusters may share a Redis or an etcd.
    pub name: String,
    /// Interval between heartbeats.
    pub heartbeat: Duration,
    /// Files with the user, password and certificates for Redis or etcd.
    pub credentials: Credentials,
    /// Address at which the other servers reach the HTTP server of this one.
    pub advertise: Option<SocketAddr>,
}

/// Service in which the servers of a cluster register.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Backend {
    /// A Redis database.
    Redis {
        /// Number of the database.
        database: u32,
        /// Name of the master, if the hosts are Sentinels.
        master: Option<String>,
    },
    /// An etcd.
    Etcd,
}

/// A host and a port.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Host {
    /// Host name, or IP address without brackets.
    pub name: String,
    /// Port number.
    pub port: u16,
}

impl fmt::Display for Host {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.name.contains(':') {
            true => write!(f, "[{}]:{}", self.name, self.port),
            false => write!(f, "{}:{}", self.name, self.port),
        }
    }
}

impl Settings {
    /// Parses the options. Does not read files or look up hosts: see [`Settings::check`].
    pub fn new(args: &ClusterArgs) -> Result<Self, Error> {
        let (scheme, rest) = args.cluster.split_once("://").ok_or_else(|| {
            wrong("--cluster is not the address of a cluster: it has no scheme such as redis://")
        })?;
        let by_sentinels = || redis(Some(String::new()));
        let (backend, tls, sentinel_tls, port) = match scheme {
            "redis" => (redis(None), false, false, 6379),
            "rediss" => (redis(None), true, false, 6379),
            "redis-sentinel" => (by_sentinels(), false, false, 26379),
            "rediss-sentinel" => (by_sentinels(), true, true, 26379),
            "redis-sentinel+rediss" => (by_sentinels(), true, false, 26379),
            "rediss-sentinel+redis" => (by_sentinels(), false, true, 26379),
            "etcd" => (Backend::Etcd, false, false, 2379),
            "etcds" => (Backend::Etcd, true, false, 2379),
            _ => {
                return Err(wrong(format!(
                    "--cluster knows no scheme {}: there are redis, rediss, redis-sentinel, rediss-sentinel, \
                     redis-sentinel+rediss, rediss-sentinel+redis, etcd and etcds",
                    quoted(scheme)
                )));
            }
        };
        if rest.contains('@') {
            return Err(wrong(
                "--cluster holds a user or a password, which everybody on this machine could see: put them in the files of \
                 --cluster-user-file and --cluster-password-file",
            ));
        }
        if rest.contains(['?', '#']) {
            return Err(wrong("--cluster takes no options behind a ? or #"));
        }
        let (hosts, path) = rest.split_once('/').unwrap_or((rest, ""));
        let hosts = hosts
            .split(',')
            .map(|text| host(text, port))
            .collect::<Result<Vec<_>, _>>()?;
        let settings = Settings {
            backend: path_of(backend, path, hosts.len())?,
            hosts,
            tls,
            sentinel_tls,
            name: name(&args.name, "--cluster-name")?,
            heartbeat: args.heartbeat,
            credentials: Credentials::find(args),
            advertise: args.advertise,
        };
        if settings.backend == Backend::Etcd && settings.advertise.is_none() {
            return Err(wrong(
                "--cluster etcd:// needs --advertise (BLOCKCHAIN_TCPD_ADVERTISE): the address at which the other servers reach the \
                 HTTP of this one",
            ));
        }
        if settings
            .advertise
            .is_some_and(|address| !is_for_one(address.ip()) || address.port() == 0)
        {
            return Err(wrong(
                "--advertise is the address that the other servers connect to: it can't be any address, that of many, or any port",
            ));
        }
        Ok(settings)
    }

    /// Returns settings for a server that must continue although its options are invalid. With
    /// etcd, where a wrong count must not be reported, the settings have no hosts; with Redis,
    /// there are no settings (`None`).
    pub fn unusable(args: &ClusterArgs) -> Option<Self> {
        let is_etcd = args.cluster.starts_with("etcd");
        is_etcd.then(|| Settings {
            backend: Backend::Etcd,
            hosts: Vec::new(),
            tls: false,
            sentinel_tls: false,
            name: args.name.clone(),
            heartbeat: args.heartbeat,
            credentials: Credentials::default(),
            advertise: Some(args.advertise.unwrap_or((Ipv4Addr::UNSPECIFIED, 0).into())),
        })
    }

    /// Checks that the files can be read and that the hosts resolve. May take up to 2 s.
    pub fn check(&self) -> Result<(), Error> {
        self.credentials.check()?;
        self.look_up(&DnsCache::default(), Instant::now() + LOOKUP)
    }

    /// Returns the indices of the hosts in the order to try them: from `first` on, but hosts with
    /// known addresses before all others. Waits for an address until `by` if none is known.
    pub fn order(&self, names: &DnsCache, first: usize, by: Instant) -> Vec<usize> {
        let hosts = self
            .hosts
            .iter()
            .map(|host| (host.name.as_str(), host.port));
        let found = names.wait_for_one(&hosts.collect::<Vec<_>>(), by);
        let mut order: Vec<usize> = (0..found.len()).collect();
        order.rotate_left(first % found.len().max(1));
        order.sort_by_key(|index| !found[*index]);
        order
    }

    /// Refuses hosts of which none exists. Logs a warning if that is still unknown at `by`: the
    /// lookup may succeed later.
    fn look_up(&self, names: &DnsCache, by: Instant) -> Result<(), Error> {
        let (mut missing, mut unknown) = (None, None);
        self.order(names, 0, by);
        for host in &self.hosts {
            match names.addresses(&host.name, host.port, Instant::now()) {
                Ok(addresses) if !addresses.is_empty() => return Ok(()),
                Ok(_) => missing = Some(format!("{host} has no address")),
                Err(error) => {
                    let why = dns::reason(&error);
                    let problem = format!("can't find the address of {host}: {why}");
                    match dns::is_missing(&error) {
                        true => missing = Some(problem),
                        false => unknown = Some(problem),
                    }
                }
            }
        }
        match (unknown, missing) {
            (Some(problem), _) => {
                warn!("starts although it {problem}");
                Ok(())
            }
            (None, Some(problem)) => Err(wrong(format!(
                "--cluster: {problem}; name a host that resolves, or an IP address"
            ))),
            (None, None) => Ok(()),
        }
    }

    /// Returns the time without a heartbeat after which a server counts as gone.
    pub fn silence(&self) -> Duration {
        self.heartbeat * SILENCE
    }

    /// Returns the name of the backend in the log and in errors.
    pub fn place_name(&self) -> &'static str {
        match self.backend {
            Backend::Redis { .. } => "Redis",
            Backend::Etcd => "etcd",
        }
    }
}

/// Returns whether `address` can be the address of one machine.
fn is_for_one(address: IpAddr) -> bool {
    let address = address.to_canonical();
    let is_broadcast = matches!(address, IpAddr::V4(address) if address.is_broadcast());
    !(address.is_unspecified() || address.is_multicast() || is_broadcast)
}

/// Creates an error about the cluster options.
pub fn wrong(text: impl Into<String>) -> Error {
    Error::Cluster(text.into())
}

fn quoted(text: &str) -> String {
    format!("{text:?}")
}

fn redis(master: Option<String>) -> Backend {
    let database = 0;
    Backend::Redis { database, master }
}

/// Parses the path after the hosts: a database number, the name of a master, or nothing.
fn path_of(backend: Backend, path: &str, hosts: usize) -> Result<Backend, Error> {
    match backend {
        Backend::Etcd if path.is_empty() => Ok(Backend::Etcd),
        Backend::Etcd => Err(wrong(format!(
            "--cluster etcd:// has only hosts: take away {}",
            quoted(path)
        ))),
        Backend::Redis { master: None, .. } if hosts > 1 => Err(wrong(
            "--cluster redis:// names one host; several are Sentinels: redis-sentinel://HOST,HOST/MASTER",
        )),
        Backend::Redis { master: None, .. } => match path.parse() {
            Ok(database) => Ok(Backend::Redis {
                database,
                master: None,
            }),
            Err(_) if path.is_empty() => Ok(redis(None)),
            Err(_) => Err(wrong(format!(
                "--cluster: {} is not the number of a database",
                quoted(path)
            ))),
        },
        Backend::Redis { .. } => {
            let (master, database) = path.split_once('/').unwrap_or((path, "0"));
            let database = database.parse().map_err(|_| {
                wrong(format!(
                    "--cluster: {} is not the number of a database",
                    quoted(database)
                ))
            })?;
            let master = Some(name(
                master,
                "--cluster redis-sentinel://HOST,HOST/MASTER: MASTER",
            )?);
            Ok(Backend::Redis { database, master })
        }
    }
}

fn name(text: &str, what: &str) -> Result<String, Error> {
    let is_fine = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
    if (1..=LONGEST_NAME).contains(&text.len()) && text.chars().all(is_fine) {
        return Ok(text.to_string());
    }
    Err(wrong(format!(
        "{what} is {}: it must be 1 to {LONGEST_NAME} letters, digits and . _ - of ASCII",
        quoted(text)
    )))
}

fn host(text: &str, port: u16) -> Result<Host, Error> {
    let problem = || {
        wrong(format!(
            "--cluster: {} is not a host with a port, such as redis.example:6379 or [2001:db8::1]:6379",
            quoted(text)
        ))
    };
    let (name, rest) = match text.strip_prefix('[') {
        Some(text) => text.split_once(']').ok_or_else(problem)?,
        None => text.split_at(text.find(':').unwrap_or(text.len())),
    };
    let port = match rest.strip_prefix(':') {
        Some(number) => number.parse().ok().filter(|number| *number > 0),
        None if rest.is_empty() => Some(port),
        None => None,
    };
    let is_fine = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.' | ':' | '%');
    match port {
        Some(port) if !name.is_empty() && name.chars().all(is_fine) => Ok(Host {
            name: name.to_string(),
            port,
        }),
        _ => Err(problem()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn settings(cluster: &str) -> Result<Settings, String> {
        let args = ClusterArgs {
            cluster: cluster.to_string(),
            name: "shop".to_string(),
            heartbeat: Duration::from_millis(500),
            advertise: Some(([192, 0, 2, 1], 4280).into()),
            ..ClusterArgs::default()
        };
        let settings = Settings::new(&args).map_err(|error| error.to_string())?;
        settings.check().map_err(|error| error.to_string())?;
        Ok(settings)
    }

    #[test]
    fn addresses_are_understood() {
        let one = settings("redis://127.0.0.1").unwrap();
        assert_eq!(one.hosts[0].to_string(), "127.0.0.1:6379");
        assert_eq!((one.backend, one.tls), (redis(None), false));
        let other = settings("rediss://[::1]:7000/3").unwrap();
        assert_eq!(other.hosts[0].to_string(), "[::1]:7000");
        assert!(other.tls);
        assert!(matches!(other.backend, Backend::Redis { database: 3, .. }));
        for (scheme, tls) in [
            ("redis-sentinel", [false, false]),
            ("rediss-sentinel", [true, true]),
            ("redis-sentinel+rediss", [false, true]),
            ("rediss-sentinel+redis", [true, false]),
        ] {
            let watched = settings(&format!("{scheme}://127.0.0.1/main")).unwrap();
            assert_eq!([watched.sentinel_tls, watched.tls], tls, "{scheme}");
        }
        let watched = settings("redis-sentinel://127.0.0.1:1,127.0.0.2/main/2").unwrap();
        assert_eq!(watched.hosts[1].to_string(), "127.0.0.2:26379");
        let master = Some("main".to_string());
        let database = 2;
        assert_eq!(watched.backend, Backend::Redis { database, master });
        let etcd = settings("etcd://127.0.0.1,127.0.0.2,127.0.0.3:5").unwrap();
        assert_eq!((etcd.backend, etcd.hosts.len()), (Backend::Etcd, 3));
        assert_eq!(etcd.hosts[0].port, 2379);
    }

    #[test]
    fn what_makes_no_sense_is_said() {
        for (cluster, why) in [
            ("127.0.0.1", "no scheme"),
            ("http://127.0.0.1", "knows no scheme \"http\""),
            ("redis-sentinel+etcd://127.0.0.1/main", "knows no scheme"),
            ("redis://", "not a host"),
            ("redis://127.0.0.1:0", "not a host"),
            ("redis://127.0.0.1:x", "not a host"),
            ("redis://a b", "not a host"),
            ("redis://[::1", "not a host"),
            ("redis://127.0.0.1,127.0.0.2", "several are Sentinels"),
            ("redis://user:secret@127.0.0.1", "everybody on this machine"),
            ("redis://127.0.0.1/x", "not the number of a database"),
            ("redis://127.0.0.1?db=1", "no options"),
            ("redis-sentinel://127.0.0.1", "MASTER is \"\""),
            ("redis-sentinel://127.0.0.1/ma ster", "MASTER is"),
            ("etcd://127.0.0.1/x", "only hosts"),
            (
                "redis://nowhere.invalid",
                "can't find the address of nowhere.invalid:6379",
            ),
        ] {
            let said = settings(cluster).unwrap_err();
            assert!(said.contains(why), "{cluster}: {said}");
            assert!(!said.contains("secret"), "{said}");
        }
    }

    #[test]
    fn only_hosts_that_do_not_exist_are_refused() {
        let names = || {
            DnsCache::with_resolver(|name, port| {
                let gai = |text| {
                    let text = format!("failed to lookup address information: {text}");
                    Err(std::io::Error::other(text))
                };
                match name {
                    "here" => Ok(vec![(Ipv4Addr::LOCALHOST, port).into()]),
                    "missing" => gai("Name or service not known"),
                    "empty" => Ok(Vec::new()),
                    "away" => gai("Temporary failure in name resolution"),
                    _ => {
                        std::thread::sleep(Duration::from_secs(1));
                        gai("Name or service not known")
                    }
                }
            })
        };
        for (hosts, is_fine) in [
            ("here", true),
            ("missing", false),
            ("empty", false),
            ("away", true),
            ("slow", true),
            ("missing,empty", false),
            ("missing,here", true),
            ("missing,away", true),
            ("away,missing", true),
            ("slow,missing", true),
        ] {
            let args = ClusterArgs {
                cluster: format!("redis-sentinel://{hosts}/main"),
                name: "shop".to_string(),
                ..ClusterArgs::default()
            };
            let settings = Settings::new(&args).unwrap();
            let begun = Instant::now();
            let by = begun + Duration::from_millis(100);
            let looked_up = settings.look_up(&names(), by);
            assert_eq!(looked_up.is_ok(), is_fine, "{hosts}: {looked_up:?}");
            assert!(begun.elapsed() < Duration::from_millis(900), "{hosts}");
        }
    }
}
