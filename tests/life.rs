//! Signals and the drain: what was received is answered, nothing is cut, and it ends when it was told to.

use std::io::{ErrorKind, PipeReader, PipeWriter, Read as _, Write as _};
use std::net::{Shutdown, TcpStream};
use std::os::fd::AsRawFd as _;
use std::os::unix::fs::OpenOptionsExt as _;
use std::os::unix::process::ExitStatusExt as _;
use std::process::Command;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Barrier};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use crate::support::kernel::{asked_for, on_their_way, own_address, shell, through};
use crate::support::{Client, Daemon, PATIENCE, kill, program, wait_until};

#[test]
fn sigterm_and_sigint_answer_what_was_received_and_end_it_with_status_0() {
    for signal in ["TERM", "INT"] {
        let mut daemon = Daemon::start([""; 0]);
        let mut idle = daemon.connect();
        assert_eq!(idle.ask("PING"), "PONG");
        let mut half = daemon.connect();
        half.send("WHY\nWHERE");
        assert_eq!(half.line().as_deref(), Some("42"));
        let mut asking = daemon.connect();
        assert_eq!(asking.ask("PING"), "PONG");
        // It is halted meanwhile, so that much of this is unread when the signal comes.
        daemon.signal("STOP");
        asking.send("WHY\n".repeat(10_000));
        let from = asking.socket().local_addr().unwrap().port();
        wait_until("all has reached its machine", || {
            on_their_way(daemon.address)[&from] == 0
        });
        daemon.signal(signal);
        daemon.signal("CONT");
        assert!(asking.rest() == "42\n".repeat(10_000));
        // An end, not a reset, which would be an error.
        assert_eq!(idle.rest(), "");
        assert_eq!(half.rest(), "");
        let status = daemon.wait();
        let log = daemon.log().whole();
        assert!(status.success(), "{status}: {log}");
        let stopping = format!("stopping reason=SIG{signal} clients=3");
        assert!(log.contains(&stopping), "{log}");
        assert!(!log.contains("cut off"), "{log}");
        assert!(refuses(&daemon));
    }
}

/// Whether nobody listens at its address.
fn refuses(daemon: &Daemon) -> bool {
    TcpStream::connect_timeout(&daemon.address, PATIENCE)
        .is_err_and(|error| error.kind() == ErrorKind::ConnectionRefused)
}

/// Keeps asking until the server closes; returns how many answers there were, all of them whole.
fn keep_asking(mut client: Client) -> JoinHandle<usize> {
    thread::spawn(move || {
        let mut answers = 0;
        while client.socket().write_all(b"PING\n").is_ok() {
            match client.line() {
                Some(reply) => assert_eq!(reply, "PONG"),
                None => break,
            }
            answers += 1;
        }
        answers
    })
}

#[test]
fn clients_that_wait_for_a_worker_are_answered_too() {
    let mut daemon = Daemon::start(["--max-clients", "2", "--queue", "9"]);
    let mut watching = daemon.connect();
    let active = keep_asking(daemon.connect());
    let mut waiting: Vec<Client> = (0..8)
        .map(|number| {
            let mut client = daemon.connect();
            client.send(format!("WHY\nr{number}\nWHO"));
            client
        })
        .collect();
    wait_until("eight wait", || watching.ask("WHO") == "10");
    daemon.signal("TERM");
    for (number, client) in waiting.iter_mut().enumerate() {
        let expected = format!("42\nERR UNKNOWN no such command: \"r{number}\" (try HELP)\n");
        assert_eq!(client.rest(), expected);
    }
    assert_eq!(watching.rest(), "");
    assert!(active.join().unwrap() > 0);
    let status = daemon.wait();
    assert!(status.success(), "{status}");
}

#[test]
fn while_it_drains_nobody_new_is_let_in_and_a_second_signal_ends_it_at_once() {
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
        wait_until("its door is closed", || refuses(&daemon));
        // What comes within a quarter of a second is taken for the same.
        let mut status = None;
        wait_until("it ends", || {
            daemon.signal(second);
            std::thread::park_timeout(Duration::from_millis(20));
            status = daemon.ended();
            status.is_some()
        });
        assert_eq!(status.and_then(|status| status.signal()), Some(number));
    }
}

