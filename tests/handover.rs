//! Live connections go to the next program: nobody is cut off, nothing is lost, nothing comes twice.

use std::net::{Shutdown, TcpListener, TcpStream};
use std::os::fd::AsFd as _;
use std::os::unix::fs::PermissionsExt as _;
use std::process::Stdio;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use blockchain_tcpd::clock::Millis;
use blockchain_tcpd::pack::{self, Contents};

use crate::protocol::proves;
use crate::support::kernel::{asked_for, shell, through};
use crate::support::{Client, Daemon, Scratch, clean, field, program, run_to_end, wait_until};

fn times(daemon: &Daemon, text: &str) -> usize {
    let lines = daemon.log().lines();
    lines.iter().filter(|line| line.contains(text)).count()
}

/// Lets a new program take over, and waits until it has.
fn replace(daemon: &Daemon) {
    let before = times(daemon, "ready listen=");
    daemon.signal("USR2");
    wait_until("a new program is ready", || {
        times(daemon, "ready listen=") > before
    });
}

#[test]
fn clients_that_ask_without_pause_notice_nothing() {
    proves(
        r#"When another process of the server takes over, it goes on with all clients, who notice nothing: no reply is lost, cut or doubled."#,
    );
    let (clients, rounds) = (
        asked_for("BLOCKCHAIN_TCPD_TEST_CLIENTS", 64),
        asked_for("BLOCKCHAIN_TCPD_TEST_ROUNDS", 10),
    );
    let daemon = Daemon::start(["--max-clients", &(clients + 8).to_string()]);
    let address = daemon.address;
    let over = Arc::new(AtomicBool::new(false));
    let connected = Arc::new(AtomicUsize::new(0));
    let asking: Vec<_> = (0..clients)
        .map(|number| {
            let (over, connected) = (over.clone(), connected.clone());
            let ask = move || {
                let mut client = Client::connect(address).unwrap();
                let (mut asked, mut slowest) = (0, Duration::ZERO);
                while !over.load(Ordering::Relaxed) {
                    let token = format!("t{number}-{asked}");
                    let begun = Instant::now();
                    let expected = format!("ERR UNKNOWN no such command: \"{token}\" (try HELP)");
                    assert_eq!(client.ask(&token), expected);
                    slowest = slowest.max(begun.elapsed());
                    asked += 1;
                    if asked == 1 {
                        connected.fetch_add(1, Ordering::SeqCst);
                    }
                }
                client.shutdown();
                assert_eq!(client.rest(), "", "nothing comes twice");
                (asked, slowest)
            };
            thread::Builder::new()
                .stack_size(128 * 1024)
                .spawn(ask)
                .unwrap()
        })
        .collect();
    wait_until("all ask", || connected.load(Ordering::SeqCst) == clients);

    let watched = Arc::new(AtomicBool::new(false));
    let enough = watched.clone();
    let watch = thread::spawn(move || {
        let mut client = Client::connect(address).unwrap();
        let right = (clients + 1).to_string();
        let mut samples = 0;
        while !enough.load(Ordering::Relaxed) {
            assert_eq!(client.ask("WHO"), right);
            samples += 1;
            thread::park_timeout(Duration::from_millis(1));
        }
        samples
    });
    let pid = daemon.pid();
    replace(&daemon);
    let (threads, descriptors) = (daemon.status_number("Threads"), daemon.descriptors());
    let memory = daemon.status_number("VmRSS");
    for _ in 1..rounds {
        replace(&daemon);
    }
    wait_until("as many threads and descriptors", || {
        daemon.status_number("Threads") == threads && daemon.descriptors() == descriptors
    });
    let more = daemon.status_number("VmRSS").saturating_sub(memory);
    assert!(more < 2048, "{more} KiB");
    assert_eq!(daemon.pid(), pid);
    watched.store(true, Ordering::Relaxed);
    assert!(watch.join().unwrap() > 0);
    over.store(true, Ordering::Relaxed);
    let mut waits: Vec<Duration> = Vec::new();
    for client in asking {
        let (asked, slowest) = client.join().unwrap();
        assert!(asked > 0);
        waits.push(slowest);
    }
    waits.sort();
    eprintln!(
        "{clients} clients, {rounds} times: the slowest answer of a client took {:?} (median), {:?} (worst)",
        waits[clients / 2],
        waits[clients - 1]
    );
    let log = daemon.stop();
    assert!(!log.contains("ERROR"), "{log}");
}

