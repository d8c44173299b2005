//! Service notifications (sd_notify(3)): readiness, status, watchdog, stopping and reloading, and
//! systemd's descriptor store. Without `NOTIFY_SOCKET`, nothing is sent. No function here blocks
//! for longer than its caller allows.

use std::collections::VecDeque;
use std::ffi::OsStr;
use std::io;
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt as _;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, MutexGuard, OnceLock};
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, RecvTimeoutError, Sender};
use log::{error, info, warn};
use rustix::event::{PollFd, PollFlags};
use rustix::io::Errno;
use rustix::net::{AddressFamily, Shutdown, SocketAddrUnix, SocketFlags, SocketType, sockopt};
use rustix::time::{ClockId, clock_gettime};

use crate::error::Error;
use crate::handover::state::{self, HandoverSocket};
use crate::server::health::{Health, Load};
use crate::thread;
use crate::waker::poll_until;
use shared::sync::ignore_poison;
use shared::sys;
use shared::text::without_errno;

/// Interval of status updates.
const STATUS_INTERVAL: Duration = Duration::from_secs(2);

/// Time that the last status has to be sent.
const LAST_STATUS_TIMEOUT: Duration = Duration::from_millis(100);

/// Time that the service manager is told in addition to that of the drain: a server aborts what is
/// left at the deadline, and leaves its cluster.
const STOP_RESERVE: Duration = Duration::from_secs(2);

/// Time for which an important message is retried.
const RETRY_TIME: Duration = Duration::from_secs(5);

/// Largest number of messages waiting for a retry.
const MAX_PENDING: usize = 16;

/// Time in which systemd closes a descriptor that it does not keep. Since version 254, it closes it
/// in a process of its own, possibly after the barrier.
const LATE_CLOSE_TIME: Duration = Duration::from_millis(250);

/// Shortest watchdog time that can be satisfied; a shorter one counts as unset.
const MIN_WATCHDOG: Duration = Duration::from_millis(30);

/// Parsed `NOTIFY_SOCKET`.
#[derive(Debug, PartialEq, Eq)]
enum Address {
    /// Path, or name in the abstract namespace.
    Unix(SocketAddrUnix),
    /// Port of the host of this virtual machine.
    Vsock {
        kind: Option<SocketType>,
        cid: u32,
        port: u32,
    },
}

impl Address {
    /// Parses all forms that sd_notify(3) describes.
    fn parse(text: &OsStr) -> Option<Self> {
        match text.as_bytes() {
            [b'/', ..] => SocketAddrUnix::new(text).ok().map(Address::Unix),
            [b'@', name @ ..] if !name.is_empty() => {
                let address = SocketAddrUnix::new_abstract_name(name).ok();
                address.map(Address::Unix)
            }
            _ => {
                let mut parts = text.to_str()?.splitn(3, ':');
                let kind = match parts.next()? {
                    "vsock" => None,
                    "vsock-stream" => Some(SocketType::STREAM),
                    "vsock-dgram" => Some(SocketType::DGRAM),
                    "vsock-seqpacket" => Some(SocketType::SEQPACKET),
                    _ => return None,
                };
                let cid = parts.next()?.parse().ok()?;
                let port = parts.next()?.parse().ok()?;
                // VMADDR_CID_ANY is not a valid destination (vsock(7)).
                (cid != u32::MAX).then_some(Address::Vsock { kind, cid, port })
            }
        }
    }

    /// Opens a non-blocking socket that is connected to the address.
    fn connect(&self, deadline: Instant) -> io::Result<OwnedFd> {
        let open = |family, kind| {
            let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
            rustix::net::socket_with(family, kind, flags, None)
        };
        match self {
            Address::Unix(address) => {
                let socket = open(AddressFamily::UNIX, SocketType::DGRAM)?;
                rustix::net::connect(&socket, address)?;
                Ok(socket)
            }
            Address::Vsock { kind, cid, port } => {
                let open = |kind| open(AddressFamily::VSOCK, kind);
                let socket = match kind {
                    Some(kind) => open(*kind)?,
                    // Few hypervisors support datagrams.
                    None => open(SocketType::DGRAM).or_else(|_| open(SocketType::SEQPACKET))?,
                };
                match sys::connect_vsock(socket.as_fd(), *cid, *port) {
                    Err(error) if error.raw_os_error() == Some(libc::EINPROGRESS) => {
                        wait(&socket, PollFlags::OUT, deadline)?;
                        sockopt::socket_error(&socket)??;
                    }
                    connected => connected?,
                }
                Ok(socket)
            }
        }
    }
}

