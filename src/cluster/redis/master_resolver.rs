//! Master resolver: finds the Redis master, through Sentinels if there are any, connects to it and
//! authenticates.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Instant;

use super::connection::RedisConnection;
use crate::cluster::credentials::Login;
use crate::cluster::error::{ClusterError, ErrorKind, Result};
use crate::cluster::settings::Settings;
use shared::dial::{DnsCache, Server};

/// Number of heartbeat intervals between two checks while no Sentinel answers: heartbeats wait for
/// a check.
const RARE_CHECK_HEARTBEATS: u32 = 11;

/// Advice for a server that does not know `HELLO 3`.
const TOO_OLD_ADVICE: &str = "(HELLO 3 is not known there: Redis 6 or later is needed, without a proxy that speaks only RESP2)";

/// Advice for a server that closes the connection at `HELLO`, as twemproxy does.
const CLOSED_ADVICE: &str = "at the first command (does it expect TLS, rediss://, or is it a proxy that doesn't know HELLO? Redis 6 or \
                      later is needed)";

/// Finds the master and connects to it, whenever a connection is needed.
pub struct MasterResolver {
    settings: Arc<Settings>,
    dns: DnsCache,
    /// Index of the Sentinel to ask first.
    next_sentinel: usize,
    /// Connection to the Sentinel that answered last.
    sentinel: Option<RedisConnection>,
    /// Host of the master, as last told.
    master: Option<Server>,
    /// Address of the last connection to the master.
    address: Option<SocketAddr>,
    /// When to check the next time whether the master is still the master.
    next_check: Instant,
}

impl MasterResolver {
    /// Creates a resolver for settings with Redis. Connects to nothing yet.
    pub fn new(settings: Arc<Settings>) -> Self {
        MasterResolver {
            settings,
            dns: DnsCache::default(),
            next_sentinel: 0,
            sentinel: None,
            master: None,
            address: None,
            next_check: Instant::now(),
        }
    }

    /// Reports a failure of the last connected master: the next attempt tries another address of
    /// its name first.
    pub fn failed(&mut self) {
        if let Some(address) = self.address.take() {
            self.dns.failed(address);
        }
    }

    /// Connects to the master and authenticates.
    pub fn connect(&mut self, deadline: Instant) -> Result<RedisConnection> {
        let settings = self.settings.clone();
        let host = match &settings.master {
            None => settings.hosts[0].clone(),
            Some(name) => self.ask_sentinels(name, deadline)?,
        };
        let mut redis = self.dial(&host, settings.tls, deadline)?;
        self.master = Some(host);
        self.address = Some(redis.address());
        self.next_check = Instant::now() + settings.heartbeat;
        hello(&mut redis, settings.credentials.login()?)?;
        if settings.database != 0 {
            redis.query(redis::cmd("SELECT").arg(settings.database))?;
        }
        Ok(redis)
    }

    fn dial(&self, host: &Server, uses_tls: bool, deadline: Instant) -> Result<RedisConnection> {
        let tls = uses_tls.then_some(&self.settings.credentials);
        RedisConnection::connect(host, &self.dns, tls, deadline)
    }

    /// Checks once a heartbeat interval whether the connected Redis is still the master, as far as
    /// a Sentinel can be asked. Fails if it is not: a demoted master accepts writes from clients
    /// that have not learned of the failover.
    pub fn check(&mut self) -> Result<()> {
        let (settings, now) = (self.settings.clone(), Instant::now());
        let name = match &settings.master {
            Some(name) if now >= self.next_check => name,
            _ => return Ok(()),
        };
        let interval = settings.heartbeat;
        let deadline = now + interval / 4;
        self.next_check = now + interval;
        let master = match self.sentinel.take() {
            Some(mut sentinel) => {
                sentinel.set_deadline(deadline);
                // If it fails, the next check asks another Sentinel.
                self.ask(sentinel, name)
            }
            None => {
                let answer = self.ask_sentinels(name, deadline);
                answer.inspect_err(|_| self.next_check = now + interval * RARE_CHECK_HEARTBEATS)
            }
        };
        match master {
            Ok(host) if self.master.as_ref() != Some(&host) => {
                // Ask the Sentinel that knows of the failover first.
                self.next_sentinel = self.next_sentinel.saturating_sub(1);
                let what = format!("the Sentinels have chosen {host}");
                Err(ClusterError::refused(what))
            }
            _ => Ok(()),
        }
    }

