//! Servers, what they meet at, and their clients.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::clients::{Clients, Gate, Reports};
use crate::judge::{Fault, Harm, Judge, Promise};
use crate::network::{Disturbance, Host, Network};
use crate::server::Server;
use crate::stalls::Stalls;
use crate::support::backends::{Backend, Kind};
use crate::support::http::get;
use crate::support::kernel::asked_for;
use crate::support::{Scratch, wait_until};
use crate::truth::Clock;

/// All of it. The fields end in this order.
pub struct World {
    pub clients: Clients,
    pub servers: Vec<Server>,
    pub backend: Backend,
    pub reports: Arc<Reports>,
    pub judge: Judge,
    /// The bad lines of servers.
    pub lines: BTreeMap<usize, Disturbance>,
    stalls: Arc<Stalls>,
    _scratch: Scratch,
    pub network: Network,
}

impl Drop for World {
    fn drop(&mut self) {
        self.stalls.end();
    }
}

impl World {
    /// Runs `test` with this number of servers, which are started and know each other. If this machine can't, it says so.
    pub fn with(servers: u8, kind: Kind, test: impl FnOnce(World) + Send + 'static) {
        let hosts = match kind {
            Kind::Redis => 1,
            Kind::Sentinels => 5,
            Kind::Etcd => 3,
        };
        Network::with(servers + hosts, kind.programs(), move |network| {
            test(World::new(network, servers, hosts, kind));
        });
    }

    fn new(network: Network, servers: u8, hosts: u8, kind: Kind) -> Self {
        let scratch = Scratch::new();
        let places = (1..=hosts).map(|number| network.host(servers + number).place());
        let backend = Backend::start(kind, places.collect());
        let (reports, url) = (Reports::new(Clock::new()), backend.url());
        let new = |number: u8| {
            let (server, host) = (usize::from(number), network.host(number + 1));
            let mut server = Server::new(server, host, &url, scratch.path(), &reports);
            server.start();
            server
        };
        let servers: Vec<Server> = (0..servers).map(new).collect();
        let stalls = Stalls::watch(reports.clock);
        let truth = |server: &Server| server.gate.truth.clone();
        let judge = Judge {
            promise: match kind {
                Kind::Etcd => Promise::Consistent,
                _ => Promise::Available,
            },
            bound: Duration::from_millis(asked_for("BLOCKCHAIN_TCPD_CHAOS_BOUND", 250) as u64),
            truths: servers.iter().map(truth).collect(),
            faults: Vec::new(),
            stalls: stalls.clone(),
        };
        let world = World {
            clients: Clients::default(),
            servers,
            backend,
            reports,
            judge,
            lines: BTreeMap::new(),
            stalls,
            _scratch: scratch,
            network,
        };
        // A cluster that has just begun knows no number for a while.
        world.wait_for_all(1);
        world
    }

    /// Has every server asked without pause, while up to `most` clients of it come and go at this pace.
    pub fn visit_all(&mut self, most: usize, pace: Duration, seed: u64) {
        for server in 0..self.servers.len() {
            let (gate, seed) = (self.gate(server), seed.wrapping_add(server as u64));
            self.clients.visit(&gate, most, pace, seed);
        }
    }

    /// Where clients of this server come in.
    pub fn gate(&self, server: usize) -> Gate {
        self.servers[server].gate.clone()
    }

    /// The hosts of these servers.
    pub fn hosts(&self, servers: &[usize]) -> Vec<Host> {
        let hosts = servers.iter().map(|server| self.gate(*server).host);
        hosts.collect()
    }

    /// The host of this Redis or member of etcd.
    pub fn backend_host(&self, number: usize) -> Host {
        let ip = self.backend.process(number).1.ip;
        self.network.host(ip.octets()[3])
    }

    /// Begins to do something.
    pub fn begin(&mut self, harm: Harm, what: impl Into<String>) -> usize {
        self.judge.faults.push(Fault {
            what: what.into(),
            harm,
            from: self.reports.clock.now(),
            to: None,
        });
        self.judge.faults.len() - 1
    }

    /// It is over.
    pub fn over(&mut self, fault: usize) {
        self.judge.faults[fault].to = Some(self.reports.clock.now());
    }

    /// How long it takes until this server says so to WHO, in a connection that is there already.
    pub fn wait_for_who(&self, server: usize, clients: usize) -> Duration {
        let begun = Instant::now();
        let (right, gate) = (clients.to_string(), self.gate(server));
        gate.on_host(|| {
            let mut visitor = gate.visit().expect("it serves");
            let mut said = String::new();
            while said != right {
                let is_late = begun.elapsed() > Duration::from_secs(30);
                assert!(!is_late, "{said:?}, not {right}");
                said = visitor.ask("WHO").expect("an answer");
                std::thread::sleep(Duration::from_millis(1));
            }
            let took = begun.elapsed();
            gate.disconnect(visitor);
            took
        })
    }

    /// How long it takes until all say so, one after the other.
    pub fn wait_for_all(&self, clients: usize) -> Duration {
        let begun = Instant::now();
        for server in 0..self.servers.len() {
            self.wait_for_who(server, clients);
        }
        begun.elapsed()
    }

    /// Waits until clients have had this number of answers more.
    pub fn wait_for_answers(&self, number: usize) {
        let before = self.reports.answers();
        wait_until(&format!("{number} answers"), || {
            self.reports.answers() >= before + number
        });
    }

    /// Waits until each server but these knows of all but these.
    pub fn wait_for_servers(&self, missed: &[usize]) {
        let line = "\nblockchain_tcpd_cluster_servers ";
        let number = (self.servers.len() - missed.len()).to_string();
        let servers = self.servers.iter().enumerate();
        for (_, server) in servers.filter(|(server, _)| !missed.contains(server)) {
            let http = server.http().parse().expect("an address");
            wait_until(&format!("server {http} knows of {number}"), || {
                let metrics = get(http, "/metrics").body;
                let (_, known) = metrics.split_once(line).expect("a metric");
                known.split('\n').next() == Some(&number)
            });
        }
    }

    /// All clients leave. Fails if a client or an answer was wrong, or if there were too few answers.
    pub fn must_be_right(&mut self, enough: usize) {
        self.clients.leave();
        let mut wrongs = self.reports.take_wrongs();
        let answers = self.reports.take();
        for answer in &answers {
            let wrong = self.judge.hear(answer).wrong;
            wrongs.extend(wrong.map(|wrong| (answer.answered, wrong)));
        }
        for (at, what) in wrongs.iter().take(20) {
            eprintln!("{:9.3} s: {what}", at.as_secs_f64());
        }
        assert!(wrongs.is_empty(), "{} wrongs", wrongs.len());
        assert!(answers.len() > enough, "{} answers", answers.len());
    }
}
