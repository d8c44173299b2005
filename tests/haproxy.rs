//! The example for HAProxy, as it is shipped: only addresses and paths are the test's own. Before three daemons, with the
//! certificates that its comments make and clients that ask as its comments do.

use std::collections::BTreeSet;
use std::fs;
use std::io::Write as _;
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpStream};
use std::path::Path;
use std::process::{ChildStdin, Command, Stdio};

use crate::handover::replace;
use crate::support::http::try_get;
use crate::support::kernel::{is_root, own_address};
use crate::support::registry::python;
use crate::support::{
    Client, Daemon, Log, Process, Scratch, clean, located_in_shell, program, wait_until,
};

const EXAMPLE: &str = include_str!("../packaging/haproxy/haproxy.cfg");

/// Where the clients of the tests come from: neither HAProxy's own address nor a daemon's.
const ALICE: Ipv4Addr = Ipv4Addr::new(127, 0, 3, 1);

/// The lines of the example that begin so, without that.
fn comments(start: &str) -> Vec<&'static str> {
    let lines = EXAMPLE.lines().filter_map(|line| line.strip_prefix(start));
    lines.collect()
}

/// The commands in the comments of the example that begin so.
fn commands(start: &str) -> Vec<&'static str> {
    let mut commands = comments("#     ");
    commands.retain(|line| line.starts_with(start));
    assert!(!commands.is_empty(), "{start}");
    commands
}

/// The command in them that has this word.
fn command(start: &str, word: &str) -> &'static str {
    let mut commands = commands(start).into_iter();
    commands.find(|line| line.contains(word)).expect(word)
}

/// The settings of the daemon in them.
fn settings() -> Vec<&'static str> {
    let settings = comments("#         ");
    assert_eq!(settings.len(), 2);
    settings
}

/// Runs a shell's commands in a folder; they must succeed. Returns what they printed.
fn sh(within: &Path, script: &str) -> String {
    let mut shell = clean("bash");
    let commands = located_in_shell() + script;
    shell.args(["-e", "-o", "pipefail", "-c", &commands]);
    let output = shell.current_dir(within).output().expect("it runs");
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{script}: {said}");
    String::from_utf8_lossy(&output.stdout).into_owned()
}

/// Three daemons behind HAProxy.
struct Site {
    folder: Scratch,
    /// Where each of the daemons listens, for clients on port 4242 and for HTTP on port 4280.
    addresses: Vec<IpAddr>,
    /// Those that run.
    servers: Vec<Option<Daemon>>,
    /// Where clients go.
    address: SocketAddr,
    balancer: Process,
}

/// A daemon with the settings that the example asks for.
fn server(address: IpAddr, arguments: &[&str]) -> Daemon {
    let at = |port| SocketAddr::new(address, port).to_string();
    let mut command = program();
    command.args(["--listen", &at(4242), "--http", &at(4280)]);
    command.args(["--listen", &format!("grpc://{}", at(4244))]);
    command.args(["--listen", &format!("http://{}", at(8080))]);
    command.args(["--log", "debug"]).args(arguments);
    for setting in settings() {
        let (variable, value) = setting.split_once('=').expect("a setting");
        command.env(variable, value.replace("192.0.2.1", "127.0.0.1"));
    }
    Daemon::run(command)
}

