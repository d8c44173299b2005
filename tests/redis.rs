//! A cluster over a real Redis: WHO counts the clients of all servers, and whatever happens to Redis has an outcome that is
//! known, is said once in the log and once when it is over, and heals by itself.

mod access;
mod names;
mod restart;
mod sentinel;
mod trouble;

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use crate::protocol::proves;
use crate::support::http::get;
use crate::support::redis::Redis;
use crate::support::{Client, Daemon, Scratch, wait_until};

/// The default of `--cluster-heartbeat`.
const HEARTBEAT: Duration = Duration::from_millis(500);

/// What the others had is believed for four heartbeats.
const BELIEVED: Duration = Duration::from_secs(2);

/// A server of the cluster that meets in `redis`, with HTTP and with these arguments besides.
fn server(redis: &Redis, arguments: &[&str]) -> Daemon {
    server_at(&redis.url(), arguments)
}

fn server_at(cluster: &str, arguments: &[&str]) -> Daemon {
    let first = ["--http", "127.0.0.1:0", "--max-clients", "32"];
    let cluster = ["--cluster", cluster];
    Daemon::start(first.iter().chain(&cluster).chain(arguments))
}

/// Three servers and Redis, and a client of each that asks.
struct Trio {
    redis: Redis,
    servers: Vec<Daemon>,
    askers: Vec<Client>,
}

impl Trio {
    fn new(arguments: &[&str]) -> Self {
        let redis = Redis::start(arguments);
        let servers: Vec<Daemon> = (0..3).map(|_| server(&redis, &[])).collect();
        let askers = servers.iter().map(Daemon::connect).collect();
        let mut trio = Trio {
            redis,
            servers,
            askers,
        };
        trio.wait_for(3);
        trio
    }

    /// What each server answers to WHO.
    fn who(&mut self) -> Vec<u64> {
        self.askers.iter_mut().map(who).collect()
    }

    /// Waits until all say so.
    fn wait_for(&mut self, clients: u64) -> Duration {
        let begun = Instant::now();
        wait_until(&format!("all say {clients}"), || {
            self.who().iter().all(|who| *who == clients)
        });
        begun.elapsed()
    }
}

fn who(client: &mut Client) -> u64 {
    let reply = client.ask("WHO");
    reply.parse().unwrap_or_else(|_| panic!("WHO: {reply}"))
}

/// The value of a sample of the metrics, by its name after `blockchain_tcpd_cluster_`.
fn figure(server: &Daemon, sample: &str) -> f64 {
    figure_at(server.http(), sample)
}

fn figure_at(http: SocketAddr, sample: &str) -> f64 {
    let name = format!("blockchain_tcpd_cluster_{sample} ");
    let metrics = get(http, "/metrics").body;
    let value = metrics.lines().find_map(|line| line.strip_prefix(&name));
    let value = value.unwrap_or_else(|| panic!("no {sample} in {metrics}"));
    value.parse().expect("a number")
}

/// How many lines of the log say that this server is cut off, and that this is over.
fn said(server: &Daemon) -> (usize, usize) {
    let lines = server.log().lines();
    let cut_off = |line: &&String| line.contains("cut off from the cluster");
    let lines: Vec<_> = lines.iter().filter(cut_off).collect();
    let over = lines.iter().filter(|line| line.contains(" over: ")).count();
    (lines.len() - over, over)
}

