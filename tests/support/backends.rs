//! Backends of a cluster: a Redis, two of them with three Sentinels, or an etcd. Each runs on the loopback
//! interface, or on a host of the test's own network.

use std::ffi::OsStr;
use std::fs;
use std::io::{Read as _, Write as _};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::os::unix::process::CommandExt as _;
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use super::{Log, Scratch, clean, free_port, kill, located, wait_until, words};

/// The niceness of what the servers meet at, if it may be had: an etcd that gets no time on a busy machine is late, and then no
/// server answers.
pub const URGENT: &str = "-15";

/// Where processes run.
#[derive(Clone)]
pub struct Place {
    /// Where they listen.
    pub ip: Ipv4Addr,
    /// The command that runs their commands there.
    pub wrapper: Vec<String>,
}

impl Place {
    /// An address of the loopback interface.
    pub fn local(ip: Ipv4Addr) -> Self {
        let wrapper = ["nice", "-n", URGENT].map(str::to_string).to_vec();
        Place { ip, wrapper }
    }

    /// A command that becomes `program` there.
    pub fn command(&self, program: impl AsRef<OsStr>) -> Command {
        let mut command = clean(&self.wrapper[0]);
        command.args(&self.wrapper[1..]);
        command.arg(located(program.as_ref()));
        if !self.ip.is_loopback() {
            // ^C of the test's terminal is not for it. In a session of its own it would get its time apart from the test, whose
            // `stalls` would not be its own.
            command.process_group(0);
        }
        command
    }

    /// An address there: at this port on a host of its own, at a free one on the loopback interface.
    fn address(&self, port: u16) -> SocketAddr {
        let is_shared = self.ip.is_loopback();
        SocketAddr::from((self.ip, if is_shared { free_port() } else { port }))
    }
}

/// A process that can be killed and started again. Dropped, it is killed.
#[derive(Default)]
pub struct Process(Mutex<Option<Child>>);

impl Process {
    /// Starts it. Returns what it writes to stdout.
    pub fn run(&self, command: &mut Command) -> Log {
        let child = command.stdout(Stdio::piped()).stderr(Stdio::null()).spawn();
        let mut child = child.expect("it starts");
        let log = Log::follow(child.stdout.take().expect("stdout is piped"));
        *self.0.lock().unwrap() = Some(child);
        log
    }

    /// Kills it if it runs.
    pub fn kill(&self) {
        if let Some(mut child) = self.0.lock().unwrap().take() {
            // It may have ended.
            let _ = child.kill();
            let _ = child.wait();
        }
    }

    /// Sends it a signal by its name, such as STOP.
    pub fn signal(&self, name: &str) {
        let pid = self.0.lock().unwrap().as_ref().expect("it runs").id();
        assert!(kill(name, pid), "kill -s {name}");
    }

    /// Whether it was started and not killed.
    pub fn runs(&self) -> bool {
        self.0.lock().unwrap().is_some()
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        self.kill();
    }
}

/// Asks a Redis or a Sentinel. Returns the parts of its reply, or the error that it says; nothing if it does not answer soon.
fn ask(url: &str, command: &str) -> Option<Vec<String>> {
    let client = redis::Client::open(url).ok()?;
    let mut connection = client
        .get_connection_with_timeout(Duration::from_secs(5))
        .ok()?;
    let patience = Some(Duration::from_secs(5));
    connection.set_read_timeout(patience).ok()?;
    let words = words(command);
    match redis::cmd(&words[0])
        .arg(&words[1..])
        .query(&mut connection)
    {
        Ok(redis::Value::Array(parts)) => Some(parts.iter().map(text).collect()),
        Ok(one) => Some(vec![text(&one)]),
        Err(error) => Some(vec![error.code()?.to_string()]),
    }
}

fn text(part: &redis::Value) -> String {
    redis::from_redis_value_ref(part).unwrap_or_default()
}

/// A Redis. Dropped, it is killed.
pub struct Redis {
    pub place: Place,
    pub port: u16,
    pub process: Process,
    /// What it asks its clients for.
    pub password: String,
    directory: Scratch,
    arguments: Vec<String>,
}

impl Redis {
    /// Starts one with these arguments besides. It keeps nothing on the disk.
    pub fn start(arguments: &str) -> Self {
        let place = Place::local(Ipv4Addr::LOCALHOST);
        Redis::start_at(place, free_port(), arguments)
    }

    /// Starts one there.
    pub fn start_at(place: Place, port: u16, arguments: &str) -> Self {
        let redis = Redis {
            place,
            port,
            process: Process::default(),
            password: String::new(),
            directory: Scratch::new(),
            arguments: words(arguments),
        };
        redis.run("");
        redis
    }

