//! Servers that dribble, stall, close and worse: nothing wrong is printed, nothing twice, and all of it ends.

use std::net::SocketAddr;
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use super::server::{Peer, Server, answer, printed, requests};
use super::{NOTHING, Run, Sample, asked, repeated};
use crate::support::{PATIENCE, installed, wait_until};

/// A time-out that the server is meant to miss at times, and not otherwise.
const SHORT: &str = "1";

/// And one that it is never meant to miss.
const LONG: &str = "20";

/// Asks a server so many requests, sees all of them answered, and returns how many clients came.
#[track_caller]
fn all_answered(sample: &Sample, server: Server, number: usize, timeout: &str) -> usize {
    let requests = requests(number);
    let run = sample.start(&asked(server.address, &requests), &[("TIMEOUT", timeout)]);
    run.end().is(0, &printed(&requests));
    server.end()
}

pub fn takes_replies_that_dribble(sample: &Sample) {
    let server = Server::start(|_, mut peer| {
        while let Some(request) = peer.request() {
            peer.dribble(answer(&request) + "\n");
        }
    });
    assert_eq!(all_answered(sample, server, 20, LONG), 1);
}

pub fn takes_replies_that_are_cut_anyhow(sample: &Sample) {
    for size in [1_000_000, 1, 7, 1009] {
        let server = Server::start(move |_, mut peer| {
            let requests = requests(150);
            peer.expect(&requests);
            let replies = requests.iter().map(|request| answer(request) + "\n");
            let replies: String = replies.collect();
            for piece in replies.as_bytes().chunks(size) {
                peer.say(piece);
                thread::yield_now();
            }
            peer.stall();
        });
        assert_eq!(all_answered(sample, server, 150, LONG), 1);
    }
}

pub fn gives_up_a_server_that_says_nothing(sample: &Sample) {
    let server = Server::start(|_, peer| peer.stall());
    let begun = Instant::now();
    let run = sample.start(&asked(server.address, &["WHY"]), &[("TIMEOUT", "0.3")]);
    run.end()
        .gave_up(69, server.address, "no reply in time", NOTHING);
    let passed = begun.elapsed();
    // Five time-outs, and four pauses that grow.
    assert!(passed >= Duration::from_millis(2900), "{passed:?}");
    assert!(passed < PATIENCE / 3, "{passed:?}");
    assert_eq!(server.end(), 5);
}

pub fn comes_back_when_the_first_reply_is_late(sample: &Sample) {
    let server = Server::start(|number, peer| match number {
        0 => peer.stall(),
        _ => peer.answer(),
    });
    assert!(all_answered(sample, server, 3, SHORT) > 1);
}

pub fn comes_back_when_a_reply_stops_half_way(sample: &Sample) {
    let server = Server::start(|number, mut peer| {
        if number > 0 {
            peer.expect(&requests(4)[2..3]);
            peer.say("to ASK 3\n");
            return peer.answer();
        }
        peer.expect(&requests(4));
        peer.say("to ASK 1\nto ASK 2\nto A");
        peer.stall();
    });
    assert_eq!(all_answered(sample, server, 4, SHORT), 2);
}

pub fn gives_up_a_reply_that_trickles(sample: &Sample) {
    let server = Server::start(|number, peer| match number {
        0 => peer.trickle(),
        _ => peer.answer(),
    });
    assert!(all_answered(sample, server, 2, SHORT) > 1);
}

pub fn comes_back_when_the_server_closes_at_once(sample: &Sample) {
    let server = Server::start(|number, peer| {
        if number > 2 {
            peer.answer();
        }
    });
    assert_eq!(all_answered(sample, server, 3, LONG), 4);
}

pub fn comes_back_as_often_as_it_is_answered(sample: &Sample) {
    let server = Server::start(|number, mut peer| {
        peer.expect(&requests(8)[number..]);
        peer.say(answer(&requests(8)[number]) + "\n");
    });
    assert_eq!(all_answered(sample, server, 8, LONG), 8);
}

