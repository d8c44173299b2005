//! Session: the one driver of all protocols. It reads what a client sends, lets the connection's
//! codec answer it, and sends the replies, until the client leaves, or the server closes or
//! releases the connection.

mod ending;
mod read_buffer;
pub mod scoreboard;

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use crossbeam_channel::Sender;
use rustix::io::Errno;
use rustix::net::{RecvFlags, SendFlags};

use self::read_buffer::ReadBuffer;
use crate::log_throttle::{Incident, Incidents};
use crate::metrics::{Metrics, Shard};
use crate::protocol::Next;
use crate::session::scoreboard::{Activity, Phase, ReaperWaker, Scoreboard, WorkerSlot};
use crate::transport::connection::{Connection, Transport};
use crate::transport::lingering_close::LingeringClose;
use shared::clock::Millis;
use shared::command::{BatchCounters, Context};

/// Maximum capacity of the reply buffer between two reads; a larger buffer is freed.
const REPLIES_KEPT: usize = 8 * 1024;

/// Number of reads from a client before the others have their turn, where one thread serves many.
const READS_PER_TURN: u32 = 16;

/// The reaper learns of a client's time limit this late without harm: the front keeps a silent
/// client for less.
const JUST_NOW: Duration = Duration::from_millis(100);

/// A client whose last request is younger than this is probably still sending.
const RECENTLY: Duration = Duration::from_secs(1);

/// Time that a client whose connection can't be moved has to take its replies in a handover.
const HANDOVER_WRITE_TIMEOUT: Duration = Duration::from_secs(1);

/// What the threads of one server share: front, workers and all that watch them.
#[derive(Clone)]
pub struct Shared {
    /// Slots and phase of the workers.
    pub scoreboard: Arc<Scoreboard>,
    /// Wakes the reaper.
    pub reaper_waker: ReaperWaker,
    /// Throttled warnings.
    pub incidents: Arc<Incidents>,
    /// The server's counters.
    pub metrics: Arc<Metrics>,
    /// Lingering close for the sockets of finished sessions and of refused clients.
    pub linger: LingeringClose,
}

impl Shared {
    /// Records one of the [`incidents`](Self::incidents), of which the reaper logs the end.
    pub fn record(&self, incident: &Incident, detail: &dyn fmt::Display) {
        if incident.record(detail) {
            self.reaper_waker.wake();
        }
    }
}

/// Everything that the workers need to serve clients.
#[derive(Clone)]
pub struct Service {
    /// What all threads share.
    pub shared: Shared,
    /// Context of the commands.
    pub context: Context,
    /// Receives released connections, open and with unread input.
    pub released: Sender<Connection>,
    /// Time without a request after which a client is closed; zero: never. Here it only selects the
    /// error message and the metric.
    pub idle_timeout: Duration,
}

/// Reason for the end of a session.
#[derive(Debug)]
pub enum CloseReason {
    /// The client closed, and everything that it had sent was answered.
    PeerClosed,
    /// The client asked for it, by `QUIT`.
    ByCommand,
    /// The client broke the protocol, such as by a line that is too long.
    ProtocolError,
    /// The reaper requested the close. The client has been idle for this time.
    Idle(Duration),
    /// The client took no replies for too long, or the drain is over.
    Aborted,
    /// The connection failed.
    Broken(Errno),
    /// The server drains, and everything that had arrived was answered.
    Finished {
        /// Whether the client sent a request a short while ago.
        recently: bool,
    },
    /// The connection continues in another thread or process.
    Released,
    /// The same, and the next request in the buffer has to wait for something.
    Deferred,
    /// The same, and the client has sent more than its turn allows.
    TurnOver,
}

impl CloseReason {
    /// Returns whether the connection goes on elsewhere.
    pub fn is_release(&self) -> bool {
        use CloseReason::{Deferred, Released, TurnOver};
        matches!(self, Released | Deferred | TurnOver)
    }
}

