//! Where the connections of load balancers are until their PROXY header has come: whose they are, only that says.
//!
//! One thread polls them all, so that no acceptor waits for anybody, and none of them takes a worker or counts. Of each it
//! reads the header and not a byte more: what follows stays in the socket for whoever serves the client. There is room for so
//! many, and each has so long; when all places are taken, the one that has waited longest goes.

use std::collections::VecDeque;
use std::net::{IpAddr, SocketAddr, TcpStream};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::time::Duration;

use crossbeam_channel::{Receiver, Sender, TryRecvError};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::net::RecvFlags;

use crate::clock::Millis;
use crate::command::BadHeader;
use crate::error::Error;
use crate::handover_state;
use crate::metrics::Closed;
use crate::network::Network;
use crate::protocol::proxy::{Caller, Found, LONGEST_BINARY, find};
use crate::thread;
use crate::waker::Waker;

/// A header must be whole within this time: as long as a packet takes that has to be sent again (section 2 of the protocol).
pub const PATIENCE: Duration = Duration::from_secs(3);

/// After trouble with the system it is asked again after this time.
const PAUSE: Duration = Duration::from_millis(50);

/// A connection whose header is to come, and what has come of it.
pub type PendingConn = (handover_state::ConnectionState, TcpStream);

/// What has become of a newcomer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FilterResult {
    /// It is this one's. The header is read, and nothing else.
    Caller(Caller),
    /// Its header is none.
    Bad(BadHeader),
    /// It has waited longest of so many, and another has come.
    NoRoom(usize),
    /// It has ended without a word, in this way.
    Gone(Closed),
}

/// What the thread is told.
enum Order {
    Filter(PendingConn),
    /// To end by then, or when nobody waits any more, and to give the others back.
    End(Millis, Sender<Vec<PendingConn>>),
}

/// The way to the thread.
pub struct ProxyFilter {
    trusted: Vec<Network>,
    /// There until it is dropped.
    orders: Option<Sender<Order>>,
    wake: Arc<Waker>,
}

impl ProxyFilter {
    /// Starts the thread, for those who come from `trusted` networks, `most` of them at a time. What has become of each is
    /// told to `on_filtered`, which must not wait for anybody.
    pub fn start(
        trusted: Vec<Network>,
        most: usize,
        on_filtered: impl Fn(PendingConn, FilterResult) + Send + 'static,
    ) -> Result<Self, Error> {
        let wake = Arc::new(Waker::new()?);
        // Some of the room is for those whom the thread has not seen yet. Is that taken, the acceptors wait for the thread,
        // which waits for nobody, and who comes then waits in the backlog.
        let unseen = most / 8 + 1;
        let (sender, orders) = crossbeam_channel::bounded(unseen);
        let room = FilterThread {
            waiting: VecDeque::new(),
            most: most.saturating_sub(unseen).max(1),
            orders,
            wake: wake.clone(),
            ending: None,
            on_filtered,
        };
        thread::spawn("greeter", move || {
            let (left, to) = room.run();
            if let Some(to) = to {
                // Who asked for them waits for them.
                let _ = to.send(left);
            }
        })?;
        Ok(ProxyFilter {
            trusted,
            orders: Some(sender),
            wake,
        })
    }

    /// Whether it is to greet those who come from there.
    pub fn trusts(&self, peer: IpAddr) -> bool {
        self.trusted.iter().any(|network| network.contains(peer))
    }

    /// Has it wait for the header of a connection that was just accepted.
    pub fn receive(&self, number: u64, stream: TcpStream, peer: SocketAddr) {
        let mut client = handover_state::ConnectionState::new(number, peer);
        client.awaits_proxy_header = true;
        self.go_on((client, stream));
    }

    /// The same with one of whom another process may have read a part.
    pub fn go_on(&self, pending: PendingConn) {
        self.order(Order::Filter(pending));
    }

    /// Ends the thread: those who wait have so long, and are given back then. The acceptors must have ended.
    pub fn end(self, patience: Duration) -> Vec<PendingConn> {
        let (to, left) = crossbeam_channel::bounded(1);
        self.order(Order::End(Millis::now().after(patience), to));
        left.recv().unwrap_or_default()
    }

    fn order(&self, order: Order) {
        if let Some(orders) = &self.orders {
            // It fails only if the thread is gone, and then the connection is closed.
            let _ = orders.send(order);
        }
        self.wake.wake();
    }
}

impl Drop for ProxyFilter {
    fn drop(&mut self) {
        self.orders = None;
        self.wake.wake();
    }
}

/// One that waits, and for how long.
struct Waiting {
    pending: PendingConn,
    until: Millis,
}

/// Where they wait, the one that has waited longest first.
struct FilterThread<G> {
    waiting: VecDeque<Waiting>,
    most: usize,
    orders: Receiver<Order>,
    wake: Arc<Waker>,
    ending: Option<(Millis, Sender<Vec<PendingConn>>)>,
    on_filtered: G,
}

impl<G: Fn(PendingConn, FilterResult)> FilterThread<G> {
    /// Returns who is left, and who wants them. With what tells of the others, the door is let go of before that.
    fn run(mut self) -> (Vec<PendingConn>, Option<Sender<Vec<PendingConn>>>) {
        // A panic costs those that wait, and is logged by the hook; whoever comes then is greeted.
        while catch_unwind(AssertUnwindSafe(|| self.serve())).is_err() {
            self.waiting.clear();
            std::thread::sleep(PAUSE);
        }
        let left = self.waiting.into_iter().map(|waiting| waiting.pending);
        (left.collect(), self.ending.map(|(_, to)| to))
    }

