//! The plugin as Nagios runs it, with the command definition and the example that come with it.

use std::path::Path;
use std::process::{Child, Stdio};
use std::time::Instant;

use super::{ID, start, timed};
use crate::pull::server::FeedServer;
use crate::support::PLUGIN;
use crate::support::{Log, PATIENCE, Scratch, clean, kill, run_to_end, wait_until};
use crate::users::{Database, Kind, Server};

const COMMAND: &str = include_str!("../../packaging/nagios/blockchain-tcp.cfg");
const EXAMPLE: &str = include_str!("../../packaging/nagios/nagios-example.cfg");

/// What is in this folder of Nagios's own: the templates that the example uses, and what these use.
const OBJECTS: &str = "/etc/nagios4/objects";

/// Settings with which nothing is outside of `folder`, nobody is told or asked anything, and a minute is a second.
fn settings(folder: &Path) -> String {
    let folder = folder.display();
    let objects = ["templates", "contacts", "commands", "timeperiods"]
        .map(|name| format!("{OBJECTS}/{name}.cfg"));
    let files = objects
        .into_iter()
        .chain(["command", "example"].map(|name| format!("{folder}/{name}.cfg")));
    let files: String = files.map(|file| format!("cfg_file={file}\n")).collect();
    let own: String = [
        ("log_file", "log"),
        ("object_cache_file", "objects"),
        ("status_file", "status"),
        ("temp_file", "temporary"),
        ("query_socket", "socket"),
        ("lock_file", "lock"),
        ("temp_path", ""),
        ("check_result_path", ""),
    ]
    .iter()
    .map(|(setting, name)| format!("{setting}={folder}/{name}\n"))
    .collect();
    // As root it would become another user, who may not write here.
    let (user, group) = (
        rustix::process::getuid().as_raw(),
        rustix::process::getgid().as_raw(),
    );
    format!(
        "{files}{own}nagios_user={user}\nnagios_group={group}\n\
         use_syslog=0\ncheck_external_commands=0\nenable_notifications=0\ncheck_for_updates=0\n\
         retain_state_information=0\nillegal_macro_output_chars=`~$&|'\"<>\n\
         check_workers=1\ninterval_length=1\ncheck_result_reaper_frequency=1\nstatus_update_interval=1\n\
         service_inter_check_delay_method=n\n"
    )
}

/// Nagios in the foreground, with a folder of its own. Dropped, it is ended, and its workers with it.
struct Nagios {
    child: Child,
    log: Log,
    folder: Scratch,
}

impl Nagios {
    /// Its settings, for a daemon at this port.
    fn prepare(port: u16) -> Scratch {
        Nagios::prepare_for(&[("-p 4242", port)], EXAMPLE)
    }

    /// Its settings by this example, with these ports in place of others.
    fn prepare_for(ports: &[(&str, u16)], example: &str) -> Scratch {
        let folder = Scratch::new();
        let replaced = |text: &str, old: &str, new: &str| {
            assert_eq!(text.matches(old).count(), 1, "{old}");
            text.replace(old, new)
        };
        let command = replaced(
            COMMAND,
            "/usr/lib/nagios/plugins/check_blockchain_tcp",
            PLUGIN.as_str(),
        );
        let example = ports.iter().fold(example.to_string(), |text, (old, port)| {
            replaced(&text, old, &format!("-p {port}"))
        });
        for (name, text) in [
            ("command.cfg", command),
            ("example.cfg", example),
            ("nagios.cfg", settings(folder.path())),
        ] {
            std::fs::write(folder.path().join(name), text).expect("a scratch file");
        }
        folder
    }

    fn start(folder: Scratch) -> Self {
        let mut child = clean("nagios4")
            .arg(folder.path().join("nagios.cfg"))
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .expect("nagios4 starts");
        let log = Log::follow(child.stdout.take().expect("it is piped"));
        Nagios { child, log, folder }
    }

    /// This field of the last service, as Nagios has it in its status file.
    fn service(&self, field: &str) -> Option<String> {
        let status = std::fs::read_to_string(self.folder.path().join("status")).ok()?;
        let (_, service) = status.rsplit_once("\nservicestatus {")?;
        let mut lines = service.split('}').next()?.lines();
        let value = lines.find_map(|line| line.trim().strip_prefix(field)?.strip_prefix('='))?;
        Some(value.to_string())
    }

