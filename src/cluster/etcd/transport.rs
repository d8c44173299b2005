//! etcd transport: requests to the JSON gateway (`/v3/…`), with authentication, failover between
//! the members and deadlines.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::sync::Arc;
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use ureq::Agent;
use ureq::config::Config;

use super::connector::HostConnector;
use crate::cluster::error::{ClusterError, ErrorKind, Result, printable};
use crate::cluster::settings::Settings;
use crate::cluster::tls;
use shared::dial::{DnsCache, Server};

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
const AUTH_ERRORS: [&str; 5] = [
    "etcdserver: authentication failed, invalid user ID or password",
    "etcdserver: no leader",
    "etcdserver: request timed out",
    "etcdserver: too many requests",
    "etcdserver: user name is empty",
];

/// Number of bytes by which a token is recognized in a reply.
const TOKEN_PREFIX: usize = 16;

/// Connections to the members of an etcd.
pub struct EtcdTransport {
    settings: Arc<Settings>,
    dns: Arc<DnsCache>,
    /// Time that one member may take to answer before the next is asked.
    patience: Duration,
    /// HTTP client of each host, by its index. Created when needed, with the credentials of that
    /// moment.
    clients: HashMap<usize, (Agent, HostConnector)>,
    token: Token,
    /// Index of the host that is asked now, or first by the next call: the last that answered.
    host: usize,
    /// When a call ends, and when the host that is asked now must have answered.
    deadline: Instant,
    host_deadline: Instant,
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
    /// Creates a transport to the etcd of these `settings`, whose members have `patience` to answer
    /// before the next is asked. Sends nothing yet.
    pub fn new(settings: Arc<Settings>, dns: Arc<DnsCache>, patience: Duration) -> Self {
        EtcdTransport {
            settings,
            dns,
            patience,
            clients: HashMap::new(),
            token: Token::Unknown,
            host: 0,
            deadline: Instant::now(),
            host_deadline: Instant::now(),
        }
    }

    /// Sets the deadline of all calls from now on.
    pub fn set_deadline(&mut self, deadline: Instant) {
        self.deadline = deadline;
    }

    /// Sends a request to one member after the other, until one answers.
    pub fn call(&mut self, path: &str, request: &Value) -> Result<Value> {
        let mut reported = ClusterError::new(ErrorKind::Unreachable, "etcd has no host");
        let mut renews = true;
        let (first, until) = (self.host, self.deadline.min(Instant::now() + self.patience));
        let order = self.settings.host_order(&self.dns, first, until);
        for (attempt, index) in order.into_iter().enumerate() {
            self.host = index;
            // After the last host, no other is asked.
            self.host_deadline = match attempt + 1 < self.settings.hosts.len() {
                true => self.deadline.min(Instant::now() + self.patience),
                false => self.deadline,
            };
            let error = match self.call_host(path, request, &mut renews) {
                Ok(reply) => return Ok(reply),
                Err(error) => error,
            };
            if let Some((_, connector)) = self.clients.get(&index) {
                connector.failed();
            }
            // The credential files may have changed.
            self.clients.clear();
            // Report a denial before other errors: an operator can fix it.
            if error.kind == ErrorKind::Denied || attempt == 0 {
                reported = error;
            }
        }
        self.host = first + 1;
        Err(reported)
    }

    /// Sends a request to one member. Renews the token and repeats the request if that may help and
    /// `renews` is set; clears `renews` then.
    fn call_host(&mut self, path: &str, request: &Value, renews: &mut bool) -> Result<Value> {
        if self.token == Token::Unknown {
            self.token = self.authenticate()?;
            *renews = false;
        }
        let error = match self.post(path, request) {
            Err(error) if *renews && AUTH_EXPIRED.contains(&error.code.as_str()) => error,
            reply => return reply,
        };
        *renews = false;
        let before = std::mem::replace(&mut self.token, Token::Unknown);
        self.token = self.authenticate()?;
        match self.token == before {
            // Without authentication, nothing has changed.
            true => Err(error),
            false => self.post(path, request),
        }
    }

