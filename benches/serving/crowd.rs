//! Clients that connect, ask once and stay.

use std::os::fd::OwnedFd;
use std::time::Duration;

use rustix::io::Errno;
use rustix::net::sockopt::set_socket_linger;
use rustix::net::{RecvFlags, recv};

use crate::Result;
use crate::generator::Generator;
use crate::target::Target;
use crate::visit::Visit;
use crate::watch::Watch;

/// How many are on their way at a time when haste doesn't matter: fewer than any backlog holds.
pub const GENTLY: usize = 64;

/// Connects `count` clients, at most `at_once` of them on their way at a time, each until it has its first reply.
pub fn gather(
    target: &Target,
    generator: &mut Generator,
    count: usize,
    at_once: usize,
) -> Result<Vec<OwnedFd>> {
    let mut watch = generator.watch()?;
    let mut events = Watch::events();
    let mut visits: Vec<Option<Visit>> = Vec::with_capacity(count);
    let mut answered = Vec::with_capacity(count);
    while answered.len() < count {
        while visits.len() < count && visits.len() - answered.len() < at_once {
            let key = visits.len();
            visits.push(Some(Visit::begin(target, generator.source(), &watch, key)?));
        }
        watch
            .wait(&mut events, None)
            .map_err(|error| format!("{error}, {} of {count} were answered", answered.len()))?;
        for event in &events {
            let visit = &mut visits[event.data.u64() as usize];
            let done = match visit {
                Some(visit) => visit.proceed(target)?,
                None => return Err("the server sent more than it was asked for".into()),
            };
            if done {
                answered.extend(visit.take().map(Visit::into_socket));
            }
        }
    }
    Ok(answered)
}

/// Lets clients go who must still be connected and have heard nothing since their reply; by reset, so that thousands of
/// them leave no port waiting behind.
pub fn dismiss(clients: Vec<OwnedFd>) -> Result<()> {
    for client in clients {
        let mut bytes = [0; 256];
        match recv(&client, &mut bytes, RecvFlags::empty()) {
            Err(Errno::AGAIN) => {}
            Ok((count, _)) => {
                let said = bytes[..count].escape_ascii();
                return Err(format!("the server left an idle client with \"{said}\"").into());
            }
            Err(error) => return Err(format!("an idle client lost its connection: {error}").into()),
        }
        set_socket_linger(&client, Some(Duration::ZERO))?;
    }
    Ok(())
}
