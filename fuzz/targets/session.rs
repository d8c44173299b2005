//! Fuzz target for a session, on a mock socket that behaves as badly as a real one may: short reads
//! and writes, interrupts, close requests, and the end of the server at any point.
//!
//! Bytes of the plan with a meaning beyond the size of a piece (see `piece`), in the first pass
//! over the plan:
//!
//! - `i`: the call is interrupted;
//! - `o`: the reaper requests that the connection is closed, then interrupts;
//! - `r`, `p`, `f`, `c`, `q`: the phase changes to detach, drain-then-detach, drain, abort or that
//!   of the front, then the call is interrupted;
//! - `b`: the connection breaks;
//! - `a`: the call would block (EAGAIN), if it is non-blocking.
#![no_main]

use std::cell::{Cell, RefCell};
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::{Arc, LazyLock};
use std::time::Duration;

use blockchain_tcpd::protocol::line::LineProtocol;
use blockchain_tcpd::session::scoreboard::{Phase, ReaperWaker, Scoreboard};
use blockchain_tcpd::session::{CloseReason, Service, Shared};
use blockchain_tcpd::transport::clients::Clients;
use blockchain_tcpd::transport::connection::{Connection, Transport};
use blockchain_tcpd::transport::lingering_close::LingeringClose;
use blockchain_tcpd_fuzz::{Expectation, context, part, piece};
use libfuzzer_sys::fuzz_target;
use rustix::io::Errno;
use rustix::net::{RecvFlags, SendFlags};

static CLIENTS: LazyLock<Clients> = LazyLock::new(|| Clients::new(1, 0));

static SERVICE: LazyLock<Service> = LazyLock::new(|| Service {
    context: context(),
    shared: Shared {
        scoreboard: Arc::new(Scoreboard::new(1)),
        reaper_waker: ReaperWaker::new().0,
        incidents: Arc::default(),
        metrics: Arc::default(),
        linger: LingeringClose::default(),
    },
    released: crossbeam_channel::unbounded().0,
    idle_timeout: Duration::ZERO,
});

fuzz_target!(|input: &[u8]| {
    let (plan, text) = part(input);
    let expected = Expectation::of(text);
    let peer = SocketAddr::from((Ipv4Addr::LOCALHOST, 1));
    let socket = Plan {
        plan: if plan.is_empty() { b"0" } else { plan },
        next: Cell::new(0),
        text: Cell::new(text),
        output: RefCell::default(),
        ended: Cell::new(false),
        reads: Cell::new(0),
        writes: Cell::new(0),
        releases: Cell::new(false),
    };
    let place = CLIENTS
        .admit(peer.ip(), true)
        .unwrap_or_else(|_| panic!("a place is lost"));
    let mut connection = Connection::new(1, &LineProtocol, socket, peer, place);
    let slot = &SERVICE.shared.scoreboard.slots()[0];
    loop {
        SERVICE.shared.scoreboard.set_phase(Phase::Serve);
        let ended = SERVICE.serve(&mut connection, slot);
        let phase = SERVICE.shared.scoreboard.phase();
        let socket = connection.transport();
        let output = socket.output.borrow();
        match ended {
            // A worker or the next process resumes the session.
            CloseReason::Released | CloseReason::TurnOver => {
                // Which may have changed again since, while replies were written.
                assert!(
                    socket.releases.take(),
                    "released in a phase that keeps clients"
                );
                assert!(
                    connection.client.close_after_write
                        || !connection.client.read_buffer.contains(&b'\n')
                );
                // The next process writes the unwritten replies with a call of its own.
                let all = [&output[..], &connection.client.replies].concat();
                expected.check_beginning(&all, true);
                if !connection.client.replies.is_empty() {
                    socket.reads.set(socket.reads.get() + 1);
                }
                continue;
            }
            CloseReason::Deferred => panic!("no request waits for anything"),
            CloseReason::PeerClosed => {
                assert!(!expected.close_after_write && socket.text.get().is_empty());
                expected.check(&output);
            }
            CloseReason::ByCommand | CloseReason::ProtocolError => {
                assert!(expected.close_after_write);
                expected.check(&output);
            }
            CloseReason::Finished { .. } => {
                assert_eq!(phase, Phase::Drain);
                expected.check_whole(&output);
            }
            CloseReason::Idle(_) => {
                assert!(slot.state().close_requested());
                expected.check_beginning(&output, true);
            }
            CloseReason::Aborted => {
                assert!(phase == Phase::Abort || slot.state().close_requested());
                expected.check_beginning(&output, false);
            }
            CloseReason::Broken(error) => {
                assert_eq!(error, Errno::CONNRESET);
                expected.check_beginning(&output, false);
            }
        }
        assert!(
            socket.writes.get() <= socket.reads.get(),
            "a write for each reply"
        );
        break;
    }
    connection.close();
});

