//! Client of the load generator: a non-blocking connection on which a number of requests is kept in
//! flight. Replies are verified, timed and counted.

use std::collections::VecDeque;
use std::net::{SocketAddr, TcpStream};
use std::time::{Duration, Instant};

use rustix::io::Errno;
use rustix::net::{RecvFlags, SendFlags, recv, send};
use shared::dial::Translator;
use shared::dial::socket::{begin_to_connect_from, is_connected};

use super::replies::{Reading, Verdict, Verified, cycle};
use super::workload::{Window, Workload};
use super::{Error, Stats};

/// Approximate size in bytes of a block of requests, which one call sends.
const BLOCK_SIZE: usize = 64 * 1024;

/// The requests, repeated.
pub struct Requests {
    /// Length of a request, its end included.
    length: usize,
    /// Length of all different requests.
    cycle: usize,
    block: Vec<u8>,
}

impl Requests {
    /// Returns as many requests as are sent at once, and all once more, as a block may begin
    /// anywhere.
    pub fn new(workload: &Workload) -> Self {
        let (length, lines) = match workload.is_raw {
            true => (workload.request.len(), workload.request.clone()),
            false => cycle(&workload.request),
        };
        let at_once = (workload.depth as usize).min(BLOCK_SIZE / length) * length;
        Requests {
            length,
            cycle: lines.len(),
            block: lines.repeat(at_once.div_ceil(lines.len()) + 1),
        }
    }
}