/// Returns the value of this environment variable, as `parse` understands it. Logs an invalid
/// value; an empty one counts as unset.
fn variable<T>(name: &str, parse: impl Fn(&OsStr) -> Option<T>, expected: &str) -> Option<T> {
    let value = std::env::var_os(name).filter(|value| !value.is_empty())?;
    let parsed = parse(&value);
    if parsed.is_none() {
        warn!(value:?; "{name} counts as unset: it is not {expected}");
    }
    parsed
}

/// Returns the address of the service manager, if there is one.
fn address() -> Option<&'static Address> {
    static ADDRESS: OnceLock<Option<Address>> = OnceLock::new();
    let expected = "an absolute path, @NAME or vsock:CID:PORT, of at most 107 bytes";
    let parse = || variable("NOTIFY_SOCKET", Address::parse, expected);
    ADDRESS.get_or_init(parse).as_ref()
}

/// Returns the watchdog time, if there is one for this process.
fn watchdog() -> Option<Duration> {
    let parse = |value: &OsStr| {
        let microseconds = value.to_str()?.parse().ok();
        let time = microseconds.filter(|time| *time != u64::MAX);
        time.map(Duration::from_micros)
            .filter(|time| *time >= MIN_WATCHDOG)
    };
    let process = std::env::var_os("WATCHDOG_PID").unwrap_or_default();
    let id = sys::process_id("WATCHDOG_PID", &process);
    if id.is_some_and(|id| id != std::process::id()) {
        return None;
    }
    let least = MIN_WATCHDOG.as_micros();
    let expected = format!("a number of microseconds from {least} on");
    variable("WATCHDOG_USEC", parse, &expected)
}

/// Sends the periodic notifications, from a thread that ends when this value is dropped.
pub struct Notifier(Option<(Sender<()>, Receiver<()>)>);

impl Notifier {
    /// Sends that the server is ready; from then on its number of clients, and the watchdog's
    /// keep-alive as long as `health` succeeds.
    pub fn start(health: Health) -> Result<Self, Error> {
        if address().is_none() {
            return Ok(Notifier(None));
        }
        let watchdog = watchdog();
        if let Some(time) = watchdog {
            info!(seconds = time.as_secs_f64(); "the watchdog is on");
        }
        let (stop, stopped) = crossbeam_channel::bounded(0);
        let (running, ended) = crossbeam_channel::bounded::<()>(0);
        thread::spawn("notify", move || {
            run(&health, watchdog, &stopped);
            drop(running);
        })?;
        Ok(Notifier(Some((stop, ended))))
    }
}

impl Drop for Notifier {
    fn drop(&mut self) {
        if let Some((stop, ended)) = self.0.take() {
            drop(stop);
            // It may wait for a manager that does not read.
            let _ = ended.recv_timeout(LAST_STATUS_TIMEOUT);
        }
    }
}

fn run(health: &Health, watchdog: Option<Duration>, stopped: &Receiver<()>) {
    // Twice within the watchdog time, as sd_watchdog_enabled(3) advises, and once more.
    let watchdog_interval = watchdog.map(|time| time / 3);
    let interval = watchdog_interval.map_or(STATUS_INTERVAL, |time| time.min(STATUS_INTERVAL));
    let mut reported = None;
    let mut next_check = Instant::now();
    let mut failing = false;
    loop {
        let Load {
            clients, workers, ..
        } = health.load();
        if reported != Some((clients, workers)) {
            let ready = if reported.is_none() { "READY=1\n" } else { "" };
            let status = format!("STATUS={clients} clients, {workers} workers\n{ready}");
            if send_unless_pending(&status, interval) {
                reported = Some((clients, workers));
            }
        }
        if let Some(time) = watchdog_interval
            && Instant::now() >= next_check
        {
            next_check = Instant::now() + time;
            match health.check(time) {
                Ok(()) => {
                    if std::mem::take(&mut failing) {
                        warn!("healthy again");
                    }
                    send_unless_pending("WATCHDOG=1\n", interval);
                }
                Err(problem) => {
                    if !std::mem::replace(&mut failing, true) {
                        error!("unhealthy, the watchdog is not notified: {problem}");
                    }
                }
            }
        }
        if stopped.recv_timeout(interval) != Err(RecvTimeoutError::Timeout) {
            return;
        }
    }
}

/// Sends that the server is stopping: its drain takes at most `time`.
pub fn stopping(clients: usize, time: Duration) {
    let microseconds = (time + STOP_RESERVE).as_micros();
    enqueue(format!(
        "STOPPING=1\nSTATUS=draining {clients} clients\nEXTEND_TIMEOUT_USEC={microseconds}\n"
    ));
}

/// Sends that the server begins to reload: to read its settings again or to replace the program.
pub fn reloading() {
    let now = clock_gettime(ClockId::Monotonic);
    // Never negative, and the microseconds fit into 63 bits for many thousand years.
    let microseconds = now.tv_sec * 1_000_000 + now.tv_nsec / 1000;
    enqueue(format!("RELOADING=1\nMONOTONIC_USEC={microseconds}\n"));
}

