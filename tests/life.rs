//! Signals and the drain: what was received is answered, no reply is cut, and the daemon ends in time.

use std::io::{ErrorKind, PipeReader, PipeWriter, Read as _, Write as _};
use std::net::TcpStream;
use std::os::fd::AsRawFd as _;
use std::os::unix::fs::OpenOptionsExt as _;
use std::os::unix::process::ExitStatusExt as _;
use std::process::{Command, ExitStatus};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use crate::support::kernel::{asked_for, can, on_their_way, own_address, shell, through};
use crate::support::*;

/// Whether nobody listens at its address.
fn refuses(daemon: &Daemon) -> bool {
    TcpStream::connect_timeout(&daemon.address, PATIENCE)
        .is_err_and(|error| error.kind() == ErrorKind::ConnectionRefused)
}

/// Halts the daemon and sends it this, all of which is unread then.
fn send_unread(daemon: &Daemon, client: &mut Client, requests: &str) {
    daemon.signal("STOP");
    client.send(requests);
    let port = client.socket().local_addr().unwrap().port();
    let has_arrived = || on_their_way(daemon.address)[&port] == 0;
    wait_until("all has arrived", has_arrived);
}

/// Waits for the end with status 0, and returns the log.
fn ends_well(daemon: &mut Daemon) -> String {
    let (status, log) = (daemon.wait(), daemon.log().whole());
    assert!(status.success(), "{status}: {log}");
    log
}

/// Sends the process of this daemon a signal until it ends. One that comes within a quarter of a second of another is
/// taken for the same.
fn end_at_once(daemon: &mut Daemon, process: u32, signal: &str) -> ExitStatus {
    let mut status = None;
    wait_until("it ends", || {
        kill(signal, process);
        thread::park_timeout(Duration::from_millis(20));
        status = daemon.ended();
        status.is_some()
    });
    status.expect("it has ended")
}

#[test]
fn sigterm_and_sigint_answer_what_was_received_and_end_it_with_status_0() {
    for signal in ["TERM", "INT"] {
        let mut daemon = Daemon::start([""; 0]);
        let [mut idle, mut half, mut asking] = [(); 3].map(|()| daemon.connect());
        assert_eq!(idle.ask("PING"), "PONG");
        half.send("WHY\nWHERE");
        assert_eq!(half.line().as_deref(), Some("42"));
        assert_eq!(asking.ask("PING"), "PONG");
        send_unread(&daemon, &mut asking, &"WHY\n".repeat(10_000));
        daemon.signal(signal);
        daemon.signal("CONT");
        assert!(asking.rest() == "42\n".repeat(10_000));
        // An end, not a reset, which would be an error.
        assert_eq!((idle.rest(), half.rest()), Default::default());
        let log = ends_well(&mut daemon);
        assert_contains(&log, &format!("stopping reason=SIG{signal} clients=3"));
        assert!(!log.contains("cut off"), "{log}");
        assert!(refuses(&daemon));
    }
}

/// - When the server is told to stop, it answers every request that has arrived from the clients that it has accepted, cuts
///   no reply, and closes.
#[test]
fn clients_that_wait_for_a_worker_are_answered_too() {
    let mut daemon = Daemon::start(["--max-clients", "2", "--queue", "9"]);
    let mut watching = daemon.connect();
    let mut active = daemon.connect();
    // It never makes room.
    let active = thread::spawn(move || {
        let mut answers = 0;
        while active.socket().write_all(b"PING\n").is_ok() {
            match active.line() {
                Some(reply) => assert_eq!(reply, "PONG"),
                None => break,
            }
            answers += 1;
        }
        answers
    });
    let mut waiting = [(); 8].map(|()| daemon.connect());
    for (number, client) in waiting.iter_mut().enumerate() {
        client.send("HELP WHY\n".repeat(1000));
        client.send(format!("r{number}\nWHO"));
    }
    wait_until("eight wait", || watching.ask("WHO") == "10");
    daemon.signal("TERM");
    for (number, client) in waiting.iter_mut().enumerate() {
        let error = unknown(&format!("r{number}")) + "\n";
        assert_eq!(client.rest(), "WHY: the answer\n".repeat(1000) + &error);
    }
    assert_eq!(watching.rest(), "");
    assert!(active.join().unwrap() > 0);
    ends_well(&mut daemon);
}

