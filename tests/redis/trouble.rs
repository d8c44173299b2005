//! What may happen to Redis, and to what is in it.

use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpListener};
use std::time::{Duration, Instant};

use super::{BELIEVED, HEARTBEAT, Trio, figure, said, server, server_at, who};
use crate::support::redis::Redis;
use crate::support::way::Way;
use crate::support::{Client, free_port, wait_until};

const STATE: &str = "blockchain-tcpd:{default}:state";
const ALIVE: &str = "blockchain-tcpd:{default}:alive";

/// A busy machine may take longer than two heartbeats for what takes two.
const HEALS: Duration = Duration::from_secs(3);

/// Something happens to Redis and is over: meanwhile all answer what they knew and then their own clients; then all is well.
fn is_survived(
    trio: &mut Trio,
    kind: &str,
    begin: impl FnOnce(&mut Redis),
    end: impl FnOnce(&mut Redis),
) {
    let more: Vec<Client> = (0..4).map(|i| trio.servers[i % 2].connect()).collect();
    trio.wait_for(7);
    begin(&mut trio.redis);
    let begun = Instant::now();
    let sample = format!("errors_total{{kind=\"{kind}\"}}");
    wait_until(&format!("trouble: {kind}"), || {
        // The last known, until nobody believes it any more.
        let answers = trio.who();
        if begun.elapsed() < BELIEVED - HEARTBEAT {
            assert_eq!(answers, [7; 3], "{:?} after the beginning", begun.elapsed());
        }
        let servers = &trio.servers;
        servers.iter().all(|server| figure(server, &sample) > 0.0)
            && begun.elapsed() > BELIEVED + HEARTBEAT * 2
    });
    wait_until("each counts its own", || trio.who() == [3, 3, 1]);
    for server in &trio.servers {
        assert_eq!(figure(server, "connected"), 0.0);
        assert!(figure(server, "age_seconds") >= 2.0);
        assert_eq!(said(server).1, 0);
    }
    end(&mut trio.redis);
    let healed = trio.wait_for(7);
    eprintln!("{kind}: right again after {healed:?}");
    assert!(healed < HEALS, "{healed:?}");
    for server in &trio.servers {
        wait_until("connected", || figure(server, "connected") == 1.0);
        server.log().wait_for("over: cut off from the cluster");
        let (begun, over) = said(server);
        assert!((1..=2).contains(&begun), "{:?}", server.log().lines());
        assert_eq!(over, 1);
    }
    drop(more);
}

#[test]
fn redis_is_killed_and_comes_back_empty() {
    needs!("redis-server");
    is_survived(&mut Trio::new(&[]), "unreachable", Redis::kill, Redis::run);
}

#[test]
fn redis_hangs() {
    needs!("redis-server");
    is_survived(
        &mut Trio::new(&[]),
        "late",
        |redis| redis.signal("STOP"),
        |redis| redis.signal("CONT"),
    );
}

#[test]
fn redis_becomes_a_replica_that_takes_no_writes() {
    needs!("redis-server");
    is_survived(
        &mut Trio::new(&[]),
        "read_only",
        |redis| redis.order(&["REPLICAOF", "127.0.0.1", &free_port().to_string()]),
        |redis| redis.order(&["REPLICAOF", "NO", "ONE"]),
    );
}

#[test]
fn redis_has_no_memory_left() {
    needs!("redis-server");
    is_survived(
        &mut Trio::new(&[]),
        "refused",
        |redis| redis.order(&["CONFIG", "SET", "maxmemory", "1"]),
        |redis| redis.order(&["CONFIG", "SET", "maxmemory", "0"]),
    );
}

