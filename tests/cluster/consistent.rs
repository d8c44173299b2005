//! A cluster over etcd, and one thing at a time that is done to it.

use std::time::{Duration, Instant};

use rustix::process::Signal;

use crate::judge::Promise;
use crate::world::{Meeting, World};

#[test]
fn a_rolling_restart_never_shows_a_wrong_count_nor_none() {
    World::with(3, Meeting::Etcd, |mut world| {
        let judge = world.judge(Promise::Consistent);
        world.visit_all(Duration::from_millis(20));
        for _ in 0..5 {
            for server in 0..3 {
                world.servers[server].hand_over();
            }
        }
        world.clients.leave();
        let (answers, _) = world.must_be_right(&judge);
        eprintln!("{answers} answers");
        assert!(answers > 30, "{answers}");
    });
}

#[test]
fn servers_that_are_cut_off_are_never_left_out_too_soon() {
    World::with(4, Meeting::Etcd, |mut world| {
        let mut judge = world.judge(Promise::Consistent);
        world.visit_all(Duration::from_millis(50));
        for (cut, time) in [(vec![0], 5000), (vec![1, 2], 5000), (vec![3], 500)] {
            world.cut_off_for(&mut judge, &cut, Duration::from_millis(time));
            std::thread::sleep(Duration::from_millis(3500));
        }
        world.clients.leave();
        let (answers, _) = world.must_be_right(&judge);
        assert!(answers > 200, "{answers}");
    });
}

/// It is not the one that a process at this address has left.
#[test]
fn a_server_that_hangs_keeps_its_place_when_another_is_given_its_address() {
    World::with(3, Meeting::Etcd, |mut world| {
        let clients = world.gate(0).visitors(5);
        world.wait_for_who(2, 6);
        let address = format!("{}:8080", world.gate(0).host.address());
        world.servers[1].end(Signal::TERM);
        world.servers[1].instead("--advertise", &address);
        world.servers[0].signal(Signal::STOP);
        let stopped = Instant::now();
        world.servers[1].start();
        // As long as its lease holds. The third asks at that address in vain in any case.
        world.gate(1).there(move |gate| {
            let mut visitor = gate.visit().expect("it serves");
            while stopped.elapsed() < Duration::from_millis(1400) {
                let said = visitor.ask("WHO").expect("an answer");
                assert!(said.starts_with("ERR UNAVAILABLE"), "{said}");
            }
            gate.part_with(visitor);
        });
        world.servers[0].signal(Signal::CONT);
        drop(clients);
    });
}