#[test]
fn while_it_drains_it_refuses_connections_and_a_second_signal_ends_it_at_once() {
    for (first, second, number) in [
        ("TERM", "TERM", 15),
        ("INT", "TERM", 15),
        ("TERM", "INT", 2),
    ] {
        let mut daemon = Daemon::start(["--write-timeout", "1h", "--drain-timeout", "1h"]);
        let mut stuck = Client::connect_narrow(daemon.address);
        stuck.flood(&daemon, 1);
        daemon.signal(first);
        daemon.log().wait_for("stopping ");
        wait_until("it refuses connections", || refuses(&daemon));
        let process = daemon.pid();
        let status = end_at_once(&mut daemon, process, second);
        assert_eq!(status.signal(), Some(number));
    }
}

/// As GNU timeout does, which signals its child and then the group that both are in.
#[test]
fn a_signal_that_comes_twice_at_once_is_one() {
    let mut daemon = Daemon::start([""; 0]);
    let mut client = daemon.served(1).remove(0);
    send_unread(&daemon, &mut client, &"WHY\n".repeat(1000));
    for signal in ["TERM", "INT", "CONT", "TERM"] {
        daemon.signal(signal);
    }
    assert!(client.rest() == "42\n".repeat(1000));
    ends_well(&mut daemon);
}

/// A daemon that is process 1 of its namespace, and its id outside; nothing where such can't be made.
fn process_1(arguments: &[&str]) -> Option<(Daemon, u32)> {
    let wrapper = ["unshare", "--pid", "--fork", "--kill-child", "--mount-proc"];
    can(&wrapper).then(|| {
        let daemon = Daemon::start_through(&wrapper, arguments);
        let process = children(daemon.pid())[0];
        (daemon, process)
    })
}

/// The children of a process, those that have ended and are not reaped with them.
fn children(process: u32) -> Vec<u32> {
    let path = format!("/proc/{process}/task/{process}/children");
    let children = std::fs::read_to_string(path).expect("it lives");
    let ids = children.split_whitespace();
    ids.map(|id| id.parse().expect("an id")).collect()
}

#[test]
fn a_second_signal_ends_process_1_with_its_status() {
    for (signal, code) in [("TERM", 143), ("INT", 130)] {
        let Some((mut daemon, process)) = process_1(&["--drain-notice", "1h"]) else {
            return;
        };
        kill("TERM", process);
        daemon.log().wait_for("draining: /readyz says so");
        let status = end_at_once(&mut daemon, process, signal);
        assert_eq!(status.code(), Some(code));
    }
}

#[test]
fn process_1_reaps_orphans() {
    let Some((daemon, process)) = process_1(&[]) else {
        return;
    };
    let leave_one = || {
        let mut left = Command::new("nsenter");
        left.args(["--target", &process.to_string(), "--pid", "--mount"]);
        left.args(["sh", "-c", "sleep 0.1 &"]);
        assert!(left.status().unwrap().success());
    };
    leave_one();
    wait_until("it is reaped", || children(process).is_empty());
    // Also one that ends while a new program takes over.
    kill("USR2", process);
    leave_one();
    daemon.log().wait_for("took over the clients");
    wait_until("it is reaped", || children(process).is_empty());
}

/// As a container's entry point does that starts something in the background and then becomes the daemon.
#[test]
fn a_child_that_it_was_given_is_reaped() {
    let daemon = Daemon::start_through(&shell("sleep 0.1 & "), [""; 0]);
    wait_until("it is reaped", || children(daemon.pid()).is_empty());
    daemon.stop();
}

#[test]
fn signals_that_its_parent_had_blocked_reach_it() {
    let wrapper = ["env", "--block-signal=TERM,INT,HUP,URG"];
    needs!(run & wrapper);
    let daemon = Daemon::start_through(&wrapper, [""; 0]);
    let mut idle = daemon.served(1);
    daemon.signal("HUP");
    daemon.log().wait_for("SIGHUP changes nothing");
    daemon.stop();
    assert_eq!(idle[0].rest(), "");
}

#[test]
fn without_time_to_drain_idle_clients_are_still_closed_in_order() {
    let daemon = Daemon::start(["--drain-timeout", "0s"]);
    let mut clients = daemon.served(50);
    let log = daemon.stop();
    assert!(!log.contains("cut off"), "{log}");
    for client in &mut clients {
        assert_eq!(client.rest(), "");
    }
}

