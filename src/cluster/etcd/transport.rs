//! etcd transport: requests to the JSON gateway (`/v3/…`), with authentication, failover between
//! the members and deadlines.

use std::io::Read as _;
use std::sync::Arc;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use super::http_response::HttpResponse;
use crate::cluster::error::{ClusterError, ErrorKind, Result, printable};
use crate::cluster::settings::Settings;
use crate::cluster::stream::Stream;
use shared::dial::{DnsCache, Server};

/// Largest size of a reply in bytes.
const MAX_REPLY: usize = 1 << 20;

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

/// Client of an etcd cluster: asks one of its members, and another if that fails.
pub struct Etcd {
    settings: Arc<Settings>,
    dns: Arc<DnsCache>,
    /// Time that one member may take to answer before the next is asked.
    patience: Duration,
    /// Kept-alive connection to the current host.
    connection: Option<Stream>,
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

impl Etcd {
    /// Creates a client of the etcd of these `settings`, whose members have `patience` to answer
    /// before the next is asked. Sends nothing yet.
    pub fn new(settings: Arc<Settings>, dns: Arc<DnsCache>, patience: Duration) -> Self {
        Etcd {
            settings,
            dns,
            patience,
            connection: None,
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
            if self.host != index {
                self.connection = None;
            }
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
            // The next connection reads the credential files again.
            if let Some(connection) = self.connection.take() {
                self.dns.failed(connection.address);
            }
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
        // An old revision of the users is an invalid argument; etcd 3.5.1 reports it as unknown.
        let is_expired =
            |error: &ClusterError| error.kind == ErrorKind::Denied || error.code == code::UNKNOWN;
        let error = match self.post(path, request) {
            Err(error) if *renews && is_expired(&error) => error,
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
        let Some((user, password)) = self.settings.credentials.login()? else {
            return Ok(Token::NotRequired);
        };
        let user = user.as_deref().unwrap_or(DEFAULT_USER);
        let request = json!({ "name": user, "password": password });
        match self.post(AUTHENTICATE, &request) {
            Ok(reply) => match reply["token"].as_str() {
                Some(token) if token.bytes().all(|byte| byte.is_ascii_graphic()) => {
                    Ok(Token::Is(token.to_string()))
                }
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
        let (authorization, token) = match &self.token {
            Token::Is(token) => (format!("Authorization: {token}\r\n"), token.as_str()),
            _ => Default::default(),
        };
        let body = request.to_string();
        let request = format!(
            "POST /v3/{path} HTTP/1.1\r\nHost: {host}\r\nUser-Agent: blockchain-tcpd\r\n\
             Content-Type: application/json\r\nContent-Length: {}\r\n{authorization}\r\n{body}",
            body.len()
        );
        let token = token.get(..TOKEN_PREFIX).map(str::to_string);
        let HttpResponse { status, body, .. } = self.exchange(&host, request.as_bytes())?;
        let text = String::from_utf8_lossy(&body);
        let repeats_token = token.is_some_and(|token| text.contains(&token));
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

    /// Sends a request over the kept-alive connection, or over a new one, and returns the response.
    fn exchange(&mut self, host: &Server, request: &[u8]) -> Result<HttpResponse> {
        let failed = |error| ClusterError::connection(host, &error);
        self.connection.take_if(|stream| !stream.is_idle());
        let stream = match &mut self.connection {
            Some(stream) => stream,
            none => {
                let tls = self.settings.tls.then_some(&self.settings.credentials);
                none.insert(Stream::connect(host, &self.dns, tls, self.host_deadline)?)
            }
        };
        stream.set_deadline(self.host_deadline);
        stream.send(request).map_err(failed)?;
        let (mut received, mut buffer) = (Vec::new(), [0; 16 * 1024]);
        loop {
            let length = stream.read(&mut buffer).map_err(failed)?;
            if length == 0 {
                return Err(failed(std::io::ErrorKind::UnexpectedEof.into()));
            }
            received.extend_from_slice(&buffer[..length]);
            let response = HttpResponse::parse(&received, MAX_REPLY)
                .map_err(|what| ClusterError::refused(format!("{host}: {what}")))?;
            if let Some(response) = response {
                self.connection.take_if(|_| !response.keeps_alive);
                return Ok(response);
            }
        }
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

    /// Each line: HTTP status, reply, and the kind, the code and the text of the error. etcd 3.5
    /// and 3.4 use different texts, also for the errors of a stream; the last replies have no code.
    const REFUSALS: &str = r#"
400; { "code": 3, "message": "m" }; Denied; 3; says: m
403; { "error": "e", "code": 7 }; Denied; 7; says: e
500; { "error": "e", "code": 2 }; Refused; 2; says: e
404; { "code": 5, "message": "m" }; Refused; 5; says: m
400; { "error": { "code": 16, "message": "m" } }; Denied; 16; says: m
200; { "error": { "grpc_code": 14, "message": "m" } }; Refused; 14; says: m
504; {}; Late; 4; says: {}
503; "no \u0007"; Refused; ; says: no ?
404; "404 page not found"; Refused; ; answers HTTP status 404: etcd 3.4"#;

    #[test]
    fn refusals_have_a_kind_a_code_and_a_text() {
        let host = "a:1".parse().unwrap();
        for line in REFUSALS.trim_start().lines() {
            let fields: Vec<&str> = line.split("; ").collect();
            let [status, reply, kind, code, what] = fields[..] else {
                panic!("{line}");
            };
            let reply = serde_json::from_str(reply).unwrap();
            let error = refused(&host, status.parse().unwrap(), &reply, false);
            assert_eq!((&*format!("{:?}", error.kind), &*error.code), (kind, code));
            assert!(error.what.starts_with(&format!("a:1 {what}")), "{error}");
        }
    }
}
