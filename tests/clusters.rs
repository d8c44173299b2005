//! A cluster of either kind on the loopback interface, and what holds for both kinds.

use std::collections::BTreeSet;
use std::fs;
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener};
use std::os::fd::OwnedFd;
use std::process::Stdio;
use std::sync::Mutex;
use std::time::{Duration, Instant};

use crate::support::backends::{Backend, Etcd, Kind, Place, Redis, Sentinel};
use crate::support::certificates::Authority;
use crate::support::http::get;
use crate::support::kernel::{shell, through};
use crate::support::manager::{Fate, Manager};
use crate::support::names::{
    DeafNameServer, Silent, UNSHARE_MOUNTS, alone_with_a_port, server_where,
};
use crate::support::watch::{Watch, watch};
use crate::support::way::Way;
use crate::support::{Client, Daemon, Scratch, fails, free_port, installed, wait_until, words};

/// What each test of both kinds runs on.
const KINDS: [Kind; 2] = [Kind::Redis, Kind::Etcd];

/// An id that servers share.
pub const ID: &str = "6f0c2a52-5f0e-4b7e-9a35-0c5f7f5a3c1e";

/// What is logged once when a server loses its cluster, and once more when it is back.
pub const CUT_OFF: &str = "cut off from the cluster";
pub const BACK: &str = "over: cut off from the cluster";

/// What WHO answers over etcd when etcd does not answer, when this server is not registered, when others may not be yet, and when
/// another does not answer.
pub const NO_MEMBERSHIP: &str =
    "ERR UNAVAILABLE the number of clients is unknown: etcd does not answer";
pub const OUTSIDE: &str =
    "ERR UNAVAILABLE the number of clients is unknown: this server is not registered";
pub const YOUNG: &str = "ERR UNAVAILABLE the number of clients is unknown: etcd may lack a server";
pub const ONE_OF_TWO: &str = "ERR UNAVAILABLE 1 of 2 servers answered, try again";
pub const TWO_OF_THREE: &str = "ERR UNAVAILABLE 2 of 3 servers answered, try again";

/// An address at which nobody listens now.
pub fn free_address() -> SocketAddr {
    SocketAddr::from((Ipv4Addr::LOCALHOST, free_port()))
}

/// A server of this cluster, with these arguments besides.
pub fn server(cluster: &str, arguments: &str) -> Daemon {
    let http = free_address();
    server_at(http, http, cluster, arguments)
}

/// One with its HTTP there, which says that it is at this address.
pub fn server_at(http: SocketAddr, says: SocketAddr, cluster: &str, arguments: &str) -> Daemon {
    let own = format!("--http {http} --advertise {says} --max-clients 32 --cluster {cluster}");
    let heartbeat = match cluster.starts_with("etcd") {
        true => "--cluster-heartbeat 250ms",
        false => "",
    };
    Daemon::start(words(&format!("{own} {heartbeat} {arguments}")))
}

/// A client that is known to count.
pub fn client(server: &Daemon) -> Client {
    let mut client = server.connect();
    assert_eq!(client.ask("WHY"), "42");
    client
}

/// Waits until all these clients are answered this number.
pub fn wait_for(askers: &mut [Client], clients: usize) -> Duration {
    let (begun, right) = (Instant::now(), clients.to_string());
    wait_until(&format!("all say {clients}"), || {
        let answers = askers.iter_mut().map(|asker| asker.ask("WHO"));
        answers.filter(|answer| *answer != right).count() == 0
    });
    begun.elapsed()
}

/// Asks WHO until it is answered by `then`; before that nothing may be answered but what begins as one of `allowed`. Returns how
/// long that took.
pub fn answers_until(client: &mut Client, allowed: &[&str], then: &str) -> Duration {
    let begun = Instant::now();
    wait_until(&format!("WHO is {then}"), || {
        let asked = Instant::now();
        let answer = client.ask("WHO");
        assert!(asked.elapsed() < Duration::from_secs(5), "{answer}");
        let is_known = answer == then || allowed.iter().any(|known| answer.starts_with(known));
        assert!(is_known, "{answer} is neither {then} nor {allowed:?}");
        answer == then
    });
    begun.elapsed()
}