#[test]
fn an_error_that_nobody_reads_keeps_nobody_waiting() {
    let (_never_read, stderr) = full_pipe();
    let mut command = program();
    command.args(["--listen", "nowhere"]).stderr(stderr);
    let mut child = command.spawn().unwrap();
    let mut status = None;
    wait_until("it ends", || {
        status = child.try_wait().unwrap();
        status.is_some()
    });
    assert_eq!(status.and_then(|status| status.code()), Some(64));
}

#[test]
fn at_the_deadline_clients_that_do_not_read_are_cut_off_and_logged() {
    let mut daemon = Daemon::start(["--write-timeout", "1h", "--drain-timeout", "300ms"]);
    let mut good = daemon.served(1);
    let mut stuck = [(); 3].map(|()| Client::connect_narrow(daemon.address));
    for (number, client) in stuck.iter_mut().enumerate() {
        client.flood(&daemon, number + 1);
    }
    are_answered(&mut good);
    daemon.signal("TERM");
    assert_eq!(good[0].rest(), "");
    let log = ends_well(&mut daemon);
    assert_contains(&log, "cut off");
    assert_contains(&log, " clients=3");
    for client in &mut stuck {
        // They are not left without an end, whatever it is.
        client.whatever_comes();
    }
}

#[test]
fn other_signals_change_nothing() {
    let daemon = Daemon::start([""; 0]);
    let mut client = daemon.connect();
    client.send("WH");
    for signal in ["HUP", "USR1", "PIPE", "URG"].repeat(20) {
        daemon.signal(signal);
    }
    daemon.log().wait_for("SIGHUP changes nothing");
    daemon.log().wait_for("SIGUSR1 changes nothing");
    assert_eq!(client.ask("Y"), "42");
    assert_eq!(daemon.ask("PING\n"), "PONG\n");
    daemon.stop();
}

/// Fills a pipe, so that the next writer would wait.
fn fill(pipe: &PipeWriter) {
    // Opened anew, or all that write to it would stop blocking.
    let mut filler = std::fs::OpenOptions::new()
        .write(true)
        .custom_flags(libc::O_NONBLOCK)
        .open(format!("/proc/self/fd/{}", pipe.as_raw_fd()))
        .unwrap();
    while filler.write(&[b'.'; 4096]).is_ok() {}
    while filler.write(b".").is_ok() {}
}

fn full_pipe() -> (PipeReader, PipeWriter) {
    let (reader, writer) = std::io::pipe().unwrap();
    fill(&writer);
    (reader, writer)
}

/// Standard error is closed, a file that may grow no more, or a pipe that is full and that nobody reads.
#[test]
fn a_log_that_cannot_be_written_keeps_nobody_waiting() {
    let scratch = Scratch::new();
    let log = scratch.path().join("log");
    let limited = format!("ulimit -f 4; exec 2>{}", log.display());
    let (_never_read, stderr) = std::io::pipe().unwrap();
    for script in ["exec 2>&-", &limited, "true"] {
        let address = own_address();
        let mut command = through(&shell(script));
        command.args(["--listen", &address.to_string(), "--log", "debug"]);
        command.args(["--max-clients", "1", "--queue", "0"]);
        command.stderr(stderr.try_clone().unwrap());
        let daemon = Daemon::run_unheard(command, address);
        fill(&stderr);
        for _ in 0..100 {
            wait_until("it is free", || daemon.ask("WHY\n") == "42\n");
        }
        let mut client = daemon.served(1);
        daemon.is_full();
        daemon.signal("HUP");
        are_answered(&mut client);
        drop(client);
        wait_until("another is served", || daemon.ask("WHY\n") == "42\n");
        daemon.stop();
    }
    assert_eq!(std::fs::metadata(log).unwrap().len(), 4 * 512);
}

/// How many requests of a client may be unanswered before it waits: more than the server reads at a time, and few enough
/// to be answered soon.
const AHEAD: usize = 2048;

/// One of many clients that write without waiting for replies.
struct Pipeliner {
    port: u16,
    progress: Arc<Progress>,
    /// Returns all that it has written and all that it has read.
    thread: JoinHandle<(Vec<u8>, Vec<u8>)>,
}

