//! Everything that may happen to a cluster, at random, for a minute or for hours: `make chaos MINUTES=30 MODE=available`.
//!
//! One after the other or two at a time things are done to servers and to what they meet at; then there is calm for as long as
//! it may take until all is right. Clients come and go all the time, and every server is asked all the time. What is right is
//! said in `judge`. `SEED` draws the same faults again; when exactly they hit is the machine's affair.

use std::io::Write as _;
use std::path::Path;
use std::sync::atomic::Ordering;
use std::time::Duration;

use crate::account::Account;
use crate::judge::{Harm, Promise};
use crate::network::INTERRUPTED;
use crate::random::Random;
use crate::support::backends::{Backend, Kind};
use crate::support::kernel::asked_for;
use crate::truth::Moment;
use crate::world::World;

const SERVERS: u8 = 5;

#[test]
fn available() {
    run(Kind::Sentinels);
}

#[test]
fn consistent() {
    run(Kind::Etcd);
}

fn run(kind: Kind) {
    World::with(SERVERS, kind, move |world| {
        let any = uuid::Uuid::new_v4().as_u128() as u32;
        let seed = asked_for("BLOCKCHAIN_TCPD_CHAOS_SEED", any as usize) as u64;
        let seconds = asked_for("BLOCKCHAIN_TCPD_CHAOS_SECONDS", 50) as u64;
        say(&format!(
            "{:?}, {seconds} s, seed {seed}",
            world.judge.promise
        ));
        let mut chaos = Chaos {
            world,
            account: Account::default(),
            random: Random::new(seed),
            running: Vec::new(),
            next_line: Moment::ZERO,
        };
        chaos.happen(Duration::from_secs(seconds), seed);
        chaos.conclude(seed);
    });
}

/// Also while the test's output is kept back.
fn say(text: &str) {
    let _ = writeln!(std::io::stderr(), "{text}");
}

/// What may be done: to a server, and, from `Empty` on, to a Redis or a member of etcd.
#[derive(Clone, Copy, Debug, PartialEq, PartialOrd)]
enum Act {
    Kill,
    Restart,
    Replace,
    Stop,
    CutOff,
    Disturb,
    /// The Redis that takes writes is killed, and comes back empty before the other takes over.
    Empty,
    /// It is killed, and the other takes over.
    FailOver,
    /// The other takes over, because it was asked to.
    Promote,
    KillMember,
    KillTwoMembers,
    StopMember,
    CutOffMember,
}

use Act::*;

impl Act {
    fn is_on_backend(self) -> bool {
        self >= Empty
    }

    fn harm(self, target: usize) -> Harm {
        match self {
            Kill => Harm::Killed(target),
            Restart => Harm::Restarted(target),
            Replace => Harm::Nothing(target),
            Stop => Harm::Stopped(target),
            CutOff | Disturb => Harm::Silent(target),
            _ => Harm::Backend,
        }
    }

    fn begin(self, world: &mut World, target: usize) {
        match self {
            Kill => world.servers[target].end("KILL"),
            Restart => world.servers[target].end("TERM"),
            Replace => world.servers[target].hand_over(),
            Stop => world.servers[target].signal("STOP"),
            CutOff => world.gate(target).host.cut_off(),
            Disturb => {
                let seed = world.judge.faults.len() as u64;
                let line = world.gate(target).host.disturb(seed);
                world.lines.insert(target, line);
            }
            Empty | KillMember => world.backend.process(target).0.kill(),
            FailOver => {
                world.backend.process(target).0.kill();
                let sentinels = world.backend.sentinels();
                sentinels.wait_until_master_is(1 - target);
            }
            Promote => {
                let sentinels = world.backend.sentinels();
                // Soon after another failover they refuse.
                if sentinels.promote() {
                    sentinels.wait_until_master_is(1 - target);
                }
            }
            KillTwoMembers => {
                let etcd = world.backend.etcd();
                etcd.process(target).kill();
                etcd.process((target + 1) % 3).kill();
            }
            StopMember => world.backend.process(target).0.signal("STOP"),
            CutOffMember => world.backend_host(target).cut_off(),
        }
    }

    fn end(self, world: &mut World, target: usize) {
        match self {
            Kill | Restart => world.servers[target].start(),
            Replace => {}
            Stop => world.servers[target].signal("CONT"),
            CutOff => world.gate(target).host.reconnect(),
            Disturb => drop(world.lines.remove(&target)),
            Empty => world.backend.sentinels().redis[target].run_empty(None),
            FailOver => {
                let redis = &world.backend.sentinels().redis;
                redis[target].run_empty(Some(&redis[1 - target]));
            }
            Promote => {}
            KillMember | KillTwoMembers => {
                let etcd = world.backend.etcd();
                let killed = (0..3).filter(|member| !etcd.process(*member).runs());
                killed.for_each(|member| etcd.run(member));
            }
            StopMember => world.backend.process(target).0.signal("CONT"),
            CutOffMember => world.backend_host(target).reconnect(),
        }
        // It was over before the other Redis had begun to follow.
        if self.is_on_backend() && self != FailOver {
            world.backend.settle();
        }
    }
}

/// What is being done.
struct Running {
    act: Act,
    /// Servers, or one Redis or member of etcd.
    targets: Vec<usize>,
    faults: Vec<usize>,
    until: Moment,
}

struct Chaos {
    world: World,
    account: Account,
    random: Random,
    running: Vec<Running>,
    next_line: Moment,
}

