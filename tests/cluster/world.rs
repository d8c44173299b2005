//! Servers, what they meet at, and their clients.

use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::clients::{Clients, Gate, Reports};
use crate::judge::{Fault, Harm, Judge, Promise};
use crate::network::{Host, Network};
use crate::parts::{MASTER, Member, Redis, Sentinels, start_etcd};
use crate::server::Server;
use crate::stalls::Stalls;
use crate::support::Scratch;
use crate::support::kernel::asked_for;
use crate::truth::Clock;

/// Where servers meet.
pub enum Registry {
    Redis(Redis),
    Sentinels(Box<Sentinels>),
    Etcd(Vec<Member>),
}

/// What kind of them.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Meeting {
    Redis,
    Sentinels,
    Etcd,
}

impl Meeting {
    fn hosts(self) -> u8 {
        match self {
            Meeting::Redis => 1,
            Meeting::Sentinels => 5,
            Meeting::Etcd => 3,
        }
    }

    fn programs(self) -> &'static [&'static str] {
        match self {
            Meeting::Redis => &["redis-server"],
            Meeting::Sentinels => &["redis-server", "redis-sentinel"],
            Meeting::Etcd => &["etcd"],
        }
    }
}

/// All of it. The fields end in this order.
pub struct World {
    pub clients: Clients,
    pub servers: Vec<Server>,
    pub registry: Registry,
    pub reports: Arc<Reports>,
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
    /// Runs `test` with so many servers, which are started and know each other. If this machine can't, it says so.
    pub fn with(servers: u8, meeting: Meeting, test: impl FnOnce(World) + Send + 'static) {
        Network::with(
            servers + meeting.hosts(),
            meeting.programs(),
            move |network| {
                test(World::new(network, servers, meeting));
            },
        );
    }

    fn new(network: Network, servers: u8, meeting: Meeting) -> Self {
        let scratch = Scratch::new();
        let host = |number: u8| network.host(servers + number);
        let redis = |number: u8| Redis::new(host(number), scratch.path());
        let (cluster, registry) = match meeting {
            Meeting::Redis => {
                let mut redis = redis(1);
                redis.start(None);
                (
                    format!("redis://{}", redis.host.address()),
                    Registry::Redis(redis),
                )
            }
            Meeting::Sentinels => {
                let hosts = [3, 4, 5].map(host);
                let names = hosts.each_ref().map(|host| host.address().to_string());
                let sentinels = Sentinels::start([1, 2].map(redis), hosts, scratch.path());
                let cluster = format!("redis-sentinel://{}/{MASTER}", names.join(","));
                (cluster, Registry::Sentinels(Box::new(sentinels)))
            }
            Meeting::Etcd => {
                let hosts = [1, 2, 3].map(host);
                let names = hosts.each_ref().map(|host| host.address().to_string());
                let members = start_etcd(&hosts, scratch.path());
                (
                    format!("etcd://{}", names.join(",")),
                    Registry::Etcd(members),
                )
            }
        };
        let reports = Reports::new(Clock::new());
        let new = |number: u8| {
            let host = network.host(number + 1);
            let mut server = Server::new(
                usize::from(number),
                host,
                &cluster,
                scratch.path(),
                &reports,
            );
            server.start();
            server
        };
        let world = World {
            clients: Clients::default(),
            servers: (0..servers).map(new).collect(),
            registry,
            stalls: Stalls::watch(reports.clock),
            reports,
            _scratch: scratch,
            network,
        };
        // A cluster that has just begun knows no number for a while.
        for server in 0..world.servers.len() {
            world.wait_for_who(server, 1);
        }
        world
    }

    /// Has every server asked without pause, while ten clients of it come and go at this pace.
    pub fn visit_all(&mut self, pace: Duration) {
        for server in 0..self.servers.len() {
            let gate = self.gate(server);
            self.clients.ask(&gate);
            self.clients.crowd(&gate, 10, pace, server as u64);
        }
    }