#[derive(Default)]
struct Progress {
    /// How many bytes it has written, at least.
    sent: AtomicUsize,
    /// How many replies it has read.
    answered: AtomicUsize,
}

impl Pipeliner {
    fn start(daemon: &Daemon) -> Self {
        let socket = daemon.connect().socket().try_clone().unwrap();
        let port = socket.local_addr().unwrap().port();
        let progress = Arc::new(Progress::default());
        let counted = progress.clone();
        let thread = thread::spawn(move || pipeline(socket, &counted));
        Pipeliner {
            port,
            progress,
            thread,
        }
    }

    fn sent(&self) -> usize {
        self.progress.sent.load(Ordering::Relaxed)
    }

    fn answered(&self) -> usize {
        self.progress.answered.load(Ordering::Relaxed)
    }

    /// Waits for the end. The replies must be those to a prefix of the requests, whole, and at least to all those that
    /// are whole within the first `arrived` bytes.
    fn check(self, arrived: usize) {
        let (sent, replies) = self.thread.join().unwrap();
        let replies = String::from_utf8(replies).unwrap();
        assert!(replies.ends_with('\n'), "a cut reply");
        let mut requests = std::str::from_utf8(&sent).unwrap().lines();
        for reply in replies.lines() {
            let request = requests.next().expect("a reply to nothing");
            let expected = unknown(request);
            assert_eq!(reply, expected);
        }
        let answered = replies.lines().count();
        assert!(answered >= lines_in(&sent[..arrived]), "{answered}");
    }
}

/// Keeps numbered requests unanswered until the end; returns all that was written and read.
fn pipeline(mut socket: TcpStream, progress: &Progress) -> (Vec<u8>, Vec<u8>) {
    let (mut sent, mut replies, mut answered) = (Vec::new(), Vec::new(), 0);
    let (mut numbers, mut buffer) = (0.., vec![0; 64 * 1024]);
    let soon = Some(Duration::from_millis(5));
    socket.set_read_timeout(soon).unwrap();
    loop {
        while numbers.start < answered + AHEAD {
            let block = numbers.by_ref().take(16);
            let block: String = block.map(|number| format!("r{number}\n")).collect();
            sent.extend_from_slice(block.as_bytes());
            // Once the server has closed, it fails.
            if socket.write_all(block.as_bytes()).is_ok() {
                progress.sent.store(sent.len(), Ordering::Relaxed);
            }
        }
        match socket.read(&mut buffer) {
            Ok(0) => return (sent, replies),
            Ok(read) => {
                replies.extend_from_slice(&buffer[..read]);
                answered += lines_in(&buffer[..read]);
                progress.answered.store(answered, Ordering::Relaxed);
            }
            Err(error) => assert_eq!(error.kind(), ErrorKind::WouldBlock, "{error}"),
        }
    }
}

fn lines_in(bytes: &[u8]) -> usize {
    bytes.iter().filter(|&&byte| byte == b'\n').count()
}

#[test]
fn sigterm_under_64_pipelining_clients_loses_no_request_and_cuts_no_reply() {
    for round in 0..asked_for("BLOCKCHAIN_TCPD_TEST_ROUNDS", 10) {
        let mut daemon = Daemon::start([""; 0]);
        let clients = [(); 64].map(|()| Pipeliner::start(&daemon));
        let all = |what, holds: fn(&Pipeliner) -> bool| {
            wait_until(what, || clients.iter().all(holds));
        };
        all("all are in full flow", |client| client.answered() > 16);
        // Every other time it is halted meanwhile, so that much is unread when the signal comes.
        if round % 2 == 0 {
            daemon.signal("STOP");
            all("all are ahead of it", |client| {
                client.sent() > (client.answered() + AHEAD) * "r0\n".len()
            });
        }
        // What was written before, less what is on its way now, has arrived, whatever was written in between.
        let sent = clients.each_ref().map(Pipeliner::sent);
        let on_their_way = on_their_way(daemon.address);
        daemon.signal("TERM");
        daemon.signal("CONT");
        for (client, sent) in clients.into_iter().zip(sent) {
            let arrived = sent.saturating_sub(on_their_way[&client.port]);
            client.check(arrived);
        }
        let log = ends_well(&mut daemon);
        assert!(!log.contains("cut off"), "{log}");
    }
}
