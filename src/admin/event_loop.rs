//! Event loop of the admin HTTP server: one thread polls all connections and listeners, and serves
//! those that are ready.

use std::io::ErrorKind;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, Sender, TryRecvError};
use rustix::event::{PollFd, PollFlags};
use rustix::io::Errno;

use super::http_conn::{ConnState, HttpConn};
use crate::admin::{Handlers, INTERVAL};
use crate::log_throttle::Incident;
use crate::protocol::http::Problem;
use crate::server::listener::Listener;
use crate::waker::{Waker, poll_until};
use shared::text::without_errno;

/// Grace period of a shutdown, in which open requests, and those about to be sent, are still
/// answered.
const SHUTDOWN_GRACE: Duration = Duration::from_millis(500);

/// Pause after a lack of system resources or a panic.
const RETRY_PAUSE: Duration = Duration::from_millis(50);

/// The event loop and its state.
pub(super) struct EventLoop {
    pub listeners: Vec<Arc<Listener>>,
    pub handlers: Handlers,
    pub most: usize,
    pub conns: Vec<HttpConn>,
    pub wake: Arc<Waker>,
    /// Disconnects at shutdown.
    pub stopped: Receiver<()>,
    pub asks: Sender<()>,
    pub results: Receiver<Result<(), &'static str>>,
    /// When the shutdown's grace period ends, if a shutdown has begun.
    pub ends: Option<Instant>,
    pub errors: Incident,
}

impl EventLoop {
    pub fn run(mut self) {
        // The panic hook logs a panic. The open connections are closed, and the loop goes on.
        while catch_unwind(AssertUnwindSafe(|| self.serve())).is_err() {
            self.conns.clear();
            std::thread::sleep(RETRY_PAUSE);
        }
    }

    /// Serves connections until the shutdown.
    fn serve(&mut self) {
        let mut sample = Instant::now();
        loop {
            let now = Instant::now();
            if now >= sample {
                self.handlers.sample();
                self.errors.resolve(false);
                sample = now + INTERVAL;
            }
            let mut ready = self.wait(sample).into_iter();
            // Nothing is ever sent: the channel is empty or disconnected.
            if self.stopped.try_recv() == Err(TryRecvError::Disconnected) {
                self.ends
                    .get_or_insert_with(|| Instant::now() + SHUTDOWN_GRACE);
            }
            self.take_results();
            for (conn, is_ready) in self.conns.iter_mut().zip(&mut ready) {
                if is_ready {
                    conn.advance(&mut self.handlers);
                }
            }
            self.expire();
            self.conns
                .retain(|conn| !matches!(conn.state, ConnState::Gone));
            for (index, _) in ready.enumerate().filter(|(_, is_ready)| *is_ready) {
                self.accept(index);
            }
            self.ask_for_check();
            if let Some(ends) = self.ends
                && (self.is_done() || Instant::now() >= ends)
            {
                return;
            }
        }
    }

    /// Returns whether all connections have been answered. Marks them, so that the next response is
    /// their last.
    fn is_done(&mut self) -> bool {
        for conn in &mut self.conns {
            conn.is_last = true;
        }
        let mut conns = self.conns.iter();
        conns.all(|conn| conn.is_idle() || matches!(conn.state, ConnState::Lingering))
    }

    /// Waits for events or the next deadline. Returns for each connection, and then for each
    /// listener, whether it is ready.
    fn wait(&mut self, sample: Instant) -> Vec<bool> {
        let mut next = sample;
        let mut polled = vec![PollFd::new(&*self.wake, PollFlags::IN)];
        for conn in &self.conns {
            next = next.min(conn.until);
            polled.push(PollFd::new(&conn.stream, conn.state.events()));
        }
        next = self.ends.map_or(next, |ends| next.min(ends));
        // During a shutdown, new connections are left to the next owner of the listeners.
        if self.ends.is_none() {
            for listener in &self.listeners {
                polled.push(PollFd::new(&listener.socket, PollFlags::IN));
            }
        }
        match poll_until(&mut polled, next) {
            Ok(_) => {}
            // A signal interrupted the wait.
            Err(Errno::INTR) => return Vec::new(),
            Err(error) => {
                drop(polled);
                // poll(2) fails if there are more descriptors than RLIMIT_NOFILE, which may have
                // been lowered: drop half of the connections.
                self.errors.record(&without_errno(&error.into()));
                self.conns.truncate(self.conns.len() / 2);
                std::thread::sleep(RETRY_PAUSE);
                return Vec::new();
            }
        }
        let ready = polled.iter().map(|fd| !fd.revents().is_empty());
        let mut ready: Vec<bool> = ready.collect();
        if ready.remove(0) {
            self.wake.clear();
        }
        ready
    }

    fn accept(&mut self, index: usize) {
        match self.listeners[index].socket.accept() {
            Ok((stream, _)) => {
                self.make_room();
                self.conns.push(HttpConn::new(stream));
            }
            Err(error) => match error.kind() {
                ErrorKind::WouldBlock | ErrorKind::ConnectionAborted => {}
                _ => {
                    self.errors.record(&without_errno(&error));
                    std::thread::sleep(RETRY_PAUSE);
                }
            },
        }
    }

    /// If all slots are taken, closes a connection: the idle one whose deadline is next, or if none
    /// is idle, the one of all whose deadline is next.
    fn make_room(&mut self) {
        if self.conns.len() < self.most {
            return;
        }
        let conns = self.conns.iter().enumerate();
        let worth = |conn: &HttpConn| (!conn.is_idle(), conn.until);
        if let Some((index, _)) = conns.min_by_key(|(_, conn)| worth(conn)) {
            self.conns.swap_remove(index);
        }
    }

    /// Requests a health check if a connection waits for one.
    fn ask_for_check(&mut self) {
        let mut conns = self.conns.iter();
        let waits = |conn: &HttpConn| matches!(conn.state, ConnState::AwaitingCheck(_));
        if conns.any(waits) {
            // It fails if a check is requested already. If the health check thread has ended by a
            // panic, the requests time out.
            let _ = self.asks.try_send(());
        }
    }

    /// Answers the requests that wait for the health check, if it has ended.
    fn take_results(&mut self) {
        let Ok(result) = self.results.try_recv() else {
            return;
        };
        for conn in &mut self.conns {
            if let ConnState::AwaitingCheck(request) = &conn.state {
                let (head_only, keep_alive) = (request.head_only, request.keep_alive);
                let response = self.handlers.checked(request, result);
                conn.reply(&mut self.handlers, &response, head_only, keep_alive);
            }
        }
    }

    fn expire(&mut self) {
        let now = Instant::now();
        for conn in &mut self.conns {
            if now < conn.until {
                continue;
            }
            match conn.state {
                // A request has begun to arrive.
                ConnState::Reading if !conn.input.is_empty() => {
                    let response = Problem::Late.response();
                    conn.reply(&mut self.handlers, &response, false, false);
                }
                _ => conn.state = ConnState::Gone,
            }
        }
    }
}
