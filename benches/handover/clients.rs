//! Clients that ask all the while, and notice everything: a reply that is not the one to their request, one that comes twice
//! or never, an end, a wrong count, and how long the longest of them had to wait.
//!
//! Each request is a word that the server doesn't know, which it repeats in its reply: so each reply can be matched with its
//! request. The first client asks for the count instead.

use std::collections::VecDeque;
use std::fmt;
use std::io::{self, ErrorKind, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::time::{Duration, Instant};

use crate::Result;
use crate::watch::Watch;

/// The key of the standard input among those of the clients.
const INPUT: usize = usize::MAX;

/// How often the count is asked for.
const COUNTING: Duration = Duration::from_millis(1);

/// What became of all requests.
#[derive(Default)]
pub struct Tally {
    clients: usize,
    answered: u64,
    counted: u64,
    /// Replies that were not those that were expected, or came unasked.
    wrong: u64,
    /// Ends, with a reply missing.
    lost: u64,
    /// Ends without one.
    closed: u64,
    resets: u64,
}

impl Tally {
    /// Whether nobody noticed anything.
    pub fn is_clean(&self) -> bool {
        self.answered > 0
            && self.counted > 0
            && [self.wrong, self.lost, self.closed, self.resets] == [0; 4]
    }
}

impl fmt::Display for Tally {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "clients={} answered={} counted={} wrong={} lost={} closed={} resets={}",
            self.clients,
            self.answered,
            self.counted,
            self.wrong,
            self.lost,
            self.closed,
            self.resets
        )
    }
}

struct Client {
    stream: TcpStream,
    /// When it asked what is not answered yet.
    asked: Option<Instant>,
    expected: Vec<u8>,
    received: Vec<u8>,
    requests: u64,
    /// The lap in which it asked what was answered last.
    lap: u64,
    open: bool,
}

/// Connects `clients`, each of which asks again after `pause`. For each line of the standard input it says how long the
/// longest wait since the last one was, once everybody has been answered a request made after that line. Ends with it.
pub fn run(address: SocketAddr, clients: usize, pause: Duration) -> Result<Tally> {
    let mut load = Load {
        watch: Watch::new(false)?,
        clients: Vec::with_capacity(clients),
        due: VecDeque::new(),
        tally: Tally {
            clients,
            ..Tally::default()
        },
        pause,
        lap: 0,
        lap_began: Instant::now(),
        missing: 0,
        longest: Duration::ZERO,
    };
    for _ in 0..clients {
        let mut stream = TcpStream::connect(address)?;
        stream.set_nodelay(true)?;
        // So that it counts before anybody asks for the count.
        stream.write_all(b"PING\n")?;
        stream.read_exact(&mut [0; b"PONG\n".len()])?;
        stream.set_nonblocking(true)?;
        load.watch.add(&stream, load.clients.len(), false)?;
        load.clients.push(Client {
            stream,
            asked: None,
            expected: Vec::new(),
            received: Vec::new(),
            requests: 0,
            lap: 0,
            open: true,
        });
    }
    load.watch.add(io::stdin(), INPUT, false)?;
    load.watch.expect();
    load.run()?;
    Ok(load.tally)
}

struct Load {
    watch: Watch,
    clients: Vec<Client>,
    /// Who asks next, and when.
    due: VecDeque<(Instant, usize)>,
    tally: Tally,
    pause: Duration,
    /// Counts the lines of the input.
    lap: u64,
    lap_began: Instant,
    /// How many have not been answered in this lap.
    missing: usize,
    longest: Duration,
}

impl Load {
    fn run(&mut self) -> Result<()> {
        let begun = Instant::now();
        // Spread over the pause, so that somebody asks at any moment.
        for index in 0..self.clients.len() {
            let share = self.pause.as_secs_f64() * index as f64 / self.clients.len() as f64;
            let due = begun + Duration::from_secs_f64(share);
            self.due.push_back((due, index));
        }
        let mut counts = begun;
        self.next_lap();
        let mut events = Watch::events();
        loop {
            let now = Instant::now();
            while let Some(&(due, index)) = self.due.front()
                && due <= now
            {
                self.due.pop_front();
                self.ask(index)?;
            }
            if self.clients[0].asked.is_none() && now >= counts {
                counts = now + COUNTING;
                self.ask(0)?;
            }
            let next = self.due.front().map_or(counts, |&(due, _)| due.min(counts));
            let time = next.saturating_duration_since(Instant::now());
            self.watch
                .wait(&mut events, Some(time.max(Duration::from_micros(50))))?;
            for event in &events {
                match event.data.u64() as usize {
                    INPUT if !self.hear()? => return self.end(),
                    INPUT => {}
                    index => self.receive(index)?,
                }
            }
        }
    }

