//! The process life cycle: serve, wait for a signal, then a graceful shutdown or a hot restart.

use std::sync::Arc;
use std::time::Instant;

use crossbeam_channel::select;
use log::{error, info, warn};
use rustix::process::WaitOptions;
use store::{PullStats, Store};
use uuid::Uuid;

use crate::admin::{AdminServer, Context};
use crate::cluster::{self, Backend};
use crate::config;
use crate::config::identity::{Identity, Origin};
use crate::config::limits;
use crate::config::options::{Credentials, Options, StoreFiles};
use crate::error::Error;
use crate::handover::upgrade::{self, Upgrade};
use crate::handover::{self, InheritedState};
use crate::metrics::Metrics;
use crate::protocol::PROTOCOLS;
use crate::server::listener::Listener;
use crate::server::{Server, Setup};
use crate::session::scoreboard::Phase;
use crate::signals::{self, SignalEvent, Signals};
use crate::systemd::notify::{self, Notifier};
use shared::command::CommandSet;
use shared::text::without_errno;

/// Checks whether a daemon with these settings would start, as far as that can be checked beside a
/// running one.
pub fn check(options: &Options) -> Result<(), Error> {
    upgrade::check_version()?;
    if let Some(cluster) = cluster::Settings::new(options)? {
        cluster.check()?;
    }
    if let Some(store) = config::store::Settings::new(options)? {
        store.check()?;
    }
    match &options.state_directory {
        Some(directory) => Identity::check(directory, options.server_id.is_some()),
        None => Ok(()),
    }
}

/// Maximum number of connections to etcd: two threads keep one each, and may open others.
const MAX_ETCD_CONNECTIONS: usize = 8;

/// Serves until a signal ends the daemon.
pub fn run(options: &Options) -> Result<(), Error> {
    signals::block_all()?;
    if handover::is_replacement() {
        upgrade::log_program();
    }
    warn_unused_settings(options);
    limits::prepare();
    // The checks run before anything is taken: if one fails, systemd keeps the clients until the
    // cause is fixed. A program that replaces another in its process can't go back, and already has
    // what its predecessor had.
    let identity = match handover::is_replacement() {
        true => None,
        false => {
            limits::check(options.max_clients)?;
            Some(identify(options)?)
        }
    };
    let cluster = usable_cluster_settings(options)?.map(Arc::new);
    let store = config::store::Settings::new(options)?;
    let users = store.as_ref().map(|store| store.open()).transpose()?;
    if let (Some(settings), Some(store), false) = (&store, &users, handover::is_replacement()) {
        settings.wait_for(store)?;
    }
    let upgrade = Upgrade::of_this_program();
    let mut inherited = InheritedState::take(options)?;
    if inherited.stored {
        notify::remove_state();
    }
    let mut daemon = Daemon {
        options,
        cluster,
        upgrade,
        identity: final_identity(options, identity, inherited.run.map(|run| run.id))?,
        signals: Signals::listen()?,
        metrics: Arc::default(),
        commands: options.commands.sets(),
        pulls: Arc::new(
            { store.as_ref() }
                .map(config::store::Settings::pull_stats)
                .unwrap_or_default(),
        ),
        store: store.zip(users),
    };
    loop {
        match daemon.serve(inherited)? {
            Some(state) => inherited = state,
            None => return Ok(()),
        }
    }
}

/// What all servers of this process share: one after the other, if a handover fails.
struct Daemon<'a> {
    options: &'a Options,
    cluster: Option<Arc<cluster::Settings>>,
    upgrade: Upgrade,
    identity: Identity,
    signals: Signals,
    metrics: Arc<Metrics>,
    commands: Vec<CommandSet>,
    store: Option<(config::store::Settings, Store)>,
    pulls: Arc<PullStats>,
}

/// Reason to leave a server.
enum ExitReason {
    /// A signal asks the daemon to stop, or the server failed.
    Stop(String, Result<(), Error>),
    /// A new program takes over.
    Replace,
}