    /// Asks the Sentinels, one after the other, for the host of the master.
    fn ask_sentinels(&mut self, name: &str, deadline: Instant) -> Result<Server> {
        let settings = self.settings.clone();
        let mut last = ClusterError::new(ErrorKind::Unreachable, "there is no Sentinel");
        let order = settings.host_order(&self.dns, self.next_sentinel, share(deadline, 2));
        for (attempt, index) in order.into_iter().enumerate() {
            // The last share is for the master.
            let by = share(deadline, settings.hosts.len() - attempt + 1);
            let sentinel = self.dial(&settings.hosts[index], settings.sentinel_tls, by);
            match sentinel.and_then(|sentinel| self.ask(sentinel, name)) {
                // The next call asks another Sentinel first: this one may be partitioned from the
                // others.
                Ok(host) => {
                    self.next_sentinel = index + 1;
                    return Ok(host);
                }
                Err(error) => last = error,
            }
        }
        self.next_sentinel += 1;
        Err(last)
    }

    /// Asks a Sentinel for the host of the master, and keeps the connection if it answers.
    fn ask(&mut self, mut sentinel: RedisConnection, name: &str) -> Result<Server> {
        let answer = self.query_master(&mut sentinel, name);
        match answer {
            Ok(_) => self.sentinel = Some(sentinel),
            Err(_) => self.dns.failed(sentinel.address()),
        }
        answer
    }

    /// Asks a Sentinel for the host of the master; authenticates if the Sentinel asks for that.
    fn query_master(&self, sentinel: &mut RedisConnection, name: &str) -> Result<Server> {
        let mut query = redis::cmd("SENTINEL");
        query.arg("GET-MASTER-ADDR-BY-NAME").arg(name);
        let reply = match sentinel.query(&query) {
            Err(error) if error.kind == ErrorKind::Denied => {
                self.authenticate(sentinel)?;
                sentinel.query(&query)
            }
            reply => reply,
        };
        let what = match redis::from_redis_value::<Option<(String, u16)>>(reply?) {
            Ok(Some((host, port))) if is_host(&host) => return Ok(Server::new(host, port)),
            Ok(Some(_)) => "says nonsense of the",
            _ => "knows no",
        };
        let what = format!("the Sentinel {what} master {name:?}");
        Err(ClusterError::refused(what))
    }

    fn authenticate(&self, sentinel: &mut RedisConnection) -> Result<()> {
        let credentials = &self.settings.credentials;
        hello(sentinel, credentials.sentinel_login()?).map_err(|mut error| {
            if error.kind == ErrorKind::Denied
                && credentials.cluster_sentinel_password_file.is_none()
            {
                error.what +=
                    " (Sentinels with a password of their own: --cluster-sentinel-password-file)";
            }
            error
        })
    }
}

/// Returns the end of the first of `parts` equal shares of the time until the deadline.
fn share(deadline: Instant, parts: usize) -> Instant {
    let now = Instant::now();
    now + deadline.saturating_duration_since(now) / parts as u32
}

/// Authenticates and selects RESP3, in two steps: a Redis that does not know HELLO repeats its
/// arguments in the error.
fn hello(redis: &mut RedisConnection, login: Login) -> Result<()> {
    let greet = || {
        if let Some((user, password)) = login {
            redis.authenticate(user.as_deref(), password)?;
        }
        let mut hello = redis::cmd("HELLO");
        hello.arg(3).arg("SETNAME").arg("blockchain-tcpd");
        redis.query(&hello)
    };
    greet().map(|_| ()).map_err(|mut error| {
        let advice = match error.kind {
            _ if is_too_old(&error) => TOO_OLD_ADVICE,
            ErrorKind::Unreachable => CLOSED_ADVICE,
            _ => return error,
        };
        error.what = format!("{} {advice}", error.what);
        error
    })
}

/// Returns whether the server does not know HELLO, or not in this version. Only an unsupported
/// protocol version has a code of its own (`NOPROTO`); servers without HELLO use texts of their
/// own.
fn is_too_old(error: &ClusterError) -> bool {
    // The description begins with the host, whose name may be any word.
    let text = error.what.split_once(" says").unwrap_or_default().1;
    let text = text.to_ascii_lowercase();
    let words = [
        "command",
        "wrong number of arg",
        "unsupported",
        "not supported",
    ];
    let is_unknown = || words.iter().any(|words| text.contains(words));
    error.code == "NOPROTO" || error.code.eq_ignore_ascii_case("ERR") && is_unknown()
}

/// Returns whether `name` may be a host name and is safe to log.
fn is_host(name: &str) -> bool {
    (1..=253).contains(&name.len()) && name.bytes().all(|byte| byte.is_ascii_graphic())
}