/// For this long, these clients must be answered this number.
pub fn all_say_for(time: Duration, askers: &mut [Client], clients: usize) {
    let (begun, right) = (Instant::now(), clients.to_string());
    while begun.elapsed() < time {
        for asker in &mut *askers {
            assert_eq!(asker.ask("WHO"), right, "after {:?}", begun.elapsed());
        }
        std::thread::park_timeout(Duration::from_millis(3));
    }
}

/// Tests these rows, four at a time: most of that time is waiting.
pub fn at_once<T: Send>(rows: impl IntoIterator<Item = T>, test: impl Fn(T) + Sync) {
    let rows: Vec<T> = rows.into_iter().collect();
    let rows = Mutex::new(rows);
    let next = || rows.lock().unwrap().pop();
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| std::iter::from_fn(next).for_each(&test));
        }
    });
}

/// Stops its process, and waits until it has.
pub fn stop(server: &Daemon) {
    server.signal("STOP");
    let status = format!("/proc/{}/status", server.pid());
    wait_until("it stands still", || {
        let status = std::fs::read_to_string(&status).expect("it lives");
        status.contains("State:\tT")
    });
}

/// The value of a sample of the metrics, by its name after `blockchain_tcpd_`.
pub fn sample(server: &Daemon, name: &str) -> f64 {
    let metrics = get(server.http(), "/metrics").body;
    let name = format!("blockchain_tcpd_{name} ");
    let value = metrics.lines().find_map(|line| line.strip_prefix(&name));
    let value = value.unwrap_or_else(|| panic!("no {name} in {metrics}"));
    value.parse().expect("a number")
}

/// A sample about the cluster.
pub fn figure(server: &Daemon, name: &str) -> f64 {
    sample(server, &format!("cluster_{name}"))
}

/// How many attempts to reach the cluster failed in this way.
pub fn errors(server: &Daemon, kind: &str) -> f64 {
    figure(server, &format!("errors_total{{kind=\"{kind}\"}}"))
}

/// Waits until attempts fail in this way, more than once.
pub fn wait_for_errors(server: &Daemon, kind: &str) {
    wait_until(kind, || errors(server, kind) > 1.0);
}

pub fn wait_until_connected(server: &Daemon) {
    wait_until("connected", || figure(server, "connected") == 1.0);
}

/// How many lines of the log say that this server is cut off, and that this is over.
pub fn said(server: &Daemon) -> (usize, usize) {
    let log = server.log().lines().join("\n");
    let over = log.matches(BACK).count();
    (log.matches(CUT_OFF).count() - over, over)
}

/// Waits until the log says that this server does not reach its cluster. Returns the line, in which these words must be.
pub fn cut_off_by(server: &Daemon, words: &str) -> String {
    let line = server.log().wait_for(CUT_OFF);
    assert!(line.contains(words), "no {words:?} in {line}");
    line
}

/// A file with this text. Returns its path.
pub fn file(directory: &Scratch, name: &str, text: &str) -> String {
    let file = directory.path().join(name);
    fs::write(&file, text).expect("the directory is ours");
    file.to_str().expect("UTF-8").to_string()
}

/// Servers of one cluster, and a client of each that asks.
pub struct Cluster {
    pub backend: Backend,
    pub servers: Vec<Daemon>,
    pub askers: Vec<Client>,
}

impl Cluster {
    /// Runs `test` on this number of servers that know each other, unless a program is not installed.
    pub fn with(kind: Kind, servers: usize, test: impl FnOnce(Cluster)) {
        let is_installed = |program: &&str| installed(program);
        if !kind.programs().iter().all(is_installed) {
            return;
        }
        let place = Place::local(Ipv4Addr::LOCALHOST);
        let mut cluster = Cluster {
            backend: Backend::start(kind, vec![place]),
            servers: Vec::new(),
            askers: Vec::new(),
        };
        (0..servers).for_each(|_| cluster.add(""));
        cluster.wait_for(servers);
        test(cluster);
    }

    /// Runs `test` on either kind, one after the other.
    fn with_each(servers: usize, test: impl Fn(Kind, Cluster)) {
        for kind in KINDS {
            Cluster::with(kind, servers, |cluster| test(kind, cluster));
        }
    }