    /// Cuts these servers off for so long: what is to be seen is what happens in this time.
    pub fn cut_off_for(&mut self, judge: &mut Judge, cut: &[usize], time: Duration) {
        let hosts: Vec<Host> = cut.iter().map(|server| self.gate(*server).host).collect();
        let faults: Vec<usize> = cut
            .iter()
            .map(|server| self.begin(judge, Harm::Silent(*server), "cut off"))
            .collect();
        self.network.cut_off(&hosts);
        std::thread::sleep(time);
        hosts.iter().for_each(Host::reconnect);
        faults.into_iter().for_each(|fault| self.over(judge, fault));
    }

    /// Where clients of this server come in.
    pub fn gate(&self, server: usize) -> Gate {
        self.servers[server].gate.clone()
    }

    /// The Redis, if it is a single one.
    pub fn redis(&mut self) -> &mut Redis {
        match &mut self.registry {
            Registry::Redis(redis) => redis,
            _ => panic!("not a single Redis"),
        }
    }

    /// The two Redis and their Sentinels.
    pub fn sentinels(&mut self) -> &mut Sentinels {
        match &mut self.registry {
            Registry::Sentinels(sentinels) => sentinels,
            _ => panic!("no Sentinels"),
        }
    }

    /// The members of etcd.
    pub fn members(&mut self) -> &mut Vec<Member> {
        match &mut self.registry {
            Registry::Etcd(members) => members,
            _ => panic!("no etcd"),
        }
    }

    /// One who knows what is true from now on.
    pub fn judge(&self, promise: Promise) -> Judge {
        Judge {
            promise,
            bound: Duration::from_millis(asked_for("BLOCKCHAIN_TCPD_CHAOS_BOUND", 250) as u64),
            truths: self
                .servers
                .iter()
                .map(|server| server.gate.truth.clone())
                .collect(),
            faults: Vec::new(),
            stalls: self.stalls.clone(),
        }
    }

    /// Begins to do something.
    pub fn begin(&self, judge: &mut Judge, harm: Harm, what: impl Into<String>) -> usize {
        judge.faults.push(Fault {
            what: what.into(),
            harm,
            from: self.reports.clock.now(),
            to: None,
        });
        judge.faults.len() - 1
    }

    /// It is over.
    pub fn over(&self, judge: &mut Judge, fault: usize) {
        judge.faults[fault].to = Some(self.reports.clock.now());
    }

    /// How long it takes until this server says so to WHO, in a connection that is there already.
    pub fn wait_for_who(&self, server: usize, clients: usize) -> Duration {
        let begun = Instant::now();
        let right = clients.to_string();
        self.gate(server).there(move |gate| {
            let mut visitor = gate.visit().expect("it serves");
            let mut said = String::new();
            while said != right {
                assert!(
                    begun.elapsed() < Duration::from_secs(30),
                    "{said:?}, not {right}"
                );
                said = visitor.ask("WHO").expect("an answer");
                std::thread::sleep(Duration::from_millis(1));
            }
            let took = begun.elapsed();
            gate.part_with(visitor);
            took
        })
    }

    /// Fails if a client or an answer was wrong, and returns how many answers there were and how old the oldest was.
    pub fn must_be_right(&self, judge: &Judge) -> (usize, Duration) {
        let mut wrongs = self.reports.take_wrongs();
        let answers = self.reports.take();
        let mut oldest = Duration::ZERO;
        for answer in &answers {
            let verdict = judge.hear(answer);
            oldest = oldest.max(verdict.age.unwrap_or_default());
            wrongs.extend(verdict.wrong.map(|wrong| (answer.answered, wrong)));
        }
        for (at, what) in wrongs.iter().take(20) {
            eprintln!("{:9.3} s: {what}", at.as_secs_f64());
        }
        assert!(wrongs.is_empty(), "{} wrongs", wrongs.len());
        (answers.len(), oldest)
    }
}