    fn authenticate(&mut self) -> Result<Token> {
        let Some((user, password)) = self.settings.credentials.login.read()? else {
            return Ok(Token::NotRequired);
        };
        let user = user.as_deref().unwrap_or(DEFAULT_USER);
        let request = json!({ "name": user, "password": password });
        match self.post(AUTHENTICATE, &request) {
            Ok(reply) => match &reply["token"] {
                Value::String(token) => Ok(Token::Is(token.clone())),
                _ => Err(ClusterError::refused("etcd answers no token")),
            },
            // Authentication is not enabled.
            Err(error) if error.code == code::FAILED_PRECONDITION => Ok(Token::NotRequired),
            Err(mut error) => {
                if error.kind == ErrorKind::Refused {
                    error.kind = ErrorKind::Denied;
                }
                Err(error)
            }
        }
    }

    fn post(&mut self, path: &str, request: &Value) -> Result<Value> {
        let host = self.settings.hosts[self.host].clone();
        let left = self.host_deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Err(ClusterError::late(&host));
        }
        // TLS is below HTTP here, in the connector.
        let mut post = self
            .client()?
            .post(format!("http://{host}/v3/{path}"))
            .header("Content-Type", "application/json")
            .config()
            .timeout_global(Some(left))
            .build();
        if let Token::Is(token) = &self.token {
            post = post.header("Authorization", token);
        }
        let failed = |error| match error {
            ureq::Error::Timeout(_) => ClusterError::late(&host),
            ureq::Error::Io(error) => ClusterError::connection(&host, &error),
            error => ClusterError::refused(printable(&format!("{host}: {error}"))),
        };
        let mut reply = post.send(request.to_string()).map_err(failed)?;
        let status = reply.status().as_u16();
        let body = reply.body_mut().with_config().limit(LARGEST_REPLY);
        let body = body.read_to_vec().map_err(failed)?;
        let text = String::from_utf8_lossy(&body);
        let repeats_token = match &self.token {
            Token::Is(token) => token.get(..TOKEN_PREFIX).is_some_and(|t| text.contains(t)),
            _ => false,
        };
        let reply = serde_json::from_str(&text);
        let reply =
            reply.unwrap_or_else(|_| Value::String(format!("HTTP status {status}, {text}")));
        // A stream that began with status 200 reports later errors in its body.
        let is_ok = status == 200 && !reply.is_string() && reply["error"].is_null();
        let is_secret = repeats_token || path == AUTHENTICATE;
        match is_ok && !repeats_token {
            true => Ok(reply),
            false => Err(refused(&host, status, &reply, is_secret)),
        }
    }

    /// Returns the HTTP client of the current host, which keeps a connection alive.
    fn client(&mut self) -> Result<&Agent> {
        let settings = &self.settings;
        let vacant = match self.clients.entry(self.host) {
            Entry::Occupied(client) => return Ok(&client.into_mut().0),
            Entry::Vacant(vacant) => vacant,
        };
        let config = Config::builder()
            .http_status_as_error(false)
            // Ignores the proxy that the environment names: it is not meant for etcd.
            .proxy(None)
            .max_redirects(0)
            .max_response_header_size(16 * 1024)
            .max_idle_connections_per_host(1)
            .user_agent("blockchain-tcpd")
            .build();
        let tls = settings.tls.then(|| tls::client(&settings.credentials));
        let host = settings.hosts[self.host].clone();
        let connector = HostConnector::new(host, self.dns.clone(), tls.transpose()?);
        let agent = Agent::with_parts(config, connector.clone(), connector.clone());
        Ok(&vacant.insert((agent, connector)).0)
    }
}