/// Something happens to what is in Redis: nobody's answer is wrong for longer than two heartbeats, and nobody is cut off.
fn is_mended(harm: impl FnOnce(&Trio)) {
    needs!("redis-server");
    let mut trio = Trio::new(&[]);
    let more: Vec<Client> = (0..4).map(|i| trio.servers[i % 2].connect()).collect();
    trio.wait_for(7);
    let errors = |trio: &Trio| -> f64 {
        let kinds = ["unreachable", "late", "denied", "read_only"];
        let sample = |kind| format!("errors_total{{kind=\"{kind}\"}}");
        let of = |server| kinds.map(|kind| figure(server, &sample(kind)));
        trio.servers.iter().flat_map(of).sum()
    };
    let before = errors(&trio);
    harm(&trio);
    let harmed = Instant::now();
    // What they knew is what they say until all have beaten again.
    while harmed.elapsed() < HEARTBEAT * 4 {
        let answers = trio.who();
        assert_eq!(answers, [7; 3], "{:?} after it", harmed.elapsed());
    }
    let last = trio.servers[0].connect();
    trio.wait_for(8);
    assert_eq!(errors(&trio), before);
    let members = trio.redis.ask(&["HGET", STATE, "members"]);
    assert_eq!(members, "3");
    assert_eq!(trio.redis.ask(&["ZCARD", ALIVE]), "3");
    drop((more, last));
}

#[test]
fn all_is_deleted() {
    is_mended(|trio| trio.redis.order(&["FLUSHALL"]));
}

#[test]
fn one_half_is_deleted() {
    is_mended(|trio| assert_eq!(trio.redis.ask(&["DEL", ALIVE]), "1"));
}

#[test]
fn the_other_half_is_deleted() {
    is_mended(|trio| assert_eq!(trio.redis.ask(&["DEL", STATE]), "1"));
}

#[test]
fn the_sum_is_nonsense() {
    is_mended(|trio| assert_eq!(trio.redis.ask(&["HSET", STATE, "total", "many"]), "0"));
}

/// It is counted from time to time.
#[test]
fn the_sum_is_wrong() {
    needs!("redis-server");
    let redis = Redis::start(&[]);
    let servers = [(); 2].map(|()| server(&redis, &["--cluster-heartbeat", "50ms"]));
    let mut clients = servers.each_ref().map(|server| server.connect());
    wait_until("both are counted", || clients.each_mut().map(who) == [2, 2]);
    assert_eq!(redis.ask(&["HSET", STATE, "total", "1000"]), "0");
    wait_until("it is noticed", || {
        clients.each_mut().map(who) == [1000, 1000]
    });
    wait_until("it is mended", || clients.each_mut().map(who) == [2, 2]);
    assert_eq!(redis.ask(&["HGET", STATE, "total"]), "2");
}

#[test]
fn the_script_is_flushed() {
    is_mended(|trio| trio.redis.order(&["SCRIPT", "FLUSH"]));
}

/// As those are that waited while a server slept or beat: they are read after a reply that says more.
#[test]
fn a_message_that_is_older_than_what_is_known_changes_nothing() {
    needs!("redis-server");
    let mut trio = Trio::new(&[]);
    let epoch = trio.redis.ask(&["HGET", STATE, "epoch"]);
    let channel = "blockchain-tcpd:{default}:changes:0";
    let late = format!("{epoch} 0 1000 3");
    assert_eq!(trio.redis.ask(&["PUBLISH", channel, &late]), "3");
    let told = Instant::now();
    while told.elapsed() < HEARTBEAT {
        assert_eq!(trio.who(), [3; 3], "{:?} after it", told.elapsed());
    }
}

/// As if the clock of Redis had been set: the time of the last heartbeat is an hour away.
#[test]
fn the_clock_of_redis_is_set_back() {
    is_mended(|trio| {
        trio.redis.ask(&["HINCRBY", STATE, "real", "3600000"]);
        trio.redis.ask(&["HINCRBY", STATE, "told", "3600000"]);
    });
}

#[test]
fn the_clock_of_redis_is_set_forward() {
    is_mended(|trio| {
        trio.redis.ask(&["HINCRBY", STATE, "real", "-3600000"]);
        trio.redis.ask(&["HINCRBY", STATE, "told", "-3600000"]);
    });
}

