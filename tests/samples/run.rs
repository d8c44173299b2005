//! A client that runs, and what became of it.

use std::net::SocketAddr;
use std::process::{Child, Command, ExitStatus, Stdio};

use super::NOTHING;
use crate::support::{Log, kill, wait_until};

/// A client that runs. Dropped, it is killed.
pub struct Run {
    child: Child,
    pub out: Log,
    pub err: Log,
}

impl Run {
    pub fn start(mut command: Command, stdout: impl Into<Stdio>) -> Self {
        let child = command.stdout(stdout).stderr(Stdio::piped());
        let mut child = child.spawn().expect("it starts");
        let out = match child.stdout.take() {
            Some(pipe) => Log::follow(pipe),
            None => Log::follow(std::io::empty()),
        };
        let err = Log::follow(child.stderr.take().expect("stderr is piped"));
        Run { child, out, err }
    }

    /// Waits until it has printed so many lines, and returns all.
    pub fn prints(&self, lines: usize) -> Vec<String> {
        wait_until(&format!("{lines} lines are printed"), || {
            self.out.lines().len() >= lines
        });
        self.out.lines()
    }

    pub fn signal(&self, name: &str) {
        assert!(kill(name, self.child.id()), "kill -s {name}");
    }

    pub fn is_running(&mut self) -> bool {
        self.child.try_wait().expect("it is our child").is_none()
    }

    /// Waits for its end.
    pub fn end(mut self) -> Outcome {
        wait_until("the client ends", || !self.is_running());
        Outcome {
            ended: self.child.wait().expect("it is our child"),
            out: self.out.whole(),
            err: self.err.whole(),
        }
    }
}

impl Drop for Run {
    fn drop(&mut self) {
        // It may have ended.
        let _ = self.child.kill();
        let _ = self.child.wait();
        if std::thread::panicking() {
            let (out, err) = (self.out.whole(), self.err.whole());
            let out: String = out.chars().take(2000).collect();
            eprintln!("--- the client's stdout:\n{out}\n--- its stderr:\n{err}");
        }
    }
}

/// What became of a client.
#[derive(Debug)]
pub struct Outcome {
    pub ended: ExitStatus,
    pub out: String,
    pub err: String,
}

impl Outcome {
    /// It printed these lines and ended with this status.
    #[track_caller]
    pub fn is(&self, status: i32, lines: &[impl AsRef<str>]) {
        let lines: Vec<&str> = lines.iter().map(AsRef::as_ref).collect();
        let same = self.out == lines.join("\n");
        assert!(
            same,
            "{:.4000} instead of {lines:.40?}; {}",
            self.out, self.err
        );
        assert_eq!(self.ended.code(), Some(status), "{}", self.err);
        if status == 0 {
            assert_eq!(self.err, "");
        }
    }

    /// It printed these lines, gave up this server with this status, and said why.
    #[track_caller]
    pub fn gave_up(&self, status: i32, server: SocketAddr, why: &str, lines: &[impl AsRef<str>]) {
        self.is(status, lines);
        assert_eq!(self.err, format!("client: {server}: {why}"));
    }

    /// It gave up, because there was no connection, and said why, as far as its language knows.
    #[track_caller]
    pub fn found_nobody(&self, server: SocketAddr) {
        self.is(69, NOTHING);
        let said = format!("client: {server}: no connection");
        assert!(self.err.starts_with(&said), "{}", self.err);
        assert_eq!(self.err.lines().count(), 1, "{}", self.err);
    }
}