    /// A further server, with these arguments besides.
    pub fn server(&self, arguments: &str) -> Daemon {
        server(&self.backend.url(), arguments)
    }

    /// Adds one, and a client of it that asks.
    pub fn add(&mut self, arguments: &str) {
        self.servers.push(self.server(arguments));
        self.askers.extend(self.servers.last().map(client));
    }

    /// So many more clients, of one server after the other.
    pub fn clients(&self, number: usize) -> Vec<Client> {
        let servers = self.servers.iter().cycle();
        servers.take(number).map(client).collect()
    }

    /// What each server answers to WHO.
    pub fn who(&mut self) -> Vec<String> {
        let askers = self.askers.iter_mut();
        askers.map(|asker| asker.ask("WHO")).collect()
    }

    /// Waits until each server has sent this number of heartbeats more.
    pub fn wait_for_heartbeats(&self, number: usize) {
        let sent = |server: &Daemon| figure(server, "heartbeats_total");
        let due = |server| (server, sent(server) + number as f64);
        let due: Vec<_> = self.servers.iter().map(due).collect();
        for (server, due) in due {
            wait_until("heartbeats", || sent(server) >= due);
        }
    }

    /// Waits until all answer this number.
    pub fn wait_for(&mut self, clients: usize) -> Duration {
        wait_for(&mut self.askers, clients)
    }
}

/// SIGUSR2 in each, one after the other, and WHO is asked everywhere all the while.
#[test]
fn who_is_right_while_each_server_is_replaced_by_the_next_program() {
    Cluster::with_each(3, |_, mut cluster| {
        let clients = cluster.clients(9);
        cluster.wait_for(12);
        for _ in 0..3 {
            let watches: Vec<Watch> = cluster.askers.drain(..).map(watch).collect();
            for server in &cluster.servers {
                let before = sample(server, "handovers_total");
                server.signal("USR2");
                wait_until("the next program serves", || {
                    sample(server, "handovers_total") > before
                });
            }
            // A server that lost its place is missed with its next heartbeat.
            cluster.wait_for_heartbeats(2);
            for watch in watches {
                let (answers, asker) = watch.end();
                let wrong = answers.iter().find(|answer| *answer != "12");
                assert_eq!(wrong, None, "of {}", answers.len());
                cluster.askers.push(asker);
            }
        }
        for server in &cluster.servers {
            assert_eq!(said(server), (0, 0));
        }
        drop(clients);
    });
}

/// WHERE is not unique then, which is said and shown.
#[test]
fn servers_of_one_id_are_each_counted_and_named() {
    const SAME: &str = "another server of the cluster has the same id";
    Cluster::with_each(1, |_, mut cluster| {
        (0..2).for_each(|_| cluster.add(&format!("--server-id {ID}")));
        cluster.wait_for(3);
        for twin in &cluster.servers[1..] {
            twin.log().wait_for(SAME);
            wait_until("it shows", || figure(twin, "shares_id") == 1.0);
        }
        all_say_for(Duration::from_millis(1500), &mut cluster.askers, 3);
        assert_eq!(figure(&cluster.servers[0], "shares_id"), 0.0);
        cluster.askers.pop();
        cluster.servers.pop().expect("the second twin").stop();
        let other = &cluster.servers[1];
        other.log().wait_for(&format!("over: {SAME}"));
        wait_until("it shows", || figure(other, "shares_id") == 0.0);
        let log = other.log().lines().join("\n");
        assert_eq!(log.matches(SAME).count(), 2, "{log}");
        assert_eq!(cluster.who(), ["2"; 2]);
    });
}

