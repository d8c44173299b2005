//! A cluster over etcd, and one thing at a time that is done to it.

use std::time::Duration;

use crate::judge::{Harm, Promise};
use crate::network::Host;
use crate::world::{Meeting, World};

#[test]
fn a_rolling_restart_never_shows_a_wrong_count_nor_none() {
    World::with(3, Meeting::Etcd, |mut world| {
        let judge = world.judge(Promise::Consistent);
        for server in 0..3 {
            let gate = world.gate(server);
            world.clients.ask(&gate);
            let pace = Duration::from_millis(20);
            world.clients.crowd(&gate, 10, pace, server as u64);
        }
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
        for server in 0..4 {
            let gate = world.gate(server);
            world.clients.ask(&gate);
            let pace = Duration::from_millis(50);
            world.clients.crowd(&gate, 10, pace, server as u64);
        }
        for (cut, time) in [(vec![0], 5000), (vec![1, 2], 5000), (vec![3], 500)] {
            let hosts: Vec<Host> = cut.iter().map(|server| world.gate(*server).host).collect();
            let faults: Vec<usize> = cut
                .iter()
                .map(|server| world.begin(&mut judge, Harm::Silent(*server), "cut off"))
                .collect();
            world.network.cut_off(&hosts);
            // What is to be seen is what happens in this time.
            std::thread::sleep(Duration::from_millis(time));
            hosts.iter().for_each(Host::reconnect);
            for fault in faults {
                world.over(&mut judge, fault);
            }
            std::thread::sleep(Duration::from_millis(3500));
        }
        world.clients.leave();
        let (answers, _) = world.must_be_right(&judge);
        assert!(answers > 200, "{answers}");
    });
}