pub fn takes_no_reply_that_was_cut(sample: &Sample) {
    let server = Server::start(|number, mut peer| {
        peer.expect(&requests(2)[number.min(1)..]);
        match number {
            0 => peer.say("to ASK 1\nto A"),
            1 => peer.say("to ASK 2"),
            _ => peer.say("to ASK 2\n"),
        };
    });
    assert_eq!(all_answered(sample, server, 2, LONG), 3);
}

pub fn comes_back_when_it_is_reset(sample: &Sample) {
    let server = Server::start(|number, mut peer| {
        if number > 2 {
            return peer.answer();
        }
        let request = peer.request().expect("a request");
        if number > 0 {
            peer.say(answer(&request) + "\n");
        }
        peer.reset();
    });
    assert_eq!(all_answered(sample, server, 5, LONG), 4);
}

/// What is sent next is sent to nobody, which some systems punish by a signal.
pub fn comes_back_when_it_is_reset_before_it_asks_on(sample: &Sample) {
    let server = Server::start(|number, mut peer| {
        if number > 2 {
            return peer.answer();
        }
        let (mut size, mut replies) = (0, String::new());
        // What fits into what a client sends at once; the last may not.
        while size + "ASK 1000\n".len() < 4096 {
            let Some(request) = peer.request() else {
                return;
            };
            size += request.len() + 1;
            replies += &(answer(&request) + "\n");
        }
        peer.say(replies);
        peer.reset();
    });
    assert_eq!(all_answered(sample, server, 2000, LONG), 4);
}

pub fn gives_up_a_line_without_end(sample: &Sample) {
    let server = Server::start(|_, mut peer| {
        let block = [b'x'; 64 * 1024];
        let blocks = (0..1024).take_while(|_| peer.say(block)).count();
        assert!(blocks < 1024, "it takes 64 MiB");
    });
    let outcome = sample.ask(&asked(server.address, &["WHY"]));
    let why = "the server sent something that is no reply";
    outcome.gave_up(69, server.address, why, NOTHING);
    assert_eq!(server.end(), 5);
}

pub fn takes_a_line_that_is_as_long_as_may_be(sample: &Sample) {
    let server = Server::start(|number, mut peer| {
        peer.request();
        let length = if number == 0 { 4097 } else { 4096 };
        peer.say("x".repeat(length) + "\n");
        peer.stall();
    });
    let line = format!("WHY\t{}", "x".repeat(4096));
    sample.ask(&asked(server.address, &["WHY"])).is(0, &[line]);
    assert_eq!(server.end(), 2);
}

pub fn takes_nothing_that_is_no_text(sample: &Sample) {
    let server = Server::start(|number, mut peer| {
        const NONSENSE: [&[u8]; 4] = [b"\x1b[2J\n", b"\xff\n", b"42\r\n", b"4\x7f2\n"];
        let Some(nonsense) = NONSENSE.get(number) else {
            return peer.answer();
        };
        peer.request();
        peer.say(nonsense);
        peer.stall();
    });
    assert_eq!(all_answered(sample, server, 1, LONG), 5);
}

const BUSY: &str = "ERR BUSY full with 3 clients, try again later\n";

pub fn asks_again_when_the_server_was_busy(sample: &Sample) {
    let server = Server::start(|number, peer| match number {
        0 | 1 => peer.refuse(BUSY),
        _ => peer.answer(),
    });
    assert_eq!(all_answered(sample, server, 3, LONG), 3);
}

/// Runs a client that repeats itself until it has printed so many lines, which must be the right ones, all on stdout.
fn repeats(sample: &Sample, server: Server, seconds: &str, lines: usize) -> usize {
    let run = sample.start(
        &repeated(seconds, server.address, &["WHY"]),
        &[("TIMEOUT", "20")],
    );
    for line in run.prints(lines) {
        assert_eq!(line, "WHY\tto WHY");
    }
    run.signal("TERM");
    assert_eq!(run.end().err, "");
    server.end()
}