#[test]
fn everything_about_a_client_goes_along() {
    let scratch = Scratch::new();
    let directory = scratch.path().to_str().unwrap();
    let daemon = Daemon::start(["--state-directory", directory, "--write-timeout", "1h"]);
    let id = daemon.ask("WHERE\n");
    let mut half = daemon.connect();
    half.send("WHY\nWHE");
    assert_eq!(half.line().as_deref(), Some("42"));
    // It takes nothing, so that its replies wait in the server.
    let mut stuck = Client::connect_narrow(daemon.address);
    let asked = stuck.flood(&daemon, 1);

    replace(&daemon);
    half.send("RE\n");
    assert_eq!(half.line().map(|line| line + "\n"), Some(id));
    replace(&daemon);
    drop(half);
    assert_eq!(times(&daemon, " sockets=bound "), 3, "and not systemd's");
    // Not a byte of its replies is missing, and none comes twice.
    stuck.shutdown();
    let replies = stuck.rest();
    let expected = "ERR UNKNOWN no such command: \"a\" (try HELP)";
    assert!(replies.lines().all(|line| line == expected), "cut");
    assert_eq!(replies.lines().count(), asked);
    daemon.wait_for_others(0);
    daemon.stop();
}

#[test]
fn the_id_goes_along_if_no_directory_keeps_it() {
    let daemon = Daemon::start([""; 0]);
    let id = daemon.ask("WHERE\n");
    replace(&daemon);
    assert_eq!(daemon.ask("WHERE\n"), id);
    daemon.stop();
}

/// The next program doesn't take those who are here already for something else that needs descriptors.
#[test]
fn clients_that_take_all_descriptors_go_along() {
    let wrapper = shell("ulimit -n 64 || exit");
    let wrapper: Vec<&str> = wrapper.iter().map(String::as_str).collect();
    let daemon = Daemon::start_through(&wrapper, ["--queue", "4"]);
    let most = field(&daemon.log().wait_for("ready listen="), "max_clients");
    let most: usize = most.parse().unwrap();
    let mut clients: Vec<Client> = (0..most).map(|_| daemon.connect()).collect();
    for client in &mut clients {
        assert_eq!(client.ask("WHY"), "42");
    }
    replace(&daemon);
    for client in &mut clients {
        assert_eq!(client.ask("WHO"), most.to_string());
    }
    daemon.stop();
}

/// Nobody was at the service of this one yet.
#[test]
fn who_waits_for_a_worker_goes_along() {
    let daemon = Daemon::start(["--max-clients", "1", "--queue", "1"]);
    let mut served = daemon.connect();
    assert_eq!(served.ask("WHY"), "42");
    let mut waiting = daemon.connect();
    waiting.send("WHY\nPING\n");
    replace(&daemon);
    // One of the two makes room for the other, again and again, unless it asks.
    assert_eq!(waiting.line().as_deref(), Some("42"));
    assert_eq!(waiting.line().as_deref(), Some("PONG"));
    drop(waiting);
    assert_eq!(daemon.ask("WHY\n"), "42\n");
    daemon.stop();
}

#[test]
fn idle_time_goes_on_counting() {
    let daemon = Daemon::start(["--idle-timeout", "3s"]);
    let mut idle = daemon.connect();
    assert_eq!(idle.ask("WHY"), "42");
    let begun = Instant::now();
    while begun.elapsed() < Duration::from_secs(2) {
        replace(&daemon);
    }
    assert_eq!(idle.rest(), "ERR TIMEOUT no request for too long\n");
    let elapsed = begun.elapsed();
    assert!(elapsed > Duration::from_millis(2900), "{elapsed:?}");
    assert!(
        elapsed < Duration::from_millis(4900),
        "it began anew: {elapsed:?}"
    );
    daemon.stop();
}

