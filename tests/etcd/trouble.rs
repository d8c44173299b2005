//! What etcd may do: lose a member or its quorum, begin anew, take leases away, be out of reach of one server.

use std::collections::BTreeSet;
use std::io::{Read as _, Write as _};
use std::thread;
use std::time::{Duration, Instant};

use super::{BUSY, HEARTBEAT, LEASE, LOOKS, leave, takes_a_lease};
use crate::clusters::{
    BACK, Cluster, ID, NO_MEMBERSHIP, OUTSIDE, TWO_OF_THREE, YOUNG, answers_until, client,
    cut_off_by, free_address, server, stop, wait_for,
};
use crate::support::backends::{Etcd, Kind, somebody};
use crate::support::watch::{Watch, watch};
use crate::support::way::Way;
use crate::support::{Client, Daemon, wait_until};

/// Without a leader until there is another: two of etcd's time-outs, and an attempt of a server's.
const LEADERLESS: Duration = Duration::from_secs(2);

const UNAVAILABLE: &str = "WHO is unavailable on this server";

/// Waits until all are answered this number, which must be within this time. Meanwhile etcd may be missed.
fn become_right(askers: &mut [Client], right: &str, what: &str, bound: Duration) -> Duration {
    let begun = Instant::now();
    for asker in askers {
        answers_until(asker, &[NO_MEMBERSHIP, OUTSIDE, YOUNG], right);
    }
    let took = begun.elapsed();
    eprintln!("{what}: right after {took:?}");
    assert!(took < bound + BUSY, "{what}: {took:?}");
    took
}

/// The member that the servers ask, which is not the one that leads, hangs, and is then killed: nobody is told but a number,
/// and nobody waits for long. Then each is lost, and two at a time.
#[test]
fn one_member_of_etcd_may_be_lost_and_a_quorum_comes_back() {
    needs!("etcd", "etcdctl");
    let etcd = Etcd::start(3);
    let asked = (etcd.leader() + 1) % 3;
    let servers = [(); 2].map(|()| server(&etcd.url_from(asked), ""));
    let mut askers = servers.each_ref().map(client);
    wait_for(&mut askers, 2);
    let process = etcd.process(asked);
    let kill = || {
        process.signal("CONT");
        process.kill();
    };
    for (how, lose) in [
        ("hangs", &(|| process.signal("STOP")) as &dyn Fn()),
        ("is killed", &kill),
    ] {
        lose();
        let mut worst = Duration::ZERO;
        for _ in 0..50 {
            for asker in &mut askers {
                let asked = Instant::now();
                assert_eq!(asker.ask("WHO"), "2");
                worst = worst.max(asked.elapsed());
            }
        }
        eprintln!("the member of etcd that is asked {how}: right after {worst:?} at worst");
        assert!(worst < BUSY, "{worst:?}");
    }
    etcd.run(asked);
    etcd.wait();
    for lost in 0..3 {
        etcd.process(lost).kill();
        become_right(&mut askers, "2", &format!("member {lost} lost"), LEADERLESS);
        etcd.run(lost);
        etcd.wait();
        become_right(&mut askers, "2", &format!("member {lost} back"), LEADERLESS);
    }
    etcd.process(0).kill();
    etcd.process(1).kill();
    for asker in &mut askers {
        let answer = asker.ask("WHO");
        assert!(answer.contains(NO_MEMBERSHIP), "{answer}");
        assert_eq!(asker.ask("WHY"), "42");
    }
    cut_off_by(&servers[0], UNAVAILABLE);
    etcd.run(0);
    etcd.wait();
    // Its leases may be over by then.
    become_right(&mut askers, "2", "etcd back", LEASE + LEADERLESS);
    servers[0].log().wait_for(BACK);
}

