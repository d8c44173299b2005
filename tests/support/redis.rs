//! A real Redis of the test's own.

use std::process::{Child, Stdio};

use super::{Log, Scratch, clean, free_port, kill, wait_until};

/// A running Redis, or the place of one. Dropped, it is killed.
pub struct Redis {
    directory: Scratch,
    arguments: Vec<String>,
    child: Option<Child>,
    /// Its port on 127.0.0.1.
    pub port: u16,
    /// What `redis-cli` needs to be let in, besides.
    pub cli: Vec<String>,
}

impl Redis {
    /// Starts one with these arguments besides, and waits until it answers. It keeps nothing on the disk.
    pub fn start(arguments: &[&str]) -> Self {
        let mut redis = Redis {
            directory: Scratch::new(),
            arguments: arguments.iter().map(ToString::to_string).collect(),
            child: None,
            port: free_port(),
            cli: Vec::new(),
        };
        redis.run();
        redis
    }

    /// Its address as the daemon takes it.
    pub fn url(&self) -> String {
        format!("redis://127.0.0.1:{}", self.port)
    }

    /// Starts it again, and waits until it answers.
    pub fn run(&mut self) {
        let mut command = clean("redis-server");
        command.args(["--port", &self.port.to_string(), "--bind", "127.0.0.1"]);
        command.args(["--save", "", "--appendonly", "no", "--dir"]);
        command.arg(self.directory.path()).args(&self.arguments);
        let child = command.stdout(Stdio::piped()).spawn();
        let mut child = child.expect("Redis starts");
        let log = Log::follow(child.stdout.take().expect("stdout is piped"));
        self.child = Some(child);
        log.wait_for("Ready to accept connections");
    }

    /// Kills it, with all that it knows.
    pub fn kill(&mut self) {
        if let Some(mut child) = self.child.take() {
            // It is our child, and waited for.
            child.kill().expect("it runs");
            child.wait().expect("it is our child");
        }
    }

    /// Sends it a signal by its name, such as STOP.
    pub fn signal(&self, name: &str) {
        let pid = self.child.as_ref().expect("it runs").id();
        assert!(kill(name, pid), "kill -s {name}");
    }

    /// What `redis-cli` says to this command.
    pub fn ask(&self, command: &[&str]) -> String {
        let mut cli = clean("redis-cli");
        cli.args(["-p", &self.port.to_string(), "--no-auth-warning"]);
        let output = cli.args(&self.cli).args(command).output();
        let output = output.expect("redis-cli runs");
        let said = String::from_utf8_lossy(&output.stdout);
        said.trim_end().to_string()
    }

    /// The same where OK is expected.
    pub fn order(&self, command: &[&str]) {
        assert_eq!(self.ask(command), "OK", "{command:?}");
    }

    /// Waits until this number of connections are those of servers.
    pub fn wait_for_servers(&self, servers: usize) {
        wait_until(&format!("{servers} servers are connected"), || {
            let clients = self.ask(&["CLIENT", "LIST"]);
            clients.matches("name=blockchain-tcpd ").count() == servers
        });
    }
}

impl Drop for Redis {
    fn drop(&mut self) {
        if self.child.is_some() {
            self.kill();
        }
    }
}