    /// Starts it again with these arguments besides, and waits until it answers.
    pub fn run(&self, arguments: &str) {
        let own = format!(
            "--port {} --bind {} --protected-mode no --save \"\" --appendonly no --repl-diskless-sync-delay 0 --repl-timeout 5 --dir {}",
            self.port,
            self.place.ip,
            self.directory.path().display()
        );
        let mut command = self.place.command("redis-server");
        command.args(words(&own));
        command.args(&self.arguments).args(words(arguments));
        let log = self.process.run(&mut command);
        log.wait_for("Ready to accept connections");
    }

    /// Starts it again with nothing in it, on its own or as a replica.
    pub fn run_empty(&self, replica_of: Option<&Redis>) {
        // A replica writes down what it was sent, and would know that again.
        let _ = fs::remove_file(self.directory.path().join("dump.rdb"));
        match replica_of {
            Some(master) => self.run(&format!("--replicaof {} {}", master.place.ip, master.port)),
            None => self.run(""),
        }
    }

    /// Its address.
    pub fn address(&self) -> SocketAddr {
        SocketAddr::from((self.place.ip, self.port))
    }

    /// What `--cluster` takes.
    pub fn url(&self) -> String {
        format!("redis://{}", self.address())
    }

    fn parts(&self, database: u8, command: &str) -> Vec<String> {
        let user = match &*self.password {
            "" => String::new(),
            password => format!(":{password}@"),
        };
        let url = format!("redis://{user}{}/{database}", self.address());
        ask(&url, command).unwrap_or_default()
    }

    /// What it answers to this command.
    pub fn ask(&self, command: &str) -> String {
        self.parts(0, command).join("\n")
    }

    /// What it answers to this command about another database.
    pub fn ask_in(&self, database: u8, command: &str) -> String {
        self.parts(database, command).join("\n")
    }

    /// Has it do something, which must go well.
    pub fn order(&self, command: &str) {
        assert_eq!(self.ask(command), "OK", "{command:?}");
    }

    /// How many connections are those of servers.
    pub fn servers(&self) -> usize {
        let clients = self.ask("CLIENT LIST");
        clients.matches("name=blockchain-tcpd ").count()
    }

    /// Waits until this number of servers is connected.
    pub fn wait_for_servers(&self, servers: usize) {
        wait_until(&format!("{servers} servers are connected"), || {
            self.servers() == servers
        });
    }

    /// Whether it is a replica that has all of its master.
    fn follows(&self, master: &Redis) -> bool {
        let (ip, port) = (master.place.ip.to_string(), master.port.to_string());
        let role = self.parts(0, "ROLE");
        role.len() == 5 && role[..4] == ["slave", &ip, &port, "connected"]
    }
}

/// A Sentinel that watches over the master `main`. Dropped, it is killed.
pub struct Sentinel {
    /// Its address.
    pub address: SocketAddr,
    _directory: Scratch,
    _process: Process,
}

impl Sentinel {
    /// Starts one that believes what it is told, with these lines in its configuration besides.
    pub fn start(master: SocketAddr, more: &str) -> Self {
        let place = Place::local(Ipv4Addr::LOCALHOST);
        Sentinel::start_at(&place, master, 1, more)
    }

    fn start_at(place: &Place, master: SocketAddr, quorum: usize, more: &str) -> Self {
        let (directory, process) = (Scratch::new(), Process::default());
        let address = place.address(26379);
        let settings = directory.path().join("sentinel.conf");
        let lines = format!(
            "port {}\nbind {}\nprotected-mode no\nsentinel monitor main {} {} {quorum}\n{more}\n",
            address.port(),
            address.ip(),
            master.ip(),
            master.port()
        );
        fs::write(&settings, lines).expect("the directory is ours");
        let log = process.run(place.command("redis-sentinel").arg(&settings));
        log.wait_for("+monitor master main");
        Sentinel {
            address,
            _directory: directory,
            _process: process,
        }
    }

    /// From now on this one is the master.
    pub fn choose(&self, master: &Redis) {
        let (ip, port) = (master.place.ip, master.port);
        assert_eq!(self.ask("remove main"), ["OK"]);
        assert_eq!(self.ask(&format!("monitor main {ip} {port} 1")), ["OK"]);
    }

    fn ask(&self, command: &str) -> Vec<String> {
        let command = format!("SENTINEL {command}");
        ask(&format!("redis://{}", self.address), &command).unwrap_or_default()
    }