/// Mock socket, and the client at its other end.
struct Plan<'a> {
    plan: &'a [u8],
    next: Cell<usize>,
    text: Cell<&'a [u8]>,
    output: RefCell<Vec<u8>>,
    /// Whether the end of the stream was read; each later read returns it again.
    ended: Cell<bool>,
    /// Number of reads that returned, data or the end.
    reads: Cell<usize>,
    /// Number of writes that start a batch of replies; retries after a short or interrupted write
    /// don't count.
    writes: Cell<usize>,
    /// Whether a phase came that lets the session release its connection.
    releases: Cell<bool>,
}

impl Plan<'_> {
    /// Returns the result of the next call, which could transfer `all` bytes.
    fn call(&self, all: usize, waits: bool) -> Result<usize, Errno> {
        let next = self.next.replace(self.next.get() + 1);
        let planned = self.plan[next % self.plan.len()];
        if next >= self.plan.len() {
            return Ok(piece(planned, all));
        }
        let board = &SERVICE.shared.scoreboard;
        match planned {
            b'i' => {}
            b'o' => {
                let slot = &board.slots()[0];
                slot.request_close(slot.state());
            }
            b'r' => self.release(Phase::Detach),
            b'p' => self.release(Phase::DrainThenDetach),
            b'f' => board.set_phase(Phase::Drain),
            b'c' => board.set_phase(Phase::Abort),
            b'q' => self.release(Phase::ServeReady),
            b'b' => return Err(Errno::CONNRESET),
            b'a' if !waits => return Err(Errno::AGAIN),
            planned => return Ok(piece(planned, all)),
        }
        Err(Errno::INTR)
    }

    /// Begins a phase that lets the session release its connection.
    fn release(&self, phase: Phase) {
        SERVICE.shared.scoreboard.set_phase(phase);
        self.releases.set(true);
    }
}

impl Transport for Plan<'_> {
    fn read(&mut self, buffer: &mut [u8], flags: RecvFlags) -> Result<usize, Errno> {
        assert!(!buffer.is_empty(), "no room means the end of the input");
        let waits = !flags.contains(RecvFlags::DONTWAIT);
        let text = self.text.get();
        if self.ended.get() {
            return Ok(0);
        }
        if !waits && text.is_empty() {
            // To a server that drains, the client looks as if it may send more.
            return Err(Errno::AGAIN);
        }
        // There is something to read, so the read never blocks.
        let read = self.call(buffer.len().min(text.len()), true)?;
        let (piece, rest) = text.split_at(read);
        buffer[..read].copy_from_slice(piece);
        self.text.set(rest);
        self.reads.set(self.reads.get() + 1);
        self.ended.set(read == 0);
        Ok(read)
    }

    fn write(&mut self, bytes: &[u8], flags: SendFlags) -> Result<usize, Errno> {
        assert!(!bytes.is_empty());
        let waits = !flags.contains(SendFlags::DONTWAIT);
        if !waits {
            self.writes.set(self.writes.get() + 1);
        }
        let written = self.call(bytes.len(), waits)?;
        self.output
            .borrow_mut()
            .extend_from_slice(&bytes[..written]);
        Ok(written)
    }

    fn wait(&self, _: Duration) -> Result<bool, Errno> {
        Ok(true)
    }

    fn unread(&self) -> Result<u64, Errno> {
        Ok(self.text.get().len() as u64)
    }

    fn is_movable(&self) -> bool {
        true
    }
}
