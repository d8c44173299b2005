//! Servers that dribble, stall, close and worse: nothing wrong is printed, nothing twice, and all of it ends.

use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use super::server::{Peer, Server, answer, printed, requests};
use super::{LONG, NOTHING, Outcome, Run, Sample, all_answered, asked, repeated};
use crate::support::kernel::own_address;
use crate::support::{PATIENCE, wait_until};

/// A time-out that the server is meant to miss at times, and not otherwise.
const SHORT: &str = "1";

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

/// Asks a server that lets all attempts time out.
fn gives_up(sample: &Sample, server: SocketAddr) -> Outcome {
    let begun = Instant::now();
    let run = sample.start(&asked(server, &["WHY"]), &[("TIMEOUT", "0.3")]);
    let outcome = run.end();
    let passed = begun.elapsed();
    // Five time-outs, and four pauses that grow.
    assert!(passed >= Duration::from_millis(2900), "{passed:?}");
    assert!(passed < PATIENCE / 3, "{passed:?}");
    outcome
}

pub fn gives_up_a_server_that_lets_nobody_in(sample: &Sample) {
    let server = TcpListener::bind(own_address()).expect("an address of our own");
    let address = server.local_addr().expect("a socket");
    // The system has room for one that waits to be accepted, and answers no other.
    rustix::net::listen(&server, 0).expect("a socket");
    let _waiting = TcpStream::connect(address).expect("room for one");
    gives_up(sample, address).found_nobody(address);
}

pub fn gives_up_a_server_that_says_nothing(sample: &Sample) {
    let server = Server::start(|_, peer| peer.stall());
    let outcome = gives_up(sample, server.address);
    outcome.gave_up(69, server.address, "no reply in time", NOTHING);
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

/// Requests and replies are far more than the buffers between the two have room for.
pub fn never_waits_for_a_server_that_waits(sample: &Sample) {
    needs!("perl");
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
        &[("TIMEOUT", LONG)],
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
    run.signal("TERM");
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
