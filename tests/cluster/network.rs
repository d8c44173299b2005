//! A network of the test's own: a switch, and hosts that can be cut off from it without a word, slowed down, and made to lose
//! packets. Each host is a network namespace; the switch is a bridge in another.
//!
//! A host that is cut off keeps its own inside: clients that are connected to a server from its own host stay connected.

use std::fs::File;
use std::net::Ipv4Addr;
use std::os::fd::AsFd as _;
use std::path::Path;
use std::process::Command;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, Once, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

use crate::random::Random;
use crate::support::backends::{Place, URGENT};
use crate::support::kernel::is_root;
use crate::support::{clean, installed, kill, must_test_all, skipped};

/// All names of namespaces begin so; then follow the process that made them, its network, and the host.
const PREFIX: &str = "btcpd-";

/// Networks are made one after the other, and used one at a time, so that no test disturbs what another measures.
static TURN: Mutex<()> = Mutex::new(());

/// Set by ^C: long tests end by themselves, and no other begins.
pub static INTERRUPTED: AtomicBool = AtomicBool::new(false);

/// The switch and its hosts. Dropped, all is removed.
pub struct Network {
    name: String,
    _turn: MutexGuard<'static, ()>,
}

/// A host of a [`Network`].
#[derive(Clone)]
pub struct Host {
    network: String,
    number: u8,
}

impl Network {
    /// Runs `test` in a thread that is on the switch of a new network of this number of hosts, if this machine can do it and has all of
    /// these programs. Says so if not.
    pub fn with(hosts: u8, programs: &[&str], test: impl FnOnce(Network) + Send + 'static) {
        needs!("ip", "bridge", "tc");
        if !programs.iter().all(|program| installed(program)) {
            return;
        }
        if !is_root() {
            assert!(!must_test_all(), "only root can make networks");
            skipped("only root can make networks");
            return;
        }
        end_well();
        let thread = thread::spawn(move || {
            // All that belongs to a network, the threads of the test too: what else this machine does shall not show in what is
            // measured. If it can't be, times are less exact.
            let _ = rustix::process::nice(URGENT.parse().expect("a number"));
            let network = Network::new(hosts);
            enter(&network.name);
            test(network);
        });
        if let Err(panic) = thread.join() {
            std::panic::resume_unwind(panic);
        }
    }

    fn new(hosts: u8) -> Self {
        static MADE: AtomicUsize = AtomicUsize::new(0);
        let turn = TURN.lock().unwrap_or_else(PoisonError::into_inner);
        assert!(!INTERRUPTED.load(Ordering::SeqCst), "interrupted");
        // What processes have left that have ended.
        remove(|name| {
            let owner = name.split('-').next().unwrap_or_default();
            !Path::new(&format!("/proc/{owner}")).exists()
        });
        let made = MADE.fetch_add(1, Ordering::Relaxed);
        let name = format!("{PREFIX}{}-{made}", std::process::id());
        let network = Network { name, _turn: turn };
        let name = &network.name;
        run(clean("ip").args(["netns", "add", name]));
        // All know where the others are, so that nobody has to search for them after having been cut off.
        let neighbours = |device: &str, own: u8| {
            let others = (1..=hosts).chain([254]).filter(|other| *other != own);
            let line = |other| {
                format!(
                    "neigh replace 10.77.0.{other} lladdr 02:00:00:00:00:{other:02x} nud permanent dev {device}\n"
                )
            };
            others.map(line).collect::<String>()
        };
        let mut on_switch = "link set lo up\nlink add br0 type bridge stp_state 0\n\
             link set br0 address 02:00:00:00:00:fe up\naddr add 10.77.0.254/24 dev br0\n"
            .to_string();
        for number in 1..=hosts {
            let namespace = network.host(number).namespace();
            run(clean("ip").args(["netns", "add", &namespace]));
            on_switch += &format!(
                "link add port{number} type veth peer name eth0 address 02:00:00:00:00:{number:02x} netns {namespace}\n\
                 link set port{number} master br0 up\n"
            );
        }
        batch(name, &(on_switch + &neighbours("br0", 254)));
        for number in 1..=hosts {
            let up = format!(
                "link set lo up\nlink set eth0 up\naddr add 10.77.0.{number}/24 dev eth0\n"
            );
            let namespace = network.host(number).namespace();
            batch(&namespace, &(up + &neighbours("eth0", number)));
        }
        network
    }

    /// The host of this number, the first 1.
    pub fn host(&self, number: u8) -> Host {
        Host {
            network: self.name.clone(),
            number,
        }
    }
}

impl Drop for Network {
    fn drop(&mut self) {
        let own = self.name.replace(PREFIX, "");
        remove(|name| name == own || name.starts_with(&format!("{own}-")));
    }
}

impl Host {
    /// Its address.
    pub fn address(&self) -> Ipv4Addr {
        Ipv4Addr::new(10, 77, 0, self.number)
    }

    fn namespace(&self) -> String {
        format!("{}-{}", self.network, self.number)
    }

    /// Where its processes run.
    pub fn place(&self) -> Place {
        let namespace = self.namespace();
        let wrapper = ["ip", "netns", "exec", &namespace, "nice", "-n", URGENT];
        Place {
            ip: self.address(),
            wrapper: wrapper.map(str::to_string).to_vec(),
        }
    }

