//! A whole run: a real Prometheus and a real blackbox exporter watch a real server that is quiet, is killed, and is full.
//!
//! Everything is the shipped files, with these changes to their text:
//!
//! - time is [`FASTER`]: a number with the unit s, m, h or d after `[`, `for: `, `interval: ` or `offset ` is divided by it;
//! - what happens every 15 s happens every 250 ms, for a window of a second must hold some samples;
//! - 127.0.0.1, where those who watch are, is an address of their own; the servers have others.

use std::fs;
use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use serde_json::Value;

use super::{change, copied, dashboard};
use crate::support::kernel::own_address;
use crate::support::{Client, Daemon, Log, PATIENCE, Scratch, clean, program, wait_until};

/// So that an hour is 12 seconds, and 5 minutes are one.
const FASTER: u64 = 300;

/// The text with its times divided.
fn faster(text: &str) -> String {
    let mut out = String::new();
    let mut rest = text;
    let starts = ["[", "for: ", "interval: ", "offset "];
    while let Some(first) = rest.chars().next() {
        let start = starts.iter().find(|start| rest.starts_with(**start));
        let Some(start) = start else {
            out.push(first);
            rest = &rest[first.len_utf8()..];
            continue;
        };
        out += start;
        rest = &rest[start.len()..];
        let digits = rest
            .find(|c: char| !c.is_ascii_digit())
            .unwrap_or(rest.len());
        let seconds = match rest[digits..].chars().next() {
            Some('s') => 1,
            Some('m') => 60,
            Some('h') => 3600,
            Some('d') => 86400,
            _ => continue,
        };
        if let Ok(number) = rest[..digits].parse::<u64>() {
            out += &format!("{}ms", number * seconds * 1000 / FASTER);
            rest = &rest[digits + 1..];
        }
    }
    out
}

#[test]
fn time_is_divided_where_it_should_be() {
    let text = "rate(a_5m{b=\"99[.]95\"}[5m]) offset 1h > 5\n        for: 10m\n    interval: 1m # 5m\n[3d]";
    let expected = "rate(a_5m{b=\"99[.]95\"}[1000ms]) offset 12000ms > 5\n        for: 2000ms\n    interval: 200ms # 5m\n[864000ms]";
    assert_eq!(faster(text), expected);
}

/// A program that runs until it is dropped.
struct Running {
    child: Child,
    log: Log,
}

impl Running {
    fn start(mut command: Command, is_ready: &str) -> Self {
        let mut child = command.stderr(Stdio::piped()).spawn().expect("it starts");
        let log = Log::follow(child.stderr.take().expect("stderr is piped"));
        let running = Running { child, log };
        running.log.wait_for(is_ready);
        running
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        // It may have ended.
        let _ = self.child.kill();
        let _ = self.child.wait();
        if thread::panicking() {
            eprintln!("--- its log:\n{}", self.log.whole());
        }
    }
}

/// What Alertmanager would be sent, at its port.
struct Receiver(Arc<Mutex<String>>);

impl Receiver {
    fn start(ip: IpAddr) -> Self {
        let listener = TcpListener::bind((ip, 9093)).expect("a port of its own");
        let received = Arc::new(Mutex::new(String::new()));
        let writer = received.clone();
        thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let writer = writer.clone();
                // One that sends nothing more is not waited for.
                thread::spawn(move || take_alerts(stream, &writer));
            }
        });
        Receiver(received)
    }

    fn has(&self, alert: &str) -> bool {
        let name = format!("\"alertname\":\"{alert}\"");
        self.0.lock().unwrap().contains(&name)
    }
}

/// Takes what is posted on this connection until it ends.
fn take_alerts(stream: TcpStream, into: &Mutex<String>) -> Option<()> {
    let mut stream = BufReader::new(stream);
    loop {
        let (mut length, mut line) = (0, String::new());
        while stream.read_line(&mut line).ok().filter(|read| *read > 0)? > 2 {
            if let Some(value) = line.to_lowercase().strip_prefix("content-length:") {
                length = value.trim().parse().ok()?;
            }
            line.clear();
        }
        let mut body = vec![0; length];
        stream.read_exact(&mut body).ok()?;
        into.lock()
            .unwrap()
            .push_str(&String::from_utf8_lossy(&body));
        let reply = b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n";
        stream.get_mut().write_all(reply).ok()?;
    }
}