/// Sends that the reload has ended, successfully or not.
pub fn reloaded() {
    enqueue("READY=1\n".to_string());
}

/// Checks whether the service manager's store keeps descriptors for the next process, by storing
/// one. Waits until `deadline` at most. Returns the reason if it does not.
pub fn check_store(deadline: Instant) -> Result<(), String> {
    let reason = match address() {
        None => "there is no NOTIFY_SOCKET",
        Some(Address::Vsock { .. }) => "NOTIFY_SOCKET is vsock",
        Some(Address::Unix(_)) => match probe(deadline) {
            Ok(true) => return Ok(()),
            Ok(false) => "the service manager keeps no descriptors (FileDescriptorStoreMax=)",
            Err(error) if error.kind() == io::ErrorKind::TimedOut => {
                "the service manager does not answer in time"
            }
            Err(error) => {
                let why = without_errno(&error);
                return Err(format!("can't reach the service manager: {why}"));
            }
        },
    };
    Err(reason.to_string())
}

fn probe(deadline: Instant) -> io::Result<bool> {
    let (reader, writer) = rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC)?;
    // FDPOLL is on: systemd drops it when this process ends.
    let store = format!("FDSTORE=1\nFDNAME={}\n", state::PROBE);
    put(&store, writer, deadline)?;
    // Set by systemd since version 254 if its store keeps any descriptors (systemd.exec(5)).
    let is_sure = std::env::var_os("FDSTORE").is_some_and(|most| most != "0");
    let patience = if is_sure {
        Duration::ZERO
    } else {
        LATE_CLOSE_TIME
    };
    if has_hung_up(&reader, deadline.min(Instant::now() + patience))? {
        return Ok(false);
    }
    let remove = format!("FDSTOREREMOVE=1\nFDNAME={}\n", state::PROBE);
    send(&remove, None, deadline)?;
    Ok(true)
}

/// What has become of a handover state that was to be stored.
pub enum Stored {
    /// The service manager keeps it.
    Kept,
    /// It is closed, for this reason.
    Lost(String),
    /// The service manager has not read it yet, for this reason.
    Unconfirmed(String),
}

/// Stores a handover state for the next process. Waits until `deadline` at most.
pub fn store(sent: HandoverSocket, deadline: Instant) -> Stored {
    // FDPOLL=0: otherwise systemd drops it when this process ends, which closes the other end.
    let text = format!("FDSTORE=1\nFDNAME={}\nFDPOLL=0\n", state::NAME);
    let put = put(&text, sent.socket, deadline);
    match (put, has_hung_up(&sent.peer, Instant::now())) {
        (Ok(()), Ok(false)) => Stored::Kept,
        (Ok(()), Ok(true)) => Stored::Lost("it has closed them".to_string()),
        (Err(error), Ok(true)) => Stored::Lost(without_errno(&error)),
        (Err(error), _) => Stored::Unconfirmed(without_errno(&error)),
        (_, Err(error)) => Stored::Unconfirmed(without_errno(&error)),
    }
}

/// Returns whether, by `deadline`, nobody holds the other end of a pipe or of a socket.
fn has_hung_up(end: &OwnedFd, deadline: Instant) -> io::Result<bool> {
    let mut polled = [PollFd::new(end, PollFlags::empty())];
    Ok(poll_until(&mut polled, deadline)?)
}

/// Sends a descriptor and closes it here, then waits until systemd has read it.
fn put(text: &str, descriptor: OwnedFd, deadline: Instant) -> io::Result<()> {
    send(text, Some(descriptor.as_fd()), deadline)?;
    drop(descriptor);
    // systemd reads the messages in order, and closes the descriptor that comes with this one
    // (sd_notify_barrier(3)).
    let (reader, writer) = rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC)?;
    send("BARRIER=1\n", Some(writer.as_fd()), deadline)?;
    drop(writer);
    wait(&reader, PollFlags::empty(), deadline)
}

/// Removes the handover state from systemd's store.
pub fn remove_state() {
    enqueue(format!("FDSTOREREMOVE=1\nFDNAME={}\n", state::NAME));
}

/// Messages to retry, each with its deadline. A thread retries while there are any.
static PENDING: Mutex<VecDeque<(String, Instant)>> = Mutex::new(VecDeque::new());

fn pending() -> MutexGuard<'static, VecDeque<(String, Instant)>> {
    ignore_poison(PENDING.lock())
}