impl Daemon<'_> {
    /// Runs one server, from the state that this process or this server inherits. Returns the state
    /// for the next server if a handover failed, and `None` after a graceful shutdown.
    fn serve(&mut self, mut inherited: InheritedState) -> Result<Option<InheritedState>, Error> {
        let sockets = std::mem::take(&mut inherited.http);
        // Connections from the other servers are HTTP connections; those to the servers and to etcd
        // come on top.
        let backend = self.cluster.as_ref().map(|cluster| &cluster.backend);
        let (from_servers, to_cluster) = match backend {
            Some(Backend::Etcd) => {
                let servers = limits::server_connections();
                (servers, servers + MAX_ETCD_CONNECTIONS)
            }
            _ => (0, 0),
        };
        let max_http = match sockets.is_empty() {
            true => 0,
            false => limits::http_connections() + from_servers,
        };
        let pulls = |settings: &config::store::Settings| {
            let pulls = settings.pulls();
            pulls.then(|| self.pulls.clone())
        };
        let users =
            { self.store.as_ref() }.map(|(settings, store)| store.clone().fed_by(pulls(settings)));
        let store_descriptors = self
            .store
            .as_ref()
            .map_or(0, |(store, _)| store.descriptors());
        let setup = Setup {
            options: self.options,
            id: self.identity.id,
            commands: &self.commands,
            protocols: PROTOCOLS,
            metrics: self.metrics.clone(),
            reserved: max_http + to_cluster + store_descriptors,
            cluster: self.cluster.clone(),
            users: users.map(|users| Arc::new(users) as _),
        };
        let server = Server::start(&setup, inherited)?;
        let context = Context {
            health: Arc::new(server.health()),
            metrics: self.metrics.clone(),
            protocols: server.schemes(),
            commands: self.commands.clone(),
            member: server.member(),
            cluster: server.cluster_stats(),
            store: { self.store.as_ref() }
                .map(|(settings, store)| (store.clone(), pulls(settings))),
            ready_needs_store: { self.store.as_ref() }
                .is_some_and(|(settings, _)| settings.ready_needs_store()),
            draining: server.draining.clone(),
        };
        let http = AdminServer::start(sockets, context, max_http)?;
        server.begin();
        server.log_ready(&http.addresses());
        let notifier = Notifier::start(server.health())?;
        let puller = match &self.store {
            Some((settings, store)) => settings.start_puller(store, &self.pulls)?,
            None => None,
        };
        let reason = self.wait(&server);
        drop(puller);
        match reason {
            ExitReason::Stop(reason, result) => {
                server.draining.get_or_init(Instant::now);
                self.stop(server, notifier, &reason, result).map(|()| None)
            }
            ExitReason::Replace => {
                // The admin server ends first, while clients are still served: its clients wait in
                // the backlog from now on.
                let sockets = http.end();
                server.stop_accepting();
                drop(notifier);
                self.hand_over(server, sockets).map(Some)
            }
        }
    }

    /// Announces the drain to load balancers (`/readyz`) and systemd, and waits for
    /// `--drain-notice`, before the server stops accepting. Fails if the server does meanwhile.
    fn announce_drain(&self, server: &Server) -> Result<(), Error> {
        let notice = self.options.drain_notice;
        if notice.is_zero() {
            return Ok(());
        }
        let clients = server.clients();
        info!(seconds = notice.as_secs_f64(), clients; "draining: /readyz says so");
        notify::stopping(clients, notice + self.options.drain_timeout);
        // A timeout is the expected case here.
        server.failures.recv_timeout(notice).map_or(Ok(()), Err)
    }

    /// Drains the server, after `--drain-notice` if it works. The drain timeout counts from the
    /// signal, whatever has to be done first.
    fn stop(
        &self,
        server: Server,
        notifier: Notifier,
        reason: &str,
        mut result: Result<(), Error>,
    ) -> Result<(), Error> {
        let stopped_at = self.signals.told_to_stop().unwrap_or_else(Instant::now);
        let mut deadline = stopped_at + self.options.drain_timeout;
        if result.is_ok() {
            deadline += self.options.drain_notice;
            result = self.announce_drain(&server);
        }
        drop(notifier);
        info!(reason:%, clients = server.clients(); "stopping");
        server.stop(deadline.saturating_duration_since(Instant::now()));
        result
    }

    /// Executes the new program, with all clients. Returns the state if that fails.
    fn hand_over(
        &mut self,
        mut server: Server,
        http: Vec<Arc<Listener>>,
    ) -> Result<InheritedState, Error> {
        let mut state = server.hand_over(Phase::Detach);
        state.http = http;
        self.signals.pause();
        // If a stop signal came meanwhile, this program itself stops.
        if !self.signals.is_told_to_stop() {
            let why = match state.encode() {
                Ok(sent) => self.upgrade.exec(&sent.socket),
                Err(error) => format!("can't encode the handover state: {}", without_errno(&error)),
            };
            error!("keeps running: {why}");
        }
        server.join_workers();
        self.signals.resume()?;
        Ok(state)
    }

    /// Waits for a reason to leave `server`.
    fn wait(&self, server: &Server) -> ExitReason {
        // Children that the previous program in this process has not reaped.
        reap();
        loop {
            let event = select! {
                recv(self.signals.events()) -> event => event,
                recv(server.failures) -> failure => {
                    let gone = "nothing accepts clients any more; the log above says why";
                    let error = failure.unwrap_or_else(|_| Error::System(gone.to_string()));
                    return ExitReason::Stop(error.to_string(), Err(error));
                }
            };
            match event {
                Ok(SignalEvent::Child) => reap(),
                Ok(SignalEvent::Stop(signal)) => {
                    return ExitReason::Stop(signal.to_string(), Ok(()));
                }
                Ok(SignalEvent::Replace) if self.can_upgrade() => return ExitReason::Replace,
                Ok(SignalEvent::Replace) => {}
                Ok(SignalEvent::Hangup) => {
                    info!("SIGHUP changes nothing: settings are read at start only");
                    notify::reloading();
                    notify::reloaded();
                }
                Ok(SignalEvent::Reopen) => {
                    info!(
                        "SIGUSR1 changes nothing: the log is written to standard error, not to a file"
                    );
                }
                // Unreachable: `signals` holds a sender of its own.
                Err(_) => return ExitReason::Stop("no signals".to_string(), Ok(())),
            }
        }
    }

    /// Runs the preflight of the new program; returns whether it can take over.
    fn can_upgrade(&self) -> bool {
        // The stop event follows in the channel.
        if self.signals.is_told_to_stop() {
            return false;
        }
        notify::reloading();
        let checked = self.upgrade.preflight(&|| self.signals.is_told_to_stop());
        if let Err(problem) = &checked {
            error!("keeps running, the new program can't take over: {problem}");
            notify::reloaded();
        }
        checked.is_ok()
    }
}

