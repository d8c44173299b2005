//! The consistent cluster: what WHO answers over several servers and a real etcd, whatever becomes of either. What holds over
//! Redis, too, is in `clusters`.
//!
//! What else may be registered in etcd is in `others`, what etcd may do in `trouble`, authentication in `access`.

mod access;
mod others;
mod trouble;

use std::time::{Duration, Instant};

use crate::clusters::{
    self, Cluster, ONE_OF_TWO, OUTSIDE, TWO_OF_THREE, YOUNG, answers_until, client, server_at, stop,
};
use crate::support::Client;
use crate::support::backends::Kind;
use crate::support::http::get;
use crate::support::names::{EmptyNameServer, UNSHARE_MOUNTS, server_where};
use crate::support::watch::{Watch, watch};

/// What `--cluster-heartbeat` is here.
const HEARTBEAT: Duration = Duration::from_millis(250);

/// How long the lease of a server holds.
const LEASE: Duration = Duration::from_secs(2);

/// A busy machine may take so much longer.
const BUSY: Duration = Duration::from_secs(1);

/// How often etcd looks for leases that are over.
const LOOKS: Duration = Duration::from_millis(500);

/// It took until a lease was over that nobody keeps alive any more, which was done a heartbeat before at the earliest, or up to
/// `more` longer.
fn takes_a_lease(took: Duration, more: Duration) {
    assert!(took > LEASE - HEARTBEAT * 2, "{took:?}");
    assert!(took < LEASE + more + BUSY, "{took:?}");
}

fn leave(mut client: Client) {
    client.send("QUIT\n");
    assert_eq!(client.rest(), "BYE\n");
}

#[test]
fn every_client_counts_on_every_server_at_once_and_no_server_does() {
    Cluster::with(Kind::Etcd, 3, |mut cluster| {
        let mut clients: Vec<Client> = Vec::new();
        for round in 0..60 {
            match round % 5 {
                4 => leave(clients.swap_remove(round / 5 % clients.len())),
                _ => clients.push(client(&cluster.servers[round % 3])),
            }
            let right = (clients.len() + 3).to_string();
            assert_eq!(cluster.who(), [(); 3].map(|()| right.clone()));
        }
        let wait = |asker: &mut Client| {
            let asked = Instant::now();
            asker.ask("WHO");
            asked.elapsed()
        };
        let asker = &mut cluster.askers[0];
        let mut waits: Vec<Duration> = (0..200).map(|_| wait(asker)).collect();
        waits.sort();
        let (median, worst) = (waits[100], waits[199]);
        eprintln!("WHO of three takes {median:?}, at worst {worst:?}");
        drop(clients);

        // A server that stops is gone at once and never missed.
        while let Some(leaving) = cluster.servers.pop() {
            let others = cluster.servers.len();
            let gone = [client(&leaving), cluster.askers.pop().expect("its asker")];
            let watches: Vec<Watch> = cluster.servers.iter().map(client).map(watch).collect();
            let log = leaving.stop();
            for level in ["ERROR", "WARN", "DEBUG", "TRACE"] {
                assert!(!log.contains(level), "{log}");
            }
            for asker in &mut cluster.askers {
                assert_eq!(asker.ask("WHO"), (2 * others).to_string());
            }
            for watch in watches {
                let (answers, _asker) = watch.end();
                let most = 2 * others + gone.len();
                let is_right = |answer: &String| answer.parse().is_ok_and(|n: usize| n <= most);
                let wrong = answers.iter().find(|answer| !is_right(answer));
                assert_eq!(wrong, None, "of {}", answers.len());
            }
        }
    });
}

