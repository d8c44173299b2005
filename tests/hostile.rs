//! Clients that harm themselves or others: what they cost is bounded, and others are served meanwhile.

use std::io::Write as _;
use std::net::Shutdown;
use std::process::Command;
use std::thread;
use std::time::{Duration, Instant};

use rustix::net::SendFlags;

use crate::protocol::are_replies;
use crate::settings::flags;
use crate::support::{Client, Daemon, PATIENCE, assert_contains, unknown};

/// The daemon of these tests, with few workers, and how much memory it took before the first client.
struct Beset {
    daemon: Daemon,
    memory: u64,
}

const WORKERS: usize = 4;

const TIMED_OUT: &str = "ERR TIMEOUT no request for too long\n";

impl Beset {
    fn start(arguments: &[&str]) -> Self {
        let fixed = ["--max-clients", "4", "--queue", "128"];
        let daemon = Daemon::start(fixed.iter().chain(arguments));
        assert_eq!(daemon.ask("WHY\n"), "42\n");
        let memory = daemon.status_number("VmHWM");
        Beset { daemon, memory }
    }

    /// Others are served meanwhile.
    fn serves_others(&self) {
        assert_eq!(self.daemon.ask("WHY\nPING\n"), "42\nPONG\n");
    }

    /// In the end nobody is left, all workers are back, and at no time did it take much more memory than before.
    fn ends_well(self) {
        self.serves_others();
        self.daemon.wait_for_others(0);
        drop(self.daemon.served(WORKERS));
        self.daemon.wait_for_others(0);
        let more = self.daemon.status_number("VmHWM") - self.memory;
        // KiB: buffers of 1 KiB to read and 64 KiB to write for each worker, 64 to throw away, and the allocator's own.
        assert!(more < 1024, "{more} KiB");
        let log = self.daemon.stop();
        assert!(!log.contains("panic"), "{log}");
    }
}

/// - A client that takes longer than the write time-out (10 seconds unless set otherwise) to take its replies is cut off.
#[test]
fn a_client_that_never_reads_is_cut_off() {
    assert!(flags().contains(&("--write-timeout", "0s", Some("10s"))));
    let beset = Beset::start(&["--write-timeout", "500ms"]);
    let begun = Instant::now();
    let mut clients = [(); 2].map(|()| Client::connect_narrow(beset.daemon.address));
    for client in &mut clients {
        client.flood(&beset.daemon, 1);
    }
    beset.serves_others();
    for client in &mut clients {
        client.ask_until_cut_off();
        assert!(!client.whatever_comes().contains("ERR TIMEOUT "));
    }
    assert!(begun.elapsed() >= Duration::from_millis(490));
    beset.ends_well();
}

/// Otherwise each client that doesn't read could have the kernel keep megabytes for it.
#[test]
fn what_the_kernel_keeps_for_a_client_is_bounded() {
    needs!("ss");
    let daemon = Daemon::start([""; 0]);
    let _client = daemon.served(1);
    let port = format!("sport = :{}", daemon.address.port());
    let sockets = Command::new("ss").args(["-tnmH", &port]).output().unwrap();
    // Twice what was asked for (socket(7)).
    assert_contains(&String::from_utf8_lossy(&sockets.stdout), ",tb131072,");
}

#[test]
fn a_byte_sent_as_urgent_is_a_byte() {
    let daemon = Daemon::start([""; 0]);
    let mut client = daemon.connect();
    client.send("W");
    let sent = rustix::net::send(client.socket(), b"H", SendFlags::OOB);
    assert_eq!(sent, Ok(1));
    assert_eq!(client.ask("Y"), "42");
}

/// - `ERR TIMEOUT`: the client has completed no request for too long; the server says so without being asked, and then it
///   closes.
/// - A client that completes no request for the idle time-out (5 minutes unless set otherwise) is answered `ERR TIMEOUT`.
/// - Bytes that complete no request don't put off the idle time-out.
#[test]
fn a_client_that_completes_no_request_is_timed_out() {
    assert!(flags().contains(&("--idle-timeout", "5", Some("5m"))));
    let beset = Beset::start(&["--idle-timeout", "500ms"]);
    for (request, reply) in [("", ""), ("WHY\n", "42\n")] {
        let begun = Instant::now();
        let mut client = beset.daemon.connect();
        client.send(request);
        assert_eq!(client.rest(), format!("{reply}{TIMED_OUT}"));
        assert!(begun.elapsed() >= Duration::from_millis(490));
    }
    for byte in [b'x', b'\n', b' '] {
        let mut client = beset.daemon.connect();
        let mut socket = client.socket();
        let pace = Some(Duration::from_millis(20));
        socket.set_read_timeout(pace).expect("a time-out");
        // A byte whenever nothing has come. If they counted, this would go on to its end.
        let has_come = (0..1000).any(|_| {
            socket.write_all(&[byte]).expect("it is taken");
            socket.peek(&mut [0]).is_ok()
        });
        assert!(has_come, "{byte:?} keeps the client in");
        socket.set_read_timeout(Some(PATIENCE)).expect("a time-out");
        assert_eq!(client.rest(), TIMED_OUT);
    }
    beset.ends_well();
}

