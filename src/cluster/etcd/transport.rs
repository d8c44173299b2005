//! etcd transport: requests to the JSON gateway (`/v3/…`), with authentication, failover between
//! the members and deadlines.

use std::io;
use std::sync::Arc;
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use ureq::Agent;
use ureq::config::Config;
use ureq::tls::{Certificate, ClientCert, PrivateKey, RootCerts, TlsConfig};
use ureq::unversioned::transport::{Connector as _, RustlsConnector};

use super::connector::Members;
use crate::cluster::credentials::ClientCertificate;
use crate::cluster::error::{ClusterError, ErrorKind, cut};
use crate::cluster::settings::{Host, Settings};
use crate::cluster::tls;
use shared::dial::DnsCache;

/// Largest size of a reply in bytes.
const LARGEST_REPLY: u64 = 1 << 20;

/// etcd user if only a password is configured.
const DEFAULT_USER: &str = "root";

/// Path that answers a password with a token.
const AUTHENTICATE: &str = "auth/authenticate";

/// gRPC status codes.
mod code {
    pub const UNKNOWN: &str = "2";
    pub const INVALID_ARGUMENT: &str = "3";
    pub const DEADLINE_EXCEEDED: &str = "4";
    pub const PERMISSION_DENIED: &str = "7";
    pub const FAILED_PRECONDITION: &str = "9";
    pub const UNAUTHENTICATED: &str = "16";
}

/// Status codes of refusals that an expired token may cause. An old revision of the users is an
/// invalid argument; etcd 3.5.1 reports it as unknown.
const AUTH_EXPIRED: [&str; 4] = [
    code::UNKNOWN,
    code::INVALID_ARGUMENT,
    code::PERMISSION_DENIED,
    code::UNAUTHENTICATED,
];

/// Error texts that may be quoted from the reply to a password. All other texts are left out: they
/// may hold the password, and a search for it would reveal it by what is missing.
const ANSWERS: [&str; 5] = [
    "etcdserver: authentication failed, invalid user ID or password",
    "etcdserver: no leader",
    "etcdserver: request timed out",
    "etcdserver: too many requests",
    "etcdserver: user name is empty",
];

/// Number of bytes by which a token is recognized in a reply.
const TELLING: usize = 16;

/// Connections to the members of an etcd.
pub struct EtcdTransport {
    settings: Arc<Settings>,
    members: Members,
    /// Time that one member may take to answer.
    patience: Duration,
    /// Created when needed, with the credentials of that moment.
    agent: Option<Agent>,
    token: Token,
    /// Index of the host to try first: the last that answered.
    turn: usize,
}

/// State of the authentication.
#[derive(Clone, PartialEq, Eq)]
enum Token {
    /// Not authenticated yet.
    Unknown,
    /// etcd requires no authentication, or no password is configured.
    NotRequired,
    Is(String),
}

impl EtcdTransport {
    /// Creates a transport to the etcd of these `settings`, whose members have `patience` to
    /// answer. Sends nothing yet.
    pub fn new(settings: Arc<Settings>, names: Arc<DnsCache>, patience: Duration) -> Self {
        EtcdTransport {
            settings,
            members: Members::new(names),
            patience,
            agent: None,
            token: Token::Unknown,
            turn: 0,
        }
    }

    /// Sends a request to one member after the other, until one answers.
    pub fn call(
        &mut self,
        path: &str,
        question: &Value,
        by: Instant,
    ) -> Result<Value, ClusterError> {
        let hosts = self.settings.hosts.len();
        let mut trouble = None;
        let mut renews = true;
        let first = by.min(Instant::now() + self.patience);
        for index in self.settings.order(self.members.names(), self.turn, first) {
            let by = by.min(Instant::now() + self.patience);
            match self.call_host(index, path, question, by, &mut renews) {
                Ok(reply) => {
                    self.turn = index;
                    return Ok(reply);
                }
                Err(other) => {
                    self.members.failed(&self.settings.hosts[index]);
                    // The credential files may have changed.
                    self.agent = None;
                    // Report a denial before other errors: an operator can fix it.
                    if other.kind == ErrorKind::Denied || trouble.is_none() {
                        trouble = Some(other);
                    }
                }
            }
        }
        self.turn = (self.turn + 1) % hosts.max(1);
        Err(trouble
            .unwrap_or_else(|| ClusterError::new(ErrorKind::Unreachable, "etcd has no host")))
    }

    /// Sends a request to one member. Renews the token and repeats the request if that may help and
    /// `renews` is set; clears `renews` then.
    fn call_host(
        &mut self,
        index: usize,
        path: &str,
        question: &Value,
        by: Instant,
        renews: &mut bool,
    ) -> Result<Value, ClusterError> {
        if self.token == Token::Unknown {
            self.token = self.authenticate(index, by)?;
            *renews = false;
        }
        match self.post(index, path, question, by) {
            Err(trouble) if *renews && AUTH_EXPIRED.contains(&trouble.code.as_str()) => {
                *renews = false;
                let before = std::mem::replace(&mut self.token, Token::Unknown);
                self.token = self.authenticate(index, by)?;
                match self.token == before {
                    // Without authentication, nothing has changed.
                    true => Err(trouble),
                    false => self.post(index, path, question, by),
                }
            }
            reply => reply,
        }
    }