    /// Where it says that the master is, if it has heard from it of late and nothing is about to change that.
    fn settled_master(&self) -> Option<Vec<String>> {
        let known = self.ask("master main");
        let value = |what: &str| {
            let at = known.iter().position(|key| key == what)?;
            known.get(at + 1).cloned()
        };
        // Before a Sentinel hears from it again, it may take it for dead, when it is back for long.
        let is_recent = |what| value(what)?.parse().ok().map(|time: u64| time < 900);
        let is_settled = value("flags")? == "master"
            && is_recent("last-ok-ping-reply")?
            && is_recent("last-ping-sent")?;
        is_settled.then(|| self.ask("get-master-addr-by-name main"))
    }
}

/// Two Redis, one of which follows the other, and three Sentinels who see to that.
pub struct Sentinels {
    pub redis: [Redis; 2],
    sentinels: Vec<Sentinel>,
}

impl Sentinels {
    /// Starts them, and waits until all know each other.
    fn start(places: &[Place]) -> Self {
        let redis = [0, 1].map(|one| Redis::start_at(places[one].clone(), 6379, ""));
        redis[1].process.kill();
        redis[1].run_empty(Some(&redis[0]));
        wait_until("the replica has all", || redis[1].follows(&redis[0]));
        let terms =
            "sentinel down-after-milliseconds main 1000\nsentinel failover-timeout main 3000";
        let start = |place| Sentinel::start_at(place, redis[0].address(), 2, terms);
        let sentinels: Vec<Sentinel> = places[2..].iter().map(start).collect();
        for sentinel in &sentinels {
            wait_until("the Sentinels know each other", || {
                let known = ["sentinels", "replicas"]
                    .map(|what| sentinel.ask(&format!("{what} main")).len());
                known == [2, 1]
            });
        }
        Sentinels { redis, sentinels }
    }

    /// Which of the two takes writes, if the Sentinels agree, and it says so, too.
    pub fn master(&self) -> Option<usize> {
        let mut said = self.sentinels.iter().map(Sentinel::settled_master);
        let master = said.next()??;
        let is_it = |redis: &Redis| redis.place.ip.to_string() == master[0];
        let place = self.redis.iter().position(is_it)?;
        let is_master = self.redis[place].ask("ROLE").starts_with("master");
        (said.all(|other| other.as_ref() == Some(&master)) && is_master).then_some(place)
    }

    /// Waits until it is clear which one takes writes.
    pub fn wait_for_master(&self) -> usize {
        let mut master = None;
        wait_until("one Redis takes writes", || {
            master = self.master();
            master.is_some()
        });
        master.expect("waited for")
    }

    /// Waits until this one takes writes.
    pub fn wait_until_master_is(&self, one: usize) {
        wait_until("the other takes over", || self.master() == Some(one));
    }

    /// Asks for the other one to take over. Soon after another failover they refuse.
    pub fn promote(&self) -> bool {
        self.sentinels[0].ask("failover main") == ["OK"]
    }

    /// Whether one takes writes and the other has all of it.
    pub fn are_calm(&self) -> bool {
        let master = self.master();
        master.is_some_and(|one| self.redis[1 - one].follows(&self.redis[one]))
    }
}

/// What the key of each server begins with.
pub const MEMBERS: &str = "/blockchain-tcpd/default/members/";

/// A member of an etcd.
struct Member {
    place: Place,
    client: SocketAddr,
    peer: SocketAddr,
    /// Where it says whether it is well, without TLS.
    health: SocketAddr,
    process: Process,
}

/// An etcd. Dropped, it is killed.
pub struct Etcd {
    scratch: Scratch,
    members: Vec<Member>,
    /// The certificate of the members, its key, and the authority.
    tls: Option<[String; 3]>,
    arguments: Vec<String>,
}

impl Etcd {
    /// Starts one with this number of members.
    pub fn start(members: usize) -> Self {
        Etcd::start_with(members, None, "")
    }

    /// Starts one with these files for TLS and these arguments besides.
    pub fn start_with(members: usize, tls: Option<[String; 3]>, arguments: &str) -> Self {
        Etcd::start_at(
            vec![Place::local(Ipv4Addr::LOCALHOST); members],
            tls,
            arguments,
        )
    }

    fn start_at(places: Vec<Place>, tls: Option<[String; 3]>, arguments: &str) -> Self {
        let member = |place: Place| Member {
            client: place.address(2379),
            peer: place.address(2380),
            health: place.address(2381),
            process: Process::default(),
            place,
        };
        let etcd = Etcd {
            scratch: Scratch::new(),
            members: places.into_iter().map(member).collect(),
            tls,
            arguments: words(arguments),
        };
        (0..etcd.members.len()).for_each(|member| etcd.run(member));
        etcd.wait();
        etcd
    }

