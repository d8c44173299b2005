//! An etcd of one member or several, on free ports of 127.0.0.1, and whoever else may be written down in it.

use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::Mutex;

use crate::support::{Scratch, clean, wait_until};

/// An address at which nobody listens now.
pub fn free_address() -> SocketAddr {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("a free port");
    listener.local_addr().expect("its address")
}

struct Member {
    client: SocketAddr,
    peer: SocketAddr,
    process: Option<Child>,
}

/// A running etcd. Dropped, it is killed.
pub struct Etcd {
    scratch: Scratch,
    members: Mutex<Vec<Member>>,
    tls: Option<[PathBuf; 3]>,
    arguments: Vec<String>,
}

impl Etcd {
    /// Starts one of so many members, and waits until it answers.
    pub fn start(members: usize) -> Self {
        Self::start_with(members, |_| None, &[])
    }

    /// The same with these arguments besides, and with the certificate, its key and its authority that `tls` makes in a directory.
    pub fn start_with(
        members: usize,
        tls: impl FnOnce(&Scratch) -> Option<[PathBuf; 3]>,
        arguments: &[&str],
    ) -> Self {
        let scratch = Scratch::new();
        let tls = tls(&scratch);
        let arguments = arguments.iter().map(ToString::to_string).collect();
        let member = |_| Member {
            client: free_address(),
            peer: free_address(),
            process: None,
        };
        let etcd = Etcd {
            scratch,
            members: Mutex::new((0..members).map(member).collect()),
            tls,
            arguments,
        };
        (0..members).for_each(|member| etcd.begin(member));
        etcd.wait();
        etcd
    }

    /// Where its members are for clients.
    pub fn addresses(&self) -> Vec<SocketAddr> {
        let members = self.members.lock().unwrap();
        members.iter().map(|one| one.client).collect()
    }

    /// What `--cluster` takes.
    pub fn url(&self) -> String {
        self.url_from(0)
    }

    /// The same with this member first, which is asked first.
    pub fn url_from(&self, first: usize) -> String {
        let hosts = self.addresses().into_iter();
        let mut hosts: Vec<String> = hosts.map(|host| host.to_string()).collect();
        hosts.rotate_left(first);
        let scheme = if self.tls.is_some() { "etcds" } else { "etcd" };
        format!("{scheme}://{}", hosts.join(","))
    }

    /// Starts a member.
    pub fn begin(&self, member: usize) {
        let mut members = self.members.lock().unwrap();
        let everybody = members.iter().enumerate();
        let everybody: Vec<_> = everybody
            .map(|(index, one)| format!("m{index}=http://{}", one.peer))
            .collect();
        let scheme = if self.tls.is_some() { "https" } else { "http" };
        let one = &mut members[member];
        let client = format!("{scheme}://{}", one.client);
        let peer = format!("http://{}", one.peer);
        let name = format!("m{member}");
        let mut command = clean("etcd");
        command
            .args(["--data-dir", &self.data(member), "--name", &name])
            .args(["--listen-client-urls", &client])
            .args(["--advertise-client-urls", &client])
            .args(["--listen-peer-urls", &peer])
            .args(["--initial-advertise-peer-urls", &peer])
            .args(["--initial-cluster", &everybody.join(",")])
            .args(["--heartbeat-interval", "50", "--election-timeout", "500"])
            .args(["--unsafe-no-fsync", "--log-level", "fatal"])
            // Else a password costs so much that a busy machine is not done in time.
            .args(["--bcrypt-cost", "4"]);
        if let Some([certificate, key, _]) = &self.tls {
            command.arg("--cert-file").arg(certificate);
            command.arg("--key-file").arg(key);
        }
        command.args(&self.arguments);
        command.stdout(Stdio::null()).stderr(Stdio::null());
        one.process = Some(command.spawn().expect("etcd starts"));
    }

    fn data(&self, member: usize) -> String {
        let data = self.scratch.path().join(format!("data{member}"));
        data.display().to_string()
    }

