//! A server of the cluster: the daemon on a host of its own, killed, stopped and started again.

use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;

use crate::clients::{Gate, Reports};
use crate::network::Host;
use crate::support::{Daemon, program, wait_until, words};
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
        let state = directory.join(format!("server-{}", server + 1));
        std::fs::create_dir(&state).expect("a directory");
        let mut server = Server {
            arguments: Vec::new(),
            daemon: None,
            earlier: Vec::new(),
            gate: Gate {
                server,
                host,
                address,
                truth: Truth::new(reports.clock),
                reports: reports.clone(),
            },
        };
        let (state, http) = (state.display().to_string(), server.http());
        server.also(&format!(
            "--listen {address} --cluster {cluster} --http {http} --advertise {http} --max-clients 64 \
             --idle-timeout 24h --state-directory {state}"
        ));
        server
    }

    /// Where its HTTP is.
    pub fn http(&self) -> String {
        SocketAddr::from((self.gate.host.address(), 4280)).to_string()
    }

    /// It is started with these arguments, too.
    pub fn also(&mut self, arguments: &str) {
        self.arguments.extend(words(arguments));
    }

    /// It is started with this value instead of the one that `option` had.
    pub fn instead(&mut self, option: &str, value: &str) {
        let mut arguments = self.arguments.iter_mut();
        let is_it = |argument: &&mut String| *argument == option;
        arguments.find(is_it).expect("it is there");
        *arguments.next().expect("it has a value") = value.to_string();
    }

    /// Starts it, and waits until it is ready.
    pub fn start(&mut self) {
        // A client that meant the process before this one must not come to this one by mistake.
        wait_until("nobody is on the way to the last process", || {
            self.gate.truth.is_quiet()
        });
        let mut command = self.gate.host.place().command(program().get_program());
        command.args(&self.arguments);
        self.daemon = Some(Daemon::run(command));
        self.gate.truth.begins();
    }

    fn daemon(&self) -> &Daemon {
        self.daemon.as_ref().expect("it runs")
    }

    /// Sends a signal by its name, such as STOP.
    pub fn signal(&self, name: &str) {
        self.daemon().signal(name);
    }

    /// Ends it by this signal, and waits for that.
    pub fn end(&mut self, signal: &str) {
        self.gate.truth.ends();
        self.signal(signal);
        let mut daemon = self.daemon.take().expect("it ran");
        let status = daemon.wait();
        assert!(signal == "KILL" || status.success(), "{status}");
        self.gate.truth.ended();
        self.earlier.extend(daemon.log().lines());
    }

    /// Has a new program take over, with all clients.
    pub fn hand_over(&self) {
        let log = || self.daemon().log().lines().join("\n");
        let ready = || log().matches("ready listen=").count();
        let before = ready();
        self.signal("USR2");
        wait_until("a new program is ready", || ready() > before);
    }

    /// All that its processes wrote.
    pub fn log(&self) -> String {
        let last = self.daemon.iter().flat_map(|daemon| daemon.log().lines());
        let lines: Vec<String> = self.earlier.iter().cloned().chain(last).collect();
        lines.join("\n")
    }
}
