//! The sockets of those who look after the server: one thread serves them all, so that one who is slow costs a place and no
//! thread, and clients who take all workers take nothing from them.
//!
//! Everything is bounded: how many there are, how long a request may be, how long it may take to arrive and its reply to be
//! taken. When all places are taken, the one whose time would be over first makes room. A check of the health, which may
//! take a while, is done by a second thread, one at a time for all that ask meanwhile.

use std::io;
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::os::fd::OwnedFd;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, Sender, TryRecvError};
use rustix::event::{EventfdFlags, PollFd, PollFlags, Timespec, eventfd, poll};
use rustix::io::Errno;
use rustix::net::{RecvFlags, SendFlags, SocketFlags, accept_with};

use crate::episode::Episode;
use crate::error::{Error, plain};
use crate::health::Health;
use crate::listener::Listener;
use crate::monitor::{Answer, INTERVAL, Monitor, Subject};
use crate::protocol::http::{self, Found, Problem, Request, Response};
use crate::thread::{self, Thread};

/// A request must be whole, and a reply taken, within this time.
const PATIENCE: Duration = Duration::from_secs(5);

/// So long may a connection wait for its next request: longer than tools usually wait between two.
const KEPT: Duration = Duration::from_secs(75);

/// A client that was told no gets so long to stop sending, before the connection is closed.
const LEAVE: Duration = Duration::from_secs(1);

/// A check of the health says who has not moved within this time.
const CHECK: Duration = Duration::from_secs(1);

/// When it is to end, those who have asked something, or are about to, get so long to be answered.
const LAST: Duration = Duration::from_millis(500);

/// When the system is out of something, it is asked for connections again after this time.
const PAUSE: Duration = Duration::from_millis(50);

/// The thread that checks is gone: nobody is kept waiting for it.
const NO_CHECKER: &str = "nobody is there to check it";

/// How many bytes are read at a time.
const PIECE: usize = 2048;

/// A running HTTP server.
pub struct Http {
    listeners: Vec<Arc<Listener>>,
    /// Nothing when it has ended, or has nothing to listen on.
    running: Option<Running>,
}

struct Running {
    /// Dropped to end it.
    orders: Sender<()>,
    wake: Arc<OwnedFd>,
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
        let wake = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK);
        let wake = wake.map_err(|error| system("make an event descriptor")(error.into()))?;
        let wake = Arc::new(wake);
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
            ring(&running.wake);
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

/// Wakes the thread that polls.
fn ring(wake: &OwnedFd) {
    // If it is full, it is awake.
    let _ = rustix::io::write(wake, &1u64.to_ne_bytes());
}

/// Does a check each time that it is asked for one.
fn check(
    health: &Health,
    asked: &Receiver<()>,
    result: &Sender<Result<(), &'static str>>,
    wake: &OwnedFd,
) {
    while asked.recv().is_ok() {
        if result.send(health.check(CHECK)).is_err() {
            return;
        }
        ring(wake);
    }
}

/// Where all connections are served.
struct Desk {
    listeners: Vec<Arc<Listener>>,
    monitor: Monitor,
    most: usize,
    visitors: Vec<Visitor>,
    wake: Arc<OwnedFd>,
    /// Disconnects when it is to end.
    stopped: Receiver<()>,
    asks: Sender<()>,
    results: Receiver<Result<(), &'static str>>,
    /// Whether a check is going on.
    checking: bool,
    /// When to accept again, after the system had no room.
    accept_again: Option<Instant>,
    /// When it ends at the latest, once it is to.
    ends: Option<Instant>,
    trouble: Episode,
}

/// One connection.
struct Visitor {
    stream: TcpStream,
    input: Vec<u8>,
    doing: Doing,
    /// Whether it has been answered before.
    kept: bool,
    /// Whether it is closed after the next answer.
    is_last: bool,
    /// When its time is over.
    until: Instant,
}

/// What is being done for a connection.
enum Doing {
    /// It sends a request, or will.
    Reading,
    /// Its request waits for a check, for the next one if that has not begun.
    Waiting { request: Request, begun: bool },
    /// It takes a reply, of which so many bytes are written.
    Writing {
        reply: Vec<u8>,
        written: usize,
        keeps: bool,
    },
    /// It has sent more than the request that was answered: that is next.
    Continuing,
    /// It has been told all, and may send what it will.
    Leaving,
    /// There is nothing left to do.
    Gone,
}

impl Desk {
    fn run(mut self) {
        // A panic costs the connections that there are, and is logged by the hook; whoever comes then is served.
        while catch_unwind(AssertUnwindSafe(|| self.serve())).is_err() {
            self.visitors.clear();
            std::thread::sleep(PAUSE);
        }
    }

