//! WHO, of a server alone and of one in a cluster, in turns.

use std::fs;
use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::process::Command;
use std::time::{Duration, Instant};

use crate::common::Result;
use crate::common::daemon::{Daemon, PROGRAM};
use crate::redis::Redis;

/// How long a measurement takes.
const TIME: Duration = Duration::from_millis(400);

/// A running daemon with one client.
struct Server {
    daemon: Daemon,
    client: TcpStream,
}

impl Server {
    fn start(options: &[&str]) -> Result<Self> {
        let mut command = Command::new(PROGRAM);
        command
            .args(["--http=", "--max-clients", "16"])
            .args(options);
        let daemon = Daemon::start(&mut command)?;
        let client = TcpStream::connect(daemon.address)?;
        client.set_nodelay(true)?;
        client.set_read_timeout(Some(Duration::from_secs(10)))?;
        Ok(Server { daemon, client })
    }

    /// Its processor time so far: user and system, in ticks (proc(5)).
    fn cpu(&self) -> Result<f64> {
        let file = format!("/proc/{}/schedstat", self.daemon.child.id());
        let mut nanoseconds = 0.0;
        for task in fs::read_dir(format!("/proc/{}/task", self.daemon.child.id()))? {
            let text = fs::read_to_string(task?.path().join("schedstat"))?;
            let first = text.split(' ').next().ok_or(file.as_str())?;
            nanoseconds += first.parse::<f64>()?;
        }
        Ok(nanoseconds)
    }

    /// Asks WHO, so many at a time: how many a second, and nanoseconds of processor time for each.
    fn ask(&mut self, at_once: usize) -> Result<(f64, f64)> {
        let requests = b"WHO\n".repeat(at_once);
        let expected = b"1\n".repeat(at_once);
        let mut replies = vec![0; expected.len()];
        let (begun, cpu) = (Instant::now(), self.cpu()?);
        let mut asked = 0.0;
        while begun.elapsed() < TIME {
            self.client.write_all(&requests)?;
            self.client.read_exact(&mut replies)?;
            if replies != expected {
                return Err("a wrong reply".into());
            }
            asked += at_once as f64;
        }
        let rate = asked / begun.elapsed().as_secs_f64();
        Ok((rate, (self.cpu()? - cpu) / asked))
    }
}

/// The median, and how far the quartiles are from each other, of it.
fn spread(mut values: Vec<f64>) -> (f64, f64) {
    values.sort_by(f64::total_cmp);
    let at = |share: f64| values[((values.len() - 1) as f64 * share).round() as usize];
    (at(0.5), (at(0.75) - at(0.25)) / at(0.5))
}

/// Prints what WHO costs in a cluster against alone.
pub fn measure(rounds: usize) -> Result<()> {
    let redis = Redis::start()?;
    let mut alone = Server::start(&[])?;
    let mut member = Server::start(&["--cluster", &redis.url()])?;
    println!("WHO in a cluster over Redis against WHO alone, {rounds} rounds, one client:\n");
    println!("| requests at once | rate | CPU for each |\n|---|---|---|");
    for at_once in [1, 16, 128] {
        let (mut rates, mut costs) = (Vec::new(), Vec::new());
        for round in 0..rounds {
            eprintln!("{at_once} at once, round {}", round + 1);
            // Who is first is so in turns.
            let (one, other) = if round % 2 == 0 {
                let one = alone.ask(at_once)?;
                (one, member.ask(at_once)?)
            } else {
                let other = member.ask(at_once)?;
                (alone.ask(at_once)?, other)
            };
            rates.push(other.0 / one.0);
            costs.push(other.1 / one.1);
        }
        let ((rate, off), (cost, _)) = (spread(rates), spread(costs));
        println!(
            "| {at_once} | {rate:.3} (quartiles {:.0} % apart) | {cost:.3} |",
            off * 100.0
        );
    }
    println!();
    Ok(())
}
