//! A network of the test's own: a switch, and hosts that can be cut off from it without a word, slowed down, and made to lose
//! packets. Each host is a network namespace; the switch is a bridge in another.
//!
//! A host that is cut off keeps its own inside: clients that are connected to a server from its own host stay connected.

use std::fs::{DirEntry, File};
use std::net::Ipv4Addr;
use std::os::fd::AsFd as _;
use std::path::Path;
use std::process::Command;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, Once, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

use crate::random::Random;
use crate::support::backends::Place;
use crate::support::kernel::is_root;
use crate::support::{clean, installed, kill};

/// All names of namespaces begin so; then follow the process that made them, its network, and the host.
const PREFIX: &str = "btcpd-";

/// The niceness of all that belongs to a network: what else this machine does shall not show in what is measured.
const URGENT: &str = "-15";

/// Networks are made one after the other, and used one at a time, so that no test disturbs what another measures.
static TURN: Mutex<()> = Mutex::new(());

/// Set by ^C.
pub static INTERRUPTED: AtomicBool = AtomicBool::new(false);

/// Whether somebody looks at [`INTERRUPTED`] and ends by itself.
pub static ENDS_BY_ITSELF: AtomicBool = AtomicBool::new(false);

/// The switch and its hosts. Dropped, all is removed.
pub struct Network {
    name: String,
    hosts: Vec<Host>,
    /// Whether the kernel can delay and lose packets by itself.
    emulates: bool,
    _turn: MutexGuard<'static, ()>,
}

/// A host of a [`Network`].
#[derive(Clone)]
pub struct Host {
    network: String,
    number: u8,
}

