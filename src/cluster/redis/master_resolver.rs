//! Master resolver: finds the Redis master, through Sentinels if there are any, connects to it and
//! authenticates.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Instant;

use super::connection::RedisConnection;
use crate::cluster::error::{ClusterError, ErrorKind};
use crate::cluster::settings::{Backend, Host, Settings};
use crate::cluster::tls;
use shared::dial::DnsCache;

/// Number of skipped checks after one in which no Sentinel answered.
const REST: u32 = 10;

/// Advice for a server that does not know `HELLO 3`.
const TOO_OLD: &str = "(HELLO 3 is not known there: Redis 6 or later is needed, without a proxy that speaks only RESP2)";

/// Advice for a server that closes the connection at `HELLO`, as twemproxy does.
const CLOSED: &str = "at the first command (does it expect TLS, rediss://, or is it a proxy that doesn't know HELLO? Redis 6 or \
                         later is needed)";

/// Channel on which a Sentinel announces a new master.
const NEWS: &str = "+switch-master";

/// Finds the master and connects to it, whenever a connection is needed.
pub struct MasterResolver {
    settings: Arc<Settings>,
    names: DnsCache,
    /// Index of the Sentinel to ask first.
    turn: usize,
    /// Connection to the Sentinel that answered last.
    sentinel: Option<RedisConnection>,
    /// Host of the master, as last told.
    master: Option<Host>,
    /// Address of the last connection to the master.
    address: Option<SocketAddr>,
    /// Number of checks still to skip because no Sentinel answered.
    rest: u32,
}

impl MasterResolver {
    /// Creates a resolver. Connects to nothing yet.
    pub fn new(settings: Arc<Settings>) -> Self {
        MasterResolver {
            settings,
            names: DnsCache::default(),
            turn: 0,
            sentinel: None,
            master: None,
            address: None,
            rest: 0,
        }
    }

    /// Reports a failure of the last connected master: the next attempt tries another address of
    /// its name first.
    pub fn failed(&mut self) {
        if let Some(address) = self.address.take() {
            self.names.failed(address);
        }
    }

    /// Connects to the master and authenticates.
    pub fn connect(&mut self, deadline: Instant) -> Result<RedisConnection, ClusterError> {
        let settings = self.settings.clone();
        let Backend::Redis { database, master } = &settings.backend else {
            return Err(ClusterError::new(
                ErrorKind::Refused,
                "this is not a Redis server",
            ));
        };
        let host = match master {
            None => settings.hosts[0].clone(),
            Some(master) => self.ask_sentinels(master, deadline)?,
        };
        self.master = Some(host.clone());
        let tls = settings.tls.then(|| tls::client(&settings.credentials));
        let mut link = RedisConnection::connect(&host, &self.names, tls.transpose()?, deadline)?;
        self.address = Some(link.address());
        let denied = |what| ClusterError::new(ErrorKind::Denied, what);
        let user = settings.credentials.user().map_err(denied)?;
        let password = settings.credentials.password().map_err(denied)?;
        hello(&mut link, user.as_deref(), password, deadline)?;
        if *database != 0 {
            link.ask(redis::cmd("SELECT").arg(*database), deadline)?;
        }
        Ok(link)
    }

    /// Returns the connection on which a Sentinel announces a new master; see
    /// [`MasterResolver::hear`].
    pub fn sentinel(&self) -> Option<&RedisConnection> {
        self.sentinel.as_ref()
    }

    /// Reads announcements of the Sentinel. Returns whether there was one: then a check is due.
    pub fn hear(&mut self) -> bool {
        match self.sentinel.as_mut().map(RedisConnection::hear) {
            Some(Ok(heard)) => heard,
            // The next check asks another Sentinel.
            Some(Err(_)) => {
                let lost = self.sentinel.take();
                lost.inspect(|link| self.names.failed(link.address()));
                false
            }
            None => false,
        }
    }

    /// Fails if the connected Redis is no longer the master, as far as a Sentinel can be asked. A
    /// demoted master accepts writes from clients that have not learned of the failover.
    pub fn check(&mut self, deadline: Instant) -> Result<(), ClusterError> {
        let settings = self.settings.clone();
        let Backend::Redis {
            master: Some(master),
            ..
        } = &settings.backend
        else {
            return Ok(());
        };
        let known = match self.sentinel.take() {
            Some(mut link) => match self.ask_for(&mut link, master, deadline) {
                Ok(host) => {
                    self.sentinel = Some(link);
                    Some(host)
                }
                // The next check asks another Sentinel.
                Err(_) => {
                    self.names.failed(link.address());
                    None
                }
            },
            // Heartbeats wait for this check, so it is skipped most of the time while no Sentinel
            // answers.
            None if self.rest > 0 => {
                self.rest -= 1;
                None
            }
            None => {
                let asked = self.ask_sentinels(master, deadline).ok();
                self.rest = if asked.is_none() { REST } else { 0 };
                asked
            }
        };
        match known {
            Some(host) if self.master.as_ref() != Some(&host) => {
                // Ask the Sentinel that knows of the failover first.
                self.turn = self.turn.saturating_sub(1);
                let what = format!("the Sentinels have chosen {host}");
                Err(ClusterError::new(ErrorKind::Refused, what))
            }
            _ => Ok(()),
        }
    }

    /// Authenticates with a Sentinel.
    fn hello_to_sentinel(
        &self,
        link: &mut RedisConnection,
        deadline: Instant,
    ) -> Result<(), ClusterError> {
        let credentials = &self.settings.credentials;
        let denied = |what| ClusterError::new(ErrorKind::Denied, what);
        let (user, password) = credentials.for_sentinels().map_err(denied)?;
        hello(link, user.as_deref(), password, deadline).map_err(|mut trouble| {
            if trouble.kind == ErrorKind::Denied && !credentials.are_sentinels_apart() {
                trouble.what +=
                    " (Sentinels with a password of their own: --cluster-sentinel-password-file)";
            }
            trouble
        })
    }

