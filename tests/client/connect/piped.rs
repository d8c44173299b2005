//! With a program: one reply a line, and no other byte on standard output.

use std::fs::OpenOptions;
use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::SocketAddr;
use std::os::fd::AsFd as _;
use std::process::{Child, Stdio};

use super::{connect, fake};
use crate::client::{HINT, Ran, ran};
use crate::handover::replace;
use crate::support::{Daemon, Log, wait_until};

pub fn converse(server: SocketAddr, arguments: &[&str], input: impl AsRef<[u8]>) -> Ran {
    let mut command = connect(server, arguments);
    command
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    let mut child = command.spawn().expect("it starts");
    let mut keyboard = child.stdin.take().expect("a pipe");
    let input = input.as_ref().to_vec();
    let writer = std::thread::spawn(move || {
        // It may have gone.
        let _ = keyboard.write_all(&input);
    });
    let ran = ran(child.wait_with_output().expect("it ends"));
    writer.join().expect("written");
    ran
}

#[test]
fn each_line_has_one_reply() {
    let daemon = Daemon::start(["--max-clients", "4"]);
    let ran = converse(daemon.address, &[], "why\n\nPING\r\n \t \n  who\nhelp help");
    let expected =
        "42\nPONG\n1\nHELP [COMMAND]: the names of all commands, or what one of them does\n";
    assert_eq!((ran.status, ran.output.as_str()), (0, expected), "{ran:?}");
    assert_eq!(ran.errors, "");
    assert_eq!(daemon.ask("WHO"), "1\n", "it has waited for the server");
}

#[test]
fn an_error_is_a_reply_too_and_shows_in_the_status() {
    let daemon = Daemon::start(["--max-clients", "4"]);
    let input = b"why\nfoo\nwho \xff\nping\n";
    let ran = converse(daemon.address, &[], input);
    let expected = "42\nERR UNKNOWN no such command: \"foo\" (try HELP)\n\
                    ERR BADINPUT not printable ASCII: \"who \\xFF\"\nPONG\n";
    assert_eq!((ran.status, ran.output.as_str()), (1, expected), "{ran:?}");
    assert_eq!(ran.errors, "");
}

#[test]
fn a_goodbye_ends_it() {
    let daemon = Daemon::start(["--max-clients", "4"]);
    for goodbye in ["exit", "QUIT", " Exit "] {
        let ran = converse(daemon.address, &[], format!("why\n{goodbye}\nping\n"));
        assert_eq!(
            (ran.status, ran.output.as_str()),
            (0, "42\nBYE\n"),
            "{ran:?}"
        );
        assert_eq!(ran.errors, "");
        assert_eq!(daemon.ask("WHO"), "1\n");
    }
}

#[test]
fn no_input_is_no_question() {
    let daemon = Daemon::start(["--max-clients", "4"]);
    let ran = converse(daemon.address, &[], "");
    assert_eq!((ran.status, ran.output.as_str()), (0, ""), "{ran:?}");
    assert_eq!(ran.errors, "");
    let address = daemon.address;
    drop(daemon);
    let ran = converse(address, &[], "");
    let refused =
        format!("blockchain-tcp: can't connect to {address}: Connection refused\n{HINT}\n");
    assert_eq!((ran.status, ran.output.as_str()), (69, ""), "{ran:?}");
    assert_eq!(ran.errors, refused);
}

/// A client that is written to and read from by turns.
struct Coprocess {
    child: Child,
    replies: BufReader<std::process::ChildStdout>,
    errors: Log,
}

impl Coprocess {
    fn start(server: SocketAddr) -> Self {
        let mut command = connect(server, &[]);
        command
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        let mut child = command.spawn().expect("it starts");
        let replies = BufReader::new(child.stdout.take().expect("a pipe"));
        let errors = Log::follow(child.stderr.take().expect("a pipe"));
        Coprocess {
            child,
            replies,
            errors,
        }
    }

    fn send(&mut self, line: &str) {
        let input = self.child.stdin.as_mut().expect("a pipe");
        writeln!(input, "{line}").expect("it reads");
    }

    fn ask(&mut self, line: &str) -> String {
        self.send(line);
        let mut reply = String::new();
        self.replies.read_line(&mut reply).expect("ASCII");
        reply
    }

    /// The status at the end of the input, and what else it printed.
    fn end(&mut self) -> (Option<i32>, String) {
        drop(self.child.stdin.take());
        let mut rest = String::new();
        self.replies.read_to_string(&mut rest).expect("ASCII");
        (self.child.wait().expect("it ends").code(), rest)
    }
}

