//! A cluster over etcd, and one thing at a time that is done to it.

use std::time::{Duration, Instant};

use crate::available::{cut_off, restart_all};
use crate::support::backends::Kind;
use crate::world::World;

#[test]
fn a_rolling_restart_never_shows_a_wrong_count_nor_none() {
    World::with(3, Kind::Etcd, |mut world| {
        restart_all(&mut world, 5);
        world.must_be_right(30);
    });
}

#[test]
fn servers_that_are_cut_off_are_never_left_out_too_soon() {
    World::with(4, Kind::Etcd, |mut world| {
        cut_off(&mut world, 4, 600);
        world.must_be_right(200);
    });
}

/// It is not the one that a process at this address has left.
#[test]
fn a_server_that_hangs_keeps_its_place_when_another_is_given_its_address() {
    World::with(3, Kind::Etcd, |mut world| {
        let clients = world.gate(0).visitors(5);
        world.wait_for_who(2, 6);
        let address = world.servers[0].http();
        world.servers[1].end("TERM");
        world.servers[1].instead("--advertise", &address);
        world.servers[0].signal("STOP");
        let stopped = Instant::now();
        world.servers[1].start();
        // As long as its lease holds. The third asks at that address in vain in any case.
        let gate = world.gate(1);
        gate.on_host(|| {
            let mut visitor = gate.visit().expect("it serves");
            while stopped.elapsed() < Duration::from_millis(1400) {
                let said = visitor.ask("WHO").expect("an answer");
                assert!(said.starts_with("ERR UNAVAILABLE"), "{said}");
            }
            gate.disconnect(visitor);
        });
        world.servers[0].signal("CONT");
        drop(clients);
    });
}