    /// From now on the calling thread is on this host.
    pub fn enter(&self) {
        enter(&self.namespace());
    }

    /// Cuts it off.
    pub fn cut_off(&self) {
        self.switch_port("0");
    }

    /// Reconnects it.
    pub fn reconnect(&self) {
        // "Forwarding".
        self.switch_port("3");
    }

    fn switch_port(&self, state: &str) {
        let words = format!(
            "-n {} link set dev port{} state {state}",
            self.network, self.number
        );
        run(clean("bridge").args(words.split(' ')));
    }

    /// Makes all that it sends and receives slow, and loses some of it: each packet by chance, if the kernel can do that; else
    /// packets queue up for a narrow line, and all are lost for moments.
    pub fn disturb(&self, seed: u64) -> Disturbance {
        let over = Arc::new(AtomicBool::new(false));
        let mut random = Random::new(seed);
        let (delay, loss) = (5 + random.below(40), 2 + random.below(20));
        let netem = format!(" netem delay {delay}ms {}ms loss {loss}%", delay / 2);
        if self.queue("add", &netem) {
            return Disturbance {
                host: self.clone(),
                over,
                losing: None,
            };
        }
        let rate = 128 + random.below(384);
        let tbf = format!(" tbf rate {rate}kbit burst 1600 limit 12000");
        assert!(self.queue("add", &tbf), "tc can't do{tbf}");
        let (is_over, host) = (over.clone(), self.clone());
        let losing = thread::spawn(move || {
            while !is_over.load(Ordering::Relaxed) {
                host.cut_off();
                thread::sleep(Duration::from_millis(2 + random.below(25) as u64));
                host.reconnect();
                thread::sleep(Duration::from_millis(20 + random.below(120) as u64));
            }
        });
        Disturbance {
            host: self.clone(),
            over,
            losing: Some(losing),
        }
    }

    /// Changes how its packets queue up, in both directions. Returns whether the kernel can do that.
    fn queue(&self, verb: &str, discipline: &str) -> bool {
        let (port, namespace) = (format!("port{}", self.number), self.namespace());
        [(&self.network, &*port), (&namespace, "eth0")]
            .iter()
            .all(|(namespace, device)| {
                let words = format!("-n {namespace} qdisc {verb} dev {device} root{discipline}");
                let output = clean("tc").args(words.split(' ')).output();
                output.expect("tc starts").status.success()
            })
    }
}

/// A host's bad line. Ends when dropped.
pub struct Disturbance {
    host: Host,
    over: Arc<AtomicBool>,
    losing: Option<JoinHandle<()>>,
}

impl Drop for Disturbance {
    fn drop(&mut self) {
        self.over.store(true, Ordering::Relaxed);
        if let Some(losing) = self.losing.take() {
            // It panics if a port can't be switched, and then the test has failed.
            let _ = losing.join();
        }
        let is_mended = self.host.queue("del", "");
        // A panic while things are removed would hide why.
        assert!(is_mended || thread::panicking(), "the line stays bad");
    }
}

fn enter(namespace: &str) {
    let file = File::open(format!("/run/netns/{namespace}")).expect("the namespace was made");
    move_into_link_name_space(file.as_fd(), Some(LinkNameSpaceType::Network)).expect("setns");
}

/// Has ip do what these lines say in a namespace.
fn batch(namespace: &str, lines: &str) {
    let script = r#"printf %s "$2" | ip -n "$1" -batch -"#;
    run(clean("sh").args(["-c", script, "sh", namespace, lines]));
}

fn run(command: &mut Command) {
    let output = command.output().expect("it starts");
    let said = String::from_utf8_lossy(&output.stderr);
    // A panic while things are removed would hide why.
    if !output.status.success() && !thread::panicking() {
        panic!("{command:?}: {said}");
    }
}

/// Removes the namespaces that are meant by what follows the prefix in their names, and ends what lives in them.
fn remove(is_meant: impl Fn(&str) -> bool) {
    let listed = std::fs::read_dir("/run/netns")
        .into_iter()
        .flatten()
        .flatten();
    for entry in listed {
        let name = entry.file_name().to_string_lossy().into_owned();
        if !name.strip_prefix(PREFIX).is_some_and(&is_meant) {
            continue;
        }
        let output = clean("ip").args(["netns", "pids", &name]).output();
        let pids = output.map(|output| output.stdout).unwrap_or_default();
        let pids = String::from_utf8_lossy(&pids);
        let pids = pids.lines().filter_map(|pid| pid.parse().ok());
        for pid in pids.filter(|pid| *pid != std::process::id()) {
            // It may have ended.
            kill("KILL", pid);
        }
        run(clean("ip").args(["netns", "del", &name]));
    }
}

/// Has ^C leave nothing behind. The second does not wait for the test.
fn end_well() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        let end = || {
            if INTERRUPTED.swap(true, Ordering::SeqCst) {
                let own = format!("{}-", std::process::id());
                remove(|name| name.starts_with(&own));
                std::process::exit(130);
            }
        };
        ctrlc::set_handler(end).expect("nobody else handles it");
    });
}