    /// The address for clients of this member.
    pub fn address(&self, member: usize) -> SocketAddr {
        self.members[member].client
    }

    /// An address that speaks HTTP without TLS in any case.
    pub fn health_address(&self) -> SocketAddr {
        self.members[0].health
    }

    fn hosts(&self, first: usize) -> String {
        let hosts = self.members.iter().map(|one| one.client.to_string());
        let mut hosts: Vec<String> = hosts.collect();
        hosts.rotate_left(first);
        hosts.join(",")
    }

    /// What `--cluster` takes.
    pub fn url(&self) -> String {
        self.url_from(0)
    }

    /// The same with this member first, which is asked first.
    pub fn url_from(&self, first: usize) -> String {
        let scheme = self.tls.as_ref().map_or("etcd", |_| "etcds");
        format!("{scheme}://{}", self.hosts(first))
    }

    /// Starts a member.
    pub fn run(&self, member: usize) {
        let peers = self.members.iter().enumerate();
        let peers: Vec<String> = peers
            .map(|(index, one)| format!("m{index}=http://{}", one.peer))
            .collect();
        let one = &self.members[member];
        let scheme = self.tls.as_ref().map_or("http", |_| "https");
        let client = format!("{scheme}://{}", one.client);
        let peer = format!("http://{}", one.peer);
        let (data, health) = (self.data(member), one.health);
        // Without the cost, a password takes so long that a busy machine is not done in time.
        let own = format!(
            "--data-dir {data} --name m{member} --listen-client-urls {client} --advertise-client-urls {client} \
             --listen-peer-urls {peer} --initial-advertise-peer-urls {peer} --initial-cluster {} \
             --listen-metrics-urls http://{health} --heartbeat-interval 50 --election-timeout 500 \
             --unsafe-no-fsync --log-level fatal --bcrypt-cost 4",
            peers.join(",")
        );
        let mut command = one.place.command("etcd");
        command.args(words(&own));
        if let Some([certificate, key, _]) = &self.tls {
            command.args(["--cert-file", certificate, "--key-file", key]);
        }
        one.process.run(command.args(&self.arguments));
    }

    fn data(&self, member: usize) -> String {
        let data = self.scratch.path().join(format!("data{member}"));
        data.display().to_string()
    }

    /// The process of this member.
    pub fn process(&self, member: usize) -> &Process {
        &self.members[member].process
    }

    /// Which member leads. All must run.
    pub fn leader(&self) -> usize {
        let said = self.order("endpoint status");
        let leads = |member: &Member| {
            let mut lines = said.lines().map(|line| line.split(", "));
            let line = lines.find(|line| line.clone().next() == Some(&member.client.to_string()));
            line.is_some_and(|mut line| line.nth(4) == Some("true"))
        };
        let leader = self.members.iter().position(leads);
        leader.unwrap_or_else(|| panic!("{said}"))
    }

    /// Takes away all that a member that does not run has kept.
    pub fn wipe(&self, member: usize) {
        fs::remove_dir_all(self.data(member)).expect("its data");
    }

    /// Waits until each member that runs answers with a quorum.
    pub fn wait(&self) {
        let running = self.members.iter().filter(|one| one.process.runs());
        for member in running {
            wait_until("etcd is well", || is_well(member.health));
        }
    }

    /// Has etcdctl do something, which must go well. Returns what it says.
    pub fn order(&self, arguments: &str) -> String {
        let said = self.try_order(arguments);
        said.unwrap_or_else(|why| panic!("{arguments:?}: {why}"))
    }

    /// Has etcdctl do something. Returns what it says, or why it failed.
    pub fn try_order(&self, arguments: &str) -> Result<String, String> {
        let mut command = clean("etcdctl");
        command.env("ETCDCTL_API", "3");
        command.args(["--endpoints", &self.hosts(0)]);
        if let Some([certificate, key, authority]) = &self.tls {
            command.args(["--cacert", authority, "--cert", certificate, "--key", key]);
        }
        let output = command.args(words(arguments)).output().expect("etcdctl");
        let said = String::from_utf8_lossy(&output.stdout).into_owned();
        let failed = String::from_utf8_lossy(&output.stderr);
        match output.status.success() {
            true => Ok(said),
            false => Err(said + &failed),
        }
    }

    /// Registers a server that is said to listen there. Returns its key.
    pub fn register(&self, address: SocketAddr) -> String {
        let [id, incarnation] = [(); 2].map(|()| uuid::Uuid::new_v4().to_string());
        self.register_as(&id, &incarnation, address)
    }

