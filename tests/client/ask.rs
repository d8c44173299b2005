//! One question, one answer: the value, the exit status, JSON; which server, and how long it may take.

use std::fs::File;
use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::process::Stdio;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use super::{Ran, client, ran, run};
use crate::support::names::{Deaf, can_show, daemon_at, shown};
use crate::support::{Daemon, wait_until};

const CLIENT: &str = env!("CARGO_BIN_EXE_blockchain-tcp");

const ID: &str = "6f0c2a52-5f0e-4b7e-9a35-0c5f7f5a3c1e";

/// A daemon with this id.
fn start() -> Daemon {
    Daemon::start(["--max-clients", "4", "--server-id", ID])
}

/// Asks this server; the words are parted by blanks.
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
        ("why -2 -4", "why -2 -4\n"),
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
    ask(Server::answering(b"ERR NEW\n").address, "who").fails(1, "ERR NEW");
}

#[test]
fn a_task_that_is_misspelt_is_named() {
    let daemon = start();
    for (word, task) in [("conect", "connect"), ("Wacth", "watch")] {
        ask(daemon.address, word).fails(
            1,
            &format!(
                "ERR UNKNOWN no such command: \"{word}\" (try HELP)\n\
                 blockchain-tcp: is the task {task:?} meant? (see --help)"
            ),
        );
    }
    let error = &ask(daemon.address, "--json conect").json()["error"];
    assert_eq!(error["word"], "UNKNOWN");
}

#[test]
fn wrong_usage_is_64_and_says_what_is_wrong() {
    let cases: [(&[&str], &str); 10] = [
        (&[], "what is to be asked? For example: blockchain-tcp who"),
        (&[""], "an empty request gets no reply"),
        (&[" ", "\t"], "an empty request gets no reply"),
        (
            &["who\nwhy"],
            "a request is one line: the line end in it would make it two (see connect)",
        ),
        (
            &["add", "2\n", "5"],
            "a request is one line: the line end in it would make it two (see connect)",
        ),
        (&["--bogus"], "unexpected argument '--bogus' found"),
        (&["who", "--bogus"], "unexpected argument '--bogus' found"),
        (
            &["-s", "h:0", "who"],
            "invalid value 'h:0' for '--server <HOST[:PORT]>': a port is a number from 1 to 65535",
        ),
        (
            &["who", "-t", "5"],
            "invalid value '5' for '--timeout <DURATION>': not a duration with its unit, such as 500ms, 10s, 5m or 1h",
        ),
        (
            &["-4", "-6", "who"],
            "the argument '--use-ipv4' cannot be used with '--use-ipv6'",
        ),
    ];
    for (arguments, said) in cases {
        let ran = run(arguments);
        let seen = (ran.status, ran.output.as_str(), ran.errors.lines().next());
        let said = format!("blockchain-tcp: {said}");
        assert_eq!(seen, (64, "", Some(said.as_str())), "{arguments:?}");
    }
}

#[test]
fn a_wrong_variable_is_64_and_named_unless_a_flag_is_given() {
    use std::ffi::OsStr;
    use std::os::unix::ffi::OsStrExt as _;
    let daemon = start();
    let address = daemon.address.to_string();
    let server = "BLOCKCHAIN_TCP_SERVER";
    for (variable, bad, said) in [
        (
            server,
            &b"h:0"[..],
            "invalid value 'h:0' for '--server <HOST[:PORT]>': a port is a number from 1 to 65535, which comes from the \
             variable BLOCKCHAIN_TCP_SERVER",
        ),
        (
            "BLOCKCHAIN_TCP_TIMEOUT",
            b"5",
            "invalid value '5' for '--timeout <DURATION>': not a duration with its unit, such as 500ms, 10s, 5m or 1h, which \
             comes from the variable BLOCKCHAIN_TCP_TIMEOUT",
        ),
        (
            server,
            b"\x1b[31m",
            "the variable BLOCKCHAIN_TCP_SERVER holds something that is not text: \"\\u{1b}[31m\"",
        ),
        (
            server,
            b"x\xff",
            "the variable BLOCKCHAIN_TCP_SERVER holds something that is not text: \"x\\xFF\"",
        ),
    ] {
        let with = |arguments: &[&str]| {
            let mut command = client();
            command
                .env(variable, OsStr::from_bytes(bad))
                .args(arguments);
            ran(command.output().expect("it runs"))
        };
        let said = format!("blockchain-tcp: {said}");
        with(&["who"]).fails(64, &said);
        // The flag of the other doesn't help; both do, wherever they stand.
        let other = if variable == server { "-t5s" } else { "-sx" };
        with(&[other, "who"]).fails(64, &said);
        with(&["-s", &address, "-t5s", "why"]).is("42");
        with(&["why", "-s", &address, "-t5s"]).is("42");
        // What is wrong with the command line is said first.
        let ran = with(&["who", "--bogus"]);
        assert!(ran.errors.contains("'--bogus'"), "{ran:?}");
        assert_eq!(with(&["--help"]).status, 0);
    }
}