    /// Reads a line of the input; says whether there was one.
    fn hear(&mut self) -> Result<bool> {
        let mut bytes = [0; 64];
        let read = io::stdin().read(&mut bytes)?;
        if read > 0 {
            self.next_lap();
        }
        Ok(read > 0)
    }

    fn next_lap(&mut self) {
        self.lap += 1;
        self.lap_began = Instant::now();
        self.missing = self.clients.iter().filter(|client| client.open).count();
        self.say_lap();
    }

    fn ask(&mut self, index: usize) -> Result<()> {
        let client = &mut self.clients[index];
        if !client.open || client.asked.is_some() {
            return Ok(());
        }
        client.requests += 1;
        let request = if index == 0 {
            client.expected = format!("{}\n", self.tally.clients).into_bytes();
            "WHO\n".to_string()
        } else {
            let token = format!("c{index}r{}", client.requests);
            client.expected =
                format!("ERR UNKNOWN no such command: \"{token}\" (try HELP)\n").into_bytes();
            token + "\n"
        };
        client.asked = Some(Instant::now());
        // A few bytes of a client that waits for each reply: there is room for them.
        match client.stream.write(request.as_bytes()) {
            Ok(written) if written == request.len() => {}
            Ok(_) => return Err("a request was taken in part".into()),
            Err(_) => self.gone(index, true),
        }
        Ok(())
    }

    fn receive(&mut self, index: usize) -> Result<()> {
        let mut bytes = [0; 1024];
        loop {
            let client = &mut self.clients[index];
            match client.stream.read(&mut bytes) {
                Ok(0) => break self.gone(index, false),
                Ok(read) => client.received.extend_from_slice(&bytes[..read]),
                Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(()),
                Err(error) if error.kind() == ErrorKind::Interrupted => continue,
                Err(_) => break self.gone(index, true),
            }
            if client.received.ends_with(b"\n") {
                self.answered(index)?;
            }
        }
        Ok(())
    }

    fn answered(&mut self, index: usize) -> Result<()> {
        let client = &mut self.clients[index];
        let right = client.asked.is_some() && client.received == client.expected;
        if !right {
            eprintln!(
                "client {index} expected {:?}, not {:?}",
                String::from_utf8_lossy(&client.expected),
                String::from_utf8_lossy(&client.received)
            );
            self.tally.wrong += 1;
        }
        client.received.clear();
        let Some(asked) = client.asked.take() else {
            return Ok(());
        };
        let now = Instant::now();
        self.tally.answered += 1;
        self.longest = self.longest.max(now - asked);
        if asked >= self.lap_began && client.lap < self.lap {
            client.lap = self.lap;
            self.missing -= 1;
            self.say_lap();
        }
        if index == 0 {
            self.tally.counted += 1;
            return Ok(());
        }
        if self.pause.is_zero() {
            return self.ask(index);
        }
        self.due.push_back((now + self.pause, index));
        Ok(())
    }

    fn say_lap(&mut self) {
        if self.missing == 0 {
            println!("longest_ms={:.1}", self.longest.as_secs_f64() * 1000.0);
            self.longest = Duration::ZERO;
        }
    }

    fn gone(&mut self, index: usize, reset: bool) {
        let client = &mut self.clients[index];
        if !std::mem::replace(&mut client.open, false) {
            return;
        }
        match (reset, client.asked.is_some()) {
            (true, _) => self.tally.resets += 1,
            (false, true) => self.tally.lost += 1,
            (false, false) => self.tally.closed += 1,
        }
        if client.lap < self.lap {
            self.missing -= 1;
            self.say_lap();
        }
    }

    /// Everybody takes what is still due to him, and then nothing more may come.
    fn end(&mut self) -> Result<()> {
        // Who asks for the count leaves while all are there.
        let (first, others) = self.clients.split_at_mut(1);
        for leaving in [first, others] {
            let open = |client: &&mut Client| client.open;
            for client in leaving.iter_mut().filter(open) {
                client.stream.set_nonblocking(false)?;
                let patience = Some(Duration::from_secs(10));
                client.stream.set_read_timeout(patience)?;
                client.stream.shutdown(Shutdown::Write)?;
            }
            for client in leaving.iter_mut().filter(open) {
                client.stream.read_to_end(&mut client.received)?;
                let due: &[u8] = match client.asked {
                    Some(_) => &client.expected,
                    None => b"",
                };
                if client.received.len() < due.len() {
                    self.tally.lost += 1;
                } else if client.received != due {
                    self.tally.wrong += 1;
                }
            }
        }
        Ok(())
    }
}