#[test]
fn an_etcd_that_has_lost_everything_is_not_believed_before_all_can_be_back() {
    Cluster::with(Kind::Etcd, 3, |mut cluster| {
        let (etcd, servers) = (cluster.backend.etcd(), &cluster.servers);
        // The first comes back long before the others.
        servers[1..].iter().for_each(stop);
        etcd.process(0).kill();
        etcd.wipe(0);
        cut_off_by(&servers[0], UNAVAILABLE);
        etcd.run(0);
        etcd.wait();
        wait_until("the membership has begun anew", || {
            let answer = cluster.askers[0].ask("WHO");
            assert!(answer.starts_with("ERR UNAVAILABLE "), "{answer}");
            answer.contains(YOUNG)
        });
        servers[1..].iter().for_each(|server| server.signal("CONT"));
        let took = become_right(&mut cluster.askers, "3", "etcd empty", LEASE + LOOKS);
        takes_a_lease(took, LOOKS);
    });
}

/// etcd expires leases that are being kept alive, as a leader does that stood still and has been replaced meanwhile.
/// The membership lacks somebody who lives then, and nobody answers a sum without it.
#[test]
fn a_lease_that_is_taken_from_a_server_that_lives_makes_no_number_wrong() {
    Cluster::with(Kind::Etcd, 3, |mut cluster| {
        // On each: one whose own lease is taken first knows no number, and sees nothing of the others.
        let watching = cluster.clients(3);
        cluster.wait_for(6);
        let watches: Vec<Watch> = watching.into_iter().map(watch).collect();
        let more = client(&cluster.servers[1]);
        for _ in 0..3 {
            let etcd = cluster.backend.etcd();
            for lease in etcd.order("lease list").lines().skip(1) {
                // The one that marks the membership as unstable is not kept alive, and may be over.
                if let Err(why) = etcd.try_order(&format!("lease revoke {lease}")) {
                    assert!(why.contains("lease not found"), "{why}");
                }
            }
            cluster.wait_for(7);
        }
        let ends: Vec<(Vec<String>, Client)> = watches.into_iter().map(Watch::end).collect();
        let answers: BTreeSet<&String> = ends.iter().flat_map(|(answers, _)| answers).collect();
        let is_right =
            |answer: &str| ["6", "7"].contains(&answer) || answer.starts_with("ERR UNAVAILABLE ");
        assert!(answers.iter().all(|answer| is_right(answer)), "{answers:?}");
        drop(more);
    });
}

/// A server that is slow to answer leaves no time to ask one that has disappeared from the membership: who is not heard then may
/// live.
#[test]
fn a_server_that_was_not_asked_long_enough_is_not_taken_for_gone() {
    Cluster::with(Kind::Etcd, 2, |mut cluster| {
        let etcd = cluster.backend.etcd();
        let id = cluster.askers[1].ask("WHERE");
        let key = etcd.members().into_iter().find(|key| key.contains(&id));
        let key = key.expect("it is registered");
        let slow = somebody(|mut socket| {
            // It may have gone.
            while socket.read(&mut [0; 1024]).is_ok_and(|read| read > 0) {
                thread::park_timeout(Duration::from_millis(600));
                let said = format!("{ID} {ID} 0");
                let head = format!("HTTP/1.1 200 OK\r\nContent-Length: {}", said.len());
                let _ = socket.write_all(format!("{head}\r\n\r\n{said}").as_bytes());
            }
        });
        let its_key = etcd.register_as(ID, ID, slow);
        let asker = &mut cluster.askers[0];
        answers_until(asker, &[TWO_OF_THREE], "2");
        stop(&cluster.servers[1]);
        etcd.order(&format!("del {key}"));
        for _ in 0..3 {
            let answer = asker.ask("WHO");
            assert!(answer.starts_with(YOUNG), "{answer}");
        }
        cluster.servers[1].signal("CONT");
        etcd.order(&format!("del {its_key}"));
        cluster.wait_for(2);
    });
}

/// There is no other to ask meanwhile.
#[test]
fn the_only_member_of_etcd_is_waited_for_until_the_deadline() {
    Cluster::with(Kind::Etcd, 1, |mut cluster| {
        let (process, asker) = (cluster.backend.process(0).0, &mut cluster.askers[0]);
        process.signal("STOP");
        asker.send("WHO\n");
        thread::park_timeout(Duration::from_millis(400));
        process.signal("CONT");
        assert_eq!(asker.line().as_deref(), Some("1"));
    });
}