/// As GNU timeout does, which signals its child and then the group that both are in.
#[test]
fn a_signal_that_comes_twice_at_once_is_one() {
    let mut daemon = Daemon::start([""; 0]);
    let mut client = daemon.connect();
    assert_eq!(client.ask("WHY"), "42");
    daemon.signal("STOP");
    client.send("WHY\n".repeat(1000));
    let from = client.socket().local_addr().unwrap().port();
    wait_until("all has reached its machine", || {
        on_their_way(daemon.address)[&from] == 0
    });
    daemon.signal("TERM");
    daemon.signal("INT");
    daemon.signal("CONT");
    daemon.signal("TERM");
    assert!(client.rest() == "42\n".repeat(1000));
    let status = daemon.wait();
    assert!(status.success(), "{status}");
}

/// A daemon that is process 1 of its namespace, and its id outside; nothing where such can't be made.
fn process_1(arguments: &[&str]) -> Option<(Daemon, u32)> {
    let wrapper = ["unshare", "--pid", "--fork", "--kill-child", "--mount-proc"];
    needs!(run & wrapper);
    let daemon = Daemon::start_through(&wrapper, arguments);
    let process = children(daemon.pid())[0];
    Some((daemon, process))
}

/// The children of a process, those that have ended and are not reaped with them.
fn children(process: u32) -> Vec<u32> {
    let path = format!("/proc/{process}/task/{process}/children");
    let children = std::fs::read_to_string(path).expect("it lives");
    let children = children.split_whitespace();
    children
        .map(|child| child.parse().expect("an id"))
        .collect()
}

#[test]
fn a_second_signal_ends_process_1_with_its_status() {
    for (signal, code) in [("TERM", 143), ("INT", 130)] {
        let Some((mut daemon, process)) = process_1(&["--drain-notice", "1h"]) else {
            return;
        };
        kill("TERM", process);
        daemon.log().wait_for("draining: /readyz says so");
        let mut status = None;
        // What comes within a quarter of a second is taken for the same.
        wait_until("it ends", || {
            kill(signal, process);
            std::thread::park_timeout(Duration::from_millis(20));
            status = daemon.ended();
            status.is_some()
        });
        assert_eq!(status.and_then(|status| status.code()), Some(code));
    }
}