/// New clients are not refused meanwhile, and those that are half closed or just leaving get all that they are due.
#[test]
fn who_comes_or_leaves_meanwhile_notices_nothing_either() {
    let daemon = Daemon::start(["--max-clients", "64"]);
    let address = daemon.address;
    let over = Arc::new(AtomicBool::new(false));
    let coming: Vec<_> = (0..4)
        .map(|_| {
            let over = over.clone();
            thread::spawn(move || {
                let mut served = 0;
                while !over.load(Ordering::Relaxed) {
                    let mut client = Client::connect(address).expect("nobody is refused");
                    let end = if served % 2 == 0 { "QUIT\n" } else { "" };
                    client.send(format!("PING\nWHY\n{end}"));
                    client.socket().shutdown(Shutdown::Write).unwrap();
                    let bye = if served % 2 == 0 { "BYE\n" } else { "" };
                    assert_eq!(client.rest(), format!("PONG\n42\n{bye}"));
                    served += 1;
                }
                served
            })
        })
        .collect();
    for _ in 0..10 {
        replace(&daemon);
    }
    over.store(true, Ordering::Relaxed);
    for client in coming {
        assert!(client.join().unwrap() > 0);
    }
    daemon.wait_for_others(0);
    daemon.stop();
}

/// A program that can't take over leaves everything as it is, and the log says why.
#[test]
fn a_program_that_cannot_take_over_costs_nobody_anything() {
    let scratch = Scratch::new();
    let copy = scratch.path().join("blockchain-tcpd");
    let original = program().get_program().to_owned();
    std::fs::copy(&original, &copy).unwrap();
    let state = scratch.path().join("state");
    std::fs::create_dir(&state).unwrap();
    let mut command = clean(&copy);
    command
        .args(["--listen", "127.0.0.1:0", "--state-directory"])
        .arg(&state);
    let daemon = Daemon::run(command);
    let mut client = daemon.connect();
    client.send("WH");

    // Never written in place: that program runs.
    let put = |content: &[u8], mode: u32| {
        let new = scratch.path().join("new");
        std::fs::write(&new, content).unwrap();
        std::fs::set_permissions(&new, std::fs::Permissions::from_mode(mode)).unwrap();
        std::fs::rename(&new, &copy).unwrap();
    };
    let bad: [(&str, &dyn Fn()); 5] = [
        ("can't run ", &|| std::fs::remove_file(&copy).unwrap()),
        ("Exec format error", &|| put(b"garbage", 0o755)),
        ("Permission denied", &|| put(b"#!/bin/sh\n", 0o644)),
        ("--check fails with exit status: 3", &|| {
            put(b"#!/bin/sh\nexit 3\n", 0o755)
        }),
        ("--check fails with ", &|| {
            std::fs::copy(&original, &copy).unwrap();
            std::fs::rename(&state, scratch.path().join("gone")).unwrap();
        }),
    ];
    for (number, (why, spoil)) in bad.into_iter().enumerate() {
        spoil();
        daemon.signal("USR2");
        let said = "goes on as it is, the new program can't take over: ";
        wait_until(why, || times(&daemon, said) == number + 1);
        let lines = daemon.log().lines();
        let line = lines.iter().rfind(|line| line.contains(said)).unwrap();
        assert!(line.contains(why), "{line}");
        assert_eq!(client.ask(if number == 0 { "Y" } else { "WHY" }), "42");
    }
    std::fs::rename(scratch.path().join("gone"), &state).unwrap();
    replace(&daemon);
    assert_eq!(client.ask("WHY"), "42");
    daemon.stop();
}

