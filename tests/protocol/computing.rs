//! The commands of the set `calc`: ADD, MAX and NP.

use std::sync::Mutex;

use shared::command::{CommandClass, CommandSet, CommandSpec, Permit, Value, ValueType, sets};

use super::{errors, proves};
use crate::support::kernel::local_server;
use crate::support::{Client, Daemon, http};

fn calculator() -> Daemon {
    Daemon::start(["--commands", "server,calc", "--max-clients", "8"])
}

#[test]
fn sums_have_64_bits_or_are_refused() {
    proves(
        r#"`ADD` with two whole numbers of 64 bits, in decimal digits with or without a sign, answers their sum, or `ERR USAGE` if
        that has more bits."#,
    );
    let daemon = calculator();
    let asked = "ADD 2 5\nadd -3 +1\nADD 9223372036854775807 -9223372036854775808\n";
    assert_eq!(daemon.ask(asked), "7\n-2\n-1\n");
    let refused = "ERR USAGE the sum has more than 64 bits\n";
    assert_eq!(daemon.ask("ADD 9223372036854775807 1\n"), refused);
    assert_eq!(daemon.ask("ADD -1 -9223372036854775808\n"), refused);
    assert_eq!(
        daemon.ask("ADD 1 9223372036854775808\nADD 1\nADD 1 2 3\nADD 1 0x2\n"),
        "ERR USAGE not a whole number of 64 bits: \"9223372036854775808\"\n\
         ERR USAGE usage: ADD X Y\nERR USAGE usage: ADD X Y\n\
         ERR USAGE not a whole number of 64 bits: \"0x2\"\n"
    );
}

