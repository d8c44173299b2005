//! A server of the cluster: the daemon on a host of its own, killed, stopped and started again.

use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;

use rustix::process::{Pid, Signal, kill_process};

use crate::clients::{Gate, Reports};
use crate::network::Host;
use crate::support::{Daemon, program, wait_until};
use crate::truth::Truth;

/// A server. Dropped, it is killed.
pub struct Server {
    pub gate: Gate,
    arguments: Vec<String>,
    daemon: Option<Daemon>,
    /// What the processes before this one wrote.
    earlier: Vec<String>,
}

impl Server {
    /// The server of this number, the first 0, of the cluster at `cluster`. It isn't started.
    pub fn new(
        server: usize,
        host: Host,
        cluster: &str,
        directory: &Path,
        reports: &Arc<Reports>,
    ) -> Self {
        let address = SocketAddr::from((host.address(), 4242));
        let http = SocketAddr::from((host.address(), 8080)).to_string();
        let state = directory.join(format!("server-{}", server + 1));
        std::fs::create_dir(&state).expect("a directory");
        let mut arguments: Vec<String> = [
            ("--listen", address.to_string()),
            ("--state-directory", state.display().to_string()),
            ("--cluster", cluster.to_string()),
            ("--max-clients", "64".to_string()),
            ("--idle-timeout", "24h".to_string()),
        ]
        .into_iter()
        .flat_map(|(option, value)| [option.to_string(), value])
        .collect();
        if cluster.starts_with("etcd") {
            arguments.extend([
                "--advertise".to_string(),
                http.clone(),
                "--http".to_string(),
                http,
            ]);
        }
        let gate = Gate {
            server,
            host,
            address,
            truth: Truth::new(reports.clock),
            reports: reports.clone(),
        };
        Server {
            gate,
            arguments,
            daemon: None,
            earlier: Vec::new(),
        }
    }

    /// It is started with these arguments, too.
    pub fn also(&mut self, arguments: &[&str]) {
        self.arguments
            .extend(arguments.iter().map(ToString::to_string));
    }

    /// It is started with this value instead of the one that `option` had.
    pub fn instead(&mut self, option: &str, value: &str) {
        let mut arguments = self.arguments.iter_mut();
        arguments
            .find(|argument| *argument == option)
            .expect("it is there");
        *arguments.next().expect("it has a value") = value.to_string();
    }

    /// Starts it, and waits until it is ready.
    pub fn start(&mut self) {
        // Who meant the process before this one must not come to this one by mistake.
        wait_until("nobody is on the way to the last process", || {
            self.gate.truth.is_quiet()
        });
        let mut command = self.gate.host.command(program().get_program());
        command.args(&self.arguments);
        self.daemon = Some(Daemon::run(command));
        self.gate.truth.begins();
    }

    fn daemon(&mut self) -> &mut Daemon {
        self.daemon.as_mut().expect("it runs")
    }

    /// Sends a signal.
    pub fn signal(&mut self, signal: Signal) {
        let pid = Pid::from_raw(self.daemon().pid().cast_signed()).expect("it is our child");
        kill_process(pid, signal).expect("it is our child");
    }

    /// Ends it by this signal, and waits for that.
    pub fn end(&mut self, signal: Signal) {
        self.gate.truth.ends();
        self.signal(signal);
        let status = self.daemon().wait();
        assert!(signal == Signal::KILL || status.success(), "{status}");
        self.gate.truth.ended();
        let daemon = self.daemon.take().expect("it ran");
        self.earlier.extend(daemon.log().lines());
    }

    /// Has a new program take over, with all clients.
    pub fn hand_over(&mut self) {
        let ready = |daemon: &Daemon| {
            let lines = daemon.log().lines();
            lines
                .iter()
                .filter(|line| line.contains("ready listen="))
                .count()
        };
        let before = ready(self.daemon());
        self.signal(Signal::USR2);
        let daemon = self.daemon();
        wait_until("a new program is ready", || ready(daemon) > before);
    }

    /// All that its processes wrote.
    pub fn log(&self) -> Vec<String> {
        let mut lines = self.earlier.clone();
        lines.extend(self.daemon.iter().flat_map(|daemon| daemon.log().lines()));
        lines
    }
}