    fn authenticate(&mut self, index: usize, by: Instant) -> Result<Token, ClusterError> {
        let denied = |what| ClusterError::new(ErrorKind::Denied, what);
        let credentials = &self.settings.credentials;
        let Some(password) = credentials.password().map_err(denied)? else {
            return Ok(Token::NotRequired);
        };
        let user = credentials.user().map_err(denied)?;
        let user = user.as_deref().unwrap_or(DEFAULT_USER);
        let question = json!({ "name": user, "password": password });
        match self.post(index, AUTHENTICATE, &question, by) {
            Ok(reply) => match &reply["token"] {
                Value::String(token) => Ok(Token::Is(token.clone())),
                _ => Err(ClusterError::new(
                    ErrorKind::Refused,
                    "etcd answers no token",
                )),
            },
            // Authentication is not enabled.
            Err(trouble) if trouble.code == code::FAILED_PRECONDITION => Ok(Token::NotRequired),
            Err(mut trouble) => {
                if trouble.kind == ErrorKind::Refused {
                    trouble.kind = ErrorKind::Denied;
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
    ) -> Result<Value, ClusterError> {
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
        let text = String::from_utf8_lossy(&body);
        let hides = match &self.token {
            _ if path == AUTHENTICATE => Hides::Password,
            Token::Is(token) if token.get(..TELLING).is_some_and(|part| text.contains(part)) => {
                Hides::Token
            }
            _ => Hides::Nothing,
        };
        match serde_json::from_str(&text) {
            // A stream that began with status 200 reports later errors in its body.
            Ok(reply) if status == 200 && is_fine(&reply) && hides != Hides::Token => Ok(reply),
            Ok(reply) => Err(refused(host, status, &reply, hides)),
            Err(_) => {
                let said = format!("HTTP status {status}, {text}");
                Err(refused(host, status, &Value::String(said), hides))
            }
        }
    }
}

/// Creates an HTTP client that keeps connections alive.
fn agent(settings: &Settings, members: Members, patience: Duration) -> Result<Agent, ClusterError> {
    let mut config = Config::builder()
        .http_status_as_error(false)
        // Ignores the proxy that the environment names: it is not meant for etcd.
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
        let shown = tls::client_certificate(&settings.credentials)?;
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        config = config.tls_config(
            TlsConfig::builder()
                .root_certs(RootCerts::new_with_certs(&roots))
                .client_cert(shown.as_ref().map(certificate).transpose()?)
                .unversioned_rustls_crypto_provider(provider)
                .build(),
        );
    }
    let connector = members.clone().chain(RustlsConnector::default());
    Ok(Agent::with_parts(config.build(), connector, members))
}

/// Converts the client certificate for ureq.
fn certificate(shown: &ClientCertificate) -> Result<ClientCert, ClusterError> {
    let chain = shown.chain.iter();
    let chain: Vec<_> = chain
        .map(|one| Certificate::from_der(one).to_owned())
        .collect();
    let key = PrivateKey::from_pem(shown.pem.as_bytes())
        .map_err(|error| ClusterError::new(ErrorKind::Denied, error.to_string()))?;
    Ok(ClientCert::new_with_certs(&chain, key))
}

fn late(host: &Host) -> ClusterError {
    ClusterError::new(ErrorKind::Late, format!("{host} does not answer in time"))
}

/// Secret in a reply that must not be logged.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Hides {
    Nothing,
    Token,
    /// Possibly the password.
    Password,
}

fn is_fine(reply: &Value) -> bool {
    reply["error"].is_null()
}

/// Returns the gRPC code of an error reply; without one, the code that matches the HTTP status.
fn code_of(status: u16, reply: &Value) -> String {
    let codes = [
        &reply["code"],
        &reply["error"]["code"],
        &reply["error"]["grpc_code"],
    ];
    let code = codes.iter().find_map(|code| code.as_u64());
    code.map(|code| code.to_string()).unwrap_or_else(|| {
        let code = match status {
            400 => code::INVALID_ARGUMENT,
            401 => code::UNAUTHENTICATED,
            403 => code::PERMISSION_DENIED,
            500 => code::UNKNOWN,
            504 => code::DEADLINE_EXCEEDED,
            _ => "",
        };
        code.to_string()
    })
}

/// Creates an error for a refusal.
fn refused(host: &Host, status: u16, reply: &Value, hides: Hides) -> ClusterError {
    let code = code_of(status, reply);
    if status == 404 && code.is_empty() {
        let what = format!(
            "{host} answers HTTP status 404: etcd 3.4 or later is needed, and its JSON gateway switched on \
             (enable-grpc-gateway: true in its configuration file, or --enable-grpc-gateway)"
        );
        return ClusterError::new(ErrorKind::Refused, what);
    }
    // The error of a stream is nested in an object.
    let said = [
        &reply["error"]["message"],
        &reply["error"],
        &reply["message"],
        reply,
    ];
    let said = said.iter().find_map(|value| value.as_str());
    let said = said.map_or_else(|| reply.to_string(), str::to_string);
    // This error has no code of its own.
    if said.contains("CommonName of client") {
        let what = format!(
            "{host}: etcd's JSON gateway refuses certificates with a common name (CN): give this server one whose subject has none"
        );
        return ClusterError::new(ErrorKind::Denied, what);
    }
    let said = match hides {
        Hides::Nothing => said,
        Hides::Password if ANSWERS.contains(&said.as_str()) => said,
        Hides::Password | Hides::Token => format!("HTTP status {status}"),
    };
    let kind = match code.as_str() {
        code::INVALID_ARGUMENT | code::PERMISSION_DENIED | code::UNAUTHENTICATED => {
            ErrorKind::Denied
        }
        code::DEADLINE_EXCEEDED => ErrorKind::Late,
        _ => ErrorKind::Refused,
    };
    let mut trouble = ClusterError::new(kind, cut(&format!("{host} says: {said}")));
    trouble.code = code;
    trouble
}

/// Creates an error for a request without an answer.
fn failed(host: &Host, error: ureq::Error) -> ClusterError {
    let (kind, why) = match error {
        ureq::Error::Timeout(_) => return late(host),
        ureq::Error::Io(error) if error.kind() == io::ErrorKind::InvalidData => {
            (ErrorKind::Denied, tls::explain(&error))
        }
        ureq::Error::Io(error) => (ErrorKind::Unreachable, tls::explain(&error)),
        ureq::Error::ConnectionFailed => (ErrorKind::Unreachable, "no connection".to_string()),
        ureq::Error::HostNotFound => (ErrorKind::Unreachable, "it has no address".to_string()),
        ureq::Error::Tls(_) | ureq::Error::Rustls(_) => (ErrorKind::Denied, error.to_string()),
        error => (ErrorKind::Refused, error.to_string()),
    };
    ClusterError::new(kind, cut(&format!("{host}: {why}")))
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
        for (status, reply, kind, code, what) in [
            // etcd 3.5 and 3.4 use different texts.
            (
                400,
                json!({ "code": 3, "message": "etcdserver: other words" }),
                ErrorKind::Denied,
                code::INVALID_ARGUMENT,
                "a:1 says: etcdserver: other words",
            ),
            (
                403,
                json!({ "error": "no", "message": "no", "code": 7 }),
                ErrorKind::Denied,
                code::PERMISSION_DENIED,
                "a:1 says: no",
            ),
            (
                500,
                json!({ "error": "auth: revision in header is old", "code": 2 }),
                ErrorKind::Refused,
                code::UNKNOWN,
                "a:1 says: auth: revision",
            ),
            // Errors of a stream, from both versions.
            (
                400,
                json!({ "error": { "code": 16, "message": "no" } }),
                ErrorKind::Denied,
                code::UNAUTHENTICATED,
                "a:1 says: no",
            ),
            (
                200,
                json!({ "error": { "grpc_code": 14, "http_code": 503, "message": "etcdserver: no leader" } }),
                ErrorKind::Refused,
                "14",
                "a:1 says: etcdserver: no leader",
            ),
            (
                400,
                json!(
                    "HTTP status 400, CommonName of client sending a request against gateway will be ignored"
                ),
                ErrorKind::Denied,
                "",
                "a:1: etcd's JSON gateway refuses certificates with a common name",
            ),
            (
                503,
                json!("HTTP status 503, \u{7}"),
                ErrorKind::Refused,
                "",
                "a:1 says: HTTP status 503, ?",
            ),
            (
                504,
                json!({}),
                ErrorKind::Late,
                code::DEADLINE_EXCEEDED,
                "a:1 says: {}",
            ),
            (
                404,
                json!({ "code": 5, "message": "etcdserver: requested lease not found" }),
                ErrorKind::Refused,
                "5",
                "a:1 says: etcdserver: requested",
            ),
            (
                404,
                json!("HTTP status 404, 404 page not found"),
                ErrorKind::Refused,
                "",
                "a:1 answers HTTP status 404: etcd 3.4 or later",
            ),
        ] {
            let trouble = refused(&host, status, &reply, Hides::Nothing);
            assert_eq!(trouble.kind, kind, "{reply}");
            assert_eq!(trouble.code, code, "{reply}");
            assert!(trouble.what.starts_with(what), "{trouble}");
        }
        for (said, what) in [
            (ANSWERS[0], format!("a:1 says: {}", ANSWERS[0])),
            (
                "no user with hunter2",
                "a:1 says: HTTP status 400".to_string(),
            ),
        ] {
            let reply = json!({ "code": 3, "message": said });
            let trouble = refused(&host, 400, &reply, Hides::Password);
            assert_eq!(trouble.what, what);
        }
    }
}