/// As after a crash, of a Redis that writes everything down from time to time: it knows these servers, with other numbers.
#[test]
fn redis_comes_back_with_what_it_knew_before() {
    needs!("redis-server");
    let mut trio = Trio::new(&[]);
    // So that the state is no new one.
    wait_until("the cluster is some seconds old", || {
        figure(&trio.servers[0], "heartbeats_total") > 8.0
    });
    trio.redis.order(&["SAVE"]);
    let more: Vec<Client> = (0..4).map(|i| trio.servers[i % 2].connect()).collect();
    trio.wait_for(7);
    trio.redis.kill();
    trio.redis.run();
    assert_eq!(
        trio.redis.ask(&["HGET", STATE, "members"]),
        "3",
        "it remembers"
    );
    let back = Instant::now();
    while back.elapsed() < HEARTBEAT * 4 {
        let answers = trio.who();
        assert_eq!(answers, [7; 3], "{:?} after its return", back.elapsed());
    }
    drop(more);
    trio.wait_for(3);
}

/// Somebody else has something of this name: that is said, and heals when it is gone.
#[test]
fn a_key_is_of_another_type() {
    needs!("redis-server");
    let mut trio = Trio::new(&[]);
    trio.redis.order(&["SET", STATE, "mine"]);
    for server in &trio.servers {
        server.log().wait_for("WRONGTYPE");
    }
    trio.redis.ask(&["DEL", STATE]);
    let healed = trio.wait_for(3);
    assert!(healed < HEALS, "{healed:?}");
    for server in &trio.servers {
        server.log().wait_for("over: cut off from the cluster");
        assert_eq!(said(server), (1, 1));
    }
}

/// All connections are cut, as a proxy or an operator may do: they are made again, and nobody's answer is wrong.
#[test]
fn connections_are_cut() {
    needs!("redis-server");
    let mut trio = Trio::new(&[]);
    for _ in 0..6 {
        trio.redis.ask(&["CLIENT", "KILL", "SKIPME", "yes"]);
        let cut = Instant::now();
        while cut.elapsed() < HEARTBEAT {
            assert_eq!(trio.who(), [3; 3]);
        }
        trio.redis.wait_for_servers(3);
    }
    // What comes and goes is said once.
    for server in &trio.servers {
        server.log().wait_for("over: cut off from the cluster");
        assert_eq!(said(server), (1, 1), "{:?}", server.log().lines());
    }
}

/// Redis away is no reason not to start.
#[test]
fn a_server_starts_without_redis_and_finds_it_later() {
    needs!("redis-server");
    let mut redis = Redis::start(&[]);
    redis.kill();
    let servers = [server(&redis, &[]), server(&redis, &[])];
    let mut clients = servers.each_ref().map(|server| server.connect());
    assert_eq!(clients.each_mut().map(who), [1, 1]);
    redis.run();
    let back = Instant::now();
    wait_until("they have found each other", || {
        clients.each_mut().map(who) == [2, 2]
    });
    assert!(back.elapsed() < HEALS, "{:?}", back.elapsed());
    for server in &servers {
        // Clients may be answered before it is said.
        server.log().wait_for("over: cut off from the cluster");
        assert_eq!(said(server), (1, 1));
    }
}

const PUSH: &str = ">3\r\n$7\r\nmessage\r\n$1\r\nx\r\n$1\r\ny\r\n";

