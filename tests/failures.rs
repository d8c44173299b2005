//! What the system refuses, and what fails inside: it is survived, said once, and nothing is lost by it.

use std::sync::atomic::Ordering;
use std::thread;
use std::time::{Duration, Instant};

use blockchain_tcpd::metrics::Closed;
use shared::command::sets::server;
use shared::command::{CommandClass, CommandSet, CommandSpec, OUTCOMES, Outcome, ValueType};

use crate::support::kernel::{local_server, own_address, shell, through};
use crate::support::{Client, Daemon, run_to_end, wait_until};

/// Words for `through` that limit the open files.
fn limited(files: u32) -> [String; 3] {
    shell(&format!("ulimit -n {files} || exit"))
}

fn times(log: &str, text: &str) -> usize {
    log.matches(text).count()
}

#[test]
fn without_descriptors_it_waits_and_says_so_once_and_then_serves_who_waited() {
    let daemon = Daemon::start([""; 0]);
    let mut inside = daemon.connect();
    assert_eq!(inside.ask("WHY"), "42");
    wait_until("it waits for the next", || {
        daemon.blocked_in(libc::SYS_accept4) > 0
    });
    daemon.limit_descriptors(true);
    // The accept that waits took its descriptor when it began.
    let mut last = daemon.connect();
    assert_eq!(last.ask("WHO"), "2");

    let mut waiting: Vec<Client> = (0..20).map(|_| daemon.connect()).collect();
    for client in &mut waiting {
        client.send("WHY\n");
    }
    let said = daemon.log().wait_for("clients can't be accepted");
    assert!(said.contains("Too many open files"), "{said}");
    let (before, begun) = (daemon.cpu_time(), Instant::now());
    while begun.elapsed() < Duration::from_secs(1) {
        assert_eq!(inside.ask("WHO"), "2");
        thread::park_timeout(Duration::from_millis(50));
    }
    let used = daemon.cpu_time() - before;
    assert!(used < begun.elapsed() / 5, "it spins: {used:?}");

    daemon.limit_descriptors(false);
    for client in &mut waiting {
        assert_eq!(client.line().as_deref(), Some("42"));
    }
    assert_eq!(inside.ask("WHO"), "22");
    drop((waiting, last, inside));
    daemon.wait_for_others(0);
    let log = daemon.stop();
    assert_eq!(times(&log, "clients can't be accepted reason="), 1, "{log}");
    assert_eq!(times(&log, "over: clients can't be accepted"), 1, "{log}");
}

#[test]
fn with_64_descriptors_it_serves_as_many_as_it_can_and_gives_all_back() {
    let wrapper = limited(64);
    let wrapper: Vec<&str> = wrapper.iter().map(String::as_str).collect();
    let daemon = Daemon::start_through(&wrapper, ["--queue", "0"]);
    let warning = daemon.log().wait_for("fewer clients than asked for");
    assert!(warning.contains(" WARN "), "{warning}");
    assert!(warning.contains("LimitNOFILE="), "{warning}");
    assert!(warning.contains(" limit=64"), "{warning}");
    let room: usize = crate::support::field(&warning, "max_clients")
        .parse()
        .unwrap();
    assert!((1..64).contains(&room), "{warning}");
    assert_eq!(daemon.ask("WHY\n"), "42\n");
    daemon.wait_for_others(0);
    let before = daemon.descriptors();
    for _ in 0..3 {
        let mut inside: Vec<Client> = (0..room).map(|_| daemon.connect()).collect();
        for client in &mut inside {
            assert_eq!(client.ask("WHY"), "42");
        }
        let outside: Vec<Client> = (0..100).map(|_| daemon.connect()).collect();
        for mut client in outside {
            let reply = client.rest();
            assert!(reply.starts_with("ERR BUSY "), "{reply:?}");
            assert!(daemon.descriptors() <= 64);
        }
        assert_eq!(inside[0].ask("WHO"), room.to_string());
        drop(inside);
        daemon.wait_for_others(0);
        wait_until("all descriptors are given back", || {
            daemon.descriptors() == before
        });
    }
    let log = daemon.stop();
    assert_eq!(times(&log, "can't be accepted"), 0, "{log}");
}

/// The limit leaves room for some to wait, and for whoever waits the longest idle one makes room.
#[test]
fn with_64_descriptors_idle_clients_keep_nobody_out() {
    let wrapper = limited(64);
    let wrapper: Vec<&str> = wrapper.iter().map(String::as_str).collect();
    let daemon = Daemon::start_through(&wrapper, [""; 0]);
    let ready = daemon.log().wait_for("ready listen=");
    let number = |key| crate::support::field(&ready, key).parse::<usize>().unwrap();
    let (served, waiting) = (number("max_clients"), number("queue"));
    assert!(
        served > 8 && waiting > 2 && served + waiting < 64,
        "{ready}"
    );
    let mut idle: Vec<Client> = (0..served).map(|_| daemon.connect()).collect();
    for client in &mut idle {
        assert_eq!(client.ask("WHY"), "42");
    }
    for _ in 0..2 * waiting {
        assert_eq!(daemon.connect().ask("WHY"), "42");
    }
}

