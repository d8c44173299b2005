//! Client of the load generator: a non-blocking connection on which a number of requests is kept in
//! flight.

mod receive;

use std::collections::VecDeque;
use std::io;
use std::net::TcpStream;
use std::time::{Duration, Instant};

use rustix::net::{SendFlags, send};
use shared::dial::socket::{begin_to_connect, is_connected};

use super::replies::Reading;
use super::stats::Stats;
use super::workload::{Window, Workload};

/// Why a connection ended.
#[derive(Debug)]
pub enum Disconnect {
    /// The server closed it.
    Closed,
    /// It broke.
    Broken(io::Error),
    /// A reply, or connecting, timed out.
    Late,
    /// It was never established.
    NotConnected(io::Error),
    /// The server sent an error after which it closes.
    Refused { word: String, line: String },
    /// The server sent what no valid reply can follow.
    Wrong(String),
}

/// Requests whose first bytes were sent in the same call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Sent {
    at: Instant,
    /// Index of the first of them in the schedule.
    first: u64,
    count: u32,
}

/// A client.
pub struct Client {
    /// Index among all clients.
    number: u64,
    socket: Option<TcpStream>,
    /// When connecting began, until the connection is established.
    connecting: Option<Instant>,
    /// Number of requests of the schedule whose sending began, or that were given up.
    begun: u64,
    /// Requests without a reply, including one that is only partly sent.
    sent: VecDeque<Sent>,
    /// Number of requests in flight, of those that are completely sent.
    on_the_way: u32,
    /// Number of bytes sent of the next request.
    partial: usize,
    /// Whether a request was sent on this connection.
    has_asked: bool,
    reading: Reading,
    /// When to reconnect.
    again: Option<Instant>,
    has_lost: bool,
}

impl Client {
    /// Returns a client that is not connected yet, with room for `depth` requests.
    pub fn new(number: u64, depth: u32) -> Self {
        Client {
            number,
            begun: 0,
            socket: None,
            connecting: None,
            sent: VecDeque::with_capacity(depth as usize + 1),
            on_the_way: 0,
            partial: 0,
            has_asked: false,
            reading: Reading::default(),
            again: None,
            has_lost: false,
        }
    }

    /// Starts to connect, and returns the socket, to be polled.
    pub fn begin(&mut self, workload: &Workload, now: Instant) -> Result<&TcpStream, Disconnect> {
        self.again = None;
        let socket = begin_to_connect(workload.address).map_err(Disconnect::NotConnected)?;
        self.connecting = Some(now);
        Ok(self.socket.insert(socket))
    }

    /// Returns whether there is a socket.
    pub fn has_socket(&self) -> bool {
        self.socket.is_some()
    }

    /// Returns whether a request was sent on this connection.
    pub fn has_asked(&self) -> bool {
        self.has_asked
    }

    /// Returns whether all requests have replies, and there was at least one.
    pub fn is_served(&self) -> bool {
        self.has_asked && !self.is_waiting()
    }

    /// Returns whether requests are in flight.
    pub fn is_waiting(&self) -> bool {
        self.on_the_way > 0
    }

    /// Returns whether it is time to reconnect.
    pub fn is_due(&self, now: Instant) -> bool {
        self.again.is_some_and(|again| again <= now)
    }

    /// Returns whether the oldest request in flight, or connecting, has timed out.
    pub fn is_late(&self, now: Instant, timeout: Duration) -> bool {
        let oldest = self.sent.front().filter(|_| self.is_waiting());
        let since = self.connecting.or(oldest.map(|sent| sent.at));
        since.is_some_and(|since| now.saturating_duration_since(since) > timeout)
    }

    /// Returns whether requests that were due within the window are still to be sent.
    pub fn owes(&self, window: Window, now: Instant, timeout: Duration) -> bool {
        let Some(schedule) = window.schedule else {
            return false;
        };
        let given_up = now.checked_sub(timeout);
        let given_up = given_up.map_or(0, |moment| schedule.due_before(self.number, moment));
        schedule.due_before(self.number, window.to) > self.begun.max(given_up)
    }

    /// Counts the requests in flight as given up: they will get no reply.
    pub fn give_up(&mut self, window: Window, stats: &mut Stats) {
        let now = Instant::now();
        for sent in self.sent.drain(..) {
            stats.given_up += match window.schedule {
                None if window.overlaps(sent.at, now) => sent.count.into(),
                None => 0,
                Some(schedule) => {
                    let requests = sent.first..sent.first + u64::from(sent.count);
                    let due = requests.map(|request| schedule.due(self.number, request));
                    due.filter(|due| window.holds(*due)).count() as u64
                }
            };
        }
    }

    /// Gives up the unsent requests that were due before this moment, and returns their number.
    pub fn give_up_unsent(&mut self, before: Instant, window: Window, stats: &mut Stats) -> u64 {
        let Some(schedule) = window.schedule else {
            return 0;
        };
        let due_before = |moment| schedule.due_before(self.number, moment);
        let (begun, due) = (self.begun, due_before(before.min(window.to)));
        let counted = due.saturating_sub(begun.max(due_before(window.from)));
        stats.given_up += counted;
        self.begun = begun.max(due);
        self.begun - begun
    }