#[test]
fn the_variables_count_unless_they_are_empty_or_a_flag_is_given() {
    let (one, other) = (start(), Daemon::start(["--max-clients", "2"]));
    let (at, elsewhere) = (one.address.to_string(), other.address.to_string());
    let with = |server: &str, timeout: &str, arguments: &[&str]| {
        let mut command = client();
        command
            .env("BLOCKCHAIN_TCP_SERVER", server)
            .env("BLOCKCHAIN_TCP_TIMEOUT", timeout)
            .args(arguments);
        ran(command.output().expect("it runs"))
    };
    with(&at, "", &["where"]).is(ID);
    with(&elsewhere, "", &["where", "-s", &at]).is(ID);
    with(&elsewhere, "", &["-s", &at, "where"]).is(ID);
    assert_ne!(with(&elsewhere, "", &["where"]).output, format!("{ID}\n"));
    with("", "", &["-s", &at, "where"]).is(ID);
    for (variable, arguments, shown) in [
        ("250ms", &["who"][..], "0.25"),
        ("1h", &["who", "-t", "150ms"], "0.15"),
        ("1h", &["--timeout", "150ms", "who"], "0.15"),
    ] {
        let server = Server::stalling(b"");
        let ran = with(&server.address.to_string(), variable, arguments);
        ran.fails(
            69,
            &format!("blockchain-tcp: no answer to who within {shown} s"),
        );
    }
}

#[test]
fn the_server_is_localhost_at_4242_unless_named() {
    // Alone in a network of its own.
    let hosts = "127.0.0.1 localhost\n";
    if !can_show() {
        return;
    }
    for variable in [None, Some("")] {
        let ran = shown("/etc/hosts", hosts, "-mn", "", CLIENT, |mut command| {
            command.arg("who");
            variable.map(|value| command.env("BLOCKCHAIN_TCP_SERVER", value));
            ran(command.output().expect("it runs"))
        });
        let said = "blockchain-tcp: can't connect to 127.0.0.1:4242: ";
        assert!(ran.errors.starts_with(said), "{ran:?}");
        assert_eq!(ran.status, 69);
    }
}

#[test]
fn no_connection_or_no_reply_is_69() {
    let daemon = start();
    let address = daemon.address;
    daemon.stop();
    ask(address, "who").fails(
        69,
        &format!("blockchain-tcp: can't connect to {address}: Connection refused"),
    );
    let cases: [(&[u8], &str); 3] = [
        (b"", "closed without an answer to who"),
        (b"1", "closed in the middle of the answer to who: \"1\""),
        (
            b"1\x1b[2J",
            "closed in the middle of the answer to who: \"1\\x1b[2J\"",
        ),
    ];
    for (answer, said) in cases {
        let server = Server::answering(answer);
        ask(server.address, "who").fails(69, &format!("blockchain-tcp: {said}"));
    }
}

#[test]
fn a_line_without_an_end_is_69() {
    let pouring = Server::start(|stream| while stream.write_all(&[b'x'; 1000]).is_ok() {});
    let said = "x".repeat(80);
    ask(pouring.address, "who").fails(
        69,
        &format!("blockchain-tcp: the answer to who doesn't end: \"{said}...\""),
    );
}

/// The longest reply is longer than any of a server of ours.
#[test]
fn a_long_reply_comes_whole() {
    let reply: &'static str = "123456789 ".repeat(1600).leak();
    let line: &'static str = format!("{}\n", reply.trim_end()).leak();
    let server = Server::answering(line.as_bytes());
    let ran = ask(server.address, "np 1 511");
    assert!(ran.output == line, "{}", ran.output.len());
}

#[test]
fn one_that_stalls_is_69_at_the_time_out() {
    let timed = |address: SocketAddr, said: &str| {
        let begun = Instant::now();
        let ran = ask(address, "-t 400ms who");
        ran.fails(69, &format!("blockchain-tcp: {said}"));
        let passed = begun.elapsed();
        let bounds = Duration::from_millis(400)..Duration::from_secs(5);
        assert!(bounds.contains(&passed), "{passed:?}");
    };
    for answer in [&b""[..], b"1"] {
        let server = Server::stalling(answer);
        timed(server.address, "no answer to who within 0.4 s");
    }
    // It says something all the time, and never all.
    let trickling = Server::start(|stream| {
        while stream.write_all(b"1").is_ok() {
            std::thread::park_timeout(Duration::from_millis(20));
        }
    });
    timed(trickling.address, "no answer to who within 0.4 s");
    let deaf = Deaf::at(SocketAddr::from(([127, 0, 0, 1], 0)));
    let said = format!("can't connect to {}: connection timed out", deaf.address);
    timed(deaf.address, &said);
}

#[test]
fn a_full_server_is_75() {
    let daemon = Daemon::start(["--max-clients", "1", "--queue", "0"]);
    let _stays = daemon.connect();
    // The one that stays may be let in a little later.
    wait_until("it is full", || ask(daemon.address, "who").status == 75);
    let ran = ask(daemon.address, "who");
    assert!(ran.errors.starts_with("ERR BUSY "), "{ran:?}");
    ran.fails(75, ran.errors.trim_end());
    let ran = ask(daemon.address, "--json who");
    assert_eq!(
        (ran.status, &ran.json()["error"]["word"]),
        (75, &json!("BUSY"))
    );
}

