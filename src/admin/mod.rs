//! Admin HTTP server: health, metrics and a status page. One thread serves all its connections,
//! outside of the worker pool, so that a slow peer takes a slot and no thread, and clients that
//! take all workers do not block it.
//!
//! Everything is bounded: the number of connections, the length of a request, the time for it to
//! arrive, and the time for its response to be received. If all slots are taken, a connection is
//! closed to make room. A second thread does the health checks, which may take a while: one at a
//! time, for all requests that wait.

mod event_loop;
mod handlers;
mod http_conn;

use std::net::SocketAddr;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Duration;

use crossbeam_channel::{Receiver, Sender};

use self::event_loop::EventLoop;
pub use self::handlers::{Context, Handlers, INTERVAL};
use crate::error::Error;
use crate::log_throttle::Incident;
use crate::server::health::Health;
use crate::server::listener::Listener;
use crate::thread;
use crate::waker::Waker;

/// Time after which a health check reports a thread that has not moved.
const CHECK_TIMEOUT: Duration = Duration::from_secs(1);

/// A running admin HTTP server.
pub struct AdminServer {
    listeners: Vec<Arc<Listener>>,
    /// `None` after the end, or without listeners.
    running: Option<Running>,
}

struct Running {
    /// Dropped to stop the thread.
    stop: Sender<()>,
    wake: Arc<Waker>,
    thread: JoinHandle<()>,
    health: JoinHandle<()>,
}

impl AdminServer {
    /// Serves `context` on `listeners`, for at most `most` connections at a time. Without listeners
    /// it does nothing.
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
        let wake = Arc::new(Waker::new()?);
        let (stop, stopped) = crossbeam_channel::bounded(0);
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
            ends: None,
            errors: Incident::new("HTTP connections can't be accepted"),
        };
        let thread = thread::spawn("http", move || event_loop.run())?;
        Ok(AdminServer {
            listeners,
            running: Some(Running {
                stop,
                wake,
                thread,
                health,
            }),
        })
    }

    /// Returns the addresses that it listens on.
    pub fn addresses(&self) -> Vec<SocketAddr> {
        self.listeners
            .iter()
            .map(|listener| listener.address)
            .collect()
    }

    /// Stops the server and returns its listeners. Connected peers get their responses within the
    /// grace period; new connections wait for the next owner of the listeners.
    pub fn end(mut self) -> Vec<Arc<Listener>> {
        self.finish();
        std::mem::take(&mut self.listeners)
    }

    fn finish(&mut self) {
        if let Some(running) = self.running.take() {
            drop(running.stop);
            running.wake.wake();
            // The panic hook has logged a panic.
            let _ = running.thread.join();
            // The event loop, which requested checks, has ended.
            let _ = running.health.join();
        }
    }
}

impl Drop for AdminServer {
    fn drop(&mut self) {
        self.finish();
    }
}

/// Thread: does a health check for each request on the channel.
fn check(
    health: &Health,
    asked: &Receiver<()>,
    result: &Sender<Result<(), &'static str>>,
    wake: &Waker,
) {
    while asked.recv().is_ok() {
        if result.send(health.check(CHECK_TIMEOUT)).is_err() {
            return;
        }
        wake.wake();
    }
}