    /// Closes the connection. It is made again at the time `again`, if given. Returns whether this
    /// is the client's first loss.
    pub fn drop_connection(&mut self, again: Option<Instant>) -> bool {
        self.socket = None;
        self.connecting = None;
        self.sent.clear();
        self.on_the_way = 0;
        self.partial = 0;
        self.has_asked = false;
        self.reading.restart();
        self.again = again;
        !std::mem::replace(&mut self.has_lost, true)
    }

    /// Returns whether the connection is established; checks the result of connecting when called
    /// after the first event.
    pub fn has_connected(&mut self) -> Result<bool, Disconnect> {
        let Some(socket) = self.socket.as_ref().filter(|_| self.connecting.is_some()) else {
            return Ok(true);
        };
        let connected = is_connected(socket).map_err(Disconnect::NotConnected)?;
        if connected {
            self.connecting = None;
        }
        Ok(connected)
    }

    /// Sends requests until `depth` are in flight, as far as they are due and the socket accepts
    /// them. Gives up requests that could not be sent within the reply timeout.
    pub fn fill(&mut self, workload: &Workload, depth: u32, window: Window, stats: &mut Stats) {
        if let Some(overdue) = Instant::now().checked_sub(workload.timeout) {
            stats.errors.unsent += self.give_up_unsent(overdue, window, stats);
        }
        let connected = self.socket.as_ref().filter(|_| self.connecting.is_none());
        let Some(socket) = connected else {
            return;
        };
        while self.on_the_way < depth {
            // Latency counts from just before the first byte of a request is sent, or from its due
            // time.
            let now = Instant::now();
            let mut room = depth - self.on_the_way;
            if let Some(schedule) = window.schedule {
                let due = schedule.due_before(self.number, now.min(window.to));
                let due = due.saturating_sub(self.begun) + u64::from(self.partial > 0);
                room = room.min(u32::try_from(due).unwrap_or(u32::MAX));
            }
            if room == 0 {
                return;
            }
            let to = workload.block.len().min(room as usize * workload.length);
            let sent = match send(
                socket,
                &workload.block[self.partial..to],
                SendFlags::NOSIGNAL,
            ) {
                Ok(sent) => sent,
                // The socket is full and will become writable, or it is broken, which the next read
                // finds.
                Err(_) => return,
            };
            let reached = self.partial + sent;
            let requests = (reached / workload.length) as u32;
            let begun = reached.div_ceil(workload.length) - self.partial.div_ceil(workload.length);
            self.partial = reached % workload.length;
            self.has_asked |= requests > 0;
            self.on_the_way += requests;
            stats.sent += u64::from(requests);
            if begun == 0 {
                continue;
            }
            self.sent.push_back(Sent {
                at: now,
                first: self.begun,
                count: begun as u32,
            });
            if let Some(schedule) = window.schedule {
                let requests = self.begun..self.begun + begun as u64;
                let due = requests.map(|request| schedule.due(self.number, request));
                for due in due.filter(|due| window.holds(*due)) {
                    stats.note_delay(now.saturating_duration_since(due));
                }
                self.begun += begun as u64;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io::{Read as _, Write as _};
    use std::net::TcpListener;

    use super::*;
    use crate::bench::replies::Expected;

    #[test]
    fn a_request_that_is_sent_in_two_pieces_is_timed_from_its_first_byte() {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
        let address = listener.local_addr().expect("an address");
        // Sizes of socket buffers are not multiples of this length.
        let (request, depth) = ([b'x'; 9972], 10_000);
        let workload = Workload::new(address, &request, depth, Expected::same_as(b"42"));
        let mut client = Client::new(0, depth);
        let begun = Instant::now();
        client.begin(&workload, begun).expect("a socket");
        let (mut server, _) = listener.accept().expect("a connection");
        while !client.has_connected().expect("a connection") {}
        let mut stats = Stats::new();
        let window = Window {
            from: begun,
            to: begun + Duration::from_secs(3600),
            schedule: None,
        };
        client.fill(&workload, depth, window, &mut stats);
        assert!(client.partial > 0, "the buffers take no more");
        let (waiting, times) = (client.on_the_way, client.sent.clone());
        let timed = |client: &Client| client.sent.iter().map(|sent| sent.count).sum::<u32>();
        assert_eq!(
            (timed(&client), stats.sent),
            (waiting + 1, u64::from(waiting))
        );

        // The server has read more than the missing bytes before the client continues.
        let whole = (waiting as usize + 1) * workload.length;
        let mut all = vec![0; whole];
        server.read_exact(&mut all[..whole / 2]).expect("requests");
        while client.on_the_way <= waiting {
            client.fill(&workload, waiting + 1, window, &mut stats);
        }
        // The request was timed before.
        assert_eq!((client.partial, client.sent.clone()), (0, times));
        server.read_exact(&mut all[whole / 2..]).expect("the rest");
        let replies = b"42\n".repeat(waiting as usize + 1);
        server.write_all(&replies).expect("they are taken");
        let mut scratch = vec![0; 1024];
        while client.is_waiting() {
            client
                .receive(&workload, &mut scratch, window, false, &mut stats)
                .expect("right replies");
        }
        assert_eq!((stats.replies, timed(&client)), (u64::from(waiting) + 1, 0));
    }
}