#[test]
fn the_greater_of_two() {
    proves(r#"`MAX` with two such numbers answers the greater."#);
    let daemon = calculator();
    let asked = "MAX 2 6\nmax -2 -6\nMAX 9223372036854775807 -9223372036854775808\n";
    assert_eq!(daemon.ask(asked), "6\n-2\n9223372036854775807\n");
    assert!(daemon.ask("MAX 1 x\n").starts_with("ERR USAGE "));
}

#[test]
fn primes_by_their_place() {
    proves(
        r#"`NP` with whole numbers from 1 to 10000000 answers for each the prime that has this place among the primes, of which 2
        is the first, separated by single blanks."#,
    );
    let daemon = calculator();
    assert_eq!(daemon.ask("np 2 12\n"), "3 37\n");
    assert_eq!(
        daemon.ask("NP 9999 1234 1 2 3 4\nNP 10000000\n"),
        "104723 10061 2 3 5 7\n179424673\n"
    );
    for wrong in ["0", "10000001", "-1", "1.5", "x", "1 2 0"] {
        let reply = daemon.ask(format!("NP {wrong}\n"));
        assert!(
            reply.starts_with("ERR USAGE not a whole number from 1 to 10000000: "),
            "{wrong}: {reply}"
        );
    }
    // As many as a request has room for.
    let places = ["7"; 510].join(" ");
    let primes = ["17"; 510].join(" ");
    assert_eq!(daemon.ask(format!("NP {places}\n")), format!("{primes}\n"));
}

/// The turns that `TAKE` has taken.
static TAKEN: Mutex<Vec<Permit>> = Mutex::new(Vec::new());

/// `TAKE` takes all turns that there are, and keeps them.
const TAKE: CommandSet = &[CommandSpec {
    name: "TAKE",
    parameters: &[],
    result: ValueType::Text,
    summary: "takes all turns",
    class: CommandClass::Compute,
    execute: |context, request| {
        while let Ok(turn) = context.limiter.take(request) {
            TAKEN.lock().unwrap().push(turn);
        }
        Ok(Value::from("TAKEN"))
    },
}];

#[test]
fn who_gets_no_turn_is_told_and_who_computes_nothing_needs_none() {
    proves(
        r#"Computations take turns; an `NP` that gets none within half a second is answered `ERR UNAVAILABLE`."#,
    );
    let server = local_server(
        &["--max-clients", "4"],
        &[sets::server::SET, sets::calc::SET, TAKE],
    );
    let mut client = Client::connect(server.addresses()[0]).unwrap();
    assert_eq!(client.ask("NP 4"), "7");
    assert_eq!(client.ask("TAKE"), "TAKEN");
    let mut waiting = Client::connect(server.addresses()[0]).unwrap();
    waiting.send("NP 4\nNP 0\n");
    assert_eq!(client.ask("WHY"), "42");
    assert_eq!(client.ask("ADD 1 2"), "3");
    let refused = "ERR UNAVAILABLE too many clients compute at once, try again later";
    assert_eq!(waiting.line().as_deref(), Some(refused));
    // What is wrong is so without a turn.
    assert!(waiting.line().unwrap().starts_with("ERR USAGE "));
    waiting.send("NP 4\n");
    TAKEN.lock().unwrap().pop();
    let reply = waiting.line().unwrap();
    assert!(reply == "7" || reply == refused, "{reply}");
    assert_eq!(waiting.ask("NP 4"), "7");
}

#[test]
fn many_that_compute_are_answered_and_so_are_those_who_only_ask() {
    let daemon = Daemon::start(["--commands", "server,calc", "--max-clients", "80"]);
    let places = ["9999999"; 20].join(" ");
    let primes = ["179424671"; 20].join(" ");
    let mut computing: Vec<_> = (0..64).map(|_| daemon.connect()).collect();
    let mut answered = 0;
    for _ in 0..3 {
        for client in &mut computing {
            client.send(format!("NP {places}\n").repeat(4));
        }
        assert_eq!(daemon.ask("WHO\n"), "65\n");
        for client in &mut computing {
            for _ in 0..4 {
                let line = client.line().expect("a reply");
                assert!(is_prime_or_refused(&line, &primes), "{line}");
                answered += usize::from(line == primes);
            }
        }
    }
    assert!(answered > 0);
}

/// A read's worth of requests that all wait for turns keeps nobody waiting for longer than one: the server is well all the while.
#[test]
fn pipelined_computations_of_many_leave_the_server_well() {
    let daemon = Daemon::start([
        "--commands",
        "server,calc",
        "--max-clients",
        "80",
        "--http",
        "127.0.0.1:0",
    ]);
    assert_eq!(daemon.ask("NP 1\n"), "2\n");
    let requests = 200;
    let mut computing: Vec<_> = (0..64).map(|_| daemon.connect()).collect();
    for client in &mut computing {
        client.send("NP 1\n".repeat(requests));
    }
    let health = http::get(daemon.http(), "/livez");
    assert_eq!(health.status, 200, "{health:?}");
    let (mut answered, mut refused) = (0, 0);
    for client in &mut computing {
        for _ in 0..requests {
            match client.line().expect("a reply").as_str() {
                "2" => answered += 1,
                line => {
                    assert!(line.starts_with("ERR UNAVAILABLE "), "{line}");
                    refused += 1;
                }
            }
        }
    }
    eprintln!("{answered} answered, {refused} refused");
    assert!(answered > 0);
}

#[test]
fn what_computes_when_the_server_is_told_to_stop_is_answered() {
    proves(
        r#"When the server is told to stop, it answers every request that has arrived from the clients that it has accepted, cuts
        no reply, and closes."#,
    );
    const REQUESTS: usize = 50;
    let daemon = Daemon::start(["--commands", "server,calc", "--max-clients", "16"]);
    assert_eq!(daemon.ask("NP 1\n"), "2\n");
    let mut computing: Vec<_> = (0..16).map(|_| daemon.connect()).collect();
    for client in &mut computing {
        assert_eq!(client.ask("WHY"), "42");
        client.send("NP 4\nWHY\n".repeat(REQUESTS));
    }
    daemon.stop();
    for client in &mut computing {
        let said = client.rest();
        let replies: Vec<&str> = said.lines().collect();
        assert_eq!(replies.len(), 2 * REQUESTS);
        for pair in replies.chunks(2) {
            assert!(
                is_prime_or_refused(pair[0], "7") && pair[1] == "42",
                "{pair:?}"
            );
        }
    }
}

/// Whether this answers an `NP`. On a machine that is busy otherwise some may get no turn in time.
pub fn is_prime_or_refused(line: &str, primes: &str) -> bool {
    line == primes || line == "ERR UNAVAILABLE too many clients compute at once, try again later"
}

#[test]
fn without_the_set_its_commands_are_unknown() {
    let daemon = Daemon::start(["--max-clients", "2"]);
    for command in ["ADD 1 2", "MAX 1 2", "NP 1"] {
        let reply = daemon.ask(format!("{command}\n"));
        assert!(reply.starts_with("ERR UNKNOWN "), "{reply}");
    }
    assert_eq!(daemon.ask("HELP\n"), "WHO WHERE WHY PING HELP QUIT EXIT\n");
    // The other commands are the same with it.
    let calculator = calculator();
    assert_eq!(errors(&calculator), errors(&daemon));
    assert_eq!(
        calculator.ask("HELP\nHELP NP\n"),
        "WHO WHERE WHY PING HELP QUIT EXIT ADD MAX NP\n\
         NP N [N ...]: the Nth primes, of which 2 is the first; N from 1 to 10000000\n"
    );
}