/// What the servers meet at is away, which is no reason not to start.
#[test]
fn servers_start_without_their_backend_and_find_it_later() {
    Cluster::with_each(0, |kind, mut cluster| {
        cluster.backend.process(0).0.kill();
        (0..2).for_each(|_| cluster.add(""));
        let alone = if kind == Kind::Etcd {
            NO_MEMBERSHIP
        } else {
            "1"
        };
        for answer in cluster.who() {
            assert!(answer.starts_with(alone), "{answer}");
        }
        match &cluster.backend {
            Backend::Etcd(etcd) => etcd.run(0),
            other => other.redis().run(""),
        }
        // etcd may take a second, and its leases two.
        let (allowed, bound): (&[&str], _) = match kind {
            Kind::Etcd => (&[NO_MEMBERSHIP, OUTSIDE, YOUNG, ONE_OF_TWO], 20),
            _ => (&["1"], 3),
        };
        let back = Instant::now();
        for asker in &mut cluster.askers {
            answers_until(asker, allowed, "2");
        }
        assert!(back.elapsed() < Duration::from_secs(bound));
        for server in &cluster.servers {
            // Clients may be answered before it is said.
            server.log().wait_for(BACK);
            let (begun, over) = said(server);
            // Over etcd the reason may change meanwhile.
            assert!(begun == 1 || kind == Kind::Etcd && begun > 1, "{begun}");
            assert_eq!(over, 1);
        }
        let ending = Instant::now();
        cluster.servers.pop().expect("the second").stop();
        assert!(ending.elapsed() < Duration::from_secs(5));
    });
}

/// A service manager, and the sockets that it passes.
struct Socket {
    manager: Manager,
    listener: TcpListener,
    http: SocketAddr,
}

impl Socket {
    /// Starts a process that goes on with the handover state of the one before, if there is one.
    fn start(&self, state: Option<OwnedFd>, cluster: &str) -> Daemon {
        let script = shell("exec 3<&0 4<&1 </dev/null >/dev/null; export LISTEN_PID=$$");
        let mut command = through(&script.each_ref().map(String::as_str));
        let (number, names) = match state {
            Some(_) => ("2", "line:handover"),
            None => ("1", "line"),
        };
        let http = self.http.to_string();
        command
            .args(["--http", &http, "--advertise", &http])
            .args(["--max-clients", "512", "--cluster", cluster])
            .env("NOTIFY_SOCKET", self.manager.path())
            .envs([("LISTEN_FDS", number), ("LISTEN_FDNAMES", names)])
            .stdin(OwnedFd::from(self.listener.try_clone().expect("a socket")))
            .stdout(state.map_or_else(Stdio::null, Stdio::from));
        Daemon::run(command)
    }
}

/// `systemctl restart`: systemd keeps the clients, and what they send meanwhile, until the next process takes them. Nobody takes
/// that for none.
#[test]
fn the_clients_of_a_server_that_systemd_restarts_are_counted_all_the_while() {
    Cluster::with_each(3, |kind, mut cluster| {
        let socket = Socket {
            manager: Manager::new(),
            listener: TcpListener::bind("127.0.0.1:0").expect("a free port"),
            http: free_address(),
        };
        let mut server = socket.start(None, &cluster.backend.url());
        let mut clients: Vec<Client> = (0..300).map(|_| client(&server)).collect();
        cluster.wait_for(303);
        let asking = cluster.askers.drain(..).chain(clients.drain(..2));
        let watches: Vec<Watch> = asking.map(watch).collect();
        for _ in 0..3 {
            let kept = socket.manager.store(Fate::Kept);
            server.stop();
            let kept = kept.join().expect("it keeps them");
            assert!(kept.is_some());
            server = socket.start(kept, &cluster.backend.url());
        }
        // Until the clients would be forgotten if no server counted them.
        cluster.wait_for_heartbeats(if kind == Kind::Etcd { 12 } else { 6 });
        for watch in watches {
            let (answers, asker) = watch.end();
            let said: BTreeSet<String> = answers.into_iter().collect();
            let may_lack =
                |answer: &str| kind == Kind::Etcd && answer.starts_with("ERR UNAVAILABLE ");
            let wrong = said.iter().find(|said| *said != "303" && !may_lack(said));
            assert_eq!(wrong, None);
            assert!(said.contains("303"), "it never answered a number: {said:?}");
            cluster.askers.push(asker);
        }
        cluster.wait_for(303);
        assert!(clients.iter_mut().all(|client| client.ask("WHY") == "42"));
        assert_eq!(figure(&server, "servers"), 4.0);
        // It is heard still.
        clients.push(client(&server));
        let heard = cluster.wait_for(304);
        // Over etcd nothing is told: it is asked, and may be late on a busy machine.
        assert!(kind == Kind::Etcd || heard < Duration::from_secs(1));
        assert_eq!(sample(&server, "handovers_total"), 3.0);
    });
}