/// Returns the gRPC code of an error reply; without one, the code that matches the HTTP status.
fn code_of(status: u16, reply: &Value) -> String {
    let codes = [
        &reply["code"],
        &reply["error"]["code"],
        &reply["error"]["grpc_code"],
    ];
    if let Some(code) = codes.iter().find_map(|code| code.as_u64()) {
        return code.to_string();
    }
    let code = match status {
        400 => code::INVALID_ARGUMENT,
        401 => code::UNAUTHENTICATED,
        403 => code::PERMISSION_DENIED,
        500 => code::UNKNOWN,
        504 => code::DEADLINE_EXCEEDED,
        _ => "",
    };
    code.to_string()
}

/// Creates an error for a refusal. Of a reply that may hold a secret, it quotes only known texts.
fn refused(host: &Server, status: u16, reply: &Value, is_secret: bool) -> ClusterError {
    let code = code_of(status, reply);
    if status == 404 && code.is_empty() {
        return ClusterError::refused(format!(
            "{host} answers HTTP status 404: etcd 3.4 or later is needed, and its JSON gateway switched on \
             (enable-grpc-gateway: true in its configuration file, or --enable-grpc-gateway)"
        ));
    }
    // The error of a stream is nested in an object.
    let texts = [
        &reply["error"]["message"],
        &reply["error"],
        &reply["message"],
        reply,
    ];
    let text = texts.iter().find_map(|value| value.as_str());
    let text = text.map_or_else(|| reply.to_string(), str::to_string);
    // This error has no code of its own.
    if text.contains("CommonName of client") {
        return ClusterError::denied(format!(
            "{host}: etcd's JSON gateway refuses certificates with a common name (CN): give this server one whose subject has none"
        ));
    }
    let text = match is_secret && !AUTH_ERRORS.contains(&text.as_str()) {
        true => format!("HTTP status {status}"),
        false => text,
    };
    let kind = match code.as_str() {
        code::INVALID_ARGUMENT | code::PERMISSION_DENIED | code::UNAUTHENTICATED => {
            ErrorKind::Denied
        }
        code::DEADLINE_EXCEEDED => ErrorKind::Late,
        _ => ErrorKind::Refused,
    };
    let what = printable(&format!("{host} says: {text}"));
    ClusterError {
        code,
        ..ClusterError::new(kind, what)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn refusals_have_a_kind_a_code_and_a_text() {
        use ErrorKind::{Denied, Late, Refused};
        let host = "a:1".parse().unwrap();
        for (status, reply, kind, code, what) in [
            // etcd 3.5 and 3.4 use different texts.
            (
                400,
                r#"{ "code": 3, "message": "m" }"#,
                Denied,
                "3",
                "says: m",
            ),
            (
                403,
                r#"{ "error": "e", "code": 7 }"#,
                Denied,
                "7",
                "says: e",
            ),
            (
                500,
                r#"{ "error": "e", "code": 2 }"#,
                Refused,
                "2",
                "says: e",
            ),
            (
                404,
                r#"{ "code": 5, "message": "m" }"#,
                Refused,
                "5",
                "says: m",
            ),
            // Errors of a stream, from both versions.
            (
                400,
                r#"{ "error": { "code": 16, "message": "m" } }"#,
                Denied,
                "16",
                "says: m",
            ),
            (
                200,
                r#"{ "error": { "grpc_code": 14, "message": "m" } }"#,
                Refused,
                "14",
                "says: m",
            ),
            // Without a code.
            (504, "{}", Late, "4", "says: {}"),
            (503, r#""no \u0007""#, Refused, "", "says: no ?"),
            (
                404,
                r#""404 page not found""#,
                Refused,
                "",
                "answers HTTP status 404: etcd 3.4",
            ),
        ] {
            let json = serde_json::from_str(reply).unwrap();
            let error = refused(&host, status, &json, false);
            assert_eq!((error.kind, error.code.as_str()), (kind, code), "{reply}");
            assert!(error.what.starts_with(&format!("a:1 {what}")), "{error}");
        }
    }
}