impl Chaos {
    fn happen(&mut self, time: Duration, seed: u64) {
        self.world.visit_all(30, Duration::from_millis(60), seed);
        self.calm();
        while self.now() < time && !INTERRUPTED.load(Ordering::SeqCst) {
            for _ in 0..[1, 1, 1, 2, 2, 3][self.random.below(6)] {
                self.draw();
                let pause = self.milliseconds(0, 1200);
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

    fn milliseconds(&mut self, least: u64, most: u64) -> Duration {
        let bounds = [least, most].map(Duration::from_millis);
        self.random.between(bounds[0], bounds[1])
    }

    /// Lets pass what it may take until all is right again, and some time in which it is.
    fn calm(&mut self) {
        let settling = match self.world.judge.promise {
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
            let is_over = |running: &Running| running.until <= now;
            if let Some(over) = self.running.iter().position(is_over) {
                let running = self.running.swap_remove(over);
                for target in running.targets {
                    running.act.end(&mut self.world, target);
                }
                let faults = running.faults.into_iter();
                faults.for_each(|fault| self.world.over(fault));
            } else if now >= until {
                return;
            } else {
                let ends = self.running.iter().map(|running| running.until);
                let next = ends.chain([until]).min().expect("there is one");
                let most = Duration::from_millis(200);
                std::thread::sleep(next.saturating_sub(now).min(most));
            }
        }
    }

    fn listen(&mut self) {
        for answer in self.world.reports.take() {
            self.account.hear(&self.world.judge, &answer);
        }
        let wrongs = self.world.reports.take_wrongs();
        self.account.wrongs.extend(wrongs);
        let now = self.now();
        if now >= self.next_line {
            say(&format!(
                "{:4} s  {:4} faults  {:3} wrong",
                now.as_secs(),
                self.world.judge.faults.len(),
                self.account.wrongs.len()
            ));
            self.next_line = now + Duration::from_secs(5);
        }
    }

    fn begin(&mut self, act: Act, targets: Vec<usize>, time: Duration) {
        let mut faults = Vec::new();
        for target in &targets {
            let what = format!("{act:?} {}", target + 1);
            faults.push(self.world.begin(act.harm(*target), what));
            act.begin(&mut self.world, *target);
        }
        self.running.push(Running {
            act,
            targets,
            faults,
            until: self.now() + time,
        });
    }

    /// Begins something that can be done now.
    fn draw(&mut self) {
        let (on_backend, on_servers): (Vec<&Running>, Vec<&Running>) = self
            .running
            .iter()
            .partition(|running| running.act.is_on_backend());
        let busy = on_servers.iter().flat_map(|running| &running.targets);
        let busy: Vec<usize> = busy.copied().collect();
        // Two at a time, so that nothing is done to the others.
        if busy.len() >= 2 {
            return;
        }
        let backend_is_free = on_backend.is_empty();
        let free = 0..self.world.servers.len();
        let free: Vec<usize> = free.filter(|server| !busy.contains(server)).collect();
        let (kind, server) = (self.random.below(20), self.random.below(free.len()));
        let mut targets = vec![free[server]];
        let (act, least, most) = match kind {
            0..=2 => (Kill, 0, 4000),
            3 | 4 => (Restart, 0, 0),
            5 | 6 => (Replace, 0, 0),
            7 => (Stop, 100, 1000),
            8 => (Stop, 1000, 1350),
            9 => (Stop, 2500, 5000),
            10..=12 => (CutOff, 200, 5000),
            13 | 14 => (Disturb, 1000, 4000),
            _ if !backend_is_free => return,
            _ => {
                let is_etcd = matches!(self.world.backend, Backend::Etcd(_));
                targets[0] = self.random.below(3);
                if let Backend::Sentinels(sentinels) = &self.world.backend {
                    let master = sentinels.are_calm().then(|| sentinels.master());
                    let Some(master) = master.flatten() else {
                        return;
                    };
                    targets[0] = master;
                }
                match kind {
                    15 if is_etcd => (KillMember, 500, 4000),
                    16 if is_etcd => (KillTwoMembers, 500, 4000),
                    15 => (Empty, 0, 400),
                    16 => (FailOver, 0, 0),
                    17 if !is_etcd => (Promote, 0, 0),
                    17 | 18 => (StopMember, 200, 3000),
                    _ => (CutOffMember, 200, 3000),
                }
            }
        };
        if kind == 12 && busy.is_empty() {
            targets.push(free[(server + 1) % free.len()]);
        }
        let time = self.milliseconds(least, most);
        self.begin(act, targets, time);
    }

    /// All leave, and the account is given.
    fn conclude(&mut self, seed: u64) {
        self.world.clients.leave();
        self.listen();
        let (now, judge) = (self.now(), &self.world.judge);
        say(&format!(
            "{:?}, seed {seed}: {}",
            judge.promise,
            self.account.words(judge, now)
        ));
        if !self.account.wrongs.is_empty() {
            let logs = self.world.servers.iter().enumerate();
            let logs = logs
                .map(|(server, running)| format!("--- server {}\n{}\n", server + 1, running.log()));
            let file = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("chaos-{seed}.log"));
            std::fs::write(&file, logs.collect::<String>()).expect("the target directory is ours");
            panic!(
                "{} wrong, see {}",
                self.account.wrongs.len(),
                file.display()
            );
        }
        self.account.is_evidence(judge, now);
    }
}
