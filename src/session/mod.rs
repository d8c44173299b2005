//! Session: reads, executes and answers the requests of one client, until the client leaves, or the
//! server closes or releases the connection.

mod ending;
mod input;
pub mod scoreboard;

use std::sync::Arc;
use std::time::Duration;

use crossbeam_channel::Sender;
use rustix::io::Errno;
use rustix::net::{RecvFlags, SendFlags};

pub use self::ending::reject;
use self::input::Input;
use crate::log_throttle::Incidents;
use crate::metrics::Metrics;
use crate::protocol::line::{self, Found, LONGEST_REQUEST};
use crate::request_log::RequestLog;
use crate::session::scoreboard::{Activity, Phase, ReaperWaker, Scoreboard, WorkerSlot};
use crate::transport::connection::{Connection, Socket};
use crate::transport::lingering_close::LingeringClose;
use shared::clock::{Millis, Nanos};
use shared::command::{BatchCounters, CommandError, Context, Outcome};

/// Maximum capacity of the reply buffer between two reads; a larger buffer is freed.
const REPLIES_KEPT: usize = 8 * 1024;

/// A client whose last request is younger than this is probably still sending.
const RECENTLY: Duration = Duration::from_secs(1);

/// Everything that the workers need to serve clients.
#[derive(Clone)]
pub struct Service {
    /// Context of the commands.
    pub context: Context,
    /// Slots and phase of the workers.
    pub scoreboard: Arc<Scoreboard>,
    /// Wakes the reaper.
    pub alarm: ReaperWaker,
    /// Throttled warnings.
    pub incidents: Arc<Incidents>,
    /// The server's counters.
    pub metrics: Arc<Metrics>,
    /// Lingering close for the sockets of finished sessions.
    pub linger: LingeringClose,
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
    /// The client sent `QUIT`.
    ByCommand,
    /// The client sent a line that is too long.
    TooLong,
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
}

impl Service {
    /// Serves `connection` until it ends or the worker must release it.
    // Not inlined: the stack of a waiting worker is memory that each idle client costs, and a page
    // more or less is half of it.
    #[inline(never)]
    pub fn serve<S: Socket>(
        &self,
        connection: &mut Connection<S>,
        slot: &WorkerSlot,
    ) -> CloseReason {
        let mut input = Input::new();
        input.resume(&std::mem::take(&mut connection.client.read_buffer));
        // The buffer may hold whole lines, which come before anything that is still unread.
        let mut resumes = input.filled > 0;
        let mut log = RequestLog::new(connection.client.number);
        let share = self.metrics.shard(slot.id());
        if let Some(since) = connection.waiting.take() {
            share.waited(since);
        }
        // In a drain: bytes that had arrived when it began, and are still unread.
        let mut due = None;
        // Whether one last non-blocking read was done after the close request.
        let mut looked = false;
        match connection.client.active.take() {
            None => slot.set(Activity::Reading),
            Some(active) => {
                slot.set_since(Activity::Reading, active);
                // The reaper does not expect this session's time limit to be so close.
                self.alarm.wake();
            }
        }
        if !connection.client.replies.is_empty() {
            if let Err(ended) = self.send(connection, slot, &mut |sent| share.sent(sent)) {
                return input.let_go(connection, ended);
            }
            connection.client.replies.clear();
            if connection.client.close_after_write {
                return CloseReason::ByCommand;
            }
        }
        loop {
            let state = slot.state();
            let ordered = state.close_requested();
            let idle = || CloseReason::Idle(Millis::now().since(state.since()));
            if ordered && looked {
                return idle();
            }
            // Inherited input does not count as that last read.
            looked = ordered && !resumes;
            let phase = self.scoreboard.phase();
            let flags = match phase {
                Phase::Serve if ordered => RecvFlags::DONTWAIT,
                Phase::Serve => RecvFlags::empty(),
                Phase::Drain | Phase::DrainThenDetach => {
                    due.get_or_insert_with(|| connection.unread());
                    RecvFlags::DONTWAIT
                }
                Phase::Detach => return input.release(connection, slot),
                Phase::Abort => return CloseReason::Aborted,
            };
            let resumed = std::mem::take(&mut resumes);
            let read = match resumed {
                true => Ok(0),
                false => connection.read(&mut input.bytes[input.filled..], flags),
            };
            let read = match read {
                Ok(read) => read,
                Err(Errno::INTR) => {
                    slot.ack();
                    continue;
                }
                Err(Errno::AGAIN) if phase == Phase::Serve => return idle(),
                Err(Errno::AGAIN) => return finished(connection, &input, slot, phase),
                Err(error) => return CloseReason::Broken(error),
            };
            let begun = Nanos::now();
            input.read_at = begun;
            input.filled += read;
            let at_end = read == 0 && !resumed;

            let replies = &mut connection.client.replies;
            let mut tally = BatchCounters::new();
            let end = if RequestLog::is_kept() {
                self.answer::<true>(&mut input, at_end, slot, replies, &mut tally, &mut log)
            } else {
                self.answer::<false>(&mut input, at_end, slot, replies, &mut tally, &mut log)
            };
            if replies.is_empty() {
                share.answered(&tally, begun, read, 0);
            } else {
                // Counts before any wait for the client to take the replies.
                let mut count = |sent| share.answered(&tally, begun, read, sent);
                if let Err(ended) = self.send(connection, slot, &mut count) {
                    // The next server of the connection sees the end of the input itself, but not
                    // this end.
                    connection.client.close_after_write =
                        matches!(end, Some(CloseReason::ByCommand | CloseReason::TooLong));
                    return input.let_go(connection, ended);
                }
                let replies = &mut connection.client.replies;
                replies.clear();
                if replies.capacity() > REPLIES_KEPT {
                    *replies = Vec::new();
                }
            }
            match end {
                None => {}
                Some(CloseReason::Released) => return input.release(connection, slot),
                Some(end) => return end,
            }
            if let Some(due) = &mut due {
                if *due == 0 {
                    return finished(connection, &input, slot, phase);
                }
                *due = due.saturating_sub(read);
            }
        }
    }

