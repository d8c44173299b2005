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
const RARE_CHECKS: u32 = 11;

/// Advice for a server that does not know `HELLO 3`.
const TOO_OLD: &str = "(HELLO 3 is not known there: Redis 6 or later is needed, without a proxy that speaks only RESP2)";

/// Advice for a server that closes the connection at `HELLO`, as twemproxy does.
const CLOSED: &str = "at the first command (does it expect TLS, rediss://, or is it a proxy that doesn't know HELLO? Redis 6 or \
                      later is needed)";

/// Channel on which a Sentinel announces a new master.
const SWITCH_MASTER: &str = "+switch-master";

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
        hello(&mut redis, &settings.credentials.login)?;
        if settings.database != 0 {
            redis.query(redis::cmd("SELECT").arg(settings.database))?;
        }
        Ok(redis)
    }

    fn dial(&self, host: &Server, uses_tls: bool, deadline: Instant) -> Result<RedisConnection> {
        let tls = uses_tls.then_some(&self.settings.credentials);
        RedisConnection::connect(host, &self.dns, tls, deadline)
    }

    /// Returns the connection on which a Sentinel announces a new master: then a check is due.
    pub fn sentinel(&self) -> Option<&RedisConnection> {
        self.sentinel.as_ref()
    }

    /// Checks once a heartbeat interval, and when a Sentinel announces a new master, whether the
    /// connected Redis is still the master, as far as a Sentinel can be asked. Fails if it is not:
    /// a demoted master accepts writes from clients that have not learned of the failover.
    pub fn check(&mut self) -> Result<()> {
        let settings = self.settings.clone();
        let Some(name) = &settings.master else {
            return Ok(());
        };
        let (now, interval) = (Instant::now(), settings.heartbeat);
        let announced = match &mut self.sentinel {
            Some(sentinel) => sentinel.read_message(),
            None => Ok(false),
        };
        if announced.is_err() {
            // The next check asks another Sentinel.
            self.drop_sentinel();
        }
        if now < self.next_check && !announced.unwrap_or(false) {
            return Ok(());
        }
        self.next_check = now + interval;
        let deadline = now + interval / 4;
        let master = match self.sentinel.take() {
            Some(mut sentinel) => {
                sentinel.set_deadline(deadline);
                let answer = self.query_master(&mut sentinel, name);
                self.sentinel = Some(sentinel);
                answer.inspect_err(|_| self.drop_sentinel())
            }
            None => {
                let answer = self.ask_sentinels(name, deadline);
                answer.inspect_err(|_| self.next_check = now + interval * RARE_CHECKS)
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

    fn drop_sentinel(&mut self) {
        if let Some(sentinel) = self.sentinel.take() {
            self.dns.failed(sentinel.address());
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
            match self.ask_sentinel(&settings.hosts[index], name, by) {
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

    fn ask_sentinel(&mut self, host: &Server, name: &str, deadline: Instant) -> Result<Server> {
        let mut sentinel = self.dial(host, self.settings.sentinel_tls, deadline)?;
        let answer = self.query_master(&mut sentinel, name);
        let host = answer.inspect_err(|_| self.dns.failed(sentinel.address()))?;
        let newer = self.subscribe(&mut sentinel, name);
        let answers =
            |error: &ClusterError| matches!(error.kind, ErrorKind::Refused | ErrorKind::Denied);
        // Without announcements, the periodic checks suffice.
        self.sentinel = newer.as_ref().err().is_none_or(answers).then_some(sentinel);
        Ok(newer.unwrap_or(host))
    }

    /// Subscribes to announcements, then asks again: a failover before the subscription would be
    /// missed otherwise.
    fn subscribe(&self, sentinel: &mut RedisConnection, name: &str) -> Result<Server> {
        sentinel.query(redis::cmd("HELLO").arg(3))?;
        sentinel.query(redis::cmd("SUBSCRIBE").arg(SWITCH_MASTER))?;
        self.query_master(sentinel, name)
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
            Ok(Some((host, port))) if is_host(&host) => return Ok(Server { host, port }),
            Ok(Some(_)) => "says nonsense of the",
            _ => "knows no",
        };
        let what = format!("the Sentinel {what} master {name:?}");
        Err(ClusterError::refused(what))
    }

    fn authenticate(&self, sentinel: &mut RedisConnection) -> Result<()> {
        let credentials = &self.settings.credentials;
        let login = credentials.for_sentinels();
        hello(sentinel, login).map_err(|mut error| {
            if error.kind == ErrorKind::Denied && login == &credentials.login {
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
fn hello(redis: &mut RedisConnection, login: &Login) -> Result<()> {
    let mut greet = || {
        if let Some((user, password)) = login.read()? {
            redis.authenticate(user.as_deref(), password)?;
        }
        let mut hello = redis::cmd("HELLO");
        hello.arg(3).arg("SETNAME").arg("blockchain-tcpd");
        redis.query(&hello)
    };
    greet().map(|_| ()).map_err(|mut error| {
        let advice = match error.kind {
            _ if is_too_old(&error) => TOO_OLD,
            ErrorKind::Unreachable => CLOSED,
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