impl Site {
    /// Starts all of it, or nothing if a program is missing. `change` makes a line of the example another.
    fn start(arguments: &[&str], change: (&str, &str)) -> Option<Self> {
        needs!("haproxy", "openssl", "socat");
        let folder = Scratch::new();
        let path = folder.path().to_str().expect("a plain path").to_string();
        let addresses: Vec<IpAddr> = (0..3).map(|_| own_address().ip()).collect();
        let servers = addresses.iter();
        let servers = servers.map(|address| Some(server(*address, arguments)));
        let servers = servers.collect();
        let address = SocketAddr::new(own_address().ip(), 4243);
        for command in commands("openssl").into_iter().chain(commands("(umask")) {
            sh(folder.path(), command);
        }
        if !change.1.is_empty() {
            revoke(folder.path());
        }
        assert!(EXAMPLE.contains(change.0), "{}", change.0);
        let mut config = EXAMPLE
            .replace(change.0, change.1)
            .replace("/etc/haproxy/", &format!("{path}/"))
            .replace("/run/haproxy/admin.sock", &format!("{path}/admin.sock"))
            .replace("/dev/log local0", "stderr format raw local0")
            .replace("bind :", &format!("bind {}:", address.ip()));
        for (number, address) in addresses.iter().enumerate() {
            let example = format!("192.0.2.1{}:", number + 1);
            assert!(config.contains(&example));
            config = config.replace(&example, &format!("{address}:"));
        }
        if !is_root() {
            for privileged in ["user ", "group ", "chroot "] {
                config = config.replace(&format!("    {privileged}"), "    # ");
            }
        }
        fs::write(folder.path().join("haproxy.cfg"), config).expect("written");
        let check = commands("haproxy -c")[0].replace("/etc/haproxy/", "");
        sh(folder.path(), &check);
        let mut haproxy = clean("haproxy");
        haproxy.args(["-db", "-f", "haproxy.cfg"]);
        haproxy.current_dir(folder.path()).stdout(Stdio::null());
        let balancer = Process::start(haproxy);
        wait_until("it accepts", || TcpStream::connect(address).is_ok());
        Some(Site {
            folder,
            addresses,
            servers,
            address,
            balancer,
        })
    }

    /// The same as it is shipped.
    fn shipped(arguments: &[&str]) -> Option<Self> {
        Self::start(arguments, ("", ""))
    }

    fn server(&self, number: usize) -> &Daemon {
        self.servers[number].as_ref().expect("it runs")
    }

    /// How many clients each of the daemons has.
    fn clients(&self) -> Vec<Option<usize>> {
        let clients = |address: &IpAddr| {
            let metrics = try_get(SocketAddr::new(*address, 4280), "/metrics", "").ok()?;
            let (_, clients) = metrics.body.split_once("\nblockchain_tcpd_clients ")?;
            clients.lines().next()?.parse().ok()
        };
        self.addresses.iter().map(clients).collect()
    }

    fn wait_for_clients(&self, expected: [Option<usize>; 3]) {
        let what = format!("{expected:?} clients");
        wait_until(&what, || self.clients() == expected);
    }

    /// Waits until HAProxy has said so often that this server is up or down.
    fn wait_for_check(&self, number: usize, state: &str, times: usize) {
        let said = format!("Server blockchain-tcpd/ledger{} is {state}", number + 1);
        wait_until(&said, || {
            let lines = self.balancer.log.lines();
            lines.iter().filter(|line| line.starts_with(&said)).count() == times
        });
    }

    /// The arguments of the example's client, with another certificate or none.
    fn arguments(&self, certificate: Option<&str>) -> Vec<String> {
        let line = commands("printf")[0];
        let (_, client) = line.split_once("| openssl ").expect("a client");
        let client = client.replace("ledger.example.org:4243", &self.address.to_string());
        let client = match certificate {
            Some(name) => client.replace("alice", name),
            None => client.replace("-cert alice.pem -key alice.key", ""),
        };
        let client = format!("{client} -bind {ALICE}:0");
        client.split_whitespace().map(str::to_string).collect()
    }

    fn connect(&self, certificate: Option<&str>) -> TlsClient {
        TlsClient::start(self.folder.path(), &self.arguments(certificate))
    }

    /// A client with the right certificate, that has been answered once.
    fn alice(&self) -> TlsClient {
        let mut alice = self.connect(Some("alice"));
        assert_eq!(alice.ask("WHY"), "42");
        alice
    }

    /// Runs the example's command with this word, which is for HAProxy; returns what that says.
    fn tell(&self, word: &str) -> String {
        let command = command("echo", word).replace("/run/haproxy/", "./");
        sh(self.folder.path(), &command)
    }

    /// What WHO answers without HAProxy, to a client that counts, too.
    fn who(&self, number: usize) -> usize {
        let address = SocketAddr::new(self.addresses[number], 4242);
        let mut client = Client::connect_from(ALICE, address).expect("it accepts");
        client.ask("WHO").parse().expect("a number")
    }
}

/// Makes `revoked.pem`, the list with bob's certificate on it.
fn revoke(within: &Path) {
    sh(within, &command("openssl", "alice").replace("alice", "bob"));
    let ca = authority(within);
    let revoke = format!("{ca} -revoke bob.pem\n{ca} -gencrl -out revoked.pem");
    sh(within, &revoke);
}

