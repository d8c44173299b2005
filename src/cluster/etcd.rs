//! What an etcd is asked, by its JSON gateway (`/v3/…`): one of its members after the other, each for a bounded time.
//!
//! Numbers of 64 bits are strings there and left out when they are 0; keys and values are base64.

use std::io;
use std::sync::Arc;
use std::time::{Duration, Instant};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Value, json};
use ureq::Agent;
use ureq::config::Config;
use ureq::http::Uri;
use ureq::tls::{Certificate, RootCerts, TlsConfig};
use ureq::unversioned::resolver::{ResolvedSocketAddrs, Resolver};
use ureq::unversioned::transport::{DefaultConnector, NextTimeout};

use super::figures::{Kind, Trouble, cut};
use super::names::Names;
use super::settings::{Host, Settings};
use super::tls;
use crate::error::plain;

/// The most bytes of a reply.
const LARGEST_REPLY: u64 = 1 << 20;

/// The first lookup of a name is waited for so long at most, also by one who has more time.
const LONGEST_LOOKUP: Duration = Duration::from_secs(1);

/// Who this server is to an etcd when only a password was given.
const DEFAULT_USER: &str = "root";

/// What an etcd says when this server has to say anew who it is.
const STRANGER: [&str; 3] = [
    "invalid auth token",
    "user name is empty",
    "auth store is old",
];

/// A key with its value.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pair {
    /// The key.
    pub key: String,
    /// The value.
    pub value: String,
    /// The lease with which it goes.
    pub lease: i64,
}

/// What a transaction does.
pub enum Do<'a> {
    /// Puts this value under a key, until the lease is gone if there is one.
    Put(&'a str, &'a str, Option<i64>),
    /// Deletes a key.
    Delete(&'a str),
}

