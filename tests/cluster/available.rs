//! A cluster over Redis, and one thing at a time that is done to it.

use std::time::{Duration, Instant};

use crate::judge::Harm;
use crate::network::Host;
use crate::server::Server;
use crate::support::backends::Kind;
use crate::support::wait_until;
use crate::world::World;

const HEARTBEAT: Duration = Duration::from_millis(500);

/// Machines on which tests run may be slow.
const MARGIN: Duration = Duration::from_millis(500);

/// This took so long, and must not take longer.
fn takes(what: &str, took: Duration, bound: Duration) {
    eprintln!("{what}: {took:?}");
    assert!(took < bound, "{what}: {took:?}");
}

#[test]
fn a_rolling_restart_never_shows_a_wrong_count_and_drops_nobody() {
    World::with(3, Kind::Redis, |mut world| {
        let gates = [0, 1, 2].map(|server| world.gate(server));
        let staying = gates.each_ref().map(|gate| gate.visitors(5));
        world.wait_for_all(16);
        restart_all(&mut world, 10);
        for (gate, staying) in gates.iter().zip(staying) {
            gate.disconnect_all(staying);
        }
        world.must_be_right(50);
    });
}

/// Replaces each server by the next program in each round, while clients come and go.
pub fn restart_all(world: &mut World, rounds: usize) {
    world.visit_all(10, Duration::from_millis(20), 0);
    for _ in 0..rounds {
        world.servers.iter().for_each(|server| server.hand_over());
    }
    world.clients.leave();
}

#[test]
fn servers_that_are_cut_off_are_missed_and_found_again() {
    World::with(4, Kind::Redis, |mut world| {
        cut_off(&mut world, 190, 400);
        world.must_be_right(500);
    });
}

/// Cuts servers off while clients come and go: two times until the others miss them, and then for so short that nobody does, which
/// is as long as clients have this number of answers. Each time all is right for this number of answers more.
pub fn cut_off(world: &mut World, short: usize, calm: usize) {
    world.visit_all(10, Duration::from_millis(50), 0);
    for cut in [&[0][..], &[1, 2], &[3]] {
        let hosts = world.hosts(cut);
        let begin = |server: &usize| world.begin(Harm::Silent(*server), "cut off");
        let faults: Vec<usize> = cut.iter().map(begin).collect();
        hosts.iter().for_each(Host::cut_off);
        match cut {
            [3] => world.wait_for_answers(short),
            _ => world.wait_for_servers(cut),
        }
        hosts.iter().for_each(Host::reconnect);
        faults.into_iter().for_each(|fault| world.over(fault));
        world.wait_for_servers(&[]);
        world.wait_for_answers(calm);
    }
}

#[test]
fn a_redis_that_comes_back_empty_makes_no_count_dip() {
    World::with(4, Kind::Redis, |mut world| {
        world.visit_all(10, Duration::from_millis(50), 0);
        for _ in 0..3 {
            world.wait_for_answers(200);
            let fault = world.begin(Harm::Backend, "Redis comes back empty");
            world.backend.process(0).0.kill();
            world.backend.redis().run_empty(None);
            world.over(fault);
            world.wait_for_answers(400);
        }
        world.must_be_right(500);
    });
}

#[test]
fn what_a_failover_lost_is_made_good() {
    World::with(3, Kind::Sentinels, |world| {
        let leaving = world.gate(0).visitors(5);
        let staying = world.gate(1).visitors(3);
        world.wait_for_who(2, 9);
        // From here on the replica learns nothing more.
        let replica = world.backend_host(1);
        replica.cut_off();
        world.gate(0).disconnect_all(leaving);
        let more = world.gate(1).visitors(4);
        world.wait_for_who(2, 8);
        world.backend.process(0).0.kill();
        replica.reconnect();
        world.backend.sentinels().wait_until_master_is(1);
        let took = world.wait_for_all(8);
        takes("right after the failover", took, HEARTBEAT * 2 + MARGIN);
        drop((staying, more));
    });
}

#[test]
fn a_redis_that_lives_after_it_was_replaced_separates_nobody_from_the_others() {
    World::with(3, Kind::Sentinels, |world| {
        let sentinels = world.backend.sentinels();
        wait_until("the other takes over", || sentinels.promote());
        sentinels.wait_until_master_is(1);
        let begun = Instant::now();
        // One that comes now finds the new one. Those that are connected to the old one could go on there.
        world.servers[0].hand_over();
        let staying = world.gate(0).visitors(5);
        world.wait_for_all(6);
        takes(
            "together after the other had taken over",
            begun.elapsed(),
            HEARTBEAT * 2 + MARGIN,
        );
        drop(staying);

        world.wait_for_all(1);
        let chosen = |server: &Server| server.log().matches("the Sentinels have chosen").count();
        let before: Vec<usize> = world.servers.iter().map(chosen).collect();
        let sentinels = world.backend.sentinels();
        wait_until("all is calm", || sentinels.are_calm());
        wait_until("the first takes over", || sentinels.promote());
        sentinels.wait_until_master_is(0);
        let begun = Instant::now();
        wait_until("all servers are there", || {
            sentinels.redis[0].servers() == 3
        });
        takes(
            "there after the Sentinels",
            begun.elapsed(),
            HEARTBEAT * 2 + MARGIN,
        );
        // No server that has heard the news believes a Sentinel that has not.
        for (server, before) in world.servers.iter().zip(before) {
            assert_eq!(chosen(server), before + 1, "{}", server.log());
        }
    });
}
