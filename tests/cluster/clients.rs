//! Clients of one server, on its own host: a crowd that comes and goes at random, and one who asks WHO without pause. All
//! of them know what is true, and say so to [`Truth`].

use std::io::{self, Read as _};
use std::net::{Shutdown, SocketAddr};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use crate::network::Host;
use crate::random::Random;
use crate::support::Client;
use crate::truth::{Clock, Moment, Truth};

/// Between two questions.
const PAUSE: Duration = Duration::from_millis(20);

/// An answer.
#[derive(Clone, Copy, Debug)]
pub struct Answer {
    /// The server, the first 0.
    pub server: usize,
    /// When the question was about to be sent.
    pub asked: Moment,
    /// When the answer had come.
    pub answered: Moment,
    /// So many clients; nothing for ERR UNAVAILABLE.
    pub said: Option<i64>,
}

/// What all clients report.
pub struct Reports {
    pub clock: Clock,
    answers: Mutex<Vec<Answer>>,
    /// What must not happen to a client, and when it did.
    wrongs: Mutex<Vec<(Moment, String)>>,
}

impl Reports {
    /// None yet.
    pub fn new(clock: Clock) -> Arc<Self> {
        Arc::new(Reports {
            clock,
            answers: Mutex::default(),
            wrongs: Mutex::default(),
        })
    }

    /// Takes the answers that came since the last time.
    pub fn take(&self) -> Vec<Answer> {
        std::mem::take(&mut self.answers.lock().unwrap())
    }

    /// Takes what went wrong since the last time.
    pub fn take_wrongs(&self) -> Vec<(Moment, String)> {
        std::mem::take(&mut self.wrongs.lock().unwrap())
    }

    /// How many answers have come that were not taken.
    pub fn answers(&self) -> usize {
        self.answers.lock().unwrap().len()
    }

    fn answer(&self, answer: Answer) {
        self.answers.lock().unwrap().push(answer);
    }

    fn wrong(&self, what: String) {
        self.wrongs.lock().unwrap().push((self.clock.now(), what));
    }
}

/// A client that is connected.
pub struct Visitor {
    client: Client,
    /// To which process.
    incarnation: u64,
}

impl Visitor {
    /// Sends a line and waits for its reply.
    pub fn ask(&mut self, request: &str) -> io::Result<String> {
        self.client.try_ask(request)
    }

    /// Waits until the server has closed.
    fn leave(self) -> io::Result<()> {
        let mut socket = self.client.socket();
        socket.shutdown(Shutdown::Write)?;
        match socket.read_to_end(&mut Vec::new())? {
            0 => Ok(()),
            _ => Err(io::Error::other("more than was asked for")),
        }
    }
}

/// Those who come to one server.
#[derive(Clone)]
pub struct Gate {
    pub server: usize,
    pub host: Host,
    pub address: SocketAddr,
    pub truth: Arc<Truth>,
    pub reports: Arc<Reports>,
}

impl Gate {
    /// Connects a client, unless nobody serves. The calling thread must be on the server's host.
    pub fn visit(&self) -> Option<Visitor> {
        let incarnation = self.truth.connects()?;
        let connected = Client::connect(self.address).and_then(|mut client| {
            match client.try_ask("PING")?.as_str() {
                "PONG" => Ok(client),
                other => Err(io::Error::other(format!("{other:?} to PING"))),
            }
        });
        match connected {
            Ok(client) => {
                self.truth.connected(incarnation);
                Some(Visitor {
                    client,
                    incarnation,
                })
            }
            Err(error) => {
                self.complain(incarnation, "a client could not connect", &error);
                self.truth.gone(incarnation);
                None
            }
        }
    }

    /// A client leaves, and must not have been dropped before.
    pub fn disconnect(&self, mut visitor: Visitor) {
        let incarnation = visitor.incarnation;
        if let Err(error) = visitor.ask("PING") {
            self.complain(incarnation, "a client was dropped", &error);
        }
        self.truth.leaves(incarnation);
        if let Err(error) = visitor.leave() {
            self.complain(incarnation, "a client was not let go", &error);
        }
        self.truth.gone(incarnation);
    }

    /// Connects clients that stay until they are disconnected. They come from the server's host.
    pub fn visitors(&self, number: usize) -> Vec<Visitor> {
        let visit = |_| self.visit().expect("it serves");
        self.on_host(|| (0..number).map(visit).collect())
    }

