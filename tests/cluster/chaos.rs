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
use crate::network::{ENDS_BY_ITSELF, Host, INTERRUPTED};
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

/// Something that can be done, and returns what ends it.
type Does = Box<dyn FnOnce(&mut World) -> End>;
type End = Box<dyn FnOnce(&mut World)>;

/// What may be done: to these servers; if there are none, to what they meet at.
struct Act {
    servers: Vec<usize>,
    harm: fn(usize) -> Harm,
    what: &'static str,
    time: Duration,
    does: Does,
}

/// What is being done.
struct Running {
    servers: Vec<usize>,
    faults: Vec<usize>,
    until: Moment,
    end: End,
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
                if let Some(act) = self.draw() {
                    self.begin(act);
                }
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
                (running.end)(&mut self.world);
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

    fn begin(&mut self, act: Act) {
        let on_server = |server: &usize| (*server, format!("server {}: {}", server + 1, act.what));
        let mut faults: Vec<(usize, String)> = act.servers.iter().map(on_server).collect();
        if faults.is_empty() {
            faults.push((0, act.what.to_string()));
        }
        let faults = faults.into_iter();
        let begin = |(server, what)| self.world.begin((act.harm)(server), what);
        let faults = faults.map(begin).collect();
        let end = (act.does)(&mut self.world);
        self.running.push(Running {
            servers: act.servers,
            faults,
            until: self.now() + act.time,
            end,
        });
    }

    /// Something that can be done now.
    fn draw(&mut self) -> Option<Act> {
        let busy = self.running.iter().flat_map(|running| &running.servers);
        let busy: Vec<usize> = busy.copied().collect();
        let free = 0..self.world.servers.len();
        let free: Vec<usize> = free.filter(|server| !busy.contains(server)).collect();
        // Two at a time, so that there are always some to whom nothing is done.
        if busy.len() >= 2 {
            return None;
        }
        let server = free[self.random.below(free.len())];
        let (harm, what, time, does): (fn(usize) -> Harm, _, _, Does) = match self.random.below(20)
        {
            kind @ 0..=4 => {
                let (signal, harm, what, most): (_, fn(usize) -> Harm, _, _) = match kind {
                    0..=2 => ("KILL", Harm::Killed, "killed", 4000),
                    _ => ("TERM", Harm::Restarted, "restarted", 1),
                };
                let does = move |world: &mut World| -> End {
                    world.servers[server].end(signal);
                    Box::new(move |world| world.servers[server].start())
                };
                (harm, what, self.milliseconds(0, most), Box::new(does))
            }
            5 | 6 => {
                let does = move |world: &mut World| -> End {
                    world.servers[server].hand_over();
                    Box::new(|_| {})
                };
                (
                    Harm::Nothing,
                    "a new program takes over",
                    Duration::ZERO,
                    Box::new(does),
                )
            }
            7..=9 => {
                let (least, most, what) = [
                    (100, 1000, "stopped for a moment"),
                    (1000, 1350, "stopped for almost as long as it may"),
                    (2500, 5000, "stopped for longer than it may"),
                ][self.random.below(3)];
                let does = move |world: &mut World| -> End {
                    world.servers[server].signal("STOP");
                    Box::new(move |world| world.servers[server].signal("CONT"))
                };
                (
                    Harm::Stopped,
                    what,
                    self.milliseconds(least, most),
                    Box::new(does),
                )
            }
            kind @ 10..=12 if kind < 12 || busy.is_empty() => {
                let mut servers = vec![server];
                if kind == 12 {
                    servers.push((server + 1 + self.random.below(free.len() - 1)) % free.len());
                }
                let cut = servers.clone();
                return Some(Act {
                    servers,
                    harm: Harm::Silent,
                    what: "cut off",
                    time: self.milliseconds(200, 5000),
                    does: Box::new(move |world| {
                        let hosts = world.hosts(&cut);
                        world.network.cut_off(&hosts);
                        Box::new(move |_| hosts.iter().for_each(Host::reconnect))
                    }),
                });
            }
            13 | 14 | 12 => {
                let seed = self.random.next();
                let does = move |world: &mut World| -> End {
                    let line = world.network.disturb(&world.gate(server).host, seed);
                    if let Some(fault) = world.judge.faults.last_mut() {
                        fault.what += &format!(" ({})", line.how);
                    }
                    Box::new(|_| drop(line))
                };
                (
                    Harm::Silent,
                    "on a bad line",
                    self.milliseconds(1000, 4000),
                    Box::new(does),
                )
            }
            _ => return self.draw_for_backend(),
        };
        Some(Act {
            servers: vec![server],
            harm,
            what,
            time,
            does,
        })
    }

