//! More clients than the server has room for: `ERR BUSY`, waiting, making room, the cap for an address, and what the system
//! has room for.

use std::ffi::OsStr;
use std::fs;
use std::io::{self, Read as _};
use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

use crate::support::kernel::{asked_for, in_a_mount_namespace, shell, wrapped};
use crate::support::trickle::Trickle;
use crate::support::watch::{Repeated, repeat};
use crate::support::*;

/// A client that is idle for less never makes room for another; the clock is accurate to a tick of at most 10 ms.
const MINIMUM_IDLE: Duration = Duration::from_millis(490);

const MADE_ROOM: &str = "ERR TIMEOUT idle while others wait, try again later\n";

/// The longest time between two answers, and what came instead of an answer.
type Asked = (Duration, Option<String>);

/// A client that asks again and again, so that it never makes room.
fn active(daemon: &Daemon) -> Repeated<Asked> {
    let mut client = daemon.served(1).remove(0);
    let mut last = Instant::now();
    repeat(
        (Duration::ZERO, None),
        move |(longest, instead): &mut Asked| {
            if instead.is_none() {
                client.send("PING\n");
                let reply = client.line().unwrap_or_default();
                *longest = last.elapsed().max(*longest);
                last = Instant::now();
                *instead = Some(reply).filter(|reply| reply != "PONG");
            }
            thread::park_timeout(Duration::from_millis(5));
        },
    )
}

#[test]
fn a_client_that_finds_workers_and_queue_full_is_refused_and_never_counts() {
    let daemon = Daemon::start(["--max-clients", "2", "--queue", "1"]);
    let (first, second) = (active(&daemon), active(&daemon));
    let mut waiting = daemon.connect();
    waiting.send("WHO\n");
    for _ in 0..50 {
        let reply = daemon.connect().rest();
        assert_eq!(reply, "ERR BUSY full with 3 clients, try again later\n");
    }
    // As soon as one leaves, it is served.
    assert_eq!(first.end().1, None);
    assert_eq!(waiting.line().as_deref(), Some("2"));
    assert_eq!(second.end().1, None);
    assert_eq!(waiting.ask("WHY"), "42");
    drop(waiting);
    daemon.wait_for_others(0);
}

#[test]
fn without_a_queue_no_client_waits_or_makes_room() {
    let daemon = Daemon::start(["--max-clients", "2", "--queue", "0"]);
    let mut clients = daemon.served(2);
    let begun = Instant::now();
    while begun.elapsed() < 2 * MINIMUM_IDLE {
        daemon.is_full();
    }
    for client in &mut clients {
        assert_eq!(client.ask("WHO"), "2");
    }
}

/// - When all workers are taken and clients wait, the one that has been idle longest, and at least half a second, is
///   answered `ERR TIMEOUT` to make room; if it is one that doesn't take its replies, it is cut off instead.
#[test]
fn the_client_that_is_idle_longest_makes_room_and_no_other() {
    let daemon = Daemon::start(["--max-clients", "3", "--idle-timeout", "0s"]);
    let mut clients = daemon.served(3);
    // The first to come is not the longest idle one: the second is.
    let last_asked = Instant::now();
    are_answered(&mut clients[1..2]);
    while last_asked.elapsed() < Duration::from_millis(60) {
        are_answered(&mut clients[..1]);
        are_answered(&mut clients[2..]);
    }
    let mut new = daemon.connect();
    new.send("WHY\n");
    assert_eq!(clients[1].rest(), MADE_ROOM);
    let idle = last_asked.elapsed();
    assert!(idle >= MINIMUM_IDLE, "{idle:?}");
    let logged = "idle clients are closed to make room";
    daemon.log().wait_for(logged);
    assert_eq!(new.line().as_deref(), Some("42"));
    clients[1] = new;
    for client in &mut clients {
        assert_eq!(client.ask("WHO"), "3");
    }

    let daemon = Daemon::start(["--max-clients", "1", "--write-timeout", "1h"]);
    let mut deaf = Client::connect_narrow(daemon.address);
    deaf.flood(&daemon, 1);
    assert_eq!(daemon.connect().ask("WHO"), "1");
    let mut all = Vec::new();
    let reset = deaf.socket().read_to_end(&mut all).expect_err("a reset");
    assert_eq!(reset.kind(), io::ErrorKind::ConnectionReset);
    assert!(!String::from_utf8_lossy(&all).contains("ERR TIMEOUT"));
}