/// One that passes its trial and then isn't there any more: the same process goes on with what it had let go of.
#[test]
fn a_program_that_vanishes_after_its_trial_costs_nobody_anything() {
    let scratch = Scratch::new();
    let copy = scratch.path().join("blockchain-tcpd");
    std::fs::copy(program().get_program(), &copy).unwrap();
    let mut command = clean(&copy);
    command.args(["--listen", "127.0.0.1:0"]);
    let daemon = Daemon::run(command);
    let mut client = daemon.connect();
    client.send("WH");
    std::fs::remove_file(&copy).unwrap();
    std::fs::write(&copy, format!("#!/bin/sh\nrm {}\n", copy.display())).unwrap();
    std::fs::set_permissions(&copy, std::fs::Permissions::from_mode(0o755)).unwrap();
    replace(&daemon);
    let said = daemon.log().wait_for("goes on as it is: can't run ");
    assert!(said.contains("No such file"), "{said}");
    assert_eq!(client.ask("Y"), "42");
    assert_eq!(client.ask("WHO"), "1");
    let status = std::fs::read_to_string(format!("/proc/{}/status", daemon.pid())).unwrap();
    let ignored = status.lines().find_map(|line| line.strip_prefix("SigIgn:"));
    let ignored = u64::from_str_radix(ignored.unwrap().trim(), 16).unwrap();
    assert_ne!(
        ignored & 1 << (libc::SIGPIPE - 1),
        0,
        "a log that nobody reads ends it"
    );
    daemon.stop();
}

/// A file in memory may be no larger than others.
#[test]
fn clients_that_cannot_be_packed_stay() {
    let wrapper = shell("ulimit -f 0 || exit");
    let wrapper: Vec<&str> = wrapper.iter().map(String::as_str).collect();
    let daemon = Daemon::start_through(&wrapper, ["--max-clients", "8"]);
    let mut client = daemon.connect();
    client.send("WH");
    replace(&daemon);
    let said = daemon.log().wait_for("goes on as it is: ");
    assert!(
        said.contains("can't pack the clients: File too large"),
        "{said}"
    );
    assert_eq!(client.ask("Y"), "42");
    assert_eq!(client.ask("WHO"), "1");
    daemon.stop();
}

#[test]
fn another_signal_meanwhile_keeps_no_program_from_being_replaced() {
    let daemon = Daemon::start(["--max-clients", "8"]);
    let mut client = daemon.connect();
    assert_eq!(client.ask("WHY"), "42");
    for round in 1..=10 {
        daemon.signal("USR2");
        daemon.signal("HUP");
        // Said by the new program alone.
        wait_until("it is replaced", || {
            times(&daemon, "goes on with the clients of the last process") == round
        });
        assert_eq!(client.ask("WHY"), "42");
    }
    daemon.stop();
}

/// It says so when it is tried out, before anybody is let go of.
#[test]
fn a_program_that_packs_otherwise_is_not_taken() {
    for (version, taken) in [("1", true), ("2", false)] {
        let mut command = program();
        command
            .arg("--check")
            .env("BLOCKCHAIN_TCPD_PACK_VERSION", version);
        let (status, said) = run_to_end(command);
        assert_eq!(status == 0, taken, "{said}");
        assert_eq!(
            said.contains("hands its clients over in version 2"),
            !taken,
            "{said}"
        );
    }
}

/// A daemon that takes over a listening socket and one client of a process that listed two; of a pack whose state is `spoilt`.
/// The client has sent a question that nobody has read yet.
fn take_over(spoilt: impl Fn(&mut Vec<u8>)) -> (Daemon, Client) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    let mut client = Client::connect(address).unwrap();
    client.send("WHY\n");
    let (accepted, peer) = listener.accept().unwrap();
    let one = pack::Client {
        number: 1,
        peer,
        since: Millis(1),
        active: None,
        unanswered: Vec::new(),
        replies: Vec::new(),
        closes: false,
    };
    let contents = Contents {
        listeners: 1,
        id: uuid::Uuid::new_v4(),
        accepted: 1,
        clients: vec![one; 2],
        leaving: Vec::new(),
    };
    let mut state = pack::encode(&contents, true);
    spoilt(&mut state);
    let descriptors = [listener.as_fd(), accepted.as_fd()];
    let pack = pack::send_encoded(&state, &descriptors).unwrap();
    drop((listener, accepted));
    let daemon = begin_with(pack.into(), &[]);
    assert_eq!(daemon.address, address);
    (daemon, client)
}