/// Those who watch.
struct Watchers {
    prometheus: SocketAddr,
    received: Receiver,
    _running: [Running; 2],
    _files: Scratch,
}

impl Watchers {
    /// Of these servers, each with its objective.
    fn start(servers: &[(IpAddr, &str)]) -> Self {
        let files = copied();
        let ip = own_address().ip();
        for name in ["rules/slo.yml", "rules/alerts.yml"] {
            change(&files.path().join(name), faster);
        }
        change(&files.path().join("prometheus.yml"), |text| {
            text.replace("127.0.0.1", &ip.to_string())
                .replace("interval: 15s", "interval: 250ms")
                .replace("timeout: 10s", "timeout: 250ms")
        });
        let listed = servers.iter().map(|(ip, objective)| {
            format!("- targets: [\"{ip}\"]\n  labels: {{slo: \"{objective}\"}}\n")
        });
        fs::write(files.path().join("servers.yml"), listed.collect::<String>()).expect("written");

        let received = Receiver::start(ip);
        let mut blackbox = clean("prometheus-blackbox-exporter");
        blackbox
            .current_dir(files.path())
            .args(["--config.file=blackbox.yml", "--timeout-offset=0.05"])
            .arg(format!("--web.listen-address={ip}:9115"));
        let mut prometheus = clean("prometheus");
        prometheus
            .current_dir(files.path())
            .args(["--config.file=prometheus.yml", "--storage.tsdb.path=data"])
            // A minute unless told otherwise: what is sent before Alertmanager is known is lost until it is sent again.
            .arg("--rules.alert.resend-delay=200ms")
            .arg(format!("--web.listen-address={ip}:9090"));
        let running = [
            Running::start(blackbox, "Listening on"),
            Running::start(prometheus, "Server is ready to receive web requests"),
        ];
        Watchers {
            prometheus: SocketAddr::new(ip, 9090),
            received,
            _running: running,
            _files: files,
        }
    }

    /// What Prometheus's API answers.
    fn get(&self, path: &str) -> Value {
        let mut stream =
            TcpStream::connect_timeout(&self.prometheus, PATIENCE).expect("it listens");
        stream.set_read_timeout(Some(PATIENCE)).expect("a socket");
        write!(stream, "GET /api/v1/{path} HTTP/1.0\r\n\r\n").expect("it takes it");
        let mut answer = String::new();
        stream.read_to_string(&mut answer).expect("an answer");
        let (_, body) = answer.split_once("\r\n\r\n").expect("a head and a body");
        let mut answer: Value = serde_json::from_str(body).expect("JSON");
        assert_eq!(answer["status"], "success", "{path}: {answer}");
        answer["data"].take()
    }

    /// The series that a query finds now.
    fn query(&self, query: &str) -> Vec<Value> {
        let escaped = query.bytes().map(|byte| match byte {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'_' => char::from(byte).to_string(),
            _ => format!("%{byte:02X}"),
        });
        let mut data = self.get(&format!("query?query={}", escaped.collect::<String>()));
        match data["result"].take() {
            Value::Array(series) => series,
            other => panic!("{query}: {other}"),
        }
    }

    /// Whether a query finds something now.
    fn finds(&self, query: &str) -> bool {
        !self.query(query).is_empty()
    }

    /// Whether this alert fires for this server, with this severity.
    fn fires(&self, alert: &str, server: IpAddr, severity: &str) -> bool {
        let data = self.get("alerts");
        let alerts = data["alerts"].as_array().expect("a list");
        alerts.iter().any(|found| {
            let labels = &found["labels"];
            found["state"] == "firing"
                && labels["alertname"] == alert
                && labels["instance"] == server.to_string()
                && labels["severity"] == severity
        })
    }
}

