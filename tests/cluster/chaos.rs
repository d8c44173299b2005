//! Everything that may happen to a cluster, at random, for a minute or for hours: `make chaos MINUTES=30 MODE=available`.
//!
//! One after the other or two at a time things are done to servers and to what they meet at; then there is calm for as long as
//! it may take until all is right. Clients come and go all the time, and every server is asked all the time. What is right is
//! said in `judge`. `SEED` draws the same faults again; when exactly they hit is the machine's affair.

use std::io::Write as _;
use std::sync::atomic::Ordering;
use std::time::Duration;

use rustix::process::Signal;

use crate::account::Account;
use crate::judge::{Harm, Judge, Promise};
use crate::network::{Disturbance, ENDS_BY_ITSELF, Host, INTERRUPTED};
use crate::random::Random;
use crate::support::kernel::asked_for;
use crate::support::wait_until;
use crate::truth::Moment;
use crate::world::{Meeting, Registry, World};

const SERVERS: u8 = 5;

#[test]
fn available() {
    run(Meeting::Sentinels, Promise::Available);
}

#[test]
fn consistent() {
    run(Meeting::Etcd, Promise::Consistent);
}

fn run(meeting: Meeting, promise: Promise) {
    World::with(SERVERS, meeting, move |world| {
        let any = uuid::Uuid::new_v4().as_u128() as u32;
        let seed = asked_for("BLOCKCHAIN_TCPD_CHAOS_SEED", any as usize) as u64;
        let seconds = asked_for("BLOCKCHAIN_TCPD_CHAOS_SECONDS", 50) as u64;
        say(&format!("{promise:?}, {seconds} s, seed {seed}"));
        let judge = world.judge(promise);
        let mut chaos = Chaos {
            world,
            judge,
            account: Account::default(),
            random: Random::new(seed),
            running: Vec::new(),
            next_line: Moment::ZERO,
        };
        ENDS_BY_ITSELF.store(true, Ordering::SeqCst);
        chaos.happen(Duration::from_secs(seconds), seed);
        ENDS_BY_ITSELF.store(false, Ordering::SeqCst);
        chaos.conclude(seed);
    });
}

/// Also while the test's output is kept back.
fn say(text: &str) {
    let _ = writeln!(std::io::stderr(), "{text}");
}

/// What may be done.
#[derive(Clone, Debug)]
enum Act {
    Kill(usize),
    Restart(usize),
    HandOver(usize),
    Stop(usize),
    CutOff(Vec<usize>),
    Disturb(usize),
    /// The Redis that takes writes is killed, and comes back empty before anybody takes over.
    Empty,
    /// It is killed, and the other takes over.
    FailOver,
    /// The other takes over, because it was asked to.
    Promote,
    /// It is stopped for a while.
    Hang(usize),
    /// It is cut off for a while.
    CutOffRegistry(usize),
    /// So many members of etcd, from this one on, are killed, and started again.
    KillMembers(usize, usize),
}

impl Act {
    fn servers(&self) -> Vec<usize> {
        match self {
            Act::Kill(server)
            | Act::Restart(server)
            | Act::HandOver(server)
            | Act::Stop(server)
            | Act::Disturb(server) => {
                vec![*server]
            }
            Act::CutOff(servers) => servers.clone(),
            _ => Vec::new(),
        }
    }
}

/// What is being done.
struct Running {
    act: Act,
    faults: Vec<usize>,
    until: Moment,
    line: Option<Disturbance>,
}

struct Chaos {
    world: World,
    judge: Judge,
    account: Account,
    random: Random,
    running: Vec<Running>,
    next_line: Moment,
}

impl Chaos {
    fn happen(&mut self, time: Duration, seed: u64) {
        for server in 0..self.world.servers.len() {
            let gate = self.world.gate(server);
            self.world.clients.ask(&gate);
            let pace = Duration::from_millis(60);
            self.world
                .clients
                .crowd(&gate, 30, pace, seed.wrapping_add(server as u64));
        }
        self.calm();
        while self.now() < time && !INTERRUPTED.load(Ordering::SeqCst) {
            let times = [1, 1, 1, 2, 2, 3][self.random.below(6)];
            for _ in 0..times {
                if let Some(act) = self.draw() {
                    self.begin(act);
                }
                let pause = self
                    .random
                    .between(Duration::ZERO, Duration::from_millis(1200));
                self.let_pass(pause);
            }
            while let Some(next) = self.running.iter().map(|running| running.until).min() {
                self.let_pass(next.saturating_sub(self.now()));
            }
            self.calm();
        }
    }