#[test]
fn process_1_reaps_orphans() {
    let Some((daemon, process)) = process_1(&[]) else {
        return;
    };
    let leave_one = || {
        let target = process.to_string();
        let left = Command::new("nsenter")
            .args(["--target", &target, "--pid", "--mount"])
            .args(["sh", "-c", "sleep 0.1 &"])
            .status();
        assert!(left.unwrap().success());
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
    let script = shell("sleep 0.1 & ");
    let wrapper: Vec<&str> = script.iter().map(String::as_str).collect();
    let daemon = Daemon::start_through(&wrapper, [""; 0]);
    wait_until("it is reaped", || children(daemon.pid()).is_empty());
    daemon.stop();
}

#[test]
fn signals_that_its_parent_had_blocked_reach_it() {
    let wrapper = ["env", "--block-signal=TERM,INT,HUP,URG"];
    needs!(run & wrapper);
    let daemon = Daemon::start_through(&wrapper, [""; 0]);
    let mut idle = daemon.connect();
    assert_eq!(idle.ask("WHY"), "42");
    daemon.signal("HUP");
    daemon.log().wait_for("SIGHUP changes nothing");
    daemon.stop();
    assert_eq!(idle.rest(), "");
}

#[test]
fn without_time_to_drain_those_who_wait_for_nothing_are_still_closed_in_order() {
    let daemon = Daemon::start(["--drain-timeout", "0s"]);
    let mut clients: Vec<Client> = (0..50).map(|_| daemon.connect()).collect();
    for client in &mut clients {
        assert_eq!(client.ask("WHY"), "42");
    }
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
fn at_the_deadline_those_who_take_nothing_are_cut_off_and_the_log_says_how_many() {
    let mut daemon = Daemon::start(["--write-timeout", "1h", "--drain-timeout", "300ms"]);
    let mut good = daemon.connect();
    assert_eq!(good.ask("WHY"), "42");
    let mut stuck: Vec<Client> = (1..=3)
        .map(|number| {
            let mut client = Client::connect_narrow(daemon.address);
            client.flood(&daemon, number);
            client
        })
        .collect();
    good.send("WHY\n");
    assert_eq!(good.line().as_deref(), Some("42"));
    daemon.signal("TERM");
    assert_eq!(good.rest(), "");
    let status = daemon.wait();
    let log = daemon.log().whole();
    assert!(status.success(), "{status}: {log}");
    assert!(log.contains("cut off"), "{log}");
    assert!(log.contains(" clients=3"), "{log}");
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
    for _ in 0..20 {
        for signal in ["HUP", "USR1", "PIPE", "URG"] {
            daemon.signal(signal);
        }
    }
    daemon.log().wait_for("SIGHUP changes nothing");
    daemon.log().wait_for("SIGUSR1 changes nothing");
    assert_eq!(client.ask("Y"), "42");
    assert_eq!(daemon.ask("PING\n"), "PONG\n");
    daemon.stop();
}

#[test]
fn without_stderr_it_serves_and_stops() {
    let address = own_address();
    let script = shell("exec 2>&-");
    let wrapper: Vec<&str> = script.iter().map(String::as_str).collect();
    let mut command = through(&wrapper);
    command.args(["--listen", &address.to_string(), "--log", "debug"]);
    let daemon = Daemon::run_unheard(command, address);
    assert_eq!(daemon.ask("WHY\n"), "42\n");
    daemon.signal("HUP");
    assert_eq!(daemon.ask("WHY\n"), "42\n");
    daemon.stop();
}

/// Fills a pipe, so that whoever writes to it next would wait.
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

/// Whoever reads the log has stopped reading, and the pipe is full: what can't be said must not keep anyone waiting.
#[test]
fn a_log_that_nobody_reads_keeps_nobody_waiting() {
    let (never_read, stderr) = std::io::pipe().unwrap();
    let address = own_address();
    let mut command = program();
    command.args(["--listen", &address.to_string()]);
    command.args(["--max-clients", "1", "--queue", "0"]);
    command.stderr(stderr.try_clone().unwrap());
    let daemon = Daemon::run_unheard(command, address);
    fill(&stderr);

    wait_until("it is free", || daemon.ask("WHY\n") == "42\n");
    let mut client = daemon.connect();
    assert_eq!(client.ask("WHY"), "42");
    let busy = daemon.connect().rest();
    assert!(busy.starts_with("ERR BUSY "), "{busy:?}");
    daemon.signal("HUP");
    assert_eq!(client.ask("WHY"), "42");
    drop(client);
    wait_until("another is let in", || daemon.ask("WHY\n") == "42\n");
    daemon.stop();
    drop(never_read);
}

/// So many requests of a client may be unanswered before it waits: more than the server reads at a time, and little
/// enough to be answered soon.
const AHEAD: usize = 2048;

/// One of many clients that write without waiting for replies.
struct Pipeliner {
    port: u16,
    /// How many bytes it has written, at least.
    sent: Arc<AtomicUsize>,
    /// How many replies it has read.
    answered: Arc<AtomicUsize>,
    writing: JoinHandle<Vec<u8>>,
    reading: JoinHandle<Vec<u8>>,
}

impl Pipeliner {
    fn start(daemon: &Daemon, together: &Arc<Barrier>) -> Self {
        let client = daemon.connect();
        let port = client.socket().local_addr().unwrap().port();
        let (mut writer, mut reader) = (
            client.socket().try_clone().unwrap(),
            client.socket().try_clone().unwrap(),
        );
        let ended = Arc::new(AtomicBool::new(false));
        let (sent, answered) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
        let (counter, behind, end) = (sent.clone(), answered.clone(), ended.clone());
        let together = together.clone();
        let writing = thread::spawn(move || {
            together.wait();
            let mut all = Vec::new();
            let mut number = 0;
            while !end.load(Ordering::Relaxed) {
                if number > behind.load(Ordering::Relaxed) + AHEAD {
                    thread::park_timeout(Duration::from_millis(5));
                    continue;
                }
                let mut block = Vec::new();
                for _ in 0..16 {
                    writeln!(block, "r{number}").unwrap();
                    number += 1;
                }
                all.extend_from_slice(&block);
                if writer.write_all(&block).is_err() {
                    break;
                }
                counter.store(all.len(), Ordering::Relaxed);
            }
            all
        });
        let counter = answered.clone();
        let reading = thread::spawn(move || {
            let mut all = Vec::new();
            let mut buffer = vec![0; 64 * 1024];
            loop {
                match reader.read(&mut buffer).expect("an end, not a reset") {
                    0 => break,
                    read => {
                        all.extend_from_slice(&buffer[..read]);
                        let lines = buffer[..read].iter().filter(|&&byte| byte == b'\n');
                        counter.fetch_add(lines.count(), Ordering::Relaxed);
                    }
                }
            }
            ended.store(true, Ordering::Relaxed);
            // What the writer is blocked in fails.
            let _ = reader.shutdown(Shutdown::Both);
            all
        });
        Pipeliner {
            port,
            sent,
            answered,
            writing,
            reading,
        }
    }

    /// Waits for the end. The replies must be those to a prefix of the requests, whole, and at least to all those that
    /// are whole within the first `arrived` bytes.
    fn check(self, arrived: usize) {
        let (sent, replies) = (self.writing.join().unwrap(), self.reading.join().unwrap());
        let replies = String::from_utf8(replies).unwrap();
        assert!(replies.ends_with('\n'), "a cut reply");
        let mut requests = std::str::from_utf8(&sent).unwrap().lines();
        let mut answered = 0;
        for reply in replies.lines() {
            let request = requests.next().expect("a reply to nothing");
            let expected = format!("ERR UNKNOWN no such command: \"{request}\" (try HELP)");
            assert_eq!(reply, expected);
            answered += 1;
        }
        let due = sent[..arrived].iter().filter(|&&byte| byte == b'\n');
        assert!(answered >= due.count(), "only {answered} are answered");
    }
}

#[test]
fn sigterm_under_64_pipelining_clients_loses_no_request_and_cuts_no_reply() {
    for round in 0..asked_for("BLOCKCHAIN_TCPD_TEST_ROUNDS", 10) {
        let mut daemon = Daemon::start([""; 0]);
        let together = Arc::new(Barrier::new(64));
        let clients: Vec<Pipeliner> = (0..64)
            .map(|_| Pipeliner::start(&daemon, &together))
            .collect();
        wait_until("all are in full flow", || {
            let flows = |client: &Pipeliner| client.answered.load(Ordering::Relaxed) > 16;
            clients.iter().all(flows)
        });
        // Every other time it is halted meanwhile, so that much is unread when the signal comes.
        if round % 2 == 0 {
            daemon.signal("STOP");
            let ahead = |client: &Pipeliner| {
                let answered = client.answered.load(Ordering::Relaxed);
                client.sent.load(Ordering::Relaxed) > (answered + AHEAD) * "r0\n".len()
            };
            wait_until("all are ahead of it", || clients.iter().all(ahead));
        }
        // What was written before, less what is on its way now, has arrived, whatever was written in between.
        let sent: Vec<usize> = clients
            .iter()
            .map(|client| client.sent.load(Ordering::Relaxed))
            .collect();
        let on_their_way = on_their_way(daemon.address);
        daemon.signal("TERM");
        daemon.signal("CONT");
        for (client, sent) in clients.into_iter().zip(sent) {
            let arrived = sent.saturating_sub(on_their_way[&client.port]);
            client.check(arrived);
        }
        let status = daemon.wait();
        let log = daemon.log().whole();
        assert!(status.success(), "{status}: {log}");
        assert!(!log.contains("cut off"), "{log}");
    }
}