/// The start of a command that has the example's authority issue or revoke, with its books in this folder.
fn authority(within: &Path) -> &'static str {
    let config = "[ca]\ndefault_ca = d\n[d]\ndatabase = index\nrand_serial = yes\nnew_certs_dir = .\n\
        default_md = sha256\ndefault_crl_days = 1\ncopy_extensions = copy\npolicy = p\n[p]\ncommonName = supplied\n";
    fs::write(within.join("ca.cnf"), config).expect("written");
    fs::write(within.join("index"), "").expect("written");
    "openssl ca -batch -config ca.cnf -keyfile ca.key -cert ca.pem"
}

/// `openssl s_client`.
struct TlsClient {
    process: Process,
    input: ChildStdin,
    output: Log,
    read: usize,
}

impl TlsClient {
    fn start(within: &Path, arguments: &[String]) -> Self {
        let mut command: Command = clean("openssl");
        command.args(arguments).current_dir(within);
        command.stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut process = Process::start(command);
        let input = process.child.stdin.take().expect("piped");
        let output = process.child.stdout.take().expect("piped");
        TlsClient {
            process,
            input,
            output: Log::follow(output),
            read: 0,
        }
    }

    fn send(&mut self, line: &str) {
        // It may have been refused already.
        let _ = writeln!(self.input, "{line}");
    }

    /// The next line, or nothing at the end.
    fn line(&mut self) -> Option<String> {
        let mut line = None;
        wait_until("a line or the end", || {
            line = self.output.lines().get(self.read).cloned();
            line.is_some() || self.process.child.try_wait().expect("our child").is_some()
        });
        // At its end there may have been one more.
        let whole = || {
            self.output
                .whole()
                .lines()
                .nth(self.read)
                .map(str::to_string)
        };
        let line = line.or_else(whole);
        self.read += 1;
        line
    }

    fn ask(&mut self, request: &str) -> String {
        self.send(request);
        let line = self.line();
        line.unwrap_or_else(|| panic!("an end: {}", self.process.log.whole()))
    }
}

/// How many of these clients are answered 42; the others have been cut off.
fn answered(clients: &mut [TlsClient]) -> usize {
    let ask = |client: &mut TlsClient| {
        client.send("WHY");
        client.line().inspect(|line| assert_eq!(line, "42"))
    };
    clients.iter_mut().filter_map(ask).count()
}

