//! A cluster over Redis, and one thing at a time that is done to it.

use std::time::{Duration, Instant};

use rustix::process::Signal;

use crate::judge::{Harm, Promise};
use crate::support::wait_until;
use crate::world::{Meeting, World};

const HEARTBEAT: Duration = Duration::from_millis(500);

/// Machines on which tests run may be slow.
const MARGIN: Duration = Duration::from_millis(500);

#[test]
fn the_clients_of_a_killed_server_are_gone_within_three_seconds() {
    World::with(3, Meeting::Redis, |mut world| {
        let staying = world.gate(1).visitors(2);
        let killed = world.gate(0).visitors(5);
        world.wait_for_who(1, 8);
        let begun = Instant::now();
        world.servers[0].end(Signal::KILL);
        world.wait_for_who(1, 3);
        let took = begun.elapsed();
        eprintln!("gone {took:?} after SIGKILL");
        assert!(took < Duration::from_secs(3), "{took:?}");
        world.wait_for_who(2, 3);

        // The same server, started again, takes its old self away at once.
        drop(killed);
        world.servers[0].start();
        let killed = world.gate(0).visitors(5);
        world.wait_for_who(1, 8);
        world.servers[0].end(Signal::KILL);
        drop(killed);
        world.servers[0].start();
        let begun = Instant::now();
        world.wait_for_who(1, 3);
        let took = begun.elapsed();
        eprintln!("gone {took:?} after the next start");
        assert!(took < HEARTBEAT + MARGIN, "{took:?}");
        drop(staying);
    });
}

#[test]
fn the_clients_of_a_server_that_stops_are_gone_at_once() {
    World::with(2, Meeting::Redis, |mut world| {
        for round in 0..5 {
            let leaving = world.gate(0).visitors(5);
            world.wait_for_who(1, 6);
            // Somebody asks without pause, and so knows when it was the first time that they were gone.
            let (said, when) = std::sync::mpsc::channel();
            let gate = world.gate(1);
            let asking = std::thread::spawn(move || {
                gate.there(move |gate| {
                    let mut visitor = gate.visit().expect("it serves");
                    while visitor.ask("WHO").expect("an answer") != "1" {
                        std::thread::sleep(Duration::from_micros(200));
                    }
                    said.send(Instant::now()).expect("the test waits");
                    gate.part_with(visitor);
                });
            });
            world.servers[0].end(Signal::TERM);
            let ended = Instant::now();
            let gone = when
                .recv_timeout(Duration::from_secs(10))
                .expect("they are gone at last");
            asking.join().expect("it has said so");
            let took = gone.saturating_duration_since(ended);
            eprintln!("round {round}: gone {took:?} after the end of the process");
            assert!(took < MARGIN, "{took:?}");
            drop(leaving);
            world.servers[0].start();
        }
    });
}

#[test]
fn a_rolling_restart_never_shows_a_wrong_count_and_drops_nobody() {
    World::with(3, Meeting::Redis, |mut world| {
        let staying: Vec<_> = (0..3)
            .map(|server| world.gate(server).visitors(5))
            .collect();
        world.wait_for_who(0, 16);
        world.wait_for_who(1, 16);
        world.wait_for_who(2, 16);
        let judge = world.judge(Promise::Available);
        world.visit_all(Duration::from_millis(20));
        for _ in 0..10 {
            for server in 0..3 {
                world.servers[server].hand_over();
            }
        }
        world.clients.leave();
        for (server, staying) in staying.into_iter().enumerate() {
            let gate = world.gate(server);
            gate.there(move |gate| {
                staying
                    .into_iter()
                    .for_each(|visitor| gate.part_with(visitor))
            });
        }
        let (answers, oldest) = world.must_be_right(&judge);
        eprintln!("{answers} answers, the oldest {oldest:?} old");
        assert!(answers > 50, "{answers}");
    });
}