    fn now(&self) -> Moment {
        self.world.reports.clock.now()
    }

    fn below(&mut self, end: usize) -> usize {
        self.random.below(end)
    }

    fn milliseconds(&mut self, least: u64, most: u64) -> Duration {
        self.random
            .between(Duration::from_millis(least), Duration::from_millis(most))
    }

    /// Lets pass what it may take until all is right again, and some time in which it is.
    fn calm(&mut self) {
        let settling = match self.judge.promise {
            Promise::Available => 1250,
            Promise::Consistent => 3250,
        };
        let time = self.milliseconds(settling + 300, settling + 1200);
        self.let_pass(time);
    }

    /// Ends what is to end meanwhile.
    fn let_pass(&mut self, time: Duration) {
        let until = self.now() + time;
        loop {
            self.listen();
            let now = self.now();
            if let Some(over) = self.running.iter().position(|running| running.until <= now) {
                let running = self.running.swap_remove(over);
                self.end(running);
                continue;
            }
            let next = self.running.iter().map(|running| running.until).min();
            let next = next.map_or(until, |next| next.min(until));
            if now >= until {
                return;
            }
            std::thread::sleep(next.saturating_sub(now).min(Duration::from_millis(200)));
        }
    }

    fn listen(&mut self) {
        for answer in self.world.reports.take() {
            self.account.hear(&self.judge, &answer);
        }
        self.account.wrongs.extend(self.world.reports.take_wrongs());
        let now = self.now();
        if now >= self.next_line {
            say(&self.account.progress(&self.judge, now));
            self.next_line = now + Duration::from_secs(5);
        }
    }

    /// Something that can be done now.
    fn draw(&mut self) -> Option<Act> {
        let busy: Vec<usize> = self
            .running
            .iter()
            .flat_map(|running| running.act.servers())
            .collect();
        let free: Vec<usize> = (0..self.world.servers.len())
            .filter(|server| !busy.contains(server))
            .collect();
        // Two at a time, so that there are always some to whom nothing is done.
        if busy.len() >= 2 {
            return None;
        }
        let server = free[self.below(free.len())];
        let act = match self.below(20) {
            0..=2 => Act::Kill(server),
            3 | 4 => Act::Restart(server),
            5 | 6 => Act::HandOver(server),
            7..=9 => Act::Stop(server),
            10 | 11 => Act::CutOff(vec![server]),
            12 if busy.is_empty() => {
                let other = (server + 1 + self.below(free.len() - 1)) % free.len();
                Act::CutOff(vec![server, other])
            }
            12..=14 => Act::Disturb(server),
            _ => return self.draw_for_registry(),
        };
        Some(act)
    }

    fn draw_for_registry(&mut self) -> Option<Act> {
        if self
            .running
            .iter()
            .any(|running| running.act.servers().is_empty())
        {
            return None;
        }
        let (kind, member) = (self.below(5), self.below(3));
        match &self.world.registry {
            Registry::Redis(_) => None,
            Registry::Sentinels(sentinels) => {
                let first = sentinels.are_calm().then(|| sentinels.first())??;
                Some(match kind {
                    0 => Act::Empty,
                    1 => Act::FailOver,
                    2 => Act::Promote,
                    3 => Act::Hang(first),
                    _ => Act::CutOffRegistry(first),
                })
            }
            Registry::Etcd(_) => Some(match kind {
                0 => Act::KillMembers(member, 1),
                1 => Act::KillMembers(member, 2),
                2 | 3 => Act::Hang(member),
                _ => Act::CutOffRegistry(member),
            }),
        }
    }

    /// What a picture shows of it.
    fn fault(&mut self, harm: Harm, what: String) -> usize {
        self.world.begin(&mut self.judge, harm, what)
    }