/// Sends an important message without blocking. If that fails for lack of room, it is retried for a
/// while.
fn enqueue(text: String) {
    let Some(address) = address() else {
        return;
    };
    let mut pending = pending();
    if pending.is_empty() && matches!(address, Address::Unix(_)) {
        match send(&text, None, Instant::now()) {
            Err(error) if error.kind() == io::ErrorKind::TimedOut => {}
            sent => return log_failure(sent),
        }
    }
    if pending.len() == MAX_PENDING {
        pending.pop_front();
    }
    let is_first = pending.is_empty();
    pending.push_back((text, Instant::now() + RETRY_TIME));
    drop(pending);
    if is_first && let Err(error) = thread::spawn("notify-again", retry) {
        warn!("can't notify the service manager: {error}");
        self::pending().clear();
    }
}

/// Sends the pending messages, in order.
fn retry() {
    loop {
        let Some((text, deadline)) = pending().front().cloned() else {
            return;
        };
        log_failure(send(&text, None, deadline));
        let mut pending = pending();
        // A full queue may have dropped this message meanwhile.
        if pending.front().is_some_and(|(first, _)| *first == text) {
            pending.pop_front();
        }
        if pending.is_empty() {
            return;
        }
    }
}

/// Sends a message unless others are pending. Waits for `patience` at most; returns whether it was
/// sent.
fn send_unless_pending(text: &str, patience: Duration) -> bool {
    if !pending().is_empty() {
        return false;
    }
    let sent = send(text, None, Instant::now() + patience);
    let is_sent = sent.is_ok();
    log_failure(sent);
    is_sent
}

/// Logs a failure to notify the service manager, once until a message is sent.
fn log_failure(sent: io::Result<()>) {
    static FAILS: AtomicBool = AtomicBool::new(false);
    let Err(error) = sent else {
        return FAILS.store(false, Ordering::Relaxed);
    };
    if !FAILS.swap(true, Ordering::Relaxed) {
        let why = match error.kind() {
            io::ErrorKind::TimedOut => "it does not read NOTIFY_SOCKET".to_string(),
            _ => without_errno(&error),
        };
        warn!("can't notify the service manager (NOTIFY_SOCKET): {why}");
    }
}

/// Sends a message. Waits until `deadline` for room in the receiver's queue.
fn send(text: &str, descriptor: Option<BorrowedFd<'_>>, deadline: Instant) -> io::Result<()> {
    let Some(address) = address() else {
        return Ok(());
    };
    let socket = address.connect(deadline)?;
    loop {
        match state::send_message(&socket, text.as_bytes(), descriptor.as_slice()) {
            Ok(()) => break,
            Err(Errno::AGAIN) => wait(&socket, PollFlags::OUT, deadline)?,
            Err(error) => return Err(error.into()),
        }
    }
    if sockopt::socket_type(&socket)? != SocketType::DGRAM {
        // The end of the stream is the end of the message. Unread data may be lost when the socket
        // is closed; whether it has been read is unknown if the receiver leaves its end open.
        rustix::net::shutdown(&socket, Shutdown::Write)?;
        let _ = wait(&socket, PollFlags::IN, deadline);
    }
    Ok(())
}

/// Waits until one of `events` occurs on `descriptor`, or its other end is closed.
fn wait(descriptor: &OwnedFd, events: PollFlags, deadline: Instant) -> io::Result<()> {
    match poll_until(&mut [PollFd::new(descriptor, events)], deadline)? {
        true => Ok(()),
        false => Err(io::ErrorKind::TimedOut.into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn vsock(kind: Option<SocketType>) -> Option<Address> {
        let (cid, port) = (2, 1234);
        Some(Address::Vsock { kind, cid, port })
    }

    #[test]
    fn all_forms_of_an_address_are_understood() {
        let parse = |text: &str| Address::parse(OsStr::new(text));
        let unix = |address: rustix::io::Result<_>| Some(Address::Unix(address.unwrap()));
        assert_eq!(
            parse("/run/notify"),
            unix(SocketAddrUnix::new("/run/notify"))
        );
        let name = SocketAddrUnix::new_abstract_name(b"of/a relay");
        assert_eq!(parse("@of/a relay"), unix(name));
        assert_eq!(parse("vsock:2:1234"), vsock(None));
        assert_eq!(
            parse("vsock-stream:2:1234"),
            vsock(Some(SocketType::STREAM))
        );
        assert_eq!(parse("vsock-dgram:2:1234"), vsock(Some(SocketType::DGRAM)));
        let seqpacket = Some(SocketType::SEQPACKET);
        assert_eq!(parse("vsock-seqpacket:2:1234"), vsock(seqpacket));
        for absurd in [
            "",
            "@",
            "run/notify",
            "vsock:",
            "vsock::1",
            "vsock:2:",
            "vsock:4294967295:1",
            "vsock:2:-1",
            "vsock-raw:2:1",
            &format!("/{}", "x".repeat(200)),
            &format!("@{}", "x".repeat(200)),
        ] {
            assert_eq!(parse(absurd), None, "{absurd}");
        }
    }
}