#[test]
fn a_server_that_hangs_or_is_killed_makes_who_unavailable_until_it_is_gone() {
    Cluster::with(Kind::Etcd, 3, |mut cluster| {
        let mut hung = cluster.askers.pop().expect("the third");
        stop(&cluster.servers[2]);
        let took = answers_until(&mut cluster.askers[0], &[TWO_OF_THREE], "2");
        eprintln!("a stopped server is gone after {took:?}");
        // One who asked just before that waited for its answer.
        takes_a_lease(took, LOOKS + Duration::from_millis(750));
        let line = cluster.servers[0]
            .log()
            .wait_for("a server of the cluster does not answer");
        let http = cluster.servers[2].http();
        assert!(line.contains(&http.to_string()), "{line}");
        assert_eq!(cluster.askers[1].ask("WHO"), "2");
        cluster.servers[2].signal("CONT");
        // It knows nothing before it is registered again, and then others may be missing, too.
        let took = answers_until(&mut hung, &[OUTSIDE, YOUNG], "3");
        eprintln!("a server that goes on is back after {took:?}");
        takes_a_lease(took, LOOKS);
        cluster.askers.push(hung);
        assert_eq!(cluster.who(), ["3"; 3]);

        let gone = cluster.askers.split_off(1);
        let [mut killed, mut other] = [(); 2].map(|()| cluster.servers.pop().expect("it is there"));
        killed.signal("KILL");
        killed.wait();
        let asker = &mut cluster.askers[0];
        let took = answers_until(asker, &[TWO_OF_THREE], "2");
        eprintln!("a killed server is gone after {took:?}");
        takes_a_lease(took, LOOKS);
        let there = other.http();
        other.signal("KILL");
        other.wait();
        let begun = Instant::now();
        // It has another id, but only one can listen there.
        let next = server_at(there, there, &cluster.backend.url(), "");
        answers_until(asker, &[ONE_OF_TWO], "1");
        let took = begun.elapsed();
        assert!(took < LEASE, "not after the lease: {took:?}");
        drop((gone, next));
    });
}

#[test]
fn many_questions_at_once_take_no_longer_than_one() {
    Cluster::with(Kind::Etcd, 2, |mut cluster| {
        let ask = |asker: &mut Client, right: &str| {
            asker.send("WHO\n".repeat(128));
            let begun = Instant::now();
            for _ in 0..128 {
                assert_eq!(asker.line().as_deref(), Some(right));
            }
            let took = begun.elapsed();
            eprintln!("128 questions that are answered {right} take {took:?}");
            assert!(took < Duration::from_secs(2), "{took:?}");
        };
        ask(&mut cluster.askers[0], "2");
        stop(&cluster.servers[1]);
        ask(&mut cluster.askers[0], ONE_OF_TWO);
        // A server whose workers wait is well, and says so before they are done.
        let busy = &cluster.servers[0];
        for _ in 0..3 {
            let mut others: Vec<Client> = (0..8).map(|_| client(busy)).collect();
            others.iter_mut().for_each(|other| other.send("WHO\n"));
            let live = get(busy.http(), "/livez");
            assert_eq!(live.status, 200, "{}", live.body);
        }
    });
}

#[test]
fn a_host_that_does_not_resolve_is_not_looked_up_with_each_call() {
    needs!(run & UNSHARE_MOUNTS);
    let Some(names) = EmptyNameServer::start() else {
        return;
    };
    Cluster::with(Kind::Etcd, 0, |cluster| {
        let here = clusters::localhost(cluster.backend.etcd().address(0));
        let etcd = format!("etcd://nowhere.example.,{here}");
        let begun = Instant::now();
        let server = server_where("/etc/resolv.conf", EmptyNameServer::CONF, &etcd);
        clusters::wait_for(&mut [client(&server)], 1);
        for _ in 0..50 {
            server.ask("WHO\n");
        }
        // Each lookup has two queries: A and AAAA. One lookup checks the settings.
        let (lookups, took) = (names.queries() / 2, begun.elapsed());
        let due = 2 + took.as_secs() as usize / 5;
        assert!((1..=due).contains(&lookups), "{lookups} in {took:?}");
    });
}