pub fn takes_the_last_words_for_no_reply(sample: &Sample) {
    const IDLE: &str = "ERR TIMEOUT idle for too long\n";
    // Said when nothing was asked, together with the last reply or after it; and when something has just been asked.
    let server = Server::start(|number, mut peer| match number {
        0 => {
            peer.request();
            peer.refuse(&format!("to WHY\n{IDLE}"));
        }
        1 => {
            peer.request();
            peer.say("to WHY\n");
            peer.refuse(IDLE);
        }
        2 => {
            peer.request();
            peer.refuse(IDLE);
        }
        _ => peer.answer(),
    });
    assert_eq!(repeats(sample, server, "0.2", 4), 4);
}

pub fn takes_nothing_that_was_not_asked_for(sample: &Sample) {
    let server = Server::start(|number, mut peer| {
        match number {
            0 => {
                peer.request();
                peer.say("to WHY\nto nobody\n");
            }
            1 => {
                peer.request();
                peer.say("to WHY\n");
                peer.say("to nobody\n");
            }
            _ => {}
        }
        peer.answer();
    });
    assert_eq!(repeats(sample, server, "0.3", 4), 3);
}

/// Whether it was asked for, nobody can see.
pub fn takes_what_comes_first_for_the_first_reply(sample: &Sample) {
    let server = Server::start(|_, mut peer| {
        peer.say("to nobody\n");
        peer.expect(&requests(2));
        peer.say("to ASK 2\n");
        peer.stall();
    });
    let outcome = sample.ask(&asked(server.address, &requests(2)));
    outcome.is(0, &["ASK 1\tto nobody", "ASK 2\tto ASK 2"]);
    assert_eq!(server.end(), 1);
}

pub fn takes_pong_alone_for_a_sign_of_life(sample: &Sample) {
    let pings = Arc::new(AtomicUsize::new(0));
    let counted = pings.clone();
    let server = Server::start(move |number, mut peer| {
        while let Some(request) = peer.request() {
            let reply = match (&*request, number) {
                ("PING", 0) => "PANG".to_string(),
                ("PING", 1) => "ERR UNKNOWN no such command".to_string(),
                _ => answer(&request),
            };
            peer.say(reply + "\n");
            if request == "PING" && number > 1 {
                counted.fetch_add(1, Ordering::SeqCst);
            }
        }
    });
    let variables = [("TIMEOUT", "20"), ("KEEPALIVE", "0.05")];
    let run = sample.start(&repeated("1000", server.address, &["WHY"]), &variables);
    wait_until("it is kept alive", || pings.load(Ordering::SeqCst) > 3);
    assert_eq!(run.prints(1), ["WHY\tto WHY"]);
    run.signal("TERM");
    assert_eq!(run.end().err, "");
    assert_eq!(server.end(), 3);
}

pub fn goes_on_after_an_error_that_closes(sample: &Sample) {
    let server = Server::start(|number, mut peer| {
        let all = requests(4);
        if number == 0 {
            peer.expect(&all);
            peer.say("to ASK 1\nERR INTERNAL the server failed: twice\n");
        } else {
            peer.expect(&all[2..]);
            peer.say("ERR ODD\nto ASK 4\n");
            peer.stall();
        }
    });
    let outcome = sample.ask(&asked(server.address, &requests(4)));
    outcome.is(1, &["ASK 1\tto ASK 1", "ASK 4\tto ASK 4"]);
    let said: Vec<&str> = outcome.err.lines().collect();
    let internal = "ASK 2: INTERNAL: the server failed: twice";
    assert_eq!(said, [internal, "ASK 3: ODD:"]);
    assert_eq!(server.end(), 2);
}