impl Network {
    /// Runs `test` in a thread that is on the switch of a new network of so many hosts, if this machine can do it and has all of
    /// these programs. Says so if not.
    pub fn with(hosts: u8, programs: &[&str], test: impl FnOnce(Network) + Send + 'static) {
        let mut programs = ["ip", "bridge", "tc"].iter().chain(programs);
        if programs.any(|program| !installed(program)) {
            return;
        }
        if !is_root() {
            let all = std::env::var_os("BLOCKCHAIN_TCPD_TEST_ALL").is_some_and(|all| all == "1");
            assert!(!all, "only root can make networks");
            eprintln!("left out: only root can make networks");
            return;
        }
        end_well();
        let thread = std::thread::spawn(move || {
            // This thread's, and that of all threads that come from it. If it can't be, times are less exact.
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
        sweep(|owner| !Path::new(&format!("/proc/{owner}")).exists());
        let made = MADE.fetch_add(1, Ordering::Relaxed);
        let name = format!("{PREFIX}{}-{made}", std::process::id());
        let host = |number| Host {
            network: name.clone(),
            number,
        };
        let mut network = Network {
            name: name.clone(),
            hosts: (1..=hosts).map(host).collect(),
            emulates: false,
            _turn: turn,
        };
        ip(&["netns", "add", &name]);
        let netem = "qdisc add dev lo root netem delay 1ms";
        network.emulates = try_to_run(clean("tc").args(words_after(&["-n", &name], netem)));
        if network.emulates {
            tc(&name, "qdisc del dev lo root");
        }
        // All know where the others are, so that nobody has to search for them after having been cut off.
        let everybody: Vec<u8> = (1..=hosts).chain([254]).collect();
        let neighbours = |device: &str, own: u8| {
            let others = everybody.iter().filter(|other| **other != own);
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
        for Host { number, .. } in &network.hosts {
            let namespace = format!("{name}-{number}");
            ip(&["netns", "add", &namespace]);
            on_switch += &format!(
                "link add port{number} type veth peer name eth0 address 02:00:00:00:00:{number:02x} netns {namespace}\n\
                 link set port{number} master br0 up\n"
            );
        }
        batch(&name, &(on_switch + &neighbours("br0", 254)));
        for Host { number, .. } in &network.hosts {
            let up = "link set lo up\nlink set eth0 up\n";
            let address = format!("addr add 10.77.0.{number}/24 dev eth0\n");
            let lines = up.to_string() + &address + &neighbours("eth0", *number);
            batch(&format!("{name}-{number}"), &lines);
        }
        network
    }

    /// The host of this number, the first 1.
    pub fn host(&self, number: u8) -> Host {
        self.hosts[usize::from(number) - 1].clone()
    }

    /// Cuts off these hosts, and those alone.
    pub fn cut_off(&self, hosts: &[Host]) {
        for host in hosts {
            host.switch_port(false);
        }
    }

    /// Makes everything that `host` sends and receives slow, and loses some of it.
    pub fn disturb(&self, host: &Host, seed: u64) -> Disturbance {
        let over = Arc::new(AtomicBool::new(false));
        let mut random = Random::new(seed);
        let mut losing = None;
        let (discipline, how) = if self.emulates {
            let (delay, loss) = (5 + random.below(40), 2 + random.below(20));
            let discipline = format!("netem delay {delay}ms {}ms loss {loss}%", delay / 2);
            (discipline.clone(), discipline)
        } else {
            // Packets queue up for a narrow line, and all are lost for moments.
            let rate = 128 + random.below(384);
            let (over, host) = (over.clone(), host.clone());
            losing = Some(std::thread::spawn(move || {
                while !over.load(Ordering::Relaxed) {
                    host.switch_port(false);
                    std::thread::sleep(Duration::from_millis(2 + random.below(25) as u64));
                    host.switch_port(true);
                    std::thread::sleep(Duration::from_millis(20 + random.below(120) as u64));
                }
            }));
            let discipline = format!("tbf rate {rate}kbit burst 1600 limit 12000");
            (discipline, format!("{rate} kbit/s, moments without"))
        };
        host.queue("add", &discipline);
        Disturbance {
            host: host.clone(),
            how,
            over,
            losing,
        }
    }
}

impl Drop for Network {
    fn drop(&mut self) {
        let own = format!("{}-", self.name);
        let is_own = |name: &String| *name == self.name || name.starts_with(&own);
        remove(namespaces().into_iter().filter(is_own));
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

    fn port(&self) -> String {
        format!("port{}", self.number)
    }

    /// Where its processes run. ^C of the test's terminal is not for them.
    pub fn place(&self) -> Place {
        let namespace = self.namespace();
        let wrapper = [
            "setsid", "ip", "netns", "exec", &namespace, "nice", "-n", URGENT,
        ];
        Place {
            ip: self.address(),
            wrapper: wrapper.map(str::to_string).to_vec(),
        }
    }

    /// From now on the calling thread is on this host.
    pub fn enter(&self) {
        enter(&self.namespace());
    }

    /// Reconnects it.
    pub fn reconnect(&self) {
        self.switch_port(true);
    }

    /// Changes how its packets queue up, in both directions.
    fn queue(&self, verb: &str, discipline: &str) {
        for (namespace, device) in [
            (&self.network, &self.port()),
            (&self.namespace(), &"eth0".to_string()),
        ] {
            let words = format!("qdisc {verb} dev {device} root {discipline}");
            tc(namespace, words.trim_end());
        }
    }

    fn switch_port(&self, on: bool) {
        // 3 is "forwarding".
        let state = if on { "3" } else { "0" };
        let words = format!("link set dev {} state {state}", self.port());
        run(clean("bridge").args(words_after(&["-n", &self.network], &words)));
    }
}

/// A host's bad line. Ends when dropped.
pub struct Disturbance {
    host: Host,
    /// In words.
    pub how: String,
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
        self.host.queue("del", "");
    }
}

fn enter(namespace: &str) {
    let file = File::open(format!("/run/netns/{namespace}")).expect("the namespace was made");
    move_into_link_name_space(file.as_fd(), Some(LinkNameSpaceType::Network)).expect("setns");
}

fn words_after<'a>(first: &[&'a str], words: &'a str) -> Vec<&'a str> {
    first.iter().copied().chain(words.split(' ')).collect()
}

/// Has ip do what these lines say in a namespace.
fn batch(namespace: &str, lines: &str) {
    let script = r#"printf %s "$2" | ip -n "$1" -batch -"#;
    run(clean("sh").args(["-c", script, "sh", namespace, lines]));
}

fn ip(words: &[&str]) {
    run(clean("ip").args(words));
}

fn tc(namespace: &str, words: &str) {
    run(clean("tc").args(words_after(&["-n", namespace], words)));
}

fn try_to_run(command: &mut Command) -> bool {
    command.output().expect("it starts").status.success()
}

fn run(command: &mut Command) {
    let output = command.output().expect("it starts");
    let said = String::from_utf8_lossy(&output.stderr);
    // Whoever panics while things are removed would hide why.
    if !output.status.success() && !std::thread::panicking() {
        panic!("{command:?}: {said}");
    }
}

fn namespaces() -> Vec<String> {
    let listed = std::fs::read_dir("/run/netns").into_iter().flatten();
    let name = |entry: DirEntry| entry.file_name().to_string_lossy().into_owned();
    listed.flatten().map(name).collect()
}

/// Ends who lives in these namespaces, and removes them.
fn remove(namespaces: impl Iterator<Item = String>) {
    for namespace in namespaces {
        let output = clean("ip").args(["netns", "pids", &namespace]).output();
        let pids = output.map(|output| output.stdout).unwrap_or_default();
        for pid in String::from_utf8_lossy(&pids).lines() {
            let pid = pid.parse().unwrap_or(0);
            if pid != 0 && pid != std::process::id() {
                // It may have ended.
                kill("KILL", pid);
            }
        }
        run(clean("ip").args(["netns", "del", &namespace]));
    }
}

/// Removes all that was made by processes like this.
fn sweep(is_meant: impl Fn(u32) -> bool) {
    remove(namespaces().into_iter().filter(|name| {
        let owner = name
            .strip_prefix(PREFIX)
            .and_then(|rest| rest.split('-').next()?.parse().ok());
        owner.is_some_and(&is_meant)
    }));
}

/// Has ^C leave nothing behind.
fn end_well() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        let end = || {
            let again = INTERRUPTED.swap(true, Ordering::SeqCst);
            if again || !ENDS_BY_ITSELF.load(Ordering::SeqCst) {
                sweep(|owner| owner == std::process::id());
                std::process::exit(130);
            }
        };
        ctrlc::set_handler(end).expect("nobody else handles it");
    });
}