/// Neither an authority that has not signed the certificate, nor another name, nor no TLS at all.
#[test]
fn tls_is_spoken_with_those_whom_the_authority_certifies_and_nobody_else() {
    needs!("openssl");
    KINDS.into_iter().for_each(speaks_tls);
}

fn speaks_tls(kind: Kind) {
    const CERTIFICATE: &str = "invalid peer certificate";
    if !kind.programs().iter().all(|program| installed(program)) {
        return;
    }
    let authority = Authority::new();
    authority.certify("server", "/CN=server");
    let files = ["server.crt", "server.key", "ca.crt"].map(|file| authority.path(file));
    let ours = files[2].clone();
    let (port, redis, etcd);
    let (tls, plain, without_tls) = match kind {
        Kind::Etcd => {
            etcd = Etcd::start_with(1, Some(files), "");
            port = etcd.address(0).port();
            ("etcds", "etcd", etcd.health_address())
        }
        _ => {
            port = free_port();
            let [certificate, key, authority] = &files;
            redis = Redis::start(&format!(
                "--tls-port {port} --tls-auth-clients no --tls-cert-file {certificate} --tls-key-file {key} \
                 --tls-ca-cert-file {authority}"
            ));
            ("rediss", "redis", redis.address())
        }
    };
    let url = format!("{tls}://127.0.0.1:{port}");
    let servers = [(); 2].map(|()| server(&url, &format!("--cluster-ca-file {ours}")));
    wait_for(&mut servers.each_ref().map(client), 2);
    let others = Authority::new();
    let theirs = others.path("ca.crt");
    for (url, authority, said) in [
        (&*url, &theirs, CERTIFICATE),
        (&format!("{tls}://localhost:{port}"), &ours, CERTIFICATE),
        (&format!("{plain}://127.0.0.1:{port}"), &ours, ""),
        (&format!("{tls}://{without_tls}"), &ours, ""),
    ] {
        let stranger = server(url, &format!("--cluster-ca-file {authority}"));
        cut_off_by(&stranger, said);
        assert_eq!(figure(&stranger, "connected"), 0.0, "{url}");
        assert!(
            said.is_empty() || errors(&stranger, "denied") > 0.0,
            "{url}"
        );
    }
    wait_for(&mut servers.each_ref().map(client), 2);
}

/// Whichever address of a host the system names first: the backend is at the one, and then at the other.
#[test]
fn an_address_that_says_nothing_is_left_for_the_next() {
    needs!(run & UNSHARE_MOUNTS);
    Cluster::with_each(0, |_, cluster| {
        let (url, ips) = (cluster.backend.url(), [[127, 66, 0, 11], [127, 77, 0, 12]]);
        let (scheme, backend) = url.split_once("://").expect("a URL");
        let hosts = ips.map(|ip| format!("{} place.example\n", Ipv4Addr::from(ip)));
        let mut tried = 0;
        for (up, down) in [(ips[0], ips[1]), (ips[1], ips[0])] {
            let way = Way::at(SocketAddr::from((up, 0)), backend.parse().expect("one"));
            let port = way.address.port();
            let silent = Silent::at(SocketAddr::from((down, port)));
            let name = format!("{scheme}://place.example:{port}");
            let mut server = server_where("/etc/hosts", &hosts.concat(), &name);
            wait_until_connected(&server);
            wait_for(&mut [client(&server)], 1);
            tried += usize::from(silent.was_tried());
            server.signal("TERM");
            server.wait();
        }
        assert_eq!(tried, 1);
    });
}