/// What a transaction makes sure of first.
pub enum If<'a> {
    /// There is such a key.
    Is(&'a str),
    /// There is no such key.
    IsNot(&'a str),
}

/// An etcd.
pub struct Etcd {
    settings: Arc<Settings>,
    names: Arc<Names>,
    /// How long one of its members may take.
    patience: Duration,
    /// Made when it is needed, with what the files of the credentials say then.
    agent: Option<Agent>,
    token: Token,
    /// Which of the hosts is tried first: the last that answered.
    turn: usize,
}

/// Who this server is to the etcd.
#[derive(Clone, PartialEq, Eq)]
enum Token {
    /// It has not said.
    Unsaid,
    /// The etcd does not ask.
    Needless,
    Is(String),
}

impl Etcd {
    /// The one of these `settings`, each of whose members has so much `patience` to answer. Nothing is asked yet.
    pub fn new(settings: Arc<Settings>, names: Arc<Names>, patience: Duration) -> Self {
        Etcd {
            settings,
            names,
            patience,
            agent: None,
            token: Token::Unsaid,
            turn: 0,
        }
    }

    /// A new lease of so many seconds, or more if there is a least: its number, and how long it holds.
    pub fn grant(&mut self, seconds: u64, by: Instant) -> Result<(i64, u64), Trouble> {
        let reply = self.call("lease/grant", &json!({ "TTL": seconds.to_string() }), by)?;
        match (number(&reply["ID"]), number(&reply["TTL"])) {
            (Some(lease @ 1..), Some(seconds @ 1..)) => Ok((lease, seconds.unsigned_abs())),
            _ => Err(nonsense("a new lease", &reply)),
        }
    }

    /// Keeps a lease alive. Returns whether it is.
    pub fn keep_alive(&mut self, lease: i64, by: Instant) -> Result<bool, Trouble> {
        let question = json!({ "ID": lease.to_string() });
        // A stream, of which one reply is to be had for one question.
        let reply = self.call("lease/keepalive", &question, by)?;
        let reply = &reply["result"];
        match (number(&reply["ID"]), number(&reply["TTL"])) {
            (Some(same), Some(left)) if same == lease => Ok(left > 0),
            _ => Err(nonsense("a lease", reply)),
        }
    }

    /// Gives a lease up, and with it all keys that were put under it.
    pub fn revoke(&mut self, lease: i64, by: Instant) -> Result<(), Trouble> {
        self.call("lease/revoke", &json!({ "ID": lease.to_string() }), by)?;
        Ok(())
    }

    /// All keys from `from` to before `to`, `most` at most, as they are at one moment during this call.
    pub fn range(
        &mut self,
        from: &str,
        to: &str,
        most: usize,
        by: Instant,
    ) -> Result<Vec<Pair>, Trouble> {
        let question =
            json!({ "key": encode(from), "range_end": encode(to), "limit": most.to_string() });
        let reply = self.call("kv/range", &question, by)?;
        if reply["more"] == Value::Bool(true) {
            let what = format!("there are more than {most} keys between {from} and {to}");
            return Err(Trouble::new(Kind::Refused, what));
        }
        // A reply without any has its header still; nothing else is a reply.
        let pairs = match (&reply["kvs"], &reply["header"]) {
            (Value::Array(pairs), Value::Object(_)) => pairs.iter().map(pair).collect(),
            (Value::Null, Value::Object(_)) => Some(Vec::new()),
            _ => None,
        };
        pairs.ok_or_else(|| nonsense("keys", &reply))
    }

    /// Does all this at once, if that holds. Returns whether it did.
    pub fn transaction(
        &mut self,
        condition: &If<'_>,
        all: &[Do<'_>],
        by: Instant,
    ) -> Result<bool, Trouble> {
        let (result, key) = match condition {
            If::Is(key) => ("GREATER", key),
            If::IsNot(key) => ("EQUAL", key),
        };
        let condition = json!({
            "target": "CREATE", "key": encode(key), "result": result, "create_revision": "0",
        });
        let all: Vec<Value> = all.iter().map(Do::in_json).collect();
        let question = json!({ "compare": [condition], "success": all });
        let reply = self.call("kv/txn", &question, by)?;
        match (&reply["succeeded"], &reply["header"]) {
            (Value::Bool(done), Value::Object(_)) => Ok(*done),
            (Value::Null, Value::Object(_)) => Ok(false),
            _ => Err(nonsense("a transaction", &reply)),
        }
    }

    /// Asks one member after the other, until one answers.
    fn call(&mut self, path: &str, question: &Value, by: Instant) -> Result<Value, Trouble> {
        let hosts = self.settings.hosts.len();
        let mut trouble = None;
        for attempt in 0..hosts {
            let index = (self.turn + attempt) % hosts;
            let by = by.min(Instant::now() + self.patience);
            match self.call_host(index, path, question, by) {
                Ok(reply) => {
                    self.turn = index;
                    return Ok(reply);
                }
                Err(other) => {
                    // What its files say may have changed.
                    self.agent = None;
                    // The worst is told: that it is denied can be mended.
                    if other.kind == Kind::Denied || trouble.is_none() {
                        trouble = Some(other);
                    }
                }
            }
        }
        self.turn = (self.turn + 1) % hosts.max(1);
        Err(trouble.unwrap_or_else(|| Trouble::new(Kind::Unreachable, "etcd has no host")))
    }

    fn call_host(
        &mut self,
        index: usize,
        path: &str,
        question: &Value,
        by: Instant,
    ) -> Result<Value, Trouble> {
        if self.token == Token::Unsaid {
            self.token = self.authenticate(index, by)?;
        }
        match self.post(index, path, question, by) {
            Err(trouble) if STRANGER.iter().any(|text| trouble.what.contains(text)) => {
                self.token = Token::Unsaid;
                self.token = self.authenticate(index, by)?;
                self.post(index, path, question, by)
            }
            reply => reply,
        }
    }

    fn authenticate(&mut self, index: usize, by: Instant) -> Result<Token, Trouble> {
        let denied = |what| Trouble::new(Kind::Denied, what);
        let credentials = &self.settings.credentials;
        let Some(password) = credentials.password().map_err(denied)? else {
            return Ok(Token::Needless);
        };
        let user = credentials.user().map_err(denied)?;
        let user = user.as_deref().unwrap_or(DEFAULT_USER);
        let question = json!({ "name": user, "password": password });
        match self.post(index, "auth/authenticate", &question, by) {
            Ok(reply) => match &reply["token"] {
                Value::String(token) => Ok(Token::Is(token.clone())),
                _ => Err(Trouble::new(Kind::Refused, "etcd answers no token")),
            },
            Err(trouble) if trouble.what.contains("authentication is not enabled") => {
                Ok(Token::Needless)
            }
            Err(mut trouble) => {
                if trouble.kind == Kind::Refused {
                    trouble.kind = Kind::Denied;
                }
                Err(trouble)
            }
        }
    }

    fn post(
        &mut self,
        index: usize,
        path: &str,
        question: &Value,
        by: Instant,
    ) -> Result<Value, Trouble> {
        let settings = self.settings.clone();
        let host = &settings.hosts[index];
        let left = by.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Err(late(host));
        }
        let agent = match &self.agent {
            Some(agent) => agent,
            None => self
                .agent
                .insert(agent(&settings, self.names.clone(), self.patience)?),
        };
        let scheme = if settings.tls { "https" } else { "http" };
        let mut request = agent
            .post(format!("{scheme}://{host}/v3/{path}"))
            .header("Content-Type", "application/json")
            .config()
            .timeout_global(Some(left))
            .build();
        if let Token::Is(token) = &self.token {
            request = request.header("Authorization", token);
        }
        let failed = |error| failed(host, error);
        let mut reply = request.send(question.to_string()).map_err(failed)?;
        let status = reply.status().as_u16();
        let body = reply.body_mut().with_config().limit(LARGEST_REPLY);
        let body = body.read_to_vec().map_err(failed)?;
        let parsed: Option<Value> = serde_json::from_slice(&body).ok();
        match parsed {
            // In a stream that has begun well, what goes wrong is said later.
            Some(reply) if status == 200 && reply["error"].is_null() => Ok(reply),
            Some(reply) => Err(refused(host, status, &reply)),
            None => {
                let text = String::from_utf8_lossy(&body);
                let said = Value::String(format!("HTTP status {status}, {text}"));
                Err(refused(host, status, &said))
            }
        }
    }
}

impl Do<'_> {
    fn in_json(&self) -> Value {
        match self {
            Do::Put(key, value, lease) => {
                let lease = lease.unwrap_or(0).to_string();
                json!({ "request_put": { "key": encode(key), "value": encode(value), "lease": lease } })
            }
            Do::Delete(key) => json!({ "request_delete_range": { "key": encode(key) } }),
        }
    }
}

