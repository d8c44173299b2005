//! Clients that ask again as soon as they are answered: one thread that must cost less than any server it loads.

use std::os::fd::OwnedFd;
use std::time::{Duration, Instant};

use rustix::event::epoll::Event;
use rustix::io::Errno;
use rustix::net::{RecvFlags, SendFlags, recv, send};
use rustix::process::Pid;

use crate::Result;
use crate::crowd::{self, GENTLY};
use crate::generator::Generator;
use crate::meter::{Mark, Span, WARM_UP};
use crate::target::{Target, check};
use crate::trickle::Trickle;
use crate::watch::Watch;

/// Room for the replies to any block, and for surplus that must not be there.
const SCRATCH: usize = 16 << 10;

/// One client.
struct Asker {
    /// Its connection.
    socket: OwnedFd,
    /// How much of the replies to its block is there.
    received: usize,
    /// When it sent its block, while latencies are wanted.
    asked: Instant,
}

/// Clients that each have one block of requests on its way.
pub struct Askers {
    /// The clients; the index is the key of the watch.
    askers: Vec<Asker>,
    /// Waits for their replies.
    watch: Watch,
    /// Room for what a wait finds.
    events: Vec<Event>,
    /// Room for what is read.
    scratch: Box<[u8]>,
    /// The requests of one block.
    block: Vec<u8>,
    /// The replies that a block must get.
    expected: Vec<u8>,
    /// How many requests a block has.
    depth: u64,
    /// How many blocks are not answered yet.
    waiting: usize,
    /// The time of each block from its write to its last reply in nanoseconds, while that is wanted.
    latencies: Option<Vec<u32>>,
}

impl Askers {
    /// Connects the clients, who will send `depth` requests at a time.
    pub fn connect(
        target: &Target,
        generator: &mut Generator,
        clients: usize,
        depth: usize,
    ) -> Result<Askers> {
        let watch = generator.watch()?;
        let mut askers = Vec::with_capacity(clients);
        for socket in crowd::gather(target, generator, clients, GENTLY)? {
            watch.add(&socket, askers.len(), false)?;
            askers.push(Asker {
                socket,
                received: 0,
                asked: Instant::now(),
            });
        }
        Ok(Askers {
            askers,
            watch,
            events: Watch::events(),
            scratch: vec![0; SCRATCH].into_boxed_slice(),
            block: target.dialect.request.repeat(depth),
            expected: target.dialect.reply.repeat(depth),
            depth: depth as u64,
            waiting: 0,
            latencies: None,
        })
    }

    /// Asks for a time and measures.
    pub fn run(&mut self, server: Pid, time: Duration) -> Result<Span> {
        self.load(server, time, None)
    }

    /// Asks for a time and gives the time of each block in nanoseconds, while others may trickle.
    pub fn time_each(
        &mut self,
        server: Pid,
        time: Duration,
        trickle: Option<&mut Trickle>,
    ) -> Result<Vec<u32>> {
        self.latencies = Some(Vec::with_capacity(1 << 20));
        self.load(server, time, trickle)?;
        Ok(self.latencies.take().unwrap_or_default())
    }

    /// Warms up, measures, and waits for the last replies.
    fn load(
        &mut self,
        server: Pid,
        time: Duration,
        mut trickle: Option<&mut Trickle>,
    ) -> Result<Span> {
        self.watch.expect();
        for asker in 0..self.askers.len() {
            self.ask(asker)?;
        }
        let warm = Instant::now() + time.mul_f64(WARM_UP);
        while self.turn(true, &mut trickle)?.0 < warm {}
        if let Some(latencies) = &mut self.latencies {
            latencies.clear();
        }

        let mark = Mark::now(server)?;
        let end = mark.at + time;
        let mut blocks = 0;
        loop {
            let (now, answered) = self.turn(true, &mut trickle)?;
            blocks += answered;
            // On a machine that is busy otherwise the time may pass without a reply; the watch bounds that.
            if now >= end && blocks > 0 {
                break;
            }
        }
        let span = mark.span(blocks * self.depth)?;

        while self.waiting > 0 {
            self.turn(false, &mut trickle)?;
        }
        Ok(span)
    }

    /// Takes what has arrived and asks again if wanted; says when it woke and how many blocks were answered.
    fn turn(&mut self, again: bool, trickle: &mut Option<&mut Trickle>) -> Result<(Instant, u64)> {
        let mut events = std::mem::take(&mut self.events);
        let pause = trickle.as_ref().map(|trickle| trickle.pause());
        let now = self.watch.wait(&mut events, pause)?;
        if let Some(trickle) = trickle {
            trickle.send(now)?;
        }
        let mut answered = 0;
        for event in &events {
            let asker = event.data.u64() as usize;
            if self.receive(asker)? {
                answered += 1;
                self.waiting -= 1;
                if again {
                    self.ask(asker)?;
                }
            }
        }
        self.events = events;
        Ok((now, answered))
    }

    /// Reads once, which takes all that is there, since no block fills the room; `true` when a block is answered.
    fn receive(&mut self, asker: usize) -> Result<bool> {
        let asker = &mut self.askers[asker];
        let count = match recv(&asker.socket, &mut *self.scratch, RecvFlags::empty()) {
            Ok((count, _)) => count,
            Err(Errno::AGAIN) => return Ok(false),
            Err(error) => return Err(format!("a client lost its connection: {error}").into()),
        };
        asker.received += check(&self.scratch[..count], &self.expected[asker.received..])?;
        if asker.received < self.expected.len() {
            return Ok(false);
        }
        if let Some(latencies) = &mut self.latencies {
            let time = asker.asked.elapsed().as_nanos();
            latencies.push(u32::try_from(time).unwrap_or(u32::MAX));
        }
        Ok(true)
    }

    /// Sends a block.
    fn ask(&mut self, asker: usize) -> Result<()> {
        let asker = &mut self.askers[asker];
        asker.received = 0;
        if self.latencies.is_some() {
            asker.asked = Instant::now();
        }
        match send(&asker.socket, &self.block, SendFlags::NOSIGNAL) {
            Ok(sent) if sent == self.block.len() => self.waiting += 1,
            Ok(_) => return Err("a block of requests didn't fit into an empty socket".into()),
            Err(error) => return Err(format!("a client lost its connection: {error}").into()),
        }
        Ok(())
    }
}
