//! A cluster over etcd, and one thing at a time that is done to it.

use std::time::Duration;

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
