//! What the servers meet at: a Redis, two of them under three Sentinels, an etcd of three members. Each on a host of its own.

use std::fs;
use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process};

use crate::network::Host;
use crate::support::wait_until;

/// A process. Dropped, it is killed.
pub struct Process(Child);

impl Process {
    /// Starts it. What it says goes to a file.
    pub fn start(mut command: Command, log: &Path) -> Self {
        let log = fs::OpenOptions::new()
            .create(true)
            .append(true)
            .open(log)
            .expect("a log");
        let again = log.try_clone().expect("a log");
        command.stdin(Stdio::null()).stdout(log).stderr(again);
        Process(command.spawn().expect("it starts"))
    }

    /// Sends it a signal.
    pub fn signal(&self, signal: Signal) {
        let pid = Pid::from_raw(self.0.id().cast_signed()).expect("it is our child");
        kill_process(pid, signal).expect("it is our child");
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // It may have ended.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// The name under which the Sentinels know their Redis.
pub const MASTER: &str = "chaos";

/// A Redis that runs or not.
pub struct Redis {
    pub host: Host,
    directory: PathBuf,
    process: Option<Process>,
}

impl Redis {
    /// One that keeps its files below `directory`. It isn't started.
    pub fn new(host: Host, directory: &Path) -> Self {
        let directory = directory.join(format!("redis-{}", host.address()));
        fs::create_dir(&directory).expect("a directory");
        Redis {
            host,
            directory,
            process: None,
        }
    }

    /// Starts it, empty, and waits until it answers.
    pub fn start(&mut self, replica_of: Option<Ipv4Addr>) {
        let config = self.directory.join("redis.conf");
        // A replica writes down what it was sent, and would know that again.
        let _ = fs::remove_file(self.directory.join("dump.rdb"));
        let replica_of = replica_of.map(|master| format!("replicaof {master} 6379\n"));
        let lines = format!(
            "port 6379\nbind 0.0.0.0\nprotected-mode no\nsave \"\"\nappendonly no\ndir {}\nrepl-diskless-sync-delay 0\nrepl-timeout 5\n{}",
            self.directory.display(),
            replica_of.unwrap_or_default()
        );
        fs::write(&config, lines).expect("a file");
        let mut command = self.host.command("redis-server");
        command.arg(&config);
        self.process = Some(Process::start(command, &self.directory.join("log")));
        wait_until("Redis answers", || self.is("ping", "PONG"));
    }

    /// Kills it with all that it knew.
    pub fn kill(&mut self) {
        self.process = None;
    }

    /// Stops it or has it go on.
    pub fn signal(&self, signal: Signal) {
        self.process.as_ref().expect("it runs").signal(signal);
    }

    fn is(&self, question: &str, answer: &str) -> bool {
        ask(self.host.address(), 6379, &[question])
            .is_some_and(|said| said.first().is_some_and(|first| first == answer))
    }

    /// Whether it was started and not killed.
    pub fn runs(&self) -> bool {
        self.process.is_some()
    }

    /// Whether it says that it takes writes.
    pub fn is_master(&self) -> bool {
        self.is("role", "master")
    }

    /// How many servers are connected to it.
    pub fn servers(&self) -> usize {
        let clients = ask(self.host.address(), 6379, &["client", "list"]);
        let clients = clients.unwrap_or_default().join("\n");
        clients.matches("name=blockchain-tcpd ").count()
    }

    /// Whether it is a replica that has all of its master.
    pub fn follows(&self, master: Ipv4Addr) -> bool {
        ask(self.host.address(), 6379, &["role"]).is_some_and(|role| {
            role.first().is_some_and(|word| word == "slave")
                && role.get(1) == Some(&master.to_string())
                && role.get(3).is_some_and(|state| state == "connected")
        })
    }
}

/// Asks a Redis or a Sentinel.
fn ask(address: Ipv4Addr, port: u16, words: &[&str]) -> Option<Vec<String>> {
    let client = redis::Client::open(format!("redis://{address}:{port}")).ok()?;
    let mut connection = client
        .get_connection_with_timeout(Duration::from_millis(300))
        .ok()?;
    connection
        .set_read_timeout(Some(Duration::from_millis(500)))
        .ok()?;
    let mut command = redis::cmd(words[0]);
    command.arg(&words[1..]);
    let said: redis::Value = command.query(&mut connection).ok()?;
    let parts = match said {
        redis::Value::Array(parts) => parts,
        one => vec![one],
    };
    Some(
        parts
            .iter()
            .map(|part| redis::from_redis_value_ref(part).unwrap_or_default())
            .collect(),
    )
}

/// Two Redis, one of which follows the other, and three Sentinels who see to that.
pub struct Sentinels {
    pub redis: [Redis; 2],
    hosts: [Host; 3],
    _processes: Vec<Process>,
}

impl Sentinels {
    /// Starts them, and waits until all know each other.
    pub fn start(mut redis: [Redis; 2], hosts: [Host; 3], directory: &Path) -> Self {
        let master = redis[0].host.address();
        redis[0].start(None);
        redis[1].start(Some(master));
        wait_until("the replica has all", || redis[1].follows(master));
        let processes = hosts.iter().map(|host| {
            let own = directory.join(format!("sentinel-{}", host.address()));
            fs::create_dir(&own).expect("a directory");
            let config = own.join("sentinel.conf");
            let lines = format!(
                "port 26379\nbind 0.0.0.0\nprotected-mode no\ndir {}\nsentinel monitor {MASTER} {master} 6379 2\n\
                 sentinel down-after-milliseconds {MASTER} 1000\nsentinel failover-timeout {MASTER} 3000\n",
                own.display()
            );
            fs::write(&config, lines).expect("a file");
            let mut command = host.command("redis-sentinel");
            command.arg(&config);
            Process::start(command, &own.join("log"))
        });
        let processes = processes.collect();
        let sentinels = Sentinels {
            redis,
            hosts,
            _processes: processes,
        };
        for host in &sentinels.hosts {
            wait_until("the Sentinels know each other", || {
                let known = |what| {
                    ask(host.address(), 26379, &["sentinel", what, MASTER])
                        .map_or(0, |known| known.len())
                };
                known("sentinels") == 2 && known("replicas") == 1
            });
        }
        sentinels
    }

    /// Where all Sentinels say that the Redis is that takes writes, if they agree.
    pub fn master(&self) -> Option<Ipv4Addr> {
        let mut said = self.hosts.iter().map(|host| {
            ask(
                host.address(),
                26379,
                &["sentinel", "get-master-addr-by-name", MASTER],
            )?
            .first()?
            .parse()
            .ok()
        });
        let first = said.next()??;
        said.all(|other| other == Some(first)).then_some(first)
    }

    /// Which of the two takes writes, if the Sentinels agree, and it says so, too, and nothing is about to change that.
    pub fn first(&self) -> Option<usize> {
        let is_calm = |host: &Host| {
            let known =
                ask(host.address(), 26379, &["sentinel", "master", MASTER]).unwrap_or_default();
            let is = |what: &str, right: &dyn Fn(&str) -> bool| {
                let at = known.iter().position(|key| key == what);
                at.is_some_and(|at| right(&known[at + 1]))
            };
            // Before a Sentinel hears from it again, it may take it for dead, when it is back for long.
            let is_soon = |time: &str| time.parse().is_ok_and(|time: u64| time < 900);
            is("flags", &|flags| flags == "master")
                && is("last-ok-ping-reply", &is_soon)
                && is("last-ping-sent", &is_soon)
        };
        if !self.hosts.iter().all(is_calm) {
            return None;
        }
        let master = self.master()?;
        let first = self
            .redis
            .iter()
            .position(|redis| redis.host.address() == master)?;
        self.redis[first].is_master().then_some(first)
    }

    /// Asks for the other one to take over. They may refuse.
    pub fn promote(&self) -> bool {
        ask(
            self.hosts[0].address(),
            26379,
            &["sentinel", "failover", MASTER],
        )
        .is_some_and(|said| said[0] == "OK")
    }

    /// Whether one takes writes and the other has all of it.
    pub fn are_calm(&self) -> bool {
        self.first()
            .is_some_and(|first| self.redis[1 - first].follows(self.redis[first].host.address()))
    }
}

/// A member of an etcd.
pub struct Member {
    pub host: Host,
    command: Box<dyn Fn() -> Command + Send>,
    log: PathBuf,
    process: Option<Process>,
}

impl Member {
    /// Kills it. It keeps what it has written.
    pub fn kill(&mut self) {
        self.process = None;
    }

    /// Starts it again.
    pub fn start(&mut self) {
        self.process = Some(Process::start((self.command)(), &self.log));
    }

    /// Stops it or has it go on.
    pub fn signal(&self, signal: Signal) {
        self.process.as_ref().expect("it runs").signal(signal);
    }

    /// Whether it says that it and most of the others are well.
    pub fn is_well(&self) -> bool {
        use std::io::{Read as _, Write as _};
        let address = (self.host.address(), 2379).into();
        let patience = Duration::from_millis(500);
        let said =
            std::net::TcpStream::connect_timeout(&address, patience).and_then(|mut stream| {
                stream.set_read_timeout(Some(patience))?;
                stream.write_all(b"GET /health HTTP/1.0\r\n\r\n")?;
                let mut said = String::new();
                stream.read_to_string(&mut said)?;
                Ok(said)
            });
        said.is_ok_and(|said| said.contains("\"health\":\"true\""))
    }
}

/// Starts an etcd of a member on each of these hosts, and waits until all are well.
pub fn start_etcd(hosts: &[Host], directory: &Path) -> Vec<Member> {
    let peer = |host: &Host| format!("http://{}:2380", host.address());
    let cluster: Vec<String> = hosts
        .iter()
        .map(|host| format!("{}={}", host.address(), peer(host)))
        .collect();
    let cluster = cluster.join(",");
    let members = hosts.iter().map(|host| {
        let own = directory.join(format!("etcd-{}", host.address()));
        fs::create_dir(&own).expect("a directory");
        let (at, log) = (host.clone(), own.join("log"));
        let words = [
            ("--name", host.address().to_string()),
            ("--data-dir", own.join("data").display().to_string()),
            ("--listen-client-urls", "http://0.0.0.0:2379".to_string()),
            (
                "--advertise-client-urls",
                format!("http://{}:2379", host.address()),
            ),
            ("--listen-peer-urls", peer(host)),
            ("--initial-advertise-peer-urls", peer(host)),
            ("--initial-cluster", cluster.clone()),
            ("--heartbeat-interval", "50".to_string()),
            ("--election-timeout", "500".to_string()),
        ];
        let command = move || {
            let mut command = at.command("etcd");
            command.args(
                words
                    .iter()
                    .flat_map(|(option, value)| [option.to_string(), value.clone()]),
            );
            command
        };
        let mut member = Member {
            host: host.clone(),
            command: Box::new(command),
            log,
            process: None,
        };
        member.start();
        member
    });
    let members: Vec<Member> = members.collect();
    wait_until("all members of etcd are well", || {
        members.iter().all(Member::is_well)
    });
    members
}
