//! More clients than may be: `ERR BUSY`, waiting, making room, the cap for an address, and what the system has room for.

use std::fs;
use std::io;
use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use crate::support::kernel::{asked_for, shell, through};
use crate::support::trickle::Trickle;
use crate::support::{Client, Daemon, fails, run_to_end, wait_until};

/// A client that is idle for less never makes room for another; the clock is accurate to a tick of at most 10 ms.
const MINIMUM_IDLE: Duration = Duration::from_millis(490);

const MADE_ROOM: &str = "ERR TIMEOUT idle while others wait, try again later";

/// A client that asks again and again, so that it never makes room, until it is told to leave.
struct Active {
    leave: Arc<AtomicBool>,
    /// Returns the longest time between two answers, and what came instead of an answer.
    asking: JoinHandle<(Duration, Option<String>)>,
}

impl Active {
    fn start(daemon: &Daemon) -> Self {
        let mut client = daemon.connect();
        assert_eq!(client.ask("PING"), "PONG");
        let leave = Arc::new(AtomicBool::new(false));
        let told = leave.clone();
        let asking = thread::spawn(move || {
            let (mut longest, mut last) = (Duration::ZERO, Instant::now());
            while !told.load(Ordering::Relaxed) {
                client.send("PING\n");
                let reply = client.line();
                longest = longest.max(last.elapsed());
                last = Instant::now();
                if reply.as_deref() != Some("PONG") {
                    return (longest, reply);
                }
                thread::park_timeout(Duration::from_millis(5));
            }
            (longest, None)
        });
        Active { leave, asking }
    }

    fn leave(self) -> (Duration, Option<String>) {
        self.leave.store(true, Ordering::Relaxed);
        self.asking.join().unwrap()
    }
}

fn is_busy(reply: &str) -> bool {
    reply.starts_with("ERR BUSY full with ") && reply.lines().count() == 1
}

#[test]
fn whoever_finds_workers_and_queue_full_is_told_so_at_once_and_never_counts() {
    let daemon = Daemon::start(["--max-clients", "2", "--queue", "1"]);
    let active = [Active::start(&daemon), Active::start(&daemon)];
    let mut waiting = daemon.connect();
    waiting.send("WHO\n");
    for _ in 0..50 {
        let reply = daemon.connect().rest();
        assert_eq!(reply, "ERR BUSY full with 3 clients, try again later\n");
    }
    for client in active {
        assert_eq!(client.leave().1, None);
    }
    // Only the active ones had to leave for it.
    let seen: usize = waiting.line().unwrap().parse().unwrap();
    assert!(seen <= 3, "{seen}");
    assert_eq!(waiting.ask("WHY"), "42");
    drop(waiting);
    daemon.wait_for_others(0);
}

#[test]
fn without_a_queue_nobody_waits_and_nobody_makes_room() {
    let daemon = Daemon::start(["--max-clients", "2", "--queue", "0"]);
    let mut clients = [daemon.connect(), daemon.connect()];
    for client in &mut clients {
        assert_eq!(client.ask("WHY"), "42");
    }
    let begun = Instant::now();
    while begun.elapsed() < 2 * MINIMUM_IDLE {
        assert!(is_busy(&daemon.connect().rest()));
    }
    for client in &mut clients {
        assert_eq!(client.ask("WHO"), "2");
    }
}

#[test]
fn a_waiting_client_is_served_as_soon_as_one_leaves() {
    let daemon = Daemon::start(["--max-clients", "2", "--queue", "1"]);
    let (first, second) = (Active::start(&daemon), Active::start(&daemon));
    let mut waiting = daemon.connect();
    waiting.send("WHO\n");
    assert!(is_busy(&daemon.connect().rest()), "it waits");
    assert_eq!(first.leave().1, None);
    assert_eq!(waiting.line().as_deref(), Some("2"));
    assert_eq!(second.leave().1, None);
}