pub fn takes_what_only_looks_like_an_error(sample: &Sample) {
    let replies = [
        "ERRATIC",
        "ERR",
        "err BUSY x",
        " ERR BUSY x",
        "-1",
        "",
        "%s%n$(x)`x`\\0",
    ];
    let server = Server::start(move |_, mut peer| {
        peer.expect(&requests(7));
        peer.say(replies.join("\n") + "\n");
        peer.stall();
    });
    let requests = requests(7);
    let lines = requests.iter().zip(replies);
    // The test trims the ends of lines.
    let lines = lines.map(|(request, reply)| format!("{request}\t{reply}").trim_end().to_string());
    let lines: Vec<String> = lines.collect();
    sample.ask(&asked(server.address, &requests)).is(0, &lines);
    assert_eq!(server.end(), 1);
}

/// Requests and replies are far more than the buffers between the two have room for.
pub fn never_waits_for_a_server_that_waits(sample: &Sample) {
    if !installed("perl") {
        return;
    }
    let mut perl = Command::new("perl");
    perl.arg(Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/samples/narrow.pl"));
    let server = Run::start(perl, Stdio::piped());
    let port = server.prints(1)[0].parse().expect("a port");
    let address = SocketAddr::from(([127, 0, 0, 1], port));
    let requests = (0..1500).map(|number| format!("{number:04}{}", "x".repeat(800)));
    let requests: Vec<String> = requests.collect();
    // The first fill all buffers if nobody reads them.
    let lines = requests.iter().enumerate().map(|(number, request)| {
        let length = if number < 60 { 4000 } else { 4 };
        let reply: String = request.chars().cycle().take(length).collect();
        format!("{request}\t{reply}")
    });
    let lines: Vec<String> = lines.collect();
    sample.ask(&asked(address, &requests)).is(0, &lines);
    server.end().is(0, &[port.to_string()]);
}

pub fn asks_again_what_was_on_its_way(sample: &Sample) {
    let server = Server::start(|number, mut peer| {
        match number {
            0 => {
                peer.expect(&requests(5));
                peer.say("to ASK 1\nto ASK 2\n");
            }
            1 => {
                peer.expect(&requests(5)[2..]);
                peer.say("to ASK 3\n");
            }
            // And then never again.
            _ => peer.expect(&requests(5)[3..]),
        }
    });
    let outcome = sample.ask(&asked(server.address, &requests(5)));
    let why = "the server closed the connection";
    outcome.gave_up(69, server.address, why, &printed(&requests(3)));
    assert_eq!(server.end(), 6);
}

pub fn goes_on_when_there_was_no_server_for_a_while(sample: &Sample) {
    let served: Arc<Mutex<Vec<Peer>>> = Arc::default();
    let kept = served.clone();
    let server = Server::start(move |_, mut peer| {
        peer.request();
        peer.say("to WHY\n");
        kept.lock().unwrap().push(peer);
    });
    let address = server.address;
    let mut run = sample.start(
        &repeated("0.1", server.address, &["WHY"]),
        &[("TIMEOUT", "20")],
    );
    run.prints(1);
    server.end();
    served.lock().unwrap().clear();
    run.err.wait_for(&format!("{}", address.port()));
    assert!(run.is_running());
    let lines = run.out.lines().len();
    let server = Server::at(address, |_, peer| peer.answer());
    for line in run.prints(lines + 3) {
        assert_eq!(line, "WHY\tto WHY");
    }
    run.signal("INT");
    run.end();
    server.end();
}

pub fn leaves_a_server_that_says_nothing(sample: &Sample) {
    let server = Server::start(|number, peer| match number {
        0 => peer.stall(),
        _ => panic!("it comes again"),
    });
    let run = sample.start(
        &repeated("1000", server.address, &["WHY"]),
        &[("TIMEOUT", "15")],
    );
    wait_until("it has asked", || server.accepted() > 0);
    run.signal("TERM");
    let outcome = run.end();
    assert_eq!(outcome.out + &outcome.err, "");
    server.end();
}
