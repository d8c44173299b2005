//! Servers that say what nobody asked for, what is no reply, and errors: nothing of it is taken for something else.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use super::server::{Server, answer, requests};
use super::{LONG, NOTHING, Sample, all_answered, asked, repeated};
use crate::support::wait_until;

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
        &[("TIMEOUT", LONG)],
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
    let variables = [("TIMEOUT", LONG), ("KEEPALIVE", "0.05")];
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
