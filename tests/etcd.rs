//! The consistent cluster: what WHO answers over several servers and a real etcd, whatever becomes of either.
//!
//! Who else may be in etcd is in `others`, what etcd may do in `trouble`, who can't reach it in `parted`.

mod names;
mod others;
mod parted;
mod registry;
mod trouble;

use std::net::SocketAddr;
use std::thread;
use std::time::{Duration, Instant};

use self::registry::{Etcd, free_address};
use crate::support::http::get;
use crate::support::manager::{Fate, Manager};
use crate::support::watch::{Watch, watch};
use crate::support::{Client, Daemon, clean, program, wait_until};

const REGISTRY: &str = "0 of an unknown number of servers answered: their registry did not";
const OUTSIDE: &str = "0 of an unknown number of servers answered: this one is not registered";
const YOUNG: &str = "0 of an unknown number of servers answered: their registry may lack some";

/// What `--cluster-heartbeat` is here.
const HEARTBEAT: Duration = Duration::from_millis(250);

/// How long the lease of a server holds.
const LEASE: Duration = Duration::from_secs(2);

/// A busy machine may take so much longer.
const BUSY: Duration = Duration::from_secs(1);

/// It took until a lease was over that nobody keeps alive any more: that was done a heartbeat before at the earliest, and etcd
/// looks twice a second for those that are over.
fn takes_a_lease(took: Duration) {
    assert!(took > LEASE - HEARTBEAT * 2, "{took:?}");
    assert!(took < LEASE + Duration::from_millis(500) + BUSY, "{took:?}");
}

/// A server of the cluster in this etcd, with these arguments besides.
fn server(etcd: &Etcd, arguments: &[&str]) -> Daemon {
    server_at(free_address(), etcd, arguments)
}

/// The same with its HTTP there.
fn server_at(http: SocketAddr, etcd: &Etcd, arguments: &[&str]) -> Daemon {
    server_over(http, &etcd.url(), arguments)
}

/// The same that finds its etcd so.
fn server_over(http: SocketAddr, cluster: &str, arguments: &[&str]) -> Daemon {
    let http = http.to_string();
    let cluster = ["--http", &http, "--advertise", &http, "--cluster", cluster];
    let few = ["--max-clients", "64", "--cluster-heartbeat", "250ms"];
    Daemon::start(cluster.iter().chain(&few).chain(arguments))
}

/// So many servers that all know how many clients there are.
fn servers(etcd: &Etcd, number: usize) -> Vec<Daemon> {
    let servers: Vec<Daemon> = (0..number).map(|_| server(etcd, &[])).collect();
    wait_for(&servers, 1);
    servers
}

/// Waits until WHO is answered by this number on all `servers`, the asking client included.
fn wait_for(servers: &[Daemon], clients: usize) {
    for server in servers {
        let who = format!("{clients}\n");
        let mut last = String::new();
        let what = format!("WHO is {clients} at {}", server.address);
        wait_until(&what, || {
            last = server.ask("WHO\n");
            last == who
        });
    }
}

/// A client that is known to count.
fn client(server: &Daemon) -> Client {
    let mut client = server.connect();
    assert_eq!(client.ask("WHY"), "42");
    client
}

fn leave(mut client: Client) {
    client.send("QUIT\n");
    assert_eq!(client.rest(), "BYE\n");
}

/// Asks WHO until it is answered by `then`; before that nothing may be answered but ERR UNAVAILABLE with one of these sentences.
/// Returns how long that took.
fn unavailable_until(client: &mut Client, sentences: &[&str], then: &str) -> Duration {
    let begun = Instant::now();
    wait_until(&format!("WHO is {then}"), || {
        let asked = Instant::now();
        let answer = client.ask("WHO");
        assert!(asked.elapsed() < Duration::from_secs(5), "{answer}");
        if answer == then {
            return true;
        }
        let sentence = answer.strip_prefix("ERR UNAVAILABLE ").unwrap_or_default();
        let is_known = sentences.iter().any(|known| sentence.starts_with(known));
        assert!(is_known, "{answer} is neither {then} nor {sentences:?}");
        false
    });
    begun.elapsed()
}