    /// Greets everybody until it is to end.
    fn serve(&mut self) {
        loop {
            let ready = self.wait();
            let now = Millis::now();
            let is_late = self.waiting.front().is_some_and(|first| now >= first.until);
            if is_late || ready.contains(&true) {
                let all = std::mem::take(&mut self.waiting);
                for (waiting, ready) in all.into_iter().zip(ready) {
                    if ready || now >= waiting.until {
                        self.try_read_header(waiting, now);
                    } else {
                        self.waiting.push_back(waiting);
                    }
                }
            }
            // No more than these, or a flood of them would keep it from those who wait.
            for _ in 0..=self.orders.capacity().unwrap_or_default() {
                match self.orders.try_recv() {
                    Ok(Order::Filter(pending)) => self.admit_pending(pending),
                    Ok(Order::End(until, to)) => self.ending = Some((until, to)),
                    Err(TryRecvError::Empty) => break,
                    Err(TryRecvError::Disconnected) if self.ending.is_none() => return,
                    Err(TryRecvError::Disconnected) => break,
                }
            }
            if let Some((until, _)) = &self.ending
                && self.orders.is_empty()
                && (self.waiting.is_empty() || Millis::now() >= *until)
            {
                return;
            }
        }
    }

    /// Most have sent their header when they are seen here.
    fn admit_pending(&mut self, pending: PendingConn) {
        let now = Millis::now();
        let until = now.after(PATIENCE);
        self.try_read_header(Waiting { pending, until }, now);
        if self.waiting.len() > self.most
            && let Some(first) = self.waiting.pop_front()
        {
            (self.on_filtered)(first.pending, FilterResult::NoRoom(self.most));
        }
    }

    /// Reads what has come, and tells what has become of it. Else it waits on.
    fn try_read_header(&mut self, mut waiting: Waiting, now: Millis) {
        let (client, stream) = &mut waiting.pending;
        match read(stream, &mut client.read_buffer) {
            Some(result) => (self.on_filtered)(waiting.pending, result),
            None if now >= waiting.until => {
                (self.on_filtered)(waiting.pending, FilterResult::Bad(BadHeader::Late));
            }
            None => self.waiting.push_back(waiting),
        }
    }

    /// Waits until there is something to do, and says which of those who wait have sent something.
    fn wait(&mut self) -> Vec<bool> {
        let mut polled = vec![PollFd::new(&*self.wake, PollFlags::IN)];
        for waiting in &self.waiting {
            polled.push(PollFd::new(&waiting.pending.1, PollFlags::IN));
        }
        let first = self.waiting.front().map(|first| first.until);
        let ends = self.ending.as_ref().map(|(until, _)| *until);
        let next = [first, ends].into_iter().flatten().min();
        let time = match next {
            _ if !self.orders.is_empty() => Some(Duration::ZERO),
            // A little more: this clock goes in steps, and would be just before the time.
            next => next.map(|next| next.since(Millis::now()) + Duration::from_millis(1)),
        };
        let time = time.and_then(|time| Timespec::try_from(time).ok());
        match poll(&mut polled, time.as_ref()) {
            Ok(_) => {}
            Err(Errno::INTR) => return vec![false; self.waiting.len()],
            Err(_) => {
                drop(polled);
                // There may be more of them than there may be by now (poll(2)): each is looked at.
                std::thread::sleep(PAUSE);
                return vec![true; self.waiting.len()];
            }
        }
        let mut ready = polled.iter().map(|fd| !fd.revents().is_empty());
        if ready.next() == Some(true) {
            self.wake.clear();
        }
        ready.collect()
    }
}

/// Reads of a header what has come of it, beginning with what has been read before. Nothing if it is not whole yet.
fn read(stream: &TcpStream, header: &mut Vec<u8>) -> Option<FilterResult> {
    loop {
        let mut bytes = [0; LONGEST_BINARY];
        let before = header.len();
        let Some(room) = bytes.get_mut(before..).filter(|room| !room.is_empty()) else {
            return Some(FilterResult::Bad(BadHeader::TooLong));
        };
        // They are looked at first: what follows the header must stay where it is.
        let seen = match rustix::net::recv(stream, room, RecvFlags::PEEK | RecvFlags::DONTWAIT) {
            Ok((0, _)) if before == 0 => return Some(FilterResult::Gone(Closed::Left)),
            Ok((0, _)) => return Some(FilterResult::Bad(BadHeader::Malformed)),
            Ok((seen, _)) => seen,
            Err(Errno::AGAIN) => return None,
            Err(Errno::INTR) => continue,
            Err(Errno::CONNRESET) => return Some(FilterResult::Gone(Closed::Reset)),
            Err(_) => return Some(FilterResult::Gone(Closed::Failed)),
        };
        bytes[..before].copy_from_slice(header);
        let (caller, length) = match find(&bytes[..before + seen]) {
            Found::Part => (None, before + seen),
            Found::Header(caller, length) => (Some(caller), length),
            Found::Bad(bad) => return Some(FilterResult::Bad(bad)),
        };
        while header.len() < length {
            let mut taken = [0; LONGEST_BINARY];
            let rest = &mut taken[header.len()..length];
            match rustix::net::recv(stream, rest, RecvFlags::DONTWAIT) {
                Ok((0, _)) => return Some(FilterResult::Gone(Closed::Failed)),
                Ok((more, _)) => header.extend_from_slice(&bytes[header.len()..][..more]),
                Err(Errno::INTR) => {}
                // They have been seen, and nobody else reads here.
                Err(_) => return Some(FilterResult::Gone(Closed::Failed)),
            }
        }
        if let Some(caller) = caller {
            *header = Vec::new();
            return Some(FilterResult::Caller(caller));
        }
    }
}
