//! The life of the process: serve, wait for a signal, stop or let the next program take over.

use crossbeam_channel::select;
use log::{error, info, warn};

use crate::command::{self, Set};
use crate::error::{Error, plain};
use crate::handover::{self, Inherited, Successor};
use crate::identity::{Identity, Origin};
use crate::limits;
use crate::notify::{self, Herald};
use crate::options::Options;
use crate::scoreboard::Phase;
use crate::server::Server;
use crate::signals::{self, Signals, Told};

/// The sets of commands that the daemon offers.
pub const COMMANDS: &[Set] = &[command::server::SET];

/// Says whether a daemon with these settings would start, as far as that can be told beside one that runs.
pub fn check(options: &Options) -> Result<(), Error> {
    handover::check_version()?;
    match &options.state_directory {
        Some(directory) => Identity::check(directory),
        None => Ok(()),
    }
}

/// Why a server is left.
enum Leave {
    /// It was told to stop, or can't go on.
    Stop(String, Result<(), Error>),
    /// A new program takes over.
    Replace,
}

/// Serves until a signal ends it.
pub fn run(options: &Options) -> Result<(), Error> {
    for variable in &options.unknown_variables {
        warn!(variable; "there is no such setting (--help names all)");
    }
    signals::hold()?;
    limits::prepare();
    // Before anything is taken: if this fails, systemd keeps the clients until it is mended.
    limits::check(options.max_clients)?;
    let mut identity = identify(options)?;
    let successor = Successor::new();
    let mut inherited = Inherited::take(options)?;
    if inherited.stored {
        notify::forget();
    }
    identity.adopt(inherited.id);
    if identity.origin == Origin::Passing {
        info!(id:% = identity.id; "the id of this server ends with it: there is no --state-directory to keep it in");
    }
    let mut signals = Signals::listen()?;
    loop {
        let mut server = Server::start(options, identity.id, inherited, COMMANDS)?;
        let herald = Herald::start(server.health())?;
        let leave = wait(&signals, &server, &successor);
        server.close_door();
        drop(herald);
        match leave {
            Leave::Stop(reason, result) => {
                info!(reason:%, clients = server.clients(); "stopping");
                server.stop(options.drain_timeout);
                return result;
            }
            Leave::Replace => {
                inherited = server.hand_over(Phase::Release);
                signals.pause();
                // Who was told to stop meanwhile does so itself.
                if !signals.is_told_to_stop() {
                    let why = match inherited.pack() {
                        Ok(pack) => successor.take_over(&pack),
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

/// The id that `options` ask for.
fn identify(options: &Options) -> Result<Identity, Error> {
    let identity = match (&options.server_id, &options.state_directory) {
        (Some(id), directory) => Identity::given(*id, directory.as_deref())?,
        (None, Some(directory)) => Identity::in_directory(directory)?,
        (None, None) => Identity::passing(),
    };
    if let Origin::Created(file) = &identity.origin {
        info!(id:% = identity.id, file:% = file.display(); "this server has a new id");
    }
    Ok(identity)
}

/// Waits for a reason to leave `server`.
fn wait(signals: &Signals, server: &Server, successor: &Successor) -> Leave {
    loop {
        select! {
            recv(signals.told()) -> told => match told {
                Ok(Told::Stop(signal)) => return Leave::Stop(signal.to_string(), Ok(())),
                Ok(Told::Replace) => {
                    notify::reloading();
                    match successor.try_out() {
                        Ok(()) => return Leave::Replace,
                        Err(problem) => {
                            error!("goes on as it is, the new program can't take over: {problem}");
                            notify::reloaded();
                        }
                    }
                }
                Ok(Told::Hangup) => {
                    info!("SIGHUP changes nothing: settings are read at start only");
                    notify::reloading();
                    notify::reloaded();
                }
                // This one holds a sender of its own.
                Err(_) => return Leave::Stop("no signals".to_string(), Ok(())),
            },
            recv(server.failures) -> failure => {
                let error = failure.unwrap_or(Error::AcceptorsGone);
                return Leave::Stop(error.to_string(), Err(error));
            }
        }
    }
}