impl Drop for Coprocess {
    fn drop(&mut self) {
        // It may have ended.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[test]
fn each_reply_comes_before_the_next_line() {
    let daemon = Daemon::start(["--max-clients", "4"]);
    let mut client = Coprocess::start(daemon.address);
    assert_eq!(client.ask("why"), "42\n");
    assert_eq!(client.ask("\nping"), "PONG\n");
    replace(&daemon);
    assert_eq!(client.ask("who"), "1\n");
    assert_eq!(client.end(), (Some(0), String::new()));
    assert_eq!(client.errors.whole(), "");
}

#[test]
fn a_request_that_is_too_long_has_its_reply_and_others_follow() {
    let daemon = Daemon::start(["--max-clients", "4"]);
    let input = format!("why\n{}\nping\n", "x".repeat(60_000));
    let ran = converse(daemon.address, &[], input);
    let expected = "42\nERR TOOLONG a request has at most 1024 bytes\nPONG\n";
    assert_eq!((ran.status, ran.output.as_str()), (1, expected), "{ran:?}");
    let input = format!("why\n{}", "x".repeat(1_000_000));
    let ran = converse(daemon.address, &[], input);
    assert_eq!(
        (ran.status, ran.output.as_str()),
        (64, "42\n"),
        "{}",
        ran.errors
    );
    let long = "blockchain-tcp: a line of the input is longer than 65536 bytes\n";
    assert_eq!(ran.errors, long);
}

#[test]
fn a_full_server_ends_it_whenever_it_says_so() {
    let full = fake(|_, _| Some(b"ERR BUSY full with 1 clients, try again later\n".to_vec()));
    let ran = converse(full, &[], "why\nping\n");
    assert_eq!((ran.status, ran.output.as_str()), (75, ""), "{ran:?}");
    assert_eq!(
        ran.errors,
        "ERR BUSY full with 1 clients, try again later\n"
    );
    // Not asked, and without input.
    let daemon = Daemon::start(["--max-clients", "1", "--queue", "0"]);
    let mut taken = daemon.connect();
    assert_eq!(taken.ask("WHO"), "1");
    let mut client = Coprocess::start(daemon.address);
    assert_eq!(client.child.wait().expect("it ends").code(), Some(75));
    assert_eq!(client.end(), (Some(75), String::new()));
}

#[test]
fn a_reply_that_does_not_come_ends_it() {
    let server = fake(|_, line| (line != "two").then(|| b"1\n".to_vec()));
    let ran = converse(server, &["--timeout", "300ms"], "one\ntwo\nthree\n");
    assert_eq!((ran.status, ran.output.as_str()), (69, "1\n"), "{ran:?}");
    assert_eq!(
        ran.errors,
        "blockchain-tcp: no answer to two within 0.3 s\n"
    );
}

#[test]
fn output_that_nobody_takes_ends_it() {
    let daemon = Daemon::start(["--max-clients", "4"]);
    let full = OpenOptions::new()
        .write(true)
        .open("/dev/full")
        .expect("Linux has it");
    let mut command = connect(daemon.address, &[]);
    command
        .stdin(Stdio::piped())
        .stdout(full)
        .stderr(Stdio::piped());
    let mut child = command.spawn().expect("it starts");
    let mut input = child.stdin.take().expect("a pipe");
    input.write_all(b"why\n").expect("it reads");
    let ended = ran(child.wait_with_output().expect("it ends"));
    let full = "blockchain-tcp: can't write to standard output: No space left on device\n";
    assert_eq!((ended.status, ended.errors.as_str()), (74, full));
    // Whoever reads no further hears nothing, but may see it by the status.
    let mut command = connect(daemon.address, &[]);
    command
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    let mut child = command.spawn().expect("it starts");
    drop(child.stdout.take());
    let mut input = child.stdin.take().expect("a pipe");
    input.write_all(b"why\n").expect("it reads");
    let ended = ran(child.wait_with_output().expect("it ends"));
    assert_eq!((ended.status, ended.errors.as_str()), (74, ""));
}

#[test]
fn an_output_and_an_input_that_do_not_block_are_waited_for() {
    /// The size of the pipe, and of an id with its line end.
    const PAGE: usize = 4096;
    const REPLY: usize = 37;
    let daemon = Daemon::start(["--max-clients", "4"]);
    let lines = 5000;
    let (mut reader, writer) = std::io::pipe().expect("a pipe");
    rustix::pipe::fcntl_setpipe_size(&writer, PAGE).expect("a size");
    let (input, mut keyboard) = std::io::pipe().expect("a pipe");
    for end in [writer.as_fd(), input.as_fd()] {
        rustix::io::ioctl_fionbio(end, true).expect("a flag");
    }
    let mut command = connect(daemon.address, &[]);
    command.stdin(input).stdout(writer).stderr(Stdio::piped());
    let mut child = command.spawn().expect("it starts");
    drop(command);
    // It waits for input now.
    daemon.wait_for_others(1);
    let writing = std::thread::spawn(move || {
        // It may have gone.
        let _ = keyboard.write_all("WHERE\n".repeat(lines).as_bytes());
    });
    // Nothing is read before the pipe is full.
    let mut replies = Vec::new();
    let mut chunk = [0; PAGE];
    loop {
        wait_until("the pipe is full, or it has gone", || {
            let waiting = rustix::io::ioctl_fionread(&reader).expect("a pipe") as usize;
            waiting + REPLY > PAGE || child.try_wait().expect("it is our child").is_some()
        });
        match reader.read(&mut chunk).expect("a pipe") {
            0 => break,
            read => replies.extend_from_slice(&chunk[..read]),
        }
    }
    let ended = ran(child.wait_with_output().expect("it ends"));
    assert_eq!((ended.status, ended.errors.as_str()), (0, ""));
    assert_eq!(replies.len(), lines * REPLY);
    writing.join().expect("written");
}

#[test]
fn the_session_of_the_calculators_manual_is_so() {
    let daemon = Daemon::start(["--commands", "server,calc", "--max-clients", "4"]);
    let ran = converse(daemon.address, &[], "max 2 6\nnp 9999 1234 1 2 3 4\nexit\n");
    let expected = "6\n104723 10061 2 3 5 7\nBYE\n";
    assert_eq!((ran.status, ran.output.as_str()), (0, expected), "{ran:?}");
    assert_eq!(ran.errors, "");
}