/// Reaps all children that have ended. Process 1 inherits the children of ended parents, and a
/// program that a shell executes (`exec`) inherits the shell's children. Only this thread waits for
/// arbitrary children, so that it takes none from a preflight.
fn reap() {
    while let Ok(Some(_)) = rustix::process::wait(WaitOptions::NOHANG) {}
}

/// Warns about unknown variables, and about settings of a cluster or a store without one: `--cluster`
/// or `--store` itself may be mistyped.
fn warn_unused_settings(options: &Options) {
    for variable in &options.unknown_variables {
        warn!(variable; "unknown setting (--help lists all)");
    }
    let has_files = options.credentials != Credentials::default();
    let is_set = options.advertise.is_some() || has_files;
    if options.cluster.is_none() && is_set {
        warn!("without --cluster, --advertise and --cluster-…-file have no effect");
    }
    let has_files = options.store_files != StoreFiles::default();
    let needs_it = options.users_feed.is_some() || options.ready_needs_store;
    if options.store.is_none() && (needs_it || has_files) {
        warn!(
            "without --store, --users-feed, --store-…-file and --ready-needs-store have no effect"
        );
    }
}

/// Returns the cluster settings, checked. A program that replaces another does not check them: its
/// preflight has, and the clients can't wait. It takes unusable ones as a cluster out of reach.
fn usable_cluster_settings(options: &Options) -> Result<Option<cluster::Settings>, Error> {
    match cluster::Settings::new(options) {
        Err(error) if handover::is_replacement() => {
            error!("continues without its cluster, and the next restart will fail: {error}");
            Ok(cluster::Settings::unusable(options))
        }
        Ok(Some(settings)) if !handover::is_replacement() => {
            settings.check()?;
            Ok(Some(settings))
        }
        settings => settings,
    }
}

/// Returns the identity to serve with, given the id of the previous process. `identity` is `None`
/// for a program that replaces another.
fn final_identity(
    options: &Options,
    identity: Option<Identity>,
    inherited: Option<Uuid>,
) -> Result<Identity, Error> {
    let identity = match (identity, inherited) {
        (Some(mut identity), id) => {
            identity.adopt(id);
            identity
        }
        (None, Some(id)) => resume_identity(options, id),
        (None, None) => identify(options)?,
    };
    if identity.origin == Origin::Ephemeral && inherited.is_none() {
        info!(id:% = identity.id; "this id is for this run only: there is no --state-directory to store it in");
    }
    Ok(identity)
}

/// Returns the id that `options` ask for.
fn identify(options: &Options) -> Result<Identity, Error> {
    let identity = match (&options.server_id, &options.state_directory) {
        (Some(id), directory) => Identity::given(*id, directory.as_deref())?,
        (None, Some(directory)) => Identity::in_directory(directory)?,
        (None, None) => Identity::ephemeral(),
    };
    if let Origin::Created(file) = &identity.origin {
        info!(id:% = identity.id, file:% = file.display(); "created a new id for this server");
    }
    Ok(identity)
}

/// Returns the identity with the id that the clients already know, whatever the state directory
/// holds now.
fn resume_identity(options: &Options, id: Uuid) -> Identity {
    let mut identity = identify(options).unwrap_or_else(|error| {
        error!(id:%; "keeps the id of this server, but the next restart will fail: {error}");
        Identity::ephemeral()
    });
    if identity.origin != Origin::Ephemeral && identity.id != id {
        warn!(id:%, stored:% = identity.id; "keeps the id of this server until the next restart: the state directory has another");
    }
    identity.id = id;
    identity
}
