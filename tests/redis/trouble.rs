//! What may happen to Redis, and to what is in it.

use std::io::{Read as _, Write as _};
use std::time::{Duration, Instant};

use super::{BELIEVED, HEARTBEAT};
use crate::clusters::{
    BACK, Cluster, ID, all_say_for, at_once, client, cut_off_by, errors, figure, said, server,
    wait_until_connected,
};
use crate::support::backends::{Kind, Redis, somebody};
use crate::support::way::Way;
use crate::support::{Client, wait_until};

const STATE: &str = "blockchain-tcpd:{default}:state";
const ALIVE: &str = "blockchain-tcpd:{default}:alive";

/// A busy machine may take longer than two heartbeats for what takes two.
const HEALS: Duration = Duration::from_secs(3);

/// Three servers with 3, 3 and 1 clients, which are returned but for those that ask.
fn three_with_seven(cluster: &mut Cluster) -> Vec<Client> {
    let more = [0, 1, 0, 1].map(|one: usize| client(&cluster.servers[one]));
    cluster.wait_for(7);
    more.into()
}

/// Has Redis do this, or something happen to its process.
fn does(redis: &Redis, words: &str) {
    match words {
        "is killed" => redis.process.kill(),
        "starts" => redis.run(""),
        "STOP" | "CONT" => redis.process.signal(words),
        command => redis.order(command),
    }
}

/// Meanwhile all answer what they knew and then their own clients; then all is well.
#[test]
fn a_redis_that_is_away_is_survived() {
    let rows = [
        ("unreachable", "is killed", "starts"),
        ("late", "STOP", "CONT"),
        ("read_only", "REPLICAOF 127.0.0.1 1", "REPLICAOF NO ONE"),
        (
            "refused",
            "CONFIG SET maxmemory 1",
            "CONFIG SET maxmemory 0",
        ),
    ];
    at_once(rows, |(kind, begin, end)| {
        Cluster::with(Kind::Redis, 3, |mut cluster| {
            let more = three_with_seven(&mut cluster);
            does(cluster.backend.redis(), begin);
            let begun = Instant::now();
            // The last known, until nobody believes it any more.
            all_say_for(BELIEVED - HEARTBEAT, &mut cluster.askers, 7);
            wait_until(&format!("trouble: {kind}"), || {
                let mut servers = cluster.servers.iter();
                servers.all(|server| errors(server, kind) > 0.0)
                    && begun.elapsed() > BELIEVED + HEARTBEAT * 2
            });
            wait_until("each counts its own", || cluster.who() == ["3", "3", "1"]);
            for server in &cluster.servers {
                assert_eq!(figure(server, "connected"), 0.0);
                assert!(figure(server, "age_seconds") >= 2.0);
                assert_eq!(said(server).1, 0);
            }
            does(cluster.backend.redis(), end);
            let healed = cluster.wait_for(7);
            eprintln!("{kind}: right again after {healed:?}");
            assert!(healed < HEALS, "{kind}: {healed:?}");
            for server in &cluster.servers {
                wait_until_connected(server);
                server.log().wait_for(BACK);
                let (begun, over) = said(server);
                assert!((1..=2).contains(&begun), "{:?}", server.log().lines());
                assert_eq!(over, 1);
            }
            drop(more);
        });
    });
}

/// What is done in Redis, and what it answers: keys are deleted or hold nonsense, the script is forgotten, the clock is an hour
/// earlier or later than at the last heartbeat. A message comes late, as those do that waited while a server slept or beat: they
/// are read after a reply that says more.
const HARMS: &str = "
FLUSHALL = OK
DEL ALIVE = 1
DEL STATE = 1
HSET STATE total many = 0
SCRIPT FLUSH = OK
HINCRBY STATE real 3600000; HINCRBY STATE told 3600000
HINCRBY STATE real -3600000; HINCRBY STATE told -3600000
PUBLISH blockchain-tcpd:{default}:changes:0 EPOCH·0·1000·3 = 3
";

/// What they knew is what all say until they have sent another heartbeat; nobody is cut off, and nobody's answer is wrong.
#[test]
fn what_is_in_redis_may_be_harmed() {
    at_once(HARMS.trim().lines(), |row| {
        Cluster::with(Kind::Redis, 3, |mut cluster| {
            let more = three_with_seven(&mut cluster);
            let errors = |cluster: &Cluster| -> f64 {
                let kinds = ["unreachable", "late", "denied", "read_only"];
                let of = |server| kinds.map(|kind| errors(server, kind));
                cluster.servers.iter().flat_map(of).sum()
            };
            let before = errors(&cluster);
            let redis = cluster.backend.redis();
            let epoch = redis.ask(&format!("HGET {STATE} epoch"));
            for command in row.split("; ") {
                let (command, answer) = command.split_once(" = ").unwrap_or((command, ""));
                let command = command.replace("ALIVE", ALIVE).replace("STATE", STATE);
                let said = redis.ask(&command.replace("EPOCH", &epoch));
                assert!(answer.is_empty() || said == answer, "{command}: {said}");
            }
            all_say_for(HEARTBEAT * 4, &mut cluster.askers, 7);
            let last = client(&cluster.servers[0]);
            cluster.wait_for(8);
            assert_eq!(errors(&cluster), before, "{row}");
            let redis = cluster.backend.redis();
            assert_eq!(redis.ask(&format!("HGET {STATE} members")), "3", "{row}");
            assert_eq!(redis.ask(&format!("ZCARD {ALIVE}")), "3", "{row}");
            drop((more, last));
        });
    });
}