    /// The same with this id and this incarnation.
    pub fn register_as(&self, id: &str, incarnation: &str, address: SocketAddr) -> String {
        let key = format!("{MEMBERS}{id}/{incarnation}");
        self.order(&format!(r#"put {key} {{"advertise":"{address}"}}"#));
        key
    }

    /// The keys of all servers that are registered.
    pub fn members(&self) -> Vec<String> {
        let keys = self.order(&format!("get --prefix --keys-only {MEMBERS}"));
        keys.split_whitespace().map(str::to_string).collect()
    }
}

/// Whether a member of etcd says that it and most of the others are well.
fn is_well(address: SocketAddr) -> bool {
    let patience = Duration::from_secs(1);
    let said = TcpStream::connect_timeout(&address, patience).and_then(|mut stream| {
        stream.set_read_timeout(Some(patience))?;
        stream.write_all(b"GET /health HTTP/1.0\r\n\r\n")?;
        let mut said = String::new();
        stream.read_to_string(&mut said)?;
        Ok(said)
    });
    said.is_ok_and(|said| said.contains("\"health\":\"true\""))
}

/// A kind of cluster.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    Redis,
    Sentinels,
    Etcd,
}

impl Kind {
    /// The programs that it needs.
    pub fn programs(self) -> &'static [&'static str] {
        match self {
            Kind::Redis => &["redis-server"],
            Kind::Sentinels => &["redis-server", "redis-sentinel"],
            Kind::Etcd => &["etcd", "etcdctl"],
        }
    }
}

/// What the servers of one cluster meet at.
pub enum Backend {
    Redis(Redis),
    Sentinels(Sentinels),
    Etcd(Etcd),
}

impl Backend {
    /// Starts it at these places: one for a Redis, five for Sentinels, which are the last three, and one for each member of etcd.
    pub fn start(kind: Kind, places: Vec<Place>) -> Self {
        match kind {
            Kind::Redis => {
                let (place, port) = (places[0].clone(), places[0].address(6379).port());
                Backend::Redis(Redis::start_at(place, port, ""))
            }
            Kind::Sentinels => Backend::Sentinels(Sentinels::start(&places)),
            Kind::Etcd => Backend::Etcd(Etcd::start_at(places, None, "")),
        }
    }

    /// What `--cluster` takes.
    pub fn url(&self) -> String {
        match self {
            Backend::Redis(redis) => redis.url(),
            Backend::Sentinels(all) => {
                let hosts = all.sentinels.iter().map(|one| one.address.to_string());
                let hosts: Vec<String> = hosts.collect();
                format!("redis-sentinel://{}/main", hosts.join(","))
            }
            Backend::Etcd(etcd) => etcd.url(),
        }
    }

    /// The single Redis.
    pub fn redis(&self) -> &Redis {
        match self {
            Backend::Redis(redis) => redis,
            _ => panic!("not a single Redis"),
        }
    }

    /// The two Redis and their Sentinels.
    pub fn sentinels(&self) -> &Sentinels {
        match self {
            Backend::Sentinels(sentinels) => sentinels,
            _ => panic!("no Sentinels"),
        }
    }

    /// The etcd.
    pub fn etcd(&self) -> &Etcd {
        match self {
            Backend::Etcd(etcd) => etcd,
            _ => panic!("no etcd"),
        }
    }

    /// The process of this Redis or member of etcd, and where it runs.
    pub fn process(&self, number: usize) -> (&Process, &Place) {
        match self {
            Backend::Redis(redis) => (&redis.process, &redis.place),
            Backend::Sentinels(all) => {
                let redis = &all.redis[number];
                (&redis.process, &redis.place)
            }
            Backend::Etcd(etcd) => {
                let member = &etcd.members[number];
                (&member.process, &member.place)
            }
        }
    }

    /// Waits until it is in order.
    pub fn settle(&self) {
        match self {
            Backend::Redis(_) => {}
            Backend::Sentinels(sentinels) => {
                sentinels.wait_for_master();
            }
            Backend::Etcd(etcd) => etcd.wait(),
        }
    }
}

/// Somebody who listens, and does this with each connection.
pub fn somebody(does: impl Fn(TcpStream) + Send + Sync + 'static) -> SocketAddr {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("a free port");
    let address = listener.local_addr().expect("its address");
    let does = Arc::new(does);
    std::thread::spawn(move || {
        for socket in listener.incoming().flatten() {
            let does = does.clone();
            std::thread::spawn(move || does(socket));
        }
    });
    address
}
