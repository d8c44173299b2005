//! A cluster over a real Redis: WHO counts the clients of all servers, and whatever happens to Redis has an outcome that is
//! known, is said once in the log and once when it is over, and heals by itself. What holds over etcd, too, is in `clusters`.

mod access;
mod names;
mod sentinel;
mod trouble;

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use crate::clusters::{Cluster, client, figure, said, server, stop};
use crate::protocol::proves;
use crate::support::backends::Kind;
use crate::support::http::get;
use crate::support::{Client, Scratch, wait_until};

/// The default of `--cluster-heartbeat`.
const HEARTBEAT: Duration = Duration::from_millis(500);

/// What the others had is believed for four heartbeats.
const BELIEVED: Duration = Duration::from_secs(2);

#[test]
fn who_counts_the_clients_of_all_servers_of_one_name_in_one_database() {
    proves(r#"In a cluster `WHO` counts the clients of all servers that are available."#);
    Cluster::with(Kind::Redis, 3, |mut cluster| {
        for clients in 4..=12 {
            let server = &cluster.servers[clients % 3];
            cluster.askers.push(server.connect());
            cluster.wait_for(clients);
        }
        cluster.askers.truncate(3);
        let healed = cluster.wait_for(3);
        eprintln!("all servers know of 9 that left after {healed:?}");
        for server in &cluster.servers {
            let figures = ["connected", "servers", "clients"].map(|name| figure(server, name));
            assert_eq!(figures, [1.0, 3.0, 3.0]);
            assert!(figure(server, "heartbeats_total") > 0.0);
            assert_eq!(said(server), (0, 0));
            let page = get(server.http(), "/").body;
            let row = "default (available): in touch; 3 servers with 3 clients";
            assert!(page.contains(row), "{page}");
        }
        let askers = cluster.askers.iter_mut();
        let ids: BTreeSet<String> = askers.map(|asker| asker.ask("WHERE")).collect();
        assert_eq!(ids.len(), 3, "WHERE tells them apart");

        let other = cluster.server("--cluster-name other");
        let elsewhere = server(&format!("{}/3", cluster.backend.url()), "");
        let mut strangers = [client(&other), client(&elsewhere)];
        cluster.askers.push(client(&cluster.servers[0]));
        cluster.wait_for(4);
        assert_eq!(strangers.each_mut().map(|one| one.ask("WHO")), ["1", "1"]);
        let redis = cluster.backend.redis();
        assert_eq!(redis.ask_in(3, "DBSIZE"), "2");
        assert_eq!(redis.ask("DBSIZE"), "4");
    });
}

/// While all is well: within 50 ms, in the median of 40 changes. A busy machine may need another attempt.
#[test]
fn a_change_is_known_everywhere_within_50_ms() {
    Cluster::with(Kind::Redis, 3, |mut cluster| {
        let mut medians = Vec::new();
        for _ in 0..5 {
            let mut change = |change: usize| {
                cluster.askers.push(cluster.servers[change % 3].connect());
                let delay = cluster.wait_for(4);
                cluster.askers.truncate(3);
                cluster.wait_for(3);
                delay
            };
            let mut delays: Vec<Duration> = (0..40).map(&mut change).collect();
            delays.sort();
            medians.push(delays[20]);
            if delays[20] < Duration::from_millis(50) {
                eprintln!("known after {:?}, at worst {:?}", delays[20], delays[39]);
                return;
            }
        }
        panic!("{medians:?}");
    });
}

#[test]
fn a_server_that_has_just_started_answers_right_at_once() {
    Cluster::with(Kind::Redis, 3, |cluster| {
        for _ in 0..5 {
            // The first answer takes longer than a start.
            cluster.backend.redis().order("CLIENT PAUSE 250");
            let server = cluster.server("");
            assert_eq!(server.ask("WHO\n"), "4\n");
            // If it were killed, the next one would still count the client that asked.
            server.stop();
        }
    });
}

#[test]
fn the_clients_of_a_server_that_ends_are_gone_in_time() {
    Cluster::with(Kind::Redis, 2, |mut cluster| {
        let state = Scratch::new();
        let directory = format!("--state-directory {}", state.path().display());
        let third = |cluster: &mut Cluster| {
            let third = cluster.server(&directory);
            let clients: Vec<Client> = (0..6).map(|_| client(&third)).collect();
            cluster.wait_for(8);
            (third, clients)
        };
        let servers = |cluster: &Cluster, number: f64| {
            wait_until("the others have noticed", || {
                let mut servers = cluster.servers.iter();
                servers.all(|server| figure(server, "servers") == number)
            });
        };
        let (stopped, clients) = third(&mut cluster);
        stopped.stop();
        let ended = Instant::now();
        cluster.wait_for(2);
        servers(&cluster, 2.0);
        // One that says nothing more is gone after four heartbeats.
        let gone = ended.elapsed();
        assert!(gone < HEARTBEAT, "stopped: {gone:?}");
        drop(clients);

        let (killed, clients) = third(&mut cluster);
        drop(killed);
        let gone = cluster.wait_for(2);
        assert!(gone < Duration::from_secs(3), "killed: {gone:?}");
        drop(clients);

        let (killed, clients) = third(&mut cluster);
        drop(killed);
        let again = cluster.server(&directory);
        let gone = cluster.wait_for(2);
        assert!(gone < HEARTBEAT * 2, "started again: {gone:?}");
        let figures = ["servers", "shares_id"].map(|name| figure(&again, name));
        assert_eq!(figures, [3.0, 0.0]);
        drop(clients);
    });
}

/// A server that was stopped for longer than it believes the others, and they it, is back at once. Until Redis has answered it,
/// its own clients are all that it knows of.
#[test]
fn a_server_that_slept_is_counted_again() {
    Cluster::with(Kind::Redis, 3, |mut cluster| {
        let mut sleeper = cluster.askers.remove(2);
        stop(&cluster.servers[2]);
        let asleep = Instant::now();
        cluster.wait_for(2);
        let servers = cluster.servers[..2].iter().cycle();
        let more: Vec<Client> = servers.take(4).map(client).collect();
        cluster.wait_for(6);
        wait_until("it believes nobody", || asleep.elapsed() > BELIEVED);
        // So that the answer is the first thing that it does.
        sleeper.send("WHO\n");
        cluster.servers[2].signal("CONT");
        let first = sleeper.line().expect("a reply");
        assert!(["1", "7"].contains(&first.as_str()), "{first}");
        cluster.askers.push(sleeper);
        let woken = Instant::now();
        wait_until("all say 7", || {
            let answers = cluster.who();
            for (server, answer) in answers.iter().enumerate() {
                let before = if server == 2 { "1" } else { "6" };
                assert!([before, "7"].contains(&answer.as_str()), "{answers:?}");
            }
            answers == ["7"; 3]
        });
        let healed = woken.elapsed();
        assert!(healed < HEARTBEAT * 2, "{healed:?}");
        drop(more);
    });
}
