//! One question, one answer: the value, the exit status, JSON. What is wrong with the question in `usage`, which server is asked in
//! `ways`, and what may go wrong there in `trouble`.

mod trouble;
mod usage;
mod ways;

use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::thread::JoinHandle;
use std::time::Instant;

use serde_json::{Value, json};

use super::{Ran, run};
use crate::support::Daemon;

const ID: &str = "6f0c2a52-5f0e-4b7e-9a35-0c5f7f5a3c1e";

/// A daemon with this id.
fn start() -> Daemon {
    Daemon::start(["--max-clients", "4", "--server-id", ID])
}

/// Asks this server; the words are separated by blanks.
fn ask(server: impl ToString, words: &str) -> Ran {
    run(["--server", &server.to_string()]
        .into_iter()
        .chain(words.split(' ')))
}

impl Ran {
    /// A value, and nothing else.
    fn is(&self, value: &str) {
        let seen = (self.status, self.output.as_str(), self.errors.as_str());
        assert_eq!(seen, (0, format!("{value}\n").as_str(), ""));
    }

    /// No value, and this on standard error.
    fn fails(&self, status: i32, errors: &str) {
        let seen = (self.status, self.output.as_str(), self.errors.as_str());
        assert_eq!(seen, (status, "", format!("{errors}\n").as_str()));
    }

    /// One object.
    fn json(&self) -> Value {
        assert_eq!(self.errors, "");
        assert_eq!(self.output.lines().count(), 1, "{self:?}");
        serde_json::from_str(&self.output).expect("JSON")
    }
}

/// A server for one client. It reads a line and then does as it likes.
struct Server {
    address: SocketAddr,
    thread: JoinHandle<String>,
}

impl Server {
    fn start(serve: impl FnOnce(&mut TcpStream) + Send + 'static) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
        let address = listener.local_addr().expect("it is bound");
        let thread = std::thread::spawn(move || {
            let (mut stream, _) = listener.accept().expect("a client");
            let mut request = String::new();
            let mut reader = BufReader::new(stream.try_clone().expect("a descriptor"));
            reader.read_line(&mut request).expect("a request");
            serve(&mut stream);
            request
        });
        Server { address, thread }
    }

    /// It answers this and closes.
    fn answering(answer: &'static [u8]) -> Self {
        Server::start(|stream| stream.write_all(answer).expect("a client that reads"))
    }

    /// It answers this, and then nothing until the client has gone.
    fn stalling(answer: &'static [u8]) -> Self {
        Server::start(|stream| {
            stream.write_all(answer).expect("a client that reads");
            // The end, in whichever way it comes.
            let _ = stream.read(&mut [0]);
        })
    }

    /// What it was asked.
    fn asked(self) -> String {
        self.thread.join().expect("a server that did its work")
    }
}

#[test]
fn every_command_answers_by_its_name() {
    let daemon = start();
    let names = daemon.ask("HELP\n");
    assert!(names.split_whitespace().count() >= 7, "{names}");
    for name in names.split_whitespace() {
        let reply = daemon.ask(format!("{name}\n"));
        for written in [name.to_lowercase(), name.to_string()] {
            daemon.wait_for_others(0);
            let ran = ask(daemon.address, &written);
            // Of those that need arguments the complaint.
            match reply.strip_prefix("ERR ") {
                None => ran.is(reply.trim_end()),
                Some(_) => ran.fails(1, reply.trim_end()),
            }
        }
    }
}

#[test]
fn the_value_is_printed_and_nothing_else() {
    let daemon = start();
    let _somebody = daemon.connect();
    daemon.wait_for_others(1);
    ask(daemon.address, "who").is("2");
    ask(daemon.address, "where").is(ID);
    ask(daemon.address, "why").is("42");
    ask(daemon.address, "help why").is("WHY: the answer");
}

#[test]
fn a_request_reaches_the_server_as_it_was_written() {
    for (words, request) in [
        ("add -2 5", "add -2 5\n"),
        ("max -2 -3 4", "max -2 -3 4\n"),
        // Numbers, not options, also behind a command that is known.
        ("help -2 -4", "help -2 -4\n"),
        ("add 2 -4", "add 2 -4\n"),
        ("future -x --json", "future -x --json\n"),
        ("Who", "Who\n"),
        ("-- watch me", "watch me\n"),
    ] {
        let server = Server::answering(b"3\n");
        ask(server.address, words).is("3");
        assert_eq!(server.asked(), request);
    }
    // In one word, too.
    let server = Server::answering(b"3\n");
    let address = server.address.to_string();
    run(["--server", &address, "add 2  5"]).is("3");
    assert_eq!(server.asked(), "add 2  5\n");
    // The longest that a server takes.
    let server = Server::answering(b"3\n");
    let longest = format!("max {}", "1 ".repeat(509));
    ask(server.address, longest.trim_end()).is("3");
    assert_eq!(server.asked(), format!("{}\n", longest.trim_end()));
}

#[test]
fn options_may_stand_behind_a_request() {
    let daemon = start();
    let address = daemon.address.to_string();
    run(["why", "--server", &address, "-t", "5s", "--use-ipv4"]).is("42");
    assert_eq!(run(["WHY", "--json", "-s", &address]).json()["reply"], "42");
}

#[test]
fn an_error_of_the_server_is_1_and_on_standard_error() {
    let daemon = start();
    ask(daemon.address, "foo bar").fails(1, "ERR UNKNOWN no such command: \"foo\" (try HELP)");
    let ran = ask(daemon.address, "why 2");
    assert!(ran.errors.starts_with("ERR USAGE "), "{ran:?}");
    ran.fails(1, ran.errors.trim_end());
    let ran = ask(daemon.address, "f\u{fc}r");
    assert!(ran.errors.starts_with("ERR BADINPUT "), "{ran:?}");
    let ran = ask(daemon.address, &"x".repeat(1024));
    assert!(ran.errors.starts_with("ERR TOOLONG "), "{ran:?}");
    // A word that comes in later versions.
    ask(Server::answering(b"ERR NEW no\n").address, "who").fails(1, "ERR NEW no");
}

#[test]
fn json_is_one_object_with_the_numbers_of_the_reply() {
    let object = |answer: &'static [u8], words: &str| {
        let server = Server::answering(answer);
        let begun = Instant::now();
        let ran = ask(server.address, words);
        let passed = begun.elapsed().as_secs_f64();
        let mut object = ran.json();
        let seconds = object["seconds"].take().as_f64().expect("a number");
        assert!(seconds > 0.0 && seconds < passed, "{seconds}");
        (ran.status, object)
    };
    for (answer, reply, numbers) in [
        (&b"17\n"[..], "17", json!([17])),
        (b"3 -37\n", "3 -37", json!([3, -37])),
        (b"PONG\n", "PONG", json!([])),
        (b"\"\\\n", "\"\\", json!([])),
    ] {
        let (status, object) = object(answer, "--json later 1");
        let wanted =
            json!({ "request": "later 1", "seconds": null, "reply": reply, "numbers": numbers });
        assert_eq!((status, object), (0, wanted));
    }
    let (status, refused) = object(b"ERR USAGE WHY takes nothing\n", "why 2 --json");
    let error = json!({ "word": "USAGE", "message": "WHY takes nothing" });
    let wanted = json!({ "request": "why 2", "seconds": null, "error": error });
    assert_eq!((status, refused), (1, wanted));
    let (status, closed) = object(b"", "who --json");
    let error = json!({ "word": null, "message": "closed without an answer to who" });
    let wanted = json!({ "request": "who", "seconds": null, "error": error });
    assert_eq!((status, closed), (69, wanted));
}
