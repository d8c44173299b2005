//! Handover: what a process inherits and passes on, and the replacement of the program.
//!
//! A process inherits the listening sockets that systemd passes and the handover state with the
//! live connections of the previous process. The HTTP socket is bound before the handover state is
//! taken.

pub mod state;
pub mod upgrade;

use std::borrow::Cow;
use std::io;
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::os::fd::{AsFd as _, OwnedFd};
use std::sync::Arc;

use log::{error, info, warn};

use self::state::Run;
use crate::config::options::Options;
use crate::error::Error;
use crate::protocol::PROTOCOLS;
use crate::server::listener::{self, ADMIN, Listener};
use crate::transport::lingering_close::LingeringSocket;
use shared::clock::Millis;
use shared::sys;
use shared::text::without_errno;

/// State that a process inherits and passes on to the next.
#[derive(Default)]
pub struct InheritedState {
    /// Listening sockets for clients.
    pub listeners: Vec<Arc<Listener>>,
    /// Listening sockets for HTTP.
    pub http: Vec<Arc<Listener>>,
    /// Whether systemd's descriptor store still holds the received handover state, which is now
    /// empty and should be removed.
    pub stored: bool,
    /// The run that this process continues; `None` without a handover.
    pub run: Option<Run>,
    /// Clients of the previous process.
    pub clients: Vec<(state::ConnectionState, TcpStream)>,
    /// Sockets in lingering close.
    pub lingering: Vec<LingeringSocket>,
}

impl InheritedState {
    /// Takes everything that was passed to this process. Call it once, before any thread starts.
    pub fn take(options: &Options) -> Result<Self, Error> {
        let passed = listener::passed()?;
        let (listen, http) = (options.listen_by_default, options.http_by_default);
        refuse_both(
            &passed.listeners,
            listen,
            "--listen (BLOCKCHAIN_TCPD_LISTEN)",
        )?;
        refuse_both(&passed.http, http, "--http (BLOCKCHAIN_TCPD_HTTP)")?;
        let mut inherited = InheritedState {
            listeners: passed.listeners.into_iter().map(Arc::new).collect(),
            http: passed.http.into_iter().map(Arc::new).collect(),
            ..InheritedState::default()
        };
        // Bind before taking the clients of the previous process: if this fails, systemd keeps them
        // until the operator has fixed it.
        if inherited.http.is_empty() && !is_replacement() {
            inherited.http = listen_for_http(options, &inherited.listeners)?;
        }
        if let Some(socket) = passed.handover {
            inherited.decode(&socket);
            inherited.stored = true;
        }
        if let Some(socket) = sys::passed_descriptor(state::VARIABLE) {
            inherited.decode(&socket);
            if inherited.http.is_empty() {
                let http = listen_for_http(options, &inherited.listeners);
                inherited.http = http.unwrap_or_else(|error| {
                    error!("serves no health checks and no metrics (--http): {error}");
                    Vec::new()
                });
            }
        }
        Ok(inherited)
    }

    /// Adds the contents of a handover state. Closes what can't be decoded, and logs that.
    fn decode(&mut self, socket: &OwnedFd) {
        let received = match state::receive(socket) {
            Ok(received) => received,
            Err(error) => {
                let why = without_errno(&error);
                return error!(
                    "the clients of the previous process are lost: can't receive the handover state: {why}"
                );
            }
        };
        let mut descriptors = received.descriptors;
        let state = match received.state {
            Ok(state) => state,
            Err(problem) => {
                // The sockets themselves tell which of them listen.
                let listening = descriptors.extract_if(.., |socket| listener::accepts_tcp(socket));
                let mut listening: Vec<_> = listening.collect();
                let clients = listening.len().saturating_sub(received.header.http.into());
                let http = listening.split_off(clients);
                let scheme = || PROTOCOLS.default().scheme().into();
                let listening = listening.into_iter().map(|socket| (socket, scheme()));
                self.listen(listening, http, received.header.passed);
                let clients = descriptors.len();
                error!(clients; "the clients of the previous process are closed: can't decode the handover state: {problem}");
                for socket in descriptors.into_iter().map(TcpStream::from) {
                    // Fails if the client has gone already.
                    let _ = socket.shutdown(Shutdown::Write);
                    self.lingering.push((socket, Millis::now()));
                }
                return;
            }
        };
        if let missing @ 1.. = state.descriptors().saturating_sub(descriptors.len()) {
            error!(
                missing;
                "sockets of the previous process are lost: this process may not open as many (ulimit -n, LimitNOFILE=)"
            );
        }
        let mut descriptors = descriptors.into_iter();
        let count = state.listeners.len();
        let listening: Vec<_> = descriptors.by_ref().take(count).collect();
        let http = descriptors.by_ref().take(state.http.into()).collect();
        let listening = listening.into_iter().zip(state.listeners);
        self.listen(listening, http, received.header.passed);
        let mut sockets = descriptors.map(TcpStream::from);
        self.clients
            .extend(state.clients.into_iter().zip(sockets.by_ref()));
        self.lingering.extend(sockets.zip(state.lingering));
        let handovers = state.run.handovers + 1;
        self.run = Some(Run {
            handovers,
            ..state.run
        });
        info!(clients = self.clients.len(); "took over the clients of the previous process");
    }