/// What speaks HTTP, and keeps its connections.
fn agent(settings: &Settings, names: Arc<Names>, patience: Duration) -> Result<Agent, Trouble> {
    let mut config = Config::builder()
        .http_status_as_error(false)
        // That which the environment names is no way to an etcd.
        .proxy(None)
        .max_redirects(0)
        .max_response_header_size(16 * 1024)
        .max_idle_connections_per_host(1)
        .timeout_global(Some(patience))
        .user_agent("blockchain-tcpd");
    if settings.tls {
        let roots = tls::roots(&settings.credentials)?;
        let roots: Vec<Certificate<'static>> = roots
            .iter()
            .map(|root| Certificate::from_der(root).to_owned())
            .collect();
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        config = config.tls_config(
            TlsConfig::builder()
                .root_certs(RootCerts::new_with_certs(&roots))
                .unversioned_rustls_crypto_provider(provider)
                .build(),
        );
    }
    let names = Looks(names);
    Ok(Agent::with_parts(
        config.build(),
        DefaultConnector::default(),
        names,
    ))
}

/// How ureq finds them.
#[derive(Debug)]
struct Looks(Arc<Names>);

impl Resolver for Looks {
    fn resolve(
        &self,
        uri: &Uri,
        _: &Config,
        timeout: NextTimeout,
    ) -> Result<ResolvedSocketAddrs, ureq::Error> {
        let authority = uri.authority().ok_or(ureq::Error::HostNotFound)?;
        let mut all = self.empty();
        // It has room for so many.
        let host = authority.host().trim_matches(['[', ']']);
        let port = authority.port_u16().ok_or(ureq::Error::HostNotFound)?;
        let by = Instant::now() + (*timeout.after).min(LONGEST_LOOKUP);
        for address in self.0.addresses(host, port, by)?.into_iter().take(16) {
            all.push(address);
        }
        if all.is_empty() {
            return Err(ureq::Error::HostNotFound);
        }
        Ok(all)
    }
}

fn encode(text: &str) -> String {
    STANDARD.encode(text)
}

fn decode(text: &Value) -> Option<String> {
    String::from_utf8(STANDARD.decode(text.as_str()?).ok()?).ok()
}

