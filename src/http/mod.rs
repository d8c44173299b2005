//! The sockets of those who look after the server: one thread serves them all, so that one who is slow costs a place and no
//! thread, and clients who take all workers take nothing from them.
//!
//! Everything is bounded: how many there are, how long a request may be, how long it may take to arrive and its reply to be
//! taken. When all places are taken, one makes room. A check of the health, which may take a while, is done by a second thread,
//! one at a time for all that ask meanwhile.

mod desk;
mod visitor;

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use crossbeam_channel::{Receiver, Sender};

use self::desk::Desk;
use crate::bell::Bell;
use crate::episode::Episode;
use crate::error::Error;
use crate::health::Health;
use crate::listener::Listener;
use crate::monitor::{Monitor, Subject};
use crate::thread::{self, Thread};

/// A check of the health says who has not moved within this time.
const CHECK: Duration = Duration::from_secs(1);

/// A running HTTP server.
pub struct Http {
    listeners: Vec<Arc<Listener>>,
    /// Nothing when it has ended, or has nothing to listen on.
    running: Option<Running>,
}

struct Running {
    /// Dropped to end it.
    orders: Sender<()>,
    wake: Arc<Bell>,
    thread: Thread,
    health: Thread,
}

impl Http {
    /// Serves what `subject` shows on `listeners`, for at most `most` connections at a time. Without any it does nothing.
    pub fn start(
        listeners: Vec<Arc<Listener>>,
        subject: Subject,
        most: usize,
    ) -> Result<Self, Error> {
        if listeners.is_empty() {
            return Ok(Http {
                listeners,
                running: None,
            });
        }
        let system = |action| move |source: io::Error| Error::System { action, source };
        for listener in &listeners {
            // Who has gone again since `poll` must not be waited for.
            let socket = &listener.socket;
            socket
                .set_nonblocking(true)
                .map_err(system("prepare a socket for HTTP"))?;
        }
        let wake = Arc::new(Bell::new()?);
        let (orders, stopped) = crossbeam_channel::bounded(0);
        let (asks, asked) = crossbeam_channel::bounded(1);
        let (result, results) = crossbeam_channel::bounded(1);
        let (health, wakes) = (subject.health.clone(), wake.clone());
        let health = thread::spawn("health", move || check(&health, &asked, &result, &wakes))?;
        let desk = Desk {
            listeners: listeners.clone(),
            monitor: Monitor::new(subject),
            most,
            visitors: Vec::new(),
            wake: wake.clone(),
            stopped,
            asks,
            results,
            checking: false,
            accept_again: None,
            ends: None,
            trouble: Episode::new("nobody can look after the server by HTTP"),
        };
        let thread = thread::spawn("http", move || desk.run())?;
        Ok(Http {
            listeners,
            running: Some(Running {
                orders,
                wake,
                thread,
                health,
            }),
        })
    }

    /// The addresses that it listens on.
    pub fn addresses(&self) -> Vec<SocketAddr> {
        self.listeners
            .iter()
            .map(|listener| listener.address)
            .collect()
    }

    /// Ends it: whoever has connected gets an answer, unless that takes too long; who comes now waits for whoever has the
    /// sockets next.
    pub fn end(mut self) -> Vec<Arc<Listener>> {
        self.finish();
        std::mem::take(&mut self.listeners)
    }

    fn finish(&mut self) {
        if let Some(running) = self.running.take() {
            drop(running.orders);
            running.wake.ring();
            running.thread.end();
            // Nobody can ask it any more.
            running.health.end();
        }
    }
}

impl Drop for Http {
    fn drop(&mut self) {
        self.finish();
    }
}

/// Does a check each time that it is asked for one.
fn check(
    health: &Health,
    asked: &Receiver<()>,
    result: &Sender<Result<(), &'static str>>,
    wake: &Bell,
) {
    while asked.recv().is_ok() {
        if result.send(health.check(CHECK)).is_err() {
            return;
        }
        wake.ring();
    }
}
