//! The process life cycle: serve, wait for a signal, then a graceful shutdown or a hot restart.

use std::sync::Arc;
use std::time::{Duration, Instant};

use crossbeam_channel::select;
use log::{error, info, warn};
use rustix::process::WaitOptions;
use uuid::Uuid;

use crate::admin::AdminServer;
use crate::admin::{Context, Draining};
use crate::cluster::{self, Backend};
use crate::error::{Error, plain};
use crate::handover::{self, InheritedState, Upgrade};
use crate::identity::{Identity, Origin};
use crate::limits;
use crate::metrics::Metrics;
use crate::notify::{self, Notifier};
use crate::options::Options;
use crate::scoreboard::Phase;
use crate::server::Server;
use crate::signals::{self, SignalEvent, Signals};

/// Checks whether a daemon with these settings would start, as far as that can be told beside a
/// running one.
pub fn check(options: &Options) -> Result<(), Error> {
    handover::check_version()?;
    if let Some(cluster) = cluster_settings(options)? {
        cluster.check()?;
    }
    match &options.state_directory {
        Some(directory) => Identity::check(directory, options.server_id.is_some()),
        None => Ok(()),
    }
}

/// Maximum number of connections to etcd: two threads keep one each, and may open others.
const TO_ETCD: usize = 8;

/// Reason to leave a server.
enum ExitReason {
    /// A signal asks the daemon to stop, or the server failed.
    Stop(String, Result<(), Error>),
    /// A new program takes over.
    Replace,
}

/// Serves until a signal ends the daemon.
pub fn run(options: &Options) -> Result<(), Error> {
    signals::block_all()?;
    if handover::is_replacement() {
        handover::say_which_program();
    }
    for variable in &options.unknown_variables {
        warn!(variable; "there is no such setting (--help names all)");
    }
    warn_unused_cluster_settings(options);
    limits::prepare();
    // The checks run before anything is taken: if one fails, systemd keeps the clients until the
    // cause is fixed. A program that replaces another in its process can't go back, and already has
    // what its predecessor had.
    let identity = if handover::is_replacement() {
        None
    } else {
        limits::check(options.max_clients)?;
        Some(identify(options)?)
    };
    let cluster = match cluster_settings(options) {
        // The preflight has checked these settings, and the clients can't wait for another check.
        Ok(cluster) if handover::is_replacement() => cluster,
        Ok(cluster) => {
            cluster.iter().try_for_each(cluster::Settings::check)?;
            cluster
        }
        Err(error) if handover::is_replacement() => {
            error!("goes on without the cluster, the next restart will fail: {error}");
            cluster_args(options).and_then(|args| cluster::Settings::unusable(&args))
        }
        Err(error) => return Err(error),
    };
    let cluster = cluster.map(Arc::new);
    let upgrade = Upgrade::of_this_program();
    let mut inherited = InheritedState::take(options)?;
    if inherited.stored {
        notify::forget();
    }
    let identity = match (identity, inherited.id) {
        (Some(mut identity), id) => {
            identity.adopt(id);
            identity
        }
        (None, Some(id)) => resume_identity(options, id),
        (None, None) => identify(options)?,
    };
    if identity.origin == Origin::Ephemeral && inherited.id.is_none() {
        info!(id:% = identity.id; "the id of this server ends with it: there is no --state-directory to keep it in");
    }
    let mut signals = Signals::listen()?;
    let metrics = Arc::<Metrics>::default();
    let commands = options.commands.sets();
    loop {
        let sockets = std::mem::take(&mut inherited.http);
        // Connections from the other servers are HTTP connections; those to the servers and to etcd
        // come on top.
        let (servers, to_servers) = match &cluster {
            Some(cluster) if cluster.backend == Backend::Etcd => {
                let servers = limits::server_connections();
                (servers, servers + TO_ETCD)
            }
            _ => (0, 0),
        };
        let most = match sockets.is_empty() {
            true => 0,
            false => limits::http_connections() + servers,
        };
        let id = identity.id;
        let mut server = Server::start(
            options,
            id,
            inherited,
            &commands,
            metrics.clone(),
            most + to_servers,
            cluster.clone(),
        )?;
        let draining = Draining::default();
        let context = Context {
            health: Arc::new(server.health()),
            metrics: metrics.clone(),
            commands: commands.clone(),
            member: server.member(),
            cluster: server.cluster_stats(),
            draining: draining.clone(),
        };
        let http = AdminServer::start(sockets, context, most)?;
        server.begin();
        server.say_ready(&http.addresses());
        let notifier = Notifier::start(server.health())?;
        match wait(&signals, &server, &upgrade) {
            ExitReason::Stop(reason, mut result) => {
                draining.get_or_init(Instant::now);
                // The drain timeout counts from the signal, whatever has to be done first.
                let stopped_at = signals.told_to_stop().unwrap_or_else(Instant::now);
                let mut deadline = stopped_at + options.drain_timeout;
                if result.is_ok() {
                    deadline += options.drain_notice;
                    result = announce_drain(options, &server);
                }
                drop(notifier);
                info!(reason:%, clients = server.clients(); "stopping");
                server.stop(deadline.saturating_duration_since(Instant::now()));
                return result;
            }
            ExitReason::Replace => {
                // The admin server ends first, while clients are still served: its clients wait in
                // the backlog from now on.
                let sockets = http.end();
                server.stop_accepting();
                drop(notifier);
                inherited = server.hand_over(Phase::Detach);
                inherited.http = sockets;
                signals.pause();
                // If a stop signal came meanwhile, this program itself stops.
                if !signals.is_told_to_stop() {
                    let why = match inherited.pack() {
                        Ok(pack) => upgrade.exec(&pack.socket),
                        Err(error) => format!("can't pack the clients: {}", plain(&error)),
                    };
                    error!("goes on as it is: {why}");
                }
                server.dismiss();
                signals.resume()?;
            }
        }
    }
}