    fn begin(&mut self, act: Act) {
        let mut line = None;
        let named = |server: usize, what: &str| format!("server {}: {what}", server + 1);
        let mut faults = Vec::new();
        let mut time = Duration::ZERO;
        match &act {
            Act::Kill(server) => {
                time = self.milliseconds(0, 4000);
                faults.push(self.fault(Harm::Killed(*server), named(*server, "killed")));
                self.world.servers[*server].end(Signal::KILL);
            }
            Act::Restart(server) => {
                faults.push(self.fault(Harm::Restarted(*server), named(*server, "restarted")));
                self.world.servers[*server].end(Signal::TERM);
            }
            Act::HandOver(server) => {
                faults.push(self.fault(
                    Harm::Nothing(*server),
                    named(*server, "a new program takes over"),
                ));
                self.world.servers[*server].hand_over();
            }
            Act::Stop(server) => {
                let (least, most) = [(100, 1000), (1000, 1350), (2500, 5000)][self.below(3)];
                time = self.milliseconds(least, most);
                let how = if least > 1000 {
                    "stopped for longer than it may"
                } else {
                    "stopped for a moment"
                };
                faults.push(self.fault(Harm::Stopped(*server), named(*server, how)));
                self.world.servers[*server].signal(Signal::STOP);
            }
            Act::CutOff(servers) => {
                time = self.milliseconds(200, 5000);
                for server in servers {
                    faults.push(self.fault(Harm::Silent(*server), named(*server, "cut off")));
                }
                self.world.network.cut_off(&self.hosts(servers));
            }
            Act::Disturb(server) => {
                time = self.milliseconds(1000, 4000);
                let seed = self.random.next();
                let fault = self.fault(Harm::Silent(*server), named(*server, "on a bad line"));
                let host = self.world.gate(*server).host;
                let disturbance = self.world.network.disturb(&host, seed);
                self.judge.faults[fault].what += &format!(" ({})", disturbance.how);
                faults.push(fault);
                line = Some(disturbance);
            }
            Act::Empty => {
                time = self.milliseconds(0, 400);
                faults.push(self.fault(Harm::Registry, "Redis comes back empty".to_string()));
                let first = self.first();
                self.world.sentinels().redis[first].kill();
            }
            Act::FailOver => {
                faults.push(self.fault(
                    Harm::Registry,
                    "Redis killed, the other takes over".to_string(),
                ));
                let first = self.first();
                self.world.sentinels().redis[first].kill();
                wait_until("the other takes over", || {
                    self.world.sentinels().first() == Some(1 - first)
                });
            }
            Act::Promote => {
                faults.push(self.fault(
                    Harm::Registry,
                    "the other Redis takes over when asked".to_string(),
                ));
                let first = self.first();
                // Soon after another failover they refuse.
                if self.world.sentinels().promote() {
                    wait_until("the other takes over", || {
                        self.world.sentinels().first() == Some(1 - first)
                    });
                }
            }
            Act::Hang(member) => {
                time = self.milliseconds(200, 3000);
                let name = self.registry_name();
                faults.push(self.fault(Harm::Registry, format!("{name} stopped")));
                self.signal_registry(*member, Signal::STOP);
            }
            Act::CutOffRegistry(member) => {
                time = self.milliseconds(200, 3000);
                let name = self.registry_name();
                faults.push(self.fault(Harm::Registry, format!("{name} cut off")));
                let host = self.registry_host(*member);
                self.world.network.cut_off(&[host]);
            }
            Act::KillMembers(first, number) => {
                time = self.milliseconds(500, 4000);
                let lost = if *number > 1 {
                    "two members of etcd killed"
                } else {
                    "a member of etcd killed"
                };
                faults.push(self.fault(Harm::Registry, lost.to_string()));
                for member in 0..*number {
                    self.world.members()[(first + member) % 3].kill();
                }
            }
        }
        self.running.push(Running {
            act,
            faults,
            until: self.now() + time,
            line,
        });
    }