/// A file that may grow no more is no end of the daemon.
#[test]
fn a_log_at_the_limit_of_a_file_is_no_end() {
    let scratch = crate::support::Scratch::new();
    let log = scratch.path().join("log");
    let address = own_address();
    let script = shell(&format!("ulimit -f 4; exec 2>{}", log.display()));
    let wrapper: Vec<&str> = script.iter().map(String::as_str).collect();
    let mut command = through(&wrapper);
    command.args(["--listen", &address.to_string(), "--log", "debug"]);
    let daemon = Daemon::run_unheard(command, address);
    for _ in 0..100 {
        assert_eq!(daemon.ask("WHY\n"), "42\n");
    }
    daemon.stop();
    assert_eq!(std::fs::metadata(log).unwrap().len(), 4 * 512);
}

/// Listeners take descriptors too, and so does what was open when the daemon started.
#[test]
fn with_many_listeners_and_few_descriptors_nobody_is_left_hanging() {
    let script = shell(
        "for number in 10 11 12 13 14 15 16 17 18 19; do eval \"exec $number</dev/null\"; done
        ulimit -n 140 || exit",
    );
    let script = script.map(|word| word.replace("sh", "bash"));
    let wrapper: Vec<&str> = script.iter().map(String::as_str).collect();
    needs!(run & wrapper);
    let mut arguments = ["--listen", "127.0.0.1:0"].repeat(40);
    arguments.extend(["--queue", "0"]);
    let daemon = Daemon::start_through(&wrapper, arguments);
    let warning = daemon.log().wait_for("fewer clients than asked for");
    let room: usize = crate::support::field(&warning, "max_clients")
        .parse()
        .unwrap();
    let mut inside: Vec<Client> = (0..room).map(|_| daemon.connect()).collect();
    for client in &mut inside {
        assert_eq!(client.ask("WHY"), "42");
    }
    for _ in 0..20 {
        let reply = daemon.connect().rest();
        assert!(reply.starts_with("ERR BUSY "), "{reply:?}");
    }
    drop(inside);
    let log = daemon.stop();
    assert_eq!(times(&log, "can't be accepted"), 0, "{log}");
}

#[test]
fn with_16_descriptors_it_does_not_start_and_says_why() {
    let wrapper = limited(16);
    let wrapper: Vec<&str> = wrapper.iter().map(String::as_str).collect();
    let mut command = through(&wrapper);
    command.args(["--listen", "127.0.0.1:0"]);
    let (status, said) = run_to_end(command);
    assert_eq!(status, 71, "{said}");
    assert_eq!(
        said.lines().last().unwrap(),
        "blockchain-tcpd: the limit of 16 open files leaves no room for clients; raise it (ulimit -n, LimitNOFILE=)"
    );
}

/// A command with a mistake in it.
const FAULTY: CommandSet = &[CommandSpec {
    name: "FAIL",
    parameters: &[],
    result: ValueType::Text,
    summary: "fails",
    class: CommandClass::Query,
    execute: |context, _| {
        let clients = context.clients.load(Ordering::SeqCst);
        assert_eq!(clients, usize::MAX, "this is the mistake");
        unreachable!()
    },
}];

#[test]
fn a_panic_costs_one_connection_and_no_worker() {
    let server = local_server(
        &["--max-clients", "2", "--queue", "0"],
        &[server::SET, FAULTY],
    );
    let address = server.addresses()[0];
    let mut other = Client::connect(address).unwrap();
    for _ in 0..1000 {
        let mut client = Client::connect(address).unwrap();
        client.send("WHY\nFAIL\nWHY\n");
        let expected = "ERR INTERNAL the server failed at this, its log says more\n";
        let said = client.rest();
        assert!(said.ends_with(expected), "{said:?}");
        // A client that has seen the end of its stream no longer counts.
        assert_eq!(other.ask("WHO"), "1");
    }
    let sums = server.metrics.sums();
    assert_eq!(sums.closed[Closed::Panicked as usize], 1000);
    let internal = Outcome::at(None, OUTCOMES.len() - 1).index();
    assert_eq!(sums.outcomes[internal], 1000);
    // With both places taken, both are served.
    assert_eq!(Client::connect(address).unwrap().ask("WHO"), "2");
    drop(other);
    wait_until("nobody is left", || server.clients() == 0);
    server.stop(Duration::from_secs(10));
}
