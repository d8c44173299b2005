//! Clients that harm themselves or others: what they cost is bounded, and others are served meanwhile.

use std::io::{self, Read as _, Write as _};
use std::net::Shutdown;
use std::process::Command;
use std::thread;
use std::time::{Duration, Instant};

use rustix::net::SendFlags;

use crate::support::{Client, Daemon, wait_until};

/// The daemon of these tests, with few workers, and how much memory it took before the first client.
struct Beset {
    daemon: Daemon,
    memory: u64,
}

const WORKERS: usize = 4;

impl Beset {
    fn start(arguments: &[&str]) -> Self {
        let fixed = ["--max-clients", "4", "--queue", "128"];
        let daemon = Daemon::start(fixed.iter().chain(arguments));
        assert_eq!(daemon.ask("WHY\n"), "42\n");
        Beset {
            memory: daemon.status_number("VmHWM"),
            daemon,
        }
    }

    /// Others are served meanwhile.
    fn serves_others(&self) {
        assert_eq!(self.daemon.ask("WHY\nPING\n"), "42\nPONG\n");
    }

    /// In the end nobody is left, all workers are back, and at no time did it take much more memory than before.
    fn ends_well(self) {
        self.daemon.wait_for_others(0);
        let mut clients: Vec<Client> = (0..WORKERS).map(|_| self.daemon.connect()).collect();
        for client in &mut clients {
            assert_eq!(client.ask("WHY"), "42");
        }
        drop(clients);
        self.daemon.wait_for_others(0);
        let more = self.daemon.status_number("VmHWM") - self.memory;
        // KiB: buffers of 1 KiB to read and 64 KiB to write for each worker, 64 to throw away, and the allocator's own.
        assert!(more < 1024, "{more} KiB");
        let log = self.daemon.stop();
        assert!(!log.contains("panic"), "{log}");
    }
}

#[test]
fn a_client_that_never_reads_is_cut_off() {
    let beset = Beset::start(&["--write-timeout", "500ms"]);
    let mut clients: Vec<Client> = (0..2).map(|_| beset.daemon.connect()).collect();
    let begun = Instant::now();
    for client in &mut clients {
        client.flood(&beset.daemon, 1);
    }
    beset.serves_others();
    for client in &mut clients {
        let mut socket = client.socket();
        let error = loop {
            if let Err(error) = socket.write_all(&[b'\n'; 4096]) {
                break error;
            }
        };
        let told = [io::ErrorKind::ConnectionReset, io::ErrorKind::BrokenPipe];
        assert!(told.contains(&error.kind()), "{error}");
    }
    assert!(begun.elapsed() >= Duration::from_millis(490));
    beset.ends_well();
}

/// Otherwise each client that doesn't read could have the kernel keep megabytes for it.
#[test]
fn what_the_kernel_keeps_for_a_client_is_bounded() {
    needs!("ss");
    let daemon = Daemon::start([""; 0]);
    let mut client = daemon.connect();
    assert_eq!(client.ask("WHY"), "42");
    let port = format!("sport = :{}", daemon.address.port());
    let sockets = Command::new("ss").args(["-tnmH", &port]).output().unwrap();
    let sockets = String::from_utf8(sockets.stdout).unwrap();
    // Twice what was asked for (socket(7)).
    assert!(sockets.contains(",tb131072,"), "{sockets}");
}

#[test]
fn a_byte_sent_as_urgent_is_a_byte() {
    let daemon = Daemon::start([""; 0]);
    let mut client = daemon.connect();
    client.send("W");
    assert_eq!(
        rustix::net::send(client.socket(), b"H", SendFlags::OOB),
        Ok(1)
    );
    client.send("Y\n");
    assert_eq!(client.line().as_deref(), Some("42"));
}

#[test]
fn a_client_that_trickles_is_timed_out() {
    let beset = Beset::start(&["--idle-timeout", "500ms"]);
    let begun = Instant::now();
    let mut silent = beset.daemon.connect();
    let mut trickling = beset.daemon.connect();
    let mut socket = trickling.socket();
    socket.set_nonblocking(true).unwrap();
    let mut left = [b'x'; 1000].iter();
    let mut next = begun;
    wait_until("it is sent away", || {
        if Instant::now() >= next {
            next += Duration::from_millis(20);
            // Once it is sent away, this may fail.
            let _ = left.next().map(|&byte| socket.write_all(&[byte]));
        }
        socket.peek(&mut [0]).is_ok()
    });
    assert!(left.len() > 0, "it was waited for until it was silent");
    assert!(begun.elapsed() >= Duration::from_millis(490));
    socket.set_nonblocking(false).unwrap();
    let expected = "ERR TIMEOUT no request for too long";
    assert_eq!(trickling.line().as_deref(), Some(expected));
    assert_eq!(silent.line().as_deref(), Some(expected));
    assert_eq!(silent.rest(), "");
    beset.serves_others();
    beset.ends_well();
}