/// It is counted from time to time.
#[test]
fn a_wrong_sum_is_mended() {
    Cluster::with(Kind::Redis, 0, |mut cluster| {
        (0..2).for_each(|_| cluster.add("--cluster-heartbeat 50ms"));
        cluster.wait_for(2);
        let redis = cluster.backend.redis();
        assert_eq!(redis.ask(&format!("HSET {STATE} total 1000")), "0");
        // It is noticed.
        cluster.wait_for(1000);
        cluster.wait_for(2);
        assert_eq!(
            cluster.backend.redis().ask(&format!("HGET {STATE} total")),
            "2"
        );
    });
}

/// As after a crash, of a Redis that writes everything down from time to time: it knows these servers, with other numbers.
#[test]
fn redis_comes_back_with_what_it_knew_before() {
    Cluster::with(Kind::Redis, 3, |mut cluster| {
        // So that the state is no new one.
        wait_until("the cluster is some seconds old", || {
            figure(&cluster.servers[0], "heartbeats_total") > 8.0
        });
        cluster.backend.redis().order("SAVE");
        let more = three_with_seven(&mut cluster);
        let redis = cluster.backend.redis();
        redis.process.kill();
        redis.run("");
        let members = redis.ask(&format!("HGET {STATE} members"));
        assert_eq!(members, "3", "it remembers");
        all_say_for(HEARTBEAT * 4, &mut cluster.askers, 7);
        drop(more);
        cluster.wait_for(3);
    });
}

/// Somebody else has something of this name: that is said, and heals when it is gone.
#[test]
fn a_key_is_of_another_type() {
    Cluster::with(Kind::Redis, 3, |mut cluster| {
        cluster.backend.redis().order(&format!("SET {STATE} mine"));
        for server in &cluster.servers {
            server.log().wait_for("WRONGTYPE");
        }
        cluster.backend.redis().ask(&format!("DEL {STATE}"));
        let healed = cluster.wait_for(3);
        assert!(healed < HEALS, "{healed:?}");
        for server in &cluster.servers {
            server.log().wait_for(BACK);
            assert_eq!(said(server), (1, 1));
        }
    });
}

/// All connections are cut, as a proxy or an operator may do: they are made again, and nobody's answer is wrong.
#[test]
fn connections_are_cut() {
    Cluster::with(Kind::Redis, 3, |mut cluster| {
        for _ in 0..6 {
            let redis = cluster.backend.redis();
            redis.ask("CLIENT KILL SKIPME yes");
            all_say_for(HEARTBEAT, &mut cluster.askers, 3);
            redis.wait_for_servers(3);
        }
        // What comes and goes is said once.
        for server in &cluster.servers {
            server.log().wait_for(BACK);
            assert_eq!(said(server), (1, 1), "{:?}", server.log().lines());
        }
    });
}

const PUSH: &str = ">3\r\n$7\r\nmessage\r\n$1\r\nx\r\n$1\r\ny\r\n";

/// What a Redis answers until the first heartbeat.
const HELLO: &str = "%0\r\n>3\r\n+subscribe\r\n+x\r\n:1\r\n";

/// Says `reply` and then `endless` without end, whatever it is asked, until the test's process ends. Returns its URL.
pub fn says(reply: impl Into<String>, endless: &'static str) -> String {
    let (reply, endless) = (reply.into(), endless.repeat(1000));
    let address = somebody(move |mut stream| {
        // It may have gone.
        let _ = stream.write_all(reply.as_bytes());
        while !endless.is_empty() && stream.write_all(endless.as_bytes()).is_ok() {}
        let _ = stream.read_to_end(&mut Vec::new());
    });
    format!("redis://{address}")
}

/// What listens there is no Redis: garbage, or nothing at all, or the end, or more than there is room for.
#[test]
fn what_is_no_redis_is_survived_and_said_once() {
    for (reply, endless) in [
        ("HTTP/1.1 400 Bad Request\r\n\r\n", ""),
        ("", ""),
        ("%2\r\n", ""),
        ("$9999999999\r\n", ""),
        ("$99999999999\r\n", "endless"),
        ("+", "endless"),
        ("*60000\r\n", ":1\r\n"),
        ("", "*1\r\n"),
        ("", PUSH),
        // It begins as a Redis does.
        (HELLO, PUSH),
        ("%0\r\n", "+OK\r\n"),
        // Each heartbeat comes at another time than it should.
        (&format!("{HELLO}*1\r\n:7\r\n*1\r\n:7\r\n"), ""),
    ] {
        let server = server(&says(reply, endless), "--cluster-heartbeat 50ms");
        let mut client = server.connect();
        wait_until(&format!("many attempts: {reply:?} {endless:?}"), || {
            let kinds = ["late", "refused", "unreachable"];
            kinds.map(|kind| errors(&server, kind)).iter().sum::<f64>() > 10.0
        });
        let asked = Instant::now();
        assert_eq!(client.ask("WHO"), "1");
        assert!(asked.elapsed() < HEARTBEAT, "{:?}", asked.elapsed());
        let (said, _) = said(&server);
        assert!((1..=3).contains(&said), "{:?}", server.log().lines());
        assert!(server.status_number("Threads") < 60);
        let memory = server.status_number("VmRSS");
        assert!(memory < 60 * 1024, "{memory} KiB: {reply:?} {endless:?}");
    }
}

