//! A whole run: a real Prometheus and a real blackbox exporter watch a real server that is quiet, is killed, and is full.
//!
//! Everything is the shipped files, with these changes to their text:
//!
//! - time is [`FASTER`]: a number with the unit s, m, h or d after `[`, `for: `, `interval: ` or `offset ` is divided by it;
//! - what happens every 15 s happens every 250 ms, for a window of a second must hold some samples;
//! - 127.0.0.1, where Prometheus is, is an address of its own; the servers have others.

use std::fs;
use std::io::{BufReader, Write as _};
use std::net::{IpAddr, SocketAddr, TcpListener};
use std::process::Command;
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::Duration;

use serde_json::Value;

use super::{change, copied, dashboard};
use crate::support::http::send;
use crate::support::kernel::own_address;
use crate::support::watch::{Repeated, repeat};
use crate::support::{Client, Daemon, Process, Scratch, clean, program, wait_until};

/// So that an hour is 12 seconds, and 5 minutes are one.
const FASTER: u64 = 300;

/// The text with its times divided.
fn faster(text: &str) -> String {
    let mut text = text.to_string();
    for start in ["[", "for: ", "interval: ", "offset "] {
        let mut parts = text.split(start);
        let first = parts.next().unwrap_or_default().to_string();
        text = parts.fold(first, |out, part| {
            let end = part
                .find(|c: char| !c.is_ascii_digit())
                .unwrap_or(part.len());
            let number = part[..end].parse::<u64>();
            let units = [('s', 1), ('m', 60), ('h', 3600), ('d', 86400)];
            let unit = units
                .iter()
                .find(|(unit, _)| part[end..].starts_with(*unit));
            match (number, unit) {
                (Ok(number), Some((_, seconds))) => {
                    let time = number * seconds * 1000 / FASTER;
                    format!("{out}{start}{time}ms{}", &part[end + 1..])
                }
                _ => format!("{out}{start}{part}"),
            }
        });
    }
    text
}

#[test]
fn time_is_divided_where_it_should_be() {
    let text = "rate(a_5m{b=\"99[.]95\"}[5m]) offset 1h > 5\n        for: 10m\n    interval: 1m # 5m\n[3d]";
    let expected = "rate(a_5m{b=\"99[.]95\"}[1000ms]) offset 12000ms > 5\n        for: 2000ms\n    interval: 200ms # 5m\n[864000ms]";
    assert_eq!(faster(text), expected);
}

fn start(command: Command, is_ready: &str) -> Process {
    let process = Process::start(command);
    process.log.wait_for(is_ready);
    process
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
                thread::spawn(move || {
                    let mut stream = BufReader::new(stream);
                    while let Some(body) = dashboard::request_body(&mut stream) {
                        writer.lock().unwrap().push_str(&body);
                        let reply = b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n";
                        // The client may have gone.
                        let _ = stream.get_mut().write_all(reply);
                    }
                });
            }
        });
        Receiver(received)
    }

    fn has(&self, alert: &str) -> bool {
        let name = format!("\"alertname\":\"{alert}\"");
        self.0.lock().unwrap().contains(&name)
    }
}