    fn draw_for_backend(&mut self) -> Option<Act> {
        if self
            .running
            .iter()
            .any(|running| running.servers.is_empty())
        {
            return None;
        }
        let (kind, mut member) = (self.random.below(5), self.random.below(3));
        let is_etcd = match &self.world.backend {
            Backend::Sentinels(sentinels) => {
                member = sentinels.are_calm().then(|| sentinels.master())??;
                false
            }
            _ => true,
        };
        let (what, least, most, does): (_, _, _, Does) = match kind {
            0 | 1 if is_etcd => {
                let does = move |world: &mut World| -> End {
                    let killed = move |lost| (member + lost) % 3;
                    for lost in 0..=kind {
                        world.backend.etcd().process(killed(lost)).kill();
                    }
                    Box::new(move |world| {
                        (0..=kind).for_each(|lost| world.backend.etcd().run(killed(lost)));
                        world.backend.settle();
                    })
                };
                (
                    ["a member of etcd killed", "two members of etcd killed"][kind],
                    500,
                    4000,
                    Box::new(does),
                )
            }
            0 => {
                let does = move |world: &mut World| -> End {
                    world.backend.process(member).0.kill();
                    Box::new(move |world| {
                        world.backend.sentinels().redis[member].run_empty(None);
                        world.backend.settle();
                    })
                };
                ("Redis comes back empty", 0, 400, Box::new(does))
            }
            1 => {
                let does = move |world: &mut World| -> End {
                    world.backend.process(member).0.kill();
                    world.backend.sentinels().wait_until_master_is(1 - member);
                    Box::new(move |world| {
                        let redis = &world.backend.sentinels().redis;
                        redis[member].run_empty(Some(&redis[1 - member]));
                    })
                };
                ("Redis killed, the other takes over", 0, 1, Box::new(does))
            }
            2 if !is_etcd => {
                let does = move |world: &mut World| -> End {
                    let sentinels = world.backend.sentinels();
                    // Soon after another failover they refuse.
                    if sentinels.promote() {
                        sentinels.wait_until_master_is(1 - member);
                    }
                    Box::new(|world| world.backend.settle())
                };
                (
                    "the other Redis takes over when asked",
                    0,
                    1,
                    Box::new(does),
                )
            }
            2 | 3 => {
                let does = move |world: &mut World| -> End {
                    world.backend.process(member).0.signal("STOP");
                    Box::new(move |world| {
                        world.backend.process(member).0.signal("CONT");
                        world.backend.settle();
                    })
                };
                (
                    "Redis or a member of etcd stopped",
                    200,
                    3000,
                    Box::new(does),
                )
            }
            _ => {
                let does = move |world: &mut World| -> End {
                    let host = world.backend_host(member);
                    world.network.cut_off(std::slice::from_ref(&host));
                    Box::new(move |world| {
                        host.reconnect();
                        world.backend.settle();
                    })
                };
                (
                    "Redis or a member of etcd cut off",
                    200,
                    3000,
                    Box::new(does),
                )
            }
        };
        Some(Act {
            servers: Vec::new(),
            harm: |_| Harm::Backend,
            what,
            time: self.milliseconds(least, most),
            does,
        })
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
        self.account.is_evidence(judge, now);
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
    }
}