/// Says `reply` and then `endless` without end, whatever it is asked, until the test's process ends.
pub fn says(reply: &'static str, endless: &'static str) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
    let address = listener.local_addr().expect("bound");
    std::thread::spawn(move || {
        let endless = endless.repeat(1000);
        for stream in listener.incoming() {
            let Ok(mut stream) = stream else { return };
            // It may have gone.
            let _ = stream.write_all(reply.as_bytes());
            let endless = endless.clone();
            std::thread::spawn(move || {
                while !endless.is_empty() && stream.write_all(endless.as_bytes()).is_ok() {}
                stream.read_to_end(&mut Vec::new())
            });
        }
    });
    address
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
        ("%0\r\n>3\r\n+subscribe\r\n+x\r\n:1\r\n", PUSH),
        ("%0\r\n", "+OK\r\n"),
        // Each heartbeat comes at another time than it should.
        (
            "%0\r\n>3\r\n+subscribe\r\n+x\r\n:1\r\n*1\r\n:7\r\n*1\r\n:7\r\n",
            "",
        ),
    ] {
        let address = says(reply, endless);
        let server = server_at(
            &format!("redis://{address}"),
            &["--cluster-heartbeat", "50ms"],
        );
        let mut client = server.connect();
        wait_until(&format!("many attempts: {reply:?} {endless:?}"), || {
            let kinds = ["late", "refused", "unreachable"];
            let errors =
                kinds.map(|kind| figure(&server, &format!("errors_total{{kind=\"{kind}\"}}")));
            errors.iter().sum::<f64>() > 10.0
        });
        let asked = Instant::now();
        assert_eq!(who(&mut client), 1);
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
    let address = says(
        "%0\r\n>3\r\n+subscribe\r\n+x\r\n:1\r\n*1\r\n:7\r\n*9\r\n:1\r\n$1\r\ne\r\n:1\r\n:1\r\n:1\r\n:1\r\n:0\r\n:0\r\n:0\r\n",
        PUSH,
    );
    let server = server_at(&format!("redis://{address}"), &[]);
    let mut client = server.connect();
    assert!(figure(&server, "heartbeats_total") > 0.0);
    wait_until("the second heartbeat has no answer", || {
        figure(&server, "errors_total{kind=\"late\"}") > 0.0
    });
    assert_eq!(who(&mut client), 1);
    assert!(server.status_number("VmRSS") < 60 * 1024);
    server.stop();
}

/// What a proxy between may add, or a later Redis: each type of RESP3 that nobody asked for, and what is said about a value.
#[test]
fn what_nobody_asked_for_is_skipped() {
    let address = says(
        "|1\r\n+ttl\r\n:3600\r\n%1\r\n+a\r\n|1\r\n+b\r\n#t\r\n*1\r\n:1\r\n\
         >2\r\n+big\r\n(12345678901234567890\r\n>2\r\n+news\r\n$2\r\nhi\r\n\
         >3\r\n+subscribe\r\n+x\r\n:1\r\n\
         |1\r\n+a\r\n,inf\r\n*1\r\n|1\r\n+a\r\n_\r\n:7\r\n>4\r\n+b\r\n=5\r\ntxt:x\r\n!3\r\nERR\r\n~1\r\n#f\r\n\
         *9\r\n:1\r\n$1\r\ne\r\n:1\r\n|1\r\n+a\r\n+b\r\n:1\r\n:1\r\n:1\r\n:0\r\n:0\r\n:0\r\n",
        "",
    );
    let server = server_at(&format!("redis://{address}"), &[]);
    // The second has no answer.
    wait_until("a heartbeat", || figure(&server, "heartbeats_total") > 0.0);
    let log = server.log().lines().join("\n");
    assert!(!log.contains("does not speak as Redis does"), "{log}");
}