#[test]
fn every_client_counts_on_every_server_at_once_and_no_server_does() {
    needs!("etcd");
    let etcd = Etcd::start(1);
    let servers = servers(&etcd, 3);
    let mut asking: Vec<Client> = servers.iter().map(client).collect();
    let mut clients = Vec::new();
    let mut all_say = |number: usize| {
        for client in &mut asking {
            assert_eq!(client.ask("WHO"), (number + 3).to_string());
        }
    };
    all_say(0);
    for round in 0..60 {
        match round % 5 {
            4 => leave(clients.swap_remove(round / 5 % clients.len())),
            _ => clients.push(client(&servers[round % 3])),
        }
        all_say(clients.len());
    }
    let mut waits: Vec<Duration> = Vec::new();
    for _ in 0..200 {
        let asked = Instant::now();
        asking[0].ask("WHO");
        waits.push(asked.elapsed());
    }
    waits.sort();
    eprintln!(
        "WHO of three takes {:?}, at worst {:?}",
        waits[100], waits[199]
    );
    for server in servers {
        let log = server.stop();
        for level in ["ERROR", "WARN", "DEBUG", "TRACE"] {
            assert!(!log.contains(level), "{log}");
        }
    }
}

#[test]
fn a_server_that_does_not_answer_makes_who_unavailable_until_it_is_gone() {
    needs!("etcd");
    let etcd = Etcd::start(1);
    let servers = servers(&etcd, 3);
    let mut clients: Vec<Client> = servers.iter().map(client).collect();
    servers[2].signal("STOP");
    let silent = ["2 of 3 servers answered, try again"];
    let took = unavailable_until(&mut clients[0], &silent, "2");
    eprintln!("a stopped server is gone after {took:?}");
    // Who asked just before that waited for its answer.
    assert!(took > LEASE - HEARTBEAT * 2, "{took:?}");
    assert!(
        took < LEASE + Duration::from_millis(1250) + BUSY,
        "{took:?}"
    );
    let line = servers[0]
        .log()
        .wait_for("a server of the cluster does not answer");
    assert!(line.contains(&servers[2].http().to_string()), "{line}");
    assert_eq!(clients[1].ask("WHO"), "2");
    servers[2].signal("CONT");
    // It knows nothing before it is registered again, and then others may be missing, too.
    let took = unavailable_until(&mut clients[2], &[OUTSIDE, YOUNG], "3");
    eprintln!("a server that goes on is back after {took:?}");
    takes_a_lease(took);
    for client in &mut clients {
        assert_eq!(client.ask("WHO"), "3");
    }
}

#[test]
fn a_killed_server_is_missed_and_then_gone_and_one_that_starts_in_its_place_is_not_missed() {
    needs!("etcd");
    let etcd = Etcd::start(1);
    let mut servers = servers(&etcd, 3);
    let mut asking = client(&servers[0]);
    let (mut killed, mut other) = (servers.pop().unwrap(), servers.pop().unwrap());
    let there = other.http();
    let clients = (client(&killed), client(&other));
    killed.signal("KILL");
    killed.wait();
    let silent = ["2 of 3 servers answered, try again"];
    let took = unavailable_until(&mut asking, &silent, "2");
    eprintln!("a killed server is gone after {took:?}");
    takes_a_lease(took);
    other.signal("KILL");
    other.wait();
    let begun = Instant::now();
    // It has another id, but only one can listen there.
    let next = server_at(there, &etcd, &[]);
    let silent = ["1 of 2 servers answered, try again"];
    unavailable_until(&mut asking, &silent, "1");
    assert!(
        begun.elapsed() < Duration::from_secs(2),
        "not after the lease"
    );
    drop((clients, next));
}

#[test]
fn a_server_that_stops_is_gone_at_once_and_never_missed() {
    needs!("etcd");
    let etcd = Etcd::start(1);
    let mut servers = servers(&etcd, 3);
    let mut here = client(&servers[0]);
    for left in [2, 1] {
        let leaving = servers.pop().unwrap();
        let there = client(&leaving);
        let asking: Vec<Client> = servers.iter().map(client).collect();
        let watches: Vec<Watch> = asking.into_iter().map(watch).collect();
        leaving.stop();
        let more = 1 + watches.len();
        assert_eq!(here.ask("WHO"), more.to_string());
        for watch in watches {
            let (answers, _client) = watch.end();
            let is_right = |answer: &String| answer.parse().is_ok_and(|n: usize| n <= more + 1);
            let wrong = answers.iter().find(|answer| !is_right(answer));
            assert_eq!(wrong, None, "of {}", answers.len());
        }
        wait_for(&servers[..1], 2);
        assert_eq!(servers.len(), left);
        drop(there);
    }
}

