//! Availability as the clients of the load balancer see it: HAProxy as it is shipped before three servers that are restarted one
//! after the other and killed now and then. Every 10 ms somebody connects over TLS and asks WHO. `make availability` for long.

use std::fs;
use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use rustix::process::Signal;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use rustls::{ClientConfig, ClientConnection, RootCertStore, Stream};

use crate::clients::Reports;
use crate::network::{ENDS_BY_ITSELF, INTERRUPTED, Network};
use crate::parts::{Process, Redis};
use crate::random::Random;
use crate::server::Server;
use crate::support::kernel::asked_for;
use crate::support::{Scratch, clean, located_in_shell, wait_until};
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
    let commands = EXAMPLE
        .lines()
        .filter_map(|line| line.strip_prefix("#     "));
    for command in commands.filter(|line| line.starts_with("openssl") || line.starts_with("(umask"))
    {
        let mut shell = clean("bash");
        shell
            .args([
                "-e",
                "-o",
                "pipefail",
                "-c",
                &(located_in_shell() + command),
            ])
            .current_dir(folder);
        let output = shell.output().expect("bash runs");
        assert!(
            output.status.success(),
            "{command}: {}",
            String::from_utf8_lossy(&output.stderr)
        );
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
    let mut roots = RootCertStore::empty();
    let authority = CertificateDer::from_pem_file(folder.join("ca.pem")).expect("a certificate");
    roots.add(authority).expect("a certificate");
    let certificate =
        CertificateDer::from_pem_file(folder.join("alice.pem")).expect("a certificate");
    let key = PrivateKeyDer::from_pem_file(folder.join("alice.key")).expect("a key");
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .expect("TLS")
        .with_root_certificates(roots)
        .with_client_auth_cert(vec![certificate], key)
        .expect("they belong together");
    Arc::new(config)
}

/// Connects and asks. Returns what is wrong.
fn ask(address: SocketAddr, tls: &Arc<ClientConfig>) -> Result<(), String> {
    let asked = || -> std::io::Result<String> {
        let mut stream = TcpStream::connect_timeout(&address, PATIENCE)?;
        stream.set_read_timeout(Some(PATIENCE))?;
        stream.set_nodelay(true)?;
        let name = ServerName::try_from(NAME).map_err(std::io::Error::other)?;
        let mut session =
            ClientConnection::new(tls.clone(), name).map_err(std::io::Error::other)?;
        let mut stream = Stream::new(&mut session, &mut stream);
        stream.write_all(b"WHO\nQUIT\n")?;
        let mut said = Vec::new();
        let mut buffer = [0; 64];
        while !said.contains(&b'\n') {
            match stream.read(&mut buffer)? {
                0 => break,
                read => said.extend(&buffer[..read]),
            }
        }
        Ok(String::from_utf8_lossy(&said).into_owned())
    };
    let said = asked().map_err(|error| error.to_string())?;
    match said
        .split_once('\n')
        .and_then(|(number, _)| number.parse::<u64>().ok())
    {
        Some(_) => Ok(()),
        None => Err(format!("{said:?}")),
    }
}

#[derive(Default)]
struct Seen {
    asked: usize,
    bad: Vec<(Duration, String)>,
    slowest: Duration,
}

#[test]
fn clients_of_the_balancer_are_answered_while_servers_are_restarted_and_killed() {
    let programs = ["redis-server", "haproxy", "openssl", "bash"];
    Network::with(5, &programs, |network| {
        let seconds = asked_for("BLOCKCHAIN_TCPD_AVAILABILITY_SECONDS", 20) as u64;
        let scratch = Scratch::new();
        let mut redis = Redis::new(network.host(4), scratch.path());
        redis.start(None);
        let reports = Reports::new(Clock::new());
        let balancer = network.host(5);
        let cluster = format!("redis://{}", redis.host.address());
        let mut servers: Vec<Server> = (0..3)
            .map(|number| {
                let host = network.host(number + 1);
                let http = format!("{}:4280", host.address());
                let mut server = Server::new(
                    usize::from(number),
                    host,
                    &cluster,
                    scratch.path(),
                    &reports,
                );
                // What the example's comments ask for.
                server.also(&[
                    "--http",
                    &http,
                    "--proxy-from",
                    &balancer.address().to_string(),
                ]);
                server.also(&["--drain-notice", "5s"]);
                server.start();
                server
            })
            .collect();
        prepare(scratch.path(), &servers);
        let mut command = balancer.command("haproxy");
        command
            .args(["-db", "-f"])
            .arg(scratch.path().join("haproxy.cfg"));
        let log = scratch.path().join("haproxy.log");
        let _haproxy = Process::start(command, &log);
        let address = SocketAddr::from((balancer.address(), 4243));
        let tls = tls(scratch.path());
        wait_until("somebody is answered", || ask(address, &tls).is_ok());

        let seen: Arc<Mutex<Seen>> = Arc::default();
        let over = Arc::new(AtomicBool::new(false));
        let begun = Instant::now();
        let askers: Vec<_> = (0..ASKERS)
            .map(|number| {
                let (seen, over, tls) = (seen.clone(), over.clone(), tls.clone());
                thread::spawn(move || {
                    let mut due = begun + EVERY * number;
                    while !over.load(Ordering::Relaxed) {
                        thread::sleep(due.saturating_duration_since(Instant::now()));
                        let asked = Instant::now();
                        let answer = ask(address, &tls);
                        let took = asked.elapsed();
                        let mut seen = seen.lock().expect("nobody panics");
                        seen.asked += 1;
                        seen.slowest = seen.slowest.max(took);
                        seen.bad
                            .extend(answer.err().map(|what| (asked - begun, what)));
                        due += EVERY * ASKERS;
                    }
                })
            })
            .collect();

        let mut random = Random::new(seconds);
        let (mut restarts, mut kills) = (0, 0);
        ENDS_BY_ITSELF.store(true, Ordering::SeqCst);
        let goes_on = || {
            begun.elapsed() < Duration::from_secs(seconds) && !INTERRUPTED.load(Ordering::SeqCst)
        };
        for turn in 0.. {
            let server = turn % 3;
            // Every fourth is killed. The next turn comes when the balancer has had time to see the last.
            let is_kill = turn % 4 == 1;
            servers[server].end(if is_kill { Signal::KILL } else { Signal::TERM });
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
        ENDS_BY_ITSELF.store(false, Ordering::SeqCst);
        over.store(true, Ordering::Relaxed);
        for asker in askers {
            asker.join().expect("it does not panic");
        }
        let seen = seen.lock().expect("nobody panics");
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