/// Prometheus and the blackbox exporter.
struct Watchers {
    prometheus: SocketAddr,
    received: Receiver,
    _running: [Process; 2],
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
            // A minute by default: what is sent before Alertmanager is known is lost until it is sent again.
            .arg("--rules.alert.resend-delay=200ms")
            .arg(format!("--web.listen-address={ip}:9090"));
        let running = [
            start(blackbox, "Listening on"),
            start(prometheus, "Server is ready to receive web requests"),
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
        let answer = send(
            self.prometheus,
            format!("GET /api/v1/{path} HTTP/1.0\r\n\r\n"),
        );
        let answer = String::from_utf8(answer.expect("an answer")).expect("UTF-8");
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
fn busy(address: SocketAddr) -> Repeated<Option<Client>> {
    repeat(None, move |client: &mut Option<Client>| {
        let asked = client.get_or_insert_with(|| Client::connect(address).expect("it accepts"));
        let sent = asked.socket().write_all(b"PING\n").is_ok();
        // A probe may have been there first: then once more.
        if !sent || asked.line().as_deref() != Some("PONG") {
            *client = None;
        }
        thread::park_timeout(Duration::from_millis(20));
    })
}

/// A client that asks for more than may compute at a time.
fn computing(address: SocketAddr) -> Repeated<Client> {
    let client = Client::connect(address).expect("the server accepts");
    repeat(client, |client| {
        client.send("NP 1\n".repeat(200));
        for _ in 0..200 {
            client.line().expect("a reply");
        }
    })
}

#[test]
fn a_quiet_server_raises_no_alarm_and_a_dead_or_full_one_does() {
    needs!("prometheus", "prometheus-blackbox-exporter");
    let (first, second) = (own_address().ip(), own_address().ip());
    // Half of the cores compute at a time.
    let clients = 16
        * thread::available_parallelism()
            .map_or(2, usize::from)
            .max(2);
    let room = (32 + clients).to_string();
    let calculator = server(
        first,
        &["--commands", "server,calc", "--max-clients", &room],
    );
    let daemons = [calculator, server(second, &[])];
    let computing: Vec<_> = (0..clients)
        .map(|_| computing(daemons[0].address))
        .collect();
    let watchers = Watchers::start(&[(first, "90"), (second, "99.95")]);

    let both = "count(up{job=~\"blockchain-tcpd|blockchain-tcpd-probe\"} == 1) == 4";
    wait_until("all targets are up", || watchers.finds(both));
    // Two hours and more at 90 %. At 99.95 % a single probe that a busy machine delays is more than a compressed hour allows,
    // which says nothing about the rules: the second server is for later.
    let wrong = format!("alertname!=\"Watchdog\",alertstate=\"firing\",instance!=\"{second}\"");
    let begun = &watchers.query("vector(time())")[0]["value"][1];
    let begun: f64 = begun.as_str().expect("a number").parse().expect("a time");
    let two_hours = 2 * 3600 / FASTER;
    wait_until("two hours have passed", || {
        // Clients that compute without pause, most of which are refused, do not matter either.
        assert_eq!(daemons[0].ask("WHO\nWHY\nFOO\nWHERE\n").lines().count(), 4);
        watchers.finds(&format!("vector(time()) >= {begun} + {two_hours}"))
    });
    let fired = format!("count_over_time(ALERTS{{{wrong}}}[{two_hours}s])");
    assert_eq!(watchers.query(&fired), Vec::<Value>::new());
    assert!(watchers.finds("ALERTS{alertname=\"Watchdog\",alertstate=\"firing\"}"));
    wait_until("Alertmanager learns that Prometheus is alive", || {
        watchers.received.has("Watchdog")
    });
    let refused =
        "sum(blockchain_tcpd_requests_total{kind=\"computes\",outcome=\"unavailable\"}) > 0";
    assert!(watchers.finds(refused), "some were refused");
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
    let wait_for = |alert: &str, server, severity| {
        wait_until(&format!("{alert}: {severity} of {server}"), || {
            watchers.fires(alert, server, severity)
        });
    };
    let silent = "BlockchainTcpdNotReporting";
    wait_for(silent, first, "ticket");
    wait_for(silent, second, "page");
    wait_until("Alertmanager learns of it", || {
        watchers.received.has(silent)
    });
    let fast = "BlockchainTcpdBudgetFast";
    wait_for(fast, second, "page");
    assert!(!watchers.fires(silent, first, "page") && !watchers.fires(silent, second, "ticket"));

    // There again, and full: each has room for one client, which stays. The first has a cluster with which it is never in touch,
    // a database whose folder is missing, and a feed that nobody serves.
    let full = ["--max-clients", "1", "--queue", "0"];
    let nowhere = format!("redis://{}", own_address());
    let users = [
        "--commands",
        "server,users",
        "--store",
        "sqlite:///nowhere/users.db",
    ];
    let feed = ["--users-feed", "http://127.0.0.1:1/"];
    let alone = [&full[..], &users, &feed, &["--cluster", &nowhere]].concat();
    let daemons = [server(first, &alone), server(second, &full)];
    let _busy = daemons.each_ref().map(|daemon| busy(daemon.address));
    wait_until("they report again", || {
        !watchers.fires(silent, first, "ticket") && !watchers.fires(silent, second, "page")
    });
    wait_for("BlockchainTcpdRefusing", first, "ticket");
    let away = "BlockchainTcpdClusterAway";
    wait_for(away, first, "ticket");
    assert!(!watchers.fires(away, second, "ticket"), "it has no cluster");
    for alert in ["BlockchainTcpdStoreAway", "BlockchainTcpdUsersStale"] {
        wait_for(alert, first, "ticket");
        assert!(!watchers.fires(alert, second, "ticket"), "it has no users");
    }
    for expression in dashboard::expressions_of_users() {
        let expression = expression.replace("$__rate_interval", "2s");
        let expression = expression.replace("$job", ".*").replace("$instance", ".*");
        wait_until(&expression, || watchers.finds(&expression));
    }
    wait_for(fast, first, "page");
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
