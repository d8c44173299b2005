//! Servers that are none, or mean harm: each is CRITICAL, in bounded time, and nothing of theirs gets among the figures.

use std::io::{Read as _, Write as _};
use std::net::{TcpListener, TcpStream};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use super::{CRITICAL, ID, OK, Outcome, at_port, check};

/// A server for one client, which does with it as it likes after it has read all requests.
struct Server {
    port: u16,
    thread: JoinHandle<Option<TcpStream>>,
}

impl Server {
    /// What `serve` returns is kept open until the end.
    fn start(serve: impl FnOnce(TcpStream) -> Option<TcpStream> + Send + 'static) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
        let port = listener.local_addr().expect("it is bound").port();
        let thread = thread::spawn(move || {
            let (mut stream, _) = listener.accept().expect("a client");
            let mut requests = Vec::new();
            stream.read_to_end(&mut requests).expect("requests");
            assert_eq!(requests, b"WHO\nWHERE\nWHY\n");
            serve(stream)
        });
        Server { port, thread }
    }

    /// It answers this and closes.
    fn answering(answer: impl Into<Vec<u8>>) -> Self {
        let answer = answer.into();
        Server::start(move |mut stream| {
            stream.write_all(&answer).expect("a client that reads");
            None
        })
    }

    /// It sends this over and over, a piece each time, until the client is gone.
    fn pouring(piece: &'static [u8], pause: Duration) -> Self {
        Server::start(move |mut stream| {
            while stream.write_all(piece).is_ok() {
                thread::park_timeout(pause);
            }
            None
        })
    }

    fn check(self, arguments: &[&str]) -> Outcome {
        let arguments = arguments.iter().map(|argument| (*argument).to_string());
        let outcome = check(at_port(self.port).into_iter().chain(arguments));
        self.thread.join().expect("all was asked");
        outcome
    }

    fn ends_critical(self, said: &str) {
        self.check(&[]).says(CRITICAL, said);
    }
}

/// Three answers, right but for what is put into them.
fn answers(who: &str, id: &str, why: &str) -> String {
    format!("{who}\n{id}\n{why}\n")
}

#[test]
fn right_answers_are_ok_however_they_come() {
    let outcome = Server::answering(answers("12", ID, "42")).check(&[]);
    assert_eq!(outcome.status, OK, "{outcome:?}");
    assert!(
        outcome
            .text()
            .starts_with("BLOCKCHAIN-TCP OK - 12 clients, "),
        "{outcome:?}"
    );
    let bytewise = Server::start(|mut stream| {
        stream.set_nodelay(true).expect("connected");
        for byte in answers("12", ID, "42").into_bytes() {
            stream.write_all(&[byte]).expect("a client that reads");
            thread::yield_now();
        }
        None
    });
    assert_eq!(bytewise.check(&[]).status, OK);
}

#[test]
fn a_wrong_count_is_critical() {
    for wrong in [
        "0",
        "",
        "-1",
        "+1",
        " 1",
        "1 ",
        "1\r",
        "1.5",
        "x",
        "99999999999999999999999",
        "PONG",
    ] {
        let shown = wrong.replace('\r', "\\x0d");
        let said = format!("WHO is answered \"{shown}\" instead of a number from 1 on");
        Server::answering(answers(wrong, ID, "42")).ends_critical(&said);
    }
}

#[test]
fn a_wrong_id_is_critical() {
    let upper = ID.to_uppercase();
    let simple = ID.replace('-', "");
    let braced = format!("{{{ID}}}");
    for wrong in [
        "",
        "42",
        &upper,
        &simple,
        &braced,
        &ID[1..],
        "00000000-0000-0000-0000-000000000000",
    ] {
        let said = format!("WHERE is answered \"{wrong}\" instead of a UUID");
        Server::answering(answers("1", wrong, "42")).ends_critical(&said);
    }
}

#[test]
fn a_wrong_reason_is_critical() {
    for wrong in ["43", "042", "42 ", "", "4"] {
        let said = format!("WHY is answered \"{wrong}\" instead of 42");
        Server::answering(answers("1", ID, wrong)).ends_critical(&said);
    }
}

#[test]
fn an_error_is_critical_in_its_own_words_whenever_it_comes() {
    let error = "ERR BUSY no room; try again later";
    let said = format!("the server says \"{error}\"");
    Server::answering(format!("{error}\n")).ends_critical(&said);
    Server::answering(answers("1", error, "42")).ends_critical(&said);
    Server::answering(answers("1", ID, error)).ends_critical(&said);
    // And before anything is asked, as a server does that has no room.
    let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
    let port = listener.local_addr().expect("it is bound").port();
    let line = format!("{error}\n");
    let thread = thread::spawn(move || {
        let (mut stream, _) = listener.accept().expect("a client");
        stream
            .write_all(line.as_bytes())
            .expect("a client that reads");
        // Kept until the client is gone.
        stream
    });
    check(at_port(port)).says(CRITICAL, &said);
    thread.join().expect("it is asked");
}