/// A daemon that is given this for a pack.
fn begin_with(pack: Stdio, arguments: &[&str]) -> Daemon {
    let script = shell("exec 9<&0 </dev/null; export BLOCKCHAIN_TCPD_PACK=9");
    let wrapper: Vec<&str> = script.iter().map(String::as_str).collect();
    let mut command = through(&wrapper);
    command.args(arguments).stdin(pack);
    Daemon::run(command)
}

/// A pack of a later version, an earlier one, or a damaged one: its clients are closed in order, its sockets served.
#[test]
fn a_pack_that_cannot_be_read_costs_its_clients_and_nothing_else() {
    const VERSION: usize = pack::MAGIC.len() + 1;
    type Spoil = fn(&mut Vec<u8>);
    let spoilt: [(Spoil, &str); 3] = [
        (
            |state| state[VERSION] = 2,
            "its format has version 2, and this program knows version 1",
        ),
        (|state| state[VERSION] = 0, "its format has version 0"),
        (
            |state| state.truncate(state.len() - 3),
            "it is damaged: its checksum is wrong",
        ),
    ];
    for (spoil, why) in spoilt {
        let (daemon, mut client) = take_over(spoil);
        assert_eq!(client.rest(), "", "an end, not a reset");
        assert_eq!(daemon.ask("WHO\n"), "1\n");
        let log = daemon.stop();
        assert!(log.contains(why), "{log}");
        assert!(log.contains(" sockets=passed "), "{log}");
    }
}

/// As when the next process may open fewer files.
#[test]
fn clients_whose_descriptors_are_missing_cost_the_others_nothing() {
    let (daemon, mut client) = take_over(|_| {});
    assert_eq!(client.line().as_deref(), Some("42"));
    assert_eq!(daemon.ask("WHO\n"), "2\n");
    let log = daemon.stop();
    assert!(
        log.contains("sockets of the last process are lost"),
        "{log}"
    );
    assert!(log.contains(" missing=1"), "{log}");
}

/// Whenever it comes, also while no program of ours is there to hear it.
#[test]
fn a_stop_that_comes_during_a_replacement_is_heeded() {
    let rounds = asked_for("BLOCKCHAIN_TCPD_TEST_TURNS", 20);
    for round in 0..rounds {
        let daemon = Daemon::start(["--max-clients", "8"]);
        let mut client = daemon.connect();
        assert_eq!(client.ask("WHY"), "42");
        daemon.signal("USR2");
        if round % 2 == 0 {
            daemon.log().wait_for("hands its clients over");
        } else {
            // The trial takes some milliseconds, more than the signal.
            thread::park_timeout(Duration::from_millis(round as u64));
        }
        client.send("WHY\n");
        daemon.stop();
        assert_eq!(client.rest(), "42\n");
    }
}

#[test]
fn a_pack_that_makes_no_sense_is_said_and_the_daemon_serves() {
    for number in ["0", "99", "word"] {
        let mut command = program();
        command
            .args(["--listen", "127.0.0.1:0"])
            .env("BLOCKCHAIN_TCPD_PACK", number);
        let daemon = Daemon::run(command);
        assert_eq!(daemon.ask("WHY\n"), "42\n");
        assert!(TcpStream::connect(daemon.address).is_ok());
        daemon.stop();
    }
    let file = std::fs::File::open(program().get_program()).unwrap();
    let daemon = begin_with(file.into(), &["--listen", "127.0.0.1:0"]);
    assert_ne!(daemon.ask("WHERE\n"), format!("{}\n", uuid::Uuid::nil()));
    let log = daemon.stop();
    assert!(
        log.contains("can't take their pack: Socket operation on non-socket"),
        "{log}"
    );
}