#[test]
fn active_clients_make_no_room() {
    // A client is active if it asks every half second, which this machine may be too busy for: then again.
    for _ in 0..10 {
        let daemon = Daemon::start(["--max-clients", "2", "--queue", "3"]);
        let clients = [active(&daemon), active(&daemon)];
        let mut waiting = [(); 3].map(|()| daemon.connect());
        let begun = Instant::now();
        while begun.elapsed() < 3 * MINIMUM_IDLE {
            thread::park_timeout(Duration::from_millis(10));
        }
        let ended = clients.map(Repeated::end);
        are_answered(&mut waiting);
        if ended.iter().all(|(longest, _)| *longest < MINIMUM_IDLE) {
            assert!(ended.iter().all(|(_, instead)| instead.is_none()));
            return;
        }
    }
    panic!("this machine is too busy");
}

#[test]
fn one_address_has_no_more_clients_than_its_share() {
    let daemon = Daemon::start(["--max-clients-per-address", "2"]);
    let from = |last| {
        let source = Ipv4Addr::new(127, 0, 0, last);
        Client::connect_from(source, daemon.address).expect("it accepts")
    };
    let mut clients = vec![from(1), from(1), from(2)];
    are_answered(&mut clients);
    for _ in 0..20 {
        let expected = "ERR BUSY the limit of 2 clients for an address is reached\n";
        assert_eq!(from(1).rest(), expected);
    }
    assert_eq!(clients[2].ask("WHO"), "3");
    assert_eq!(from(2).ask("WHO"), "4");
    drop(clients.remove(0));
    wait_until("a place of 127.0.0.1 is free", || {
        let mut client = from(1);
        client.send("WHY\n");
        client.line().as_deref() == Some("42")
    });
}

#[test]
fn a_refused_client_that_has_sent_something_already_reads_why_before_the_end() {
    let daemon = Daemon::start(["--max-clients", "1", "--queue", "0"]);
    let mut inside = daemon.served(1);
    for round in 0..300 {
        let mut client = daemon.connect();
        client.send("WHY\n".repeat(round));
        client.send("WHO\n");
        // A reset would be an error.
        let expected = "ERR BUSY full with 1 clients, try again later\n";
        assert_eq!(client.rest(), expected);
    }
    assert_eq!(inside[0].ask("WHO"), "1");
}

#[test]
fn more_clients_than_the_system_has_threads_for_are_refused_with_the_limit_named() {
    let limits = "vm.max_map_count kernel.threads-max kernel.pid_max pids.max";
    for asked in ["10000000", &usize::MAX.to_string()] {
        let command = wrapped(&["env"], ["--max-clients", asked]);
        let said = fails_with(command, 71, &[&format!("--max-clients {asked} needs")]);
        let mut limits = limits.split(' ').chain(["ulimit -u"]);
        assert!(limits.any(|limit| said.contains(limit)), "{said}");
    }
}

/// The number of clients that a limit leaves room for; the refusal of this larger number must name the limit.
fn room(wrapper: &[impl AsRef<OsStr>], refused: &str, limit: &str) -> usize {
    let command = wrapped(wrapper, ["--max-clients", refused]);
    let said = fails_with(command, 71, &[limit]);
    let room = said.split_once("there is room for ").expect("a number").1;
    room.split_once(':').expect("a number").0.parse().unwrap()
}

/// As another user, of whom there are no other processes. Root is above this limit.
#[test]
fn a_limit_on_processes_is_named_and_what_it_leaves_room_for_starts() {
    let user = ["setpriv", "--reuid=64321", "--clear-groups"];
    let wrapper = [&user[..], &["prlimit", "--nproc=100:100"]].concat();
    needs!(run & wrapper);
    let limit = "(ulimit -u, LimitNPROC=) is 100";
    let clients = room(&wrapper, "1000", limit);
    room(&wrapper, &(clients + 1).to_string(), limit);
    let clients_there_is_room_for = ["--max-clients", &clients.to_string()];
    Daemon::start_through(&wrapper, clients_there_is_room_for).served(clients);
}