    /// Answers all whole lines up to a deferred one; at the `end` of the input, the last line may
    /// lack its LF. Returns the reason if the session ends.
    #[inline]
    fn answer<const LOGS: bool>(
        &self,
        input: &mut Input,
        end: bool,
        slot: &WorkerSlot,
        replies: &mut Vec<u8>,
        tally: &mut BatchCounters,
        log: &mut RequestLog,
    ) -> Option<CloseReason> {
        let mut used = 0;
        let mut ended = None;
        while ended.is_none() {
            let bytes = &input.bytes[used..input.filled];
            let found = match line::find(bytes, std::mem::take(&mut input.searched)) {
                Found::Part if end => {
                    ended = Some(CloseReason::PeerClosed);
                    line::last(bytes)
                }
                found => found,
            };
            match found {
                Found::Line { line, length } => {
                    let (request, before) = (used..used + length, replies.len());
                    let answered = line::answer(&self.context, line, input.read_at, replies);
                    if answered.outcome == Outcome::DEFERRED {
                        ended = Some(CloseReason::Released);
                        break;
                    }
                    used += length;
                    tally.note(answered.outcome);
                    if answered.close_after_write {
                        ended = Some(CloseReason::ByCommand);
                    }
                    if LOGS {
                        log.note(&input.bytes[request], &replies[before..]);
                    }
                }
                Found::Part => break,
                Found::TooLong => {
                    let refusal = CommandError::TooLong(LONGEST_REQUEST);
                    line::write_refusal(&refusal, replies);
                    tally.note(Outcome::refused(None, &refusal));
                    ended = Some(CloseReason::TooLong);
                }
            }
        }
        input.keep_from(used);
        if !replies.is_empty() {
            slot.set(Activity::Reading);
        }
        ended
    }

    /// Writes all replies, in one call if the client keeps up. Calls `count` with the number of
    /// bytes that the call wrote.
    #[inline]
    fn send<S: Socket>(
        &self,
        connection: &mut Connection<S>,
        slot: &WorkerSlot,
        count: &mut impl FnMut(usize),
    ) -> Result<(), CloseReason> {
        let sent = connection.write(&connection.client.replies, SendFlags::DONTWAIT);
        count(sent.unwrap_or(0));
        match sent {
            Ok(written) if written == connection.client.replies.len() => Ok(()),
            Ok(written) => self.send_slowly(connection, slot, written),
            Err(Errno::AGAIN | Errno::INTR) => self.send_slowly(connection, slot, 0),
            Err(error) => Err(CloseReason::Broken(error)),
        }
    }