/// A server at an address of its own, at the usual ports.
fn server(ip: IpAddr, arguments: &[&str]) -> Daemon {
    let mut command = program();
    command
        .arg(format!("--listen={ip}:4242"))
        .arg(format!("--http={ip}:4280"))
        .args(arguments);
    Daemon::run(command)
}

/// A client that keeps the only place of a server, and never makes room because it asks again and again.
struct Busy {
    leave: Arc<AtomicBool>,
    asking: Option<JoinHandle<()>>,
}

impl Busy {
    fn start(address: SocketAddr) -> Self {
        let leave = Arc::new(AtomicBool::new(false));
        let told = leave.clone();
        let asking = thread::spawn(move || {
            while !told.load(Ordering::Relaxed) {
                let mut client = Client::connect(address).expect("the server accepts");
                // A probe may have been there first: then once more.
                while !told.load(Ordering::Relaxed)
                    && client.socket().write_all(b"PING\n").is_ok()
                    && client.line().as_deref() == Some("PONG")
                {
                    thread::park_timeout(Duration::from_millis(20));
                }
            }
        });
        let asking = Some(asking);
        Busy { leave, asking }
    }
}

impl Drop for Busy {
    fn drop(&mut self) {
        self.leave.store(true, Ordering::Relaxed);
        // Whether it failed shows in what it was for.
        let _ = self.asking.take().map(JoinHandle::join);
    }
}

/// Clients that ask for more than there are turns for.
struct Computing {
    leave: Arc<AtomicBool>,
    asking: Vec<JoinHandle<()>>,
}

impl Computing {
    /// Half of the cores compute at a time.
    fn clients() -> usize {
        16 * thread::available_parallelism()
            .map_or(2, usize::from)
            .max(2)
    }

    fn start(address: SocketAddr) -> Self {
        let leave = Arc::new(AtomicBool::new(false));
        let ask = |_| {
            let told = leave.clone();
            thread::spawn(move || {
                let mut client = Client::connect(address).expect("the server accepts");
                while !told.load(Ordering::Relaxed) {
                    client.send("NP 1\n".repeat(200));
                    for _ in 0..200 {
                        client.line().expect("a reply");
                    }
                }
            })
        };
        let asking = (0..Computing::clients()).map(ask).collect();
        Computing { leave, asking }
    }
}

impl Drop for Computing {
    fn drop(&mut self) {
        self.leave.store(true, Ordering::Relaxed);
        for asks in self.asking.drain(..) {
            // Whether it failed shows in what it was for.
            let _ = asks.join();
        }
    }
}