/// An old Redis, and several proxies, say that they don't know HELLO, each in his own words; twemproxy closes the connection.
#[test]
fn what_is_missing_where_hello_is_not_known_is_said() {
    for reply in [
        "-ERR unknown command `HELLO`, with args beginning with: `3`\r\n",
        "-ERR unknown command 'hello'\r\n",
        "-ERR unsupported command\r\n",
        "-ERR Command not supported\r\n",
        "-NOPROTO unsupported protocol version\r\n",
    ] {
        let server = server_at(&format!("redis://{}", says(reply, "")), &[]);
        let line = server.log().wait_for("cut off from the cluster");
        assert!(
            line.contains("HELLO 3 is not known there: Redis 6 or later"),
            "{line}"
        );
    }
    for reply in ["-ERR max number of clients reached\r\n", "-LOADING\r\n"] {
        let server = server_at(&format!("redis://{}", says(reply, "")), &[]);
        let line = server.log().wait_for("cut off from the cluster");
        assert!(!line.contains("HELLO"), "{line}");
    }
    let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
    let url = format!("redis://{}", listener.local_addr().expect("bound"));
    std::thread::spawn(move || {
        for mut stream in listener.incoming().flatten() {
            let _ = stream.read(&mut [0; 100]);
        }
    });
    let server = server_at(&url, &[]);
    let line = server.log().wait_for("cut off from the cluster");
    assert!(
        line.contains("closes the connection at the first command"),
        "{line}"
    );
    assert!(line.contains("a proxy that doesn't know HELLO"), "{line}");
}

/// Two servers of one id: WHO counts both, WHERE is not unique, and that is said.
#[test]
fn two_servers_of_one_id_are_both_counted_and_named() {
    needs!("redis-server");
    const ID: &str = "6f0c2a52-5f0e-4b7e-9a35-0c5f7f5a3c1e";
    let redis = Redis::start(&[]);
    let twins = [(); 2].map(|()| server(&redis, &["--server-id", ID]));
    let third = server(&redis, &[]);
    let mut clients: Vec<Client> = twins.iter().map(|twin| twin.connect()).collect();
    clients.push(third.connect());
    wait_until("all are counted", || {
        clients.iter_mut().all(|client| who(client) == 3)
    });
    for twin in &twins {
        twin.log()
            .wait_for("another server of the cluster has the same id");
        wait_until("it shows", || figure(twin, "shares_id") == 1.0);
    }
    let calm = Instant::now();
    while calm.elapsed() < HEARTBEAT * 3 {
        assert!(clients.iter_mut().all(|client| who(client) == 3));
    }
    assert_eq!(figure(&third, "shares_id"), 0.0);
    let [one, other] = twins;
    clients.remove(0);
    one.stop();
    other
        .log()
        .wait_for("over: another server of the cluster has the same id");
    wait_until("it shows", || figure(&other, "shares_id") == 0.0);
    let lines = other.log().lines();
    let said = lines.iter().filter(|line| line.contains("the same id"));
    assert_eq!(said.count(), 2, "{lines:?}");
    assert!(clients.iter_mut().all(|client| who(client) == 2));
}

/// Its server may have begun anew since, and the one that it tells of be gone.
#[test]
fn a_heartbeat_that_was_under_way_for_long_brings_nobody_back() {
    needs!("redis-server");
    const ID: &str = "6f0c2a52-5f0e-4b7e-9a35-0c5f7f5a3c1e";
    let redis = Redis::start(&[]);
    let way = Way::new(([127, 0, 0, 1], redis.port).into());
    let other = server(&redis, &[]);
    let mut asker = other.connect();
    let url = format!("redis://{}", way.address);
    let mut killed = server_at(&url, &["--server-id", ID]);
    let clients = [(); 3].map(|()| killed.connect());
    wait_until("all are counted", || who(&mut asker) == 4);
    let shut = way.gate.write().expect("nobody panics with it");
    killed.log().wait_for("does not answer in time");
    killed.signal("KILL");
    killed.wait();
    drop(clients);
    let again = server(&redis, &["--server-id", ID]);
    wait_until("the last process is gone", || who(&mut asker) == 1);
    drop(shut);
    let opened = Instant::now();
    while opened.elapsed() < HEARTBEAT * 2 {
        assert_eq!(who(&mut asker), 1, "after {:?}", opened.elapsed());
    }
    assert_eq!(figure(&again, "shares_id"), 0.0);
    let log = again.stop();
    assert!(!log.contains("the same id"), "{log}");
}