#[test]
fn what_cannot_be_printed_is_74_unless_nobody_wants_it() {
    let daemon = start();
    let address = daemon.address.to_string();
    let full = || {
        File::options()
            .write(true)
            .open("/dev/full")
            .expect("it is there")
    };
    let printing_to = |stdout: Stdio, arguments: &[&str]| {
        let mut command = client();
        command.args(["-s", &address]).args(arguments);
        let child = command.stdout(stdout).stderr(Stdio::piped()).spawn();
        ran(child.expect("it runs").wait_with_output().expect("it ends"))
    };
    for arguments in [
        &["who"][..],
        &["--json", "who"],
        &["--json", "foo"],
        &["--help"],
    ] {
        printing_to(full().into(), arguments).fails(
            74,
            "blockchain-tcp: can't write to standard output: No space left on device",
        );
        let (reader, writer) = std::io::pipe().expect("a pipe");
        drop(reader);
        let ran = printing_to(writer.into(), arguments);
        assert_eq!((ran.status, ran.errors.as_str()), (74, ""));
    }
    // An exit status tells it even if the sentence can't be written.
    let mut command = client();
    command.args(["-s", &address, "foo"]).stderr(full());
    assert_eq!(command.status().expect("it runs").code(), Some(1));
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
        (b"PONG\r\n", "PONG", json!([])),
        (b"\"\\\n", "\"\\", json!([])),
        (b"\n", "", json!([])),
    ] {
        let (status, object) = object(answer, "--json max 1");
        let wanted =
            json!({ "request": "max 1", "seconds": null, "reply": reply, "numbers": numbers });
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

#[test]
fn hostile_replies_come_out_harmless() {
    let answer = b"1\x1b[2J\x07\x7f\xff\xc3\xa9\t\r2\n";
    let harmless = "1?[2J???????2";
    ask(Server::answering(answer).address, "who").is(harmless);
    let object = ask(Server::answering(answer).address, "--json who").json();
    assert_eq!(object["reply"], harmless);
    let answer = b"ERR X\x1b]0;x\x07 \x9b31m\n";
    ask(Server::answering(answer).address, "who").fails(1, "ERR X?]0;x? ?31m");
    // What it says unasked, it says in vain.
    ask(Server::answering(b"1\nERR no\n\x1b[2J").address, "who").is("1");
}

#[test]
fn ipv4_and_ipv6_can_be_chosen() {
    let daemon = start();
    for flag in ["-4", "--use-ipv4"] {
        ask(daemon.address, &format!("{flag} why")).is("42");
    }
    for flag in ["-6", "--use-ipv6"] {
        let ran = ask(daemon.address, &format!("{flag} why"));
        ran.fails(69, "blockchain-tcp: \"127.0.0.1\" has no IPv6 address");
    }
    ask("[::1]:4242", "-4 why").fails(69, "blockchain-tcp: \"::1\" has no IPv4 address");
    if TcpListener::bind("[::1]:0").is_err() {
        eprintln!("left out: no IPv6 here");
        return;
    }
    // As the only address, which is the first.
    let mut command = crate::support::program();
    command.args(["--listen", "[::1]:0", "--max-clients", "2"]);
    let daemon = Daemon::run(command);
    let server = daemon.address.to_string();
    assert!(server.starts_with("[::1]:"), "{server}");
    ask(&server, "why").is("42");
    ask(&server, "-6 why").is("42");
}

#[test]
fn a_name_without_address_is_69() {
    if !can_show() {
        return;
    }
    // Without a network there is nobody to ask, and so there is no such name.
    let nobody = "nameserver 127.0.0.1\n";
    let ran = shown(
        "/etc/resolv.conf",
        nobody,
        "-mn",
        "",
        CLIENT,
        |mut command| {
            command.args(["-s", "nosuch.invalid", "who"]);
            ran(command.output().expect("it runs"))
        },
    );
    let said = "blockchain-tcp: no address of \"nosuch.invalid\": ";
    assert!(ran.errors.starts_with(said), "{ran:?}");
    assert_eq!((ran.status, ran.output.as_str()), (69, ""));
}

/// Whichever the system names first: the daemon is at the one, and then at the other.
#[test]
fn all_addresses_of_a_name_are_tried() {
    if !can_show() {
        return;
    }
    let (one, other) = ([127, 66, 0, 3], [127, 77, 0, 4]);
    let hosts = "127.66.0.3 ledger\n127.77.0.4 ledger\n";
    for (up, down) in [(one, other), (other, one)] {
        let (_daemon, port) = daemon_at(up);
        let ask = || {
            let server = format!("ledger:{port}");
            shown("/etc/hosts", hosts, "-m", "", CLIENT, |mut command| {
                command.args(["-s", &server, "-t", "4s", "why"]);
                ran(command.output().expect("it runs"))
            })
        };
        ask().is("42");
        let _deaf = Deaf::at(SocketAddr::from((down, port)));
        ask().is("42");
    }
}