#[test]
fn a_quiet_server_raises_no_alarm_and_a_dead_or_full_one_does() {
    needs!("prometheus", "prometheus-blackbox-exporter");
    let (first, second) = (own_address().ip(), own_address().ip());
    let room = (32 + Computing::clients()).to_string();
    let calculator = server(
        first,
        &["--commands", "server,calc", "--max-clients", &room],
    );
    let daemons = [calculator, server(second, &[])];
    let computing = Computing::start(daemons[0].address);
    let watchers = Watchers::start(&[(first, "90"), (second, "99.95")]);

    let both = "count(up{job=~\"blockchain-tcpd|blockchain-tcpd-probe\"} == 1) == 4";
    wait_until("all targets are up", || watchers.finds(both));
    // Two hours and more at 90 %. At 99.95 % a single probe that a busy machine delays is more than a compressed hour allows,
    // which says nothing about the rules: the second server is for later.
    let wrong = format!("alertname!=\"Watchdog\",alertstate=\"firing\",instance!=\"{second}\"");
    let begun = watchers.query("vector(time())")[0]["value"][1].clone();
    let begun: f64 = begun
        .as_str()
        .and_then(|time| time.parse().ok())
        .expect("a time");
    wait_until("two hours have passed", || {
        // Nor does it that some compute without pause, of whom most are told that too many do.
        assert_eq!(daemons[0].ask("WHO\nWHY\nFOO\nWHERE\n").lines().count(), 4);
        watchers.finds(&format!(
            "vector(time()) >= {begun} + {}",
            2 * 3600 / FASTER
        ))
    });
    let fired = format!("count_over_time(ALERTS{{{wrong}}}[{}s])", 2 * 3600 / FASTER);
    assert_eq!(watchers.query(&fired), Vec::<Value>::new());
    assert!(watchers.finds("ALERTS{alertname=\"Watchdog\",alertstate=\"firing\"}"));
    wait_until("Alertmanager is told that Prometheus is alive", || {
        watchers.received.has("Watchdog")
    });
    let refused =
        "sum(blockchain_tcpd_requests_total{kind=\"computes\",outcome=\"unavailable\"}) > 0";
    assert!(watchers.finds(refused), "some got no turn in time");
    drop(computing);
    let of_both = "count(blockchain_tcpd:error_ratio_1h{sli=\"availability\"}) == 4";
    assert!(watchers.finds(of_both), "requests and probes are measured");

    let rules = watchers.get("rules");
    let groups = rules["groups"].as_array().expect("a list").iter();
    let rules = groups.flat_map(|group| group["rules"].as_array().expect("a list"));
    let rules: Vec<&Value> = rules.collect();
    let shipped = super::rules("slo.yml").len() + super::rules("alerts.yml").len();
    assert_eq!(rules.len(), shipped);
    for rule in rules {
        assert_eq!(rule["health"], "ok", "{rule}");
    }

    let url = format!("http://{}", watchers.prometheus);
    let (good, svg) = dashboard::drawn(&url, &["--from", "-30s", "--rate", "2s"]);
    assert!(good, "{svg}");
    assert!(svg.contains(&format!("</tspan> {first}")), "{svg}");

    // Killed.
    let [mut one, mut other] = daemons;
    for daemon in [&mut one, &mut other] {
        daemon.signal("KILL");
        daemon.wait();
    }
    let silent = "BlockchainTcpdNotReporting";
    wait_until("silence is a ticket at 90 %", || {
        watchers.fires(silent, first, "ticket")
    });
    wait_until("and a page at 99.95 %", || {
        watchers.fires(silent, second, "page")
    });
    wait_until("Alertmanager is told", || watchers.received.has(silent));
    let fast = "BlockchainTcpdBudgetFast";
    wait_until("the budget of 99.95 % burns", || {
        watchers.fires(fast, second, "page")
    });
    assert!(!watchers.fires(silent, first, "page") && !watchers.fires(silent, second, "ticket"));

    // There again, and full: each has room for one client, who stays. The first has a cluster with which it is never in touch.
    let full = ["--max-clients", "1", "--queue", "0"];
    let nobody = format!("redis://{}", own_address());
    let alone = [&full[..], &["--cluster", &nobody]].concat();
    let daemons = [server(first, &alone), server(second, &full)];
    let _busy = daemons.each_ref().map(|daemon| Busy::start(daemon.address));
    wait_until("they report again", || {
        !watchers.fires(silent, first, "ticket") && !watchers.fires(silent, second, "page")
    });
    let refusing = "BlockchainTcpdRefusing";
    wait_until("that it refuses clients is a ticket", || {
        watchers.fires(refusing, first, "ticket")
    });
    let away = "BlockchainTcpdClusterAway";
    wait_until("that it is away from its cluster is a ticket", || {
        watchers.fires(away, first, "ticket")
    });
    assert!(!watchers.fires(away, second, "ticket"), "it has no cluster");
    wait_until("the budget of 90 % burns", || {
        watchers.fires(fast, first, "page")
    });
    assert!(watchers.fires(fast, second, "page"));
    for seen_by in ["requests", "probes"] {
        let seen = "blockchain_tcpd:error_ratio_5m{sli=\"availability\"";
        let seen = format!("{seen},seen_by=\"{seen_by}\",instance=\"{first}\"}} > 0");
        wait_until("both see it", || watchers.finds(&seen));
    }

    // What is said of an alert has no hole in it.
    let alerts = watchers.get("alerts");
    for alert in alerts["alerts"].as_array().expect("a list") {
        for key in ["summary", "description"] {
            let said = alert["annotations"][key].as_str().unwrap_or_default();
            let broken =
                said.is_empty() || said.contains("error") && !said.contains("error budget");
            assert!(!broken && !said.contains("<no value>"), "{alert}");
        }
    }
}