/// The right certificate is admitted and counts where it is sent; a wrong one, none and an expired one are not, and no other
/// client notices anything of them.
#[test]
fn a_client_without_the_right_certificate_reaches_no_server() {
    let Some(site) = Site::shipped(&["--max-clients", "16"]) else {
        return;
    };
    let example =
        commands("printf")[0].replace("ledger.example.org:4243", &site.address.to_string());
    assert_eq!(sh(site.folder.path(), &example), "1\nBYE\n");
    let mut alice = site.alice();
    assert_eq!(alice.ask("WHO"), "1");
    wait_until("it is one of one", || {
        site.clients().iter().flatten().sum::<usize>() == 1
    });

    // Another authority of the same name, and a certificate of ours that was valid until yesterday.
    let other = Scratch::new();
    for command in commands("openssl") {
        sh(other.path(), &command.replace("alice", "mallory"));
    }
    // `openssl x509` of version 3.5 issues nothing that is over.
    let (request, _) = command("openssl", "alice")
        .split_once(" | ")
        .expect("a request");
    let request = request.replace("alice", "expired");
    let dates = "-startdate 20200101000000Z -enddate 20200102000000Z";
    let ca = authority(site.folder.path());
    let issue = format!("{ca} {dates} -notext -in /dev/stdin -out expired.pem");
    sh(site.folder.path(), &format!("{request} | {issue}"));
    for file in ["mallory.pem", "mallory.key"] {
        fs::copy(other.path().join(file), site.folder.path().join(file)).expect("copied");
    }
    // The codes of openssl-verify(1).
    let untrusted = ["verify=19", "verify=20", "verify=7", "verify=30"];
    for (certificate, reasons) in [
        (Some("mallory"), &untrusted[..]),
        (None, &["peer did not return a certificate"]),
        (Some("expired"), &["verify=10"]),
        // A certificate for servers is not one for clients.
        (Some("server"), &["verify=26"]),
    ] {
        let before = site.balancer.log.lines().len();
        let mut refused = site.connect(certificate);
        refused.send("WHO");
        assert_eq!(refused.line(), None, "{certificate:?}");
        wait_until(&format!("{certificate:?} is logged"), || {
            let lines = site.balancer.log.lines();
            let mut refusals = lines[before..]
                .iter()
                .filter(|line| line.contains(" refused: "));
            let why = |line: &String| reasons.iter().any(|reason| line.contains(reason));
            refusals.any(why)
        });
    }
    // Nor does one without TLS, or one that trusts another authority than the server's.
    let mut plain = Client::connect(site.address).expect("it accepts");
    plain.send("WHO\nWHERE\nWHY\n");
    assert!(!plain.whatever_comes().contains("42"));
    let mut mistrusting = site.arguments(Some("alice"));
    let others = other.path().join("ca.pem");
    for argument in mistrusting
        .iter_mut()
        .filter(|argument| *argument == "ca.pem")
    {
        *argument = others.to_str().expect("UTF-8").to_string();
    }
    let mut mistrusting = TlsClient::start(site.folder.path(), &mistrusting);
    mistrusting.send("WHO");
    assert_eq!(mistrusting.line(), None);

    assert_eq!(alice.ask("WHO"), "1");
    assert_eq!(alice.ask("QUIT"), "BYE");
    site.wait_for_clients([Some(0); 3]);
    // HAProxy and the daemon call her by the same address, which is neither's.
    let hers = format!("{ALICE}:");
    let is_hers = |line: &String| line.starts_with(&hers) && line.contains("\"alice\"");
    wait_until("her connection is logged", || {
        site.balancer.log.lines().iter().any(is_hers)
    });
    let served = site.balancer.log.lines().into_iter().find(is_hers);
    let served = served.expect("found");
    let to = " \"alice\" blockchain-tcpd/ledger";
    assert!(served.contains(to), "{served}");
    let logs = site.servers.iter().flatten();
    let logs: Vec<String> = logs.flat_map(|server| server.log().lines()).collect();
    let logs = logs.join("\n");
    assert_eq!(logs.matches(" accepted ").count(), 2, "{logs}");
    let address = served.split(' ').next().expect("an address");
    assert!(logs.contains(&format!(" peer={address}")), "{logs}");
    assert!(logs.contains(" proxy=127.0.0.1:"), "{logs}");
}

/// With the list that the example speaks of.
#[test]
fn a_revoked_certificate_is_refused() {
    let listed = "verify required crl-file /etc/haproxy/revoked.pem";
    assert!(EXAMPLE.contains(listed.trim_start_matches("verify required ")));
    let with_list = ("verify required\n", &*format!("{listed}\n"));
    let Some(site) = Site::start(&["--max-clients", "4"], with_list) else {
        return;
    };
    site.alice();
    let mut revoked = site.connect(Some("bob"));
    revoked.send("WHO");
    assert_eq!(revoked.line(), None);
    site.balancer.log.wait_for("verify=23");
}