#[test]
fn a_megabyte_without_a_line_end_is_too_long() {
    let beset = Beset::start(&[]);
    for _ in 0..10 {
        let mut client = beset.daemon.connect();
        let mut sender = client.socket().try_clone().unwrap();
        // It may be closed meanwhile.
        let mut send = move |_| sender.write_all(&[b'x'; 1024]).is_ok();
        let sending = thread::spawn(move || (0..1024).all(&mut send));
        let expected = "ERR TOOLONG a request has at most 1024 bytes\n";
        assert_eq!(client.rest(), expected);
        sending.join().unwrap();
        beset.serves_others();
    }
    beset.ends_well();
}

/// - Any number of requests may be sent at once, without waiting for replies.
#[test]
fn a_hundred_thousand_requests_at_once_are_answered_in_order() {
    const REQUESTS: usize = 100_000;
    let beset = Beset::start(&[]);
    let mut client = beset.daemon.connect();
    let mut sender = client.socket().try_clone().unwrap();
    let sending = thread::spawn(move || {
        let requests: String = (0..REQUESTS).map(|number| format!("r{number}\n")).collect();
        sender.write_all(requests.as_bytes()).unwrap();
        sender.shutdown(Shutdown::Write).unwrap();
    });
    for number in 0..REQUESTS {
        let expected = unknown(&format!("r{number}"));
        assert_eq!(client.line(), Some(expected));
        if number == REQUESTS / 2 {
            beset.serves_others();
        }
    }
    assert_eq!(client.line(), None);
    sending.join().unwrap();
    beset.ends_well();
}

#[test]
fn a_client_may_vanish_at_any_moment() {
    let beset = Beset::start(&[]);
    let short = "|WH|WHY\n|WHY\nWH|QUIT\n|\x16\x03\x01|HELP\n".split('|');
    let long = ["HELP\n".repeat(1000), "x".repeat(1024), "x".repeat(3000)];
    for request in short.chain(long.iter().map(String::as_str)) {
        for read_first in [false, true] {
            for end in ["close", "reset", "half-close, close", "half-close, reset"] {
                let mut client = beset.daemon.connect();
                client.send(request);
                if read_first && request.contains('\n') {
                    client.line().expect("a reply");
                }
                if end.starts_with("half-close") {
                    client.shutdown();
                }
                if end.ends_with("reset") {
                    client.reset();
                }
            }
        }
    }
    beset.ends_well();
}

#[test]
fn garbage_is_answered_by_errors() {
    let beset = Beset::start(&[]);
    let every_byte: Vec<u8> = (0..=255).cycle().take(100_000).collect();
    let replies = beset.daemon.ask(every_byte);
    assert!(are_replies(&replies), "{replies:?}");
    assert!(replies.lines().count() > 100, "{replies:?}");
    assert!(replies.lines().all(|line| line.starts_with("ERR ")));
    beset.ends_well();
}

#[test]
fn floods_of_requests_keep_nobody_else_waiting() {
    let beset = Beset::start(&[]);
    let reply = beset.daemon.ask("HELP HELP\n");
    thread::scope(|scope| {
        for _ in 1..WORKERS {
            let mut client = beset.daemon.connect();
            let mut sender = client.socket().try_clone().unwrap();
            scope.spawn(move || {
                for _ in 0..500 {
                    sender.write_all(&b"HELP HELP\n".repeat(100)).unwrap();
                }
                sender.shutdown(Shutdown::Write).unwrap();
            });
            let expected = 50_000 * reply.len();
            scope.spawn(move || assert_eq!(client.rest().len(), expected));
        }
        for _ in 0..20 {
            beset.serves_others();
        }
    });
    beset.ends_well();
}
