//! Clients that compute while programs take over.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread;

use super::replace;
use crate::protocol::computing::is_prime_or_refused;
use crate::support::{Client, Daemon, wait_until};

/// Places of primes and the primes: <https://oeis.org/A006988>.
const PRIMES: [(&str, &str); 4] = [
    ("1", "2"),
    ("100 1000", "541 7919"),
    ("1000000", "15485863"),
    ("10000000", "179424673"),
];

/// Asks for primes in between of other things, everything at once, and returns how many primes it got. The `rounds` of all are
/// counted.
fn compute(mut client: Client, number: usize, rounds: &AtomicUsize, over: &AtomicBool) -> usize {
    let mut primes = 0;
    for round in 0.. {
        let (places, expected) = PRIMES[(number + round) % PRIMES.len()];
        let token = format!("t{number}-{round}");
        client.send(format!("NP {places}\nWHY\nNP {places}\n{token}\n"));
        let mut line = || client.line().expect("a reply, not the end");
        let first = line();
        assert!(is_prime_or_refused(&first, expected), "{first}");
        assert_eq!(line(), "42");
        let second = line();
        assert!(is_prime_or_refused(&second, expected), "{second}");
        let unknown = format!("ERR UNKNOWN no such command: \"{token}\" (try HELP)");
        assert_eq!(line(), unknown);
        primes += [first, second]
            .iter()
            .filter(|got| *got == expected)
            .count();
        rounds.fetch_add(1, Ordering::Relaxed);
        if over.load(Ordering::Relaxed) {
            break;
        }
    }
    primes
}

#[test]
fn clients_that_compute_without_pause_notice_nothing_and_nobody_else_does() {
    let (computing, asking, programs) = (64, 4, 5);
    let most = (computing + asking).to_string();
    let daemon = Daemon::start(["--commands", "server,calc", "--max-clients", &most]);
    let (over, rounds) = (
        Arc::new(AtomicBool::new(false)),
        Arc::new(AtomicUsize::new(0)),
    );
    let mut clients: Vec<Client> = (0..computing + asking).map(|_| daemon.connect()).collect();
    for client in &mut clients {
        assert_eq!(client.ask("WHY"), "42");
    }
    let asking: Vec<_> = clients
        .split_off(computing)
        .into_iter()
        .map(|mut client| {
            let (over, most) = (over.clone(), most.clone());
            thread::spawn(move || {
                while !over.load(Ordering::Relaxed) {
                    assert_eq!(client.ask("WHO"), most);
                    assert_eq!(client.ask("WHY"), "42");
                }
                client
            })
        })
        .collect();
    let computes: Vec<_> = clients
        .into_iter()
        .enumerate()
        .map(|(number, client)| {
            let (over, rounds) = (over.clone(), rounds.clone());
            thread::spawn(move || compute(client, number, &rounds, &over))
        })
        .collect();
    for _ in 0..programs {
        let so_many = rounds.load(Ordering::Relaxed) + 3 * computing;
        wait_until("they compute", || rounds.load(Ordering::Relaxed) >= so_many);
        replace(&daemon);
    }
    over.store(true, Ordering::Relaxed);
    // Those who ask stay until the others are done, or WHO would be less.
    let asking: Vec<Client> = asking
        .into_iter()
        .map(|asks| asks.join().unwrap())
        .collect();
    let primes = computes
        .into_iter()
        .map(|computes| computes.join().unwrap());
    assert!(primes.sum::<usize>() > 0);
    drop(asking);
    let log = daemon.stop();
    assert!(
        !log.contains("ERROR") && !log.contains("left behind"),
        "{log}"
    );
}