#[test]
fn a_megabyte_without_an_end_is_too_long() {
    let beset = Beset::start(&[]);
    for _ in 0..10 {
        let mut client = beset.daemon.connect();
        let mut sender = client.socket().try_clone().unwrap();
        let sending = thread::spawn(move || {
            for _ in 0..1024 {
                // It may have been closed meanwhile.
                if sender.write_all(&[b'x'; 1024]).is_err() {
                    break;
                }
            }
        });
        let reply = client.line();
        let expected = "ERR TOOLONG a request has at most 1024 bytes";
        assert_eq!(reply.as_deref(), Some(expected));
        assert_eq!(client.line(), None);
        sending.join().unwrap();
        beset.serves_others();
    }
    beset.ends_well();
}

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
        let expected = format!("ERR UNKNOWN no such command: \"r{number}\" (try HELP)");
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
    let requests = [
        "",
        "WH",
        "WHY\n",
        "WHY\nWH",
        "QUIT\n",
        "\x16\x03\x01",
        "HELP\n",
    ];
    let long = ["HELP\n".repeat(1000), "x".repeat(1024), "x".repeat(3000)];
    for request in requests.into_iter().chain(long.iter().map(String::as_str)) {
        for read_first in [false, true] {
            for leaving in ["close", "reset", "half-close, close", "half-close, reset"] {
                let mut client = beset.daemon.connect();
                client.send(request);
                if read_first && request.contains('\n') {
                    client.line().expect("a reply");
                }
                if leaving.starts_with("half-close") {
                    client.shutdown();
                }
                if leaving.ends_with("reset") {
                    client.reset();
                }
            }
        }
    }
    beset.serves_others();
    beset.ends_well();
}

#[test]
fn other_protocols_are_told_line_by_line_that_this_is_none_of_them() {
    let beset = Beset::start(&[]);
    let http = beset.daemon.ask(
        "GET /metrics HTTP/1.1\r\nHost: localhost:4242\r\nUser-Agent: curl/7.88.1\r\nAccept: */*\r\n\r\n",
    );
    assert_eq!(http.lines().count(), 4, "{http:?}");
    assert!(
        http.lines().all(|line| line.starts_with("ERR UNKNOWN ")),
        "{http:?}"
    );

    // The beginning of a TLS ClientHello, which has a byte 10 in it, as any may.
    let hello =
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\x8c\x0a\x91\xd4\x00\x00\xff\x20\x0a\x13\x02";
    let mut tls = beset.daemon.connect();
    tls.send(hello);
    tls.shutdown();
    let tls = tls.rest();
    assert_eq!(tls.lines().count(), 3, "{tls:?}");
    assert!(
        tls.lines().all(|line| line.starts_with("ERR BADINPUT ")),
        "{tls:?}"
    );
    assert!(
        tls.bytes().all(|byte| matches!(byte, b' '..=b'~' | b'\n')),
        "{tls:?}"
    );

    // Every byte there is, over and over.
    let all: Vec<u8> = (0..=255).cycle().take(100_000).collect();
    let mut garbage = beset.daemon.connect();
    garbage.send(&all);
    garbage.shutdown();
    let garbage = garbage.rest();
    assert!(garbage.lines().count() > 100, "{garbage:?}");
    assert!(
        garbage.lines().all(|line| line.starts_with("ERR ")),
        "{garbage:?}"
    );
    assert!(
        garbage
            .bytes()
            .all(|byte| matches!(byte, b' '..=b'~' | b'\n'))
    );
    beset.ends_well();
}

#[test]
fn floods_of_questions_keep_nobody_else_waiting() {
    let beset = Beset::start(&[]);
    let floods: Vec<_> = (0..WORKERS - 1)
        .map(|_| {
            let client = beset.daemon.connect();
            let mut reader = client.socket().try_clone().unwrap();
            let reading = thread::spawn(move || {
                let (mut read, mut buffer) = (0, vec![0; 64 * 1024]);
                loop {
                    match reader.read(&mut buffer).unwrap() {
                        0 => return read,
                        more => read += more,
                    }
                }
            });
            let writing = thread::spawn(move || {
                for _ in 0..500 {
                    client
                        .socket()
                        .write_all(&b"HELP HELP\n".repeat(100))
                        .unwrap();
                }
                client.shutdown();
            });
            (reading, writing)
        })
        .collect();
    for _ in 0..20 {
        beset.serves_others();
    }
    let reply = beset.daemon.ask("HELP HELP\n");
    for (reading, writing) in floods {
        writing.join().unwrap();
        assert_eq!(reading.join().unwrap(), 50_000 * reply.len());
    }
    beset.ends_well();
}
