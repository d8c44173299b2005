//! Who measures: `blockchain-tcp bench`, and the independent generator; and what the server counts while they do.

use std::fmt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use serde_json::Value;

use crate::server::Server;
use crate::{Result, launch};

/// What `blockchain-tcp bench` takes of its duration to warm up, so that the other does the same.
const WARM_UP: f64 = 0.05;

/// The parts of the duration at which the server's counter is read: well within the time that both count.
const LOOKS: [f64; 2] = [0.2, 0.9];

/// What is asked.
#[derive(Clone, Copy)]
pub struct Load {
    clients: usize,
    depth: usize,
}

impl Load {
    /// So many clients with so many requests on the way.
    pub const fn new(clients: usize, depth: usize) -> Self {
        Load { clients, depth }
    }
}

impl fmt::Display for Load {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "{:>7} {:>6}", self.clients, self.depth)
    }
}

/// What one measurement came to.
pub struct Measured {
    /// Replies a second, as the generator says.
    pub rate: f64,
    /// The same, as the server says.
    pub served: f64,
    /// Percentiles of the latency in microseconds.
    pub p50: f64,
    /// The same.
    pub p99: f64,
}

impl fmt::Display for Measured {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Measured {
            rate,
            served,
            p50,
            p99,
        } = self;
        write!(
            out,
            "{rate:>9.0}/s, the server {served:>9.0}/s, p50 {p50:>7.1} µs, p99 {p99:>7.1} µs"
        )
    }
}

/// A generator.
pub enum Witness {
    /// The one that is examined.
    Bench,
    /// The one in C: its program.
    Independent(PathBuf),
}

/// Builds the generator in C; nothing if there is no compiler.
pub fn compile() -> Result<Option<PathBuf>> {
    let source = concat!(
        env!("CARGO_MANIFEST_DIR"),
        "/benches/generators/independent.c"
    );
    let program = PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join("independent");
    let mut compiler = Command::new("cc");
    compiler.args(["-std=gnu11", "-O2", "-Wall", "-Wextra", "-Werror", "-o"]);
    match compiler.arg(&program).arg(source).status() {
        Ok(status) if status.success() => Ok(Some(program)),
        Ok(status) => Err(format!("cc {source}: {status}").into()),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(format!("cc: {error}").into()),
    }
}

impl Witness {
    /// For the reader.
    pub fn name(&self) -> &'static str {
        match self {
            Witness::Bench => "bench",
            Witness::Independent(_) => "independent",
        }
    }

    /// Has it measure this load from this core.
    pub fn measure(
        &self,
        server: &Server,
        core: usize,
        load: Load,
        time: Duration,
    ) -> Result<Measured> {
        let before = server.answered()?;
        let Load { clients, depth } = load;
        let seconds = time.as_secs_f64();
        let (program, words) = match self {
            Witness::Bench => {
                let (address, milliseconds) = (server.address(), time.as_millis());
                let words =
                    format!("bench {address} --json -c {clients} -p {depth} -d {milliseconds}ms");
                let daemon = Path::new(env!("CARGO_BIN_EXE_blockchain-tcpd"));
                (daemon.with_file_name("blockchain-tcp"), words)
            }
            Witness::Independent(program) => {
                let (port, warm_up) = (server.address().port(), seconds * WARM_UP);
                let words = format!("{port} {clients} {depth} {warm_up} {seconds}");
                (program.clone(), words)
            }
        };
        let words: Vec<_> = words.split(' ').map(Into::into).collect();
        let child = launch::command(core, program.as_os_str(), &words)?
            .env_clear()
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .spawn()?;
        let mut looks = Vec::new();
        let begun = Instant::now();
        for part in LOOKS {
            std::thread::sleep(time.mul_f64(part).saturating_sub(begun.elapsed()));
            looks.push((Instant::now(), server.answered()?));
        }
        let output = child.wait_with_output()?;
        let text = String::from_utf8(output.stdout)?;
        if !output.status.success() {
            return Err(format!("{}: {}: {text}", self.name(), output.status).into());
        }
        let (rate, p50, p99, sent) = match self {
            Witness::Bench => of_json(&serde_json::from_str(&text)?)?,
            Witness::Independent(_) => of_words(&text)?,
        };
        let counted = server.answered()? - before;
        if counted != sent {
            let name = self.name();
            return Err(format!(
                "{name} has sent {sent} requests, the server has answered {counted}"
            )
            .into());
        }
        let [(from, first), (to, last)] = looks[..] else {
            return Err("two looks".into());
        };
        let served = (last - first) as f64 / (to - from).as_secs_f64();
        Ok(Measured {
            rate,
            served,
            p50,
            p99,
        })
    }
}

fn of_json(report: &Value) -> Result<(f64, f64, f64, u64)> {
    let number = |value: &Value| {
        value
            .as_f64()
            .ok_or_else(|| format!("no number in {report}"))
    };
    let latency = &report["latency_us"];
    let sent = report["sent"].as_u64().ok_or("no requests")?;
    Ok((
        number(&report["rate"])?,
        number(&latency["p50"])?,
        number(&latency["p99"])?,
        sent,
    ))
}

fn of_words(text: &str) -> Result<(f64, f64, f64, u64)> {
    let value = |key: &str| {
        let mut words = text.split_whitespace();
        let value = words.find_map(|word| word.strip_prefix(key)?.strip_prefix('='));
        value.ok_or_else(|| format!("no {key} in {text}"))
    };
    Ok((
        value("rate")?.parse()?,
        value("p50_us")?.parse()?,
        value("p99_us")?.parse()?,
        value("sent")?.parse()?,
    ))
}
