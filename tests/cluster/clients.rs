//! Clients of one server, on its own host: a crowd that comes and goes at random, and one who asks WHO without pause. All
//! of them know what is true, and say so to [`Truth`].

use std::io::{self, BufRead as _, BufReader, Read as _, Write as _};
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use crate::network::Host;
use crate::random::Random;
use crate::truth::{Clock, Moment, Truth};

/// Longer than any server is ever stopped.
const PATIENCE: Duration = Duration::from_secs(60);

/// Between two questions.
const PAUSE: Duration = Duration::from_millis(20);

/// What a server said to WHO.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Said {
    /// So many clients.
    Clients(i64),
    /// `ERR UNAVAILABLE`.
    Unavailable,
}

/// An answer.
#[derive(Clone, Copy, Debug)]
pub struct Answer {
    /// The server, the first 0.
    pub server: usize,
    /// When the question was about to be sent.
    pub asked: Moment,
    /// When the answer had come.
    pub answered: Moment,
    /// What it was.
    pub said: Said,
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
        std::mem::take(&mut self.answers.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Takes what went wrong since the last time.
    pub fn take_wrongs(&self) -> Vec<(Moment, String)> {
        std::mem::take(&mut self.wrongs.lock().unwrap_or_else(PoisonError::into_inner))
    }

    fn answer(&self, answer: Answer) {
        let mut answers = self.answers.lock().unwrap_or_else(PoisonError::into_inner);
        answers.push(answer);
    }

    fn wrong(&self, what: String) {
        let mut wrongs = self.wrongs.lock().unwrap_or_else(PoisonError::into_inner);
        wrongs.push((self.clock.now(), what));
    }
}

/// A client that is connected.
pub struct Visitor {
    stream: BufReader<TcpStream>,
    /// To which process.
    life: u64,
}

impl Visitor {
    fn connect(address: SocketAddr, life: u64) -> io::Result<Self> {
        let stream = TcpStream::connect_timeout(&address, PATIENCE)?;
        stream.set_read_timeout(Some(PATIENCE))?;
        stream.set_write_timeout(Some(PATIENCE))?;
        stream.set_nodelay(true)?;
        let mut visitor = Visitor {
            stream: BufReader::new(stream),
            life,
        };
        match visitor.ask("PING")?.as_str() {
            "PONG" => Ok(visitor),
            other => Err(io::Error::other(format!("{other:?} to PING"))),
        }
    }

    /// Sends a line and waits for its reply.
    pub fn ask(&mut self, request: &str) -> io::Result<String> {
        let stream = self.stream.get_mut();
        stream.write_all(format!("{request}\n").as_bytes())?;
        let mut line = String::new();
        self.stream.read_line(&mut line)?;
        match line.strip_suffix('\n') {
            Some(line) => Ok(line.to_string()),
            None => Err(io::Error::new(io::ErrorKind::UnexpectedEof, "the end")),
        }
    }

    /// Waits until the server has closed.
    fn leave(mut self) -> io::Result<()> {
        self.stream.get_ref().shutdown(Shutdown::Write)?;
        match self.stream.read_to_end(&mut Vec::new())? {
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
        let life = self.truth.connects()?;
        match Visitor::connect(self.address, life) {
            Ok(visitor) => {
                self.truth.connected(life);
                Some(visitor)
            }
            Err(error) => {
                self.complain(life, "a client could not connect", &error);
                self.truth.gone(life);
                None
            }
        }
    }

    /// A client leaves, and must not have been dropped before.
    pub fn part_with(&self, mut visitor: Visitor) {
        let life = visitor.life;
        let still = visitor.ask("PING");
        if let Err(error) = still {
            self.complain(life, "a client was dropped", &error);
        }
        self.truth.leaves(life);
        if let Err(error) = visitor.leave() {
            self.complain(life, "a client was not let go", &error);
        }
        self.truth.gone(life);
    }

    /// So many clients that stay until they are parted with. They come from the server's host.
    pub fn visitors(&self, number: usize) -> Vec<Visitor> {
        self.there(move |gate| {
            (0..number)
                .map(|_| gate.visit().expect("it serves"))
                .collect()
        })
    }

    /// Does something on the server's host.
    pub fn there<T: Send + 'static>(&self, what: impl FnOnce(&Gate) -> T + Send + 'static) -> T {
        let gate = self.clone();
        let thread = thread::spawn(move || {
            gate.host.enter();
            what(&gate)
        });
        thread
            .join()
            .unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    }

    /// A mistake unless the server ends at this time.
    fn complain(&self, life: u64, what: &str, error: &io::Error) {
        if self.truth.goes_on(life) {
            self.reports
                .wrong(format!("server {}: {what}: {error}", self.server + 1));
        }
    }

    /// Comes and goes, up to so many.
    fn crowd(&self, most: usize, pace: Duration, seed: u64, over: &AtomicBool) {
        let mut random = Random::new(seed);
        let mut crowd: Vec<Visitor> = Vec::new();
        // It is often near a number for a while, so that there are long times of few and of many.
        let mut aim = most / 2;
        while !over.load(Ordering::Relaxed) {
            crowd.retain(|visitor| self.truth.goes_on(visitor.life));
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
                self.part_with(leaver);
            }
            thread::sleep(random.between(Duration::ZERO, pace * 2));
        }
        for visitor in crowd {
            self.part_with(visitor);
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
                let said = match visitor.ask("WHO") {
                    Ok(line) => match line.parse() {
                        Ok(clients) => Said::Clients(clients),
                        Err(_) if line.starts_with("ERR UNAVAILABLE ") => Said::Unavailable,
                        Err(_) => {
                            let error = io::Error::other(line);
                            self.complain(visitor.life, "no answer to WHO", &error);
                            break;
                        }
                    },
                    Err(error) => {
                        self.complain(visitor.life, "no answer to WHO", &error);
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
            let life = visitor.life;
            self.truth.leaves(life);
            drop(visitor.leave());
            self.truth.gone(life);
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
    /// Has somebody ask at this gate from now on.
    pub fn ask(&mut self, gate: &Gate) {
        self.start("asker", gate, |gate, over| gate.ask(over));
    }

    /// Has up to `most` come and go from now on, one in every `pace`.
    pub fn crowd(&mut self, gate: &Gate, most: usize, pace: Duration, seed: u64) {
        self.start("crowd", gate, move |gate, over| {
            gate.crowd(most, pace, seed, over)
        });
    }

    fn start(
        &mut self,
        name: &str,
        gate: &Gate,
        what: impl FnOnce(&Gate, &AtomicBool) + Send + 'static,
    ) {
        let (gate, over) = (gate.clone(), self.over.clone());
        let builder = thread::Builder::new().name(format!("{name} {}", gate.server + 1));
        let thread = builder.spawn(move || {
            gate.host.enter();
            what(&gate, &over);
        });
        self.threads.push(thread.expect("a thread"));
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
