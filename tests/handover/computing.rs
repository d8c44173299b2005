//! Clients that compute while programs take over.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use super::replace;
use crate::protocol::computing::is_prime_or_refused;
use crate::support::watch::repeat;
use crate::support::{Client, Daemon, unknown, wait_until};

/// Places of primes and the primes: <https://oeis.org/A006988>.
const PRIMES: [(&str, &str); 4] = [
    ("1", "2"),
    ("100 1000", "541 7919"),
    ("1000000", "15485863"),
    ("10000000", "179424673"),
];

/// Asks for primes in between of other things, everything at once, and returns how many primes it got.
fn compute(client: &mut Client, number: usize) -> usize {
    let (places, expected) = PRIMES[number % PRIMES.len()];
    let word = format!("t{number}");
    client.send(format!("NP {places}\nWHY\nNP {places}\n{word}\n"));
    let [first, why, second, last] = [(); 4].map(|()| client.line().expect("a reply, not the end"));
    assert_eq!((why, last), ("42".to_string(), unknown(&word)));
    let computed = [first, second];
    for reply in &computed {
        assert!(is_prime_or_refused(reply, expected), "{reply}");
    }
    computed.iter().filter(|reply| *reply == expected).count()
}

#[test]
fn clients_that_compute_and_those_that_do_not_notice_nothing() {
    let (computing, asking, programs) = (64, 4, 5);
    let most = (computing + asking).to_string();
    let daemon = Daemon::start(["--commands", "server,calc", "--max-clients", &most]);
    let mut clients: Vec<Client> = (0..computing + asking).map(|_| daemon.connect()).collect();
    for client in &mut clients {
        assert_eq!(client.ask("WHY"), "42");
    }
    let asking = clients.split_off(computing).into_iter().map(|client| {
        let most = most.clone();
        repeat(client, move |client| {
            assert_eq!(client.ask("WHO"), most);
            assert_eq!(client.ask("WHY"), "42");
        })
    });
    let asking: Vec<_> = asking.collect();
    let rounds = Arc::new(AtomicUsize::new(0));
    let computes = clients.into_iter().enumerate().map(|(number, client)| {
        let rounds = rounds.clone();
        repeat((client, number, 0), move |(client, number, primes)| {
            *primes += compute(client, *number);
            *number += 1;
            rounds.fetch_add(1, Ordering::Relaxed);
        })
    });
    let computes: Vec<_> = computes.collect();
    for _ in 0..programs {
        let more = rounds.load(Ordering::Relaxed) + 3 * computing;
        wait_until("they compute", || rounds.load(Ordering::Relaxed) >= more);
        replace(&daemon);
    }
    // All clients stay until the last has answered, or WHO would be less.
    let asking: Vec<Client> = asking.into_iter().map(|client| client.end()).collect();
    let computed: Vec<_> = computes.into_iter().map(|client| client.end()).collect();
    assert!(computed.iter().any(|(_, _, primes)| *primes > 0));
    drop(asking);
    let log = daemon.stop();
    assert!(
        !log.contains("ERROR") && !log.contains("lost in the handover"),
        "{log}"
    );
}