#[test]
fn clients_go_where_the_fewest_are_and_none_to_a_server_that_drains_or_is_full() {
    let Some(mut site) = Site::shipped(&["--max-clients", "3", "--queue", "0"]) else {
        return;
    };
    let mut clients: Vec<TlsClient> = (0..6).map(|_| site.alice()).collect();
    site.wait_for_clients([Some(2); 3]);
    assert_eq!(site.who(0), 3);

    // Full: out, but its clients stay. Alone for a while, because the client that fills it did not come through HAProxy.
    let address = SocketAddr::new(site.addresses[1], 4242);
    let mut one_more = Client::connect_from(ALICE, address).expect("it accepts");
    assert_eq!(one_more.ask("WHO"), "3");
    site.wait_for_check(1, "DOWN", 1);
    clients.push(site.alice());
    clients.push(site.alice());
    site.wait_for_clients([Some(3), Some(3), Some(3)]);
    assert_eq!(answered(&mut clients), 8);
    for number in [0, 2] {
        site.wait_for_check(number, "DOWN", 1);
    }
    drop(one_more);
    site.wait_for_check(1, "UP", 1);
    clients.truncate(6);
    site.wait_for_clients([Some(2); 3]);
    for number in [0, 2] {
        site.wait_for_check(number, "UP", 1);
    }

    // By hand, as the example says.
    site.tell("state drain");
    clients.push(site.alice());
    assert_eq!(site.clients()[0], Some(2));
    let state = site.tell("show stat");
    for server in ["ledger1,2,DRAIN\n", "ledger2,"] {
        let line = format!("\nblockchain-tcpd,{server}");
        assert!(state.contains(&line), "{state}");
    }
    site.tell("state ready");
    clients.pop();
    site.wait_for_clients([Some(2); 3]);

    // It drains: it says so to HAProxy before it lets anybody go.
    site.server(0).signal("TERM");
    site.wait_for_check(0, "DOWN", 2);
    clients.push(site.alice());
    assert_eq!(site.clients()[0], Some(2), "it is there still");
    assert_eq!(answered(&mut clients), 7);
    let mut stopped = site.servers[0].take().expect("it runs");
    assert!(stopped.wait().success());
    assert_eq!(
        answered(&mut clients),
        5,
        "all but those of the one that stopped"
    );
    let arguments = ["--max-clients", "3", "--queue", "0"];
    site.servers[0] = Some(server(site.addresses[0], &arguments));
    // Once before, and once when it was put back by hand.
    site.wait_for_check(0, "UP", 3);
    let _new = site.alice();
    assert_eq!(site.clients()[0], Some(1));
}

#[test]
fn a_server_that_is_killed_costs_its_own_clients_alone_and_one_that_is_replaced_none() {
    let Some(mut site) = Site::shipped(&["--max-clients", "16"]) else {
        return;
    };
    let mut clients: Vec<TlsClient> = (0..6).map(|_| site.alice()).collect();
    site.wait_for_clients([Some(2); 3]);
    for _ in 0..3 {
        replace(site.server(2));
    }
    for client in &mut clients {
        assert_eq!(client.ask("WHO"), "2");
    }
    let mut killed = site.servers[1].take().expect("it runs");
    killed.signal("KILL");
    killed.wait();
    // No check knows yet: a client that is sent there is sent on.
    let mut new: Vec<TlsClient> = (0..4).map(|_| site.alice()).collect();
    assert_eq!(answered(&mut clients), 4);
    assert_eq!(answered(&mut new), 4);
    site.wait_for_clients([Some(4), None, Some(4)]);
    site.wait_for_check(1, "DOWN", 1);
    site.servers[1] = Some(server(site.addresses[1], &["--max-clients", "16"]));
    site.wait_for_check(1, "UP", 1);
    let _one_more = site.alice();
    site.wait_for_clients([Some(4), Some(1), Some(4)]);
}

#[test]
fn the_documents_show_the_settings_that_are_tried_here() {
    for document in [
        include_str!("../README.md"),
        include_str!("../man/blockchain-tcpd.8"),
    ] {
        for setting in settings() {
            let variable = setting.split_inclusive('=').next().expect("its name");
            let lines = document.lines().map(str::trim);
            let shown = lines.filter(|line| line.starts_with(variable));
            assert_eq!(shown.collect::<Vec<_>>(), [setting]);
        }
    }
}

#[test]
fn grpc_and_json_rpc_go_over_tls_to_all_servers() {
    let Some(mut python) = python() else {
        return;
    };
    needs!("curl");
    let Some(site) = Site::shipped(&[]) else {
        return;
    };
    let host = site.address.ip().to_string();
    let resolve = format!("--resolve ledger.example.org:8443:{host}");
    let curl = commands("curl")[0].replace("curl ", &format!("curl {resolve} "));
    for _ in 0..6 {
        let answer = sh(site.folder.path(), &curl);
        assert!(
            answer.starts_with("{\"jsonrpc\":\"2.0\",\"result\":42,"),
            "{answer}"
        );
    }
    let without = curl.replace("--cert alice.pem --key alice.key", "");
    sh(site.folder.path(), &format!("! {without} 2>/dev/null"));
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    python.arg(root.join("tests/haproxy/ask.py")).arg(&host);
    let output = python
        .current_dir(site.folder.path())
        .output()
        .expect("it runs");
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{said}");
    let ids: BTreeSet<String> = String::from_utf8_lossy(&output.stdout)
        .lines()
        .map(str::to_string)
        .collect();
    assert_eq!(ids.len(), 3, "{ids:?}");
}