/// One session: a connection and the worker that serves it.
struct Session<'a, T> {
    service: &'a Service,
    connection: &'a mut Connection<T>,
    slot: &'a WorkerSlot,
    shard: &'a Shard,
    buffer: ReadBuffer,
    /// Whether the codec is called before anything that is still unread: it has a deferred request,
    /// or the buffer holds inherited input.
    resumes: bool,
    /// How long to wait for input, if not for as long as the client likes.
    watch: Option<Watch>,
    /// In a drain: number of bytes that had arrived when it began, and are still unread.
    unread_at_drain: Option<usize>,
    /// Whether one last non-blocking read was done after the close request.
    final_read_done: bool,
}

/// Milliseconds after which the codec is called without input. Small, because it is on the stack of
/// each worker.
#[derive(Clone, Copy, PartialEq)]
struct Watch(u16);

impl Watch {
    /// The codec is called again at once: [`Next::Again`].
    const AGAIN: Watch = Watch(0);
}

/// What a read has brought.
struct Received {
    bytes: usize,
    /// Whether the client sends no more.
    is_last: bool,
    /// Whether more may have arrived than was read.
    may_be_more: bool,
    phase: Phase,
}

impl Service {
    /// Serves `connection` until it ends or the worker must release it.
    // Not inlined: the stack of a waiting worker is memory that each idle client costs, and a page
    // more or less is half of it.
    #[inline(never)]
    pub fn serve<T: Transport>(
        &self,
        connection: &mut Connection<T>,
        slot: &WorkerSlot,
    ) -> CloseReason {
        // Before the session: otherwise the stack would have its buffer twice.
        let resumes = std::mem::take(&mut connection.client.deferred)
            || !connection.client.read_buffer.is_empty();
        let mut session = Session {
            service: self,
            slot,
            shard: self.shared.metrics.shard(slot.id()),
            buffer: ReadBuffer::new(),
            resumes,
            watch: None,
            unread_at_drain: None,
            final_read_done: false,
            connection,
        };
        let reason = match session.begin() {
            Ok(()) => session.run(),
            Err(reason) => reason,
        };
        if reason.is_release() {
            session.store_unanswered();
        }
        reason
    }
}