/// Announces the drain to load balancers (`/readyz`) and systemd, and waits for `--drain-notice`,
/// before the server stops accepting.
fn announce_drain(options: &Options, server: &Server) -> Result<(), Error> {
    let notice = options.drain_notice;
    if notice.is_zero() {
        return Ok(());
    }
    info!(seconds = notice.as_secs_f64(), clients = server.clients(); "draining: /readyz says so");
    notify::stopping(
        server.clients(),
        notice + options.drain_timeout + Duration::from_secs(1),
    );
    // A timeout is the expected case here.
    server.failures.recv_timeout(notice).map_or(Ok(()), Err)
}

/// Warns about cluster settings without a cluster: `--cluster` itself may be mistyped.
fn warn_unused_cluster_settings(options: &Options) {
    let files = [
        &options.cluster_user_file,
        &options.cluster_password_file,
        &options.cluster_ca_file,
        &options.cluster_certificate_file,
        &options.cluster_key_file,
        &options.cluster_sentinel_user_file,
        &options.cluster_sentinel_password_file,
    ];
    let is_said = options.advertise.is_some() || files.iter().any(|file| file.is_some());
    if options.cluster.is_none() && is_said {
        warn!("there is no --cluster, and so --advertise and --cluster-…-file do nothing");
    }
}

/// Returns the cluster settings of `options`, if they name a cluster.
fn cluster_args(options: &Options) -> Option<cluster::ClusterArgs> {
    Some(cluster::ClusterArgs {
        cluster: options.cluster.clone()?,
        name: options.cluster_name.clone(),
        heartbeat: options.cluster_heartbeat,
        credentials: cluster::Credentials {
            login: cluster::Login {
                user: options.cluster_user_file.clone(),
                password: options.cluster_password_file.clone(),
            },
            sentinel_login: cluster::Login {
                user: options.cluster_sentinel_user_file.clone(),
                password: options.cluster_sentinel_password_file.clone(),
            },
            ca: options.cluster_ca_file.clone(),
            certificate: options.cluster_certificate_file.clone(),
            key: options.cluster_key_file.clone(),
        },
        advertise: options.advertise,
    })
}

