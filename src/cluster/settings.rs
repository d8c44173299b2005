//! Cluster settings: address of Redis or etcd, name of the cluster, heartbeat interval and
//! credentials.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::time::{Duration, Instant};

use log::warn;

use crate::config::options::{Credentials, Options};
use crate::error::Error;
use shared::dial::Server;
use shared::dial::dns::{self, DnsCache};

/// Largest number of characters of a cluster's name.
const MAX_NAME: usize = 64;

/// Time that a starting server waits for the DNS lookup of its hosts.
const LOOKUP_TIMEOUT: Duration = Duration::from_secs(2);

/// Number of heartbeat intervals without a heartbeat after which a server counts as gone.
const EXPIRY_HEARTBEATS: u32 = 4;

/// Default ports, which also tell the kinds of host apart.
const REDIS_PORT: u16 = 6379;
const SENTINEL_PORT: u16 = 26379;
const ETCD_PORT: u16 = 2379;

/// Cluster settings, parsed from [`Options`].
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Settings {
    /// Redis or etcd.
    pub backend: Backend,
    /// Number of the database in Redis.
    pub database: u32,
    /// Name of the master, if the hosts are Sentinels.
    pub master: Option<String>,
    /// Hosts to try. At least one, except in [`Settings::unusable`].
    pub hosts: Vec<Server>,
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
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Backend {
    /// Redis, perhaps found by Sentinels.
    Redis,
    /// An etcd.
    #[default]
    Etcd,
}

impl Settings {
    /// Parses the options, if they name a cluster. Does not read credentials or look up hosts: see
    /// [`Settings::check`].
    pub fn new(options: &Options) -> Result<Option<Self>, Error> {
        let Some(cluster) = &options.cluster else {
            return Ok(None);
        };
        let (scheme, rest) = cluster.split_once("://").ok_or_else(|| {
            invalid("--cluster is not the address of a cluster: it has no scheme such as redis://")
        })?;
        let (port, tls, sentinel_tls) = match scheme {
            "redis" => (REDIS_PORT, false, false),
            "rediss" => (REDIS_PORT, true, false),
            "redis-sentinel" => (SENTINEL_PORT, false, false),
            "rediss-sentinel" => (SENTINEL_PORT, true, true),
            "redis-sentinel+rediss" => (SENTINEL_PORT, true, false),
            "rediss-sentinel+redis" => (SENTINEL_PORT, false, true),
            "etcd" => (ETCD_PORT, false, false),
            "etcds" => (ETCD_PORT, true, false),
            _ => {
                return Err(invalid(format!(
                    "--cluster knows no scheme {scheme:?}: there are redis, rediss, redis-sentinel, rediss-sentinel, \
                     redis-sentinel+rediss, rediss-sentinel+redis, etcd and etcds"
                )));
            }
        };
        if rest.contains('@') {
            return Err(invalid(
                "--cluster holds a user or a password, which everybody on this machine could see: put them in the files of \
                 --cluster-user-file and --cluster-password-file",
            ));
        }
        if rest.contains(['?', '#']) {
            return Err(invalid("--cluster takes no options behind a ? or #"));
        }
        let (hosts, path) = rest.split_once('/').unwrap_or((rest, ""));
        let hosts: Result<Vec<_>, _> = hosts.split(',').map(|text| host(text, port)).collect();
        let mut settings = Settings {
            backend: Backend::Redis,
            hosts: hosts?,
            tls,
            sentinel_tls,
            name: name(&options.cluster_name, "--cluster-name")?,
            heartbeat: options.cluster_heartbeat,
            credentials: options.credentials.clone().or_from_systemd(),
            advertise: options.advertise,
            ..Settings::default()
        };
        match port {
            REDIS_PORT if settings.hosts.len() > 1 => {
                return Err(invalid(
                    "--cluster redis:// names one host; several are Sentinels: redis-sentinel://HOST,HOST/MASTER",
                ));
            }
            REDIS_PORT if path.is_empty() => {}
            REDIS_PORT => settings.database = database(path)?,
            SENTINEL_PORT => {
                let (master, number) = path.split_once('/').unwrap_or((path, "0"));
                let what = "--cluster redis-sentinel://HOST,HOST/MASTER: MASTER";
                settings.database = database(number)?;
                settings.master = Some(name(master, what)?);
            }
            _ if path.is_empty() => settings.backend = Backend::Etcd,
            _ => {
                return Err(invalid(format!(
                    "--cluster etcd:// has only hosts: take away {path:?}"
                )));
            }
        }
        settings.check_advertised()?;
        if settings.backend == Backend::Etcd && options.http.is_none() {
            return Err(invalid(
                "--cluster etcd:// needs HTTP, by which the servers ask each other, but --http (BLOCKCHAIN_TCPD_HTTP) disables it",
            ));
        }
        Ok(Some(settings))
    }

    /// Returns settings for a server that must continue although its options are invalid. With
    /// etcd, where a wrong count must not be reported, the settings have no hosts; with Redis,
    /// there are no settings (`None`).
    pub fn unusable(options: &Options) -> Option<Self> {
        let is_etcd = options.cluster.as_ref()?.starts_with("etcd");
        is_etcd.then(|| Settings {
            name: options.cluster_name.clone(),
            heartbeat: options.cluster_heartbeat,
            advertise: options.advertise,
            ..Settings::default()
        })
    }

    /// Checks that the credentials can be read and that the hosts resolve. May take up to 2 s.
    pub fn check(&self) -> Result<(), Error> {
        let credentials = self.credentials.check();
        credentials.map_err(|error| invalid(error.what))?;
        self.resolve(&DnsCache::default(), Instant::now() + LOOKUP_TIMEOUT)
    }

    /// Returns the indices of the hosts in the order to try them: from `first` on, but hosts with
    /// known addresses before all others. Waits for an address until `by` if none is known.
    pub fn host_order(&self, dns: &DnsCache, first: usize, by: Instant) -> Vec<usize> {
        let hosts = self.hosts.iter();
        let hosts: Vec<_> = hosts.map(|host| (host.host.as_str(), host.port)).collect();
        let found = dns.wait_for_one(&hosts, by);
        let mut order: Vec<usize> = (0..found.len()).collect();
        order.rotate_left(first % found.len().max(1));
        order.sort_by_key(|index| !found[*index]);
        order
    }

    /// Refuses hosts of which none exists. Logs a warning if that is still unknown at `by`: the
    /// lookup may succeed later.
    fn resolve(&self, dns: &DnsCache, by: Instant) -> Result<(), Error> {
        let (mut is_unknown, mut problem) = (false, String::new());
        self.host_order(dns, 0, by);
        for host in &self.hosts {
            let (why, is_missing) = match dns.addresses(&host.host, host.port, Instant::now()) {
                Ok(addresses) if !addresses.is_empty() => return Ok(()),
                Ok(_) => ("it has none".to_string(), true),
                Err(error) => (dns::reason(&error), dns::is_missing(&error)),
            };
            if !is_missing || !is_unknown {
                problem = format!("can't find the address of {host}: {why}");
            }
            is_unknown |= !is_missing;
        }
        if is_unknown {
            warn!("starts although it {problem}");
            return Ok(());
        }
        Err(invalid(format!(
            "--cluster: {problem}; name a host that resolves, or an IP address"
        )))
    }

    /// Checks that the address of `--advertise` can be the address of one server.
    fn check_advertised(&self) -> Result<(), Error> {
        let Some(address) = self.advertise else {
            return match self.backend {
                Backend::Redis => Ok(()),
                Backend::Etcd => Err(invalid(
                    "--cluster etcd:// needs --advertise (BLOCKCHAIN_TCPD_ADVERTISE): the address at which the other servers reach the \
                     HTTP of this one",
                )),
            };
        };
        let ip = address.ip().to_canonical();
        let is_broadcast = ip == IpAddr::V4(Ipv4Addr::BROADCAST);
        if ip.is_unspecified() || ip.is_multicast() || is_broadcast || address.port() == 0 {
            return Err(invalid(
                "--advertise is the address that the other servers connect to: it can't be any address, that of many, or any port",
            ));
        }
        Ok(())
    }

    /// Returns the time without a heartbeat after which a server counts as gone.
    pub fn expiry(&self) -> Duration {
        self.heartbeat * EXPIRY_HEARTBEATS
    }
}

fn invalid(text: impl Into<String>) -> Error {
    Error::Configuration(text.into())
}

fn database(text: &str) -> Result<u32, Error> {
    let problem = format!("--cluster: {text:?} is not the number of a database");
    text.parse().map_err(|_| invalid(problem))
}

fn name(text: &str, what: &str) -> Result<String, Error> {
    let is_allowed = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
    if (1..=MAX_NAME).contains(&text.len()) && text.chars().all(is_allowed) {
        return Ok(text.to_string());
    }
    Err(invalid(format!(
        "{what} is {text:?}: it must be 1 to {MAX_NAME} letters, digits and . _ - of ASCII"
    )))
}

/// Parses `HOST`, `HOST:PORT`, `[IPV6]` or `[IPV6]:PORT`.
fn host(text: &str, default_port: u16) -> Result<Server, Error> {
    let is_allowed = |c: char| c.is_ascii_alphanumeric() || "-_.:%".contains(c);
    let (host, rest) = match text.strip_prefix('[') {
        Some(bracketed) => bracketed.split_once(']').unwrap_or_default(),
        None => text.split_at(text.find(':').unwrap_or(text.len())),
    };
    let port = match rest.strip_prefix(':') {
        Some(port) => port.parse().unwrap_or(0),
        None if rest.is_empty() => default_port,
        None => 0,
    };
    if host.is_empty() || !host.chars().all(is_allowed) || port == 0 {
        return Err(invalid(format!(
            "--cluster: {text:?} is not a host with a port, such as redis.example:6379 or [2001:db8::1]:6379"
        )));
    }
    let host = host.to_string();
    Ok(Server::new(host, port))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::options::ParsedArgs;

    fn settings(cluster: &str) -> Result<Settings, Error> {
        let cluster = ["blockchain-tcpd", "--cluster", cluster];
        let arguments = cluster.into_iter().chain(["--advertise", "192.0.2.1:4280"]);
        match Options::parse_from(arguments)? {
            ParsedArgs::Run(options) => Settings::new(&options).map(Option::unwrap),
            ParsedArgs::Print(text) => panic!("{text}"),
        }
    }

    /// Addresses with their hosts, database and master, and TLS with Redis or etcd and the
    /// Sentinels.
    const ADDRESSES: &str = "\
redis://127.0.0.1; 127.0.0.1:6379; 0; none
rediss://[::1]:7000/3; [::1]:7000; 3; first
redis-sentinel://a:1,b/m/2; a:1 b:26379; 2 m; none
rediss-sentinel://a/m; a:26379; 0 m; both
redis-sentinel+rediss://a/m; a:26379; 0 m; first
rediss-sentinel+redis://a/m; a:26379; 0 m; second
etcd://a,b,c:5; a:2379 b:2379 c:5; etcd; none
etcds://[fe80::1%2]; [fe80::1%2]:2379; etcd; first";

    #[test]
    fn addresses_are_parsed() {
        for line in ADDRESSES.lines() {
            let (cluster, expected) = line.split_once("; ").unwrap();
            let parsed = settings(cluster).unwrap();
            let hosts: Vec<String> = parsed.hosts.iter().map(Server::to_string).collect();
            let backend = match (parsed.backend, parsed.database, parsed.master) {
                (Backend::Etcd, ..) => "etcd".to_string(),
                (_, database, None) => database.to_string(),
                (_, database, Some(master)) => format!("{database} {master}"),
            };
            let tls = match (parsed.tls, parsed.sentinel_tls) {
                (false, false) => "none",
                (true, false) => "first",
                (false, true) => "second",
                (true, true) => "both",
            };
            let parsed = format!("{}; {backend}; {tls}", hosts.join(" "));
            assert_eq!(parsed, expected, "{cluster}");
        }
    }

    #[test]
    fn invalid_addresses_are_refused_with_a_reason() {
        for (cluster, why) in [
            ("127.0.0.1", "no scheme"),
            ("redis-sentinel+etcd://127.0.0.1/main", "knows no scheme"),
            ("redis://", "not a host"),
            ("redis://127.0.0.1:0", "not a host"),
            ("redis://127.0.0.1:x", "not a host"),
            ("redis://a b", "not a host"),
            ("redis://[::1", "not a host"),
            ("redis://[::1]1", "not a host"),
            ("redis://127.0.0.1,127.0.0.2", "several are Sentinels"),
            ("redis://127.0.0.1/x", "not the number of a database"),
            ("redis-sentinel://a/main/x", "not the number of a database"),
            ("redis://127.0.0.1?db=1", "no options"),
            ("redis-sentinel://127.0.0.1", "MASTER is \"\""),
            ("redis-sentinel://127.0.0.1/ma ster", "MASTER is"),
            ("etcd://127.0.0.1/x", "only hosts"),
        ] {
            let error = settings(cluster).unwrap_err().to_string();
            assert!(error.contains(why), "{cluster}: {error}");
        }
    }

    #[test]
    fn hosts_of_which_none_exists_are_refused() {
        let dns = || {
            DnsCache::with_resolver(|name, port| {
                let error = match name {
                    "here" => return Ok(vec![(Ipv4Addr::LOCALHOST, port).into()]),
                    "empty" => return Ok(Vec::new()),
                    "away" => "Temporary failure in name resolution",
                    _ => "Name or service not known",
                };
                if name == "slow" {
                    std::thread::sleep(Duration::from_secs(1));
                }
                let error = format!("failed to lookup address information: {error}");
                Err(std::io::Error::other(error))
            })
        };
        for (hosts, is_accepted) in [
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
            let settings = settings(&format!("redis-sentinel://{hosts}/main")).unwrap();
            let start = Instant::now();
            let resolved = settings.resolve(&dns(), start + Duration::from_millis(100));
            assert_eq!(resolved.is_ok(), is_accepted, "{hosts}: {resolved:?}");
            assert!(start.elapsed() < Duration::from_millis(900), "{hosts}");
        }
    }
}