#[test]
fn closing_too_early_is_critical() {
    Server::answering("").ends_critical("closed without an answer to WHO");
    Server::answering("1\n").ends_critical("closed without an answer to WHERE");
    Server::answering(format!("1\n{ID}\n")).ends_critical("closed without an answer to WHY");
    Server::answering(format!("1\n{ID}\n42"))
        .ends_critical("closed in the middle of the answer to WHY: \"42\"");
    let cut = format!(
        "closed in the middle of the answer to WHERE: \"{}\"",
        &ID[..9]
    );
    Server::answering(format!("1\n{}", &ID[..9])).ends_critical(&cut);
}

#[test]
fn more_than_was_asked_for_is_critical() {
    let more = format!("{}1\n", answers("1", ID, "42"));
    Server::answering(more).ends_critical("more is answered than was asked: \"1\\x0a\"");
}

#[test]
fn a_broken_connection_is_critical() {
    let server = Server::start(|stream| {
        // Closed like this, it sends a reset.
        rustix::net::sockopt::set_socket_linger(&stream, Some(Duration::ZERO)).expect("a socket");
        None
    });
    server.ends_critical("no answer to WHO: Connection reset by peer");
}

#[test]
fn nothing_of_the_answer_gets_among_the_figures_or_does_anything() {
    let cases: [(&[u8], &str); 4] = [
        (
            b"1|time=0;;;; clients=1\n",
            r#""1\x7ctime=0;;;; clients=1""#,
        ),
        (b"\x1b]0;x\x07\0\x7f\n", r#""\x1b]0;x\x07\x00\x7f""#),
        (b"\xff\xfe\xc3\xa4\n", r#""\xff\xfe\xc3\xa4""#),
        (
            b"1\"$(x)`x`<b>&'\\\n",
            r#""1\x22\x24(x)\x60x\x60\x3cb\x3e\x26\x27\x5c""#,
        ),
    ];
    for (answer, shown) in cases {
        let said = format!("WHO is answered {shown} instead of a number from 1 on");
        Server::answering(answer).ends_critical(&said);
    }
    Server::answering("ERR X a|time=0\n").ends_critical(r#"the server says "ERR X a\x7ctime=0""#);
    let said = r#"WHO is answered "ERR X\x7ctime=0\x1b" instead of a number from 1 on"#;
    Server::answering("ERR X|time=0\x1b\n").ends_critical(said);
    // Nor among the notes.
    let outcome = Server::answering("1|x=1\n").check(&["-vvv"]);
    assert!(
        !outcome.lines.iter().any(|line| line.contains('|')),
        "{outcome:?}"
    );
    assert_eq!(outcome.lines.len(), 4, "{outcome:?}");
}

#[test]
fn a_long_answer_is_cut() {
    let said = format!(
        "WHO is answered \"{}...\" instead of a number from 1 on",
        "x".repeat(80)
    );
    Server::answering(format!("{}\n", "x".repeat(1000))).ends_critical(&said);
}

#[test]
fn a_line_without_end_is_critical_before_it_fills_the_memory() {
    let said = format!("the answer to WHO doesn't end: \"{}...\"", "x".repeat(80));
    Server::pouring(&[b'x'; 4096], Duration::ZERO).ends_critical(&said);
    // Nor is it waited for.
    let said = format!(
        "WHO is answered \"{}...\" instead of a number from 1 on",
        "\\x00".repeat(80)
    );
    Server::pouring(&[0; 4096], Duration::ZERO).ends_critical(&said);
}

/// How long the check takes that ends at a time-out of a second.
fn takes_a_second(check: impl FnOnce()) {
    let begun = Instant::now();
    check();
    let passed = begun.elapsed();
    assert!(passed >= Duration::from_secs(1), "{passed:?}");
    assert!(passed < Duration::from_secs(6), "{passed:?}");
}

#[test]
fn silence_is_critical_at_the_time_out() {
    takes_a_second(|| {
        Server::start(Some)
            .check(&["-t", "1"])
            .says(CRITICAL, "no answer to WHO within 1 s");
    });
    let server = Server::start(|mut stream| {
        stream
            .write_all(format!("1\n{ID}\n").as_bytes())
            .expect("a client that reads");
        Some(stream)
    });
    takes_a_second(|| {
        server
            .check(&["-t", "1"])
            .says(CRITICAL, "no answer to WHY within 1 s")
    });
}

#[test]
fn a_server_that_doesnt_close_is_critical_at_the_time_out() {
    let server = Server::start(|mut stream| {
        stream
            .write_all(answers("1", ID, "42").as_bytes())
            .expect("a client that reads");
        Some(stream)
    });
    let said = "no answer to the end of the requests within 1 s";
    takes_a_second(|| server.check(&["-t", "1"]).says(CRITICAL, said));
}

#[test]
fn a_trickle_doesnt_put_off_the_time_out() {
    takes_a_second(|| {
        let server = Server::pouring(b"1", Duration::from_millis(20));
        server
            .check(&["-t", "1"])
            .says(CRITICAL, "no answer to WHO within 1 s");
    });
}