#[test]
fn the_client_that_is_idle_longest_makes_room_and_no_other() {
    let daemon = Daemon::start(["--max-clients", "3", "--queue", "2"]);
    let mut clients = [daemon.connect(), daemon.connect(), daemon.connect()];
    for client in &mut clients {
        assert_eq!(client.ask("PING"), "PONG");
    }
    // The first to come is not the longest idle one: the second is.
    let last_asked = Instant::now();
    assert_eq!(clients[1].ask("PING"), "PONG");
    while last_asked.elapsed() < Duration::from_millis(50) {
        assert_eq!(clients[0].ask("PING"), "PONG");
        assert_eq!(clients[2].ask("PING"), "PONG");
    }
    let mut new = daemon.connect();
    new.send("WHY\n");
    assert_eq!(clients[1].rest(), format!("{MADE_ROOM}\n"));
    daemon
        .log()
        .wait_for("idle clients are closed to make room");
    let idle = last_asked.elapsed();
    assert!(idle >= MINIMUM_IDLE, "{idle:?}");
    assert_eq!(new.line().as_deref(), Some("42"));
    let [first, _, third] = &mut clients;
    for client in [&mut new, first, third] {
        assert_eq!(client.ask("WHO"), "3");
    }
}

#[test]
fn active_clients_make_no_room() {
    // A client is active if it asks every half second, which this machine may be too busy for: then again.
    for _ in 0..10 {
        let daemon = Daemon::start(["--max-clients", "2", "--queue", "3"]);
        let active = [Active::start(&daemon), Active::start(&daemon)];
        let mut waiting = [daemon.connect(), daemon.connect(), daemon.connect()];
        let begun = Instant::now();
        while begun.elapsed() < 3 * MINIMUM_IDLE {
            thread::park_timeout(Duration::from_millis(10));
        }
        let ended = active.map(Active::leave);
        for client in &mut waiting {
            assert_eq!(client.ask("WHY"), "42");
        }
        if ended.iter().all(|(longest, _)| *longest < MINIMUM_IDLE) {
            assert!(
                ended.iter().all(|(_, instead)| instead.is_none()),
                "{ended:?}"
            );
            return;
        }
    }
    panic!("this machine is too busy");
}

#[test]
fn one_address_has_no_more_clients_than_its_share() {
    let daemon = Daemon::start(["--max-clients-per-address", "2"]);
    let from = |last| {
        Client::connect_from(Ipv4Addr::new(127, 0, 0, last), daemon.address).expect("it accepts")
    };
    let mut clients = vec![from(1), from(1), from(2)];
    for client in &mut clients {
        assert_eq!(client.ask("WHY"), "42");
    }
    for _ in 0..20 {
        let expected = "ERR BUSY 2 clients of your address are the limit\n";
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
    let mut inside = daemon.connect();
    assert_eq!(inside.ask("WHY"), "42");
    for round in 0..300 {
        let mut client = daemon.connect();
        client.send("WHY\n".repeat(round));
        client.send("WHO\n");
        // A reset would be an error.
        let reply = client.rest();
        assert!(is_busy(&reply), "{reply:?}");
    }
    assert_eq!(inside.ask("WHO"), "1");
}

#[test]
fn more_clients_than_the_system_has_threads_for_are_refused_with_the_limit_named() {
    let limits = [
        "vm.max_map_count",
        "kernel.threads-max",
        "kernel.pid_max",
        "pids.max",
        "ulimit -u",
    ];
    for asked in ["10000000", &usize::MAX.to_string()] {
        let (status, said) = fails(["--listen", "127.0.0.1:0", "--max-clients", asked]);
        assert_eq!(status, 71, "{said}");
        assert!(
            said.contains(&format!("--max-clients {asked} needs")),
            "{said}"
        );
        assert!(limits.iter().any(|limit| said.contains(limit)), "{said}");
    }
}

/// As another user, of whom there are no other processes. Root is above this limit.
#[test]
fn a_limit_on_processes_is_named_and_what_it_leaves_room_for_starts() {
    let wrapper = [
        "setpriv",
        "--reuid=64321",
        "--clear-groups",
        "prlimit",
        "--nproc=100:100",
    ];
    needs!(run & wrapper);
    let refused = |clients: &str| {
        let mut command = through(&wrapper);
        command.args(["--listen", "127.0.0.1:0", "--max-clients", clients]);
        run_to_end(command)
    };
    let (status, said) = refused("1000");
    assert_eq!(status, 71, "{said}");
    assert!(said.contains("(ulimit -u, LimitNPROC=) is 100"), "{said}");
    let room = said.split_once("there is room for ").expect("a number").1;
    let room: usize = room.split_once(':').expect("a number").0.parse().unwrap();
    assert_eq!(refused(&(room + 1).to_string()).0, 71);
    let daemon = Daemon::start_through(&wrapper, ["--max-clients", &room.to_string()]);
    let mut clients: Vec<Client> = (0..room).map(|_| daemon.connect()).collect();
    for client in &mut clients {
        assert_eq!(client.ask("WHY"), "42");
    }
}

#[test]
fn a_limit_on_memory_is_named_and_what_it_leaves_room_for_starts() {
    for (limit, named) in [
        ("--as=400000000:400000000", "ulimit -v"),
        ("--data=60000000:60000000", "ulimit -d"),
    ] {
        let wrapper = ["prlimit", limit];
        needs!(run & wrapper);
        let mut command = through(&wrapper);
        command.args(["--listen", "127.0.0.1:0", "--max-clients", "9000"]);
        let (status, said) = run_to_end(command);
        assert_eq!(status, 71, "{said}");
        assert!(said.contains(named), "{said}");
        let room = said.split_once("there is room for ").expect("a number").1;
        let room: usize = room.split_once(':').expect("a number").0.parse().unwrap();
        assert!(room > 100, "{room}");
        // What a process takes before differs by some pages from one to the next.
        let room = room - 16;
        let daemon = Daemon::start_through(&wrapper, ["--max-clients", &room.to_string()]);
        let mut clients: Vec<Client> = (0..room.min(900)).map(|_| daemon.connect()).collect();
        for client in &mut clients {
            assert_eq!(client.ask("WHY"), "42");
        }
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
            crate::support::skipped(&format!("no control group with a limit: {error}"));
            return;
        }
    };
    let script = shell(&format!(
        "echo $$ >{}/cgroup.procs || exit",
        group.0.display()
    ));
    let wrapper: Vec<&str> = script.iter().map(String::as_str).collect();
    needs!(run & wrapper);
    let mut command = through(&wrapper);
    command.args(["--listen", "127.0.0.1:0", "--max-clients", "64"]);
    let (status, said) = run_to_end(command);
    assert_eq!(status, 71, "{said}");
    assert!(said.contains("TasksMax="), "{said}");
    assert!(said.contains("lower --max-clients"), "{said}");
    let daemon = Daemon::start_through(&wrapper, ["--max-clients", "20"]);
    assert_eq!(daemon.ask("WHY\n"), "42\n");
}

