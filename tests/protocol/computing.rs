//! Commands that compute: they wait for permits and keep nobody else waiting. Their values are in `transcripts.txt`.

use std::sync::Mutex;
use std::time::Duration;

use shared::command::{CommandClass, CommandSet, Permit, Value, sets};

use crate::support::kernel::{local_server, own_command};
use crate::support::{Client, Daemon, http};

/// A daemon that computes, and this number of connected clients.
fn calculator(clients: usize) -> (Daemon, Vec<Client>) {
    let places = (clients + 16).to_string();
    let computes = ["--commands", "server,calc", "--max-clients", &places];
    let daemon = http::daemon(&computes);
    let clients = daemon.served(clients);
    (daemon, clients)
}

/// Whether this answers an `NP`. On a machine that is busy otherwise some may get no permit in time.
pub fn is_prime_or_refused(line: &str, primes: &str) -> bool {
    line == primes || line == REFUSED
}

const REFUSED: &str = "ERR UNAVAILABLE too many clients compute at once, try again later";

/// The permits that `TAKE` has taken.
static TAKEN: Mutex<Vec<Permit>> = Mutex::new(Vec::new());

/// `TAKE` takes all permits that there are, and keeps them.
const TAKE: CommandSet = &[own_command(
    "TAKE",
    CommandClass::Compute,
    |context, request| {
        while let Ok(permit) = context.limiter.acquire(request, Duration::ZERO) {
            TAKEN.lock().unwrap().push(permit);
        }
        Ok(Value::from("TAKEN"))
    },
)];

/// - Computations wait for a permit; an `NP` that gets none within half a second is answered `ERR UNAVAILABLE`.
#[test]
fn a_computation_without_a_permit_is_refused_and_other_commands_need_none() {
    const COMMANDS: &[CommandSet] = &[sets::server::SET, sets::calc::SET, TAKE];
    let server = local_server(&["--max-clients", "4"], COMMANDS);
    let mut client = Client::connect(server.addresses()[0]).unwrap();
    assert_eq!(client.ask("NP 4"), "7");
    assert_eq!(client.ask("TAKE"), "TAKEN");
    let mut waiting = Client::connect(server.addresses()[0]).unwrap();
    waiting.send("NP 4\nNP 0\n");
    assert_eq!(client.ask("WHY"), "42");
    assert_eq!(client.ask("ADD 1 2"), "3");
    assert_eq!(waiting.line().as_deref(), Some(REFUSED));
    // A wrong argument is refused without a permit.
    assert!(waiting.line().unwrap().starts_with("ERR USAGE "));
    waiting.send("NP 4\n");
    TAKEN.lock().unwrap().pop();
    let reply = waiting.line().unwrap();
    assert!(is_prime_or_refused(&reply, "7"), "{reply}");
    assert_eq!(waiting.ask("NP 4"), "7");
}

/// A buffer full of requests that all wait for permits keeps nobody waiting for longer than one request does.
#[test]
fn many_computations_are_answered_and_other_commands_and_checks_meanwhile() {
    let (daemon, mut computing) = calculator(64);
    let (places, primes) = (["9999999"; 20].join(" "), ["179424671"; 20].join(" "));
    for (places, primes, requests) in [
        (&*places, &*primes, 4),
        (&*places, &*primes, 4),
        ("1", "2", 200),
    ] {
        for client in &mut computing {
            client.send(format!("NP {places}\n").repeat(requests));
        }
        assert_eq!(daemon.ask("WHO\n"), "65\n");
        let health = http::get(daemon.http(), "/livez");
        assert_eq!(health.status, 200, "{health:?}");
        let mut answered = 0;
        for client in &mut computing {
            for _ in 0..requests {
                let line = client.line().expect("a reply");
                assert!(is_prime_or_refused(&line, primes), "{line}");
                answered += usize::from(line == primes);
            }
        }
        eprintln!("{answered} of {} answered", 64 * requests);
        assert!(answered > 0);
    }
}

#[test]
fn computations_that_have_arrived_are_answered_when_the_server_stops() {
    const REQUESTS: usize = 50;
    let (daemon, mut computing) = calculator(16);
    for client in &mut computing {
        client.send("NP 4\nWHY\n".repeat(REQUESTS));
    }
    daemon.stop();
    for client in &mut computing {
        let said = client.rest();
        let replies: Vec<&str> = said.lines().collect();
        assert_eq!(replies.len(), 2 * REQUESTS);
        for pair in replies.chunks(2) {
            assert!(is_prime_or_refused(pair[0], "7"), "{pair:?}");
            assert_eq!(pair[1], "42");
        }
    }
}