/// Returns the parsed cluster settings, if `options` name a cluster. Reads no file and resolves no
/// name.
fn cluster_settings(options: &Options) -> Result<Option<cluster::Settings>, Error> {
    let Some(args) = cluster_args(options) else {
        return Ok(None);
    };
    let settings = cluster::Settings::new(&args)?;
    if settings.backend == Backend::Etcd && options.http.is_none() {
        return Err(Error::Cluster(
            "--cluster etcd:// needs HTTP, by which the servers ask each other: --http (BLOCKCHAIN_TCPD_HTTP) switches it off"
                .to_string(),
        ));
    }
    Ok(Some(settings))
}

/// Returns the id that `options` ask for.
fn identify(options: &Options) -> Result<Identity, Error> {
    let identity = match (&options.server_id, &options.state_directory) {
        (Some(id), directory) => Identity::given(*id, directory.as_deref())?,
        (None, Some(directory)) => Identity::in_directory(directory)?,
        (None, None) => Identity::ephemeral(),
    };
    if let Origin::Created(file) = &identity.origin {
        info!(id:% = identity.id, file:% = file.display(); "this server has a new id");
    }
    Ok(identity)
}

/// Returns the identity with the id that the clients already know, whatever the state directory
/// holds now.
fn resume_identity(options: &Options, id: Uuid) -> Identity {
    let mut identity = identify(options).unwrap_or_else(|error| {
        error!(id:%; "goes on with its id, the next restart will fail: {error}");
        Identity::ephemeral()
    });
    if identity.origin != Origin::Ephemeral && identity.id != id {
        warn!(id:%, kept:% = identity.id; "the id in the state directory is another now, and comes with the next restart");
    }
    identity.id = id;
    identity
}

/// Reaps all children that have ended. Process 1 inherits the children of ended parents, and a
/// program that a shell executes (`exec`) inherits the shell's children. Only this thread waits for
/// arbitrary children, so that it takes none from a preflight.
fn reap() {
    while let Ok(Some(_)) = rustix::process::wait(WaitOptions::NOHANG) {}
}

/// Waits for a reason to leave `server`.
fn wait(signals: &Signals, server: &Server, upgrade: &Upgrade) -> ExitReason {
    // Children that the previous program in this process has not reaped.
    reap();
    loop {
        select! {
            recv(signals.events()) -> event => match event {
                Ok(SignalEvent::Child) => reap(),
                Ok(SignalEvent::Stop(signal)) => return ExitReason::Stop(signal.to_string(), Ok(())),
                // The stop event follows in the channel.
                Ok(SignalEvent::Replace) if signals.is_told_to_stop() => {}
                Ok(SignalEvent::Replace) => {
                    notify::reloading();
                    match upgrade.preflight(&|| signals.is_told_to_stop()) {
                        Ok(()) => return ExitReason::Replace,
                        Err(problem) => {
                            error!("goes on as it is, the new program can't take over: {problem}");
                            notify::reloaded();
                        }
                    }
                }
                Ok(SignalEvent::Hangup) => {
                    info!("SIGHUP changes nothing: settings are read at start only");
                    notify::reloading();
                    notify::reloaded();
                }
                Ok(SignalEvent::Reopen) => {
                    info!("SIGUSR1 changes nothing: the log goes to standard error, and no file is to be opened again");
                }
                // Unreachable: `signals` holds a sender of its own.
                Err(_) => return ExitReason::Stop("no signals".to_string(), Ok(())),
            },
            recv(server.failures) -> failure => {
                let error = failure.unwrap_or(Error::AcceptorsGone);
                return ExitReason::Stop(error.to_string(), Err(error));
            }
        }
    }
}
