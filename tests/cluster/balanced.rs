//! Availability as the clients of the load balancer see it: HAProxy as it is shipped before three servers that are restarted one
//! after the other and killed now and then. Every 10 ms somebody connects over TLS and asks WHO. `make availability` for long.

use std::fs;
use std::io::{self, BufRead as _, BufReader, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use rustls::{ClientConfig, ClientConnection, RootCertStore, Stream};

use crate::clients::Reports;
use crate::network::{INTERRUPTED, Network};
use crate::random::Random;
use crate::server::Server;
use crate::support::backends::{Process, Redis};
use crate::support::kernel::asked_for;
use crate::support::{Scratch, clean, located_in_shell, run_to_end, wait_until};
use crate::truth::Clock;

const EXAMPLE: &str = include_str!("../../packaging/haproxy/haproxy.cfg");

/// The name in its certificates.
const NAME: &str = "ledger.example.org";

/// Between two who ask.
const EVERY: Duration = Duration::from_millis(10);

/// Who has no answer by then has none.
const PATIENCE: Duration = Duration::from_secs(1);

/// So many can wait at a time.
const ASKERS: u32 = 110;

/// Makes the certificates as the example's comments say, and its file as the test needs it.
fn prepare(folder: &Path, servers: &[Server]) {
    let comments = EXAMPLE.lines();
    let comments = comments.filter_map(|line| line.strip_prefix("#     "));
    let commands =
        comments.filter(|line| line.starts_with("openssl") || line.starts_with("(umask"));
    for command in commands {
        let script = located_in_shell() + command;
        let mut shell = clean("bash");
        shell.args(["-e", "-o", "pipefail", "-c", &script]);
        shell.current_dir(folder);
        let (status, said) = run_to_end(shell);
        assert_eq!(status, 0, "{command}: {said}");
    }
    let within = folder.display();
    let mut config = EXAMPLE
        .replace("/etc/haproxy/", &format!("{within}/"))
        .replace("/run/haproxy/admin.sock", &format!("{within}/admin.sock"))
        .replace("/dev/log local0", "stdout format raw local0");
    for (number, server) in servers.iter().enumerate() {
        let example = format!("192.0.2.1{}:", number + 1);
        assert!(config.contains(&example), "{example}");
        config = config.replace(&example, &format!("{}:", server.gate.address.ip()));
    }
    fs::write(folder.join("haproxy.cfg"), config).expect("a file");
}

/// The TLS of a client with a certificate.
fn tls(folder: &Path) -> Arc<ClientConfig> {
    let certificate =
        |file| CertificateDer::from_pem_file(folder.join(file)).expect("a certificate");
    let mut roots = RootCertStore::empty();
    roots.add(certificate("ca.pem")).expect("a certificate");
    let key = PrivateKeyDer::from_pem_file(folder.join("alice.key")).expect("a key");
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .expect("TLS")
        .with_root_certificates(roots)
        .with_client_auth_cert(vec![certificate("alice.pem")], key)
        .expect("they belong together");
    Arc::new(config)
}

/// Connects and asks. Returns what is wrong.
fn ask(address: SocketAddr, tls: &Arc<ClientConfig>) -> io::Result<()> {
    let mut stream = TcpStream::connect_timeout(&address, PATIENCE)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.set_nodelay(true)?;
    let name = ServerName::try_from(NAME).map_err(io::Error::other)?;
    let mut session = ClientConnection::new(tls.clone(), name).map_err(io::Error::other)?;
    let mut stream = BufReader::new(Stream::new(&mut session, &mut stream));
    stream.get_mut().write_all(b"WHO\nQUIT\n")?;
    let mut line = String::new();
    stream.read_line(&mut line)?;
    let number = line.strip_suffix('\n').map(str::parse::<u64>);
    match number {
        Some(Ok(_)) => Ok(()),
        _ => Err(io::Error::other(format!("{line:?}"))),
    }
}

#[derive(Default)]
struct Seen {
    asked: usize,
    bad: Vec<(Duration, io::Error)>,
    slowest: Duration,
}

#[test]
fn clients_of_the_balancer_are_answered_while_servers_are_restarted_and_killed() {
    let programs = ["redis-server", "haproxy", "openssl", "bash"];
    Network::with(5, &programs, |network| {
        let seconds = asked_for("BLOCKCHAIN_TCPD_AVAILABILITY_SECONDS", 20) as u64;
        let scratch = Scratch::new();
        let redis = Redis::start_at(network.host(4).place(), 6379, "");
        let reports = Reports::new(Clock::new());
        let balancer = network.host(5).place();
        let mut servers: Vec<Server> = (0..3)
            .map(|number| {
                let (server, host) = (usize::from(number), network.host(number + 1));
                let mut server = Server::new(server, host, &redis.url(), scratch.path(), &reports);
                // What the example's comments ask for.
                server.also(&format!("--proxy-from {} --drain-notice 5s", balancer.ip));
                server.start();
                server
            })
            .collect();
        prepare(scratch.path(), &servers);
        let mut command = balancer.command("haproxy");
        command.args(["-db", "-f"]);
        let haproxy = Process::default();
        haproxy.run(command.arg(scratch.path().join("haproxy.cfg")));
        let address = SocketAddr::from((balancer.ip, 4243));
        let tls = tls(scratch.path());
        wait_until("somebody is answered", || ask(address, &tls).is_ok());

        let (seen, over) = (Mutex::new(Seen::default()), AtomicBool::new(false));
        let begun = Instant::now();
        let asks = |number: u32| {
            let mut due = begun + EVERY * number;
            while !over.load(Ordering::Relaxed) {
                thread::sleep(due.saturating_duration_since(Instant::now()));
                let asked = Instant::now();
                let answer = ask(address, &tls);
                let mut seen = seen.lock().unwrap();
                seen.asked += 1;
                seen.slowest = seen.slowest.max(asked.elapsed());
                seen.bad
                    .extend(answer.err().map(|what| (asked - begun, what)));
                due += EVERY * ASKERS;
            }
        };
        let mut random = Random::new(seconds);
        let (mut restarts, mut kills) = (0, 0);
        let goes_on = || {
            begun.elapsed() < Duration::from_secs(seconds) && !INTERRUPTED.load(Ordering::SeqCst)
        };
        thread::scope(|scope| {
            let asks = &asks;
            for number in 0..ASKERS {
                scope.spawn(move || asks(number));
            }
            for server in (0..3).cycle() {
                // Every fourth is killed. The next turn comes when the balancer has had time to see the last.
                let is_kill = (restarts + kills) % 4 == 1;
                servers[server].end(if is_kill { "KILL" } else { "TERM" });
                *(if is_kill { &mut kills } else { &mut restarts }) += 1;
                servers[server].start();
                let pause = random.between(Duration::from_secs(4), Duration::from_secs(8));
                let next = Instant::now() + pause;
                while goes_on() && Instant::now() < next {
                    thread::sleep(Duration::from_millis(100));
                }
                if !goes_on() {
                    break;
                }
            }
            over.store(true, Ordering::Relaxed);
        });
        let seen = seen.into_inner().expect("nobody panics");
        let good = 100.0 * (1.0 - seen.bad.len() as f64 / seen.asked as f64);
        for (at, what) in seen.bad.iter().take(20) {
            eprintln!("{:9.3} s: {what}", at.as_secs_f64());
        }
        eprintln!(
            "{} asked through HAProxy, {} without a good answer: {good:.4} % good, the slowest {:?}; {restarts} restarts, {kills} kills",
            seen.asked,
            seen.bad.len(),
            seen.slowest
        );
        // In a short time there are few to be asked, and one kill more or less is much.
        let enough = if seconds >= 300 { 99.95 } else { 99.5 };
        assert!(good >= enough, "{good} %");
    });
}