    fn end(&mut self, running: Running) {
        match running.act {
            Act::Kill(server) | Act::Restart(server) => self.world.servers[server].start(),
            Act::HandOver(_) => {}
            Act::Stop(server) => self.world.servers[server].signal(Signal::CONT),
            Act::CutOff(servers) => self.hosts(&servers).iter().for_each(Host::reconnect),
            Act::Disturb(_) => drop(running.line),
            Act::Empty => {
                let sentinels = self.world.sentinels();
                let killed = sentinels.redis.iter().position(|redis| !redis.runs());
                sentinels.redis[killed.expect("one was killed")].start(None);
                self.settle_redis();
            }
            Act::FailOver => {
                let sentinels = self.world.sentinels();
                wait_until("one Redis takes writes", || sentinels.first().is_some());
                let first = sentinels.first().expect("it was clear");
                let master = sentinels.redis[first].host.address();
                // It is over already.
                sentinels.redis[1 - first].start(Some(master));
            }
            Act::Promote => self.settle_redis(),
            Act::Hang(member) => {
                self.signal_registry(member, Signal::CONT);
                self.settle_registry();
            }
            Act::CutOffRegistry(member) => {
                self.registry_host(member).reconnect();
                self.settle_registry();
            }
            Act::KillMembers(first, number) => {
                for member in 0..number {
                    self.world.members()[(first + member) % 3].start();
                }
                self.settle_registry();
            }
        }
        for fault in running.faults {
            self.world.over(&mut self.judge, fault);
        }
    }

    /// Which of two Redis takes writes.
    fn first(&mut self) -> usize {
        let mut first = None;
        wait_until("the Sentinels agree on a Redis", || {
            first = self.world.sentinels().first();
            first.is_some()
        });
        first.expect("waited for")
    }

    fn hosts(&self, servers: &[usize]) -> Vec<Host> {
        servers
            .iter()
            .map(|server| self.world.gate(*server).host)
            .collect()
    }

    fn registry_name(&self) -> &'static str {
        match self.world.registry {
            Registry::Etcd(_) => "a member of etcd",
            _ => "Redis",
        }
    }

    fn registry_host(&mut self, member: usize) -> Host {
        match &self.world.registry {
            Registry::Redis(redis) => redis.host.clone(),
            Registry::Sentinels(sentinels) => sentinels.redis[member].host.clone(),
            Registry::Etcd(members) => members[member].host.clone(),
        }
    }

    fn signal_registry(&mut self, member: usize, signal: Signal) {
        match &self.world.registry {
            Registry::Redis(redis) => redis.signal(signal),
            Registry::Sentinels(sentinels) => sentinels.redis[member].signal(signal),
            Registry::Etcd(members) => members[member].signal(signal),
        }
    }

    fn settle_registry(&mut self) {
        match &self.world.registry {
            Registry::Redis(_) => {}
            Registry::Sentinels(_) => self.settle_redis(),
            Registry::Etcd(members) => {
                wait_until("all members of etcd are well", || {
                    members.iter().all(|member| member.is_well())
                });
            }
        }
    }

    /// Waits until it is clear which one takes writes. The other may be of another opinion for some more time.
    fn settle_redis(&mut self) {
        let sentinels = self.world.sentinels();
        wait_until("one Redis takes writes", || sentinels.first().is_some());
    }

    /// All leave, and the account is given.
    fn conclude(&mut self, seed: u64) {
        self.world.clients.leave();
        self.listen();
        let now = self.now();
        let picture = self.account.draw(&self.judge, seed, now);
        say(&self.account.words(&self.judge, seed, now));
        say(&format!("{}", picture.display()));
        self.account.is_evidence(&self.judge, now);
        if !self.account.wrongs.is_empty() {
            let logs = self
                .world
                .servers
                .iter()
                .enumerate()
                .map(|(server, running)| {
                    let lines = running.log().join("\n");
                    format!("--- server {}\n{lines}\n", server + 1)
                });
            let file = picture.with_extension("log");
            std::fs::write(&file, logs.collect::<String>()).expect("the target directory is ours");
            panic!(
                "{} wrong, see {}",
                self.account.wrongs.len(),
                file.display()
            );
        }
    }
}