    /// These clients leave.
    pub fn disconnect_all(&self, visitors: Vec<Visitor>) {
        let visitors = visitors.into_iter();
        self.on_host(|| visitors.for_each(|visitor| self.disconnect(visitor)));
    }

    /// Does something on the server's host.
    pub fn on_host<T: Send>(&self, what: impl FnOnce() -> T + Send) -> T {
        let on_host = || {
            self.host.enter();
            what()
        };
        let done = thread::scope(|scope| scope.spawn(on_host).join());
        done.unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    }

    /// A mistake unless the server ends at this time.
    fn complain(&self, incarnation: u64, what: &str, error: &io::Error) {
        if self.truth.goes_on(incarnation) {
            self.reports
                .wrong(format!("server {}: {what}: {error}", self.server + 1));
        }
    }

    /// Connects and disconnects clients at random, up to `most` at a time.
    fn crowd(&self, most: usize, pace: Duration, seed: u64, over: &AtomicBool) {
        let mut random = Random::new(seed);
        let mut crowd: Vec<Visitor> = Vec::new();
        // It is often near a number for a while, so that there are long times of few and of many.
        let mut aim = most / 2;
        while !over.load(Ordering::Relaxed) {
            crowd.retain(|visitor| self.truth.goes_on(visitor.incarnation));
            if random.below(40) == 0 {
                aim = random.below(most + 1);
            }
            let comes = random.below(2 * most) < most + aim.saturating_sub(crowd.len()) * 2
                && crowd.len() < most
                && (crowd.len() < aim || random.below(3) == 0);
            if comes {
                crowd.extend(self.visit());
            } else if !crowd.is_empty() {
                let leaver = crowd.swap_remove(random.below(crowd.len()));
                self.disconnect(leaver);
            }
            thread::sleep(random.between(Duration::ZERO, pace * 2));
        }
        for visitor in crowd {
            self.disconnect(visitor);
        }
    }

    /// Asks again and again.
    fn ask(&self, over: &AtomicBool) {
        while !over.load(Ordering::Relaxed) {
            let Some(mut visitor) = self.visit() else {
                thread::sleep(PAUSE / 4);
                continue;
            };
            while !over.load(Ordering::Relaxed) {
                let asked = self.reports.clock.now();
                let said = visitor.ask("WHO").and_then(|line| match line.parse() {
                    Ok(clients) => Ok(Some(clients)),
                    Err(_) if line.starts_with("ERR UNAVAILABLE ") => Ok(None),
                    Err(_) => Err(io::Error::other(line)),
                });
                let said = match said {
                    Ok(said) => said,
                    Err(error) => {
                        self.complain(visitor.incarnation, "no answer to WHO", &error);
                        break;
                    }
                };
                self.reports.answer(Answer {
                    server: self.server,
                    asked,
                    answered: self.reports.clock.now(),
                    said,
                });
                thread::sleep(PAUSE);
            }
            let incarnation = visitor.incarnation;
            self.truth.leaves(incarnation);
            drop(visitor.leave());
            self.truth.gone(incarnation);
        }
    }
}

/// The threads of the clients.
#[derive(Default)]
pub struct Clients {
    over: Arc<AtomicBool>,
    threads: Vec<JoinHandle<()>>,
}

impl Clients {
    /// From now on somebody asks at this gate, and up to `most` come and go there, one in every `pace`.
    pub fn visit(&mut self, gate: &Gate, most: usize, pace: Duration, seed: u64) {
        self.start(gate, |gate, over| gate.ask(over));
        self.start(gate, move |gate, over| gate.crowd(most, pace, seed, over));
    }

    fn start(&mut self, gate: &Gate, what: impl FnOnce(&Gate, &AtomicBool) + Send + 'static) {
        let (gate, over) = (gate.clone(), self.over.clone());
        self.threads.push(thread::spawn(move || {
            gate.host.enter();
            what(&gate, &over);
        }));
    }

    /// All leave. The servers must go on as long.
    pub fn leave(&mut self) {
        self.over.store(true, Ordering::Relaxed);
        for thread in self.threads.drain(..) {
            if let Err(panic) = thread.join() {
                std::panic::resume_unwind(panic);
            }
        }
    }
}

impl Drop for Clients {
    fn drop(&mut self) {
        // If the test has failed they may be held up for some time.
        self.over.store(true, Ordering::Relaxed);
    }
}
