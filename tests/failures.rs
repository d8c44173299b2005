//! What the system refuses, and what fails inside: it is survived, logged once, and nothing is lost by it.

use std::ffi::OsStr;
use std::thread;
use std::time::{Duration, Instant};

use blockchain_tcpd::metrics::Closed;
use shared::command::sets::server;
use shared::command::{CommandClass, CommandSet, OUTCOMES, Outcome};

use crate::support::kernel::{local_server, own_command, shell, wrapped};
use crate::support::*;

/// Words for `through` that limit the open files.
fn limited(files: u32) -> [String; 3] {
    shell(&format!("ulimit -n {files} || exit"))
}

fn times(log: &str, text: &str) -> usize {
    log.matches(text).count()
}

#[test]
fn without_descriptors_it_waits_and_logs_it_once_and_then_serves_those_that_waited() {
    let daemon = http::daemon(&[]);
    let descriptors = daemon.descriptors();
    http::get(daemon.http(), "/metrics");
    wait_until("it has closed that", || daemon.descriptors() == descriptors);
    let mut inside = daemon.served(1).remove(0);
    daemon.limit_descriptors(true);
    let mut waiting = [(); 20].map(|()| daemon.connect());
    for client in &mut waiting {
        client.send("WHY\n");
    }
    let warning = daemon.log().wait_for("clients can't be accepted");
    assert_contains(&warning, "Too many open files");
    let (before, begun) = (daemon.cpu_time(), Instant::now());
    while begun.elapsed() < Duration::from_secs(1) {
        assert_eq!(inside.ask("WHO"), "1");
        thread::park_timeout(Duration::from_millis(50));
    }
    let used = daemon.cpu_time() - before;
    assert!(used < begun.elapsed() / 5, "it spins: {used:?}");

    daemon.limit_descriptors(false);
    for client in &mut waiting {
        assert_eq!(client.line().as_deref(), Some("42"));
    }
    assert_eq!(inside.ask("WHO"), "21");
    let metrics = http::get(daemon.http(), "/metrics").body;
    let failed = "blockchain_tcpd_accept_errors_total{kind=\"descriptors\"} ";
    assert_contains(&metrics, failed);
    assert!(!metrics.contains(&format!("{failed}0\n")), "{metrics}");
    drop((waiting, inside));
    daemon.wait_for_others(0);
    let log = daemon.stop();
    assert_eq!(times(&log, "clients can't be accepted reason="), 1, "{log}");
    assert_eq!(times(&log, "over: clients can't be accepted"), 1, "{log}");
}

/// A daemon without a queue and with few descriptors, what it warns of, and for how many clients there is room.
fn with_few_descriptors(wrapper: &[impl AsRef<OsStr>], listen: usize) -> (Daemon, String, usize) {
    let mut arguments = vec!["--queue", "0"];
    arguments.extend(["--listen", "127.0.0.1:0"].repeat(listen - 1));
    let daemon = Daemon::start_through(wrapper, arguments);
    let warning = daemon.log().wait_for("fewer clients than asked for");
    let room = field(&warning, "max_clients").parse().unwrap();
    (daemon, warning, room)
}

#[test]
fn with_64_descriptors_it_serves_as_many_as_it_can_and_gives_all_back() {
    let (daemon, warning, room) = with_few_descriptors(&limited(64), 1);
    for part in [" WARN ", "LimitNOFILE=", " limit=64"] {
        assert_contains(&warning, part);
    }
    assert!((1..64).contains(&room), "{warning}");
    assert_eq!(daemon.ask("WHY\n"), "42\n");
    daemon.wait_for_others(0);
    let before = daemon.descriptors();
    for _ in 0..3 {
        let mut inside = daemon.served(room);
        let outside: Vec<Client> = (0..100).map(|_| daemon.connect()).collect();
        for mut client in outside {
            let reply = client.rest();
            assert!(reply.starts_with("ERR BUSY "), "{reply:?}");
            let open = daemon.descriptors();
            assert!(open <= 64, "{open}");
        }
        assert_eq!(inside[0].ask("WHO"), room.to_string());
        drop(inside);
        daemon.wait_for_others(0);
        let are_back = || daemon.descriptors() == before;
        wait_until("all descriptors are given back", are_back);
    }
    let log = daemon.stop();
    assert_eq!(times(&log, "can't be accepted"), 0, "{log}");
}

/// The limit leaves room for some to wait, and for each that waits the longest idle one makes room.
#[test]
fn with_64_descriptors_idle_clients_keep_nobody_out() {
    let daemon = Daemon::start_through(&limited(64), [""; 0]);
    let number = |key| daemon.ready(key).parse::<usize>().unwrap();
    let (served, waiting) = (number("max_clients"), number("queue"));
    assert!(served > 8 && waiting > 2 && served + waiting < 64);
    let _idle = daemon.served(served);
    for _ in 0..2 * waiting {
        assert_eq!(daemon.connect().ask("WHY"), "42");
    }
}

/// Listeners take descriptors too, and so does what was open when the daemon started.
#[test]
fn with_many_listeners_and_few_descriptors_no_client_is_left_hanging() {
    let script = shell(
        "for number in 10 11 12 13 14 15 16 17 18 19; do eval \"exec $number</dev/null\"; done
        ulimit -n 140 || exit",
    );
    let wrapper = script.map(|word| word.replace("sh", "bash"));
    needs!(run & wrapper);
    let (daemon, _, room) = with_few_descriptors(&wrapper, 41);
    let inside = daemon.served(room);
    (0..20).for_each(|_| daemon.is_full());
    drop(inside);
    let log = daemon.stop();
    assert_eq!(times(&log, "can't be accepted"), 0, "{log}");
}

#[test]
fn with_16_descriptors_it_does_not_start_and_says_why() {
    let said = fails_with(wrapped(&limited(16), [""; 0]), 71, &[]);
    assert_eq!(
        said.lines().last().unwrap(),
        "blockchain-tcpd: the limit of 16 open files leaves no room for clients; raise it (ulimit -n, LimitNOFILE=)"
    );
}

/// A command with a mistake in it.
const FAULTY: CommandSet = &[own_command("FAIL", CommandClass::Query, |_, _| {
    panic!("this is the mistake")
})];

/// - `ERR INTERNAL`: the server failed while it executed this request, and then it closes.
#[test]
fn a_panic_costs_one_connection_and_no_worker() {
    const COMMANDS: &[CommandSet] = &[server::SET, FAULTY];
    let server = local_server(&["--max-clients", "2", "--queue", "0"], COMMANDS);
    let connect = || Client::connect(server.addresses()[0]).unwrap();
    let mut other = connect();
    for _ in 0..1000 {
        let mut client = connect();
        client.send("WHY\nFAIL\nWHY\n");
        let expected = "42\nERR INTERNAL the server failed at this, its log says more\n";
        assert_eq!(client.rest(), expected);
        // A client that has seen the end of its stream no longer counts.
        assert_eq!(other.ask("WHO"), "1");
    }
    let sums = server.metrics.sums();
    assert_eq!(sums.closed[Closed::Panicked as usize], 1000);
    let internal = Outcome::at(None, OUTCOMES.len() - 1).index();
    assert_eq!(sums.outcomes[0][internal], 1000);
    // With both places taken, both are served.
    let mut clients = [other, connect()];
    are_answered(&mut clients);
    assert_eq!(clients[0].ask("WHO"), "2");
    drop(clients);
    wait_until("nobody is left", || server.clients() == 0);
    server.stop(Duration::from_secs(10));
}