/// They ask for longer than a client must be idle to make room for another.
#[test]
fn a_client_that_waits_for_the_census_is_not_said_to_make_room() {
    Cluster::with(Kind::Etcd, 0, |cluster| {
        let (http, url) = (free_address().to_string(), cluster.backend.url());
        let own = ["--http", &http, "--advertise", &http, "--cluster", &url];
        let small = ["--max-clients", "2", "--queue", "2"];
        let server = Daemon::start(own.iter().chain(&small));
        let [mut first, mut second] = [client(&server), client(&server)];
        cluster.backend.etcd().process(0).signal("STOP");
        let mut waiting = server.connect();
        waiting.send("WHY\n");
        for _ in 0..3 {
            for asker in [&mut first, &mut second] {
                asker.send("WHO\n");
            }
            for asker in [&mut first, &mut second] {
                let said = asker.line().expect("it is answered");
                assert!(said.contains(NO_MEMBERSHIP), "{said}");
            }
        }
        leave(first);
        assert_eq!(waiting.line().as_deref(), Some("42"));
        let log = server.log().lines().join("\n");
        assert!(!log.contains("to make room"), "{log}");
    });
}

/// What WHO answers until it is `end`: each answer that is another than the one before, and after how long it came.
fn course(client: &mut Client, end: &str) -> Vec<(String, Duration)> {
    let begun = Instant::now();
    let mut course: Vec<(String, Duration)> = Vec::new();
    wait_until(&format!("WHO is {end}"), || {
        let answer = client.ask("WHO");
        let is_end = answer == end;
        if course.last().is_none_or(|(last, _)| *last != answer) {
            course.push((answer, begun.elapsed()));
        }
        is_end
    });
    course
}

/// The others have its clients as long as its lease holds; then they hear from itself that it lives, and wait whether it comes
/// back, twice as long as a lease holds.
#[test]
fn a_server_that_is_cut_off_from_etcd_alone_is_counted_missed_and_then_left_out() {
    Cluster::with(Kind::Etcd, 2, |mut cluster| {
        let way = Way::new(cluster.backend.etcd().address(0));
        let separated = server(&format!("etcd://{}", way.address), "");
        let mut there = client(&separated);
        cluster.wait_for(3);
        assert_eq!(there.ask("WHO"), "3");

        let cut = way.gate.write().expect("nobody panics with it");
        let watched = watch(there);
        thread::scope(|scope| {
            for asker in &mut cluster.askers {
                scope.spawn(|| {
                    let course = course(asker, "2");
                    eprintln!("a server is cut off from etcd, another says {course:?}");
                    let [(right, _), (missed, lease), (_, end)] = &course[..] else {
                        panic!("{course:?}");
                    };
                    assert!(right == "3" && missed.contains(YOUNG), "{course:?}");
                    takes_a_lease(*lease, LOOKS);
                    let waited = *end - *lease;
                    assert!(waited > LEASE * 2 - HEARTBEAT, "{waited:?}");
                    assert!(waited < LEASE * 2 + BUSY, "{waited:?}");
                });
            }
        });
        let (answers, mut there) = watched.end();
        let is_wrong = |answer: &&String| !answer.contains(NO_MEMBERSHIP);
        let wrong: Vec<_> = answers.iter().filter(is_wrong).collect();
        assert!(wrong.is_empty(), "of {}: {wrong:?}", answers.len());
        assert_eq!(there.ask("WHY"), "42");
        cut_off_by(&separated, UNAVAILABLE);

        drop(cut);
        let mended = Instant::now();
        answers_until(&mut there, &[NO_MEMBERSHIP, OUTSIDE, YOUNG], "3");
        for asker in &mut cluster.askers {
            answers_until(asker, &["2", YOUNG], "3");
        }
        let healed = mended.elapsed();
        eprintln!("the cut is over: right after {healed:?}");
        // It may wait still for an answer that was lost.
        assert!(healed < LEASE + LEASE / 2 + BUSY, "{healed:?}");
    });
}