    /// Waits until the service has been checked and is found in this state.
    fn wait_for(&self, state: &str) {
        let checked = || self.service("has_been_checked").as_deref() == Some("1");
        wait_until(
            &format!("Nagios finds the service in state {state}"),
            || checked() && self.service("current_state").as_deref() == Some(state),
        );
    }
}

impl Drop for Nagios {
    fn drop(&mut self) {
        kill("TERM", self.child.id());
        let begun = Instant::now();
        while matches!(self.child.try_wait(), Ok(None)) && begun.elapsed() < PATIENCE {
            std::thread::park_timeout(std::time::Duration::from_millis(2));
        }
        // It may have ended, which is as it should be.
        let _ = self.child.kill();
        let _ = self.child.wait();
        if std::thread::panicking() {
            eprintln!("--- Nagios says:\n{}", self.log.whole());
        }
    }
}

#[test]
fn nagios_finds_nothing_wrong_with_the_command_and_the_example() {
    needs!("nagios4");
    let folder = Nagios::prepare(4242);
    let mut command = clean("nagios4");
    command.arg("-v").arg(folder.path().join("nagios.cfg"));
    let output = command.output().expect("nagios4 runs");
    let said = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{said}");
    for line in [
        "Checked 1 services.",
        "Checked 1 hosts.",
        "Total Warnings: 0",
        "Total Errors:   0",
    ] {
        assert!(said.contains(line), "no {line:?} in {said}");
    }
    // It would see a mistake.
    let example = folder.path().join("example.cfg");
    std::fs::write(
        &example,
        EXAMPLE.replace("check_blockchain_tcp!", "check_blockchain!"),
    )
    .expect("a scratch file");
    let mut command = clean("nagios4");
    command.arg("-v").arg(folder.path().join("nagios.cfg"));
    assert_ne!(run_to_end(command).0, 0);
}

#[test]
fn nagios_sees_the_daemon_work_and_sees_it_gone() {
    needs!("nagios4");
    let daemon = start();
    let nagios = Nagios::start(Nagios::prepare(daemon.address.port()));
    nagios.wait_for("0");
    let output = nagios.service("plugin_output").expect("an output");
    assert!(
        output.starts_with("BLOCKCHAIN-TCP OK - 1 client, "),
        "{output}"
    );
    assert!(output.ends_with(&format!(" s, id {ID}")), "{output}");
    let figures = nagios.service("performance_data").expect("figures");
    assert_eq!(
        timed(&figures).1,
        "time=TIMEs;0.5;2;0;10 clients=1;900;1000;1"
    );
    let address = daemon.address;
    drop(daemon);
    nagios.wait_for("2");
    let output = nagios.service("plugin_output").expect("an output");
    let said = format!("BLOCKCHAIN-TCP CRITICAL - can't connect to {address}: Connection refused");
    assert_eq!(output, said);
    assert_eq!(nagios.service("performance_data").as_deref(), Some(""));
}

/// What is commented out in the example, without what is before it.
fn example_of_users() -> String {
    let (before, users) = EXAMPLE
        .split_once("\n#define service {")
        .expect("it is there");
    let (host, _) = before
        .split_once("define service {")
        .expect("the other one");
    let users = format!("#define service {{{users}");
    let lines = users
        .lines()
        .map(|line| line.strip_prefix('#').expect("a comment"));
    format!("{host}{}\n", lines.collect::<Vec<_>>().join("\n"))
}

#[test]
fn nagios_sees_users_and_that_there_are_none() {
    needs!("nagios4");
    Database::each(&[Kind::Sqlite], |database| {
        let feed = FeedServer::of("[]");
        let arguments = format!("--users-feed {} --users-feed-interval 1s", feed.url("/"));
        let server = Server::start(&database.url(), &arguments);
        let ports = [("-p 8080", server.address("http").port())];
        let nagios = Nagios::start(Nagios::prepare_for(&ports, &example_of_users()));
        nagios.wait_for("2");
        feed.give(r#"[{"id":"a","name":"A"},{"id":"b"}]"#);
        nagios.wait_for("0");
        let output = nagios.service("plugin_output").expect("an output");
        let said = "BLOCKCHAIN-TCP OK - 2 users, 2 of them read, pulled ";
        assert!(output.starts_with(said), "{output}");
        let figures = nagios.service("performance_data").expect("figures");
        let (_, figures) = timed(&figures);
        let begin = "time=TIMEs;;;0;10 users=2;;1:;0 age=";
        assert!(figures.starts_with(begin), "{figures}");
        assert!(figures.ends_with("s;300;600;0"), "{figures}");
    });
}