    /// Adds listening sockets: those for clients, with their schemes, and those for HTTP.
    fn listen(
        &mut self,
        listening: impl Iterator<Item = (OwnedFd, Cow<'static, str>)>,
        http: Vec<OwnedFd>,
        passed: bool,
    ) {
        let inherit = |(socket, scheme)| {
            let inherited = listener::inherit(socket, scheme, passed).map(Arc::new);
            let failed = |error: &io::Error| {
                error!("can't use an inherited socket: {}", without_errno(error));
            };
            inherited.inspect_err(failed).ok()
        };
        self.listeners.extend(listening.filter_map(inherit));
        let http = http.into_iter().map(|socket| (socket, ADMIN.into()));
        self.http.extend(http.filter_map(inherit));
    }

    /// Encodes everything into a handover state for the next process.
    pub fn encode(&self) -> io::Result<state::HandoverSocket> {
        // More HTTP sockets than that are not passed on: the format can't count them, and the
        // receiver would take them for clients.
        let http = &self.http[..self.http.len().min(u8::MAX.into())];
        let schemes = self
            .listeners
            .iter()
            .map(|listener| listener.scheme.clone());
        let state = state::HandoverState {
            passed: self.listeners.iter().any(|listener| listener.passed),
            listeners: schemes.collect(),
            http: http.len() as u8,
            run: self.run.unwrap_or_default(),
            clients: self
                .clients
                .iter()
                .map(|(client, _)| client.clone())
                .collect(),
            lingering: self.lingering.iter().map(|(_, since)| *since).collect(),
        };
        let listeners = self.listeners.iter().chain(http);
        let listeners = listeners.map(|listener| listener.socket.as_fd());
        let clients = self.clients.iter().map(|(_, stream)| stream.as_fd());
        let lingering = self.lingering.iter().map(|(stream, _)| stream.as_fd());
        let descriptors: Vec<_> = listeners.chain(clients).chain(lingering).collect();
        state::send(&state::encode(&state)?, &descriptors)
    }
}

/// Fails if systemd passes sockets although the operator set the addresses by `option`.
fn refuse_both(sockets: &[Listener], by_default: bool, option: &str) -> Result<(), Error> {
    match sockets.len() {
        1.. if !by_default => Err(Error::Configuration(format!(
            "systemd passes {} sockets, but {option} is set too: set the addresses in the .socket unit or by the option, not both",
            sockets.len()
        ))),
        _ => Ok(()),
    }
}

/// Binds the HTTP socket, if HTTP is enabled, beside the sockets for clients.
fn listen_for_http(
    options: &Options,
    listeners: &[Arc<Listener>],
) -> Result<Vec<Arc<Listener>>, Error> {
    let Some(address) = options.http else {
        return Ok(Vec::new());
    };
    let beside: Vec<SocketAddr> = match listeners.is_empty() {
        true => options.listen.iter().map(|listen| listen.address).collect(),
        false => listeners.iter().map(|listener| listener.address).collect(),
    };
    match listener::bind_beside(address, ADMIN, &beside) {
        Ok(listener) => Ok(vec![Arc::new(listener)]),
        // The default address is optional, unless other servers are told to use it (`--advertise`).
        Err(error) if options.http_by_default && options.advertise.is_none() => {
            warn!("no health checks and no metrics (--http): {error}");
            Ok(Vec::new())
        }
        Err(error) => Err(error),
    }
}

/// Returns whether this program replaces another in the same process.
pub fn is_replacement() -> bool {
    std::env::var_os(state::VARIABLE).is_some()
}