impl<T: Transport> Session<'_, T> {
    /// Takes over the connection, and sends the replies that another worker could not send.
    fn begin(&mut self) -> Result<(), CloseReason> {
        self.buffer
            .resume(&std::mem::take(&mut self.connection.client.read_buffer));
        if let Some(since) = self.connection.waiting.take() {
            self.shard.waited(since);
        }
        match self.connection.client.active.take() {
            None => self.slot.set(Activity::Reading),
            Some(active) => {
                self.slot.set_since(Activity::Reading, active);
                if Millis::now().since(active) > JUST_NOW {
                    // The reaper does not expect this session's time limit to be so close.
                    self.service.shared.reaper_waker.wake();
                }
            }
        }
        if !self.connection.client.replies.is_empty() {
            let shard = self.shard;
            self.send(|sent| shard.sent(sent))?;
            if self.connection.client.close_after_write {
                return Err(CloseReason::ByCommand);
            }
        }
        Ok(())
    }

    /// Reads and answers until the session ends.
    #[inline]
    fn run(&mut self) -> CloseReason {
        let mut reads = 0;
        loop {
            let received = match self.receive() {
                Ok(Some(received)) => received,
                Ok(None) => continue,
                Err(reason) => return reason,
            };
            if let Err(reason) = self.answer(&received) {
                return reason;
            }
            if received.phase == Phase::ServeReady {
                reads += 1;
                if !received.may_be_more {
                    return self.release();
                }
                if reads == READS_PER_TURN {
                    self.release();
                    return CloseReason::TurnOver;
                }
            }
            if let Some(unread) = &mut self.unread_at_drain {
                if *unread == 0 && self.watch != Some(Watch::AGAIN) {
                    return self.finish(received.phase);
                }
                *unread = unread.saturating_sub(received.bytes);
            }
        }
    }

    /// Waits for input, as the phase and the reaper allow. Returns `None` after an interrupt.
    #[inline]
    fn receive(&mut self) -> Result<Option<Received>, CloseReason> {
        let state = self.slot.state();
        let close_requested = state.close_requested();
        let idle = || CloseReason::Idle(Millis::now().since(state.since()));
        if close_requested && self.final_read_done {
            return Err(idle());
        }
        // Inherited input does not count as that last read.
        self.final_read_done = close_requested && !self.resumes;
        let phase = self.phase();
        let flags = match phase {
            Phase::Serve if close_requested => RecvFlags::DONTWAIT,
            Phase::Serve => RecvFlags::empty(),
            Phase::ServeReady => RecvFlags::DONTWAIT,
            Phase::Drain | Phase::DrainThenDetach => {
                if self.unread_at_drain.is_none() {
                    self.begin_drain();
                }
                match self.watch {
                    // The codec ends the connection with its client.
                    Some(_) => RecvFlags::empty(),
                    None => RecvFlags::DONTWAIT,
                }
            }
            Phase::Detach => return Err(self.release()),
            Phase::Abort => return Err(CloseReason::Aborted),
        };
        let mut resumed = std::mem::take(&mut self.resumes);
        let read = match self.watch {
            _ if resumed => Ok(0),
            Some(Watch(time)) if flags.is_empty() => self.watch(time, &mut resumed),
            _ => self.connection.read(self.buffer.room(), flags),
        };
        let bytes = match read {
            Ok(bytes) => bytes,
            Err(Errno::INTR) => {
                self.slot.ack();
                return Ok(None);
            }
            Err(Errno::AGAIN) if phase == Phase::Serve => return Err(idle()),
            Err(Errno::AGAIN) => return Err(self.finish(phase)),
            Err(error) => return Err(CloseReason::Broken(error)),
        };
        self.buffer.fill(bytes);
        Ok(Some(Received {
            bytes,
            is_last: bytes == 0 && !resumed,
            may_be_more: resumed || self.buffer.room().is_empty(),
            phase,
        }))
    }

    /// Notes how much of the input is still to be answered, unless the codec decides that itself.
    #[cold]
    fn begin_drain(&mut self) {
        let is_codecs = self.connection.drain();
        self.resumes |= is_codecs;
        self.unread_at_drain = Some(match is_codecs {
            true => usize::MAX,
            false => self.connection.unread(),
        });
    }

    /// Reads when there is input. Sets `resumes` if there is none for this time.
    #[cold]
    fn watch(&mut self, time: u16, resumes: &mut bool) -> Result<usize, Errno> {
        let time = Duration::from_millis(time.into());
        if self.buffer.room().is_empty() {
            *resumes = true;
            return Ok(0);
        }
        let has_input = match self.connection.wait(time) {
            // In a drain, the reaper interrupts more often than that.
            Err(Errno::INTR) if self.unread_at_drain.is_some() => {
                self.slot.ack();
                false
            }
            waited => waited?,
        };
        if has_input {
            let read = self
                .connection
                .read(self.buffer.room(), RecvFlags::DONTWAIT);
            // Nothing is there after all: as if the wait had been interrupted.
            return read.map_err(|error| match error {
                Errno::AGAIN => Errno::INTR,
                error => error,
            });
        }
        self.slot.set(Activity::Reading);
        *resumes = true;
        Ok(0)
    }

    /// Returns what to do with this client. One that can't be moved is drained instead.
    #[inline]
    fn phase(&self) -> Phase {
        match self.service.shared.scoreboard.phase() {
            Phase::Detach | Phase::DrainThenDetach if !self.connection.is_movable() => Phase::Drain,
            phase => phase,
        }
    }

    /// Returns whether a handover waits for a client that takes no replies.
    fn delays_handover(&self) -> bool {
        let phase = self.service.shared.scoreboard.phase();
        matches!(phase, Phase::Detach | Phase::DrainThenDetach)
            && Millis::now().since(self.slot.state().since()) >= HANDOVER_WRITE_TIMEOUT
    }

    /// Lets the codec answer what was read, and sends its replies.
    #[inline]
    fn answer(&mut self, received: &Received) -> Result<(), CloseReason> {
        let begun = self.buffer.read_at;
        let mut counters = BatchCounters::new();
        let progress = self.connection.receive(
            self.buffer.input(received.is_last),
            begun,
            &self.service.context,
            &mut counters,
        );
        self.buffer.keep_from(progress.used);
        let reason = match progress.next {
            Next::Again => {
                self.watch = Some(Watch::AGAIN);
                None
            }
            Next::More | Next::MoreWithin(_) if received.is_last => Some(CloseReason::PeerClosed),
            Next::More => {
                self.watch = None;
                None
            }
            Next::MoreWithin(time) => {
                let time = u16::try_from(time.as_millis());
                self.watch = Some(Watch(time.unwrap_or(u16::MAX)));
                None
            }
            Next::Close => Some(CloseReason::ByCommand),
            Next::CloseBroken => Some(CloseReason::ProtocolError),
            Next::CloseFlood => Some(self.flooded()),
            Next::Defer => Some(CloseReason::Deferred),
        };
        let protocol = self.connection.protocol.into();
        if self.connection.client.replies.is_empty() {
            self.shard
                .answered(protocol, &counters, begun, received.bytes, 0);
        } else {
            // What asks nothing, such as a ping, keeps no idle client.
            if self.watch.is_some() || !counters.is_empty() {
                self.slot.set(Activity::Reading);
            }
            // Counts before any wait for the client to take the replies.
            let shard = self.shard;
            let count = |sent| shard.answered(protocol, &counters, begun, received.bytes, sent);
            if let Err(cut_short) = self.send(count) {
                // The next server of the connection sees the end of the input itself, but not this
                // end.
                self.connection.client.close_after_write = matches!(
                    reason,
                    Some(CloseReason::ByCommand | CloseReason::ProtocolError)
                );
                return Err(cut_short);
            }
            let replies = &mut self.connection.client.replies;
            if replies.capacity() > REPLIES_KEPT {
                *replies = Vec::new();
            }
        }
        match reason {
            None if self.buffer.room().is_empty() && self.watch != Some(Watch::AGAIN) => {
                Err(full_buffer())
            }
            None => Ok(()),
            Some(reason) => {
                if matches!(reason, CloseReason::Deferred) {
                    self.connection.client.deferred = true;
                    self.release();
                }
                Err(reason)
            }
        }
    }

    /// Writes all replies, in one call if the client keeps up. Calls `count` with the number of
    /// bytes that the call wrote.
    #[inline]
    fn send(&mut self, count: impl FnOnce(usize)) -> Result<(), CloseReason> {
        let sent = self.connection.write_replies(0, SendFlags::DONTWAIT);
        count(sent.unwrap_or(0));
        match sent {
            Ok(written) if written == self.connection.client.replies.len() => {}
            Ok(written) => self.send_slowly(written)?,
            Err(Errno::AGAIN | Errno::INTR) => self.send_slowly(0)?,
            Err(error) => return Err(CloseReason::Broken(error)),
        }
        self.connection.client.replies.clear();
        Ok(())
    }

    /// Writes the replies after the first `written` bytes to a slow client, for as long as the
    /// reaper allows. If the worker must release the connection, the rest stays in `replies`.
    #[cold]
    fn send_slowly(&mut self, mut written: usize) -> Result<(), CloseReason> {
        self.slot.set(Activity::Writing);
        self.service.shared.reaper_waker.wake();
        while written < self.connection.client.replies.len() {
            match self.phase() {
                _ if self.slot.state().close_requested() => return Err(CloseReason::Aborted),
                Phase::Abort => return Err(CloseReason::Aborted),
                Phase::Drain if self.delays_handover() => return Err(CloseReason::Aborted),
                Phase::Detach | Phase::DrainThenDetach | Phase::ServeReady => {
                    self.connection.client.replies.drain(..written);
                    return Err(CloseReason::Released);
                }
                Phase::Serve | Phase::Drain => {}
            }
            match self.connection.write_replies(written, SendFlags::empty()) {
                Ok(more) => {
                    self.shard.sent(more);
                    written += more;
                }
                Err(Errno::INTR) => self.slot.ack(),
                Err(error) => return Err(CloseReason::Broken(error)),
            }
        }
        self.slot.set(Activity::Reading);
        Ok(())
    }

    /// Logs that the client sends too much that asks nothing, or takes nothing.
    #[cold]
    fn flooded(&self) -> CloseReason {
        let (client, shared) = (&self.connection.client, &self.service.shared);
        let detail = format!("connection {} from {}", client.number, client.peer);
        shared.record(&shared.incidents.flooded, &detail);
        CloseReason::ProtocolError
    }

    /// Releases the connection between two requests: its idle time continues elsewhere.
    #[cold]
    fn release(&mut self) -> CloseReason {
        self.connection.client.active = Some(self.slot.state().since());
        if self.watch.is_some() {
            // The codec says again how long to wait.
            self.connection.client.deferred = true;
        }
        CloseReason::Released
    }

    /// Stores the unanswered input in the connection for its next session.
    #[cold]
    fn store_unanswered(&mut self) {
        self.connection.client.read_buffer = self.buffer.unused().to_vec();
        // It may be released before the codec was called.
        self.connection.client.deferred |= self.resumes;
    }

    /// Returns the reason for the end of a session whose whole input is answered.
    #[cold]
    fn finish(&mut self, phase: Phase) -> CloseReason {
        match phase {
            Phase::DrainThenDetach | Phase::ServeReady => self.release(),
            _ => CloseReason::Finished {
                recently: Millis::now().since(self.slot.state().since()) < RECENTLY,
            },
        }
    }
}