#[test]
fn who_is_right_while_each_server_is_replaced_by_the_next_program() {
    needs!("etcd");
    let etcd = Etcd::start(1);
    let servers = servers(&etcd, 3);
    let clients: Vec<Client> = servers.iter().map(client).collect();
    let asking: Vec<Client> = servers.iter().map(client).collect();
    let right = (clients.len() + asking.len()).to_string();
    let watches: Vec<Watch> = asking.into_iter().map(watch).collect();
    for round in 1..=3 {
        for server in &servers {
            server.signal("USR2");
            wait_until("a new program is ready", || {
                let lines = server.log().lines();
                lines
                    .iter()
                    .filter(|line| line.contains("ready listen="))
                    .count()
                    > round
            });
        }
    }
    let mut number = 0;
    let ends: Vec<_> = watches.into_iter().map(Watch::end).collect();
    for (answers, _) in &ends {
        number += answers.len();
        let wrong: Vec<&String> = answers.iter().filter(|answer| **answer != right).collect();
        assert!(wrong.is_empty(), "{wrong:?} of {}", answers.len());
    }
    eprintln!("nine times replaced, {number} times right");
    drop(clients);
}

/// `systemctl restart`: the clients are let go of, and kept by systemd until the next process takes them. Nobody may take
/// that for none.
#[test]
fn a_server_that_leaves_its_clients_with_systemd_says_no_wrong_number_about_them() {
    needs!("etcd", "systemd-socket-activate");
    let etcd = Etcd::start(1);
    let asked = server(&etcd, &[]);
    let manager = Manager::new();
    let (address, http) = (free_address(), free_address().to_string());
    let mut command = clean("systemd-socket-activate");
    command
        .args([
            "-l",
            &address.to_string(),
            "--fdname=line",
            "-E",
            "NOTIFY_SOCKET",
        ])
        .env("NOTIFY_SOCKET", manager.path())
        .arg(program().get_program())
        .args([
            "--http",
            &http,
            "--advertise",
            &http,
            "--cluster",
            &etcd.url(),
        ])
        .args(["--max-clients", "512", "--cluster-heartbeat", "250ms"]);
    let first = thread::spawn(move || {
        wait_until("it listens", || Client::connect(address).is_ok());
        Client::connect(address).expect("it listens")
    });
    let mut left = Daemon::run(command);
    let first = first.join().expect("it came");
    let clients: Vec<Client> = (0..300).map(|_| client(&left)).collect();
    let mut asking = client(&asked);
    wait_until("all are counted", || asking.ask("WHO") == "302");
    let watched = watch(asking);
    let kept = manager.store(Fate::Kept);
    left.signal("TERM");
    assert!(left.wait().success());
    let kept = kept.join().expect("it keeps them");
    let (answers, _last) = watched.end();
    let is_right = |answer: &&String| *answer == "302" || answer.starts_with("ERR UNAVAILABLE ");
    let wrong: Vec<_> = answers.iter().filter(|answer| !is_right(answer)).collect();
    assert!(wrong.is_empty(), "of {}: {wrong:?}", answers.len());
    // They are connected still.
    let ends = |client: &Client| client.socket().peek(&mut [0]).is_ok();
    for client in clients.iter().chain([&first]) {
        client.socket().set_nonblocking(true).expect("a socket");
        assert!(!ends(client), "closed");
    }
    drop(kept);
}

#[test]
fn many_questions_at_once_take_no_longer_than_one() {
    needs!("etcd");
    let etcd = Etcd::start(1);
    let servers = servers(&etcd, 2);
    let mut asking = client(&servers[0]);
    let ask = |asking: &mut Client| {
        asking.send("WHO\n".repeat(128));
        let begun = Instant::now();
        let answers: Vec<String> = (0..128).map(|_| asking.line().expect("a reply")).collect();
        (begun.elapsed(), answers)
    };
    let (took, answers) = ask(&mut asking);
    assert!(answers.iter().all(|answer| answer == "1"), "{answers:?}");
    assert!(took < Duration::from_secs(2), "{took:?}");
    servers[1].signal("STOP");
    let (took, answers) = ask(&mut asking);
    let silent = "ERR UNAVAILABLE 1 of 2 servers answered, try again";
    assert!(answers.iter().all(|answer| answer == silent), "{answers:?}");
    assert!(took < Duration::from_secs(2), "{took:?}");
    // Whose workers wait is well, and says so before they are done.
    for _ in 0..3 {
        let mut others: Vec<Client> = (0..8).map(|_| client(&servers[0])).collect();
        others.iter_mut().for_each(|other| other.send("WHO\n"));
        let live = get(servers[0].http(), "/livez");
        assert_eq!(live.status, 200, "{}", live.body);
    }
    eprintln!("128 questions to a server that misses another took {took:?}");
}