    /// Serves everybody until it is to end.
    fn serve(&mut self) {
        let mut sample = Instant::now();
        loop {
            let now = Instant::now();
            if now >= sample {
                self.monitor.sample();
                self.trouble.settle(false);
                sample = now + INTERVAL;
            }
            let ready = self.wait(sample);
            // Nobody sends: it is empty or disconnected.
            if self.stopped.try_recv() == Err(TryRecvError::Disconnected) {
                self.ends.get_or_insert_with(|| Instant::now() + LAST);
            }
            self.take_results();
            for (index, visitor) in self.visitors.iter_mut().enumerate() {
                if ready.visitors.get(index) == Some(&true) {
                    visitor.go_on(&mut self.monitor);
                }
            }
            self.look_at_the_clock();
            self.visitors
                .retain(|visitor| !matches!(visitor.doing, Doing::Gone));
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
        for visitor in &mut self.visitors {
            visitor.is_last = true;
        }
        let mut visitors = self.visitors.iter();
        visitors.all(|visitor| visitor.is_idle() || matches!(visitor.doing, Doing::Leaving))
    }

    /// Waits until there is something to do, and says for whom.
    fn wait(&mut self, sample: Instant) -> Ready {
        let mut next = sample;
        let mut polled = vec![PollFd::new(&*self.wake, PollFlags::IN)];
        for visitor in &self.visitors {
            next = next.min(visitor.until);
            polled.push(PollFd::new(&visitor.stream, visitor.doing.events()));
        }
        next = self.ends.map_or(next, |ends| next.min(ends));
        let paused = self
            .accept_again
            .is_some_and(|again| Instant::now() < again);
        if self.ends.is_some() {
            // Who comes now is the next one's.
        } else if !paused {
            for listener in &self.listeners {
                polled.push(PollFd::new(&listener.socket, PollFlags::IN));
            }
        } else if let Some(again) = self.accept_again {
            next = next.min(again);
        }
        let time = next.saturating_duration_since(Instant::now());
        // A little more, or it would come back just before the time.
        let time = Timespec::try_from(time + Duration::from_millis(1));
        let failed = match poll(&mut polled, time.ok().as_ref()) {
            Ok(_) => None,
            // A signal has come, and nobody is ready.
            Err(Errno::INTR) => return Ready::default(),
            Err(error) => Some(error),
        };
        if let Some(error) = failed {
            drop(polled);
            // There may be more of them than there may be by now (poll(2)).
            self.trouble.happened(&plain(&error.into()));
            self.visitors.truncate(self.visitors.len() / 2);
            std::thread::sleep(PAUSE);
            return Ready::default();
        }
        let is_ready = |fd: &PollFd<'_>| !fd.revents().is_empty();
        let mut ready = polled.iter().map(is_ready);
        if ready.next() == Some(true) {
            // It only counts how often it was rung.
            let _ = rustix::io::read(&self.wake, &mut [0; 8]);
        }
        let visitors = ready.by_ref().take(self.visitors.len()).collect();
        let listeners = ready.enumerate().filter(|(_, ready)| *ready);
        let listeners = listeners.map(|(index, _)| index).collect();
        Ready {
            visitors,
            listeners,
        }
    }

    fn accept(&mut self, index: usize) {
        self.accept_again = None;
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        match accept_with(&self.listeners[index].socket, flags) {
            Ok(socket) => {
                self.make_room();
                self.visitors.push(Visitor {
                    stream: socket.into(),
                    input: Vec::new(),
                    doing: Doing::Reading,
                    kept: false,
                    is_last: false,
                    until: Instant::now() + PATIENCE,
                });
            }
            Err(Errno::AGAIN | Errno::INTR | Errno::CONNABORTED) => {}
            Err(error) => {
                self.trouble.happened(&plain(&error.into()));
                self.accept_again = Some(Instant::now() + PAUSE);
            }
        }
    }

    /// If all places are taken, frees one: of those who have been answered and ask nothing now, else of all, that whose time
    /// would be over first.
    fn make_room(&mut self) {
        if self.visitors.len() < self.most {
            return;
        }
        let visitors = self.visitors.iter().enumerate();
        let worth = |visitor: &Visitor| (!visitor.is_idle(), visitor.until);
        if let Some((index, _)) = visitors.min_by_key(|(_, visitor)| worth(visitor)) {
            self.visitors.swap_remove(index);
        }
    }

    /// Has a check done, if somebody waits for one and none is being done.
    fn ask_for_check(&mut self) {
        if self.checking {
            return;
        }
        for visitor in &mut self.visitors {
            if let Doing::Waiting { begun, .. } = &mut visitor.doing {
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
        for visitor in &mut self.visitors {
            if let Doing::Waiting {
                request,
                begun: true,
            } = &visitor.doing
            {
                let (head_only, keeps) = (request.head_only, request.keeps);
                let response = self.monitor.checked(request, result);
                visitor.reply(&mut self.monitor, &response, head_only, keeps);
            }
        }
    }

    fn look_at_the_clock(&mut self) {
        let now = Instant::now();
        for visitor in &mut self.visitors {
            if now < visitor.until {
                continue;
            }
            match visitor.doing {
                // It has begun to ask something.
                Doing::Reading if !visitor.input.is_empty() => {
                    let response = Problem::Late.response();
                    visitor.reply(&mut self.monitor, &response, false, false);
                }
                _ => visitor.doing = Doing::Gone,
            }
        }
    }
}

/// Who can go on.
#[derive(Default)]
struct Ready {
    /// One for each connection that there was.
    visitors: Vec<bool>,
    /// The listening sockets with somebody to accept.
    listeners: Vec<usize>,
}

impl Doing {
    fn events(&self) -> PollFlags {
        match self {
            Doing::Reading | Doing::Leaving => PollFlags::IN,
            // Who takes replies is asked on in its turn, and the others have theirs.
            Doing::Writing { .. } | Doing::Continuing => PollFlags::OUT,
            // Only that it has gone.
            Doing::Waiting { .. } | Doing::Gone => PollFlags::empty(),
        }
    }
}

impl Visitor {
    /// Whether it has been answered, and asks nothing now.
    fn is_idle(&self) -> bool {
        self.kept && self.input.is_empty() && matches!(self.doing, Doing::Reading)
    }

    /// Does what can be done without waiting.
    fn go_on(&mut self, monitor: &mut Monitor) {
        match &mut self.doing {
            Doing::Reading => self.read(monitor),
            Doing::Writing { .. } => self.write(),
            Doing::Continuing => {
                self.doing = Doing::Reading;
                self.look(monitor);
            }
            Doing::Leaving => self.discard(),
            // It has gone: that is all that was polled for.
            Doing::Waiting { .. } => self.doing = Doing::Gone,
            Doing::Gone => {}
        }
    }

    fn read(&mut self, monitor: &mut Monitor) {
        let mut piece = [0; PIECE];
        match rustix::net::recv(&self.stream, &mut piece, RecvFlags::DONTWAIT) {
            Ok((0, _)) => self.doing = Doing::Gone,
            Ok((read, _)) => {
                let begins = self.input.is_empty();
                self.input.extend_from_slice(&piece[..read]);
                self.skip_blank();
                if begins && !self.input.is_empty() {
                    self.until = Instant::now() + PATIENCE;
                }
                self.look(monitor);
            }
            Err(Errno::AGAIN | Errno::INTR) => {}
            Err(_) => self.doing = Doing::Gone,
        }
    }

    /// An empty line or two before a request is none (RFC 9112, section 2.2).
    fn skip_blank(&mut self) {
        let is_blank = |byte: &&u8| matches!(byte, b'\r' | b'\n');
        let blank = self.input.iter().take(4).take_while(is_blank).count();
        self.input.drain(..blank);
    }

    /// Answers the request in the input, if it is whole.
    fn look(&mut self, monitor: &mut Monitor) {
        match http::find(&self.input) {
            Found::Part => {}
            Found::Bad(problem, head_only) => {
                self.reply(monitor, &problem.response(), head_only, false);
            }
            Found::Request(request, length) => {
                self.input.drain(..length);
                self.skip_blank();
                match monitor.answer(&request) {
                    Answer::Now(response) => {
                        self.reply(monitor, &response, request.head_only, request.keeps);
                    }
                    Answer::AfterCheck => {
                        // The check takes its own time, and then the reply must be taken.
                        self.until = Instant::now() + CHECK * 2 + PATIENCE;
                        let begun = false;
                        self.doing = Doing::Waiting { request, begun };
                    }
                }
            }
        }
    }

    fn reply(&mut self, monitor: &mut Monitor, response: &Response, head_only: bool, keeps: bool) {
        monitor.note(response.status);
        self.kept = true;
        let keeps = keeps && !self.is_last;
        self.until = Instant::now() + PATIENCE;
        self.doing = Doing::Writing {
            reply: response.encode(head_only, keeps),
            written: 0,
            keeps,
        };
        self.write();
    }

    fn write(&mut self) {
        let Doing::Writing {
            reply,
            written,
            keeps,
        } = &mut self.doing
        else {
            return;
        };
        let flags = SendFlags::DONTWAIT | SendFlags::NOSIGNAL;
        match rustix::net::send(&self.stream, &reply[*written..], flags) {
            Ok(more) => *written += more,
            Err(Errno::AGAIN | Errno::INTR) => return,
            Err(_) => return self.doing = Doing::Gone,
        }
        if *written < reply.len() {
            return;
        }
        if *keeps && self.input.is_empty() {
            self.doing = Doing::Reading;
            self.until = Instant::now() + KEPT;
            self.input = Vec::new();
        } else if *keeps {
            self.doing = Doing::Continuing;
            self.until = Instant::now() + PATIENCE;
        } else {
            // It fails if the client has gone, which is as well.
            let _ = self.stream.shutdown(Shutdown::Write);
            self.input = Vec::new();
            self.until = Instant::now() + LEAVE;
            self.doing = Doing::Leaving;
        }
    }

    /// Throws away what it still sends, so that it gets its reply and not a reset.
    fn discard(&mut self) {
        let mut piece = [0; PIECE];
        match rustix::net::recv(&self.stream, &mut piece, RecvFlags::DONTWAIT) {
            Ok((0, _)) => self.doing = Doing::Gone,
            Ok(_) | Err(Errno::AGAIN | Errno::INTR) => {}
            Err(_) => self.doing = Doing::Gone,
        }
    }
}