/// Messages come faster than they are read, after all replies that are needed: heartbeats are due all the same.
#[test]
fn messages_without_end_hold_up_no_heartbeat() {
    let first = "*1\r\n:7\r\n*9\r\n:1\r\n$1\r\ne\r\n:1\r\n:1\r\n:1\r\n:1\r\n:0\r\n:0\r\n:0\r\n";
    let server = server(&says(format!("{HELLO}{first}"), PUSH), "");
    assert!(figure(&server, "heartbeats_total") > 0.0);
    wait_until("the second heartbeat has no answer", || {
        errors(&server, "late") > 0.0
    });
    assert_eq!(server.ask("WHO\n"), "1\n");
    assert!(server.status_number("VmRSS") < 60 * 1024);
    server.stop();
}

/// What a proxy between may add, or a later Redis: each type of RESP3 that nobody asked for, and what is said about a value.
#[test]
fn what_nobody_asked_for_is_skipped() {
    let reply = "|1\r\n+ttl\r\n:3600\r\n%1\r\n+a\r\n|1\r\n+b\r\n#t\r\n*1\r\n:1\r\n\
         >2\r\n+big\r\n(12345678901234567890\r\n>2\r\n+news\r\n$2\r\nhi\r\n\
         >3\r\n+subscribe\r\n+x\r\n:1\r\n\
         |1\r\n+a\r\n,inf\r\n*1\r\n|1\r\n+a\r\n_\r\n:7\r\n>4\r\n+b\r\n=5\r\ntxt:x\r\n!3\r\nERR\r\n~1\r\n#f\r\n\
         *9\r\n:1\r\n$1\r\ne\r\n:1\r\n|1\r\n+a\r\n+b\r\n:1\r\n:1\r\n:1\r\n:0\r\n:0\r\n:0\r\n";
    let server = server(&says(reply, ""), "");
    // The second has no answer.
    wait_until("a heartbeat", || figure(&server, "heartbeats_total") > 0.0);
    let log = server.log().lines().join("\n");
    assert!(!log.contains("does not speak as Redis does"), "{log}");
}

/// An old Redis, and several proxies, say that they don't know HELLO, each in his own words; twemproxy closes the connection.
#[test]
fn what_is_missing_where_hello_is_not_known_is_said() {
    const MISSING: &str = "HELLO 3 is not known there: Redis 6 or later";
    for (reply, is_too_old) in [
        (
            "-ERR unknown command `HELLO`, with args beginning with: `3`",
            true,
        ),
        ("-ERR unknown command 'hello'", true),
        ("-ERR unsupported command", true),
        ("-ERR Command not supported", true),
        ("-NOPROTO unsupported protocol version", true),
        ("-ERR max number of clients reached", false),
        ("-LOADING", false),
    ] {
        let server = server(&says(format!("{reply}\r\n"), ""), "");
        let line = cut_off_by(&server, if is_too_old { MISSING } else { "" });
        assert_eq!(line.contains("HELLO"), is_too_old, "{line}");
    }
    let closes = somebody(|mut stream| drop(stream.read(&mut [0; 100])));
    let server = server(&format!("redis://{closes}"), "");
    let line = cut_off_by(&server, "closes the connection at the first command");
    assert!(line.contains("a proxy that doesn't know HELLO"), "{line}");
}

/// Its server may have begun anew since, and the one that it tells of be gone.
#[test]
fn a_heartbeat_that_was_under_way_for_long_brings_nobody_back() {
    Cluster::with(Kind::Redis, 1, |mut cluster| {
        let way = Way::new(cluster.backend.redis().address());
        let url = format!("redis://{}", way.address);
        let mut killed = server(&url, &format!("--server-id {ID}"));
        let clients = [(); 3].map(|()| client(&killed));
        cluster.wait_for(4);
        let shut = way.gate.write().expect("nobody panics with it");
        killed.log().wait_for("does not answer in time");
        killed.signal("KILL");
        killed.wait();
        drop(clients);
        let again = cluster.server(&format!("--server-id {ID}"));
        // The last process is gone.
        cluster.wait_for(1);
        drop(shut);
        all_say_for(HEARTBEAT * 2, &mut cluster.askers, 1);
        assert_eq!(figure(&again, "shares_id"), 0.0);
        let log = again.stop();
        assert!(!log.contains("the same id"), "{log}");
    });
}