    /// Kills a member.
    pub fn kill(&self, member: usize) {
        let process = self.members.lock().unwrap()[member].process.take();
        let mut process = process.expect("it runs");
        process.kill().expect("it is our child");
        process.wait().expect("it is our child");
    }

    /// Sends a member a signal by its name, such as STOP.
    pub fn signal(&self, member: usize, name: &str) {
        let members = self.members.lock().unwrap();
        let pid = members[member].process.as_ref().expect("it runs").id();
        let mut kill = Command::new("kill");
        let status = kill.args(["-s", name, &pid.to_string()]).status();
        assert!(status.expect("kill runs").success());
    }

    /// Which member leads. All must run.
    pub fn leader(&self) -> usize {
        let said = self.does(&["endpoint", "status"]);
        let leads = |address: &SocketAddr| {
            let mut lines = said.lines().map(|line| line.split(", "));
            let line = lines.find(|line| line.clone().next() == Some(&address.to_string()));
            line.is_some_and(|mut line| line.nth(4) == Some("true"))
        };
        let leader = self.addresses().iter().position(leads);
        leader.unwrap_or_else(|| panic!("{said}"))
    }

    /// Takes away all that a member that does not run has kept.
    pub fn wipe(&self, member: usize) {
        std::fs::remove_dir_all(self.data(member)).expect("its data");
    }

    /// Waits until each member that runs answers with a quorum.
    pub fn wait(&self) {
        let members = self.members.lock().unwrap();
        let running = members.iter().filter(|one| one.process.is_some());
        let running: Vec<SocketAddr> = running.map(|one| one.client).collect();
        drop(members);
        for address in running {
            wait_until("etcd answers", || {
                let mut command = self.control(&address.to_string());
                command.args(["--command-timeout", "1s", "get", "x"]);
                command.stderr(Stdio::null()).stdout(Stdio::null());
                command.status().is_ok_and(|status| status.success())
            });
        }
    }

    fn control(&self, hosts: &str) -> Command {
        let mut command = clean("etcdctl");
        command.env("ETCDCTL_API", "3").args(["--endpoints", hosts]);
        if let Some([certificate, key, authority]) = &self.tls {
            command.arg("--cacert").arg(authority);
            command.arg("--cert").arg(certificate);
            command.arg("--key").arg(key);
        }
        command
    }

    /// Has etcdctl do something, which must go well. Returns what it says.
    pub fn does(&self, arguments: &[&str]) -> String {
        let url = self.url();
        let (_, hosts) = url.split_once("://").expect("a scheme");
        let mut command = self.control(hosts);
        let output = command.args(arguments).output().expect("etcdctl");
        let said = String::from_utf8_lossy(&output.stdout).into_owned();
        let failed = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{arguments:?}: {said}{failed}");
        said
    }

    /// Registers a server that is said to listen there. Returns its key.
    pub fn write_down(&self, address: SocketAddr) -> String {
        let (id, incarnation) = (uuid::Uuid::new_v4(), uuid::Uuid::new_v4());
        let key = format!("/blockchain-tcpd/default/members/{id}/{incarnation}");
        self.does(&["put", &key, &format!(r#"{{"advertise":"{address}"}}"#)]);
        key
    }
}

impl Drop for Etcd {
    fn drop(&mut self) {
        for member in self.members.lock().unwrap().iter_mut() {
            if let Some(process) = &mut member.process {
                // It may have ended.
                let _ = process.kill();
                let _ = process.wait();
            }
        }
    }
}

/// Somebody who listens, and does this with each connection.
pub fn somebody(does: impl Fn(TcpStream) + Send + Sync + 'static) -> SocketAddr {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("a free port");
    let address = listener.local_addr().expect("its address");
    let does = std::sync::Arc::new(does);
    std::thread::spawn(move || {
        for socket in listener.incoming().flatten() {
            let does = does.clone();
            std::thread::spawn(move || does(socket));
        }
    });
    address
}