    /// Asks the Sentinels, one after the other, for the host of the master.
    fn ask_sentinels(&mut self, master: &str, deadline: Instant) -> Result<Host, ClusterError> {
        let tls = self.settings.sentinel_tls;
        let tls = tls.then(|| tls::client(&self.settings.credentials));
        let tls = tls.transpose()?;
        let hosts = self.settings.hosts.clone();
        let mut trouble = ClusterError::new(ErrorKind::Unreachable, "there is no Sentinel");
        let left = deadline.saturating_duration_since(Instant::now());
        let by = Instant::now() + left / 2;
        let order = self.settings.order(&self.names, self.turn, by);
        for (attempt, index) in order.into_iter().enumerate() {
            let sentinel = &hosts[index];
            let left = deadline.saturating_duration_since(Instant::now());
            let share = Instant::now() + left / (hosts.len() - attempt + 1) as u32;
            match self.ask_sentinel(sentinel, master, tls.clone(), share) {
                // The next call asks another Sentinel first: this one may be partitioned from the
                // others.
                Ok(host) => {
                    self.turn = index + 1;
                    return Ok(host);
                }
                Err(other) => trouble = other,
            }
        }
        self.turn += 1;
        Err(trouble)
    }

    fn ask_sentinel(
        &mut self,
        sentinel: &Host,
        master: &str,
        tls: Option<Arc<rustls::ClientConfig>>,
        deadline: Instant,
    ) -> Result<Host, ClusterError> {
        let mut link = RedisConnection::connect(sentinel, &self.names, tls, deadline)?;
        let answer = self.ask_for(&mut link, master, deadline);
        let host = answer.inspect_err(|_| self.names.failed(link.address()))?;
        match self.listen(&mut link, master, deadline) {
            Ok(newer) => {
                self.sentinel = Some(link);
                Ok(newer)
            }
            // Without announcements, the periodic checks suffice.
            Err(trouble) => {
                let answers = matches!(trouble.kind, ErrorKind::Refused | ErrorKind::Denied);
                self.sentinel = answers.then_some(link);
                Ok(host)
            }
        }
    }

    /// Subscribes to announcements, then asks again: a failover before the subscription would be
    /// missed otherwise.
    fn listen(
        &self,
        link: &mut RedisConnection,
        master: &str,
        deadline: Instant,
    ) -> Result<Host, ClusterError> {
        link.ask(redis::cmd("HELLO").arg(3), deadline)?;
        link.subscribe(NEWS, deadline)?;
        self.ask_for(link, master, deadline)
    }

    fn ask_for(
        &self,
        link: &mut RedisConnection,
        master: &str,
        deadline: Instant,
    ) -> Result<Host, ClusterError> {
        let mut question = redis::cmd("SENTINEL");
        question.arg("GET-MASTER-ADDR-BY-NAME").arg(master);
        let answer = match link.ask(&question, deadline) {
            Err(trouble) if trouble.kind == ErrorKind::Denied => {
                self.hello_to_sentinel(link, deadline)?;
                link.ask(&question, deadline)
            }
            answer => answer,
        };
        match redis::from_redis_value::<Option<(String, u16)>>(answer?) {
            Ok(Some((name, port))) if is_name(&name) => Ok(Host { name, port }),
            Ok(Some(_)) => Err(ClusterError::new(
                ErrorKind::Refused,
                format!("the Sentinel says nonsense of the master {master:?}"),
            )),
            _ => Err(ClusterError::new(
                ErrorKind::Refused,
                format!("the Sentinel knows no master {master:?}"),
            )),
        }
    }
}

/// Authenticates and selects RESP3, in two steps: a Redis that does not know HELLO repeats its
/// arguments in the error.
fn hello(
    link: &mut RedisConnection,
    user: Option<&str>,
    password: Option<String>,
    deadline: Instant,
) -> Result<(), ClusterError> {
    let explained = |mut trouble: ClusterError| {
        if is_too_old(&trouble) {
            trouble.what = format!("{} {TOO_OLD}", trouble.what);
        } else if trouble.kind == ErrorKind::Unreachable {
            trouble.what = format!("{} {CLOSED}", trouble.what);
        }
        trouble
    };
    if let Some(password) = password {
        link.authenticate(user, password, deadline)
            .map_err(explained)?;
    }
    let mut hello = redis::cmd("HELLO");
    hello.arg(3).arg("SETNAME").arg("blockchain-tcpd");
    link.ask(&hello, deadline).map_err(explained)?;
    Ok(())
}

/// Returns whether the server does not know HELLO, or not in this version. Only an unsupported
/// protocol version has a code of its own (`NOPROTO`); servers without HELLO use texts of their
/// own.
fn is_too_old(trouble: &ClusterError) -> bool {
    let said = trouble.said.to_ascii_lowercase();
    let words = [
        "command",
        "wrong number of arg",
        "unsupported",
        "not supported",
    ];
    let is_unknown = || words.iter().any(|words| said.contains(words));
    trouble.code == "NOPROTO" || trouble.code.eq_ignore_ascii_case("ERR") && is_unknown()
}

/// Returns whether `name` may be a host name and is safe to log.
fn is_name(name: &str) -> bool {
    (1..=253).contains(&name.len()) && name.bytes().all(|byte| byte.is_ascii_graphic())
}