#[test]
fn a_limit_on_memory_is_named_and_what_it_leaves_room_for_starts() {
    for (limit, named) in [
        ("--as=400000000:400000000", "ulimit -v"),
        ("--data=60000000:60000000", "ulimit -d"),
    ] {
        let wrapper = ["prlimit", limit];
        needs!(run & wrapper);
        // What a process takes before differs by some pages from one to the next.
        let clients = room(&wrapper, "9000", named) - 16;
        assert!(clients > 84, "{clients}");
        let daemon = Daemon::start_through(&wrapper, ["--max-clients", &clients.to_string()]);
        daemon.served(clients.min(900));
    }
}

/// A control group of the test's own, with a limit on threads, in whichever hierarchy has one.
struct Group(PathBuf);

impl Group {
    fn new(limit: u32) -> io::Result<Self> {
        let roots = ["/sys/fs/cgroup/pids", "/sys/fs/cgroup"].map(Path::new);
        let root = roots.iter().find(|root| root.join("cgroup.procs").exists());
        let name = format!("blockchain-tcpd-test-{}", uuid::Uuid::new_v4());
        let group = Group(root.ok_or(io::ErrorKind::NotFound)?.join(name));
        fs::create_dir(&group.0)?;
        fs::write(group.0.join("pids.max"), limit.to_string())?;
        Ok(group)
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        // Its processes have ended, but may not be gone yet.
        wait_until("the group is empty", || {
            fs::remove_dir(&self.0).is_ok() || !self.0.exists()
        });
    }
}

/// Where the daemon can't see the limit (the old hierarchy), it is refused threads, and says so in other words.
#[test]
fn in_a_control_group_with_too_few_threads_it_is_refused_and_never_aborts() {
    let group = match Group::new(60) {
        Ok(group) => group,
        Err(error) => {
            skipped(&format!("no control group with a limit: {error}"));
            return;
        }
    };
    let processes = group.0.join("cgroup.procs");
    let wrapper = shell(&format!("echo $$ >{} || exit", processes.display()));
    needs!(run & wrapper);
    let command = wrapped(&wrapper, ["--max-clients", "64"]);
    fails_with(command, 71, &["TasksMax=", "lower --max-clients"]);
    Daemon::start_through(&wrapper, ["--max-clients", "20"]).served(1);
}

/// The files of the unified hierarchy, as the kernel would show them, in a mount namespace of the daemon's own.
#[test]
fn the_limit_of_a_control_group_above_is_named() {
    let Some(wrapper) = in_a_mount_namespace(
        "mount -t tmpfs none /sys/fs/cgroup || exit
        group=$(sed -n 's/^0:://p' /proc/self/cgroup)
        mkdir -p /sys/fs/cgroup/$group
        echo 90 >/sys/fs/cgroup/pids.max
        echo 8 >/sys/fs/cgroup/pids.current",
    ) else {
        return;
    };
    let limit = "the control group's pids.max (TasksMax=) is 90, of which 8 are in use";
    assert_eq!(room(&wrapper, "64", limit), 50);
    Daemon::start_through(&wrapper, ["--max-clients", "50"]).served(1);
}

#[test]
fn a_thousand_clients_that_trickle_keep_nobody_from_an_answer_within_a_second() {
    let daemon = Daemon::start(["--max-clients", "64"]);
    let _trickle = Trickle::start(daemon.address);
    let takes_a_second = || {
        let begun = Instant::now();
        let mut client = daemon.connect();
        client.send("WHY\n");
        let reply = client.line().unwrap_or_default();
        assert!(reply == "42" || reply.starts_with("ERR BUSY "), "{reply:?}");
        begun.elapsed() > Duration::from_secs(1)
    };
    for _ in 0..asked_for("BLOCKCHAIN_TCPD_TEST_NEWCOMERS", 20) {
        // The machine may have been busy with something else, but not twice.
        assert!(!takes_a_second() || !takes_a_second(), "twice");
        thread::park_timeout(Duration::from_millis(50));
    }
}
