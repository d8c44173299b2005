//! Where all connections are: one thread waits for any of them to be ready, and goes on with that.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, Sender, TryRecvError};
use rustix::event::{PollFd, PollFlags};
use rustix::io::Errno;
use rustix::net::{SocketFlags, accept_with};

use super::http_conn::{ConnState, HttpConn};
use crate::admin::{Handlers, INTERVAL};
use crate::error::plain;
use crate::listener::Listener;
use crate::log_throttle::Incident;
use crate::protocol::http::Problem;
use crate::waker::{Waker, poll_until};

/// When it is to end, those who have asked something, or are about to, get so long to be answered.
const LAST: Duration = Duration::from_millis(500);

/// When the system is out of something, it is asked for connections again after this time.
const PAUSE: Duration = Duration::from_millis(50);

/// The thread that checks is gone: nobody is kept waiting for it.
const NO_CHECKER: &str = "nobody is there to check it";

/// Where all connections are served.
pub(super) struct EventLoop {
    pub listeners: Vec<Arc<Listener>>,
    pub handlers: Handlers,
    pub most: usize,
    pub conns: Vec<HttpConn>,
    pub wake: Arc<Waker>,
    /// Disconnects when it is to end.
    pub stopped: Receiver<()>,
    pub asks: Sender<()>,
    pub results: Receiver<Result<(), &'static str>>,
    /// Whether a check is going on.
    pub checking: bool,
    /// When to accept again, after the system had no room.
    pub accept_again: Option<Instant>,
    /// When it ends at the latest, once it is to.
    pub ends: Option<Instant>,
    pub trouble: Incident,
}

impl EventLoop {
    pub fn run(mut self) {
        // A panic costs the connections that there are, and is logged by the hook; whoever comes then is served.
        while catch_unwind(AssertUnwindSafe(|| self.serve())).is_err() {
            self.conns.clear();
            std::thread::sleep(PAUSE);
        }
    }

    /// Serves everybody until it is to end.
    fn serve(&mut self) {
        let mut sample = Instant::now();
        loop {
            let now = Instant::now();
            if now >= sample {
                self.handlers.sample();
                self.trouble.resolve(false);
                sample = now + INTERVAL;
            }
            let ready = self.wait(sample);
            // Nobody sends: it is empty or disconnected.
            if self.stopped.try_recv() == Err(TryRecvError::Disconnected) {
                self.ends.get_or_insert_with(|| Instant::now() + LAST);
            }
            self.take_results();
            for (index, conn) in self.conns.iter_mut().enumerate() {
                if ready.conns.get(index) == Some(&true) {
                    conn.go_on(&mut self.handlers);
                }
            }
            self.look_at_the_clock();
            self.conns
                .retain(|conn| !matches!(conn.state, ConnState::Gone));
            for index in ready.listeners {
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

    /// Whether everybody has been answered. Says to those who have not that it is the last answer here.
    fn is_done(&mut self) -> bool {
        for conn in &mut self.conns {
            conn.is_last = true;
        }
        let mut conns = self.conns.iter();
        conns.all(|conn| conn.is_idle() || matches!(conn.state, ConnState::LingeringSocket))
    }

    /// Waits until there is something to do, and says for whom.
    fn wait(&mut self, sample: Instant) -> Ready {
        let mut next = sample;
        let mut polled = vec![PollFd::new(&*self.wake, PollFlags::IN)];
        for conn in &self.conns {
            next = next.min(conn.until);
            polled.push(PollFd::new(&conn.stream, conn.state.events()));
        }
        let again = self.accept_again.filter(|again| Instant::now() < *again);
        next = [self.ends, again]
            .into_iter()
            .flatten()
            .fold(next, Instant::min);
        // Who comes after the end is the next one's.
        if self.ends.is_none() && again.is_none() {
            for listener in &self.listeners {
                polled.push(PollFd::new(&listener.socket, PollFlags::IN));
            }
        }
        match poll_until(&mut polled, next) {
            Ok(()) => {}
            // A signal has come, and nobody is ready.
            Err(Errno::INTR) => return Ready::default(),
            Err(error) => {
                drop(polled);
                // There may be more of them than there may be by now (poll(2)).
                self.trouble.record(&plain(&error.into()));
                self.conns.truncate(self.conns.len() / 2);
                std::thread::sleep(PAUSE);
                return Ready::default();
            }
        }
        let is_ready = |fd: &PollFd<'_>| !fd.revents().is_empty();
        let mut ready = polled.iter().map(is_ready);
        if ready.next() == Some(true) {
            self.wake.clear();
        }
        let conns = ready.by_ref().take(self.conns.len()).collect();
        let listeners = ready.enumerate().filter(|(_, ready)| *ready);
        let listeners = listeners.map(|(index, _)| index).collect();
        Ready { conns, listeners }
    }

    fn accept(&mut self, index: usize) {
        self.accept_again = None;
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        match accept_with(&self.listeners[index].socket, flags) {
            Ok(socket) => {
                self.make_room();
                self.conns.push(HttpConn::new(socket.into()));
            }
            Err(Errno::AGAIN | Errno::INTR | Errno::CONNABORTED) => {}
            Err(error) => {
                self.trouble.record(&plain(&error.into()));
                self.accept_again = Some(Instant::now() + PAUSE);
            }
        }
    }

    /// If all places are taken, frees one: of those who have been answered and ask nothing now, else of all, that whose time
    /// would be over first.
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

    /// Has a check done, if somebody waits for one and none is being done.
    fn ask_for_check(&mut self) {
        if self.checking {
            return;
        }
        for conn in &mut self.conns {
            if let ConnState::Waiting { begun, .. } = &mut conn.state {
                *begun = true;
                self.checking = true;
            }
        }
        if self.checking && self.asks.try_send(()).is_err() {
            self.checking = false;
            self.tell(Err(NO_CHECKER));
        }
    }

    fn take_results(&mut self) {
        match self.results.try_recv() {
            Ok(result) => {
                self.checking = false;
                self.tell(result);
            }
            Err(TryRecvError::Disconnected) if self.checking => {
                self.checking = false;
                self.tell(Err(NO_CHECKER));
            }
            Err(_) => {}
        }
    }

    /// Tells those who wait for the check that is over.
    fn tell(&mut self, result: Result<(), &'static str>) {
        for conn in &mut self.conns {
            if let ConnState::Waiting {
                request,
                begun: true,
            } = &conn.state
            {
                let (head_only, keeps) = (request.head_only, request.keeps);
                let response = self.handlers.checked(request, result);
                conn.reply(&mut self.handlers, &response, head_only, keeps);
            }
        }
    }

    fn look_at_the_clock(&mut self) {
        let now = Instant::now();
        for conn in &mut self.conns {
            if now < conn.until {
                continue;
            }
            match conn.state {
                // It has begun to ask something.
                ConnState::Reading if !conn.input.is_empty() => {
                    let response = Problem::Late.response();
                    conn.reply(&mut self.handlers, &response, false, false);
                }
                _ => conn.state = ConnState::Gone,
            }
        }
    }
}

/// Who can go on.
#[derive(Default)]
struct Ready {
    /// One for each connection that there was.
    conns: Vec<bool>,
    /// The listening sockets with somebody to accept.
    listeners: Vec<usize>,
}