    /// Writes the replies after the first `written` bytes to a slow client, for as long as the
    /// reaper allows. If the worker must release the connection, the rest stays in `replies`.
    #[cold]
    fn send_slowly<S: Socket>(
        &self,
        connection: &mut Connection<S>,
        slot: &WorkerSlot,
        mut written: usize,
    ) -> Result<(), CloseReason> {
        slot.set(Activity::Writing);
        self.alarm.wake();
        while written < connection.client.replies.len() {
            match self.scoreboard.phase() {
                _ if slot.state().close_requested() => return Err(CloseReason::Aborted),
                Phase::Abort => return Err(CloseReason::Aborted),
                Phase::Detach | Phase::DrainThenDetach => {
                    connection.client.replies.drain(..written);
                    return Err(CloseReason::Released);
                }
                Phase::Serve | Phase::Drain => {}
            }
            match connection.write(&connection.client.replies[written..], SendFlags::empty()) {
                Ok(more) => {
                    self.metrics.shard(slot.id()).sent(more);
                    written += more;
                }
                Err(Errno::INTR) => slot.ack(),
                Err(error) => return Err(CloseReason::Broken(error)),
            }
        }
        slot.set(Activity::Reading);
        Ok(())
    }
}

/// Returns the reason for the end of a session whose whole input is answered.
#[cold]
fn finished<S>(
    connection: &mut Connection<S>,
    input: &Input,
    slot: &WorkerSlot,
    phase: Phase,
) -> CloseReason {
    if phase == Phase::DrainThenDetach {
        return input.release(connection, slot);
    }
    CloseReason::Finished {
        recently: Millis::now().since(slot.state().since()) < RECENTLY,
    }
}

#[cfg(test)]
mod tests {
    use std::cell::RefCell;
    use std::net::{Ipv4Addr, SocketAddr};
    use std::time::Duration;

    use super::*;
    use crate::transport::clients::Clients;
    use shared::command::sets::server;

    /// A socket whose request arrives together with the close request.
    struct Late<'a> {
        slot: &'a WorkerSlot,
        input: RefCell<Vec<u8>>,
        sent: RefCell<Vec<u8>>,
    }

    impl Socket for Late<'_> {
        fn recv(&self, buffer: &mut [u8], flags: RecvFlags) -> Result<usize, Errno> {
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

        fn send(&self, bytes: &[u8], _: SendFlags) -> Result<usize, Errno> {
            self.sent.borrow_mut().extend_from_slice(bytes);
            Ok(bytes.len())
        }

        fn unread(&self) -> Result<u64, Errno> {
            Ok(self.input.borrow().len() as u64)
        }
    }

    #[test]
    fn a_request_that_comes_with_the_order_to_end_is_answered() {
        let clients = Clients::new(1, 0);
        let (alarm, _alarms) = ReaperWaker::new();
        let (linger, _) = LingeringClose::start(1).unwrap();
        let (released, _) = crossbeam_channel::unbounded();
        let service = Service {
            context: Context::new(clients.count(), uuid::Uuid::new_v4(), &[server::SET]),
            scoreboard: Arc::new(Scoreboard::new(1)),
            alarm,
            incidents: Arc::default(),
            metrics: Arc::default(),
            linger,
            released,
            idle_timeout: Duration::ZERO,
        };
        let slot = &service.scoreboard.slots()[0];
        for (input, replies) in [("WHY\n", "42\n"), ("\nWH", ""), ("", "")] {
            let late = Late {
                slot,
                input: RefCell::new(input.into()),
                sent: RefCell::default(),
            };
            let peer = SocketAddr::from((Ipv4Addr::LOCALHOST, 1));
            let place = clients.admit(peer.ip()).unwrap();
            let mut connection = Connection::new(1, late, peer, place);
            let ended = service.serve(&mut connection, slot);
            assert!(matches!(ended, CloseReason::Idle(_)), "{ended:?}");
            assert_eq!(*connection.socket().sent.borrow(), replies.as_bytes());
        }
    }
}
