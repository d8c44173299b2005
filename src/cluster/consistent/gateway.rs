//! The way to an etcd: its JSON gateway (`/v3/…`), asked at one of its members after the other, each for a bounded time.

use std::io;
use std::sync::Arc;
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use ureq::Agent;
use ureq::config::Config;
use ureq::tls::{Certificate, RootCerts, TlsConfig};
use ureq::unversioned::transport::{Connector as _, RustlsConnector};

use super::connector::Members;
use crate::cluster::settings::{Host, Settings};
use crate::cluster::tls;
use crate::cluster::trouble::{Kind, Trouble, cut};
use crate::dial::Names;
use crate::error::plain;

/// The most bytes of a reply.
const LARGEST_REPLY: u64 = 1 << 20;

/// Who this server is to an etcd when only a password was given.
const DEFAULT_USER: &str = "root";

/// What an etcd says when it knows this server, or does not, and lets it do nothing.
const DENIALS: [&str; 3] = [
    "permission denied",
    "authentication failed",
    "user name is empty",
];

/// What an etcd says when this server has to say anew who it is.
const STRANGER: [&str; 3] = [
    "invalid auth token",
    "user name is empty",
    "auth store is old",
];

/// The members of an etcd.
pub struct Gateway {
    settings: Arc<Settings>,
    members: Members,
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

impl Gateway {
    /// That of the etcd of these `settings`, each of whose members has so much `patience` to answer. Nothing is asked yet.
    pub fn new(settings: Arc<Settings>, names: Arc<Names>, patience: Duration) -> Self {
        Gateway {
            settings,
            members: Members::new(names),
            patience,
            agent: None,
            token: Token::Unsaid,
            turn: 0,
        }
    }

    /// Asks one member after the other, until one answers.
    pub fn call(&mut self, path: &str, question: &Value, by: Instant) -> Result<Value, Trouble> {
        let hosts = self.settings.hosts.len();
        let mut trouble = None;
        let first = by.min(Instant::now() + self.patience);
        for index in self.settings.order(self.members.names(), self.turn, first) {
            let by = by.min(Instant::now() + self.patience);
            match self.call_host(index, path, question, by) {
                Ok(reply) => {
                    self.turn = index;
                    return Ok(reply);
                }
                Err(other) => {
                    self.members.failed(&self.settings.hosts[index]);
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
                .insert(agent(&settings, self.members.clone(), self.patience)?),
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

/// What speaks HTTP, and keeps its connections.
fn agent(settings: &Settings, members: Members, patience: Duration) -> Result<Agent, Trouble> {
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
    let connector = members.clone().chain(RustlsConnector::default());
    Ok(Agent::with_parts(config.build(), connector, members))
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
        _ if DENIALS.iter().any(|denial| said.contains(denial)) => Kind::Denied,
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