#[test]
fn servers_that_are_cut_off_are_missed_and_found_again() {
    World::with(4, Meeting::Redis, |mut world| {
        let mut judge = world.judge(Promise::Available);
        world.visit_all(Duration::from_millis(50));
        for (cut, time) in [(vec![0], 4000), (vec![1, 2], 4000), (vec![3], 1000)] {
            world.cut_off_for(&mut judge, &cut, Duration::from_millis(time));
            std::thread::sleep(HEARTBEAT * 4);
        }
        world.clients.leave();
        let (answers, _) = world.must_be_right(&judge);
        assert!(answers > 500, "{answers}");
    });
}

#[test]
fn a_redis_that_comes_back_empty_makes_no_count_dip() {
    World::with(4, Meeting::Redis, |mut world| {
        let mut judge = world.judge(Promise::Available);
        world.visit_all(Duration::from_millis(50));
        for _ in 0..3 {
            std::thread::sleep(HEARTBEAT * 2);
            let fault = world.begin(&mut judge, Harm::Registry, "Redis comes back empty");
            world.redis().kill();
            world.redis().start(None);
            world.over(&mut judge, fault);
            std::thread::sleep(HEARTBEAT * 4);
        }
        world.clients.leave();
        let (answers, _) = world.must_be_right(&judge);
        assert!(answers > 500, "{answers}");
    });
}

#[test]
fn what_a_failover_lost_is_made_good() {
    World::with(3, Meeting::Sentinels, |mut world| {
        let leaving = world.gate(0).visitors(5);
        let staying = world.gate(1).visitors(3);
        world.wait_for_who(2, 9);
        // From here on the replica learns nothing more.
        let replica = world.sentinels().redis[1].host.clone();
        world.network.cut_off(std::slice::from_ref(&replica));
        world.gate(0).there(move |gate| {
            leaving
                .into_iter()
                .for_each(|visitor| gate.part_with(visitor))
        });
        let more = world.gate(1).visitors(4);
        world.wait_for_who(2, 8);
        world.sentinels().redis[0].kill();
        replica.reconnect();
        wait_until("the replica takes writes", || {
            world.sentinels().first() == Some(1)
        });
        let begun = Instant::now();
        for server in 0..3 {
            world.wait_for_who(server, 8);
        }
        let took = begun.elapsed();
        eprintln!("right {took:?} after the failover");
        assert!(took < HEARTBEAT * 2 + MARGIN, "{took:?}");
        drop((staying, more));
    });
}

#[test]
fn a_redis_that_lives_after_it_was_replaced_parts_nobody_from_the_others() {
    World::with(3, Meeting::Sentinels, |mut world| {
        wait_until("the other takes over", || world.sentinels().promote());
        wait_until("the other takes over", || {
            world.sentinels().first() == Some(1)
        });
        let begun = Instant::now();
        // Who comes now finds the new one. Those who are connected to the old one could go on there.
        world.servers[0].hand_over();
        let staying = world.gate(0).visitors(5);
        for server in 0..3 {
            world.wait_for_who(server, 6);
        }
        let took = begun.elapsed();
        eprintln!("together {took:?} after the other had taken over");
        assert!(took < HEARTBEAT * 2 + MARGIN, "{took:?}");
        drop(staying);
    });
}

/// Not only when it asks, once a heartbeat.
#[test]
fn a_server_is_told_that_another_redis_takes_the_writes() {
    World::with(3, Meeting::Sentinels, |mut world| {
        for server in &mut world.servers {
            server.end(Signal::TERM);
            server.also(&["--cluster-heartbeat", "10s"]);
            server.start();
        }
        world.wait_for_who(0, 1);
        wait_until("the other takes over", || world.sentinels().promote());
        wait_until("the other takes over", || {
            world.sentinels().first() == Some(1)
        });
        let begun = Instant::now();
        wait_until("all servers are there", || {
            world.sentinels().redis[1].servers() == 3
        });
        let took = begun.elapsed();
        eprintln!("{took:?} after the Sentinels");
        assert!(took < HEARTBEAT + MARGIN, "{took:?}");
        // Nobody who has heard the news asks one who has not.
        for server in &world.servers {
            let log = server.log().join("\n");
            assert_eq!(log.matches("the Sentinels have chosen").count(), 1, "{log}");
        }
    });
}