/// A codec that uses nothing of a full buffer breaks its contract: a read into no room would look
/// like the end of the input.
#[cold]
fn full_buffer() -> CloseReason {
    debug_assert!(false, "a codec used nothing of a full buffer");
    CloseReason::Broken(Errno::NOBUFS)
}

#[cfg(test)]
mod tests {
    use std::cell::RefCell;
    use std::net::{Ipv4Addr, SocketAddr};
    use std::time::Duration;

    use super::*;
    use crate::protocol::line::LineProtocol;
    use crate::transport::clients::Clients;
    use shared::command::sets::server;

    /// A socket whose request arrives together with the close request.
    struct Late<'a> {
        slot: &'a WorkerSlot,
        input: RefCell<Vec<u8>>,
        sent: RefCell<Vec<u8>>,
    }

    impl Transport for Late<'_> {
        fn read(&mut self, buffer: &mut [u8], flags: RecvFlags) -> Result<usize, Errno> {
            if flags.is_empty() {
                assert!(self.slot.request_close(self.slot.state()), "it reads on");
                return Err(Errno::INTR);
            }
            let input = std::mem::take(&mut *self.input.borrow_mut());
            if input.is_empty() {
                return Err(Errno::AGAIN);
            }
            buffer[..input.len()].copy_from_slice(&input);
            Ok(input.len())
        }

        fn wait(&self, _: Duration) -> Result<bool, Errno> {
            Ok(true)
        }

        fn write(&mut self, bytes: &[u8], _: SendFlags) -> Result<usize, Errno> {
            self.sent.borrow_mut().extend_from_slice(bytes);
            Ok(bytes.len())
        }

        fn unread(&self) -> Result<u64, Errno> {
            Ok(self.input.borrow().len() as u64)
        }

        fn is_movable(&self) -> bool {
            true
        }
    }

    #[test]
    fn a_request_that_comes_with_the_close_request_is_answered() {
        let clients = Clients::new(1, 0);
        let (reaper_waker, _wakes) = ReaperWaker::new();
        let service = Service {
            shared: Shared {
                scoreboard: Arc::new(Scoreboard::new(1)),
                reaper_waker,
                incidents: Arc::default(),
                metrics: Arc::default(),
                linger: LingeringClose::default(),
            },
            context: Context::new(clients.count(), uuid::Uuid::new_v4(), &[server::SET]),
            released: crossbeam_channel::unbounded().0,
            idle_timeout: Duration::ZERO,
        };
        let slot = &service.shared.scoreboard.slots()[0];
        for (input, replies) in [("WHY\n", "42\n"), ("\nWH", ""), ("", "")] {
            let late = Late {
                slot,
                input: RefCell::new(input.into()),
                sent: RefCell::default(),
            };
            let peer = SocketAddr::from((Ipv4Addr::LOCALHOST, 1));
            let guard = clients.admit(peer.ip(), true).unwrap();
            let mut connection = Connection::new(1, &LineProtocol, late, peer, guard);
            let ended = service.serve(&mut connection, slot);
            assert!(matches!(ended, CloseReason::Idle(_)), "{ended:?}");
            assert_eq!(*connection.transport().sent.borrow(), replies.as_bytes());
        }
    }
}