/// What localhost is stands in /etc/hosts.
#[test]
fn a_name_that_no_name_server_answers_for_delays_no_other() {
    needs!(run & UNSHARE_MOUNTS);
    needs!("redis-sentinel");
    let Some(deaf) = DeafNameServer::start() else {
        return;
    };
    Cluster::with_each(0, |_, cluster| {
        let sentinel;
        let cluster = match &cluster.backend {
            Backend::Etcd(etcd) => format!("etcd://dead.example,{}", localhost(etcd.address(0))),
            other => {
                sentinel = Sentinel::start(other.redis().address(), "");
                let address = localhost(sentinel.address);
                format!("redis-sentinel://dead.example,{address}/main")
            }
        };
        let server = server_where("/etc/resolv.conf", &deaf.conf(), &cluster);
        wait_until_connected(&server);
        let log = server.log().lines().join("\n");
        assert!(!log.contains("can't find the address"), "{log}");
        wait_for(&mut [client(&server)], 1);
    });
}

/// The same address, with the name of this host.
pub fn localhost(address: SocketAddr) -> String {
    assert_eq!(address.ip(), IpAddr::from(Ipv4Addr::LOCALHOST));
    format!("localhost:{}", address.port())
}

#[test]
fn one_that_is_connected_to_itself_has_no_backend() {
    needs!(run & UNSHARE_MOUNTS);
    for scheme in ["redis", "etcd"] {
        let daemon = env!("CARGO_BIN_EXE_blockchain-tcpd");
        let server = alone_with_a_port(daemon, |mut command| {
            let http = ["--http", "127.0.0.1:4280", "--advertise", "127.0.0.1:4280"];
            let cluster = ["--cluster", &format!("{scheme}://127.0.0.1:50002")];
            command.args(["--listen", "127.0.0.1:4242"]).args(http);
            command.args(cluster);
            Daemon::run(command)
        });
        cut_off_by(&server, "127.0.0.1:50002: Connection refused");
    }
}

/// Settings, and what is said about them.
const WRONG: &str = r#"
--cluster memcached://127.0.0.1 => no scheme "memcached"
--cluster redis://nowhere.invalid => can't find the address of nowhere.invalid:6379
--cluster redis://u:secret@127.0.0.1 => --cluster-password-file
REDIS --cluster-name a·b => --cluster-name is "a b"
REDIS --cluster-name {x} => --cluster-name is "{x}"
REDIS --cluster-password-file FILES/missing => missing: No such file
REDIS --cluster-password-file FILES/empty => must hold one line
REDIS --cluster-password-file FILES/two => must hold one line
REDIS --cluster-password-file /dev/zero => /dev/zero: it is not a regular file
REDIS --cluster-password-file /proc/self/mem => /proc/self/mem
REDIS --cluster-user-file FILES/user => without a password
REDIS --cluster-sentinel-user-file FILES/user => give it a --cluster-sentinel-password-file
REDIS --cluster-sentinel-password-file FILES/empty => must hold one line
REDIS --cluster-ca-file FILES/user => holds no whole certificate
REDIS --cluster-ca-file FILES/half => holds no whole certificate
ETCD => needs --advertise
ETCD --http 127.0.0.1:0 => needs --advertise
ETCD --http= --advertise 127.0.0.1:1 => needs HTTP
ETCD --http 127.0.0.1:0 --advertise 127.0.0.1:0 => can't be any
ETCD --http 127.0.0.1:0 --advertise 0.0.0.0:4280 => --advertise
"#;

#[test]
fn settings_that_cannot_work_are_said_at_start() {
    let files = Scratch::new();
    file(&files, "empty", "");
    file(&files, "two", "one\ntwo\n");
    file(&files, "user", "someone\n");
    file(&files, "half", "-----BEGIN CERTIFICATE-----\nAAAA\n");
    let folder = files.path().to_str().expect("UTF-8");
    let rows = WRONG.replace("FILES", folder);
    let rows = rows.replace("REDIS", "--cluster redis://127.0.0.1:1");
    let rows = rows.replace("ETCD", "--cluster etcd://127.0.0.1:1");
    for row in rows.trim().lines() {
        let (settings, why) = row.split_once(" => ").expect("two parts");
        for check in ["", " --check"] {
            let (status, said) = fails(words(&format!("--listen=127.0.0.1:0 {settings}{check}")));
            assert_eq!(status, 78, "{said}");
            assert!(said.contains(why), "{why}: {said}");
            assert!(!said.contains("secret"), "{said}");
        }
    }
}
