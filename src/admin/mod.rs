//! The sockets of those who look after the server: one thread serves them all, so that one who is slow costs a place and no
//! thread, and clients who take all workers take nothing from them.
//!
//! Everything is bounded: how many there are, how long a request may be, how long it may take to arrive and its reply to be
//! taken. When all places are taken, one makes room. A check of the health, which may take a while, is done by a second thread,
//! one at a time for all that ask meanwhile.

mod event_loop;
mod handlers;
mod http_conn;

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use crossbeam_channel::{Receiver, Sender};

use self::event_loop::EventLoop;
pub use self::handlers::{Answer, Context, Draining, Handlers, INTERVAL};
use crate::error::Error;
use crate::health::Health;
use crate::listener::Listener;
use crate::log_throttle::Incident;
use crate::thread::{self, Thread};
use crate::waker::Waker;

/// A check of the health says who has not moved within this time.
const CHECK: Duration = Duration::from_secs(1);

/// A running HTTP server.
pub struct AdminServer {
    listeners: Vec<Arc<Listener>>,
    /// Nothing when it has ended, or has nothing to listen on.
    running: Option<Running>,
}

struct Running {
    /// Dropped to end it.
    orders: Sender<()>,
    wake: Arc<Waker>,
    thread: Thread,
    health: Thread,
}

impl AdminServer {
    /// Serves what `context` shows on `listeners`, for at most `most` connections at a time. Without any it does nothing.
    pub fn start(
        listeners: Vec<Arc<Listener>>,
        context: Context,
        most: usize,
    ) -> Result<Self, Error> {
        if listeners.is_empty() {
            return Ok(AdminServer {
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
        let wake = Arc::new(Waker::new()?);
        let (orders, stopped) = crossbeam_channel::bounded(0);
        let (asks, asked) = crossbeam_channel::bounded(1);
        let (result, results) = crossbeam_channel::bounded(1);
        let (health, wakes) = (context.health.clone(), wake.clone());
        let health = thread::spawn("health", move || check(&health, &asked, &result, &wakes))?;
        let event_loop = EventLoop {
            listeners: listeners.clone(),
            handlers: Handlers::new(context),
            most,
            conns: Vec::new(),
            wake: wake.clone(),
            stopped,
            asks,
            results,
            checking: false,
            accept_again: None,
            ends: None,
            trouble: Incident::new("nobody can look after the server by HTTP"),
        };
        let thread = thread::spawn("http", move || event_loop.run())?;
        Ok(AdminServer {
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
            running.wake.wake();
            running.thread.end();
            // Nobody can ask it any more.
            running.health.end();
        }
    }
}

impl Drop for AdminServer {
    fn drop(&mut self) {
        self.finish();
    }
}

/// Does a check each time that it is asked for one.
fn check(
    health: &Health,
    asked: &Receiver<()>,
    result: &Sender<Result<(), &'static str>>,
    wake: &Waker,
) {
    while asked.recv().is_ok() {
        if result.send(health.check(CHECK)).is_err() {
            return;
        }
        wake.wake();
    }
}