#[test]
fn who_counts_the_clients_of_all_servers() {
    proves(r#"In a cluster `WHO` counts the clients of all servers that are available."#);
    needs!("redis-server");
    let mut trio = Trio::new(&[]);
    for clients in 4..=12 {
        let server = &trio.servers[clients as usize % 3];
        trio.askers.push(server.connect());
        trio.wait_for(clients);
    }
    trio.askers.truncate(3);
    let healed = trio.wait_for(3);
    eprintln!("all servers know of 9 that left after {healed:?}");
    for server in &trio.servers {
        assert_eq!(figure(server, "connected"), 1.0);
        assert_eq!(figure(server, "servers"), 3.0);
        assert_eq!(figure(server, "clients"), 3.0);
        assert!(figure(server, "heartbeats_total") > 0.0);
        assert_eq!(said(server), (0, 0));
        let page = get(server.http(), "/").body;
        let row = "default (available): in touch; 3 servers with 3 clients";
        assert!(page.contains(row), "{page}");
    }
    let ids: std::collections::BTreeSet<String> =
        trio.askers.iter_mut().map(|c| c.ask("WHERE")).collect();
    assert_eq!(ids.len(), 3, "WHERE tells them apart");
}

/// While all is well: within 50 ms, in the median of 40 changes. A busy machine may need another attempt.
#[test]
fn a_change_is_known_everywhere_within_50_ms() {
    needs!("redis-server");
    let mut trio = Trio::new(&[]);
    let mut medians = Vec::new();
    for _ in 0..5 {
        let mut delays: Vec<Duration> = (0..40)
            .map(|change| {
                trio.askers.push(trio.servers[change % 3].connect());
                let clients = trio.askers.len() as u64;
                let delay = trio.wait_for(clients);
                trio.askers.truncate(3);
                trio.wait_for(3);
                delay
            })
            .collect();
        delays.sort();
        medians.push(delays[delays.len() / 2]);
        if delays[delays.len() / 2] < Duration::from_millis(50) {
            eprintln!("known after {:?}, at worst {:?}", delays[20], delays[39]);
            return;
        }
    }
    panic!("{medians:?}");
}

#[test]
fn a_server_that_has_just_started_answers_right_at_once() {
    needs!("redis-server");
    let trio = Trio::new(&[]);
    for _ in 0..5 {
        // The first answer takes longer than a start.
        trio.redis.order(&["CLIENT", "PAUSE", "250"]);
        let server = server(&trio.redis, &[]);
        assert_eq!(server.ask("WHO\n"), "4\n");
        // If it were killed, the next one would still count the client that asked.
        server.stop();
    }
}

#[test]
fn a_clean_stop_takes_the_clients_away_at_once() {
    needs!("redis-server");
    let mut trio = Trio::new(&[]);
    let more: Vec<Client> = (0..5).map(|_| trio.servers[2].connect()).collect();
    trio.wait_for(8);
    trio.askers.pop();
    trio.servers.pop().expect("the third").stop();
    let ended = Instant::now();
    trio.wait_for(2);
    let servers = |server| figure(server, "servers");
    wait_until("it is forgotten", || {
        trio.servers.iter().map(servers).eq([2.0; 2])
    });
    let gone = ended.elapsed();
    eprintln!("a server that stopped is gone with its clients {gone:?} after its end");
    // One that says nothing more is so after four of them.
    assert!(gone < HEARTBEAT, "{gone:?}");
    drop(more);
}

#[test]
fn the_clients_of_a_killed_server_are_gone_within_3_seconds() {
    needs!("redis-server");
    let mut trio = Trio::new(&[]);
    let more: Vec<Client> = (0..5).map(|_| trio.servers[2].connect()).collect();
    trio.wait_for(8);
    trio.askers.pop();
    drop(trio.servers.pop());
    let gone = trio.wait_for(2);
    assert!(gone < Duration::from_secs(3), "{gone:?}");
    drop(more);
}

#[test]
fn a_server_that_starts_again_after_it_was_killed_leaves_nothing_behind() {
    needs!("redis-server");
    let mut trio = Trio::new(&[]);
    let state = Scratch::new();
    let directory = ["--state-directory", state.path().to_str().expect("UTF-8")];
    let fourth = server(&trio.redis, &directory);
    let clients: Vec<Client> = (0..5).map(|_| fourth.connect()).collect();
    trio.wait_for(8);
    drop(fourth);
    let fourth = server(&trio.redis, &directory);
    let gone = trio.wait_for(3);
    assert!(gone < HEARTBEAT * 2, "not after its time to live: {gone:?}");
    assert_eq!(figure(&fourth, "servers"), 4.0);
    assert_eq!(figure(&fourth, "shares_id"), 0.0);
    drop(clients);
}

/// SIGUSR2 in each, one after the other, and WHO is asked everywhere all the while.
#[test]
fn a_rolling_restart_never_shows_a_wrong_count() {
    needs!("redis-server");
    let mut trio = Trio::new(&[]);
    let more: Vec<Client> = (0..9).map(|i| trio.servers[i % 3].connect()).collect();
    trio.wait_for(12);
    for turn in 0..6 {
        let index = turn % 3;
        let http = trio.servers[index].http();
        let handovers = || {
            let metrics = get(http, "/metrics").body;
            let line = metrics
                .lines()
                .find_map(|line| line.strip_prefix("blockchain_tcpd_handovers_total "));
            line.and_then(|n| n.parse::<usize>().ok()).unwrap_or(0)
        };
        let before = handovers();
        trio.servers[index].signal("USR2");
        // Until it is done, and for a heartbeat and more.
        let mut done = None;
        while done.is_none_or(|done: Instant| done.elapsed() < HEARTBEAT + HEARTBEAT / 2) {
            assert_eq!(
                trio.who(),
                [12; 3],
                "{}",
                trio.servers[index].log().lines().join("\n")
            );
            if done.is_none() && handovers() > before {
                done = Some(Instant::now());
            }
        }
    }
    for server in &trio.servers {
        assert_eq!(said(server), (0, 0));
    }
    drop(more);
}

/// A server that was stopped for longer than it believes the others, and they it, is back at once. Until Redis has answered it,
/// its own clients are all that it knows of.
#[test]
fn a_server_that_slept_is_counted_again() {
    needs!("redis-server");
    let mut trio = Trio::new(&[]);
    let mut sleeper = trio.askers.remove(2);
    trio.servers[2].signal("STOP");
    let asleep = Instant::now();
    trio.wait_for(2);
    let more: Vec<Client> = (0..4).map(|i| trio.servers[i % 2].connect()).collect();
    trio.wait_for(6);
    wait_until("it believes nobody", || asleep.elapsed() > BELIEVED);
    // So that the answer is the first thing that it does.
    sleeper.send("WHO\n");
    trio.servers[2].signal("CONT");
    let first = sleeper.line().expect("a reply");
    assert!(["1", "7"].contains(&first.as_str()), "{first}");
    trio.askers.push(sleeper);
    let woken = Instant::now();
    wait_until("all say 7", || {
        let answers = trio.who();
        assert!([1, 7].contains(&answers[2]), "{answers:?}");
        let others = answers[..2].iter();
        assert!(
            others.clone().all(|who| [6, 7].contains(who)),
            "{answers:?}"
        );
        answers == [7; 3]
    });
    let healed = woken.elapsed();
    assert!(healed < HEARTBEAT * 2, "{healed:?}");
    drop(more);
}

#[test]
fn clusters_in_one_redis_are_told_apart_by_name_and_database() {
    needs!("redis-server");
    let mut trio = Trio::new(&[]);
    let other = server(&trio.redis, &["--cluster-name", "other"]);
    let elsewhere = server_at(&format!("{}/3", trio.redis.url()), &[]);
    let mut clients = [other.connect(), elsewhere.connect()];
    trio.askers.push(trio.servers[0].connect());
    trio.wait_for(4);
    assert_eq!(clients.each_mut().map(who), [1, 1]);
    assert_eq!(trio.redis.ask(&["-n", "3", "DBSIZE"]), "2");
    assert_eq!(trio.redis.ask(&["DBSIZE"]), "4");
}