/// Sends what a translator has made, as far as the socket accepts it.
fn send_translated(socket: &TcpStream, bytes: &mut Vec<u8>) -> Result<(), Errno> {
    if !bytes.is_empty() {
        match send(socket, bytes, SendFlags::NOSIGNAL) {
            Ok(sent) => drop(bytes.drain(..sent)),
            Err(Errno::AGAIN) => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

/// Requests that were due, or sent, at the same time.
#[derive(Clone, Copy)]
struct Sent {
    at: Instant,
    count: u32,
}

/// A client.
pub struct Client {
    /// Index among the clients of all threads.
    number: u64,
    /// Number of requests of the schedule that were sent.
    pub scheduled: u64,
    /// Right replies within the measured window.
    pub replies: u64,
    /// The socket, unless the connection was lost.
    pub socket: Option<TcpStream>,
    is_connecting: bool,
    /// When the last reply arrived; before that, when connecting began or the request was sent.
    waiting_since: Instant,
    in_flight: VecDeque<Sent>,
    /// Number of requests in flight.
    count: u32,
    /// Position in the cycle of requests of the next byte to send.
    position: usize,
    /// Whether a request was sent on this connection.
    pub has_asked: bool,
    reading: Reading,
    /// For another protocol than that of lines.
    translator: Option<Translator>,
    /// What it has made of requests, and is to be sent.
    translated: Vec<u8>,
}

impl Client {
    /// Returns a client that is not connected yet.
    pub fn new(number: u64) -> Self {
        Client {
            number,
            scheduled: 0,
            replies: 0,
            socket: None,
            is_connecting: false,
            waiting_since: Instant::now(),
            in_flight: VecDeque::new(),
            count: 0,
            position: 0,
            has_asked: false,
            reading: Reading::default(),
            translator: None,
            translated: Vec::new(),
        }
    }

    /// Starts to connect, and returns the socket, to be polled.
    pub fn begin(
        &mut self,
        workload: &Workload,
        requests: &Requests,
        source: Option<SocketAddr>,
    ) -> Result<&TcpStream, Error> {
        let Requests { length, cycle, .. } = requests;
        self.position = self.number as usize % (cycle / length) * length;
        self.reading = Reading::new(&workload.expected, self.number);
        self.translator = Translator::new(&workload.server);
        self.translated.clear();
        let connecting = begin_to_connect_from(source, workload.address);
        let socket = connecting.map_err(Error::System)?;
        self.is_connecting = true;
        self.waiting_since = Instant::now();
        Ok(self.socket.insert(socket))
    }

    /// Returns whether requests are in flight.
    pub fn is_waiting(&self) -> bool {
        self.count > 0
    }

    /// Returns whether connecting or the next reply has timed out.
    pub fn is_late(&self, now: Instant, timeout: Duration) -> bool {
        (self.is_connecting || self.is_waiting())
            && now.saturating_duration_since(self.waiting_since) > timeout
    }

    /// Returns the number of requests that were due before this moment and are not sent.
    pub fn unsent(&self, window: &Window, before: Instant) -> u64 {
        let schedule = window.schedule;
        let due = schedule.map_or(0, |schedule| schedule.due_before(self.number, before));
        due.saturating_sub(self.scheduled)
    }

    /// Closes the connection. The requests in flight get no reply.
    pub fn close(&mut self, window: &Window, stats: &mut Stats) {
        let now = Instant::now();
        let lost = self.in_flight.drain(..);
        let lost = lost.filter(|sent| window.counts(sent.at, now));
        stats.given_up += lost.map(|sent| u64::from(sent.count)).sum::<u64>();
        self.socket = None;
        self.is_connecting = false;
        self.count = 0;
        self.has_asked = false;
    }

    /// Returns whether the connection is established; checks the result of connecting when called
    /// after the first event.
    pub fn has_connected(&mut self) -> Result<bool, Error> {
        if let Some(socket) = self.socket.as_ref().filter(|_| self.is_connecting) {
            self.is_connecting = !is_connected(socket).map_err(Error::NotConnected)?;
        }
        Ok(self.socket.is_some() && !self.is_connecting)
    }

    /// Sends requests until `depth` are in flight, as far as they are due and the socket accepts
    /// them.
    pub fn send(&mut self, requests: &Requests, depth: u32, window: &Window, stats: &mut Stats) {
        let Some(socket) = self.socket.as_ref().filter(|_| !self.is_connecting) else {
            return;
        };
        if send_translated(socket, &mut self.translated).is_err() {
            return;
        }
        while self.count < depth {
            // Latency counts from just before a request is sent, or from its due time.
            let now = Instant::now();
            let mut room = depth - self.count;
            if window.schedule.is_some() {
                let due = self.unsent(window, now.min(window.to));
                room = room.min(u32::try_from(due).unwrap_or(u32::MAX));
            }
            if room == 0 {
                return;
            }
            let partial = self.position % requests.length;
            let to = self.position - partial + room as usize * requests.length;
            let bytes = &requests.block[self.position..to.min(requests.block.len())];
            let sent = match &mut self.translator {
                None => send(socket, bytes, SendFlags::NOSIGNAL),
                Some(translator) => {
                    for request in bytes.chunks_exact(requests.length) {
                        let request = &request[..requests.length - 1];
                        translator.request(request, &mut self.translated);
                    }
                    send_translated(socket, &mut self.translated).map(|()| bytes.len())
                }
            };
            // The socket is full and will become writable, or it is broken, which the next read
            // finds.
            let Ok(sent) = sent else {
                return;
            };
            let count = ((partial + sent) / requests.length) as u32;
            self.position = (self.position + sent) % requests.cycle;
            if self.count == 0 {
                self.waiting_since = now;
            }
            self.has_asked = true;
            self.count += count;
            stats.sent += u64::from(count);
            match window.schedule {
                None => self.in_flight.push_back(Sent { at: now, count }),
                Some(schedule) => {
                    for _ in 0..count {
                        let at = schedule.due(self.number, self.scheduled);
                        self.scheduled += 1;
                        self.in_flight.push_back(Sent { at, count: 1 });
                    }
                }
            }
        }
    }

    /// Reads all that has arrived; `ends` says that the server has closed its side.
    pub fn receive(
        &mut self,
        workload: &Workload,
        scratch: &mut [u8],
        window: &Window,
        ends: bool,
        stats: &mut Stats,
    ) -> Result<(), Error> {
        loop {
            let Some(socket) = &self.socket else {
                return Ok(());
            };
            let part = self.reading.part.len();
            scratch[..part].copy_from_slice(&self.reading.part);
            let read = match recv(socket, &mut scratch[part..], RecvFlags::empty()) {
                Ok((0, _)) => return Err(Error::Closed),
                Ok((read, _)) => read,
                Err(Errno::AGAIN) => return Ok(()),
                Err(Errno::INTR) => continue,
                Err(error) => return Err(Error::Broken(error.into())),
            };
            let now = Instant::now();
            let mut lines;
            let mut rest = &scratch[..part + read];
            if let Some(translator) = &mut self.translator {
                lines = std::mem::take(&mut self.reading.part);
                translator
                    .receive(&rest[part..], &mut self.translated)
                    .map_err(|what| Error::Wrong(what.to_string()))?;
                translator.take_lines(&mut lines);
                let _ = send_translated(socket, &mut self.translated);
                rest = &lines;
            }
            while let Some(verified) = self.reading.next(&workload.expected, &mut rest) {
                self.verify(verified, workload, window, now, stats)?;
            }
            self.reading.part = rest.to_vec();
            // Edge-triggered: a short read has emptied the buffer, and further data is a new event.
            if part + read < scratch.len() && !ends {
                return Ok(());
            }
        }
    }

    fn verify(
        &mut self,
        verified: Verified,
        workload: &Workload,
        window: &Window,
        now: Instant,
        stats: &mut Stats,
    ) -> Result<(), Error> {
        let Verified { count, verdict } = verified;
        let is_in_window = window.holds(now);
        let is_right = match verdict {
            // It is the reply to the oldest request, if one is in flight.
            Verdict::Refused { word, line, ends } if ends => {
                self.take(1, |_| {});
                return Err(Error::Refused { word, line });
            }
            _ if count > self.count => {
                let text = "more is answered than was asked";
                return Err(Error::Wrong(text.to_string()));
            }
            Verdict::Right => true,
            Verdict::Count(number) if !is_in_window || workload.allows(number) => true,
            Verdict::Count(number) => {
                stats.errors.record_wrong(format!("\"{number}\""));
                false
            }
            Verdict::Refused { word, .. } => {
                stats.errors.record_reply(word);
                false
            }
            Verdict::Wrong(quoted) => {
                stats.errors.record_wrong(quoted);
                false
            }
        };
        if is_right {
            stats.answered += u64::from(count);
            let replies = u64::from(if is_in_window { count } else { 0 });
            stats.replies += replies;
            self.replies += replies;
        }
        self.waiting_since = now;
        self.take(count, |sent| {
            if is_right && window.counts(sent.at, now) {
                stats.record_latency(now.saturating_duration_since(sent.at), sent.count);
            }
        });
        Ok(())
    }

    /// Takes this number of requests in flight, the oldest first, in groups of the same time.
    fn take(&mut self, count: u32, mut each: impl FnMut(Sent)) {
        let mut left = count.min(self.count);
        self.count -= left;
        while left > 0
            && let Some(oldest) = self.in_flight.front_mut()
        {
            let taken = left.min(oldest.count);
            each(Sent {
                count: taken,
                ..*oldest
            });
            left -= taken;
            oldest.count -= taken;
            if oldest.count == 0 {
                self.in_flight.pop_front();
            }
        }
    }
}
