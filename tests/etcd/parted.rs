//! A server that can't reach etcd, while the others reach both.

use std::thread;
use std::time::{Duration, Instant};

use super::registry::{Etcd, free_address};
use super::{
    BUSY, HEARTBEAT, LEASE, OUTSIDE, REGISTRY, YOUNG, client, server_over, servers, takes_a_lease,
    wait_for,
};
use crate::support::watch::watch;
use crate::support::way::Way;
use crate::support::{Client, wait_until};

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
    needs!("etcd");
    let etcd = Etcd::start(1);
    let way = Way::new(etcd.addresses()[0]);
    let others = servers(&etcd, 2);
    let parted = server_over(free_address(), &format!("etcd://{}", way.address), &[]);
    let mut clients: Vec<Client> = others.iter().map(client).collect();
    let mut there = client(&parted);
    wait_for(&others, 4);
    assert_eq!(there.ask("WHO"), "3");

    let cut = way.gate.write().expect("nobody panics with it");
    let watched = watch(there);
    let courses: Vec<_> = thread::scope(|scope| {
        let asking = clients.iter_mut();
        let asking: Vec<_> = asking
            .map(|client| scope.spawn(|| course(client, "2")))
            .collect();
        let ends = asking.into_iter().map(|asking| asking.join());
        ends.map(|course| course.expect("it becomes 2")).collect()
    });
    let (answers, mut there) = watched.end();
    for course in courses {
        eprintln!("a server is cut off from etcd, the others say {course:?}");
        let [(right, _), (missed, lease), (without, end)] = &course[..] else {
            panic!("{course:?}");
        };
        assert_eq!((right.as_str(), without.as_str()), ("3", "2"));
        assert!(missed.contains(YOUNG), "{missed}");
        takes_a_lease(*lease);
        let waited = *end - *lease;
        assert!(waited > LEASE * 2 - HEARTBEAT, "{waited:?}");
        assert!(waited < LEASE * 2 + BUSY, "{waited:?}");
    }
    let is_known = |answer: &&String| answer.contains(REGISTRY);
    let wrong: Vec<_> = answers.iter().filter(|answer| !is_known(answer)).collect();
    assert!(wrong.is_empty(), "of {}: {wrong:?}", answers.len());
    assert_eq!(there.ask("WHY"), "42");
    let line = parted.log().wait_for("cut off from the cluster");
    assert!(line.contains("WHO is unavailable on this server"), "{line}");

    drop(cut);
    let mended = Instant::now();
    wait_until("all say 3", || {
        let sentences = [REGISTRY, OUTSIDE, YOUNG];
        let own = there.ask("WHO");
        let is_known = own == "3" || sentences.iter().any(|known| own.contains(known));
        assert!(is_known, "{own}");
        let answers: Vec<String> = clients.iter_mut().map(|one| one.ask("WHO")).collect();
        for answer in &answers {
            let is_known = ["2", "3"].contains(&answer.as_str()) || answer.contains(YOUNG);
            assert!(is_known, "{answer}");
        }
        own == "3" && answers.iter().all(|answer| answer == "3")
    });
    let healed = mended.elapsed();
    eprintln!("the cut is over: right after {healed:?}");
    // It may wait still for an answer that was lost.
    assert!(healed < LEASE + LEASE / 2 + BUSY, "{healed:?}");
}
