//! WHO, of a server alone and of one in a cluster, in turns.

use std::fs;
use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use crate::Result;
use crate::redis::Redis;

/// How long a measurement takes.
const TIME: Duration = Duration::from_millis(400);

/// A running daemon with one client. Dropped, it is killed.
struct Server {
    child: Child,
    client: TcpStream,
}

impl Server {
    fn start(arguments: &[&str]) -> Result<Self> {
        let mut child = Command::new(env!("CARGO_BIN_EXE_blockchain-tcpd"))
            .args(["--listen", "127.0.0.1:0", "--http=", "--max-clients", "16"])
            .args(arguments)
            .stdin(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()?;
        let mut log = BufReader::new(child.stderr.take().ok_or("it has no stderr")?);
        let mut line = String::new();
        while !line.contains(" ready listen=") {
            line.clear();
            if log.read_line(&mut line)? == 0 {
                return Err(format!("the daemon ended: {}", child.wait()?).into());
            }
        }
        let (_, rest) = line.split_once("listen=").ok_or("no address")?;
        let address: SocketAddr = rest.split(' ').next().unwrap_or_default().parse()?;
        // Nobody reads more of the log, which must not be in its way.
        std::thread::spawn(move || std::io::copy(&mut log, &mut std::io::sink()));
        let client = TcpStream::connect(address)?;
        client.set_nodelay(true)?;
        client.set_read_timeout(Some(Duration::from_secs(10)))?;
        Ok(Server { child, client })
    }

    /// Its processor time so far: user and system, in ticks (proc(5)).
    fn cpu(&self) -> Result<f64> {
        let file = format!("/proc/{}/schedstat", self.child.id());
        let mut nanoseconds = 0.0;
        for task in fs::read_dir(format!("/proc/{}/task", self.child.id()))? {
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

impl Drop for Server {
    fn drop(&mut self) {
        // It may have ended.
        let _ = self.child.kill();
        let _ = self.child.wait();
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