/// The files of the unified hierarchy, as the kernel would show them, in a mount namespace of the daemon's own.
#[test]
fn the_limit_of_a_control_group_above_is_named() {
    let script = shell(
        "mount -t tmpfs none /sys/fs/cgroup || exit
        group=$(sed -n 's/^0:://p' /proc/self/cgroup)
        mkdir -p /sys/fs/cgroup/$group
        echo 90 >/sys/fs/cgroup/pids.max
        echo 8 >/sys/fs/cgroup/pids.current",
    );
    let wrapper: Vec<&str> = ["unshare", "--mount"]
        .into_iter()
        .chain(script.iter().map(String::as_str))
        .collect();
    needs!(run & wrapper);
    let mut command = through(&wrapper);
    command.args(["--listen", "127.0.0.1:0", "--max-clients", "64"]);
    let (status, said) = run_to_end(command);
    assert_eq!(status, 71, "{said}");
    let expected = "there is room for 50: the control group's pids.max (TasksMax=) is 90, of which 8 are in use";
    assert!(said.contains(expected), "{said}");
    let daemon = Daemon::start_through(&wrapper, ["--max-clients", "50"]);
    assert_eq!(daemon.ask("WHY\n"), "42\n");
}

#[test]
fn a_thousand_clients_that_trickle_keep_nobody_from_an_answer_within_a_second() {
    let daemon = Daemon::start(["--max-clients", "64"]);
    let _trickle = Trickle::start(daemon.address);
    let ask = || {
        let begun = Instant::now();
        let mut client = daemon.connect();
        client.send("WHY\n");
        let reply = client.line().unwrap_or_default();
        assert!(reply == "42" || reply.starts_with("ERR BUSY "), "{reply:?}");
        (begun.elapsed(), reply)
    };
    let (mut slowest, mut answered, mut again) = (Duration::ZERO, 0, 0);
    for _ in 0..asked_for("BLOCKCHAIN_TCPD_TEST_NEWCOMERS", 20) {
        let (mut took, mut reply) = ask();
        if took > Duration::from_secs(1) {
            // The machine may have been busy with something else, but not twice.
            again += 1;
            (took, reply) = ask();
        }
        assert!(took <= Duration::from_secs(1), "{took:?}, and so before");
        answered += usize::from(reply == "42");
        slowest = slowest.max(took);
        thread::park_timeout(Duration::from_millis(50));
    }
    eprintln!(
        "{answered} answered, the others told ERR BUSY; the slowest after {slowest:?}; {again} asked again"
    );
}