/// A number as the gateway writes it.
fn number(value: &Value) -> Option<i64> {
    match value {
        Value::Null => Some(0),
        Value::String(text) => text.parse().ok(),
        value => value.as_i64(),
    }
}

fn pair(value: &Value) -> Option<Pair> {
    Some(Pair {
        key: decode(&value["key"])?,
        value: match &value["value"] {
            Value::Null => String::new(),
            value => decode(value)?,
        },
        lease: number(&value["lease"])?,
    })
}

fn nonsense(what: &str, reply: &Value) -> Trouble {
    let what = format!("etcd was asked for {what} and answers {reply}");
    Trouble::new(Kind::Refused, cut(&what))
}

fn late(host: &Host) -> Trouble {
    Trouble::new(Kind::Late, format!("{host} does not answer in time"))
}

/// It answered that it would not.
fn refused(host: &Host, status: u16, reply: &Value) -> Trouble {
    // A stream has its error in an object of its own.
    let said = [
        &reply["error"]["message"],
        &reply["error"],
        &reply["message"],
        reply,
    ];
    let said = said.iter().find_map(|value| value.as_str());
    let said = said.map_or_else(|| reply.to_string(), str::to_string);
    let kind = match status {
        401 | 403 => Kind::Denied,
        _ if said.contains("permission denied") || said.contains("authentication failed") => {
            Kind::Denied
        }
        504 => Kind::Late,
        _ => Kind::Refused,
    };
    Trouble::new(kind, cut(&format!("{host} says: {said}")))
}

/// It did not answer.
fn failed(host: &Host, error: ureq::Error) -> Trouble {
    let (kind, why) = match error {
        ureq::Error::Timeout(_) => return late(host),
        ureq::Error::Io(error) if error.kind() == io::ErrorKind::InvalidData => {
            (Kind::Denied, plain(&error))
        }
        ureq::Error::Io(error) => (Kind::Unreachable, plain(&error)),
        ureq::Error::ConnectionFailed => (Kind::Unreachable, "no connection".to_string()),
        ureq::Error::HostNotFound => (Kind::Unreachable, "it has no address".to_string()),
        ureq::Error::Tls(_) | ureq::Error::Rustls(_) => (Kind::Denied, error.to_string()),
        error => (Kind::Refused, error.to_string()),
    };
    Trouble::new(kind, cut(&format!("{host}: {why}")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_read_as_the_gateway_writes_them() {
        let reply = json!({ "a": "7300794588608445189", "b": 2, "c": "x" });
        assert_eq!(number(&reply["a"]), Some(7_300_794_588_608_445_189));
        assert_eq!(number(&reply["b"]), Some(2));
        assert_eq!(number(&reply["none"]), Some(0));
        assert_eq!(number(&reply["c"]), None);
    }

    #[test]
    fn a_pair_is_read_whatever_is_left_out() {
        let whole = json!({ "key": "L2EvYg==", "value": "L2EvYg==", "lease": "5", "version": "2" });
        let (key, value) = ("/a/b".to_string(), "/a/b".to_string());
        assert_eq!(
            pair(&whole),
            Some(Pair {
                key,
                value,
                lease: 5
            })
        );
        assert_eq!(pair(&json!({ "key": "L2EvYg==" })).unwrap().value, "");
        for bad in [
            json!({}),
            json!({ "key": "?" }),
            json!({ "key": "/w==" }),
            json!(3),
        ] {
            assert_eq!(pair(&bad), None, "{bad}");
        }
    }

    #[test]
    fn what_it_says_has_its_sort() {
        let host = Host {
            name: "a".to_string(),
            port: 1,
        };
        for (status, reply, kind, what) in [
            (
                400,
                json!({ "error": "etcdserver: authentication failed, invalid user" }),
                Kind::Denied,
                "a:1 says: etcdserver: auth",
            ),
            (
                200,
                json!({ "error": { "message": "etcdserver: no leader" } }),
                Kind::Refused,
                "a:1 says: etcdserver: no leader",
            ),
            (
                503,
                json!("HTTP status 503, \u{7}"),
                Kind::Refused,
                "a:1 says: HTTP status 503, ?",
            ),
            (504, json!({}), Kind::Late, "a:1 says: {}"),
        ] {
            let trouble = refused(&host, status, &reply);
            assert_eq!(trouble.kind, kind, "{reply}");
            assert!(trouble.what.starts_with(what), "{trouble}");
        }
    }
}
